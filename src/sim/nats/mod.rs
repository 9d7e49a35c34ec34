//! NATS in a simulation: the core at its ends of `bus::link`, and a server with a stream that gives messages their places. One more of those who take turns: it is due when
//! it has something to do, and wakes shards as the real core does.
//!
//! | file | what it holds |
//! |---|---|
//! | `server` | the stream: sequences, message ids, what it is asked for |
//! | `node` | the core of one gateway: what it sends again, reads, fetches, tells |
//!
//! Its faults are those that were met with real servers: connections that are lost, noticed late and made again, with part of what was under way; servers that are frozen,
//! or refuse for a while or for good; acknowledgements that come late and across topics in another order; inboxes without room; other programs that publish too.

mod node;
mod server;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::node::{Deed, Node, Verdict};
use self::server::{Message, ROOM, RULE, Server};
use super::ledger::{Account, Ledger};
use super::shards::ShardsPlan;
use crate::bus::link::Port;
use crate::engine::sim::{Choices, World};
use crate::limits::Limits;
use crate::proto::position::Epoch;
use crate::proto::subject::Rules;
use crate::proto::ws::MessageKind;
use crate::time::Time;

/// The link of a simulation.
#[derive(Clone, Debug)]
pub struct NatsPlan {
    /// When the stream was made.
    pub epoch: Epoch,
    /// How many messages it has had by then.
    pub begins_after: u64,
    /// How long things take on their way.
    pub latencies: [Duration; 4],
    /// How many sequences are left out before a message.
    pub skips: [u64; 4],
    /// The most messages of one answer about the past.
    pub piece: usize,
    /// How many messages are refused for good at most.
    pub refusals: u32,
    /// What goes wrong, from when everybody talks.
    pub faults: Vec<(Duration, Fault)>,
    /// Other programs that publish.
    pub others: Vec<OtherPlan>,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The connection is lost and made again.
    Cut {
        /// Until the client sees it.
        unnoticed: Duration,
        /// From then on until there is one again.
        away: Duration,
        /// Until it tells of that.
        untold: Duration,
    },
    /// The server does nothing for so long.
    Frozen(Duration),
    /// It takes nothing, or hardly anything, for so long.
    NotNow(Duration),
}

/// Another program, or node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OtherPlan {
    /// Where it publishes; none for a subject that is no topic's.
    pub room: Option<usize>,
    /// How many messages.
    pub messages: usize,
    /// The largest of them, in bytes.
    pub bytes_max: usize,
    /// How long it waits between two of them at most, in microseconds.
    pub pause_us: usize,
}

impl NatsPlan {
    /// Draws a link.
    pub(super) fn draw(choices: &mut Choices, rooms: usize, message_bytes_max: usize, seed: u64) -> Self {
        let micros = |micros: [u64; 4]| micros.map(Duration::from_micros);
        let latencies = choices.of(&[[0, 0, 0, 50], [0, 50, 200, 500], [0, 500, 2_000, 20_000]]);
        let count = choices.of(&[0, 0, 1, 2, 4]);
        let faults = (0..count).map(|_| (Duration::from_micros(choices.below(100_000) as u64), draw_fault(choices))).collect();
        let others = (0..choices.of(&[0, 1, 2]))
            .map(|_| OtherPlan {
                room: Some(choices.below(rooms)).filter(|_| choices.chance(500)),
                messages: choices.of(&[1, 5, 30]),
                bytes_max: message_bytes_max.min(choices.of(&[16, 1000])),
                pause_us: choices.of(&[500, 20_000]),
            })
            .collect();
        Self {
            epoch: Epoch((seed ^ 0x5eed_0000_0000).max(1)),
            begins_after: choices.of(&[0, 0, 7, 1000]),
            latencies: micros(latencies),
            skips: choices.of(&[[0; 4], [0, 0, 0, 1], [0, 0, 3, 100]]),
            piece: choices.of(&[1, 3, 64]),
            refusals: if count > 0 { choices.of(&[0, 0, 0, 2]) } else { 0 },
            faults,
            others,
        }
    }

    /// What the gateway's bounds are then.
    pub(super) fn draw_limits(choices: &mut Choices, limits: &mut Limits, harsh: bool) {
        limits.nats_outbox_messages = choices.of(&[16, 256, 8192]);
        limits.nats_outbox_bytes_max = choices.of(&[4 << 10, 4 << 20]);
        limits.nats_inbox_messages = choices.of(&[16, 16, 8192]);
        limits.nats_inbox_bytes_max = choices.of(&[4 << 10, 4 << 20]);
        limits.nats_interest_ms = choices.of(&[0, 1_000, 60_000]);
        limits.nats_ack_ms = choices.of(&[1_000, 15_000]);
        // No id is forgotten before the end.
        (limits.nats_stream_duplicates_ms, limits.nats_stream_age_ms) = (86_400_000, 86_400_000);
        if harsh {
            limits.nats_subscriptions_max = choices.of(&[1, 2, 10_000]);
            limits.nats_fetches_max = choices.of(&[1, 1024]);
            // Pieces of the past that are kept for others must not be what nobody may publish for.
            limits.queued_bytes_max = limits.queued_bytes_max.max(64 * limits.message_bytes_max);
        }
    }

