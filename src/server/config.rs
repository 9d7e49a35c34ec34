//! The configuration: defaults, below a TOML file, below the environment, below flags.
//!
//! Every key is one row of `SETTINGS` or of the limits table; from those rows come the file's keys, the environment twins, the
//! flags, the default file, `config show` and the messages. Whatever is wrong in any layer is reported at once, each problem with
//! its place. Called by `cli`; the result goes to the supervisor and never changes while the gateway runs.

mod file;
mod text;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use self::values::Raw;
use crate::bus::options::Options as NatsOptions;
use crate::gateway::{AddressSource, Addressing};
use crate::limits::{Limit, Limits, TABLE};
use crate::proto::pattern::Pattern;
use crate::proto::slow::SlowRules;

/// What the gateway runs with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where metrics and health are served; `None` is off.
    pub admin: Option<SocketAddr>,
    /// How many shards; `None` is one for each CPU that the process may use.
    pub shards: Option<u16>,
    /// Which CPUs shards are pinned to.
    pub cpus: Cpus,
    /// How the kernel is talked to.
    pub driver: DriverChoice,
    /// Origins of pages that may connect, in lower case. None: a page's origin must match the host it connects to. `*`: any.
    pub origins: Vec<String>,
    /// permessage-deflate is agreed to where clients offer it.
    pub compression: bool,
    /// Topics of which it is told who is in them.
    pub presence: Vec<Pattern>,
    /// Whether clients may subscribe to all topics whose names begin with something.
    pub wildcards: bool,
    /// How clients' addresses are found.
    pub addressing: Addressing,
    /// What a planned restart goes on from; `None` when it begins anew.
    pub state: Option<PathBuf>,
    /// What SIGUSR2 does.
    pub restart: RestartChoice,
    /// What becomes of slow readers.
    pub slow: SlowRules,
    /// How NATS is reached, and what for.
    pub nats: NatsOptions,
    /// Every bound.
    pub limits: Limits,
    /// What is logged, and how it looks.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090))),
            shards: None,
            cpus: Cpus::Auto,
            driver: DriverChoice::Auto,
            origins: Vec::new(),
            compression: false,
            presence: Vec::new(),
            wildcards: false,
            addressing: Addressing::default(),
            state: None,
            restart: RestartChoice::HandOver,
            slow: SlowRules::default(),
            nats: NatsOptions::default(),
            limits: Limits::default(),
            log: LogConfig { format: LogFormat::Text, filter: "info".to_owned() },
        }
    }
}

/// Which CPUs shards are pinned to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cpus {
    /// One allowed CPU for each shard, while there are enough.
    Auto,
    /// Nothing is pinned.
    Off,
    /// These, in ascending order and each once; shard after shard takes the next.
    List(Vec<usize>),
}

/// What SIGUSR2 does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartChoice {
    /// Another process takes the connections over; the process id changes.
    HandOver,
    /// Clients are told goodbye, and the process becomes the new program; the process id stays.
    Drain,
}

impl RestartChoice {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::HandOver, Self::Drain];

    /// How it is written in configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::HandOver => "hand-over",
            Self::Drain => "drain",
        }
    }
}

/// How the kernel is talked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverChoice {
    /// io_uring where it works, epoll otherwise.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// epoll.
    Epoll,
}

impl DriverChoice {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Uring, Self::Epoll];

    /// The word for it in configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// What is logged, and how it looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// Which lines: a level, or `target=level` parts; known to parse.
    pub filter: String,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl LogFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The word for it in configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// What the layers above the defaults say, unread so far.
