//! A simulated long poll: one to four topics, each request with the `next` of the answer before, over connections that are kept or broken off.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;

use super::SERVED_WITHIN;
use super::ears::{Ears, ToldGap};
use super::exchange::{Answer, Exchange, Progress};
use super::ledger::Ledger;
use super::plan::{Begin, PollerPlan};
use super::words::{Entry, payload, room_of};
use crate::engine::sim::World;
use crate::ids::ShardId;
use crate::proto::position::Epoch;
use crate::time::Time;

/// How often it lets itself be refused.
const REFUSALS_MAX: usize = 5;
/// What an answer may take longer for each of its bytes: buffers may be tiny.
const BYTE: Duration = Duration::from_micros(50);

#[derive(Deserialize)]
struct Answered<'a> {
    #[serde(borrow)]
    messages: Vec<Entry<'a>>,
    next: String,
}

/// One poller.
pub(super) struct Poller {
    pub(super) plan: PollerPlan,
    id: usize,
    shards: u16,
    exchange: Option<Exchange>,
    /// When it has asked; none while it does not wait for an answer.
    pub(super) asked_at: Option<Time>,
    pub(super) next_at: Time,
    ears: Ears,
    /// Where the next request goes on.
    next: String,
    /// Its last request was answered.
    served: bool,
    over: bool,
    breaks_left: usize,
    refusals_left: usize,
    /// Answers so far.
    pub(super) answers: u64,
}

impl Poller {
    pub(super) fn new(id: usize, plan: PollerPlan, epoch: Epoch, shards: u16) -> Self {
        let ears = Ears::new(format!("poller {id}"), plan.topics(), plan.begin, epoch);
        Self {
            plan,
            id,
            shards,
            exchange: None,
            asked_at: None,
            next_at: Time::ZERO,
            ears,
            next: String::new(),
            served: false,
            over: false,
            breaks_left: plan.breaks,
            refusals_left: REFUSALS_MAX,
            answers: 0,
        }
    }

