//! A simulated publisher over HTTP: one message after the other, each answered with its position. With idempotency keys it says again what was not
//! answered, and sometimes what was.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;

use super::exchange::{Answer, Exchange, Progress};
use super::ledger::{Account, Ledger, MessageId, Said};
use super::plan::PosterPlan;
use super::{LET_IN_WITHIN, SERVED_WITHIN};
use crate::engine::sim::World;
use crate::proto::position::{Epoch, Position};
use crate::time::Time;

/// How many keys the messages of a publisher have whose messages replace each other.
const VALUES: u16 = 2;

/// How long the gateway waits at most until a message was sent to everyone.
const SENT_WITHIN: Duration = Duration::from_secs(5);
/// How often it lets itself be refused for want of room.
const REFUSALS_MAX: usize = 5;
/// What a request may take longer for each of its bytes: buffers may be tiny.
const BYTE: Duration = Duration::from_micros(50);

#[derive(Deserialize)]
struct Receipt<'a> {
    pos: &'a str,
    subscribers: u64,
    #[serde(default)]
    duplicate: bool,
}

/// The message that it is about.
struct Current {
    said: Said,
    number: u16,
    /// How often it was sent.
    sent: u32,
    /// Its position, once it was answered: then this is a repeat.
    offset: Option<u64>,
}

/// One publisher.
pub(super) struct Poster {
    pub(super) plan: PosterPlan,
    account: usize,
    epoch: Epoch,
    exchange: Option<Exchange>,
    asked_at: Option<Time>,
    /// Its connection has been answered before.
    let_in: bool,
    /// A message was not kept, or may not have been, and it goes on with the next.
    gave_up: bool,
    current: Option<Current>,
    pub(super) next_at: Time,
    over: bool,
    refusals_left: usize,
    /// How many subscribers its messages must be sent to, where that is known.
    pub(super) expects: Option<RangeInclusive<u64>>,
    /// Repeats that were answered.
    pub(super) repeats: u64,
}

impl Poster {
    pub(super) fn new(plan: PosterPlan, epoch: Epoch, ledger: &mut Ledger) -> Self {
        let account = ledger.accounts.len();
        ledger.accounts.push(Account::new(Some(plan.room), false));
        Self {
            plan,
            account,
            epoch,
            exchange: None,
            asked_at: None,
            let_in: false,
            gave_up: false,
            current: None,
            next_at: Time::ZERO,
            over: false,
            refusals_left: REFUSALS_MAX,
            expects: None,
            repeats: 0,
        }
    }

    /// Whether it has said everything and was answered, or has given up.
    pub(super) fn is_done(&self, ledger: &Ledger) -> bool {
        self.over || (self.current.is_none() && ledger.accounts[self.account].said.len() >= self.plan.messages)
    }

    /// The first message that it has said.
    pub(super) fn said(&self) -> MessageId {
        MessageId { speaker: self.account as u16, number: 0 }
    }

