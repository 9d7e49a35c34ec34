//! A JetStream stream that is asked for: made when it is not there, and held against what was asked for when it is. One keeps what gateways send; `events::EventBus` has
//! its own.
//!
//! A stream keeps messages for programs that come later, and for those that share work by durable consumers. Gateways do not read it: what they
//! hear of each other comes by core NATS.

use std::time::Duration;

use nats::Client;
use nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use nats::jetstream::stream::Config;
#[cfg(feature = "gateway")]
use nats::jetstream::stream::{DiscardPolicy, RetentionPolicy, StorageType};
use nats::jetstream::{self, ErrorCode};

use super::StreamState;
#[cfg(feature = "gateway")]
use super::options::Options;
#[cfg(feature = "gateway")]
use crate::limits::Limits;

/// How long the server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What one who asks for a stream calls its fields, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) max_age: &'static str,
    pub(crate) max_messages: &'static str,
    pub(crate) duplicate_window: &'static str,
    pub(crate) replicas: &'static str,
}

/// A stream as it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted(Config, Keys);

impl Wanted {
    /// A stream of one's own.
    pub(crate) fn of(config: Config, keys: Keys) -> Self {
        Self(config, keys)
    }

    /// As configured; none where no stream is.
    #[cfg(feature = "gateway")]
    pub(super) fn new(options: &Options, limits: &Limits) -> Option<Self> {
        let name = options.stream.clone()?;
        let config = Config {
            name,
            subjects: options.rules.subjects(),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            max_messages: limits.nats_stream_messages_max as i64,
            max_age: Duration::from_millis(limits.nats_stream_age_ms),
            duplicate_window: Duration::from_millis(limits.nats_stream_duplicates_ms),
            num_replicas: limits.nats_stream_replicas as usize,
            ..Config::default()
        };
        let keys = Keys {
            max_age: "limits.nats_stream_age_ms",
            max_messages: "limits.nats_stream_messages_max",
            duplicate_window: "limits.nats_stream_duplicates_ms",
            replicas: "limits.nats_stream_replicas",
        };
        Some(Self(config, keys))
    }

    /// The first field of a stream that is not as asked for, with both values.
    fn misfit(&self, found: &Config) -> Option<String> {
        let Self(wanted, keys) = self;
        let missing: Vec<&str> = wanted.subjects.iter().filter(|subject| !found.subjects.contains(subject)).map(String::as_str).collect();
        if !missing.is_empty() {
            return Some(format!("subjects are {:?}, without {missing:?}", found.subjects));
        }
        if found.no_ack {
            return Some("no_ack is true, false is asked for".to_owned());
        }
        // What is not asked for may be as it is.
        if wanted.description.is_some() && found.description != wanted.description {
            let words = [&found.description, &wanted.description].map(|words| words.as_deref().unwrap_or_default());
            return Some(format!("description is {:?}, {:?} is asked for", words[0], words[1]));
        }
        if wanted.max_messages_per_subject > 0 && found.max_messages_per_subject != wanted.max_messages_per_subject {
            return Some(format!(
                "max_msgs_per_subject is {}, {} is asked for",
                found.max_messages_per_subject, wanted.max_messages_per_subject
            ));
        }
        let fields = [
            ("retention", format!("{:?}", found.retention), format!("{:?}", wanted.retention)),
            ("discard", format!("{:?}", found.discard), format!("{:?}", wanted.discard)),
            ("storage", format!("{:?}", found.storage), format!("{:?}", wanted.storage)),
            ("max_age", format!("{:?}", found.max_age), format!("{:?} ({})", wanted.max_age, keys.max_age)),
            ("max_msgs", found.max_messages.to_string(), format!("{} ({})", wanted.max_messages, keys.max_messages)),
            (
                "duplicate_window",
                format!("{:?}", found.duplicate_window),
                format!("{:?} ({})", wanted.duplicate_window, keys.duplicate_window),
            ),
            ("num_replicas", found.num_replicas.to_string(), format!("{} ({})", wanted.num_replicas, keys.replicas)),
        ];
        let differs = |found: &str, wanted: &str| wanted.split(" (").next() != Some(found);
        let (field, found, wanted) = fields.into_iter().find(|(_, found, wanted)| differs(found, wanted))?;
        Some(format!("{field} is {found}, {wanted} is asked for"))
    }

