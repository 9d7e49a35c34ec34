//! Messages of a topic's past, asked of the stream one after the other. The stream's leader answers: another server of a cluster might not have yet what a client here has.

use std::time::Duration;

use nats::Client;
use nats::jetstream;
use nats::jetstream::stream::LastRawMessageErrorKind;

use super::envelope;
use super::link::{Fetched, Incoming};
use super::reader::epoch_of;
use crate::ids::TopicKey;
use crate::proto::position::Position;

/// How long the server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// What one request brings at most; who asked asks again behind it.
const MESSAGES_MAX: usize = 64;
const BYTES_MAX: usize = 64 * 1024;
/// Messages of the past belong to whoever asked, who knows the topic.
const ASKED: TopicKey = TopicKey { slot: u32::MAX, generation: std::num::NonZeroU32::MIN };

/// What the stream has of a subject after a position, up to an offset. `node` is who asks.
pub(super) async fn fetch(
    client: Client,
    node: u64,
    name: &str,
    subject: &str,
    after: Position,
    upto: u64,
    message_bytes_max: u64,
) -> Fetched {
    let failed = || Fetched { failed: true, ..Fetched::default() };
    let context = jetstream::ContextBuilder::new().timeout(ANSWER_WITHIN).build(client);
    let Ok(stream) = context.get_stream_no_info(name).await else { return failed() };
    let mut fetched = Fetched { reached: upto, ..Fetched::default() };
    let (mut last, mut bytes) = (after.offset, 0);
    while last < upto {
        let message = match stream.get_first_raw_message_by_subject(subject, last + 1).await {
            Ok(message) if message.sequence <= upto => message,
            Ok(_) => break,
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => break,
            Err(_) => return failed(),
        };
        last = message.sequence;
        if message.payload.len() as u64 <= message_bytes_max {
            bytes += message.payload.len();
            // Who has said it may be here still, and not want it back.
            let numbered = Some(envelope::numbered(Some(&message.headers), node, last));
            fetched.messages.push(Incoming { numbered, ..envelope::open(ASKED, Some(&message.headers), message.payload) });
        }
        if fetched.messages.len() >= MESSAGES_MAX || bytes >= BYTES_MAX {
            fetched.reached = last;
            break;
        }
    }
    // What the stream has let go of by now it may have let go of before it was asked.
    let Ok(info) = stream.get_info().await else { return failed() };
    if epoch_of(&info) != after.epoch {
        return failed();
    }
    let before_first = info.state.first_sequence.saturating_sub(1);
    if before_first > after.offset {
        let lost_to = before_first.min(upto);
        fetched.lost_to = Some(lost_to);
        fetched.messages.retain(|message| message.numbered.is_some_and(|numbered| numbered.offset > lost_to));
        fetched.reached = fetched.reached.max(lost_to);
    }
    fetched
}
