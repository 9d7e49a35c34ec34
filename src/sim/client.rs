//! A simulated client of one room: a WebSocket with a will and habits of its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::ears::stray;
use super::ledger::{Account, Ledger, Loss, MessageId};
use super::plan::{Begin, ClientPlan, Leaving, Reading, Wish};
use super::socket::{self, Ended, Heard, Shaken, Shaking, Socket};
use crate::engine::sim::{LinkId, World};
use crate::proto::position::{Epoch, Position};
use crate::time::Time;

/// The close code for messages that are missing.
pub(super) const LOST: u16 = 4510;
/// The close code for NATS that is not there, among others.
pub(super) const CUT_OFF: u16 = 4503;
/// The close code for what is no request of `shardcast.v1.json`.
pub(super) const BAD_MESSAGE: u16 = 4400;

enum Wire {
    Waiting,
    Shaking(Shaking),
    Open(Socket),
    Over,
}

/// One client.
pub(super) struct Client {
    pub(super) plan: ClientPlan,
    id: usize,
    epoch: Epoch,
    link: Option<LinkId>,
    wire: Wire,
    /// When it does something next.
    pub(super) next_at: Time,
    pub(super) ended: Option<Ended>,
    /// It has begun the close handshake.
    closing: bool,
    left: bool,
    /// Messages of `/echo` that have come back.
    echoed: usize,
    /// It neither reads nor writes any more, whatever comes.
    silent: bool,
    /// It was told that NATS is not there when it was.
    pub(super) cut_off: bool,
}

impl Client {
    pub(super) fn new(plan: ClientPlan, epoch: Epoch, ledger: &mut Ledger) -> Self {
        let id = ledger.accounts.len();
        let room = if let Wish::Room(room) = plan.wish { Some(room) } else { None };
        ledger.accounts.push(Account::new(room, plan.no_echo));
        Self {
            plan,
            id,
            epoch,
            link: None,
            wire: Wire::Waiting,
            next_at: Time::ZERO,
            ended: None,
            closing: false,
            left: false,
            echoed: 0,
            silent: false,
            cut_off: false,
        }
    }

