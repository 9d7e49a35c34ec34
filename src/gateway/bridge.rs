//! Topics that reach NATS, at their home shard: what is published to them goes out once it has its place, and what comes in gets its place there as
//! every other message does.
//!
//! ```text
//!   publisher ─▶ home shard: its place in the topic ──▶ outbox ──▶ NATS core ──▶ other nodes, other programs
//!   members   ◀─ home shard: its place in the topic ◀── inbox  ◀── NATS core ◀──
//! ```
//!
//! A home asks NATS for a topic when somebody wants it, here or on another shard, and for some time after the last one has left. What came from
//! NATS never goes back; what this node has sent and comes back all the same (it carries the node's id) is dropped by the core.
//!
//! While the outbox has no room nobody publishes to a topic that goes out: requests are answered 429, WebSockets are not read. While there is no connection
//! publishers are told so at once. What has its place already waits in the outbox.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Gateway;
use super::close_cause::CloseCause;
use super::publishing::Receipt;
use super::sequenced::Sequencing;
use super::streams::message;
use super::topic::{Role, Topic};
use crate::bus::StreamState;
use crate::bus::link::{Incoming, Notice, Numbered, Outgoing, Port, Tracked};
use crate::engine::driver::Driver;
use crate::engine::log::{Attributes, Parcel};
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::proto::position::Position;
use crate::proto::subject::Rules;
use crate::proto::topic::TopicName;
use crate::proto::ws::MessageKind;
use crate::proto::ws::frame::server_header;
use crate::time::Time;

/// The reason that goes with 4503 when NATS is asked for as many topics as may be.
pub(super) const SUBSCRIPTIONS_FULL: &str = "no room for another topic of NATS (limits.nats_subscriptions_max)";
/// What publishers are told while there is no connection.
const NO_NATS: &str = "this topic goes to NATS, to which there is no connection now";
/// The same where the stream is the reason.
pub(super) const NO_STREAM: &str = "the stream that keeps this topic cannot be read now; /readyz and the log say why";
/// Who publishes to a topic that only comes in is told.
const READ_ONLY: &str =
    "this topic comes from NATS alone (a rule with <-), and a stream gives its messages their places: nobody publishes to it here";
/// When they should try again.
const RETRY_MS: u64 = 1000;
/// Messages from NATS that one step takes.
const INBOX_BUDGET: usize = 256;
/// How often a shard looks for room by itself while there is no connection; when there is one again it is told.
const AWAY: Duration = Duration::from_millis(100);
/// How often topics are looked through for those that nobody wants any more.
const INTEREST: Duration = Duration::from_secs(1);
/// What headers of ours add to a payload at most: names, the node's id, an event's name.
const HEADERS_BYTES_MAX: usize = 192;
/// What a key adds besides its own bytes.
const KEY_HEADER_BYTES: usize = 32;
/// The same where a stream keeps them: the message id has the subject in it, and the idempotency key.
const TRACKED_BYTES_MAX: usize = 2048;
/// Who publishes what comes from NATS: no connection has this key.
const NATS: ConnKey = ConnKey { slot: u32::MAX, generation: 0 };

/// A topic whose home is here, and that NATS is asked for.
struct Listened {
    subject: Arc<str>,
    goes_out: bool,
    /// Everything that comes is known to come (`Notice::Begun`).
    begun: bool,
    /// Since when nobody has wanted it.
    idle_since: Option<Time>,
}

/// A shard's part of the bridge.
pub(super) struct Bridge {
    pub(super) port: Port,
    pub(super) rules: Arc<Rules>,
    listened: HashMap<TopicKey, Listened>,
    /// Taken from the inbox, and not to be handled now: one whose topic takes no messages, or what came for a frozen shard.
    held_back: VecDeque<Notice>,
    /// Publishers that wait until the outbox has room.
    waiters: Vec<ConnKey>,
    /// Topics with parcels that wait for the same.
    held: Vec<TopicKey>,
    was_connected: bool,
    next_look: Time,
    /// What concerns topics whose places a stream gives; none without one.
    pub(super) sequencing: Option<Sequencing>,
}

/// Why a message for NATS is not taken.
pub(super) enum Obstacle {
    /// There is no connection.
    Down,
    /// As much waits to be sent as may.
    Full,
    /// The stream was not read yet.
    NoStream,
    /// The topic comes from NATS, and nothing goes there.
    ReadOnly,
    /// The server takes no message of this size.
    TooLarge {
        /// Bytes of the message.
        bytes: usize,
        /// What the server takes.
        max: usize,
    },
}