    /// When something arrives that is sent now.
    fn arrival(&self, world: &Rc<RefCell<World>>) -> Time {
        let mut world = world.borrow_mut();
        world.now + world.choices.of(&self.latencies)
    }
}

fn draw_fault(choices: &mut Choices) -> Fault {
    let millis = Duration::from_millis;
    match choices.below(4) {
        0 => Fault::Frozen(millis(choices.of(&[10, 300, 2_500]))),
        1 => Fault::NotNow(millis(choices.of(&[5, 150, 1_200]))),
        _ => Fault::Cut {
            unnoticed: millis(choices.of(&[0, 1, 20])),
            away: millis(choices.of(&[0, 5, 200, 2_000])),
            untold: millis(choices.of(&[0, 0, 3])),
        },
    }
}

/// What happens to the connection next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Begin(Fault),
    Notice { away: Duration, untold: Duration },
    Mend { untold: Duration },
    Tell,
}

/// What is wrong now.
struct Faults {
    /// There are some in this simulation.
    are_there: bool,
    /// The connection is lost in this simulation, and with it some acknowledgements.
    cuts: bool,
    /// In order; one is over before the next begins.
    next: VecDeque<(Time, Event)>,
    frozen_until: Time,
    not_now_until: Time,
    refusals_left: u32,
}

impl Faults {
    /// What the server has to say of a message instead of taking it.
    fn refusal(&mut self, id: &str, server: &mut Server, world: &Rc<RefCell<World>>) -> Option<Verdict> {
        let mut world = world.borrow_mut();
        if world.now < self.not_now_until && world.choices.chance(700) {
            if self.cuts {
                server.put_off.insert(id.to_owned());
            }
            return Some(Verdict::NotNow);
        }
        if self.refusals_left > 0 && !server.has(id) && world.choices.chance(20) {
            self.refusals_left -= 1;
            server.never.insert(id.to_owned());
        }
        server.never.contains(id).then_some(Verdict::Never)
    }
}

struct Other {
    plan: OtherPlan,
    account: usize,
    left: usize,
    next_at: Time,
}

/// Who may do something.
#[derive(Clone, Copy)]
enum Actor {
    Node(Deed),
    Fault,
    Other(usize),
}

/// The link.
pub(super) struct Nats {
    plan: NatsPlan,
    server: Server,
    node: Node,
    faults: Faults,
    others: Vec<Other>,
}

impl Nats {
    /// The link, and the shards' ends of it.
    pub(super) fn new(
        plan: &NatsPlan,
        shards: &ShardsPlan,
        harsh: bool,
        now: Time,
        ledger: &mut Ledger,
    ) -> (Self, Vec<(Port, Arc<Rules>)>) {
        let count = |is: fn(&Fault) -> bool| plan.faults.iter().filter(|(_, fault)| is(fault)).count();
        let lost = count(|fault| matches!(fault, Fault::Cut { .. }));
        let cuts = lost > 0;
        // The second takes the acknowledgement of what went ahead on the connection after the first.
        let mixes = lost > 1 || (cuts && count(|fault| matches!(fault, Fault::Frozen(_))) > 0);
        let server = Server::new(plan.epoch, plan.begins_after, mixes);
        let (node, ports) = Node::new(1, shards.shards, &shards.limits, &server, now);
        let never = Time::from_nanos(u64::MAX);
        let other = |plan: &OtherPlan| {
            let account = ledger.accounts.len();
            ledger.accounts.push(Account::new(plan.room, false));
            Other { plan: *plan, account, left: plan.messages, next_at: never }
        };
        let others = plan.others.iter().map(other).collect();
        // When time jumps it is late for everything.
        let are_there = harsh || !plan.faults.is_empty();
        let (next, refusals_left) = (VecDeque::new(), plan.refusals);
        let faults = Faults { are_there, cuts, next, frozen_until: Time::ZERO, not_now_until: Time::ZERO, refusals_left };
        let rules = Arc::new(Rules::new(vec![RULE.parse().expect("a rule")]).expect("one rule is in nobody's way"));
        let ports = ports.into_iter().map(|port| (port, Arc::clone(&rules))).collect();
        (Self { plan: plan.clone(), server, node, faults, others }, ports)
    }