    /// Whether it is connected and speaks WebSocket.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.wire, Wire::Open(_))
    }

    /// Whether it has nothing more to do, now or ever.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.wire, Wire::Over)
    }

    /// Whether it has said everything, and done what it does then.
    pub(super) fn is_done(&self, ledger: &Ledger) -> bool {
        self.is_over() || (self.is_open() && ledger.accounts[self.id].said.len() >= self.plan.messages && self.has_left())
    }

    fn has_left(&self) -> bool {
        self.plan.leaving == Leaving::Stays || self.left
    }

    /// Whether the server may end it without having been asked: it does not read, it breaks off, or its connection may break.
    pub(super) fn is_excused(&self) -> bool {
        self.left || self.plan.link.fragile || self.plan.reading != Reading::Greedy
    }

    /// Does the next thing; then `next_at` says when to come again.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let pause = self.pause(&mut world.borrow_mut());
        self.next_at = world.borrow().now + pause;
        match std::mem::replace(&mut self.wire, Wire::Over) {
            Wire::Waiting => self.connect(world, ledger),
            Wire::Shaking(shaking) => self.shaken(shaking.go_on(format_args!("client {}", self.id)), world, ledger),
            Wire::Open(socket) => {
                self.wire = Wire::Open(socket);
                self.talk(world, ledger);
            }
            Wire::Over => {}
        }
        let account = &mut ledger.accounts[self.id];
        let whole = self.is_open() && !self.left && !self.closing;
        account.listens = whole && self.plan.reading == Reading::Greedy;
        account.stays = account.listens && self.flushed();
    }

    fn flushed(&mut self) -> bool {
        match &mut self.wire {
            Wire::Open(socket) => socket.flush(),
            _ => false,
        }
    }

    fn pause(&self, world: &mut World) -> Duration {
        let micros = match self.plan.reading {
            Reading::Slow => world.choices.within(5_000..=60_000),
            _ => world.choices.within(0..=1500),
        };
        Duration::from_micros(micros as u64)
    }

    fn connect(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let Ok(link) = world.borrow_mut().connect(self.plan.shard, self.plan.link) else {
            self.ended = Some(Ended::Broken("connection refused"));
            return;
        };
        self.link = Some(link);
        let path = match self.plan.wish {
            Wish::Room(room) => {
                ledger.visit(room);
                let start = self.start(room, world, ledger);
                format!("/ws?room=room-{room}{}{start}", if self.plan.no_echo { "&echo=0" } else { "" })
            }
            _ => "/echo".to_owned(),
        };
        self.shaken(socket::ask(world, link, &path, (None, self.plan.offer), format_args!("client {}", self.id)), world, ledger);
    }

    /// What it says about where to begin.
    fn start(&self, room: usize, world: &Rc<RefCell<World>>, ledger: &mut Ledger) -> String {
        match self.plan.begin {
            Begin::Live => String::new(),
            Begin::Last(count) => format!("&last={count}"),
            Begin::Earliest => {
                // A stream has everything from the first message on.
                ledger.accounts[self.id].after = ledger.record.is_some().then_some(0);
                "&after=earliest".to_owned()
            }
            Begin::After { newest } => {
                let offset = ledger.known_offset(room, newest, &mut world.borrow_mut().choices);
                ledger.accounts[self.id].after = Some(offset);
                format!("&after={}", Position { epoch: self.epoch, offset })
            }
            Begin::Stray { restart } => format!("&after={}", stray(self.epoch, restart)),
        }
    }

    fn shaken(&mut self, shaken: Shaken, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        match shaken {
            Shaken::Open(socket) => {
                ledger.let_in(self.id);
                self.expect_the_past(world.borrow().now, ledger);
                self.wire = Wire::Open(socket);
            }
            Shaken::Waits(shaking) => self.wire = Wire::Shaking(shaking),
            Shaken::Failed(ended) => self.end(ended, world),
        }
    }

    fn end(&mut self, ended: Ended, world: &Rc<RefCell<World>>) {
        self.ended.get_or_insert(ended);
        self.wire = Wire::Over;
        if let Some(link) = self.link.take() {
            world.borrow_mut().client_close(link);
        }
    }

    fn talk(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        self.listen(world, ledger);
        if let Wire::Open(socket) = &mut self.wire {
            // What the stream did not take before.
            socket.flush();
        }
        if !self.is_open() || self.closing {
            return;
        }
        let said = ledger.accounts[self.id].said.len();
        if said < self.plan.messages {
            let speaks = world.borrow_mut().choices.chance(400);
            let count = world.borrow_mut().choices.of(&[1, 1, 1, 4, 25]).min(self.plan.messages - said);
            if speaks {
                (0..count).for_each(|_| self.speak(world, ledger));
            }
        } else if !self.has_left() && world.borrow_mut().choices.chance(100) {
            self.leave(world);
        }
    }

    fn speak(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let (bytes, text, fragments) = {
            let choices = &mut world.borrow_mut().choices;
            (choices.within(0..=self.plan.bytes_max), choices.chance(500), choices.of(&[1, 1, 1, 1, 2, 5]))
        };
        let said = ledger.say(self.id, bytes, text, world.borrow().now);
        let Wire::Open(socket) = &mut self.wire else { return };
        socket.say(&said, fragments);
    }

    fn leave(&mut self, world: &Rc<RefCell<World>>) {
        let (Wire::Open(socket), Some(link)) = (&mut self.wire, self.link) else { return };
        if !matches!(self.plan.leaving, Leaving::Closes) && !socket.flush() && world.borrow_mut().choices.chance(500) {
            return;
        }
        match self.plan.leaving {
            Leaving::Stays => {}
            Leaving::Closes => return self.close(),
            Leaving::Shuts => world.borrow_mut().client_shut(link),
            Leaving::Resets => {
                world.borrow_mut().client_reset(link);
                self.end(Ended::Left, world);
            }
            Leaving::Vanishes => self.end(Ended::Left, world),
        }
        self.left = true;
    }

    /// Falls silent for good: it is up to the gateway to be rid of it.
    pub(super) fn fall_silent(&mut self) {
        self.silent = true;
        self.left = true;
        self.next_at = Time::from_nanos(u64::MAX);
    }

    /// When it does something next. The answer to its handshake it reads at once: who is let in hears everything from then on.
    pub(super) fn due(&self, world: &World) -> Option<Time> {
        match (&self.wire, self.link) {
            (Wire::Over, _) => None,
            (Wire::Shaking(_), Some(link)) if world.readable(link) > 0 => Some(Time::ZERO),
            _ => Some(self.next_at),
        }
    }

    /// Whether it has fallen silent.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Begins the close handshake.
    pub(super) fn close(&mut self) {
        if let Wire::Open(socket) = &mut self.wire
            && !std::mem::replace(&mut self.closing, true)
        {
            self.left = true;
            self.plan.reading = Reading::Greedy;
            socket.close();
        }
    }

    /// Gives up what cannot be closed in good order: a client that is not open, or does not read.
    pub(super) fn give_up(&mut self, world: &Rc<RefCell<World>>) {
        if !self.is_over() {
            self.left = true;
            self.end(Ended::Left, world);
        }
    }

    fn listen(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let most = match self.plan.reading {
            Reading::Greedy => usize::MAX,
            Reading::Slow => 2,
            Reading::DeafAfter(count) => count.saturating_sub(ledger.accounts[self.id].heard.len() + self.echoed),
        };
        for _ in 0..most {
            let Wire::Open(socket) = &mut self.wire else { return };
            match socket.read(format_args!("client {}", self.id)) {
                Heard::Text(text) => self.hear(ledger, true, text.as_bytes()),
                Heard::Binary(bytes) => self.hear(ledger, false, &bytes),
                Heard::Close(code) => {
                    self.closing = true;
                    if code == Some(LOST) {
                        self.lose(world.borrow().now, ledger);
                    }
                    if code == Some(CUT_OFF) {
                        self.cut_off = !ledger.excuses(world.borrow().now);
                    }
                    self.ended = Some(Ended::Closed(code));
                }
                Heard::Sign => {}
                Heard::Nothing => return,
                Heard::Ended(ended) => return self.end(ended, world),
            }
        }
    }

    /// What it has asked for of the time before it came, and does not get, must not be kept any more.
    fn expect_the_past(&self, now: Time, ledger: &mut Ledger) {
        let most = match self.plan.begin {
            Begin::Last(count) => u64::from(count),
            Begin::Earliest => u64::MAX,
            // Where these go on is known beforehand, or not asked for.
            Begin::Live | Begin::After { .. } | Begin::Stray { .. } => return,
        };
        if let Wish::Room(room) = self.plan.wish {
            let what = format!("client {} begins with {:?}", self.id, self.plan.begin);
            ledger.lose(Loss::before_all_of(self.id, room, now, what).of_at_most(most));
        }
    }

    /// It is told that messages are missing after what it has heard.
    fn lose(&self, now: Time, ledger: &mut Ledger) {
        ledger.gaps += 1;
        let id = self.id;
        let Wish::Room(room) = self.plan.wish else { panic!("client {id} has no room, and is told that messages are missing") };
        match self.plan.begin {
            Begin::Live => panic!("client {id} has asked for nothing from before, and is told that some is missing"),
            // There is nothing after such a position.
            Begin::Stray { .. } => {}
            Begin::After { .. } | Begin::Last(_) | Begin::Earliest => {
                assert!(ledger.record.is_none(), "client {id} ({:?}) is told that messages are missing", self.plan.begin);
                // It was given all that lies before what is missing; its own messages, which it may have left out, lie behind the lowest place for that.
                let missing = ledger.next_offset(id);
                let what = format!("client {id} ({:?}) is told that messages from {missing} on are missing", self.plan.begin);
                ledger.lose(Loss::new(room, missing, now, what));
            }
        }
    }

    fn hear(&mut self, ledger: &mut Ledger, text: bool, payload: &[u8]) {
        if let Wish::Room(_) = self.plan.wish {
            let strays = matches!(self.plan.begin, Begin::Stray { .. });
            assert!(!strays, "client {} comes with a position that is none of its room's, and hears messages", self.id);
            return ledger.hear(self.id, text, payload);
        }
        let said = ledger.accounts[self.id].said.get(self.echoed);
        assert!(
            said.is_some_and(|said| said.text == text && said.payload == payload),
            "client {}: echo {} is not what was said",
            self.id,
            self.echoed
        );
        self.echoed += 1;
    }

    /// What it has heard of its room.
    pub(super) fn heard<'l>(&self, ledger: &'l Ledger) -> &'l [MessageId] {
        &ledger.accounts[self.id].heard
    }

    /// Whether all its echoes have come back, if it waits for some.
    pub(super) fn is_answered(&self, ledger: &Ledger) -> bool {
        let account = &ledger.accounts[self.id];
        self.plan.wish != Wish::Echo || !account.listens || !account.stays || self.echoed == account.said.len()
    }
}