    /// Makes the stream if it is not there, and looks whether it is as asked for. What is to be said of it, if not all is well.
    pub(crate) async fn ensure(&self, client: &Client) -> (StreamState, Option<String>) {
        let context = jetstream::ContextBuilder::new().timeout(ANSWER_WITHIN).build(client.clone());
        match context.get_stream(&self.0.name).await {
            Ok(stream) => self.judge(&stream.cached_info().config),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    match context.create_stream(self.0.clone()).await {
                        Ok(stream) => self.judge(&stream.cached_info().config),
                        // Another gateway was faster: the next look finds what it made.
                        Err(error) => match error.kind() {
                            CreateStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                                (StreamState::Unknown, None)
                            }
                            _ => (StreamState::Unknown, Some(format!("cannot be made: {error}"))),
                        },
                    }
                }
                _ => (StreamState::Unknown, Some(format!("cannot be looked at: {error}; is JetStream enabled?"))),
            },
        }
    }

    fn judge(&self, found: &Config) -> (StreamState, Option<String>) {
        match self.misfit(found) {
            None => (StreamState::Fits, None),
            Some(misfit) => (StreamState::Misfits, Some(format!("is not as asked for: {misfit}; change one or the other"))),
        }
    }

    /// What it is called.
    #[cfg(feature = "gateway")]
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }
}

#[cfg(all(test, feature = "gateway"))]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_does_not_fit_is_told_by_its_field_and_both_values() {
        let options = Options { stream: Some("KEPT".into()), ..Options::default() };
        let limits = Limits::default();
        assert!(Wanted::new(&Options::default(), &limits).is_none());
        let wanted = Wanted::new(&options, &limits).expect("a stream is configured");
        let fits = wanted.0.clone();
        assert_eq!(wanted.misfit(&fits), None);
        assert_eq!(wanted.misfit(&Config { subjects: vec!["more.>".into(), "shardcast.>".into()], ..fits.clone() }), None);
        for (found, expect) in [
            (Config { subjects: vec!["a".into()], ..fits.clone() }, "subjects are [\"a\"], without [\"shardcast.>\"]"),
            (Config { retention: RetentionPolicy::WorkQueue, ..fits.clone() }, "retention is WorkQueue, Limits is asked for"),
            (Config { discard: DiscardPolicy::New, ..fits.clone() }, "discard is New, Old is asked for"),
            (Config { storage: StorageType::Memory, ..fits.clone() }, "storage is Memory, File is asked for"),
            (
                Config { max_age: Duration::from_secs(60), ..fits.clone() },
                "max_age is 60s, 604800s (limits.nats_stream_age_ms) is asked for",
            ),
            (Config { max_messages: -1, ..fits.clone() }, "max_msgs is -1, 1000000 (limits.nats_stream_messages_max) is asked for"),
            (
                Config { duplicate_window: Duration::from_secs(1), ..fits.clone() },
                "duplicate_window is 1s, 120s (limits.nats_stream_duplicates_ms) is asked for",
            ),
            (Config { num_replicas: 3, ..fits.clone() }, "num_replicas is 3, 1 (limits.nats_stream_replicas) is asked for"),
            (Config { no_ack: true, ..fits.clone() }, "no_ack is true, false is asked for"),
        ] {
            assert_eq!(wanted.misfit(&found).as_deref(), Some(expect));
        }
        let described = Config { description: Some("16 partitions".into()), max_messages_per_subject: 1, ..fits.clone() };
        let narrow = Wanted::of(described.clone(), wanted.1);
        assert_eq!(narrow.misfit(&fits).as_deref(), Some("description is \"\", \"16 partitions\" is asked for"));
        let found = Config { max_messages_per_subject: -1, ..described };
        assert_eq!(narrow.misfit(&found).as_deref(), Some("max_msgs_per_subject is -1, 1 is asked for"));
    }
}
