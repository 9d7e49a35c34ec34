//! Whole gateways from a seed: real shards over a kernel in memory, clients with a foreign codec, and an oracle.
//!
//! [`run`] draws a [`Plan`] (bounds, faults, rooms, clients), runs it, and checks what everybody heard and what is left at the end. It
//! panics where a rule is broken, whoever notices it: the oracle, the simulated kernel, an assertion of the gateway. The same choices give the same run.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | what a simulation consists of |
//! | `shards`, `takeover` | gateways over simulated kernels; how another process goes on with what they have |
//! | `client`, `reader`, `poller`, `poster`, `stranger` | who connects |
//! | `talker` | who connects and speaks `shardcast.v1.json` |
//! | `socket`, `squeeze`, `stream`, `exchange`, `words` | how they speak: WebSockets, compressed ones, bytes, requests by HTTP, JSON |
//! | `epilogue` | those who come back when everything has been said |
//! | `ears` | where a reader with a cursor is in each topic |
//! | `ledger` | who said and heard what: the oracle |
//! | `nats`, `record` | a link to NATS in one of five, where a stream gives messages their places; what it has, for the oracle |
//! | `storm` | very many streams that are lost at once and come back |
//! | `crowd`, `border` | very many clients, and a kernel that can be left out: for measurements |
#![forbid(unsafe_code)]

mod border;
mod client;
mod crowd;
mod ears;
mod epilogue;
mod exchange;
mod ledger;
mod nats;
mod plan;
mod poller;
mod poster;
mod reader;
mod record;
mod shards;
mod socket;
mod squeeze;
mod storm;
mod stranger;
mod stream;
mod takeover;
mod talker;
mod words;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

pub use border::{Border, Bordered};
pub use crowd::Crowd;
pub use nats::{Fault, NatsPlan, OtherPlan};
pub use plan::{Begin, ClientPlan, End, Epilogue, Interlude, Leaving, Plan, PollerPlan, PosterPlan, ReaderPlan, Reading, TalkerPlan, Wish};
pub use shards::{Features, Shards, ShardsPlan};
pub use storm::{Obeys, Storm, StormPlan};

use self::client::{BAD_MESSAGE, CUT_OFF, Client, LOST};
use self::ledger::{Kept, Ledger};
use self::nats::Nats;
use self::poller::Poller;
use self::poster::Poster;
use self::reader::{Cut, Reader};
use self::socket::Ended;
use self::stranger::Stranger;
use self::talker::{About, Talker};
use crate::engine::sim::{Choices, World};
use crate::gateway::Holdings;
use crate::gateway::close_cause::CloseCause;
use crate::ids::ShardId;
use crate::time::Time;

/// How long, in the simulation's time, until everybody who reads has heard everything, besides a microsecond for each byte to be delivered: buffers may be tiny.
const SERVED_WITHIN: Duration = Duration::from_secs(3);
/// How long until nothing is wrong with the link to NATS any more: longer than any fault.
const CALM_WITHIN: Duration = Duration::from_secs(60);
/// The same for everybody to be let in: accepting pauses half a second whenever descriptors seem to have run out.
const LET_IN_WITHIN: Duration = Duration::from_secs(60);
/// How long a client may take to say what it has to say.
const TALK: Duration = Duration::from_secs(60);
/// How long until nothing is left of clients that have gone or fallen silent: a ping and its answer, lingering, and the sweep that gives memory back.
const GONE_WITHIN: Duration = Duration::from_secs(90);
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(10);
/// How soon shards that are frozen are still: nobody outside can keep them from it.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(10);
/// How many of a million are told to come back in a rebalance, and over how long.
const REBALANCED_PPM: u32 = 400_000;
const REBALANCE: Duration = Duration::from_millis(20);
/// Nothing inside the gateway is due sooner: as long as a shard may wait for room in another one's queue without being woken.
const POLL: Duration = Duration::from_millis(2);
/// Turns of the scheduler in one phase: more means that somebody runs in circles.
const TURNS_MAX: u64 = 20_000_000;

