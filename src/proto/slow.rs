//! What becomes of readers that are slower than their topic: one policy for each topic, by rules on names.
//!
//! A rule is `TOPICS POLICY`, where the topics are a name, or what names begin with and a `*`. Of several rules for a topic the first holds.

use std::fmt;

use super::pattern::{Pattern, PatternError};
use super::topic::TopicName;

/// What becomes of a reader for whom more waits than `limits.queue_soft_bytes`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SlowPolicy {
    /// Nothing, until it is over its hard bound: then it is ended (4508), to come back and read what it has missed out of the history.
    #[default]
    Disconnect,
    /// The oldest messages that wait for it are left out, and it is told of the gap.
    DropOldest,
    /// Of the messages that wait for it only the newest of each key is kept, and it is told of the gap.
    Conflate,
}

impl SlowPolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disconnect, Self::DropOldest, Self::Conflate];

    /// How it is written in configuration, and what metrics call what it leaves out.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::DropOldest => "drop_oldest",
            Self::Conflate => "conflate",
        }
    }
}

/// Topics, and what becomes of their slow readers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlowRule {
    topics: Pattern,
    policy: SlowPolicy,
}

/// Why a rule is none, or does not go with the others.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SlowRuleError {
    /// One word, or none.
    #[error("{0:?} has no policy; write TOPICS POLICY, for example \"prices.* drop_oldest\"")]
    NoPolicy(String),
    /// The policy stands before the topics.
    #[error("{0:?} begins with its policy; write {1:?}")]
    Reversed(String, String),
    /// The last word is no policy.
    #[error("{rule:?} has the policy {word:?}, which does not exist; there are {}", policies())]
    UnknownPolicy {
        /// The rule.
        rule: String,
        /// The word in the policy's place.
        word: String,
    },
    /// The topics are no pattern.
    #[error(transparent)]
    Topics(#[from] PatternError),
    /// An earlier rule holds for everything that this one is for.
    #[error("{1:?} is never reached: {0:?} stands before it and holds for all its topics; put the narrower one first")]
    Unreachable(String, String),
}

fn policies() -> String {
    SlowPolicy::ALL.map(SlowPolicy::word).join(", ")
}

impl std::str::FromStr for SlowRule {
    type Err = SlowRuleError;

    fn from_str(text: &str) -> Result<Self, SlowRuleError> {
        let policy_of = |word: &str| SlowPolicy::ALL.into_iter().find(|policy| policy.word() == word);
        let trimmed = text.trim();
        let Some((topics, word)) = trimmed.rsplit_once(char::is_whitespace) else {
            return Err(SlowRuleError::NoPolicy(text.to_owned()));
        };
        let topics = topics.trim_end();
        let Some(policy) = policy_of(word) else {
            return Err(match topics.split_once(char::is_whitespace).map_or(topics, |(first, _)| first) {
                first if policy_of(first).is_some() => {
                    let rest = trimmed[first.len()..].trim_start();
                    SlowRuleError::Reversed(text.to_owned(), format!("{rest} {first}"))
                }
                _ => SlowRuleError::UnknownPolicy { rule: text.to_owned(), word: word.to_owned() },
            });
        };
        Ok(Self { topics: topics.parse()?, policy })
    }
}

impl fmt::Display for SlowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.topics, self.policy.word())
    }
}

/// All rules. A topic that none is for has [`SlowPolicy::Disconnect`].
///
/// ```
/// use shardcast::proto::slow::{SlowPolicy, SlowRules};
/// use shardcast::proto::topic::TopicName;
///
/// let rules = SlowRules::new(vec!["prices.audit disconnect".parse()?, "prices.* drop_oldest".parse()?])?;
/// let policy = |topic| rules.policy(&TopicName::parse(topic).unwrap());
/// assert_eq!(policy("prices.gold"), SlowPolicy::DropOldest);
/// assert_eq!(policy("prices.audit"), SlowPolicy::Disconnect);
/// assert_eq!(policy("lobby"), SlowPolicy::Disconnect);
/// # Ok::<(), shardcast::proto::slow::SlowRuleError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlowRules(Vec<SlowRule>);

impl SlowRules {
    /// Holds the rules against each other.
    ///
    /// # Errors
    /// When one can never hold for anything.
    pub fn new(rules: Vec<SlowRule>) -> Result<Self, SlowRuleError> {
        for (index, rule) in rules.iter().enumerate() {
            if let Some(other) = rules[..index].iter().find(|other| other.topics.covers(&rule.topics)) {
                return Err(SlowRuleError::Unreachable(other.to_string(), rule.to_string()));
            }
        }
        Ok(Self(rules))
    }

    /// The rules, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &SlowRule> {
        self.0.iter()
    }

    /// Whether some topic's slow readers are not simply ended.
    pub fn thin_anybody(&self) -> bool {
        self.0.iter().any(|rule| rule.policy != SlowPolicy::Disconnect)
    }

    /// What becomes of a topic's slow readers.
    pub fn policy(&self, topic: &TopicName) -> SlowPolicy {
        let rule = self.0.iter().find(|rule| rule.topics.matches(topic.as_str()));
        rule.map_or(SlowPolicy::Disconnect, |rule| rule.policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Result<SlowRules, SlowRuleError> {
        SlowRules::new(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }

    #[test]
    fn the_first_rule_that_matches_holds_and_none_is_disconnect() {
        let rules = rules(&["a.b disconnect", "a.*   drop_oldest", "a b drop_oldest"]).expect("rules");
        let policy = |topic: &str| rules.policy(&TopicName::parse(topic).expect("a name"));
        for (topic, expect) in [
            ("a.b", SlowPolicy::Disconnect),
            ("a.b2", SlowPolicy::DropOldest),
            ("a.", SlowPolicy::DropOldest),
            ("a b", SlowPolicy::DropOldest),
            ("a", SlowPolicy::Disconnect),
            ("b", SlowPolicy::Disconnect),
        ] {
            assert_eq!(policy(topic), expect, "{topic}");
        }
        assert!(rules.thin_anybody() && !SlowRules::default().thin_anybody());
        assert_eq!(rules.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.b disconnect", "a.* drop_oldest", "a b drop_oldest"]);
    }

    #[test]
    fn a_rule_that_is_none_is_refused_with_what_to_write() {
        let error = |text: &str| text.parse::<SlowRule>().expect_err("no rule").to_string();
        for (text, says) in [
            ("", "has no policy; write TOPICS POLICY"),
            ("prices.*", "has no policy; write TOPICS POLICY"),
            ("drop_oldest prices.*", "write \"prices.* drop_oldest\""),
            ("prices.* drop", "there are disconnect, drop_oldest, conflate"),
            ("prices.* drop_oldest now", "has the policy \"now\""),
            ("*.gold drop_oldest", "has a * that is not at its end"),
            ("a\u{1} drop_oldest", "matches no topic"),
        ] {
            assert!(error(text).contains(says), "{text}: {}", error(text));
        }
        assert!(error(&format!("{} drop_oldest", "a".repeat(256))).contains("matches no topic"));
    }

    #[test]
    fn a_rule_that_never_holds_is_refused() {
        for texts in [&["* drop_oldest", "a disconnect"][..], &["a drop_oldest", "a disconnect"], &["a.* drop_oldest", "a.b.* drop_oldest"]]
        {
            assert!(matches!(rules(texts), Err(SlowRuleError::Unreachable(..))), "{texts:?}");
        }
        assert!(rules(&["a drop_oldest", "a* disconnect", "* drop_oldest"]).is_ok());
    }
}
