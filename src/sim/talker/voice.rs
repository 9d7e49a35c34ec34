//! What a client of `shardcast.v1.json` publishes: by several voices, each with one message at a time, so that many are on their way and each voice's
//! come in its order. What is refused is said again; and what was not answered before a connection ended, where it has a name (`msg_id`).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::ledger::{Account, Ledger, MessageId, Said};
use super::super::plan::TalkerPlan;
use super::super::words::Told;
use crate::engine::sim::World;
use crate::proto::position::{Epoch, Position};
use crate::time::Time;

/// Voices of a client.
const VOICES: usize = 3;
/// How many keys the messages of a client have whose messages replace each other.
const VALUES: u16 = 2;
/// When something that was refused is said again: sooner than it is asked to.
const AGAIN: Duration = Duration::from_millis(20);
/// How often a client lets itself be refused for another reason than that a topic is behind.
const REFUSALS_MAX: usize = 20;

/// The message that a voice is about.
struct Current {
    said: Said,
    id: MessageId,
    /// It comes back to its own connection.
    echo: bool,
    /// How often it was sent.
    sent: u32,
    /// When it was sent on this connection, as the how manieth; none while it is to be said again.
    asked: Option<(Time, u64)>,
    again_at: Time,
    /// Where it is, once that was answered: then this is a repeat.
    offset: Option<u64>,
}

struct Voice {
    account: usize,
    room: usize,
    current: Option<Current>,
}

/// All of a client's.
pub(super) struct Voices {
    plan: TalkerPlan,
    who: String,
    epoch: Epoch,
    voices: Vec<Voice>,
    /// Messages that it has yet to say.
    left: usize,
    refusals_left: usize,
    /// What was sent on this connection has this place in its room, by when it was sent.
    places: BTreeMap<(usize, u64), u64>,
    sends: u64,
    /// What is not to come back to this connection.
    unwanted: Vec<HashSet<MessageId>>,
    /// It has stopped, and what is still answered is nobody's.
    silent: bool,
    /// Unanswered messages of a connection that ended may be said again on the next.
    says_again: bool,
    /// Repeats that were answered.
    pub(super) repeats: u64,
}

impl Voices {
    pub(super) fn new(plan: TalkerPlan, who: String, epoch: Epoch, (rooms, harsh): (usize, bool), ledger: &mut Ledger) -> Self {
        let voice = |index: usize| Voice { account: 0, room: plan.reader.topics()[index % plan.reader.topics().len()], current: None };
        let voices = if plan.messages > 0 { (0..VOICES).map(voice).collect() } else { Vec::new() };
        let unwanted = vec![HashSet::new(); rooms];
        let (left, refusals_left, repeats) = (plan.messages, REFUSALS_MAX, 0);
        let (places, sends) = (BTreeMap::new(), 0);
        // Where the clock jumps a name may be forgotten meanwhile.
        let says_again = plan.names && !harsh;
        let silent = false;
        let mut all = Self { plan, who, epoch, voices, left, refusals_left, places, sends, unwanted, silent, says_again, repeats };
        (0..all.voices.len()).for_each(|index| all.is_another(index, ledger));
        all
    }

    /// What a voice has said may be there or not: it is another's from now on.
    fn is_another(&mut self, index: usize, ledger: &mut Ledger) {
        let voice = &mut self.voices[index];
        voice.current = None;
        voice.account = ledger.accounts.len();
        ledger.accounts.push(Account::new(Some(voice.room), false));
    }

    /// Whether everything was said and answered, or it says nothing any more.
    pub(super) fn are_done(&self) -> bool {
        (self.left == 0 || self.refusals_left == 0) && self.voices.iter().all(|voice| voice.current.is_none())
    }

    /// What is not to come back to this connection of a room.
    pub(super) fn unwanted(&self, room: usize) -> &HashSet<MessageId> {
        &self.unwanted[room]
    }

