//! Leases: which process has which part of a durable's work. A lease is the one message of its subject in a stream that forgets after a while; who holds it
//! writes it again in time, and that only on top of his own.
//!
//! The server's rule that a write names the subject's last sequence is the whole of the mutual exclusion, and its clock the only one that counts. The holder goes by a
//! deadline of his own, taken before each write: his ends first.

use std::collections::HashSet;
use std::time::Duration;

use nats::Client;
use nats::jetstream::Context;
use nats::jetstream::context::PublishErrorKind;
use nats::jetstream::message::PublishMessage;
use nats::jetstream::stream::Stream;
use tokio::time::Instant;

use super::next;

/// A lease that is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    sequence: u64,
    /// From here on it may be another's.
    pub(super) until: Instant,
}

/// The stream of leases.
#[derive(Clone)]
pub(super) struct Leases {
    context: Context,
    stream: Stream,
    lasts: Duration,
    holder: String,
}

impl Leases {
    pub(super) fn new(client: Client, stream: Stream, lasts: Duration, holder: String) -> Self {
        // An answer that takes longer than a third of the lease is none.
        let context = nats::jetstream::ContextBuilder::new().timeout(lasts / 3).ack_timeout(lasts / 3).build(client);
        Self { context, stream, lasts, holder }
    }

    /// How often leases are written again.
    pub(super) fn turn(&self) -> Duration {
        self.lasts / 3
    }

    /// Writes on top of `last`, or where nothing is. None: it is another's.
    async fn write(&self, subject: &str, last: u64) -> Result<Option<Lease>, String> {
        let until = Instant::now() + self.lasts;
        let message = PublishMessage::build().payload(self.holder.clone().into()).expected_last_subject_sequence(last);
        let written = async { self.context.send_publish(subject.to_owned(), message).await?.await };
        match written.await {
            Ok(ack) => Ok(Some(Lease { sequence: ack.sequence, until })),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes a lease that nobody has.
    pub(super) async fn take(&self, subject: &str) -> Result<Option<Lease>, String> {
        self.write(subject, 0).await
    }

    /// Holds one for longer. None: it was lost.
    pub(super) async fn renew(&self, subject: &str, lease: Lease) -> Result<Option<Lease>, String> {
        if let Some(lease) = self.write(subject, lease.sequence).await? {
            return Ok(Some(lease));
        }
        // A write whose answer was lost is ours all the same.
        match tokio::time::timeout(self.turn(), self.stream.get_last_raw_message_by_subject(subject)).await {
            Ok(Ok(last)) if last.payload == self.holder.as_bytes() => self.write(subject, last.sequence).await,
            _ => Ok(None),
        }
    }

    /// Gives one up; what cannot be given up now ends by itself.
    pub(super) async fn give_up(&self, lease: Lease) {
        let _ = tokio::time::timeout(self.turn(), self.stream.delete_message(lease.sequence)).await;
    }

    /// What is held by anybody, of subjects like this.
    pub(super) async fn view(&self, filter: &str) -> Result<HashSet<String>, String> {
        let view = async {
            let mut found = Box::pin(self.stream.info_with_subjects(filter).await.map_err(|error| error.to_string())?);
            let mut subjects = HashSet::new();
            while let Some(subject) = next(&mut found).await {
                subjects.insert(subject.map_err(|error| error.to_string())?.0);
            }
            Ok(subjects)
        };
        tokio::time::timeout(self.turn(), view).await.unwrap_or_else(|_| Err("the server does not answer".to_owned()))
    }
}