    /// Everybody talks from now on.
    pub(super) fn begin(&mut self, now: Time) {
        self.faults.next.extend(self.plan.faults.iter().map(|(at, fault)| (now + *at, Event::Begin(*fault))));
        self.faults.next.make_contiguous().sort_by_key(|(at, _)| *at);
        self.others.iter_mut().for_each(|other| other.next_at = now);
    }

    /// Nothing more goes wrong than what does already.
    pub(super) fn calm_down(&mut self) {
        self.faults.next.retain(|(_, event)| !matches!(event, Event::Begin(_)));
        self.faults.refusals_left = 0;
    }

    /// Whether nothing goes wrong any more, and everybody else has said what he had to say.
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.faults.next.is_empty() && now >= self.faults.frozen_until && self.others.iter().all(|other| other.left == 0)
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.node.is_idle(&self.server)
    }

    /// What is left when everybody has gone; empty when that is as it should be.
    pub(super) fn leftovers(&self) -> String {
        let shared = &self.node.shared;
        let (messages, bytes, topics) = (shared.outbox_entries(), shared.outbox_bytes(), shared.status.subscriptions.value());
        match (messages, bytes, topics) {
            (0, 0, 0) => String::new(),
            _ => format!("{messages} messages of {bytes} bytes for NATS, and {topics} topics asked for; "),
        }
    }

    fn may(&self) -> Vec<(Time, Actor)> {
        let mut deeds = Vec::new();
        self.node.deeds(&self.server, &self.faults, &mut deeds);
        let mut may: Vec<(Time, Actor)> = deeds.into_iter().map(|(at, deed)| (at, Actor::Node(deed))).collect();
        may.extend(self.faults.next.front().map(|(at, _)| (*at, Actor::Fault)));
        may.extend(
            self.others.iter().enumerate().filter(|(_, other)| other.left > 0).map(|(index, other)| (other.next_at, Actor::Other(index))),
        );
        may
    }

    /// When it does something next.
    pub(super) fn due(&self) -> Option<Time> {
        self.may().into_iter().map(|(at, _)| at).min()
    }

    /// Does one thing of those that it may do now.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let now = world.borrow().now;
        let able: Vec<Actor> = self.may().into_iter().filter(|(at, _)| *at <= now).map(|(_, actor)| actor).collect();
        if able.is_empty() {
            return;
        }
        let actor = world.borrow_mut().choices.of(&able);
        match actor {
            Actor::Node(deed) => self.node.act(deed, (&self.plan, &mut self.faults), &mut self.server, world, ledger),
            Actor::Fault => self.go_wrong(world),
            Actor::Other(index) => self.publish(index, world, ledger),
        }
        let troubled =
            !self.node.wire || !self.node.shared.status.is_connected() || now <= self.faults.frozen_until.max(self.faults.not_now_until);
        if let Some(record) = ledger.record.as_mut().filter(|_| troubled && self.faults.are_there) {
            record.trouble(now.max(self.faults.frozen_until).max(self.faults.not_now_until));
        }
    }

    fn go_wrong(&mut self, world: &Rc<RefCell<World>>) {
        let now = world.borrow().now;
        let Some((_, event)) = self.faults.next.pop_front() else { return };
        tracing::debug!(at = ?now, ?event, "the link");
        let then = match event {
            Event::Begin(Fault::Frozen(time)) => {
                self.faults.frozen_until = now + time;
                None
            }
            Event::Begin(Fault::NotNow(time)) => {
                self.faults.not_now_until = now + time;
                None
            }
            Event::Begin(Fault::Cut { unnoticed, away, untold }) => {
                self.node.cut(world);
                Some((now + unnoticed, Event::Notice { away, untold }))
            }
            Event::Notice { away, untold } => {
                self.node.notice(world);
                Some((now + away, Event::Mend { untold }))
            }
            Event::Mend { untold } => {
                self.node.mend(&self.plan, world);
                Some((now + untold, Event::Tell))
            }
            Event::Tell => {
                self.node.connected(world);
                None
            }
        };
        // It ends before the next one begins.
        then.into_iter().for_each(|then| self.faults.next.push_front(then));
    }

    fn publish(&mut self, index: usize, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let other = &mut self.others[index];
        let mut world = world.borrow_mut();
        let now = world.now;
        other.left -= 1;
        other.next_at = now + Duration::from_micros(world.choices.within(0..=other.plan.pause_us) as u64);
        let (bytes, text) = (world.choices.within(0..=other.plan.bytes_max), world.choices.chance(500));
        let said = ledger.say(other.account, bytes, text, now);
        let subject = other.plan.room.map_or("sim.else".into(), |room| format!("{ROOM}{room}").into());
        let kind = if text { MessageKind::Text } else { MessageKind::Binary };
        let message = Message { subject, payload: Bytes::from(said.payload), kind, event: None, key: None, origin: None, no_echo: false };
        let skipped = world.choices.of(&self.plan.skips);
        self.server.store(None, message, skipped, ledger);
    }
}