#[derive(Default, Debug)]
pub struct Layers {
    /// The file's path, for messages, and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables that begin with `SHARDCAST_`.
    pub environment: Vec<(String, OsString)>,
    /// Flags that were given: their key and value.
    pub flags: Vec<(&'static str, String)>,
}

impl Layers {
    /// Reads the environment of this process and the file: `config_file`, or else the one that `SHARDCAST_CONFIG` names. No file is read unasked.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(config_file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Result<Self, ConfigError> {
        let mut environment = Vec::new();
        let mut file_of_environment = None;
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENVIRONMENT_PREFIX)) else { continue };
            if name == CONFIG_VARIABLE {
                file_of_environment = Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty());
            } else {
                environment.push((name.to_owned(), value));
            }
        }
        environment.sort();
        let path = match (config_file, file_of_environment) {
            (Some(path), _) => Some((path, "--config")),
            (None, Some(path)) => Some((path, CONFIG_VARIABLE)),
            (None, None) => None,
        };
        let file = match path {
            Some((path, named_by)) => {
                let text = std::fs::read_to_string(&path).map_err(|error| {
                    ConfigError::one(format!("{}: the file that {named_by} names cannot be read: {error}", path.display()))
                })?;
                Some((path, text))
            }
            None => None,
        };
        Ok(Self { file, environment, flags })
    }

    /// Puts the layers on top of each other.
    ///
    /// # Errors
    /// Every problem of every layer.
    pub fn resolve(&self) -> Result<Effective, ConfigError> {
        let mut builder = Builder::default();
        if let Some((path, text)) = &self.file {
            file::apply(path, text, &mut builder);
        }
        for (name, value) in &self.environment {
            builder.environment(name, value);
        }
        for (key, value) in &self.flags {
            let key = Key::find(key).expect("every flag is made from a row of the table");
            let flag = key.flag().expect("only rows with a flag are asked for");
            builder.apply(key, &Raw::Text(value.clone()), Source::Flag(flag));
        }
        builder.finish()
    }
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// This line of the file.
    File(PathBuf, usize),
    /// This environment variable.
    Environment(String),
    /// This flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "file {}:{line}", path.display()),
            Self::Environment(name) => write!(f, "env {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A configuration that holds together, and where each value comes from.
#[derive(Debug)]
pub struct Effective {
    /// The values.
    pub config: Config,
    sources: BTreeMap<&'static str, Source>,
}

impl Effective {
    /// Where the value of this key comes from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// The effective configuration as a TOML file whose comments tell where each value comes from.
    pub fn show(&self) -> String {
        text::show(self)
    }
}

/// The default configuration file: every key commented out, with its text, unit and default.
pub fn default_file() -> String {
    text::default_file()
}

/// What is wrong with the configuration: all of it, one sentence each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The sentences; never none.
    pub problems: Vec<String>,
}