/// What happened in a simulation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Steps of shards.
    pub steps: u64,
    /// Messages that members of rooms heard.
    pub heard: u64,
    /// Gaps that were told, by an event or by a close frame.
    pub gaps: u64,
    /// Connections of readers of event streams.
    pub streams: u64,
    /// Answers to polls.
    pub polls: u64,
    /// Connections of clients of `shardcast.v1.json`.
    pub talks: u64,
    /// Messages that clients sent compressed.
    pub inflated: u64,
    /// Messages that were compressed for clients.
    pub deflated: u64,
    /// Messages that were published again with their idempotency key.
    pub repeats: u64,
    /// Messages that clients said.
    pub said: u64,
    /// Connections that ended, by cause.
    pub closes: Vec<u64>,
    /// Wake-ups between shards.
    pub wakes: u64,
    /// Times that a connection waited for a receive buffer.
    pub starved: u64,
    /// Times that accepting paused.
    pub accept_paused: u64,
    /// Times that a publisher was made to wait.
    pub publishers_paused: u64,
    /// Nanoseconds that passed.
    pub nanos: u64,
    /// A digest over all completions in their order: two runs with the same one took the same way.
    pub digest: u64,
}

impl Report {
    /// Adds another simulation's figures.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.heard += other.heard;
        self.gaps += other.gaps;
        self.streams += other.streams;
        self.polls += other.polls;
        self.talks += other.talks;
        self.inflated += other.inflated;
        self.deflated += other.deflated;
        self.repeats += other.repeats;
        self.said += other.said;
        self.closes.resize(self.closes.len().max(other.closes.len()), 0);
        self.closes.iter_mut().zip(&other.closes).for_each(|(sum, count)| *sum += count);
        self.wakes += other.wakes;
        self.starved += other.starved;
        self.accept_paused += other.accept_paused;
        self.publishers_paused += other.publishers_paused;
        self.nanos += other.nanos;
        self.digest ^= other.digest;
    }
}

/// Draws a simulation from `choices` and runs it.
///
/// # Panics
/// If any rule is broken.
pub fn run(mut choices: Choices) -> Report {
    let plan = Plan::draw(&mut choices);
    Simulation::new(plan, choices).run()
}

struct Simulation {
    plan: Plan,
    world: Rc<RefCell<World>>,
    shards: Shards,
    clients: Vec<Client>,
    readers: Vec<Reader>,
    pollers: Vec<Poller>,
    posters: Vec<Poster>,
    talkers: Vec<Talker>,
    strangers: Vec<Stranger>,
    ledger: Ledger,
    /// The link to NATS, if there is one.
    nats: Option<Nats>,
    draining: bool,
    /// Shards were frozen while clients talked: some are not served, or not in time.
    disturbed: bool,
    /// Who has asked for something since is.
    calm_from: Time,
    steps: u64,
}

/// What comes next in an interlude.
#[derive(Clone, Copy)]
enum Next {
    Begin(Time),
    CallOff(Time),
    /// Once it is still, from this time on another process takes over; or none does.
    HandOver(Time),
}

/// Who can do something now.
#[derive(Clone, Copy)]
enum Actor {
    Shard(ShardId),
    Client(usize),
    Reader(usize),
    Poller(usize),
    Poster(usize),
    Talker(usize),
    Stranger(usize),
    Nats,
}