impl Obstacle {
    /// The answer to a request.
    pub(super) fn receipt(&self) -> Receipt {
        match self {
            Self::Down => Receipt::refused(503, "nats_unavailable", NO_NATS, Some(RETRY_MS)),
            Self::NoStream => Receipt::refused(503, "nats_unavailable", NO_STREAM, Some(RETRY_MS)),
            Self::ReadOnly => Receipt::refused(403, "read_only", READ_ONLY, None),
            Self::Full => {
                let message = "as many messages wait to be sent to NATS as may (limits.nats_outbox_bytes_max, nats_outbox_messages)";
                Receipt::refused(429, "nats_behind", message, Some(RETRY_MS))
            }
            Self::TooLarge { .. } => Receipt::refused(413, "too_large_for_nats", self.reason(), None),
        }
    }

    /// For a close frame.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::TooLarge { bytes, max } => format!("message is {bytes} bytes, NATS takes {max} for this topic"),
            Self::NoStream => NO_STREAM.to_owned(),
            Self::ReadOnly => READ_ONLY.to_owned(),
            Self::Down | Self::Full => NO_NATS.to_owned(),
        }
    }

    /// How a WebSocket that has sent such a message ends.
    pub(super) fn close_cause(&self) -> CloseCause {
        match self {
            Self::TooLarge { .. } => CloseCause::TooBig,
            Self::ReadOnly => CloseCause::ReadOnly,
            Self::Down | Self::Full | Self::NoStream => CloseCause::NatsUnavailable,
        }
    }
}

impl Bridge {
    pub(super) fn new(port: Port, rules: Arc<Rules>, now: Time) -> Self {
        let (listened, waiters, held) = (HashMap::new(), Vec::new(), Vec::new());
        let sequencing = (port.status().stream() != StreamState::None).then(Sequencing::default);
        Self { port, rules, listened, held_back: VecDeque::new(), waiters, held, was_connected: false, next_look: now, sequencing }
    }

    /// Whether something has come that the shard does not look at by itself.
    pub(super) fn hears(&self) -> bool {
        self.held_back.is_empty() && self.port.has_incoming()
    }

    /// Whether everything that was told has been taken.
    pub(super) fn has_taken_all(&self) -> bool {
        self.held_back.is_empty() && !self.port.has_incoming()
    }

    /// How much there is that is somebody's.
    pub(super) fn holdings(&self) -> usize {
        let waits = self.held_back.len() + self.waiters.len() + self.held.len();
        self.listened.len() + waits + self.sequencing.as_ref().map_or(0, Sequencing::holdings)
    }

    /// What keeps a message of so many bytes for a topic that goes out from being taken, but for want of room.
    fn obstacle(&self, bytes: usize, headers: usize) -> Option<Obstacle> {
        let max = (self.port.status().max_payload.value() as usize).saturating_sub(headers);
        if !self.port.status().is_connected() {
            Some(Obstacle::Down)
        } else if bytes > max {
            Some(Obstacle::TooLarge { bytes, max })
        } else {
            None
        }
    }

    /// Whether everything of a topic comes here, after the position that it began with.
    pub(super) fn has_begun(&self, key: TopicKey) -> bool {
        self.listened.get(&key).is_some_and(|listened| listened.begun)
    }

    /// Where what is published to a topic goes in NATS, if it does.
    pub(super) fn subject_out(&self, key: TopicKey, name: &TopicName) -> Option<Arc<str>> {
        match self.listened.get(&key) {
            Some(topic) => topic.goes_out.then(|| Arc::clone(&topic.subject)),
            None => self.rules.find(name).filter(|bridged| bridged.goes_out).map(|bridged| Arc::from(bridged.subject)),
        }
    }
}

/// Whether anybody wants a topic whose home is here.
fn is_wanted(topic: &Topic) -> bool {
    topic.members() > 0 || topic.guests > 0 || matches!(&topic.role, Role::Home(side) if !side.home.is_empty())
}