impl ConfigError {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

const ENVIRONMENT_PREFIX: &str = "SHARDCAST_";
const CONFIG_VARIABLE: &str = "SHARDCAST_CONFIG";

/// A key outside `[limits]`.
struct Setting {
    /// As in the file, with its section.
    key: &'static str,
    flag: &'static str,
    environment: &'static str,
    /// What it is and what it can be.
    about: &'static str,
    unit: &'static str,
    apply: fn(&mut Config, &Raw) -> Result<(), String>,
    /// The value in TOML.
    show: fn(&Config) -> toml::Value,
}

const SETTINGS: &[Setting] = &[
    Setting {
        key: "listen",
        flag: "--listen",
        environment: "SHARDCAST_LISTEN",
        about: "Where clients connect; [::]:PORT takes IPv6 and IPv4. Port 0 lets the kernel choose one, which the readiness line tells.",
        unit: "address:port",
        apply: |config, raw| values::address(raw).map(|value| config.listen = value),
        show: |config| config.listen.to_string().into(),
    },
    Setting {
        key: "admin",
        flag: "--admin",
        environment: "SHARDCAST_ADMIN",
        about: "Where /metrics, /healthz and /readyz are served, without any authentication. \"off\" serves them nowhere.",
        unit: "address:port or \"off\"",
        apply: |config, raw| values::address_or_off(raw).map(|value| config.admin = value),
        show: |config| config.admin.map_or_else(|| "off".to_owned(), |admin| admin.to_string()).into(),
    },
    Setting {
        key: "shards",
        flag: "--shards",
        environment: "SHARDCAST_SHARDS",
        about: "Threads that serve clients, each with its share of the connections. \"auto\" is one for each CPU that the process may use.",
        unit: "shards or \"auto\"",
        apply: |config, raw| values::shards(raw).map(|value| config.shards = value),
        show: |config| config.shards.map_or_else(|| "auto".into(), |shards| i64::from(shards).into()),
    },
    Setting {
        key: "cpus",
        flag: "--cpus",
        environment: "SHARDCAST_CPUS",
        about: "CPUs that shards are pinned to, one after the other, for example \"0,2-5\". \"auto\" takes the CPUs that the process may use; \"off\" pins nothing.",
        unit: "CPU numbers, \"auto\" or \"off\"",
        apply: |config, raw| values::cpus(raw).map(|value| config.cpus = value),
        show: |config| match &config.cpus {
            Cpus::Auto => "auto".into(),
            Cpus::Off => "off".into(),
            Cpus::List(list) => list.iter().map(usize::to_string).collect::<Vec<_>>().join(",").into(),
        },
    },
    Setting {
        key: "driver",
        flag: "--driver",
        environment: "SHARDCAST_DRIVER",
        about: "How the kernel is talked to. \"auto\" takes io_uring where it works and epoll otherwise; \"uring\" refuses to start without it.",
        unit: "\"auto\", \"uring\" or \"epoll\"",
        apply: |config, raw| values::driver(raw).map(|value| config.driver = value),
        show: |config| config.driver.word().into(),
    },
    Setting {
        key: "restart",
        flag: "",
        environment: "SHARDCAST_RESTART",
        about: "What SIGUSR2 does. \"hand-over\" starts the program that is at the path of this one and gives it every connection: no client is disconnected, and the \
                process id changes. \"drain\" says goodbye to clients and becomes that program with the same process id; so does process 1, always.",
        unit: "\"hand-over\" or \"drain\"",
        apply: |config, raw| values::restart(raw).map(|value| config.restart = value),
        show: |config| config.restart.word().into(),
    },
    Setting {
        key: "origins",
        flag: "",
        environment: "SHARDCAST_ORIGINS",
        about: "Web pages that may connect, by their origin, for example [\"https://example.com\"]; in the environment separated by commas. \
                When empty, a page may connect to the host that served it. \"*\" lets every page connect. Clients that are no browsers are not concerned.",
        unit: "origins",
        apply: |config, raw| values::origins(raw).map(|value| config.origins = value),
        show: |config| config.origins.clone().into(),
    },
    Setting {
        key: "compression",
        flag: "--compression",
        environment: "SHARDCAST_COMPRESSION",
        about: "Whether messages are compressed for WebSockets that offer it (permessage-deflate), each once for all who get it. \
                It saves bytes and costs publishers' time: for large, repetitive messages to clients on slow or metered networks.",
        unit: "true or false",
        apply: |config, raw| values::flag(raw).map(|value| config.compression = value),
        show: |config| config.compression.into(),
    },
    Setting {
        key: "trusted_proxies",
        flag: "",
        environment: "SHARDCAST_TRUSTED_PROXIES",
        about: "Networks of proxies that are believed when they say where a connection comes from, for example [\"10.0.0.0/8\", \"2001:db8::7\"]; in the environment separated by commas.",
        unit: "networks",
        apply: |config, raw| values::networks(raw).map(|value| config.addressing.trusted = value),
        show: |config| config.addressing.trusted.iter().map(|network| network.to_string()).collect::<Vec<_>>().into(),
    },
    Setting {
        key: "client_address",
        flag: "",
        environment: "SHARDCAST_CLIENT_ADDRESS",
        about: "What says where a connection comes from: \"socket\"; or, of trusted_proxies, \"x-forwarded-for\" or \"forwarded\" (a header that each of them must write itself), \
                or \"proxy-protocol\" (which then every connection of theirs must begin with). Limits by address count for what it says.",
        unit: "\"socket\", \"x-forwarded-for\", \"forwarded\" or \"proxy-protocol\"",
        apply: |config, raw| values::address_source(raw).map(|value| config.addressing.source = value),
        show: |config| values::address_source_word(config.addressing.source).into(),
    },
    Setting {
        key: "presence",
        flag: "",
        environment: "SHARDCAST_PRESENCE",
        about: "Topics whose members may be asked for and watched (docs/protocol.md, section 14): names, or beginnings of names with a *. None: nobody is told who is in a topic. \
                What clients call themselves (?user=) is not checked.",
        unit: "topics",
        apply: |config, raw| values::patterns(raw).map(|value| config.presence = value),
        show: |config| config.presence.iter().map(|pattern| pattern.to_string()).collect::<Vec<_>>().into(),
    },
    Setting {
        key: "wildcards",
        flag: "",
        environment: "SHARDCAST_WILDCARDS",
        about: "Whether clients may subscribe to all topics whose names begin with something (docs/protocol.md, section 13). \
                Whoever may needs to know no name to hear everything.",
        unit: "true or false",
        apply: |config, raw| values::flag(raw).map(|value| config.wildcards = value),
        show: |config| config.wildcards.into(),
    },
    Setting {
        key: "state",
        flag: "--state",
        environment: "SHARDCAST_STATE",
        about: "A file that carries positions, histories and idempotency keys over a planned restart: a drain that ends the process writes it, the next start reads and removes it. \
                Another of the same name with .lock marks it as taken. \"off\" writes none: every client is told of a gap then.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.state = value),
        show: |config| config.state.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string()).into(),
    },
    Setting {
        key: "slow",
        flag: "--slow",
        environment: "SHARDCAST_SLOW",
        about: "What becomes of readers for whom more than limits.queue_soft_bytes of a topic waits, by rules \"TOPICS POLICY\", for example [\"prices.* drop_oldest\"]; \
                in the environment and the flag separated by commas. Topics are a name, or the beginning of names with a *; the first rule that matches holds. \
                \"drop_oldest\" leaves out the oldest messages that wait, \"conflate\" all but the newest of each key; both say so with a gap. \"disconnect\", which every other topic has, ends readers at the hard bound (4508).",
        unit: "rules",
        apply: |config, raw| values::slow_rules(raw).map(|value| config.slow = value),
        show: |config| config.slow.iter().map(|rule| rule.to_string()).collect::<Vec<_>>().into(),
    },
    Setting {
        key: "nats.servers",
        flag: "--nats",
        environment: "SHARDCAST_NATS",
        about: "Servers of a NATS cluster, for example [\"nats://10.0.0.1:4222\"]; tls:// wants TLS. In the environment and the flag separated by commas. None: every topic is this process's own.",
        unit: "URLs",
        apply: |config, raw| values::nats_servers(raw).map(|value| config.nats.servers = value),
        show: |config| config.nats.servers.clone().into(),
    },
    Setting {
        key: "nats.bridge",
        flag: "",
        environment: "SHARDCAST_NATS_BRIDGE",
        about: "Which topics reach NATS, and under which subjects: \"TOPICS <-> SUBJECTS\", or -> for those that only go out, <- for those that only come in. Both sides are names, or beginnings of names with a *. Of several rules for a topic the first holds; a topic without one is this process's own.",
        unit: "rules",
        apply: |config, raw| values::bridge_rules(raw).map(|value| config.nats.rules = value),
        show: |config| config.nats.rules.iter().map(|rule| rule.to_string()).collect::<Vec<_>>().into(),
    },
    Setting {
        key: "nats.stream",
        flag: "",
        environment: "SHARDCAST_NATS_STREAM",
        about: "JetStream stream that gives the messages of NATS's topics their places: one order and the same positions at every gateway, \
                receipts once it has them, and a past that outlives gateways. It is made when it is not there, by limits.nats_stream_…; one that is \
                there and another is told by the log and /readyz.",
        unit: "name or \"off\"",
        apply: |config, raw| values::nats_stream(raw).map(|value| config.nats.stream = value),
        show: |config| config.nats.stream.clone().unwrap_or_else(|| "off".to_owned()).into(),
    },
    Setting {
        key: "nats.creds",
        flag: "--nats-creds",
        environment: "SHARDCAST_NATS_CREDS",
        about: "Credentials file (a JWT and the seed that signs for it) that NATS knows this gateway by.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.creds = value),
        show: |config| values::shown_path(&config.nats.creds),
    },
    Setting {
        key: "nats.nkey",
        flag: "",
        environment: "SHARDCAST_NATS_NKEY",
        about: "File with the seed of an NKEY that NATS knows this gateway by.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.nkey = value),
        show: |config| values::shown_path(&config.nats.nkey),
    },
    Setting {
        key: "nats.token",
        flag: "",
        environment: "SHARDCAST_NATS_TOKEN",
        about: "File with a token that NATS knows this gateway by.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.token = value),
        show: |config| values::shown_path(&config.nats.token),
    },
    Setting {
        key: "nats.user",
        flag: "",
        environment: "SHARDCAST_NATS_USER",
        about: "User that NATS knows this gateway by; nats.password goes with it.",
        unit: "name or \"off\"",
        apply: |config, raw| values::name_or_off(raw).map(|value| config.nats.user = value),
        show: |config| config.nats.user.clone().unwrap_or_else(|| "off".to_owned()).into(),
    },
    Setting {
        key: "nats.password",
        flag: "",
        environment: "SHARDCAST_NATS_PASSWORD",
        about: "File with the password of nats.user.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.password = value),
        show: |config| values::shown_path(&config.nats.password),
    },
    Setting {
        key: "nats.ca",
        flag: "",
        environment: "SHARDCAST_NATS_CA",
        about: "Certificates (PEM) that those of NATS servers are signed by, in place of the system's.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.ca = value),
        show: |config| values::shown_path(&config.nats.ca),
    },
    Setting {
        key: "nats.cert",
        flag: "",
        environment: "SHARDCAST_NATS_CERT",
        about: "Certificate (PEM) that this gateway shows to NATS servers; nats.key goes with it.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.cert = value),
        show: |config| values::shown_path(&config.nats.cert),
    },
    Setting {
        key: "nats.key",
        flag: "",
        environment: "SHARDCAST_NATS_KEY",
        about: "Key (PEM) of nats.cert.",
        unit: "path or \"off\"",
        apply: |config, raw| values::path_or_off(raw).map(|value| config.nats.key = value),
        show: |config| values::shown_path(&config.nats.key),
    },
    Setting {
        key: "log.format",
        flag: "--log-format",
        environment: "SHARDCAST_LOG_FORMAT",
        about: "How a line of the log on stderr looks.",
        unit: "\"text\" or \"json\"",
        apply: |config, raw| values::log_format(raw).map(|value| config.log.format = value),
        show: |config| config.log.format.word().into(),
    },
    Setting {
        key: "log.filter",
        flag: "--log",
        environment: "SHARDCAST_LOG",
        about: "Which lines are logged: off, error, warn, info, debug or trace; or parts such as \"info,shardcast::gateway=debug\".",
        unit: "filter",
        apply: |config, raw| values::log_filter(raw).map(|value| config.log.filter = value),
        show: |config| config.log.filter.clone().into(),
    },
];

