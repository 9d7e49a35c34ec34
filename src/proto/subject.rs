//! Which topics go to NATS, and under which subjects: bridge rules, and the mapping from names to subjects.
//!
//! A rule is `TOPICS <-> SUBJECTS`, `TOPICS -> SUBJECTS` (out only) or `TOPICS <- SUBJECTS` (in only). Either side is a name, or what names begin with
//! and a `*`; then the rest of a topic's name is the rest of its subject, dots as they are. What NATS reserves is escaped, so that every topic has a
//! subject of its own, whatever its name, and no name of a client's reaches a subject that a rule does not lead to.
//!
//! ```text
//!   rule           * <-> shardcast.*
//!   orders.eu      shardcast.orders.eu
//!   all > one      shardcast.all%20%3E%20one
//!   a..b           shardcast.a.%.b            an empty token, which NATS does not allow, is a lone %
//! ```

use std::fmt;

use super::pattern::Pattern;
use super::topic::TopicName;

/// The rule that holds when none is configured: every topic, both ways, below this gateway's own prefix.
pub const DEFAULT_RULE: &str = "* <-> shardcast.*";

/// What a name, or the rest of one, becomes at most: each byte three, and an empty one a `%`.
const fn escaped_bytes_max(bytes: usize) -> usize {
    3 * bytes + 1
}

/// What else a control line to the server has: `HPUB`, spaces, two sizes, the line's end.
const CONTROL_LINE_BESIDE: usize = 64;

/// Topics, their subjects, and which way messages go between the two.
///
/// ```
/// use shardcast::proto::subject::{Rule, Rules};
/// use shardcast::proto::topic::TopicName;
///
/// let rules = Rules::new(vec!["prices.* <- market.prices.*".parse::<Rule>()?])?;
/// let bridged = rules.find(&TopicName::parse("prices.gold").unwrap()).unwrap();
/// assert_eq!((&*bridged.subject, bridged.goes_out, bridged.comes_in), ("market.prices.gold", false, true));
/// assert!(rules.find(&TopicName::parse("lobby").unwrap()).is_none());
/// # Ok::<(), shardcast::proto::subject::RuleError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    topics: Pattern,
    subjects: Pattern,
    goes_out: bool,
    comes_in: bool,
}

/// Why a rule is none, or does not go with the others.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuleError {
    /// No arrow.
    #[error(
        "{0:?} is not a bridge rule; write TOPICS <-> SUBJECTS, TOPICS -> SUBJECTS or TOPICS <- SUBJECTS, for example \"{DEFAULT_RULE}\""
    )]
    NoArrow(String),
    /// `*` on one side only, or not at its end.
    #[error("{0:?} has * on one side only, or not at the end: both sides end in it, or neither has one")]
    Wildcard(String),
    /// The subject cannot be one.
    #[error(
        "{rule:?} leads to {subject:?}, which is not a subject: tokens that are not empty and have no spaces, * or >, with dots between them and before *"
    )]
    Subject {
        /// The rule.
        rule: String,
        /// Its subjects.
        subject: String,
    },
    /// The server's own subjects.
    #[error("{0:?} leads to subjects that begin with $, which are the server's own")]
    Reserved(String),
    /// A subject would have two topics.
    #[error("{0:?} and {1:?} lead to the same subjects: each subject has one topic")]
    Overlap(String, String),
}

impl std::str::FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let arrows = [(" <-> ", true, true), (" -> ", true, false), (" <- ", false, true)];
        let split = arrows.into_iter().find_map(|(arrow, out, into)| text.split_once(arrow).map(|(left, right)| (left, right, out, into)));
        let is_side = |side: &str| !side.trim().is_empty() && !side.contains("->") && !side.contains("<-");
        let Some((left, right, goes_out, comes_in)) = split.filter(|(left, right, ..)| is_side(left) && is_side(right)) else {
            return Err(RuleError::NoArrow(text.to_owned()));
        };
        let (topics, subjects) = (Pattern::new(left.trim()), Pattern::new(right.trim()));
        if topics.open != subjects.open || topics.prefix.contains('*') {
            return Err(RuleError::Wildcard(text.to_owned()));
        }
        let tokens = if subjects.open { subjects.prefix.strip_suffix('.') } else { Some(&*subjects.prefix) };
        let is_token =
            |token: &str| !token.is_empty() && !token.contains(|char: char| is_reserved(char) && char != '%' || char.is_control());
        let is_subject = subjects.open && subjects.prefix.is_empty() || tokens.is_some_and(|tokens| tokens.split('.').all(is_token));
        if !is_subject {
            return Err(RuleError::Subject { rule: text.to_owned(), subject: subjects.to_string() });
        }
        if subjects.prefix.starts_with('$') {
            return Err(RuleError::Reserved(text.to_owned()));
        }
        Ok(Self { topics, subjects, goes_out, comes_in })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match (self.goes_out, self.comes_in) {
            (true, true) => "<->",
            (true, false) => "->",
            _ => "<-",
        };
        write!(f, "{} {arrow} {}", self.topics, self.subjects)
    }
}