impl Simulation {
    fn new(plan: Plan, choices: Choices) -> Self {
        let mut world = World::new(choices, plan.chaos);
        world.fds_max = plan.fds_max;
        let world = Rc::new(RefCell::new(world));
        let limits = &plan.shards.limits;
        let age = Duration::from_millis(limits.history_age_ms);
        let kept = Kept { messages: limits.history_messages, age, bytes: limits.history_bytes_max };
        let mut ledger = Ledger::new(kept, plan.nats.is_some());
        ledger.slow = (plan.shards.slow.clone(), limits.queue_soft_bytes);
        let now = world.borrow().now;
        let linked = plan.nats.as_ref().map(|nats| Nats::new(nats, &plan.shards, plan.harsh, now, &mut ledger));
        let (nats, bridges) = linked.unzip();
        let shards = Shards::start_linked(&plan.shards, &world, bridges.unwrap_or_default());
        let epoch = plan.epoch();
        let (mut clients, mut strangers) = (Vec::new(), Vec::new());
        for client in &plan.clients {
            match client.wish {
                Wish::Room(_) | Wish::Echo => clients.push(Client::new(*client, epoch, &mut ledger)),
                Wish::Page | Wish::Garbage => strangers.push(Stranger::new(strangers.len(), *client)),
            }
        }
        let readers = plan.readers.iter().enumerate().map(|(id, reader)| Reader::new(id, *reader, epoch, plan.shards.shards)).collect();
        let posters = plan.posters.iter().map(|poster| Poster::new(*poster, epoch, &mut ledger)).collect();
        let pollers = plan.pollers.iter().enumerate().map(|(id, poller)| Poller::new(id, *poller, epoch, plan.shards.shards)).collect();
        let about = About {
            shards: plan.shards.shards,
            rooms: plan.rooms,
            harsh: plan.harsh,
            features: plan.shards.features,
            all_are_there: !plan.harsh && plan.interlude == Interlude::None && plan.nats.is_none(),
        };
        let talkers = plan.talkers.iter().enumerate().map(|(id, talker)| Talker::new(id, *talker, epoch, about, &mut ledger)).collect();
        Self {
            plan,
            world,
            shards,
            clients,
            readers,
            pollers,
            posters,
            talkers,
            strangers,
            ledger,
            nats,
            draining: false,
            disturbed: false,
            calm_from: Time::ZERO,
            steps: 0,
        }
    }

    fn run(mut self) -> Report {
        self.let_witnesses_in();
        self.talk();
        self.settle();
        self.ledger.check(self.plan.rooms);
        if self.plan.epilogue == Epilogue::Soon {
            self.come_back();
        }
        match self.plan.end {
            End::Close => self.close(),
            End::Drain => self.drain(),
        }
        if self.plan.epilogue == Epilogue::Late {
            self.come_back();
            self.close();
        }
        self.ledger.check(self.plan.rooms);
        self.check_ends();
        self.report()
    }

    // ---- phases -------------------------------------------------------------------------------------------------------------------

    fn let_witnesses_in(&mut self) {
        let never = Time::from_nanos(u64::MAX);
        let now = self.now();
        self.clients.iter_mut().for_each(|client| client.next_at = if client.plan.witness { now } else { never });
        self.readers.iter_mut().for_each(|reader| reader.next_at = never);
        self.pollers.iter_mut().for_each(|poller| poller.next_at = never);
        self.posters.iter_mut().for_each(|poster| poster.next_at = never);
        self.talkers.iter_mut().for_each(|talker| talker.next_at = never);
        self.strangers.iter_mut().for_each(|stranger| stranger.next_at = never);
        let all_in = |me: &Self| me.clients.iter().all(|client| !client.plan.witness || client.is_open() || client.is_over());
        let end = now + LET_IN_WITHIN;
        while !all_in(self) && self.now() < end {
            self.turn();
        }
        assert!(self.plan.harsh || all_in(self), "the first client of each room is not let in within {LET_IN_WITHIN:?}");
    }

