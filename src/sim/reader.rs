//! A simulated reader of event streams: one to four topics, cut off now and then, and back with the id of the last event.
//!
//! What it is told of each topic goes to an account of the ledger, an *ear*, which goes on over its lives. Only a gap ends an ear: what comes after
//! one is another ear's.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use super::ledger::{Account, Ledger};
use super::plan::{Begin, ReaderPlan, Reading};
use crate::engine::sim::{LinkId, World};
use crate::ids::ShardId;
use crate::proto::position::{Cursor, Epoch, Position};
use crate::proto::sse::Decoder;
use crate::time::Time;

/// How a life of a reader ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// It was refused with a status.
    Refused(u16),
    /// The server said goodbye, with this code.
    Bye(u16),
    /// The stream ended or broke without a word.
    Broken,
    /// By itself.
    Left,
}

/// One connection of a reader.
struct Life {
    link: LinkId,
    /// What is still to be written of the request.
    request: Vec<u8>,
    /// The response's head as far as it has come; none once it is over.
    head: Option<Vec<u8>>,
    decoder: Decoder,
    opened: bool,
    /// Where it was told that its topics are, while it has still to be told of gaps before it gets an id.
    opening: Option<Vec<u64>>,
    bye: Option<u16>,
    /// Messages heard in it.
    heard: usize,
    /// It has shut its side and reads on.
    shut: bool,
}

/// One reader.
pub(super) struct Reader {
    pub(super) plan: ReaderPlan,
    id: usize,
    epoch: Epoch,
    shards: u16,
    life: Option<Life>,
    over: bool,
    /// Connections so far.
    pub(super) lives: usize,
    /// It has shut its side in its last life.
    pub(super) has_shut: bool,
    pub(super) next_at: Time,
    /// The id of the last event, with which it comes back.
    last_id: String,
    /// Where it is in each topic; none before it was told.
    at: Vec<Option<u64>>,
    /// The accounts that hear its topics.
    ears: Vec<Option<usize>>,
    /// How its last life ended.
    pub(super) cut: Option<Cut>,
    /// Messages over all its lives.
    pub(super) heard: usize,
    /// It does not come back any more.
    last_life: bool,
}

/// What a reader takes from a stream before anything is made of it.
struct Event {
    id: String,
    name: String,
    data: String,
}

impl Reader {
    pub(super) fn new(id: usize, plan: ReaderPlan, epoch: Epoch, shards: u16) -> Self {
        let topics = plan.topics().len();
        Self {
            plan,
            id,
            epoch,
            shards,
            life: None,
            over: false,
            lives: 0,
            has_shut: false,
            next_at: Time::ZERO,
            last_id: String::new(),
            at: vec![None; topics],
            ears: vec![None; topics],
            cut: None,
            heard: 0,
            last_life: false,
        }
    }

