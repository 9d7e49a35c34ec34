//! Words into values: addresses, CPU lists, origins, bytes and times with suffixes. Each error is the rest of a sentence that begins with the key.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Cpus, DriverChoice, LogFormat, RestartChoice, closest};
use crate::bus::options::{check_server, check_stream};
use crate::gateway::AddressSource;
use crate::limits::{Limit, Unit};
use crate::proto::client_address::{ForwardingHeader, Networks};
use crate::proto::pattern::{Pattern, PatternError};
use crate::proto::slow::{SlowPolicy, SlowRuleError, SlowRules};
use crate::proto::subject::{DEFAULT_RULE, RuleError, Rules};
use crate::server::host::SHARDS_MAX;

/// A value as a layer gives it, before anybody has looked at the key.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Raw {
    /// A string of the file, or anything from the environment or a flag.
    Text(String),
    /// An integer of the file.
    Integer(i128),
    /// An array of the file.
    List(Vec<Raw>),
    /// Something else of the file: what it is, with its article.
    Other(&'static str),
}

impl Raw {
    /// What the value is and says, for a message.
    fn describe(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::List(_) => "an array".to_owned(),
            Self::Other(kind) => (*kind).to_owned(),
        }
    }
}

/// Yes or no.
pub(super) fn flag(raw: &Raw) -> Result<bool, String> {
    match raw {
        Raw::Text(text) if text == "true" => Ok(true),
        Raw::Text(text) if text == "false" => Ok(false),
        Raw::Other("true") => Ok(true),
        Raw::Other("false") => Ok(false),
        _ => Err(format!("is {}; write true or false", raw.describe())),
    }
}

/// An address and a port.
pub(super) fn address(raw: &Raw) -> Result<SocketAddr, String> {
    let Raw::Text(text) = raw else {
        return Err(format!("is {}; write an address and a port, for example \"0.0.0.0:8080\"", raw.describe()));
    };
    text.parse().map_err(|_| {
        let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
        let local = text.strip_prefix("localhost:").map(str::parse::<u16>);
        let example = match (port, local) {
            (Ok(port), _) => format!("0.0.0.0:{port}"),
            (_, Some(Ok(port))) => format!("127.0.0.1:{port}"),
            _ => "0.0.0.0:8080 or [::]:8080".to_owned(),
        };
        format!("is {text:?}, which is not an address and a port; write {example}")
    })
}

/// An address and a port, or `off`.
pub(super) fn address_or_off(raw: &Raw) -> Result<Option<SocketAddr>, String> {
    match raw {
        Raw::Text(text) if text == "off" => Ok(None),
        _ => address(raw).map(Some).map_err(|error| format!("{error}, or off")),
    }
}

/// A file, or `off`.
pub(super) fn path_or_off(raw: &Raw) -> Result<Option<PathBuf>, String> {
    match raw {
        Raw::Text(text) if text == "off" => Ok(None),
        Raw::Text(text) if !text.is_empty() && !text.ends_with('/') => Ok(Some(PathBuf::from(text))),
        _ => Err(format!("is {}; write the path of a file, for example \"/var/lib/shardcast/state\", or off", raw.describe())),
    }
}

/// A file as it is printed.
pub(super) fn shown_path(path: &Option<PathBuf>) -> toml::Value {
    path.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string()).into()
}

/// A name, or `off`.
pub(super) fn name_or_off(raw: &Raw) -> Result<Option<String>, String> {
    match raw {
        Raw::Text(text) if text == "off" => Ok(None),
        Raw::Text(text) if !text.is_empty() => Ok(Some(text.clone())),
        _ => Err(format!("is {}; write a name, or off", raw.describe())),
    }
}

/// Servers of a NATS cluster. In a string they are separated by commas.
pub(super) fn nats_servers(raw: &Raw) -> Result<Vec<String>, String> {
    let server = |url: &str| check_server(url).map(|()| url.to_owned()).map_err(|error| format!("has a server that {error}"));
    match raw {
        Raw::Text(text) if text == "off" => Ok(Vec::new()),
        _ => strings(raw, "nats://127.0.0.1:4222")?.into_iter().map(server).collect(),
    }
}