    fn talk(&mut self) {
        let now = self.now();
        for client in &mut self.clients {
            client.next_at = now + client.plan.begins;
        }
        for reader in &mut self.readers {
            reader.next_at = now + reader.plan.begins;
        }
        for poller in &mut self.pollers {
            poller.next_at = now + poller.plan.begins;
        }
        for poster in &mut self.posters {
            poster.next_at = now + poster.plan.begins;
        }
        for talker in &mut self.talkers {
            talker.next_at = now + talker.plan.reader.begins;
        }
        for stranger in &mut self.strangers {
            stranger.next_at = now;
        }
        self.nats.iter_mut().for_each(|nats| nats.begin(now));
        let jumps = self.plan.harsh && self.world.borrow_mut().choices.chance(300);
        let done = |me: &Self| {
            me.nats.as_ref().is_none_or(|nats| nats.is_over(me.now()))
                && me.clients.iter().all(|client| client.is_done(&me.ledger))
                && me.posters.iter().all(|poster| poster.is_done(&me.ledger))
                && me.talkers.iter().all(Talker::is_done)
                && me.strangers.iter().all(Stranger::is_over)
        };
        let end = self.now() + TALK;
        let mut interlude = self.interlude();
        while (!done(self) || interlude.is_some()) && self.now() < end {
            self.turn();
            interlude = interlude.and_then(|next| self.take_further(next));
            if jumps && self.world.borrow_mut().choices.chance(1) {
                let seconds = self.world.borrow_mut().choices.within(1..=100) as u64;
                let mut world = self.world.borrow_mut();
                world.now = world.now + Duration::from_secs(seconds);
            }
        }
        if let Some(Next::HandOver(_)) = interlude {
            // Time has jumped over it.
            self.shards.thaw();
        }
        // In a gentle world everybody gets to say what he has to say, or else the reason is his own.
        for client in &self.clients {
            let fine = self.plan.harsh || client.is_excused() || client.is_done(&self.ledger);
            assert!(fine, "after {TALK:?} {}", self.describe(client));
        }
        for poster in &self.posters {
            // Each message may wait 5 s for readers that do not read; whether it waits longer is judged when it is answered.
            let waits = poster.plan.ack == "sent";
            let fine = self.plan.harsh || poster.plan.link.fragile || waits || poster.is_done(&self.ledger);
            assert!(fine, "after {TALK:?} {}", poster.describe());
        }
        for talker in &self.talkers {
            let fine = self.plan.harsh || talker.is_excused() || talker.is_done();
            assert!(fine, "after {TALK:?} {}", talker.describe());
        }
    }

    /// When the interlude begins, if there is one: while clients come and talk.
    fn interlude(&self) -> Option<Next> {
        let begins = self.now() + Duration::from_micros(self.plan.shards.seed / 10 % 60_000);
        (self.plan.interlude != Interlude::None).then_some(Next::Begin(begins))
    }

    fn take_further(&mut self, next: Next) -> Option<Next> {
        let now = self.now();
        match next {
            Next::Begin(at) if now < at => Some(next),
            Next::Begin(_) if self.plan.interlude == Interlude::Rebalance => {
                self.shards.rebalance(REBALANCED_PPM, REBALANCE);
                None
            }
            Next::Begin(_) if self.plan.interlude == Interlude::HandOver => {
                self.shards.freeze();
                self.disturbed = true;
                let seed = self.plan.shards.seed;
                Some(Next::HandOver(now + Duration::from_micros([0, 300, 20_000][seed as usize / 600_000 % 3])))
            }
            Next::HandOver(at) => {
                // One of four next processes fails, at any time.
                if (self.plan.shards.seed / 1_800_000).is_multiple_of(4) {
                    if now < at {
                        return Some(next);
                    }
                    self.shards.thaw();
                    return None;
                }
                if now >= at && self.shards.shared.all_still() {
                    self.shards.hand_over();
                    return None;
                }
                if now.since(at) < HANDED_OVER_WITHIN {
                    return Some(next);
                }
                assert!(self.plan.harsh, "what was under way at a freeze does not end within {HANDED_OVER_WITHIN:?}");
                self.shards.thaw();
                None
            }
            Next::Begin(_) => {
                self.shards.drain(DRAIN, false);
                // Before its first goodbye, in the middle, or behind the last.
                let seed = self.plan.shards.seed;
                Some(Next::CallOff(now + Duration::from_millis([0, 205, 220, 300, 1000][seed as usize / 600_000 % 5])))
            }
            Next::CallOff(at) if now < at || !self.shards.shared.all_closed() => Some(next),
            Next::CallOff(_) => {
                self.shards.call_off_drain();
                None
            }
        }
    }

