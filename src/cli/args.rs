//! The words of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::talk;
use crate::load::Ask;

/// Push every message to everyone who asked for its topic: a realtime gateway for very many WebSocket connections.
#[derive(Parser, Debug)]
#[command(name = "shardcast", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, max_term_width = 110)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  shardcast                                      serve on 0.0.0.0:8080, admin on 127.0.0.1:9090
  shardcast --listen [::]:80 --admin off         the word `serve` can be left out
  shardcast check                                what this machine allows, and how to raise it
  shardcast config default > shardcast.toml      a file with every key, its unit and its default
  shardcast serve --config shardcast.toml
  SHARDCAST_LIMITS_MESSAGE_BYTES_MAX=1MiB shardcast config show

  shardcast sub lobby                            print what is published to a topic
  shardcast pub lobby hello                      publish to it
  websocat 'ws://127.0.0.1:8080/ws?room=lobby'   any WebSocket client joins a room
  curl 127.0.0.1:9090/metrics

  curl -X POST 127.0.0.1:9090/drain              send clients elsewhere; -X DELETE serves again
  kill -TERM PID                                 the same, and then it ends; twice ends it at once
  kill -USR2 PID                                 the same, and then it begins again with the binary that is there by then

Under systemd: NOTIFY_SOCKET, WATCHDOG_USEC and LISTEN_FDS are understood (dist/systemd has units).
Flags win over SHARDCAST_… environment variables, those over the file, that over the defaults.
Exit codes: 0 done, 1 failed, 2 usage or configuration.";

const BENCH_EXAMPLES: &str = "\
Examples:
  shardcast bench fanout --url 'ws://127.0.0.1:8080/ws?room=r{room}'
  shardcast bench fanout --url 'ws://127.0.0.1:8080/ws?room=r{room}' -c 1000 --rooms 100 --rate 5000 --server-pid $(pgrep -x shardcast)
  shardcast bench echo --url ws://127.0.0.1:8080/echo -c 100 --in-flight 4
  shardcast bench idle --url 'ws://127.0.0.1:8080/ws?room=c{client}' -c 10000 --duration 60
  shardcast bench storm --url 'ws://127.0.0.1:8080/ws?room=r{room}' -c 10000 --cycles 5
  shardcast bench slow --url 'ws://127.0.0.1:8080/ws?room=r{room}' --slow-percent 20 --slow-pause 3
  shardcast bench resume --url 'ws://127.0.0.1:8080/ws?room=r{room}' --events 'http://127.0.0.1:8080/events?topic=r{room}' --behind 50

Exit codes: 0 done, 1 failed or a check failed (lost, repeated or misplaced messages, connections that ended), 2 usage.";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Serve clients until SIGTERM or SIGINT (what happens without a command, too)
    Serve(Settings),
    /// Print what the kernel and its limits allow here, and how many connections that makes
    Check(Settings),
    /// Put load on any WebSocket server and measure it: fan-out, echo, idle connections, reconnect storms, slow readers
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Box<Ask>),
    /// Print what is published to topics, one message a line, and go on where it was after a loss
    #[command(after_help = talk::SUB_EXAMPLES)]
    Sub(Box<talk::Sub>),
    /// Publish a message, or each line of stdin
    #[command(after_help = talk::PUB_EXAMPLES)]
    Pub(Box<talk::Pub>),
    /// Check, show or print the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Check a file, and the environment, and report every problem
    Check {
        /// The file; otherwise the one that SHARDCAST_CONFIG names
        file: Option<PathBuf>,
    },
    /// Show the effective value of every key and where it comes from
    Show(Box<Settings>),
    /// Print a file with every key at its default, described and commented out
    Default,
}