    /// What the gateway is still to answer since before `at`.
    pub(super) fn unanswered_since(&self, at: Time) -> Option<MessageId> {
        let old =
            |voice: &Voice| voice.current.as_ref().filter(|current| current.asked.is_some_and(|(asked, _)| asked < at)).map(|it| it.id);
        self.voices.iter().find_map(old)
    }

    /// The oracle may rely on what was answered.
    pub(super) fn tell(&self, ledger: &mut Ledger) {
        for voice in &self.voices {
            ledger.accounts[voice.account].stays = voice.current.is_none();
        }
    }

    /// A request to publish something, if one of them has something to say now; and what it is, where it does not come back.
    pub(super) fn speak(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) -> Option<(String, Option<(usize, MessageId)>)> {
        let mut world = world.borrow_mut();
        let now = world.now;
        let first = if self.voices.is_empty() { return None } else { world.choices.below(self.voices.len()) };
        let able = |voice: &Voice| match &voice.current {
            Some(current) => current.asked.is_none() && current.again_at <= now,
            None => self.left > 0 && self.refusals_left > 0,
        };
        let index = (0..self.voices.len()).map(|index| (first + index) % self.voices.len()).find(|&index| able(&self.voices[index]))?;
        let Voice { account, room, current } = &mut self.voices[index];
        let current = current.get_or_insert_with(|| {
            self.left -= 1;
            let (bytes, text) = (world.choices.within(0..=self.plan.bytes_max), world.choices.chance(500));
            let number = ledger.accounts[*account].said.len() as u16;
            let said = ledger.say(*account, bytes, text, now);
            if self.plan.values {
                ledger.has_key(*account, number % VALUES);
            }
            let echo = !(self.plan.mutes && world.choices.chance(500));
            let id = MessageId { speaker: *account as u16, number };
            Current { said, id, echo, sent: 0, asked: None, again_at: now, offset: None }
        });
        current.sent += 1;
        current.asked = Some((now, self.sends));
        self.sends += 1;
        let id = current.id;
        let mut request = format!("{{\"type\":\"publish\",\"id\":\"{index}.{}\",\"topic\":\"room-{room}\"", id.number);
        request += &match std::str::from_utf8(&current.said.payload).ok().filter(|_| current.said.text) {
            Some(text) => format!(",\"data\":{}", serde_json::to_string(text).expect("a string is JSON")),
            None => format!(",\"data_b64\":\"{}\"", STANDARD.encode(&current.said.payload)),
        };
        if self.plan.values {
            request += &format!(",\"key\":\"k{}\"", id.number % VALUES);
        }
        if self.plan.names && current.echo {
            request += &format!(",\"msg_id\":\"{}-{}\"", id.speaker, id.number);
        }
        let mute = (!current.echo).then_some((*room, id));
        if mute.is_some() {
            request += ",\"echo\":false";
            self.unwanted[*room].insert(id);
        }
        Some((request + "}", mute))
    }

    fn current(&mut self, id: &str) -> (usize, &mut Current) {
        let (index, number) = id.split_once('.').unwrap_or_else(|| panic!("{}: is answered what it has not asked: {id}", self.who));
        let (index, number) = (index.parse().unwrap_or(usize::MAX), number.parse().ok());
        let current = self.voices.get_mut(index).and_then(|voice| voice.current.as_mut());
        let current = current.filter(|current| current.asked.is_some() && Some(current.id.number) == number);
        (index, current.unwrap_or_else(|| panic!("{}: is answered twice, or what it has not said: {id}", self.who)))
    }