/// The name of a stream, or `off`.
pub(super) fn nats_stream(raw: &Raw) -> Result<Option<String>, String> {
    let name = name_or_off(raw)?;
    name.as_deref().map_or(Ok(()), check_stream).map_err(|error| format!("{error}, or off"))?;
    Ok(name)
}

/// Which topics reach NATS. In a string rules are separated by commas.
pub(super) fn bridge_rules(raw: &Raw) -> Result<Rules, String> {
    let rules = strings(raw, DEFAULT_RULE)?.into_iter().map(str::parse).collect::<Result<_, RuleError>>();
    rules.and_then(Rules::new).map_err(|error| format!("has a mistake: {error}"))
}

/// What becomes of slow readers. In a string rules are separated by commas.
pub(super) fn slow_rules(raw: &Raw) -> Result<SlowRules, String> {
    let rules = strings(raw, "prices.* drop_oldest")?.into_iter().map(str::parse).collect::<Result<_, SlowRuleError>>();
    rules.and_then(SlowRules::new).map_err(|error| {
        let meant = match &error {
            SlowRuleError::UnknownPolicy { word, .. } => closest(word, SlowPolicy::ALL.into_iter().map(|policy| policy.word().to_owned())),
            _ => None,
        };
        let hint = meant.map_or_else(String::new, |word| format!("; did you mean {word}?"));
        format!("has a mistake: {error}{hint}")
    })
}

/// Topics that something is for. In a string they are separated by commas.
pub(super) fn patterns(raw: &Raw) -> Result<Vec<Pattern>, String> {
    let patterns = strings(raw, "rooms.*")?.into_iter().map(str::parse).collect::<Result<_, PatternError>>();
    patterns.map_err(|error| format!("has a mistake: {error}"))
}

/// A number of shards, or `auto`.
pub(super) fn shards(raw: &Raw) -> Result<Option<u16>, String> {
    let number = match raw {
        Raw::Text(text) if text == "auto" => return Ok(None),
        Raw::Text(text) => text.parse().ok(),
        Raw::Integer(number) => Some(*number),
        _ => None,
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|shards| (1..=SHARDS_MAX).contains(shards))
        .map(Some)
        .ok_or_else(|| format!("is {}; write a number from 1 to {SHARDS_MAX}, or auto for one per allowed CPU", raw.describe()))
}

/// Which CPUs the shards are pinned to.
pub(super) fn cpus(raw: &Raw) -> Result<Cpus, String> {
    let expected = "write a list such as \"0,2-5\", or auto, or off";
    let mut list = Vec::new();
    match raw {
        Raw::Text(text) if text == "auto" => return Ok(Cpus::Auto),
        Raw::Text(text) if text == "off" => return Ok(Cpus::Off),
        Raw::Text(text) => {
            for part in text.split(',').map(str::trim) {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last) = match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                    (Ok(first), Ok(last)) if first <= last && last < CPUS_MAX => (first, last),
                    _ => {
                        return Err(format!(
                            "is {text:?}, where {part:?} is not a CPU number below {CPUS_MAX} or a range of them; {expected}"
                        ));
                    }
                };
                list.extend(first..=last);
            }
        }
        Raw::Integer(_) | Raw::List(_) => {
            let items = if let Raw::List(items) = raw { items.as_slice() } else { std::slice::from_ref(raw) };
            for item in items {
                match item {
                    Raw::Integer(number) if (0..CPUS_MAX as i128).contains(number) => list.push(*number as usize),
                    _ => return Err(format!("has {}, which is not a CPU number below {CPUS_MAX}; {expected}", item.describe())),
                }
            }
            if list.is_empty() {
                return Err(format!("is an empty array; {expected}"));
            }
        }
        Raw::Other(_) => return Err(format!("is {}; {expected}", raw.describe())),
    }
    list.sort_unstable();
    list.dedup();
    Ok(Cpus::List(list))
}

/// Linux knows no more CPUs than this (NR_CPUS of the largest configuration).
const CPUS_MAX: usize = 8192;