impl<D: Driver> Gateway<D> {
    /// Somebody wants a topic: NATS is asked for it, if its home is here and a rule says so. False when that is as many as may be.
    pub(super) fn listen(&mut self, key: TopicKey) -> bool {
        let Some(bridge) = &mut self.bridge else { return true };
        let is_home = self.topics.get(key).is_some_and(|topic| matches!(topic.role, Role::Home(_)));
        let Some(name) = self.topics.name(key).filter(|_| is_home) else { return true };
        if let Some(topic) = bridge.listened.get_mut(&key) {
            topic.idle_since = None;
            return true;
        }
        let Some(bridged) = bridge.rules.find(name).filter(|bridged| bridged.comes_in) else { return true };
        let subject: Arc<str> = Arc::from(bridged.subject);
        let after = self
            .topics
            .get(key)
            .filter(|topic| topic.is_sequenced())
            .map(|topic| Position { epoch: topic.epoch, offset: topic.raw.offset() });
        let may = bridge.port.subscribe(key, Arc::clone(&subject), after);
        if may {
            bridge.listened.insert(key, Listened { subject, goes_out: bridged.goes_out, begun: false, idle_since: None });
        }
        may
    }

    /// A topic is gone from this shard.
    pub(super) fn forget_bridged(&mut self, key: TopicKey) {
        if let Some(bridge) = &mut self.bridge
            && bridge.listened.remove(&key).is_some()
        {
            bridge.port.unsubscribe(key);
        }
    }

    /// Whether what is published to a topic goes to NATS.
    fn goes_out(&self, key: TopicKey) -> bool {
        let Some(bridge) = &self.bridge else { return false };
        match bridge.listened.get(&key) {
            Some(topic) => topic.goes_out,
            None => self.topics.name(key).is_some_and(|name| bridge.rules.goes_out(name)),
        }
    }

    /// What keeps a message of a WebSocket, or of a request, from being taken for a topic; `None` where nothing does.
    pub(super) fn obstacle_of_nats(&self, key: TopicKey, bytes: usize, attributes: Option<&Attributes>) -> Option<Obstacle> {
        let bridge = self.bridge.as_ref()?;
        let is_sequenced = bridge.sequencing.is_some() && self.topics.name(key).is_some_and(|name| self.is_sequenced(name));
        if !self.goes_out(key) {
            return is_sequenced.then_some(Obstacle::ReadOnly);
        }
        let status = bridge.port.status();
        let no_stream = is_sequenced && status.read.value().is_none();
        let message_key = attributes.and_then(|attributes| attributes.key.as_ref()).map_or(0, |key| KEY_HEADER_BYTES + key.len());
        let headers = message_key + if is_sequenced { TRACKED_BYTES_MAX } else { HEADERS_BYTES_MAX };
        bridge.obstacle(bytes, headers).or(no_stream.then_some(Obstacle::NoStream))
    }

    /// Whether the outbox has room for what is published to a topic at its home. Where the home is elsewhere that one asks.
    pub(super) fn nats_has_room(&self, key: TopicKey) -> bool {
        let Some(bridge) = &self.bridge else { return true };
        bridge.port.has_room() || !self.goes_out(key) || self.topics.get(key).is_none_or(|topic| matches!(topic.role, Role::Away(_)))
    }

    /// Parcels for a topic wait until the outbox has room.
    pub(super) fn hold_for_nats(&mut self, key: TopicKey) {
        if let Some(bridge) = &mut self.bridge
            && !bridge.held.contains(&key)
        {
            bridge.held.push(key);
        }
    }