/// A topic that a rule is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridged {
    /// What it is called in NATS.
    pub subject: Box<str>,
    /// What is published to it here goes there.
    pub goes_out: bool,
    /// What is published there comes here.
    pub comes_in: bool,
}

/// All rules. Of several that a topic's name matches the first holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    fn default() -> Self {
        Self(vec![DEFAULT_RULE.parse().expect("the default is a rule")])
    }
}

impl Rules {
    /// Holds the rules against each other.
    ///
    /// # Errors
    /// When two of them lead to one subject: what is published there would belong to two topics.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RuleError> {
        for (index, rule) in rules.iter().enumerate() {
            if let Some(other) = rules[..index].iter().find(|other| other.subjects.overlaps(&rule.subjects)) {
                return Err(RuleError::Overlap(other.to_string(), rule.to_string()));
            }
        }
        Ok(Self(rules))
    }

    /// The rules, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// Whether what is published to a topic goes to NATS.
    pub fn goes_out(&self, topic: &TopicName) -> bool {
        self.rule(topic).is_some_and(|(rule, _)| rule.goes_out)
    }

    /// What a topic is called in NATS, if a rule is for it.
    pub fn find(&self, topic: &TopicName) -> Option<Bridged> {
        let (rule, rest) = self.rule(topic)?;
        let mut subject = String::with_capacity(rule.subjects.prefix.len() + rest.len() + 8);
        subject.push_str(&rule.subjects.prefix);
        if rule.subjects.open {
            push_escaped(&mut subject, rest);
        }
        Some(Bridged { subject: subject.into(), goes_out: rule.goes_out, comes_in: rule.comes_in })
    }

    /// The subjects that topics go out to or come in from, as NATS writes what subjects begin with.
    pub fn subjects(&self) -> Vec<String> {
        let subject = |rule: &Rule| format!("{}{}", rule.subjects.prefix, if rule.subjects.open { ">" } else { "" });
        self.0.iter().map(subject).collect()
    }

    /// The longest control line that a topic's subject can lead to (docs of NATS: `max_control_line`), whatever its name.
    pub fn control_line_bytes_max(&self) -> usize {
        let longest = self.0.iter().map(|rule| {
            let rest = if rule.topics.open { escaped_bytes_max(TopicName::BYTES_MAX.saturating_sub(rule.topics.prefix.len())) } else { 0 };
            rule.subjects.prefix.len() + rest
        });
        longest.max().unwrap_or(0) + CONTROL_LINE_BESIDE
    }

    fn rule<'n>(&self, topic: &'n TopicName) -> Option<(&Rule, &'n str)> {
        self.0.iter().find_map(|rule| rule.topics.rest(topic.as_str()).map(|rest| (rule, rest)))
    }
}

/// What a token of a subject cannot have: wildcards, whatever somebody may take for a space, and the sign that escapes begin with.
fn is_reserved(char: char) -> bool {
    char.is_whitespace() || matches!(char, '*' | '>' | '%')
}