/// How the gateway talks to the kernel.
pub(super) fn driver(raw: &Raw) -> Result<DriverChoice, String> {
    word(raw, &DriverChoice::ALL.map(|driver| (driver.word(), driver)))
}

/// What SIGUSR2 does.
pub(super) fn restart(raw: &Raw) -> Result<RestartChoice, String> {
    word(raw, &RestartChoice::ALL.map(|choice| (choice.word(), choice)))
}

/// How log lines look.
pub(super) fn log_format(raw: &Raw) -> Result<LogFormat, String> {
    word(raw, &LogFormat::ALL.map(|format| (format.word(), format)))
}

/// A log filter.
pub(super) fn log_filter(raw: &Raw) -> Result<String, String> {
    let Raw::Text(text) = raw else {
        return Err(format!("is {}; write a level such as \"info\"", raw.describe()));
    };
    crate::server::logging::parse_filter(text).map_err(|error| format!("is {text:?}: {error}"))?;
    Ok(text.clone())
}

/// Origins of pages that may connect. In a string they are separated by commas.
pub(super) fn origins(raw: &Raw) -> Result<Vec<String>, String> {
    strings(raw, "https://example.com")?.into_iter().map(origin).collect()
}

/// Networks of proxies that are believed. In a string they are separated by commas.
pub(super) fn networks(raw: &Raw) -> Result<Networks, String> {
    Networks::parse(strings(raw, "10.0.0.0/8")?).map_err(|error| format!("has a mistake: {error}"))
}

const ADDRESS_SOURCES: [(&str, AddressSource); 4] = [
    ("socket", AddressSource::Socket),
    ("x-forwarded-for", AddressSource::Header(ForwardingHeader::XForwardedFor)),
    ("forwarded", AddressSource::Header(ForwardingHeader::Forwarded)),
    ("proxy-protocol", AddressSource::ProxyProtocol),
];

/// What says where a connection comes from.
pub(super) fn address_source(raw: &Raw) -> Result<AddressSource, String> {
    word(raw, &ADDRESS_SOURCES)
}

/// The word for it.
pub(super) fn address_source_word(source: AddressSource) -> &'static str {
    ADDRESS_SOURCES.iter().find(|(_, other)| *other == source).map_or("socket", |(word, _)| word)
}

/// Several strings; one string is taken apart at its commas.
fn strings<'r>(raw: &'r Raw, example: &str) -> Result<Vec<&'r str>, String> {
    match raw {
        Raw::Text(text) => Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()),
        Raw::List(items) => {
            let string = |item: &'r Raw| match item {
                Raw::Text(text) => Ok(text.as_str()),
                _ => Err(format!("has {}, which is not a string", item.describe())),
            };
            items.iter().map(string).collect()
        }
        _ => Err(format!("is {}; write an array of strings such as [\"{example}\"]", raw.describe())),
    }
}