    fn settle(&mut self) {
        if let Some(nats) = &mut self.nats {
            nats.calm_down();
            let calm = |me: &Self| me.nats.as_ref().is_none_or(|nats| nats.is_over(me.now()));
            self.run_until(CALM_WITHIN, calm, |_| "the link does not come to rest".into());
        }
        self.talkers.iter_mut().for_each(Talker::calm_down);
        let opened = |reader: &Reader| reader.is_over() || reader.is_open() || reader.plan.reading != Reading::Greedy;
        if !self.plan.harsh {
            self.run_until(LET_IN_WITHIN, |me| me.readers.iter().all(opened), |me| me.open_reader("a reader is not opened"));
            let settled = |me: &Self| me.talkers.iter().all(Talker::is_done);
            self.run_until(LET_IN_WITHIN, settled, |me| me.open_talker("a client of JSON has not got what it has asked for"));
            let served = |me: &Self| !me.pollers.iter().any(|poller| poller.is_behind(&me.ledger, true));
            self.run_until(LET_IN_WITHIN, served, |me| {
                let behind = me.pollers.iter().find(|poller| poller.is_behind(&me.ledger, true)).map(Poller::describe);
                format!("{LET_IN_WITHIN:?} after everything was said: {}", behind.unwrap_or_default())
            });
        }
        self.agree_on_who_is_there();
        let settled = |me: &Self| {
            me.ledger.is_settled()
                && !me.readers.iter().any(|reader| reader.is_behind(&me.ledger))
                && !me.pollers.iter().any(|poller| poller.is_behind(&me.ledger, false))
                && !me.talkers.iter().any(|talker| talker.is_behind(&me.ledger))
                && me.clients.iter().all(|client| client.is_answered(&me.ledger))
                && me.nats.as_ref().is_none_or(Nats::is_idle)
        };
        let within = SERVED_WITHIN + Duration::from_micros(self.ledger.bytes_to_deliver());
        self.run_until(within, settled, |me| {
            let behind = me.pollers.iter().find(|poller| poller.is_behind(&me.ledger, false)).map(Poller::describe);
            let talker = me.talkers.iter().find(|talker| talker.is_behind(&me.ledger)).map(Talker::describe);
            let unheard = me.ledger.unheard().or(behind).or(talker).unwrap_or_else(|| "an echo, or an event, has not come".into());
            format!("{unheard}, {within:?} after everything was said")
        });
        self.disturbed = false;
        self.calm_from = self.now();
    }

    /// In a gentle world who watches knows who is there in the end. Another process calls the same connections by other names.
    fn agree_on_who_is_there(&mut self) {
        if !self.plan.harsh && self.plan.interlude != Interlude::HandOver {
            let wrong = |me: &Self| me.talkers.iter().find_map(|talker| talker.wrong_about(&me.talkers));
            self.run_until(SERVED_WITHIN, |me| wrong(me).is_none(), |me| wrong(me).unwrap_or_default());
        }
    }

    fn close(&mut self) {
        for client in &mut self.clients {
            if client.is_open() && client.plan.reading != Reading::Greedy && self.world.borrow_mut().choices.chance(500) {
                client.fall_silent();
            } else if client.is_open() {
                client.close();
            } else {
                client.give_up(&self.world);
            }
        }
        for stranger in &mut self.strangers {
            stranger.give_up(&self.world);
        }
        for reader in &mut self.readers {
            reader.finish(&self.world, &mut self.ledger);
        }
        self.pollers.iter_mut().for_each(|poller| poller.give_up(&self.world, &mut self.ledger));
        self.posters.iter_mut().for_each(|poster| poster.give_up(&self.world));
        self.talkers.iter_mut().for_each(|talker| talker.finish(&self.world, &mut self.ledger));
        self.run_until(
            GONE_WITHIN,
            |me| me.talkers.iter().all(Talker::is_over),
            |me| me.open_talker("a client of JSON that closes is not let go"),
        );
        self.run_until(
            GONE_WITHIN,
            |me| me.readers.iter().all(Reader::is_over),
            |me| me.open_reader("a reader that has shut its side is not let go"),
        );
        let over = |client: &Client| client.is_over() || client.is_silent();
        self.run_until(
            GONE_WITHIN,
            |me| me.clients.iter().all(over),
            |me| {
                let open = me.clients.iter().find(|client| !over(client)).expect("somebody is not over");
                format!("{GONE_WITHIN:?} after it began to close, {}", me.describe(open))
            },
        );
        self.run_until(GONE_WITHIN, Self::is_empty, |me| format!("after everybody has left: {}", me.leftovers()));
    }

