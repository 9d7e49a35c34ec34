//! The storm: very many event streams are lost at one moment, without a goodbye, and come back. Real gateways over a kernel that takes everything at once:
//! what is looked at is when clients come, and who is let in.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use super::shards::{Shards, ShardsPlan};
use crate::engine::sim::{Chaos, Choices, LinkId, LinkOptions, SimRingSize, World};
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::time::Time;

/// What clients know of when to come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obeys {
    /// They come when they were told to, while all was well or by a refusal.
    Hints,
    /// They come at once, and after a refusal when that told them to.
    Refusals,
    /// They come at once, and again a second after each refusal.
    Nothing,
}

impl Obeys {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hints, Self::Refusals, Self::Nothing];
}

/// A storm to be simulated.
#[derive(Clone, Copy, Debug)]
pub struct StormPlan {
    /// Event streams that are lost.
    pub clients: usize,
    /// Shards that have them.
    pub shards: u16,
    /// `limits.handshakes_per_second`.
    pub per_second: u64,
    /// What they know.
    pub obeys: Obeys,
}

/// What came of it, in slots of 100 ms from the moment on at which all were lost.
#[derive(Clone, Debug, Default)]
pub struct Storm {
    /// Clients that came.
    pub arrivals: Vec<u64>,
    /// Clients that were turned away.
    pub refusals: Vec<u64>,
    /// Clients that were let in.
    pub returns: Vec<u64>,
    /// When the last one was back; none when that took more than ten minutes.
    pub all_back: Option<Duration>,
    /// The most times that one client was turned away.
    pub refusals_of_one: u32,
}

impl Storm {
    /// What breaks a rule: a sentence each.
    pub fn findings(&self, plan: &StormPlan) -> Vec<String> {
        let mut findings = Vec::new();
        let at_once = match plan.obeys {
            Obeys::Hints => 0,
            // Nobody could tell the crowd anything before it came.
            Obeys::Refusals => 1,
            Obeys::Nothing => return findings,
        };
        let budget = plan.per_second.div_ceil(10);
        let most = self.arrivals.iter().skip(at_once).copied().max().unwrap_or(0);
        if most > budget {
            findings.push(format!("{most} clients came in 100 ms; the budget is {budget}"));
        }
        let bound = plan.back_within();
        if self.all_back.is_none_or(|time| time > bound) {
            findings.push(format!("the last client was back after {:?}; {bound:?} is the bound", self.all_back));
        }
        findings
    }

    /// The most in 100 ms over the mean up to the last one: 1 is even.
    pub fn peak(&self) -> f64 {
        let all: u64 = self.arrivals.iter().sum();
        let most = self.arrivals.iter().copied().max().unwrap_or(0);
        if all == 0 { 0.0 } else { most as f64 * self.arrivals.len() as f64 / all as f64 }
    }
}

impl StormPlan {
    /// Twice the window in which all are asked to come back: whoever is turned away once more waits once more.
    pub fn back_within(&self) -> Duration {
        2 * Duration::from_millis(self.limits().return_window_ms(self.clients as u64, self.shards))
    }

    fn limits(&self) -> Limits {
        Limits { connections_max: u64::MAX, queued_bytes_max: u64::MAX, handshakes_per_second: self.per_second, ..Limits::default() }
    }

    /// Simulates it.
    ///
    /// # Panics
    /// If a client that comes gently is not let in, or is answered anything but a stream.
    pub fn run(self) -> Storm {
        let mut crowd = Returning::new(self);
        crowd.open();
        crowd.lose_all();
        crowd.come_back()
    }
}

/// Clients come, and answers are looked at, once in so long.
const SLICE: Duration = Duration::from_millis(10);
/// Slots of the result.
const SLOT_MS: u64 = 100;
/// A client that obeys nothing comes again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// Clients in one room.
const ROOM: usize = 1000;
/// For a simulation that gets nowhere.
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Clone, Copy)]
struct Client {
    /// Its connection, while it has one.
    link: Option<LinkId>,
    retry_ms: u64,
    refusals: u32,
}

struct Returning {
    plan: StormPlan,
    world: Rc<RefCell<World>>,
    shards: Shards,
    clients: Vec<Client>,
    /// Who comes when.
    calendar: BinaryHeap<Reverse<(Time, usize)>>,
    /// Who has come and was not answered.
    waiting: Vec<usize>,
    inside: usize,
    random: fastrand::Rng,
    begun: Time,
    storm: Storm,
    bytes: Vec<u8>,
}

impl Returning {
    fn new(plan: StormPlan) -> Self {
        let world = Rc::new(RefCell::new(World::new(Choices::seeded(1), Chaos::CALM)));
        let shards = ShardsPlan {
            shards: plan.shards,
            limits: plan.limits(),
            slow: Default::default(),
            features: Default::default(),
            ring: SimRingSize::default(),
            seed: 1,
        };
        let shards = Shards::start(&shards, &world);
        let begun = world.borrow().now;
        Self {
            plan,
            world,
            shards,
            clients: vec![Client { link: None, retry_ms: 0, refusals: 0 }; plan.clients],
            calendar: BinaryHeap::new(),
            waiting: Vec::new(),
            inside: 0,
            random: fastrand::Rng::with_seed(1),
            begun,
            storm: Storm::default(),
            bytes: vec![0; 64 << 10],
        }
    }

    fn now(&self) -> Time {
        self.world.borrow().now
    }