/// One origin as browsers send it (RFC 6454 section 6.2): scheme, host and a port unless it is the scheme's own; no path.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" || text == "null" {
        return Ok(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let valid = lower.split_once("://").is_some_and(|(scheme, host)| {
        let scheme_valid = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        scheme_valid && !host.is_empty() && !host.contains(['/', '?', '#', '@', '*']) && host.bytes().all(|byte| byte.is_ascii_graphic())
    });
    if valid {
        return Ok(lower);
    }
    let host = lower.split_once("://").map_or(lower.as_str(), |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or_default();
    let example = if host.is_empty() || host.contains(['*', '@', ' ']) { "https://example.com" } else { &format!("https://{host}") };
    Err(format!("has {text:?}, which is not an origin; write {example:?}, or \"*\" for any"))
}

/// A bound of the limits table.
pub(super) fn limit(raw: &Raw, row: &Limit) -> Result<u64, String> {
    let expected = match row.unit {
        Unit::Bytes => "write bytes as a whole number, or with a unit: 65536, \"64KiB\", \"1MiB\"",
        Unit::Millis => "write milliseconds as a whole number, or a time with its unit: 500, \"500ms\", \"10s\", \"5min\"",
        Unit::Count => "write a whole number",
        Unit::PerSecond => "write a whole number per second",
    };
    let number = match raw {
        Raw::Integer(number) => Some(*number),
        Raw::Text(text) => match row.unit {
            Unit::Bytes => scaled(text, BYTE_UNITS),
            Unit::Millis => scaled(text, TIME_UNITS),
            Unit::Count | Unit::PerSecond => scaled(text, &[]),
        },
        Raw::List(_) | Raw::Other(_) => None,
    };
    let number = number.ok_or_else(|| format!("is {}; {expected}", raw.describe()))?;
    u64::try_from(number).ok().filter(|number| (row.min..=row.max).contains(number)).ok_or_else(|| {
        format!(
            "is {number}{}; it can be {} to {} (default {})",
            spaced(row.unit.word()),
            with_unit(row.min, row.unit),
            with_unit(row.max, row.unit),
            with_unit(row.default, row.unit)
        )
    })
}

/// A number of this unit as it is said in a sentence: `65536 bytes (64 KiB)`.
pub(super) fn with_unit(number: u64, unit: Unit) -> String {
    let plain = format!("{number}{}", spaced(unit.word()));
    match readable(number, unit) {
        Some(readable) => format!("{plain} ({readable})"),
        None => plain,
    }
}

/// The same amount in the largest unit that divides it; none where that is the unit it has.
pub(super) fn readable(number: u64, unit: Unit) -> Option<String> {
    let units: &[(&str, u64)] = match unit {
        Unit::Bytes => &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)],
        Unit::Millis => &[("h", 3_600_000), ("min", 60_000), ("s", 1000)],
        Unit::Count | Unit::PerSecond => &[],
    };
    let (name, scale) = units.iter().find(|(_, scale)| number >= *scale && number.is_multiple_of(*scale))?;
    Some(format!("{} {name}", number / scale))
}

