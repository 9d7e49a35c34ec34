//! A simulated reader of event streams: one to four topics, cut off now and then, and back with the id of the last event.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use super::ears::{Ears, ToldGap};
use super::ledger::Ledger;
use super::plan::{Begin, ReaderPlan, Reading};
use crate::engine::sim::{LinkId, World};
use crate::ids::ShardId;
use crate::proto::position::Epoch;
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
    /// The data of the opening event and of gaps, until the last of them has come, which has an id.
    opening: Option<Vec<String>>,
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
    ears: Ears,
    /// How its last life ended.
    pub(super) cut: Option<Cut>,
    /// Messages over all its lives.
    pub(super) heard: usize,
    /// It does not come back any more.
    last_life: bool,
    /// It was told that NATS is not there when it was.
    pub(super) cut_off: bool,
}

/// What a reader takes from a stream before anything is made of it.
struct Event {
    id: String,
    name: String,
    data: String,
}

impl Reader {
    pub(super) fn new(id: usize, plan: ReaderPlan, epoch: Epoch, shards: u16) -> Self {
        let ears = Ears::new(format!("reader {id}"), plan.topics(), plan.begin, epoch);
        Self {
            plan,
            id,
            shards,
            life: None,
            over: false,
            lives: 0,
            has_shut: false,
            next_at: Time::ZERO,
            last_id: String::new(),
            ears,
            cut: None,
            heard: 0,
            last_life: false,
            cut_off: false,
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
        self.ears.tell(listens, ledger);
    }

    fn connect(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let shard = ShardId(world.borrow_mut().choices.below(self.shards.into()) as u16);
        let Ok(link) = world.borrow_mut().connect(shard, self.plan.link) else {
            self.over = true;
            return;
        };
        self.lives += 1;
        self.ears.rooms().iter().for_each(|&room| ledger.visit(room));
        let mut target = format!("/events?{}", self.ears.query());
        let mut id = String::new();
        if self.last_id.is_empty() {
            target += &self.ears.start(ledger, &mut world.borrow_mut().choices);
        } else {
            // An EventSource asks for the same URL again, and its header wins.
            id = format!("Last-Event-ID: {}\r\n", self.last_id);
            match self.plan.begin {
                Begin::Last(count) => target += &format!("&last={count}"),
                Begin::Earliest => target += "&after=earliest",
                Begin::Live | Begin::After { .. } | Begin::Stray { .. } => {}
            }
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
        if let Some(life) = self.life.take() {
            world.borrow_mut().client_close(life.link);
        }
        self.cut = Some(cut);
        self.cut_off = !ledger.excuses(world.borrow().now);
        self.over = self.last_life || self.lives >= self.plan.lives || cut == Cut::Bye(1012);
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

    fn take(&mut self, event: &Event, now: Time, ledger: &mut Ledger) {
        let id = self.id;
        let Some(life) = &mut self.life else { return };
        assert!(life.bye.is_none(), "reader {id}: {} after goodbye", event.name);
        if event.name == "shardcast:bye" {
            life.bye = Some(field(&event.data, "\"code\":", ',').parse().expect("a code"));
            return;
        }
        assert!(life.opened != (event.name == "shardcast:open"), "reader {id}: {} first, or opened twice", event.name);
        life.opened = true;
        if event.id.is_empty() || life.opening.is_some() {
            return self.take_opening(event, now, ledger);
        }
        let offsets = self.ears.read_cursor(&event.id);
        self.last_id.clone_from(&event.id);
        match event.name.as_str() {
            "shardcast:open" => {
                for (index, &offset) in offsets.iter().enumerate() {
                    let told = self.told(index, offset);
                    assert!(event.data.contains(&told), "reader {id}: opened with {}, and its id has {told}", event.data);
                    self.ears.begins(index, offset, now, ledger);
                }
            }
            "shardcast:gap" => self.ears.gap(&self.read_gap(&event.data), now, ledger),
            "message" => {
                life.heard += 1;
                self.heard += 1;
                let (text, payload) = ledger.read_event(&event.data);
                let room = ledger.room_of(ledger.identify(id, &payload));
                let index = self.ears.index_of(room);
                self.ears.hear(index, offsets[index], text, &payload, ledger);
            }
            other => panic!("reader {id}: an event {other}"),
        }
        // One topic has moved, and no other.
        self.ears.expect_at(&offsets, &event.name, ledger);
    }

    /// Takes what comes before the first id when something is missing: the opening event, and the gaps, of which the last has the id. Until then nothing
    /// has changed for it: cut off, it comes back from where it was, and is told again.
    fn take_opening(&mut self, event: &Event, now: Time, ledger: &mut Ledger) {
        let id = self.id;
        let Some(life) = &mut self.life else { return };
        if event.name == "shardcast:open" {
            life.opening = Some(vec![event.data.clone()]);
            return;
        }
        assert!(event.name == "shardcast:gap", "reader {id}: {} before it was told all that is missing", event.name);
        let opening = life.opening.get_or_insert_default();
        assert!(!opening.is_empty(), "reader {id}: a gap without an id, and it was opened before");
        opening.push(event.data.clone());
        if event.id.is_empty() {
            return;
        }
        let told = life.opening.take().unwrap_or_default();
        let offsets = self.ears.read_cursor(&event.id);
        self.last_id.clone_from(&event.id);
        let gaps: Vec<ToldGap<'_>> = told[1..].iter().map(|data| self.read_gap(data)).collect();
        for (index, &offset) in offsets.iter().enumerate() {
            let says = self.told(index, offset);
            assert!(told[0].contains(&says), "reader {id}: opened with {}, and the last gap's id has {says}", told[0]);
            let room = self.ears.rooms()[index];
            let from = gaps.iter().find(|gap| gap.room == room).and_then(|gap| gap.from);
            let here = from.filter(|from| from.epoch == self.ears.position(0).epoch);
            self.ears.begins(index, here.map_or(offset, |from| from.offset), now, ledger);
        }
        for gap in &gaps {
            self.ears.gap(gap, now, ledger);
        }
        self.ears.expect_at(&offsets, "the last gap of the opening", ledger);
    }

    fn read_gap<'d>(&self, data: &'d str) -> ToldGap<'d> {
        let position = |key| self.ears.read_position(field(data, key, '"'));
        ToldGap {
            room: field(data, "\"topic\":\"room-", '"').parse().expect("a room"),
            from: Some(position("\"from\":\"")),
            to: position("\"to\":\""),
            until: data.contains("\"until\":").then(|| position("\"until\":\"")),
            reason: field(data, "\"reason\":\"", '"'),
        }
    }

    /// What the opening event says of a topic.
    fn told(&self, index: usize, offset: u64) -> String {
        format!("\"room-{}\":\"{}\"", self.ears.rooms()[index], self.ears.position(offset))
    }

    /// What it is and where, for who finds something wrong with it.
    pub(super) fn describe(&self) -> String {
        let life = self.life.as_ref().map(|life| (life.head.is_some(), life.opened, life.bye, life.heard, life.shut));
        format!(
            "{}: {:?}, life {} (awaits head, opened, bye, heard, shut: {life:?}), last ended by {:?}",
            self.ears.describe(),
            self.plan,
            self.lives,
            self.cut
        )
    }

    /// What it has not been given although it listens.
    pub(super) fn is_behind(&self, ledger: &Ledger) -> bool {
        self.is_open() && self.plan.reading == Reading::Greedy && self.ears.is_behind(ledger)
    }
}

/// The text between `key` and `end`.
fn field<'a>(data: &'a str, key: &str, end: char) -> &'a str {
    let from = data.find(key).unwrap_or_else(|| panic!("{data} has no {key}")) + key.len();
    let rest = &data[from..];
    &rest[..rest.find([end, '}']).unwrap_or(rest.len())]
}