/// One key of the configuration, whichever table its row is in.
#[derive(Clone, Copy)]
enum Key {
    Setting(&'static Setting),
    Limit(&'static Limit),
}

impl Key {
    fn all() -> impl Iterator<Item = Self> {
        SETTINGS.iter().map(Self::Setting).chain(TABLE.iter().map(Self::Limit))
    }

    fn find(name: &str) -> Option<Self> {
        match name.strip_prefix("limits.") {
            Some(limit) => Limits::find(limit).map(Self::Limit),
            None => SETTINGS.iter().find(|setting| setting.key == name).map(Self::Setting),
        }
    }

    /// The key with its section.
    fn name(self) -> String {
        match self {
            Self::Setting(setting) => setting.key.to_owned(),
            Self::Limit(limit) => format!("limits.{}", limit.name),
        }
    }

    /// What [`Effective::sources`] knows it by.
    fn id(self) -> &'static str {
        match self {
            Self::Setting(setting) => setting.key,
            Self::Limit(limit) => limit.name,
        }
    }

    fn environment(self) -> String {
        match self {
            Self::Setting(setting) => setting.environment.to_owned(),
            Self::Limit(limit) => format!("SHARDCAST_LIMITS_{}", limit.name.to_ascii_uppercase()),
        }
    }

    fn flag(self) -> Option<&'static str> {
        match self {
            Self::Setting(setting) => Some(setting.flag).filter(|flag| !flag.is_empty()),
            Self::Limit(_) => None,
        }
    }
}