const BYTE_UNITS: &[(&str, u64)] = &[
    ("b", 1),
    ("bytes", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

const TIME_UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("sec", 1000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000)];

/// A whole number, with or without one of these units behind it; underscores may group its digits as in TOML.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<i128> {
    let text = text.trim();
    let digits = text.find(|character: char| !(character.is_ascii_digit() || character == '_')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: i128 = number.replace('_', "").parse().ok()?;
    let unit = unit.trim().to_ascii_lowercase();
    let scale = if unit.is_empty() { 1 } else { units.iter().find(|(name, _)| *name == unit)?.1 };
    number.checked_mul(i128::from(scale))
}

/// One word of a closed set.
fn word<T: Copy>(raw: &Raw, words: &[(&'static str, T)]) -> Result<T, String> {
    let Raw::Text(text) = raw else {
        return Err(format!("is {}; write {}", raw.describe(), one_of(words)));
    };
    match words.iter().find(|(word, _)| word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(format!("is {text:?}; write {}", one_of(words))),
    }
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ")
}

fn spaced(word: &str) -> String {
    if word.is_empty() { String::new() } else { format!(" {word}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    fn limit_of(name: &str, raw: Raw) -> Result<u64, String> {
        limit(&raw, Limits::find(name).expect("the table has this row"))
    }

    #[test]
    fn bytes_take_units() {
        for (words, expect) in
            [("65536", 65536), ("64KiB", 65536), ("64 kib", 65536), ("1MiB", 1 << 20), ("100kB", 100_000), ("65_536", 65536)]
        {
            assert_eq!(limit_of("message_bytes_max", text(words)), Ok(expect), "{words}");
        }
    }

    #[test]
    fn times_take_units() {
        for (words, expect) in [("10s", 10_000), ("500ms", 500), ("2min", 120_000), ("1h", 3_600_000), ("250", 250)] {
            assert_eq!(limit_of("ping_interval_ms", text(words)), Ok(expect), "{words}");
        }
    }

    #[test]
    fn a_wrong_limit_names_value_unit_and_range() {
        let check = |name, raw, expect: &str| assert_eq!(limit_of(name, raw).expect_err(expect), expect);
        check(
            "message_bytes_max",
            Raw::Integer(70),
            "is 70 bytes; it can be 125 bytes to 1073741824 bytes (1 GiB) (default 65536 bytes (64 KiB))",
        );
        check("linger_ms", text("2min"), "is 120000 ms; it can be 10 ms to 60000 ms (1 min) (default 5000 ms (5 s))");
        check("topics_max", Raw::Integer(-1), "is -1; it can be 1 to 1000000000 (default 1000000)");
        check("topics_max", text("10KiB"), "is \"10KiB\"; write a whole number");
        check("topics_max", Raw::Other("a boolean"), "is a boolean; write a whole number");
        check(
            "linger_ms",
            text("1.5s"),
            "is \"1.5s\"; write milliseconds as a whole number, or a time with its unit: 500, \"500ms\", \"10s\", \"5min\"",
        );
        check(
            "message_bytes_max",
            text("64 parsec"),
            "is \"64 parsec\"; write bytes as a whole number, or with a unit: 65536, \"64KiB\", \"1MiB\"",
        );
    }

    #[test]
    fn an_amount_beyond_any_integer_is_refused() {
        assert!(limit_of("message_bytes_max", text(&"9".repeat(60))).is_err());
        assert!(limit_of("message_bytes_max", text("170141183460469231731687303715884105727TiB")).is_err());
    }

    #[test]
    fn a_state_file_is_a_path_or_none() {
        assert_eq!(path_or_off(&text("off")), Ok(None));
        assert_eq!(path_or_off(&text("./off")), Ok(Some("./off".into())));
        for wrong in [text(""), text("/var/lib/"), Raw::Integer(1)] {
            assert!(path_or_off(&wrong).expect_err("no file").contains("write the path of a file"), "{wrong:?}");
        }
    }

    #[test]
    fn cpus_are_lists_and_ranges() {
        assert_eq!(cpus(&text("0,2-5,3")), Ok(Cpus::List(vec![0, 2, 3, 4, 5])));
        assert_eq!(cpus(&Raw::List(vec![Raw::Integer(3), Raw::Integer(1)])), Ok(Cpus::List(vec![1, 3])));
        assert_eq!(cpus(&Raw::Integer(3)), Ok(Cpus::List(vec![3])));
        assert_eq!(cpus(&text("auto")), Ok(Cpus::Auto));
        assert_eq!(cpus(&text("off")), Ok(Cpus::Off));
        for wrong in ["5-2", "", "0,", "a", "-1", "0-99999999999"] {
            assert!(cpus(&text(wrong)).is_err(), "{wrong:?}");
        }
        assert!(cpus(&Raw::List(vec![])).is_err());
    }

    #[test]
    fn a_port_alone_is_told_how_to_become_an_address() {
        assert_eq!(address(&text("8080")), Err("is \"8080\", which is not an address and a port; write 0.0.0.0:8080".to_owned()));
        assert_eq!(address(&text(":81")), Err("is \":81\", which is not an address and a port; write 0.0.0.0:81".to_owned()));
        assert!(address(&text("localhost:99")).is_err_and(|error| error.ends_with("write 127.0.0.1:99")));
        assert!(address(&text("[::1]:8080")).is_ok());
        assert_eq!(address_or_off(&text("off")), Ok(None));
    }

    #[test]
    fn origins_are_compared_as_browsers_send_them() {
        assert_eq!(origins(&text("https://Example.com, *")), Ok(vec!["https://example.com".to_owned(), "*".to_owned()]));
        assert!(origins(&text("example.com")).is_err_and(|error| error.contains("write \"https://example.com\"")));
        assert!(origins(&text("https://example.com/")).is_err_and(|error| error.contains("write \"https://example.com\"")));
        assert!(origins(&text("https://*.example.com")).is_err());
        assert_eq!(origins(&text("")), Ok(vec![]));
    }

    #[test]
    fn shards_are_at_least_one() {
        assert_eq!(shards(&text("auto")), Ok(None));
        assert_eq!(shards(&text("4")), Ok(Some(4)));
        assert!(shards(&Raw::Integer(0)).is_err());
        assert!(shards(&text("1025")).is_err());
    }
}