    /// Does the next thing. In a gentle world (`served`) every request is answered in time, and unless its connection breaks with its position.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let pause = world.borrow_mut().choices.within(0..=3000) as u64;
        self.next_at = world.borrow().now + Duration::from_micros(pause);
        if self.is_done(ledger) {
            self.next_at = Time::from_nanos(u64::MAX);
        } else if self.exchange.is_none() {
            self.exchange = Exchange::connect(world, self.plan.shard, self.plan.link);
            self.over = self.exchange.is_none();
        } else if self.asked_at.is_none() {
            self.ask(world, ledger);
        } else {
            self.await_answer(world, ledger, served);
        }
        // What it was not answered for may never have come to its topic.
        ledger.accounts[self.account].stays = self.current.is_none() && !self.gave_up;
    }

    fn ask(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let now = world.borrow().now;
        let PosterPlan { room, ack, bytes_max, .. } = self.plan;
        let current = self.current.get_or_insert_with(|| {
            let choices = &mut world.borrow_mut().choices;
            let (bytes, text) = (choices.within(0..=bytes_max), choices.chance(500));
            let number = ledger.accounts[self.account].said.len() as u16;
            let said = ledger.say(self.account, bytes, text, now);
            if self.plan.values {
                ledger.has_key(self.account, number % VALUES);
            }
            Current { said, number, sent: 0, offset: None }
        });
        current.sent += 1;
        let kind = if current.said.text { "text/plain" } else { "application/octet-stream" };
        let (length, number) = (current.said.payload.len(), current.number);
        let key = if self.plan.keys { format!("Idempotency-Key: {}-{number}\r\n", self.account) } else { String::new() };
        let value = if self.plan.values { format!("&key=k{}", number % VALUES) } else { String::new() };
        let head = format!(
            "POST /publish?topic=room-{room}&ack={ack}{value} HTTP/1.1\r\nHost: gateway\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{key}\r\n"
        );
        self.asked_at = Some(now);
        if let Some(exchange) = &mut self.exchange {
            exchange.ask(&head, &current.said.payload);
        }
    }

    fn await_answer(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let (Some(exchange), Some(current), Some(asked_at)) = (&mut self.exchange, &self.current, self.asked_at) else { return };
        let progress = exchange.go_on(world);
        let now = world.borrow().now;
        match progress {
            Progress::Waits => {
                let entry = if self.let_in { Duration::ZERO } else { LET_IN_WITHIN };
                let patience = entry + SENT_WITHIN + SERVED_WITHIN + BYTE * current.said.payload.len() as u32;
                let waited = now.since(asked_at);
                assert!(!served || waited < patience, "{} is not answered in {waited:?}", self.describe());
            }
            Progress::Ended => {
                assert!(!served || self.plan.link.fragile, "{} is not answered, and its connection has ended", self.describe());
                self.hang_up(world);
                // Without a key it cannot say again what may be there already.
                self.over |= !self.plan.keys;
            }
            Progress::Answered(answer) => {
                self.asked_at = None;
                self.let_in = true;
                match answer.status {
                    200 => self.take(&answer, ledger, &mut world.borrow_mut()),
                    // Not published: it says it again.
                    429 => self.next_at = now + Duration::from_millis(20),
                    // The stream may have it: without a key it cannot be said again.
                    503 if !served && !self.plan.keys && answer.says("nats_unanswered") => self.give_one_up(),
                    503 | 408 if !served => {
                        self.next_at = now + Duration::from_millis(20);
                        self.refusals_left = self.refusals_left.saturating_sub(usize::from(!ledger.excuses(now)));
                        self.over |= self.refusals_left == 0;
                    }
                    // The stream does not take it, and never will.
                    502 if ledger.excuses(now) => self.give_one_up(),
                    status => panic!("{} is answered {status}: {}", self.describe(), String::from_utf8_lossy(&answer.body)),
                }
                if answer.closes {
                    self.hang_up(world);
                }
            }
        }
    }

    fn take(&mut self, answer: &Answer, ledger: &mut Ledger, world: &mut World) {
        let who = self.describe();
        let text = String::from_utf8_lossy(&answer.body);
        let receipt: Receipt<'_> = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{who}: {error}: {text}"));
        let position = Position::parse(receipt.pos).unwrap_or_else(|error| panic!("{who}: {error}: {text}"));
        assert!(position.epoch == self.epoch, "{who}: another epoch: {text}");
        let Some(current) = &mut self.current else { return };
        let id = MessageId { speaker: self.account as u16, number: current.number };
        ledger.place(self.plan.room, position.offset, id);
        ledger.check_subscribers(self.plan.room, receipt.subscribers, &who);
        let expected = self.expects.as_ref().is_none_or(|expects| expects.contains(&receipt.subscribers));
        assert!(expected, "{who} is told of {} subscribers instead of {:?}", receipt.subscribers, self.expects);
        // The gateway itself may have had to say it again.
        let again = current.sent > 1 || ledger.excuses(world.now);
        assert!(!receipt.duplicate || again, "{who}: said once and called a duplicate: {text}");
        let repeated = current.offset.replace(position.offset);
        assert!(repeated.is_none() || receipt.duplicate, "{who}: was published before at {repeated:?}, and is again: {text}");
        self.repeats += u64::from(repeated.is_some());
        if !(self.plan.repeats && world.choices.chance(200)) {
            self.current = None;
        }
    }

    fn hang_up(&mut self, world: &Rc<RefCell<World>>) {
        self.asked_at = None;
        self.let_in = false;
        if let Some(exchange) = self.exchange.take() {
            exchange.close(world, false);
        }
    }

    fn give_one_up(&mut self) {
        (self.gave_up, self.current) = (true, None);
    }

    /// Goes for good.
    pub(super) fn give_up(&mut self, world: &Rc<RefCell<World>>) {
        self.hang_up(world);
        self.over = true;
    }

    /// What it is and where, for who finds something wrong with it.
    pub(super) fn describe(&self) -> String {
        let current = self.current.as_ref().map(|current| (current.number, current.sent, current.offset));
        format!("publisher {} {:?} with message (number, times sent, offset) {current:?}", self.account, self.plan)
    }
}
