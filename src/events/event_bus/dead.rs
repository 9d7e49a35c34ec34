//! Dead letters: events that a durable could not handle, kept as they were, with the reason. They lie in the same stream, under `PREFIX-dead.DURABLE.SUBJECT`.

use bytes::Bytes;
use nats::HeaderMap;
use nats::jetstream::message::PublishMessage;
use nats::jetstream::stream::{RawMessageErrorKind, Stream};
use nats::jetstream::{Context, Message};

use super::subject::Subjects;

const REASON: &str = "Shardcast-Dead-Reason";
const SUBJECT: &str = "Shardcast-Dead-Subject";
const SEQUENCE: &str = "Shardcast-Dead-Sequence";
const DELIVERIES: &str = "Shardcast-Dead-Deliveries";
/// A reason is a header, and no novel.
const REASON_BYTES_MAX: usize = 1024;

/// An event that could not be handled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// Its number in the stream, as a dead letter.
    pub sequence: u64,
    /// The subject that it was published to.
    pub subject: String,
    /// Its number in the stream when it was alive.
    pub event_sequence: u64,
    /// How often it was delivered.
    pub deliveries: u64,
    /// What was wrong the last time.
    pub reason: String,
    /// The envelope, as it was published.
    pub envelope: Bytes,
}

/// Where events of a bus are buried and found.
#[derive(Clone)]
pub(super) struct DeadLetters {
    pub(super) context: Context,
    pub(super) stream: Stream,
    pub(super) subjects: Subjects,
}

impl DeadLetters {
    /// Keeps an event as dead; done when the stream has it. Once, however often it is tried within the stream's duplicate window.
    pub(super) async fn bury(
        &self,
        durable: &str,
        subject: &str,
        sequence: u64,
        deliveries: u64,
        reason: &str,
        message: &Message,
    ) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(REASON, one_line(reason).as_str());
        headers.insert(SUBJECT, subject);
        headers.insert(SEQUENCE, sequence.to_string().as_str());
        headers.insert(DELIVERIES, deliveries.to_string().as_str());
        let letter =
            PublishMessage::build().payload(message.payload.clone()).headers(headers).message_id(format!("dead-{durable}-{sequence}"));
        let stored = async { self.context.send_publish(self.subjects.dead(durable, subject), letter).await?.await };
        stored.await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// The oldest of a durable, from a number of the stream on.
    pub(super) async fn list(&self, durable: &str, from: u64, limit: usize) -> Result<Vec<DeadLetter>, String> {
        let filter = self.subjects.dead(durable, ">");
        let mut letters = Vec::new();
        let mut from = from.max(1);
        while letters.len() < limit {
            let message = match self.stream.raw_message_builder().sequence(from).next_by_subject(&*filter).send().await {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(error.to_string()),
            };
            from = message.sequence + 1;
            let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
            letters.push(DeadLetter {
                sequence: message.sequence,
                subject: header(SUBJECT),
                event_sequence: header(SEQUENCE).parse().unwrap_or(0),
                deliveries: header(DELIVERIES).parse().unwrap_or(0),
                reason: header(REASON),
                envelope: message.payload,
            });
        }
        Ok(letters)
    }

    /// Takes one out of the stream.
    pub(super) async fn remove(&self, letter: &DeadLetter) -> Result<(), String> {
        self.stream.delete_message(letter.sequence).await.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// As a header can have it.
fn one_line(reason: &str) -> String {
    let mut line: String = reason.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    line.truncate(line.floor_char_boundary(REASON_BYTES_MAX));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_that_forges_nothing() {
        assert_eq!(one_line("first\r\nSecond: x"), "first  Second: x");
        assert_eq!(one_line(&"€".repeat(1000)).len(), 1023);
    }
}