    /// Whether it was told where it begins, in this life.
    pub(super) fn is_open(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.opened && life.bye.is_none())
    }

    /// Whether it has gone for good.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Whether the gateway may end its connection, or not let it in, without a reason that lies in the gateway.
    pub(super) fn is_excused(&self) -> bool {
        self.plan.link.fragile || self.plan.reading != Reading::Greedy || self.cut == Some(Cut::Left)
    }

    /// Does the next thing.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let micros = match self.plan.reading {
            Reading::Slow => world.borrow_mut().choices.within(5_000..=60_000),
            _ => world.borrow_mut().choices.within(0..=1500),
        };
        self.next_at = world.borrow().now + Duration::from_micros(micros as u64);
        if self.life.is_none() {
            self.connect(world, ledger);
        } else {
            self.write(world);
            self.read(world, ledger);
        }
        self.tell_ears(ledger);
    }

    fn tell_ears(&self, ledger: &mut Ledger) {
        let listens = self.is_open() && self.plan.reading == Reading::Greedy && self.life.as_ref().is_some_and(|life| !life.shut);
        for ear in self.ears.iter().flatten() {
            ledger.accounts[*ear].listens = listens;
        }
    }

    fn connect(&mut self, world: &Rc<RefCell<World>>, ledger: &Ledger) {
        let shard = ShardId(world.borrow_mut().choices.below(self.shards.into()) as u16);
        let Ok(link) = world.borrow_mut().connect(shard, self.plan.link) else {
            self.over = true;
            return;
        };
        self.lives += 1;
        let topics: Vec<String> = self.plan.topics().iter().map(|room| format!("topic=room-{room}")).collect();
        let mut target = format!("/events?{}", topics.join("&"));
        let mut id = String::new();
        if !self.last_id.is_empty() {
            // An EventSource asks for the same URL again, and its header wins.
            id = format!("Last-Event-ID: {}\r\n", self.last_id);
        } else if let Begin::After { newest } = self.plan.begin {
            let choices = &mut world.borrow_mut().choices;
            let offsets: Vec<u64> = self.plan.topics().iter().map(|&room| ledger.known_offset(room, newest, choices)).collect();
            self.at = offsets.iter().map(|offset| Some(*offset)).collect();
            target += &format!("&after={}", Cursor::new(self.epoch, offsets.into_iter().map(Some)));
        }
        match self.plan.begin {
            Begin::Last(count) => target += &format!("&last={count}"),
            Begin::Earliest => target += "&after=earliest",
            Begin::Live | Begin::After { .. } => {}
        }
        // Nobody should say more than that, and some do.
        let more = world.borrow_mut().choices.of(&["", "", "", "", "\r\n", "GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"]);
        let request = format!("GET {target} HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n{id}\r\n{more}").into_bytes();
        let head = Some(Vec::new());
        self.life =
            Some(Life { link, request, head, decoder: Decoder::new(), opened: false, opening: None, bye: None, heard: 0, shut: false });
    }

    fn write(&mut self, world: &Rc<RefCell<World>>) {
        let Some(life) = &mut self.life else { return };
        if !life.request.is_empty()
            && let Ok(count) = world.borrow_mut().client_write(life.link, &life.request)
        {
            life.request.drain(..count);
        }
    }

    fn read(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let most = match self.plan.reading {
            Reading::Greedy => usize::MAX,
            Reading::Slow => 1,
            Reading::DeafAfter(count) if self.heard >= count => 0,
            Reading::DeafAfter(_) => 1,
        };
        let size = if most == 1 { 200 } else { 4096 };
        let mut buffer = [0; 4096];
        for _ in 0..most {
            let Some(life) = &mut self.life else { return };
            let read = world.borrow_mut().client_read(life.link, &mut buffer[..size]);
            let ended = life.bye.map_or(Cut::Broken, Cut::Bye);
            let bytes = match read {
                Ok(0) => return self.end_life(ended, world, ledger),
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.end_life(ended, world, ledger),
            };
            let mut body = bytes.to_vec();
            if let Some(mut head) = life.head.take() {
                head.extend(bytes);
                let Some(end) = memchr::memmem::find(&head, b"\r\n\r\n") else {
                    life.head = Some(head);
                    continue;
                };
                body = head.split_off(end + 4);
                let status = std::str::from_utf8(&head).ok().and_then(|head| head.get(9..12)?.parse().ok());
                let status = status.unwrap_or_else(|| panic!("reader {}: an answer without a status", self.id));
                if status != 200 {
                    return self.end_life(Cut::Refused(status), world, ledger);
                }
            }
            let mut events = Vec::new();
            life.decoder.feed(&body, |event| {
                events.push(Event { id: event.id.to_owned(), name: event.name.to_owned(), data: event.data.to_owned() });
            });
            let now = world.borrow().now;
            for event in events {
                self.take(&event, now, ledger);
                if !self.last_life
                    && self.lives < self.plan.lives
                    && self.life.as_ref().is_some_and(|life| life.heard >= self.plan.cut_after)
                {
                    // Cut at this event, whatever has come behind it.
                    return self.leave(world, ledger);
                }
            }
        }
    }

    /// Breaks its connection off, and comes back unless it has done so often enough.
    fn leave(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        if world.borrow_mut().choices.chance(500)
            && let Some(life) = &self.life
        {
            world.borrow_mut().client_reset(life.link);
        }
        self.end_life(Cut::Left, world, ledger);
    }

    fn end_life(&mut self, cut: Cut, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let was_told_all = self.life.as_ref().is_none_or(|life| life.opening.is_none());
        if let Some(life) = self.life.take() {
            world.borrow_mut().client_close(life.link);
        }
        self.cut = Some(cut);
        self.over = self.last_life || self.lives >= self.plan.lives || cut == Cut::Bye(1012);
        if self.last_id.is_empty() {
            self.at.fill(None);
        } else if !was_told_all {
            // It is told again of what is missing, from where it still comes back to.
            let last_id = std::mem::take(&mut self.last_id);
            self.at = self.take_id(&last_id).into_iter().map(Some).collect();
        }
        let pause = world.borrow_mut().choices.of(&[0, 1_000, 50_000]);
        self.next_at = world.borrow().now + Duration::from_micros(pause);
        self.tell_ears(ledger);
    }

    /// It does not come back any more: it goes at once, or shuts its side and waits for the end.
    pub(super) fn finish(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        self.last_life = true;
        let shuts = self.plan.reading == Reading::Greedy && world.borrow_mut().choices.chance(500);
        match &mut self.life {
            Some(life) if shuts && life.request.is_empty() => {
                life.shut = true;
                self.has_shut = true;
                world.borrow_mut().client_shut(life.link);
                self.tell_ears(ledger);
            }
            Some(_) => self.leave(world, ledger),
            None => self.over = true,
        }
    }

    /// It does not come back after this life.
    pub(super) fn stop_coming_back(&mut self) {
        self.last_life = true;
        self.over |= self.life.is_none();
    }

    fn index_of(&self, room: usize) -> usize {
        let index = self.plan.topics().iter().position(|&other| other == room);
        index.unwrap_or_else(|| panic!("reader {}: hears of room {room}, which it has not asked for", self.id))
    }

    fn take(&mut self, event: &Event, now: Time, ledger: &mut Ledger) {
        let id = self.id;
        let Some(life) = &mut self.life else { return };
        assert!(life.bye.is_none(), "reader {id}: {} after goodbye", event.name);
        if event.name == "shardcast:bye" {
            life.bye = Some(field(&event.data, "\"code\":", ',').parse().expect("a code"));
            return;
        }
        if event.name == "shardcast:open" {
            assert!(!std::mem::replace(&mut life.opened, true), "reader {id}: opened twice");
            return self.open(event, ledger);
        }
        if event.name == "shardcast:gap" {
            assert!(life.opened, "reader {id}: a gap before it was opened");
            return self.gap(event, now, ledger);
        }
        assert!(life.opening.is_none(), "reader {id}: {} before it was told all that is missing", event.name);
        let offsets = self.take_id(&event.id);
        let Some(life) = &mut self.life else { return };
        match event.name.as_str() {
            "message" => {
                assert!(life.opened, "reader {id}: a message before it was opened");
                life.heard += 1;
                self.heard += 1;
                let (text, payload) = ledger.read_event(&event.data);
                let message = ledger.identify(id, &payload);
                let index = self.index_of(ledger.room_of(message));
                self.moves(&offsets, index, |at, to| to == at + 1, "a message");
                let ear = self.ears[index].expect("opened");
                ledger.hear(ear, text, &payload);
                ledger.place(self.plan.topics()[index], offsets[index], message);
            }
            other => panic!("reader {id}: an event {other}"),
        }
    }

    /// Takes over an event's id, in which one topic has moved and no other.
    fn moves(&mut self, offsets: &[u64], index: usize, fits: impl Fn(u64, u64) -> bool, what: &str) {
        for (other, (at, &to)) in self.at.iter_mut().zip(offsets).enumerate() {
            let was = at.replace(to).expect("opened");
            let fine = if other == index { fits(was, to) } else { was == to };
            assert!(fine, "reader {}: {what} of its topic {index} moves topic {other} from {was} to {to}", self.id);
        }
    }

    /// The offsets of an id, which is the one that it comes back with from now on.
    fn take_id(&mut self, text: &str) -> Vec<u64> {
        let cursor = Cursor::parse(text, self.at.len()).unwrap_or_else(|error| panic!("reader {}: id {text:?}: {error}", self.id));
        assert!(cursor.epoch() == self.epoch, "reader {}: another epoch", self.id);
        text.clone_into(&mut self.last_id);
        cursor.offsets().map(|offset| offset.expect("the server is sure of every offset that it gives")).collect()
    }

    fn open(&mut self, event: &Event, ledger: &mut Ledger) {
        let told = |&room: &usize| Position::parse(field(&event.data, &format!("\"room-{room}\":\""), '"')).expect("a position").offset;
        let told: Vec<u64> = self.plan.topics().iter().map(told).collect();
        if event.id.is_empty() {
            self.life.as_mut().expect("a life").opening = Some(told);
            return;
        }
        assert!(self.take_id(&event.id) == told, "reader {}: opened with {}, and the id says {}", self.id, event.data, event.id);
        for (index, &offset) in told.iter().enumerate() {
            if let Some(at) = self.at[index].replace(offset) {
                assert!(at == offset, "reader {}: comes back to topic {index} at {at} and is opened at {offset}, without a gap", self.id);
            }
            if self.ears[index].is_none() {
                self.new_ear(index, ledger);
            }
        }
    }

    fn gap(&mut self, event: &Event, now: Time, ledger: &mut Ledger) {
        let data = &event.data;
        let room: usize = field(data, "\"topic\":\"room-", '"').parse().expect("a room");
        let index = self.index_of(room);
        let position = |key| Position::parse(field(data, key, '"')).expect("a position").offset;
        let (from, to, reason) = (position("\"from\":\""), position("\"to\":\""), field(data, "\"reason\":\"", '"'));
        // Who is new has no place yet, and may lose what it was about to be given.
        let is_new = self.at[index].is_none() && self.life.as_ref().is_some_and(|life| life.opening.is_some());
        assert!(
            is_new || self.at[index] == Some(from),
            "reader {}: a gap after {from} in room {room}, where it was at {:?}",
            self.id,
            self.at[index]
        );
        assert!(to > from, "reader {}: a gap in room {room} from {from} to {to}", self.id);
        assert!(reason == "too_old", "reader {}: a gap in room {room} from {from} to {to} because of {reason}", self.id);
        ledger.check_loss(room, to, now, &format!("reader {} is told of a gap from {from} to {to}", self.id));
        ledger.gaps += 1;
        if let Some(ear) = self.ears[index].take() {
            ledger.accounts[ear].listens = false;
        }
        let opening = &mut self.life.as_mut().expect("a life").opening;
        match opening {
            Some(told) => assert!(told[index] == to, "reader {}: opened at {told:?}, and a gap of its topic {index} to {to}", self.id),
            None => assert!(!event.id.is_empty(), "reader {}: a gap without an id", self.id),
        }
        self.at[index] = Some(to);
        if event.id.is_empty() {
            return;
        }
        // The last of the gaps that it is told of when it is opened.
        if let Some(told) = opening.take() {
            for (at, told) in self.at.iter_mut().zip(told) {
                assert!(at.is_none_or(|at| at == told), "reader {}: opened at {told}, and after all gaps it is at {at:?}", self.id);
                *at = Some(told);
            }
        }
        let offsets = self.take_id(&event.id);
        assert!(offsets[index] == to, "reader {}: a gap to {to} and the id says {}", self.id, event.id);
        self.moves(&offsets, index, |at, to| at == to, "a gap");
        for index in 0..self.ears.len() {
            if self.ears[index].is_none() {
                self.new_ear(index, ledger);
            }
        }
    }

    fn new_ear(&mut self, index: usize, ledger: &mut Ledger) {
        let ear = ledger.accounts.len();
        let mut account = Account::new(Some(self.plan.topics()[index]), false);
        account.after = self.at[index];
        ledger.accounts.push(account);
        ledger.let_in(ear);
        self.ears[index] = Some(ear);
    }

    /// What it is and where, for who finds something wrong with it.
    pub(super) fn describe(&self) -> String {
        let life = self.life.as_ref().map(|life| (life.head.is_some(), life.opened, life.bye, life.heard, life.shut));
        format!(
            "reader {} {:?}, at {:?}, life {} (awaits head, opened, bye, heard, shut: {life:?}), last ended by {:?}",
            self.id, self.plan, self.at, self.lives, self.cut
        )
    }

    /// What it has not been given although it listens.
    pub(super) fn is_behind(&self, ledger: &Ledger) -> bool {
        self.is_open()
            && self.plan.reading == Reading::Greedy
            && self.plan.topics().iter().zip(&self.at).any(|(&room, at)| *at < ledger.newest(room))
    }
}

/// The text between `key` and `end`.
fn field<'a>(data: &'a str, key: &str, end: char) -> &'a str {
    let from = data.find(key).unwrap_or_else(|| panic!("{data} has no {key}")) + key.len();
    let rest = &data[from..];
    &rest[..rest.find([end, '}']).unwrap_or(rest.len())]
}