/// Appends a name, or the rest of one, as tokens.
fn push_escaped(subject: &mut String, rest: &str) {
    for (index, token) in rest.split('.').enumerate() {
        if index > 0 {
            subject.push('.');
        }
        if token.is_empty() {
            subject.push('%');
        }
        for char in token.chars() {
            // `$SYS`, `$JS`, `_INBOX`: what begins like that is not for clients to name.
            let begins_subject = subject.is_empty() && matches!(char, '$' | '_');
            if is_reserved(char) || begins_subject {
                for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                    let hex = |digit: u8| char::from(b"0123456789ABCDEF"[usize::from(digit)]);
                    subject.extend(['%', hex(byte >> 4), hex(byte & 15)]);
                }
            } else {
                subject.push(char);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Result<Rules, RuleError> {
        Rules::new(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }

    fn subject(rules: &Rules, topic: &str) -> Option<String> {
        rules.find(&TopicName::parse(topic).expect("a name")).map(|bridged| bridged.subject.into())
    }

    #[test]
    fn every_name_has_a_subject_of_its_own() {
        let all = Rules::default();
        for (topic, expect) in [
            ("lobby", "shardcast.lobby"),
            ("orders.eu.1", "shardcast.orders.eu.1"),
            ("комната/1", "shardcast.комната/1"),
            ("a b", "shardcast.a%20b"),
            ("*", "shardcast.%2A"),
            ("a.>", "shardcast.a.%3E"),
            ("100%", "shardcast.100%25"),
            ("%20", "shardcast.%2520"),
            (".", "shardcast.%.%"),
            ("a..b.", "shardcast.a.%.b.%"),
            ("%", "shardcast.%25"),
            ("a\u{a0}b", "shardcast.a%C2%A0b"),
            ("$SYS.x", "shardcast.$SYS.x"),
        ] {
            assert_eq!(subject(&all, topic).as_deref(), Some(expect), "{topic}");
        }
    }

    #[test]
    fn no_name_reaches_what_is_the_servers_own() {
        let bare = rules(&["* <-> *"]).expect("a rule");
        for (topic, expect) in
            [("$SYS.REQ", "%24SYS.REQ"), ("$JS.API.x", "%24JS.API.x"), ("_INBOX.a", "%5FINBOX.a"), ("a.$JS", "a.$JS"), ("a_b", "a_b")]
        {
            assert_eq!(subject(&bare, topic).as_deref(), Some(expect));
        }
        assert!(matches!("a.* -> $JS.API.*".parse::<Rule>(), Err(RuleError::Reserved(_))));
    }

    #[test]
    fn the_first_rule_that_matches_holds_and_says_which_way() {
        let rules = rules(&["orders.* <- shop.orders.*", "alerts -> ops.alerts", "room-* <-> rooms.*"]).expect("rules");
        let find = |topic: &str| rules.find(&TopicName::parse(topic).expect("a name"));
        let orders = find("orders.eu").expect("the first");
        assert_eq!((&*orders.subject, orders.goes_out, orders.comes_in), ("shop.orders.eu", false, true));
        let alerts = find("alerts").expect("the second");
        assert_eq!((&*alerts.subject, alerts.goes_out, alerts.comes_in), ("ops.alerts", true, false));
        assert_eq!(find("room-7").map(|bridged| bridged.subject), Some("rooms.7".into()));
        assert_eq!(find("room-").map(|bridged| bridged.subject), Some("rooms.%".into()));
        assert_eq!(rules.subjects(), ["shop.orders.>", "ops.alerts", "rooms.>"]);
        assert_eq!((find("alerts2"), find("order"), find("lobby")), (None, None, None));
        assert!(!rules.goes_out(&TopicName::parse("orders.eu").expect("a name")));
    }

    #[test]
    fn a_rule_that_is_none_is_refused_with_what_to_write() {
        for text in ["", "a", "a <->", "<-> b", "a<->b", " <-> ", "a -> b -> c", "a ->\u{c} <- s"] {
            assert!(matches!(text.parse::<Rule>(), Err(RuleError::NoArrow(_))), "{text}");
        }
        for text in ["a.* -> b", "a -> b.*", "*.a -> b.*", "a*b* -> c.*"] {
            assert!(matches!(text.parse::<Rule>(), Err(RuleError::Wildcard(_))), "{text}");
        }
        for text in ["a -> b..c", "a -> .b", "a -> b.", "a -> b.>", "a* -> b*", "a -> b c", "a* -> b.*.*", "a* -> .*", "a -> b\u{1}"] {
            assert!(matches!(text.parse::<Rule>(), Err(RuleError::Subject { .. })), "{text}: {:?}", text.parse::<Rule>());
        }
    }

    #[test]
    fn a_rule_prints_as_it_was_written() {
        for text in [DEFAULT_RULE, "a b* -> x.*", "orders.eu <- shop.orders", "* <-> *"] {
            assert_eq!(text.parse::<Rule>().expect("a rule").to_string(), text);
        }
    }

    #[test]
    fn two_topics_never_share_a_subject() {
        for texts in
            [&["a.* <-> x.*", "b.* <-> x.*"][..], &["a <-> x.a", "b.* <-> x.*"], &["a <- x", "b -> x"], &["a.* -> x.*", "b.* <- x.y.*"]]
        {
            assert!(matches!(rules(texts), Err(RuleError::Overlap(..))), "{texts:?}");
        }
        assert!(rules(&["a.* <-> x.*", "* <-> y.*", "b <-> z"]).is_ok());
    }

    #[test]
    fn no_name_is_longer_in_nats_than_it_is_said_to_be() {
        let longest = " ".repeat(TopicName::BYTES_MAX);
        let all = Rules::default();
        let subject = subject(&all, &longest).expect("bridged");
        assert_eq!(subject.len(), "shardcast.".len() + 3 * 255);
        assert!(subject.len() < all.control_line_bytes_max() && all.control_line_bytes_max() < 1024);
        assert_eq!(rules(&["a <-> b"]).expect("a rule").control_line_bytes_max(), 1 + CONTROL_LINE_BESIDE);
    }
}
