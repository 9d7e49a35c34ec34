//! The TOML file: its keys and values, each with the line it stands on.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::Raw;
use super::{Builder, Key, Source};

/// Applies what the file says; what is wrong with it becomes problems, each with its line.
pub(super) fn apply(path: &Path, text: &str, builder: &mut Builder) {
    let line_of = |offset: usize| 1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count();
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut broken = Vec::new();
    for error in &errors {
        let line = error.span().map_or(1, |span| line_of(span.start));
        builder.problems.push(format!("{}:{line}: not TOML: {}", path.display(), error.message().replace('\n', ", ")));
        broken.push(line);
    }
    let mut entries = Vec::new();
    flatten("", table.get_ref(), &mut entries);
    entries.sort_by_key(|entry| entry.offset);
    for Entry { name, offset, value } in entries {
        let line = line_of(offset);
        // What the parser made of a broken line is its guess, not what the author wrote.
        if broken.contains(&line) {
            continue;
        }
        match (Key::find(&name), value) {
            (Some(key), Some(value)) => builder.apply(key, &raw(value), Source::File(path.to_owned(), line)),
            (Some(_), None) => builder.problems.push(format!("{}:{line}: {name} is a section; write {name} = value", path.display())),
            (None, Some(_)) if SECTIONS.contains(&name.as_str()) => {
                builder.problems.push(format!("{}:{line}: {name} is a section; write its keys below a line [{name}]", path.display()));
            }
            (None, _) => builder.unknown_key(path, line, &name),
        }
    }
}

const SECTIONS: [&str; 3] = ["limits", "log", "nats"];

struct Entry<'a> {
    /// With its section.
    name: String,
    offset: usize,
    /// None for a section that is none of ours and empty, or stands where a value should.
    value: Option<&'a DeValue<'a>>,
}

/// Lists the values of a table and of the sections in it.
fn flatten<'a>(section: &str, table: &'a DeTable<'a>, entries: &mut Vec<Entry<'a>>) {
    for (key, value) in table {
        let key: &Spanned<_> = key;
        let name = if section.is_empty() { key.get_ref().to_string() } else { format!("{section}.{}", key.get_ref()) };
        let offset = key.span().start;
        match value.get_ref() {
            DeValue::Table(_) if Key::find(&name).is_some() => entries.push(Entry { name, offset, value: None }),
            DeValue::Table(inner) if inner.is_empty() && !SECTIONS.contains(&name.as_str()) => {
                entries.push(Entry { name, offset, value: None })
            }
            DeValue::Table(inner) => flatten(&name, inner, entries),
            value => entries.push(Entry { name, offset, value: Some(value) }),
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => match i128::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
            Ok(number) => Raw::Integer(number),
            Err(_) => Raw::Other("an integer of more than 128 bits"),
        },
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Boolean(true) => Raw::Other("true"),
        DeValue::Boolean(false) => Raw::Other("false"),
        DeValue::Datetime(_) => Raw::Other("a date or time"),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}
