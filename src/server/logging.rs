//! Log lines: to stderr, as text or JSON, filtered by `--log`.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::config::{LogConfig, LogFormat};

/// Starts the log of this process. Called once, before the first line.
///
/// # Errors
/// When the filter does not parse (the configuration refuses those earlier) or a log was started before.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let mut filter = parse_filter(&config.filter)?;
    let is_quieter = ["off", "error"].contains(&config.filter.trim().to_ascii_lowercase().as_str());
    if !is_quieter && !config.filter.contains(NATS_CLIENT) {
        // What it tells of its connection is told by `bus::nats` too, with names.
        filter =
            filter.add_directive(format!("{NATS_CLIENT}=warn").parse().map_err(|error| format!("the log cannot be started: {error}"))?);
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match config.format {
        LogFormat::Text => {
            let ansi = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(ansi).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    result.map_err(|error| format!("the log cannot be started: {error}"))
}

/// Reads a filter: a level, or `target=level` parts separated by commas.
///
/// # Errors
/// A sentence that names the part which is wrong. A bare word that is no level is refused too: the library would take it for a
/// target and log nothing else.
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    for part in text.split(',').map(str::trim) {
        if part.contains(['=', '[']) || part.starts_with("shardcast") {
            continue;
        }
        if !LEVELS.contains(&part.to_ascii_lowercase().as_str()) {
            return Err(format!(
                "{part:?} is not a log level; use one of {}, or parts such as shardcast::server=debug, separated by commas",
                LEVELS.join(", ")
            ));
        }
    }
    EnvFilter::builder().parse(text).map_err(|error| format!("{text:?} is not a log filter: {error}"))
}

/// What the lines of the NATS client are filtered by.
const NATS_CLIENT: &str = "async_nats";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters() {
        for text in ["info", "WARN", "info,shardcast::gateway=debug", "shardcast=trace,off", "shardcast::server"] {
            assert!(parse_filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused_by_name() {
        for text in ["inof", "info,", "", "shardcast=verbose", "debug,loud"] {
            let error = parse_filter(text).expect_err(text);
            assert!(error.contains("not a log"), "{error}");
        }
    }
}