/// A configuration on its way through the layers, and what was wrong with them.
#[derive(Default)]
struct Builder {
    config: Config,
    sources: BTreeMap<&'static str, Source>,
    problems: Vec<String>,
    /// Whether a limit was refused: the others are then not held against each other.
    limits_incomplete: bool,
}

impl Builder {
    fn apply(&mut self, key: Key, raw: &Raw, source: Source) {
        let result = match key {
            Key::Setting(setting) => (setting.apply)(&mut self.config, raw),
            Key::Limit(row) => values::limit(raw, row).map(|value| (row.set)(&mut self.config.limits, value)),
        };
        match result {
            Ok(()) => {
                self.sources.insert(key.id(), source);
            }
            Err(error) => {
                self.limits_incomplete |= matches!(key, Key::Limit(_));
                self.problems.push(match source {
                    Source::File(path, line) => format!("{}:{line}: {} {error}", path.display(), key.name()),
                    Source::Environment(name) => format!("{name} {error}"),
                    Source::Flag(flag) => format!("{flag} {error}"),
                    Source::Default => unreachable!("defaults are not applied, they are there from the start"),
                });
            }
        }
    }

    fn environment(&mut self, name: &str, value: &OsString) {
        let Some(text) = value.to_str() else {
            self.problems.push(format!("{name} is not UTF-8"));
            return;
        };
        // A compose file or a unit that passes an unset variable on makes it empty.
        if text.is_empty() || is_kubernetes_service_variable(name, text) {
            return;
        }
        match Key::all().find(|key| key.environment() == name) {
            Some(key) => self.apply(key, &Raw::Text(text.to_owned()), Source::Environment(name.to_owned())),
            None => {
                // What all names share would make any two of them look alike.
                let bare = |name: &str| name.trim_start_matches(ENVIRONMENT_PREFIX).to_owned();
                let known = Key::all().map(|key| bare(&key.environment())).chain([bare(CONFIG_VARIABLE)]);
                self.problems.push(match closest(&bare(name), known) {
                    Some(known) => format!("unknown environment variable {name}; did you mean {ENVIRONMENT_PREFIX}{known}?"),
                    None => format!("unknown environment variable {name}; `shardcast config default` names those that are read"),
                });
            }
        }
    }