    fn drain(&mut self) {
        self.shards.drain(DRAIN, true);
        self.readers.iter_mut().for_each(Reader::stop_coming_back);
        self.posters.iter_mut().for_each(|poster| poster.give_up(&self.world));
        self.talkers.iter_mut().for_each(|talker| talker.stop_coming_back(&mut self.ledger));
        self.draining = true;
        for stranger in &mut self.strangers {
            stranger.give_up(&self.world);
        }
        self.run_until(DRAIN + Duration::from_secs(2), |me| me.shards.have_finished(), |_| "a drain is not over after its deadline".into());
        self.world.borrow_mut().exit();
        // What the gateway has sent, clients still read.
        self.run_until(
            GONE_WITHIN,
            |me| me.readers.iter().all(|reader| reader.is_over() || reader.is_excused()),
            |me| me.open_reader("after the drain, a stream has not ended"),
        );
        self.run_until(
            GONE_WITHIN,
            |me| me.talkers.iter().all(|talker| talker.is_over() || talker.is_excused()),
            |me| me.open_talker("after the drain, a client of JSON is there"),
        );
        // Who polls comes back until nobody listens any more.
        self.run_until(
            GONE_WITHIN,
            |me| me.pollers.iter().all(Poller::is_over),
            |me| format!("after the drain: {}", me.pollers.iter().map(Poller::describe).collect::<Vec<_>>().join("; ")),
        );
        self.run_until(
            GONE_WITHIN,
            |me| me.clients.iter().all(|client| client.is_over() || client.is_excused()),
            |me| {
                let open = me.clients.iter().find(|client| !client.is_over() && !client.is_excused()).expect("somebody is not over");
                format!("after the drain, {}", me.describe(open))
            },
        );
    }

    // ---- the scheduler ------------------------------------------------------------------------------------------------------------

    fn now(&self) -> Time {
        self.world.borrow().now
    }

    fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool, failed: impl Fn(&Self) -> String) {
        let end = self.now() + time;
        let mut turns = 0;
        while !done(self) {
            assert!(self.now() < end && turns < TURNS_MAX, "{}", failed(self));
            self.turn();
            turns += 1;
        }
    }

    /// One of those who can do something does it, or time passes until somebody can.
    fn turn(&mut self) {
        self.world.borrow_mut().stir();
        let now = self.now();
        let mut next = self.world.borrow().next_deed();
        let mut able = Vec::with_capacity(16);
        let mut consider = |at: Option<Time>, actor: Actor, next: &mut Option<Time>| match at {
            Some(at) if at <= now => able.push(actor),
            Some(at) => *next = Some(next.map_or(at, |next| next.min(at))),
            None => {}
        };
        for shard in self.shards.ids() {
            consider(self.shards.due(shard), Actor::Shard(shard), &mut next);
        }
        // What happens next inside of the gateway and its kernel; below, what happens next at all.
        let inside = next;
        for (index, client) in self.clients.iter().enumerate() {
            consider(client.due(&self.world.borrow()), Actor::Client(index), &mut next);
        }
        for (index, reader) in self.readers.iter().enumerate() {
            consider((!reader.is_over()).then_some(reader.next_at), Actor::Reader(index), &mut next);
        }
        for (index, poller) in self.pollers.iter().enumerate() {
            consider((!poller.is_over()).then_some(poller.next_at), Actor::Poller(index), &mut next);
        }
        for (index, poster) in self.posters.iter().enumerate() {
            consider((!poster.is_done(&self.ledger)).then_some(poster.next_at), Actor::Poster(index), &mut next);
        }
        for (index, talker) in self.talkers.iter().enumerate() {
            consider(talker.due(&self.world.borrow()), Actor::Talker(index), &mut next);
        }
        for (index, stranger) in self.strangers.iter().enumerate() {
            consider((!stranger.is_over()).then_some(stranger.next_at), Actor::Stranger(index), &mut next);
        }
        // Nobody looks after the link of shards that have finished.
        if let Some(nats) = self.nats.as_ref().filter(|_| !self.shards.have_finished()) {
            consider(nats.due(), Actor::Nats, &mut next);
        }
        if able.is_empty() {
            if inside.is_none_or(|next| next.since(now) > POLL)
                && let Some(shard) = self.shards.sleeping_over_mail()
            {
                panic!("shard {shard} sleeps, has mail, and nobody wakes it");
            }
            let mut world = self.world.borrow_mut();
            // Nobody waits for anything: time passes all the same, and with it the patience of whoever watches.
            world.now = next.unwrap_or(now + Duration::from_secs(1)).max(now);
            return;
        }
        let actor = {
            let mut world = self.world.borrow_mut();
            let nanos = world.choices.of(&[0, 0, 1_000, 20_000]);
            world.now = now + Duration::from_nanos(nanos);
            world.choices.of(&able)
        };
        match actor {
            Actor::Shard(shard) => {
                self.steps += 1;
                self.shards.step(shard);
            }
            Actor::Client(index) => self.clients[index].act(&self.world, &mut self.ledger),
            Actor::Reader(index) => self.readers[index].act(&self.world, &mut self.ledger),
            Actor::Poller(index) => {
                let poller = &self.pollers[index];
                let served = self.serves() && !self.draining && poller.asked_at.is_none_or(|at| at >= self.calm_from);
                let served = served && !self.ledger.excuses(now);
                self.pollers[index].act(&self.world, &mut self.ledger, served);
            }
            Actor::Poster(index) => {
                let served = self.serves() && !self.draining && !self.ledger.excuses(now);
                self.posters[index].act(&self.world, &mut self.ledger, served);
            }
            Actor::Talker(index) => {
                let served = self.serves() && !self.draining && !self.ledger.excuses(now);
                self.talkers[index].act(&self.world, &mut self.ledger, served);
            }
            Actor::Stranger(index) => {
                let served = self.serves() && !self.shards.have_finished();
                self.strangers[index].act(&self.world, served);
            }
            Actor::Nats => {
                if let Some(nats) = &mut self.nats {
                    nats.act(&self.world, &mut self.ledger);
                }
            }
        }
    }

    /// Whether who asks for something gets it, or something is wrong: in a gentle world, until the end.
    fn serves(&self) -> bool {
        !self.plan.harsh && !self.disturbed && self.plan.interlude != Interlude::CalledOff
    }

    // ---- the end ------------------------------------------------------------------------------------------------------------------

    fn is_empty(&self) -> bool {
        self.leftovers().is_empty()
    }

    /// What is left of clients that have gone.
    fn leftovers(&self) -> String {
        let mut found = String::new();
        for shard in self.shards.ids() {
            let holdings = self.shards.holdings(shard);
            let keys = holdings.keys as u64;
            if holdings != (Holdings { keys: holdings.keys, ..Holdings::default() }) || keys > self.plan.shards.limits.idempotency_keys {
                found += &format!("shard {shard}: {holdings:?}; ");
            }
            found += &self.world.borrow().leftovers(shard);
            let counters = &self.shards.counters[shard.index()];
            let load = self.shards.shared.load(shard);
            let topics = counters.topics.value();
            if load > 0 || topics > 0 {
                found += &format!("shard {shard}: {load} connections and {topics} topics counted; ");
            }
        }
        let history = self.shards.shared.history_bytes();
        if history > 0 {
            found += &format!("{history} bytes of histories; ");
        }
        let memory = self.shards.shared.memory.bytes();
        if memory != self.shards.memory_at_rest {
            found += &format!("{memory} bytes of messages instead of {}; ", self.shards.memory_at_rest);
        }
        found += &self.nats.as_ref().map_or(String::new(), Nats::leftovers);
        found
    }

    /// In a gentle world nobody is turned away or ended who has done nothing for it.
    fn check_ends(&self) {
        let drains = self.plan.end == End::Drain || self.plan.interlude == Interlude::CalledOff;
        let tells = drains || self.plan.interlude == Interlude::Rebalance;
        for client in &self.clients {
            let told = match &client.ended {
                None | Some(Ended::Left) => true,
                // 1000 answers the client's own; a drain says 1012 (or refuses with 503 whoever comes during it).
                Some(Ended::Closed(code)) => match code {
                    Some(1000) | None => client.is_excused() || tells,
                    Some(1012) => tells,
                    // Whether that is so was looked at when it was told.
                    Some(LOST) => client.plan.begin != Begin::Live,
                    // The same.
                    Some(CUT_OFF) => self.nats.is_some() && !client.cut_off,
                    _ => false,
                },
                Some(Ended::Refused(503) | Ended::Broken(_)) => drains && !client.plan.witness,
                Some(Ended::Refused(_)) => false,
            };
            // Unless it was excused, one that comes with a stray position is told so.
            let strays = matches!(client.plan.begin, Begin::Stray { .. }) && matches!(client.plan.wish, Wish::Room(_));
            let told = told && (!strays || client.is_excused() || drains || client.ended == Some(Ended::Closed(Some(LOST))));
            let fine = told || self.plan.harsh || (client.is_excused() && !matches!(client.ended, Some(Ended::Refused(_))));
            assert!(fine, "{}", self.describe(client));
        }
        for reader in &self.readers {
            let fine = match reader.cut {
                None | Some(Cut::Left) => true,
                Some(Cut::Bye(1012)) => tells,
                // Whether NATS was the reason was looked at when it was told.
                Some(Cut::Bye(CUT_OFF) | Cut::Refused(503)) => self.nats.is_some() && !reader.cut_off,
                Some(Cut::Bye(_) | Cut::Refused(_)) => false,
                Some(Cut::Broken) => reader.is_excused() || drains || reader.has_shut,
            };
            assert!(fine || self.plan.harsh, "{}", reader.describe());
        }
        for talker in &self.talkers {
            let fine = match talker.cut {
                None | Some(Cut::Left) => true,
                Some(Cut::Bye(CUT_OFF)) => tells || (self.nats.is_some() && !talker.cut_off),
                Some(Cut::Bye(BAD_MESSAGE)) => talker.has_blundered,
                Some(Cut::Refused(503)) => drains,
                Some(Cut::Bye(_) | Cut::Refused(_)) => talker.is_excused(),
                Some(Cut::Broken) => talker.is_excused() || drains,
            };
            assert!(fine || self.plan.harsh, "{}", talker.describe());
        }
    }

    fn open_talker(&self, what: &str) -> String {
        let open: Vec<String> = self.talkers.iter().filter(|talker| !talker.is_over()).map(Talker::describe).collect();
        format!("{what}: {}", open.join("; "))
    }

    fn open_reader(&self, what: &str) -> String {
        let open: Vec<String> = self.readers.iter().filter(|reader| !reader.is_over()).map(Reader::describe).collect();
        format!("{what}: {}", open.join("; "))
    }

    fn describe(&self, client: &Client) -> String {
        format!("client {:?} is {}, ended {:?}", client.plan, if client.is_open() { "open" } else { "not open" }, client.ended)
    }

    fn report(&self) -> Report {
        let sum = |count: fn(&crate::gateway::counters::Counters) -> u64| self.shards.all_counters().map(count).sum();
        Report {
            steps: self.steps,
            heard: self.ledger.accounts.iter().map(|account| account.heard.len() as u64).sum(),
            gaps: self.ledger.gaps,
            streams: self.readers.iter().map(|reader| reader.lives as u64).sum(),
            polls: self.pollers.iter().map(|poller| poller.answers).sum(),
            talks: self.talkers.iter().map(|talker| talker.lives as u64).sum(),
            repeats: self.posters.iter().map(|poster| poster.repeats).chain(self.talkers.iter().map(Talker::repeats)).sum(),
            said: self.ledger.accounts.iter().map(|account| account.said.len() as u64).sum(),
            closes: CloseCause::ALL
                .iter()
                .map(|cause| self.shards.all_counters().map(|counters| counters.closes.of(*cause).value()).sum())
                .collect(),
            inflated: sum(|counters| counters.inflated.value()),
            deflated: sum(|counters| counters.deflated.value()),
            wakes: self.world.borrow().wakes,
            starved: sum(|counters| counters.recv_starved.value()),
            accept_paused: sum(|counters| counters.accept_paused.value()),
            publishers_paused: sum(|counters| counters.publishers_paused.value()),
            nanos: self.now().as_nanos(),
            digest: self.world.borrow().digest(),
        }
    }
}