    /// A message was published.
    pub(super) fn are_answered(&mut self, told: &Told<'_>, world: &mut World, ledger: &mut Ledger) {
        if self.silent {
            return;
        }
        let who = self.who.clone();
        let (epoch, plan, again) = (self.epoch, self.plan, ledger.excuses(world.now));
        let (index, current) = self.current(told.id());
        let id = current.id;
        let position = told.pos.and_then(|pos| Position::parse(pos).ok()).unwrap_or_else(|| panic!("{who}: {id:?} has no position"));
        assert!(position.epoch == epoch, "{who}: {id:?} is at {position}, of another epoch");
        assert!(!told.duplicate || current.sent > 1 || again, "{who}: {id:?} was said once and is called a duplicate");
        let repeated = current.offset.replace(position.offset);
        assert!(repeated.is_none() || told.duplicate, "{who}: {id:?} was published before at {repeated:?}, and is again at {position}");
        let (once, (_, order)) = (current.sent == 1, current.asked.take().expect("only what was asked is current"));
        let repeats = plan.repeats && current.echo && world.choices.chance(200);
        let voice = &mut self.voices[index];
        let room = voice.room;
        if !repeats {
            voice.current = None;
        }
        self.repeats += u64::from(repeated.is_some());
        ledger.place(room, position.offset, id);
        ledger.check_subscribers(room, told.subscribers.unwrap_or_else(|| panic!("{who}: {id:?} without subscribers")), &who);
        // What a connection says in a room, each once, keeps its order.
        if once && !again {
            let before = self.places.range((room, 0)..(room, order)).next_back();
            let behind = self.places.range((room, order + 1)..=(room, u64::MAX)).next();
            let fits =
                before.is_none_or(|(_, offset)| *offset < position.offset) && behind.is_none_or(|(_, offset)| position.offset < *offset);
            assert!(fits, "{who}: {id:?}, sent as number {order}, is at {position} of room {room}, with {before:?} and {behind:?} around");
            self.places.insert((room, order), position.offset);
        }
    }

    /// A message was not published. Whether that may be, in a gentle world (`served`).
    pub(super) fn are_refused(&mut self, told: &Told<'_>, now: Time, served: bool, ledger: &mut Ledger) {
        if self.silent {
            return;
        }
        let who = self.who.clone();
        let excused = ledger.excuses(now);
        let (index, current) = self.current(told.id());
        let (code, id, has_name) = (told.code(), current.id, current.echo);
        let mine = match code {
            "topic_behind" | "over_capacity" | "nats_behind" => true,
            "rate_limited" | "too_many_topics" | "draining" => !served,
            "nats_unavailable" | "nats_unanswered" | "nats_refused" => excused || !served,
            _ => false,
        };
        assert!(mine, "{who}: {id:?} is refused: {code}");
        current.asked = None;
        current.again_at = now + AGAIN;
        let may_be_there = code == "nats_unanswered" && !(self.plan.names && has_name);
        assert!(told.retry_ms.is_some() || code == "nats_refused", "{who}: {id:?} is refused for now ({code}), and not told until when");
        if code == "nats_refused" || may_be_there {
            self.is_another(index, ledger);
        }
        if !matches!(code, "topic_behind" | "over_capacity" | "nats_behind") && !excused {
            self.refusals_left = self.refusals_left.saturating_sub(1);
        }
        // What it does not say again is never said.
        let waits = |voice: &Voice| voice.current.as_ref().is_some_and(|current| current.asked.is_none());
        for index in 0..self.voices.len() {
            if self.refusals_left == 0 && waits(&self.voices[index]) {
                self.is_another(index, ledger);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn are_cut_off(&mut self, ledger: &mut Ledger) {
        self.places.clear();
        self.unwanted.iter_mut().for_each(HashSet::clear);
        for index in 0..self.voices.len() {
            let Some(current) = &mut self.voices[index].current else { continue };
            if self.says_again && current.echo {
                current.asked = None;
            } else {
                self.is_another(index, ledger);
            }
        }
    }

    /// It says nothing any more.
    pub(super) fn fall_silent(&mut self, ledger: &mut Ledger) {
        (self.left, self.silent) = (0, true);
        for index in 0..self.voices.len() {
            if self.voices[index].current.is_some() {
                self.is_another(index, ledger);
            }
        }
    }
}
