//! The configuration in print: the default file, and the effective values with their sources. Both are TOML that reads back.

use std::fmt::Write;

use super::values::readable;
use super::{CONFIG_VARIABLE, Config, Effective, Key};

/// Every key, commented out, below its text, unit and default.
pub(super) fn default_file() -> String {
    let defaults = Config::default();
    let mut out = format!(
        "# shardcast.toml: the configuration of shardcast {}, with every key at its default.\n\
         # Name the file with --config FILE or {CONFIG_VARIABLE}; no file is read unasked. Environment variables win over the file, flags over both.\n\
         # Bytes and times are numbers or strings with a unit: \"64KiB\", \"1MiB\", \"500ms\", \"10s\", \"5min\".\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut section = String::new();
    for key in Key::all() {
        out.push('\n');
        enter_section(key, &mut section, &mut out);
        let (about, unit) = match key {
            Key::Setting(setting) => (setting.about, setting.unit),
            Key::Limit(row) => (row.about.trim(), if row.unit.word().is_empty() { "a count" } else { row.unit.word() }),
        };
        for line in wrap(about) {
            let _ = writeln!(out, "# {line}");
        }
        let _ = write!(out, "# Unit: {unit}.");
        if let Key::Limit(row) = key {
            let _ = write!(out, " From {} to {}.", row.min, row.max);
        }
        let _ = write!(out, " Default: {}", value(key, &defaults));
        if let Some(readable) = readable_value(key, &defaults) {
            let _ = write!(out, " ({readable})");
        }
        let _ = write!(out, ". Environment: {}.", key.environment());
        if let Some(flag) = key.flag() {
            let _ = write!(out, " Flag: {flag}.");
        }
        let _ = writeln!(out, "\n#{} = {}", last(&key.name()), value(key, &defaults));
    }
    out
}

/// Every key with its effective value; the comment tells where it comes from.
pub(super) fn show(effective: &Effective) -> String {
    let config = &effective.config;
    let rows: Vec<_> = Key::all().map(|key| (key, format!("{} = {}", last(&key.name()), value(key, config)))).collect();
    let width = rows.iter().map(|(_, text)| text.len()).max().unwrap_or(0).min(44);
    let mut out = String::new();
    let mut section = String::new();
    for (key, text) in rows {
        let before = section.len();
        let mut header = String::new();
        enter_section(key, &mut section, &mut header);
        if section.len() != before || !header.is_empty() {
            let _ = write!(out, "\n{header}");
        }
        let _ = write!(out, "{text:width$}  # {}", effective.source(key.id()));
        if let Some(readable) = readable_value(key, config) {
            let _ = write!(out, ", {readable}");
        }
        out.push('\n');
    }
    out
}

fn enter_section(key: Key, section: &mut String, out: &mut String) {
    let name = key.name();
    let own = name.split_once('.').map_or("", |(section, _)| section);
    if own != section {
        own.clone_into(section);
        let _ = writeln!(out, "[{own}]");
    }
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn value(key: Key, config: &Config) -> String {
    match key {
        Key::Setting(setting) => (setting.show)(config).to_string(),
        Key::Limit(row) => (row.value)(&config.limits).to_string(),
    }
}

fn readable_value(key: Key, config: &Config) -> Option<String> {
    match key {
        Key::Setting(_) => None,
        Key::Limit(row) => readable((row.value)(&config.limits), row.unit),
    }
}

/// Breaks a text into lines of at most 110 bytes, at spaces.
fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= 110 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