    /// All come for the first time, no faster than they may, and stay until whoever came early was told anew.
    fn open(&mut self) {
        let gentle = self.plan.limits().return_rate(self.plan.shards) as f64;
        let begun = self.now();
        self.calendar
            .extend((0..self.plan.clients).map(|client| Reverse((begun + Duration::from_secs_f64(client as f64 / gentle), client))));
        while self.inside < self.plan.clients {
            self.pass();
        }
        assert_eq!(self.storm.refusals.iter().sum::<u64>(), 0, "who comes gently is let in");
        if self.plan.obeys == Obeys::Hints {
            let told = self.now() + Duration::from_millis(2 * self.plan.limits().sse_heartbeat_ms);
            while self.now() < told {
                self.pass();
            }
        }
        for client in 0..self.clients.len() {
            self.read(client);
        }
    }

    fn lose_all(&mut self) {
        self.storm = Storm::default();
        self.begun = self.now();
        self.inside = 0;
        for (number, client) in self.clients.iter_mut().enumerate() {
            let link = client.link.take().expect("everybody is inside");
            self.world.borrow_mut().client_reset(link);
            self.world.borrow_mut().client_close(link);
            let wait = if self.plan.obeys == Obeys::Hints { Duration::from_millis(client.retry_ms) } else { Duration::ZERO };
            self.calendar.push(Reverse((self.begun + wait, number)));
        }
    }

    fn come_back(mut self) -> Storm {
        while self.inside < self.clients.len() && self.now().since(self.begun) < LONGEST {
            self.pass();
        }
        self.storm.all_back = (self.inside == self.clients.len()).then(|| self.now().since(self.begun));
        self.storm.refusals_of_one = self.clients.iter().map(|client| client.refusals).max().unwrap_or(0);
        self.storm
    }

    /// Lets a little time pass.
    fn pass(&mut self) {
        let now = self.now();
        while self.calendar.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, client))) = self.calendar.pop() else { break };
            self.come(client);
        }
        self.shards.run_until(SLICE, |_| false);
        let waiting = std::mem::take(&mut self.waiting);
        for client in waiting {
            self.look(client);
        }
    }

    fn slot(&self) -> usize {
        (self.now().since(self.begun).as_millis() as u64 / SLOT_MS) as usize
    }

    fn come(&mut self, client: usize) {
        let shard = ShardId(self.random.u16(..self.plan.shards));
        let request = format!("GET /events?topic=room-{} HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n\r\n", client / ROOM);
        let mut world = self.world.borrow_mut();
        let link = world.connect(shard, LinkOptions::default()).expect("the listener is open");
        assert_eq!(world.client_write(link, request.as_bytes()).ok(), Some(request.len()), "a new connection has room");
        drop(world);
        self.clients[client].link = Some(link);
        self.waiting.push(client);
        let slot = self.slot();
        count(&mut self.storm.arrivals, slot);
    }

    /// Reads what has come, and takes the newest `retry:` in it.
    fn read(&mut self, client: usize) -> &[u8] {
        let Some(link) = self.clients[client].link else { return &[] };
        let read = self.world.borrow_mut().client_read(link, &mut self.bytes).unwrap_or(0);
        let bytes = &self.bytes[..read];
        if let Some(at) = memchr::memmem::rfind(bytes, RETRY) {
            let digits = bytes[at + RETRY.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            self.clients[client].retry_ms = digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        }
        bytes
    }

    /// Looks whether somebody who came was answered.
    fn look(&mut self, client: usize) {
        let answer = self.read(client);
        let has = |what: &[u8]| memchr::memmem::find(answer, what).is_some();
        let (opened, refused) = (has(b"event: shardcast:open\n"), has(b"event: shardcast:bye\n"));
        assert!(opened || refused || answer.is_empty(), "an answer comes whole, in a stream: {:?}", answer.escape_ascii().to_string());
        let (now, slot) = (self.now(), self.slot());
        if opened {
            self.inside += 1;
            count(&mut self.storm.returns, slot);
        } else if refused {
            count(&mut self.storm.refusals, slot);
            let Client { link, retry_ms, refusals } = &mut self.clients[client];
            *refusals += 1;
            let wait = if self.plan.obeys == Obeys::Nothing { AGAIN } else { Duration::from_millis(*retry_ms) };
            self.calendar.push(Reverse((now + wait, client)));
            if let Some(link) = link.take() {
                self.world.borrow_mut().client_close(link);
            }
        } else {
            self.waiting.push(client);
        }
    }
}

const RETRY: &[u8] = b"retry: ";

/// One more in a slot.
fn count(slots: &mut Vec<u64>, slot: usize) {
    if slots.len() <= slot {
        slots.resize(slot + 1, 0);
    }
    slots[slot] += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_too_many_at_once_and_too_late() {
        let plan = StormPlan { clients: 1000, shards: 2, per_second: 100, obeys: Obeys::Hints };
        assert_eq!(plan.back_within(), Duration::from_secs(25));
        let good = Storm { arrivals: vec![10, 9], all_back: Some(Duration::from_secs(25)), ..Storm::default() };
        assert_eq!(good.findings(&plan), Vec::<String>::new());
        let late = Storm { all_back: Some(Duration::from_secs(26)), ..good.clone() };
        assert_eq!((late.findings(&plan).len(), Storm { all_back: None, ..good.clone() }.findings(&plan).len()), (1, 1));
        let crowded = Storm { arrivals: vec![11, 1], ..good };
        assert_eq!(crowded.findings(&plan), ["11 clients came in 100 ms; the budget is 10"]);
        assert!(crowded.findings(&StormPlan { obeys: Obeys::Refusals, ..plan }).is_empty(), "the first ones were told nothing");
        assert!((crowded.peak() - 22.0 / 12.0).abs() < 1e-9);
    }
}