    /// Whether it has gone for good.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Does the next thing. In a gentle world (`served`) every request is answered in time.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let pause = world.borrow_mut().choices.within(0..=1500) as u64;
        self.next_at = world.borrow().now + Duration::from_micros(pause);
        if self.exchange.is_none() {
            let shard = ShardId(world.borrow_mut().choices.below(self.shards.into()) as u16);
            self.exchange = Exchange::connect(world, shard, self.plan.link);
            self.over = self.exchange.is_none();
            self.ears.rooms().iter().for_each(|&room| ledger.visit(room));
            return;
        }
        if self.asked_at.is_none() {
            self.ask(world, ledger);
        }
        if self.breaks_left > 0 && world.borrow_mut().choices.chance(20) {
            self.breaks_left -= 1;
            return self.hang_up(world, ledger);
        }
        let Some(exchange) = &mut self.exchange else { return };
        let (progress, now) = (exchange.go_on(world), world.borrow().now);
        let waited = self.asked_at.map_or(Duration::ZERO, |at| now.since(at));
        match progress {
            Progress::Waits => {
                // How long it takes to be let in is another matter.
                let patience = self.plan.wait + SERVED_WITHIN + BYTE * ledger.bytes_to_deliver().min(1 << 20) as u32;
                let late = served && self.served && waited > patience;
                assert!(!late, "{}: no answer after {waited:?}, {:?}", self.ears.describe(), self.plan);
            }
            Progress::Ended => {
                assert!(!served || self.plan.link.fragile, "{}: the connection ended without an answer", self.ears.describe());
                self.hang_up(world, ledger);
            }
            Progress::Answered(answer) => {
                self.asked_at = None;
                self.served = answer.status == 200;
                assert!(self.served || !served, "{}: answered {}", self.ears.describe(), answer.status);
                // Full, or with nothing new: it has patience, and not without end.
                if !self.served {
                    self.next_at = now + Duration::from_millis(50);
                    self.refusals_left = self.refusals_left.saturating_sub(usize::from(!ledger.excuses(now)));
                } else if !self.take(&answer, now, served.then_some(waited), ledger) {
                    self.next_at = now + Duration::from_millis(20);
                }
                if self.refusals_left == 0 {
                    return self.give_up(world, ledger);
                }
                if answer.closes {
                    self.hang_up(world, ledger);
                }
            }
        }
        self.ears.tell(self.served, ledger);
    }

    fn ask(&mut self, world: &Rc<RefCell<World>>, ledger: &Ledger) {
        let start = match self.next.is_empty() {
            true => self.ears.start(ledger, &mut world.borrow_mut().choices),
            false => format!("&after={}", self.next),
        };
        let limit = self.plan.limit.map_or(String::new(), |limit| format!("&limit={limit}"));
        let (query, wait) = (self.ears.query(), self.plan.wait.as_secs());
        let head = format!("GET /poll?{query}{start}&wait={wait}{limit} HTTP/1.1\r\nHost: gateway\r\n\r\n");
        self.asked_at = Some(world.borrow().now);
        if let Some(exchange) = &mut self.exchange {
            exchange.ask(&head, &[]);
        }
    }

    fn hang_up(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let resets = world.borrow_mut().choices.chance(500);
        if let Some(exchange) = self.exchange.take() {
            exchange.close(world, resets);
        }
        self.served = false;
        self.asked_at = None;
        self.ears.tell(false, ledger);
    }

    /// Goes for good.
    pub(super) fn give_up(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        self.hang_up(world, ledger);
        self.over = true;
    }

    /// Takes an answer; `waited` is how long it took, where that was not cut short by a shutdown. Whether there was something in it.
    fn take(&mut self, answer: &Answer, now: Time, waited: Option<Duration>, ledger: &mut Ledger) -> bool {
        let id = self.id;
        self.answers += 1;
        let text = String::from_utf8_lossy(&answer.body);
        let answered: Answered<'_> = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("poller {id}: {error}: {text}"));
        let many = self.plan.limit.is_some_and(|limit| answered.messages.iter().filter(|entry| entry.pos.is_some()).count() as u64 > limit);
        assert!(!many, "poller {id}: more messages than it has asked for: {text}");
        let early = answered.messages.is_empty() && waited.is_some_and(|waited| waited < self.plan.wait);
        assert!(!early, "poller {id}: nothing after {waited:?} instead of {:?}", self.plan.wait);
        for entry in &answered.messages {
            let room = room_of(entry.topic).unwrap_or_else(|| panic!("poller {id}: hears of topic {}", entry.topic));
            match (entry, &entry.gap) {
                (Entry { pos: None, .. }, Some(gap)) => {
                    let from = gap.from.map(|from| self.ears.read_position(from));
                    if self.next.is_empty()
                        && let Some(from) = from.filter(|from| *from == self.ears.position(from.offset))
                    {
                        self.ears.begins(self.ears.index_of(room), from.offset, now, ledger);
                    }
                    self.ears.gap(
                        &ToldGap { room, from, to: self.ears.read_position(gap.to), until: None, reason: gap.reason },
                        now,
                        ledger,
                    );
                }
                (Entry { pos: Some(pos), data, data_b64, .. }, None) => {
                    let (index, position) = (self.ears.index_of(room), self.ears.read_position(pos));
                    assert!(position == self.ears.position(position.offset), "poller {id}: another epoch: {text}");
                    if self.next.is_empty() {
                        self.ears.begins_before(index, position.offset, now, ledger);
                    }
                    let said = payload(data.as_deref(), *data_b64);
                    let (is_text, payload) = said.unwrap_or_else(|| panic!("poller {id}: neither text nor bytes: {text}"));
                    self.ears.hear(index, position.offset, is_text, &payload, ledger);
                }
                _ => panic!("poller {id}: neither a message nor a gap: {text}"),
            }
        }
        let offsets = self.ears.read_cursor(&answered.next);
        if self.next.is_empty() {
            for (index, &offset) in offsets.iter().enumerate() {
                self.ears.begins(index, offset, now, ledger);
            }
        }
        self.ears.expect_at(&offsets, "an answer", ledger);
        self.next = answered.next;
        !answered.messages.is_empty()
    }

    /// What it has not been given although it asks for it: always (`served`), or where it was answered on this connection.
    pub(super) fn is_behind(&self, ledger: &Ledger, served: bool) -> bool {
        // Before its first answer it begins with whatever comes next.
        let begun = !self.next.is_empty() || matches!(self.plan.begin, Begin::After { .. } | Begin::Stray { .. });
        !self.over && begun && (served || self.served) && self.ears.is_behind(ledger)
    }

    /// What it is and where, for who finds something wrong with it.
    pub(super) fn describe(&self) -> String {
        format!("{}: {:?}, after {} answers, asked at {:?}", self.ears.describe(), self.plan, self.answers, self.asked_at)
    }
}
