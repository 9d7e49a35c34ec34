//! Two names of topics, and bridge rules below them, one a line: rules print as they were read, what leads to a subject is one that a server takes, no two
//! names have the same, and a reader that knows nothing but the notation gets the name back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::subject::{Rule, RuleError, Rules};
use shardcast::proto::topic::TopicName;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (Some(one), Some(other)) = (lines.next(), lines.next()) else { return };
    let (Ok(one), Ok(other)) = (TopicName::parse(one), TopicName::parse(other)) else { return };
    let parsed: Result<Vec<Rule>, RuleError> = lines.map(str::parse).collect();
    let rules = match parsed.and_then(Rules::new) {
        Ok(rules) => rules,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for rule in rules.iter() {
        assert_eq!(rule.to_string().parse().as_ref(), Ok(rule));
    }
    let found = [&one, &other].map(|topic| rules.find(topic));
    for (topic, bridged) in [&one, &other].into_iter().zip(&found) {
        assert_eq!(rules.goes_out(topic), bridged.as_ref().is_some_and(|bridged| bridged.goes_out));
        let Some(bridged) = bridged else { continue };
        let subject = &*bridged.subject;
        assert!(bridged.goes_out || bridged.comes_in);
        assert!(subject.split('.').all(|token| !token.is_empty() && !["*", ">"].contains(&token)), "{subject:?}");
        assert!(!subject.contains(|char: char| char.is_whitespace() || char.is_control()), "{subject:?}");
        assert!(!subject.starts_with('$'), "{subject:?}");
        assert!(format!("HPUB {subject} 1234567 12345678\r\n").len() <= rules.control_line_bytes_max());
        assert!(rules.iter().any(|rule| leads(&rule.to_string(), topic.as_str(), subject)), "{topic} to {subject}");
    }
    if let [Some(one_bridged), Some(other_bridged)] = &found {
        assert_eq!(one_bridged.subject == other_bridged.subject, one == other, "{one:?} and {other:?}");
    }
});

/// Whether a rule, as it is written, leads from a topic to a subject: read backwards.
fn leads(rule: &str, topic: &str, subject: &str) -> bool {
    let Some((topics, subjects)) = [" <-> ", " -> ", " <- "].into_iter().find_map(|arrow| rule.split_once(arrow)) else { return false };
    match (topics.strip_suffix('*'), subjects.strip_suffix('*')) {
        (Some(topics), Some(subjects)) => {
            subject.strip_prefix(subjects).and_then(unescaped).is_some_and(|rest| format!("{topics}{rest}") == topic)
        }
        _ => (topics, subjects) == (topic, subject),
    }
}

/// The name behind tokens: `%` and two digits is a byte, a lone one is nothing.
fn unescaped(tokens: &str) -> Option<String> {
    let token = |token: &str| {
        let mut bytes = Vec::new();
        let mut rest = token.as_bytes();
        while let Some((&first, behind)) = rest.split_first() {
            rest = behind;
            match (first, behind) {
                (b'%', []) if token.len() == 1 => {}
                (b'%', [high, low, behind @ ..]) => {
                    bytes.push(u8::from_str_radix(str::from_utf8(&[*high, *low]).ok()?, 16).ok()?);
                    rest = behind;
                }
                (b'%', _) => return None,
                _ => bytes.push(first),
            }
        }
        String::from_utf8(bytes).ok()
    };
    Some(tokens.split('.').map(token).collect::<Option<Vec<_>>>()?.join("."))
}