    /// Whether what is published to a topic would have to go to NATS, and cannot.
    pub(super) fn is_cut_off_from_nats(&self, key: TopicKey) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| !bridge.port.status().is_connected()) && self.goes_out(key)
    }

    /// Pauses a publisher until the outbox has room, or there is no connection any more and it can be told.
    pub(super) fn wait_for_nats(&mut self, conn: ConnKey) {
        self.pause_reading(conn);
        self.counters.publishers_paused.add(1);
        if let Some(bridge) = &mut self.bridge {
            bridge.waiters.push(conn);
        }
    }

    /// A message has its place in a topic: it goes to NATS, if the topic does.
    pub(super) fn send_to_nats(
        &mut self,
        key: TopicKey,
        kind: MessageKind,
        payload: &[u8],
        attributes: Option<&Attributes>,
        sender: ConnId,
    ) {
        let is_sequenced = self.topics.get(key).is_some_and(Topic::is_sequenced);
        let Some(bridge) = &mut self.bridge else { return };
        let Some(name) = self.topics.name(key) else { return };
        let Some(subject) = bridge.subject_out(key, name) else { return };
        let (event, message_key) = attributes.map_or((None, None), |attributes| (attributes.event.clone(), attributes.key.clone()));
        let no_echo = attributes.is_some_and(|attributes| attributes.no_echo);
        let tracked = is_sequenced.then(|| Box::new(Tracked { sender, token: None, id: None, no_echo }));
        let message = Outgoing { subject, payload: Bytes::copy_from_slice(payload), kind, event, key: message_key, tracked };
        bridge.port.publish(message);
    }

    /// The same for messages of other shards.
    pub(super) fn send_parcel_to_nats(&mut self, key: TopicKey, parcel: &Parcel) {
        if self.bridge.is_none() || !self.goes_out(key) {
            return;
        }
        for (range, frames) in &parcel.parts {
            let mut from = 0;
            for frame in frames {
                let (kind, payload) = message(&range.as_slice()[from as usize..frame.end as usize]);
                from = frame.end;
                self.send_to_nats(key, kind, payload, frame.attributes.as_deref(), frame.sender);
            }
        }
    }

    /// Takes what has come from NATS, and lets those go on who have waited for room.
    pub(super) fn attend_to_nats(&mut self) {
        let Some(bridge) = &mut self.bridge else { return };
        bridge.port.answer_bell();
        let read = bridge.port.status().read.value();
        let mut left = INBOX_BUDGET;
        while left > 0 {
            left -= 1;
            let Some(bridge) = &mut self.bridge else { return };
            let next = match self.frozen {
                true if bridge.held_back.len() >= self.limits.nats_inbox_messages as usize => None,
                true => bridge.port.receive(),
                false => bridge.held_back.pop_front().or_else(|| bridge.port.receive()),
            };
            let Some(notice) = next else { break };
            let back = self.take_notice(notice);
            let Some(bridge) = &mut self.bridge else { return };
            match back {
                Some(notice) if self.frozen => bridge.held_back.push_back(notice),
                Some(notice) => {
                    bridge.held_back.push_front(notice);
                    left = 0;
                }
                None => {}
            }
        }
        let Some(bridge) = &mut self.bridge else { return };
        let has_taken_all = bridge.has_taken_all();
        if let Some(sequencing) = &mut bridge.sequencing
            && has_taken_all
        {
            // What was told before that was read has all been taken.
            sequencing.reached = read;
        }
        self.see_to_early();
        let Some(bridge) = &mut self.bridge else { return };
        if bridge.port.has_room() {
            for key in std::mem::take(&mut bridge.held) {
                self.release(key);
            }
        }
        let Some(bridge) = &mut self.bridge else { return };
        let is_connected = bridge.port.status().is_connected();
        if bridge.port.has_room() || !is_connected {
            self.woken.append(&mut bridge.waiters);
        }
        if std::mem::replace(&mut bridge.was_connected, is_connected) && !is_connected {
            self.wake_all_publishers();
        }
        self.look_for_interest();
    }

    /// The connection is lost: whoever waits for a topic may wait for NATS behind it, and is told so. Looks at every topic.
    fn wake_all_publishers(&mut self) {
        let mut slot = Some(0);
        while let Some(at) = slot {
            slot = self.topics.next_slot(at);
            let Some((name, _)) = self.topics.at(at).filter(|(_, topic)| !topic.waiters.is_empty()) else { continue };
            let key = self.topics.find(name);
            if let Some(topic) = key.filter(|&key| self.goes_out(key)).and_then(|key| self.topics.get_mut(key)) {
                self.woken.extend(topic.waiters.take());
            }
        }
    }

    /// Takes what NATS has to say; back when it cannot be taken now.
    fn take_notice(&mut self, notice: Notice) -> Option<Notice> {
        match notice {
            // A frozen shard's topics get no more; what else comes it has to know of to come to rest.
            notice @ (Notice::Message(_) | Notice::Lost { .. } | Notice::Begun { .. }) if self.frozen => return Some(notice),
            Notice::Message(incoming) => return self.take_from_nats(incoming).map(Notice::Message),
            Notice::Lost { topic, to } => self.lost(topic, to),
            Notice::Begun { topic } => {
                let listened = self.bridge.as_mut().and_then(|bridge| bridge.listened.get_mut(&topic));
                listened.into_iter().for_each(|listened| listened.begun = true);
            }
            Notice::Answer { token, answer } => self.take_answer(token, answer),
            Notice::Untaken { conn } => self.untaken(conn),
            Notice::Fetched { token, fetched } => self.fetched(token, *fetched),
        }
        None
    }

    /// Gives a message from NATS its place; back when its topic takes none now.
    fn take_from_nats(&mut self, incoming: Incoming) -> Option<Incoming> {
        // In a process that is about to give out its topics they get no more.
        let listens = !self.gives_out_topics() && self.bridge.as_ref().is_some_and(|bridge| bridge.listened.contains_key(&incoming.topic));
        let topic = self.topics.get(incoming.topic).filter(|_| listens)?;
        // Parcels that are held do not hold this up: they may wait for acknowledgements, which come behind it.
        if topic.lag() >= self.limits.topic_lag_bytes_max || self.shared.is_over_memory() {
            return Some(incoming);
        }
        if let Some(numbered) = incoming.numbered
            && (!topic.is_sequenced() || numbered.offset <= topic.raw.offset())
        {
            return None;
        }
        let Incoming { topic, payload, kind, event, key, numbered } = incoming;
        let attributes = match numbered {
            Some(Numbered { offset, no_echo, .. }) => Some(Arc::new(Attributes { event, key, no_echo, offset: Some(offset) })),
            None => Attributes::of(event, key),
        };
        let (header, len) = server_header(kind.opcode(), payload.len());
        let nobody = ConnId { shard: ShardId(u16::MAX), key: NATS };
        let sender = numbered.and_then(|numbered| numbered.sender).unwrap_or(nobody);
        self.append_at_home(topic, |log| log.append_with(sender, attributes, &header[..len], &payload));
        None
    }

    /// Lets go of topics that nobody has wanted for a while.
    fn look_for_interest(&mut self) {
        let Some(bridge) = &mut self.bridge else { return };
        if self.now < bridge.next_look {
            return;
        }
        bridge.next_look = self.now + INTEREST;
        self.forget_past();
        let Some(bridge) = &mut self.bridge else { return };
        let patience = Duration::from_millis(self.limits.nats_interest_ms);
        let (topics, now, port) = (&self.topics, self.now, &mut bridge.port);
        let mut dropped = Vec::new();
        bridge.listened.retain(|&key, listened| {
            if topics.get(key).is_some_and(is_wanted) {
                listened.idle_since = None;
                return true;
            }
            let keeps = now.since(*listened.idle_since.get_or_insert(now)) < patience;
            if !keeps {
                dropped.push(key);
            }
            keeps
        });
        // A map's order is another one each time.
        dropped.sort_unstable();
        dropped.iter().for_each(|&key| port.unsubscribe(key));
        for key in dropped {
            self.forget_sequenced(key);
        }
    }

    /// Whether everything that goes to NATS is on its way.
    pub(super) fn nats_has_all(&self) -> bool {
        self.bridge.as_ref().is_none_or(|bridge| !bridge.port.overflows() && bridge.held.is_empty())
    }

    /// Sends what this step has for NATS on its way.
    pub(super) fn flush_to_nats(&mut self) {
        if let Some(bridge) = &mut self.bridge {
            bridge.port.flush();
        }
    }

    /// How soon this shard must look after the bridge by itself; at once when something has come.
    pub(super) fn bridge_wait(&self) -> Option<Duration> {
        let bridge = self.bridge.as_ref()?;
        let waits = bridge.port.overflows() || !bridge.waiters.is_empty() || !bridge.held.is_empty();
        let room = waits.then_some(if bridge.port.status().is_connected() { super::POLL } else { AWAY });
        let early = bridge.sequencing.as_ref().is_some_and(|sequencing| !sequencing.past.early.is_empty());
        let held_back = (!bridge.held_back.is_empty() || early).then_some(super::POLL);
        let incoming = (bridge.held_back.is_empty() && bridge.port.has_incoming()).then_some(Duration::ZERO);
        let keeps = bridge.sequencing.as_ref().is_some_and(|sequencing| sequencing.past.keeps());
        let interest = (keeps || !bridge.listened.is_empty()).then(|| bridge.next_look.since(self.now).max(super::POLL));
        [room, held_back, incoming, interest].into_iter().flatten().min()
    }
}