    fn finish(mut self) -> Result<Effective, ConfigError> {
        if !self.limits_incomplete
            && let Err(problem) = self.config.limits.check()
        {
            self.problems.push(problem);
        }
        if let Some(admin) = self.config.admin
            && overlap(self.config.listen, admin)
        {
            self.problems.push(format!("listen {} and admin {admin} overlap; give one of them another port", self.config.listen));
        }
        let addressing = &self.config.addressing;
        if addressing.source != AddressSource::Socket && addressing.trusted.iter().len() == 0 {
            self.problems.push(format!(
                "client_address is \"{}\" and no proxy is trusted to say it; list the networks of yours in trusted_proxies",
                values::address_source_word(addressing.source)
            ));
        }
        let limits = &self.config.limits;
        if self.config.slow.thin_anybody() && limits.queue_soft_bytes > limits.queue_bytes_max {
            self.problems.push(format!(
                "limits.queue_soft_bytes is {}, above limits.queue_bytes_max {}: slow readers would be ended before anything is left out for them; lower the first or raise the second",
                limits.queue_soft_bytes, limits.queue_bytes_max
            ));
        }
        if let Err(problem) = self.config.nats.check() {
            self.problems.push(problem);
        }
        if self.config.nats.is_on() && !cfg!(feature = "nats") {
            self.problems.push("nats.servers is given, and this binary was built without NATS (the feature nats)".to_owned());
        }
        let (longest, max) = (self.config.nats.rules.control_line_bytes_max() as u64, self.config.limits.nats_control_line_bytes);
        if longest > max {
            self.problems.push(format!(
                "nats.bridge leads to lines of up to {longest} bytes, above limits.nats_control_line_bytes {max}; give shorter subjects, or raise the second together with max_control_line of the servers"
            ));
        }
        if self.problems.is_empty() {
            Ok(Effective { config: self.config, sources: self.sources })
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }

    fn unknown_key(&mut self, path: &Path, line: usize, name: &str) {
        let problem = match closest(name, Key::all().map(Key::name)) {
            Some(known) => format!("unknown key {name}; did you mean {known}?"),
            None => format!("unknown key {name}; `shardcast config default` prints all keys"),
        };
        self.problems.push(format!("{}:{line}: {problem}", path.display()));
    }
}

/// Whether the kernel would refuse the second of two listeners: an unspecified address takes the port of every other of its family, that of IPv6 of all.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let takes = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.ip().to_canonical().is_ipv4());
    let same = a.ip().to_canonical() == b.ip().to_canonical();
    a.port() == b.port() && a.port() != 0 && (same || takes(a, b) || takes(b, a))
}

/// Kubernetes gives every container variables named after the services of its namespace; for a service called `shardcast` or
/// `shardcast-admin` they begin as ours do and are no mistake of anybody's.
fn is_kubernetes_service_variable(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let of_port = name.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && parts.next().is_some_and(|name| ["TCP", "UDP", "SCTP"].contains(&name))
    });
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || of_port
}

/// The known name that `name` was probably meant to be: by its whole, or by its last part when the section was forgotten.
fn closest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let alike = |candidate: &String| {
        let whole = strsim::normalized_damerau_levenshtein(name, candidate);
        whole.max(strsim::normalized_damerau_levenshtein(&last(name), &last(candidate)) * 0.95)
    };
    let (score, best) = known.map(|candidate| (alike(&candidate), candidate)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= 0.7).then_some(best)
}

#[cfg(test)]
mod tests;