/// Flags that are keys of the configuration. They stay words here: `server::config` reads them, as it reads the file and the environment.
#[derive(Args, Debug, Default)]
pub(super) struct Settings {
    /// Where clients connect, unless a socket is passed by systemd [default: 0.0.0.0:8080] [env: SHARDCAST_LISTEN]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Where metrics, health and drain are served [default: 127.0.0.1:9090] [env: SHARDCAST_ADMIN]
    #[arg(long, value_name = "ADDR:PORT|off")]
    admin: Option<String>,
    /// Threads that serve clients [default: one per allowed CPU] [env: SHARDCAST_SHARDS]
    #[arg(long, value_name = "N|auto")]
    shards: Option<String>,
    /// CPUs that shards are pinned to, for example 0,2-5 [default: auto] [env: SHARDCAST_CPUS]
    #[arg(long, value_name = "LIST|auto|off", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// How the kernel is talked to: auto, uring or epoll [default: auto] [env: SHARDCAST_DRIVER]
    #[arg(long, value_name = "DRIVER")]
    driver: Option<String>,
    /// Compress messages for WebSockets that offer it (permessage-deflate) [default: false] [env: SHARDCAST_COMPRESSION]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    compression: Option<String>,
    /// File that carries positions and histories over a planned restart [default: off] [env: SHARDCAST_STATE]
    #[arg(long, value_name = "FILE|off")]
    state: Option<String>,
    /// Which topics' slow readers are not ended but thinned, for example 'prices.* drop_oldest' [env: SHARDCAST_SLOW]
    #[arg(long, value_name = "RULE,...")]
    slow: Option<String>,
    /// Servers of a NATS cluster that topics reach other gateways and programs through [env: SHARDCAST_NATS]
    #[arg(long, value_name = "URL,...")]
    nats: Option<String>,
    /// Credentials file for NATS [default: off] [env: SHARDCAST_NATS_CREDS]
    #[arg(long, value_name = "FILE|off")]
    nats_creds: Option<String>,
    /// Configuration file (TOML) [env: SHARDCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines look: text or json [default: text] [env: SHARDCAST_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: a level, or parts such as info,shardcast::gateway=debug [default: info] [env: SHARDCAST_LOG]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Settings {
    /// The configuration file, and the key and value of each flag that was given.
    pub(super) fn into_layers(self) -> (Option<PathBuf>, Vec<(&'static str, String)>) {
        let Self { listen, admin, shards, cpus, driver, compression, state, slow, nats, nats_creds, config, log_format, log } = self;
        let flags = [
            ("listen", listen),
            ("admin", admin),
            ("shards", shards),
            ("cpus", cpus),
            ("driver", driver),
            ("compression", compression),
            ("state", state),
            ("slow", slow),
            ("nats.servers", nats),
            ("nats.creds", nats_creds),
            ("log.format", log_format),
            ("log.filter", log),
        ];
        (config, flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::server::config::{DriverChoice, LogFormat, Source};

    fn settings(words: &[&str]) -> Settings {
        let cli = Cli::try_parse_from([&["shardcast"], words].concat()).expect("the words are right");
        match cli.command {
            None => cli.settings,
            Some(Command::Serve(settings) | Command::Check(settings)) => settings,
            Some(other) => panic!("{other:?} has no settings"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_can_be_left_out() {
        let words = ["--listen", "127.0.0.1:1", "--admin", "off", "--shards", "2"];
        let with_word = settings(&[&["serve"], words.as_slice()].concat()).into_layers();
        assert_eq!(settings(&words).into_layers(), with_word);
        assert_eq!(with_word.1.len(), 3);
        assert!(settings(&[]).into_layers().1.is_empty());
    }

    #[test]
    #[cfg_attr(not(feature = "nats"), ignore = "--nats is refused without it")]
    fn every_flag_is_a_key_of_the_configuration_under_that_flag() {
        let words = [
            "--listen=1.2.3.4:5",
            "--admin=off",
            "--shards=2",
            "--cpus=0,2-3",
            "--driver=epoll",
            "--compression",
            "--state=/tmp/s",
            "--slow=prices.* drop_oldest,a disconnect",
            "--nats=nats://a,b:4223",
            "--nats-creds=/tmp/c",
            "--log-format=json",
            "--log=debug",
        ];
        let (_, flags) = settings(&words).into_layers();
        assert_eq!(flags.len(), words.len());
        let layers = crate::server::config::Layers { flags: flags.clone(), ..Default::default() };
        let effective = layers.resolve().expect("the values are right");
        assert_eq!(effective.config.driver, DriverChoice::Epoll);
        assert_eq!(effective.config.log.format, LogFormat::Json);
        for ((key, _), word) in flags.iter().zip(words) {
            let flag = word.split('=').next().expect("every word has a flag");
            assert!(matches!(effective.source(key), Source::Flag(found) if found == flag), "{key}");
        }
    }

    #[test]
    fn wrong_words_are_usage_errors() {
        for words in [&["--listen"][..], &["--colour", "x"], &["frobnicate"], &["config"], &["config", "chek"], &["--shards", "2", "serve"]]
        {
            let error = Cli::try_parse_from([&["shardcast"], words].concat()).expect_err("the words are wrong");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
