//! One shard stops, as if its core were taken away: a debugger's stop from outside, nothing in the product helps.
//!
//! While it stands, publishers whose messages would have to pass it are paused: what the gateway takes from them is bounded, and so is its memory. Rooms that
//! live on the other shard alone go on. When it runs again, everybody gets everything, in order.

mod common;

use std::time::Duration;

use common::freeze::Frozen;
use common::swarm::{Event, State, Swarm};
use common::{Gateway, SLOW_CONSUMER, SOON, gateway, now, sleep_ms};

/// The shard that is stopped; the other one goes on.
const STALLED: usize = 1;
const RUNNING: usize = 0;
const MESSAGE_BYTES: usize = 8192;
/// The room of those who are only there to keep the shards even.
const NO_ROOM: usize = usize::MAX;

/// A client that notes what it hears: per publisher the next number that it must hear.
struct Member {
    room: usize,
    shard: usize,
    /// How many messages it sent.
    sent: u32,
    /// Per sender: how many it has heard.
    heard: Vec<u32>,
}

struct World {
    gateway: Gateway,
    swarm: Swarm,
    members: Vec<Member>,
}

impl World {
    fn new(gateway: Gateway) -> Self {
        let mut swarm = Swarm::new(gateway.port);
        // Small, so that a paused publisher is seen to be paused soon.
        swarm.send_buffer_bytes = 64 << 10;
        Self { gateway, swarm, members: Vec::new() }
    }

    /// Opens a client and finds out by the gauges on which shard it came to be.
    fn open(&mut self, room: &str) -> (usize, usize) {
        let before = self.gateway.shard_connections();
        let id = self.swarm.connect_and_open(room, &mut |_, _| {});
        let shard = common::eventually(SOON, || {
            let after = self.gateway.shard_connections();
            match [after[0] - before[0], after[1] - before[1]] {
                [1, 0] => Ok(0),
                [0, 1] => Ok(1),
                other => Err(format!("one client came in and the gauges moved by {other:?}")),
            }
        });
        (id, shard)
    }

    /// A member of `room` on the shard that is asked for; `None` when the gateway will not put one there.
    fn join(&mut self, room: usize, wanted: usize) -> Option<usize> {
        for _ in 0..40 {
            let (id, shard) = self.open(&format!("/ws?room=room-{room}"));
            if shard == wanted {
                self.note(id, Member { room, shard, sent: 0, heard: Vec::new() });
                return Some(id);
            }
            let total: u64 = self.gateway.shard_connections().iter().sum();
            self.swarm.drop_client(id, false);
            common::eventually(SOON, || match self.gateway.shard_connections().iter().sum::<u64>() {
                open if open == total - 1 => Ok(()),
                open => Err(format!("{open} connections are open, one should be gone from {total}")),
            });
            // The gateway keeps its shards even: someone idle takes the place there, so that the next one comes here.
            self.open("/echo");
        }
        None
    }

    fn note(&mut self, id: usize, member: Member) {
        while self.members.len() <= id {
            self.members.push(Member { room: NO_ROOM, shard: 0, sent: 0, heard: Vec::new() });
        }
        self.members[id] = member;
    }

    /// Every member says one thing and hears it: from then on it is a member for sure.
    fn settle(&mut self) {
        for id in self.live() {
            self.publish(id);
        }
        self.run(SOON, "everybody hears itself", |world| world.live().iter().all(|id| world.heard(*id, *id) == 1));
        self.run_for(Duration::from_millis(200));
    }

    fn live(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|id| self.members[*id].room != NO_ROOM).collect()
    }

    fn in_room(&self, room: usize) -> Vec<usize> {
        (0..self.members.len()).filter(|id| self.members[*id].room == room).collect()
    }

    fn publish(&mut self, id: usize) {
        let mut payload = vec![0; MESSAGE_BYTES];
        payload[..4].copy_from_slice(&(id as u32).to_be_bytes());
        payload[4..8].copy_from_slice(&self.members[id].sent.to_be_bytes());
        self.members[id].sent += 1;
        self.swarm.send_binary(id, &payload);
    }

    fn heard(&self, id: usize, sender: usize) -> u32 {
        self.members[id].heard.get(sender).copied().unwrap_or(0)
    }

    fn turn(&mut self, limit: Duration) {
        let members = &mut self.members;
        self.swarm.turn(limit, &mut |id, event| {
            if let Event::Binary(payload) = event {
                let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
                let (sender, number) = (number(0) as usize, number(4));
                let member = &mut members[id];
                if member.heard.len() <= sender {
                    member.heard.resize(sender + 1, 0);
                }
                // The first messages of others may be before its own time; from then on, without a hole.
                let next = &mut member.heard[sender];
                assert!(number == *next || *next == 0 && number == 1, "client {id} heard message {number} of {sender}, {next} is next");
                *next = number + 1;
            }
        });
    }

    fn run(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = now() + limit;
        while !done(self) {
            assert!(now() < deadline, "not within {limit:?}: {what} ({})", self.swarm.summary());
            self.turn(Duration::from_millis(10));
        }
    }

    fn run_for(&mut self, time: Duration) {
        let deadline = now() + time;
        while now() < deadline {
            self.turn(Duration::from_millis(10));
        }
    }

    /// Every member of a room has heard everything that the others said since it was in.
    fn all_heard_all(&self) -> bool {
        self.live().iter().all(|id| {
            let member = &self.members[*id];
            self.in_room(member.room).iter().all(|sender| {
                let sent = self.members[*sender].sent;
                self.heard(*id, *sender) == sent || sent == 1 && *sender != *id
            })
        })
    }

    fn nobody_was_cut(&self) {
        for id in self.live() {
            assert_eq!(
                self.swarm.client(id).state(),
                &State::Open,
                "client {id} on shard {} lost its connection: {:?}",
                self.members[id].shard,
                self.swarm.client(id).end()
            );
        }
        assert_eq!(self.gateway.closes(SLOW_CONSUMER), 0);
        assert_eq!(self.gateway.closes("4504"), 0);
    }
}

/// Rooms 0..MIXED have members on both shards, the next ones on the running shard alone.
const MIXED: usize = 6;
const APART: usize = 12;

fn world(gateway: Gateway) -> World {
    let mut world = World::new(gateway);
    for room in 0..MIXED {
        for shard in [RUNNING, STALLED, RUNNING, STALLED] {
            world.join(room, shard);
        }
    }
    for room in MIXED..MIXED + APART {
        for _ in 0..2 {
            world.join(room, RUNNING);
        }
    }
    world.settle();
    world
}

#[test]
fn a_stalled_shard_pauses_its_publishers_and_nobody_loses_a_message() {
    // The clients share one thread: after the stall they may be behind by more than the default, which is not what this is about.
    let gateway =
        gateway().limit("topic_lag_bytes_max", 256 << 10).limit("publish_bytes_max", 128 << 10).limit("queue_bytes_max", 64 << 20).start();
    let stalled_thread = gateway.shard_thread(STALLED as u16);
    let mut world = world(gateway);
    let publishers: Vec<usize> =
        (0..MIXED).filter_map(|room| world.in_room(room).into_iter().find(|id| world.members[*id].shard == RUNNING)).collect();
    let apart: Vec<usize> =
        (MIXED..MIXED + APART).filter_map(|room| world.in_room(room).first().copied().filter(|_| world.in_room(room).len() == 2)).collect();
    assert!(publishers.len() >= 2, "only {} rooms have members on both shards", publishers.len());
    assert!(apart.len() >= 4, "only {} rooms are on the running shard alone", apart.len());
    let pss = world.gateway.pss_bytes();

    let frozen = Frozen::stop(stalled_thread);

    // Rooms of the running shard alone go on, those at least that have their home there: for 12 rooms to have none would be bad luck of 1 in 4096.
    for _ in 0..20 {
        apart.iter().for_each(|id| world.publish(*id));
        world.run_for(Duration::from_millis(20));
    }
    let goes_on = |world: &World, id: usize| {
        world.in_room(world.members[id].room).iter().all(|member| world.heard(*member, id) == world.members[id].sent)
    };
    world.run(SOON, "a room on the running shard alone goes on", |world| apart.iter().any(|id| goes_on(world, *id)));
    let going_on: Vec<usize> = apart.iter().copied().filter(|id| goes_on(&world, *id)).collect();

    // Everyone else's publishers are paused: each offers 8 MiB, a bounded part of it is taken, then nothing more.
    for id in &publishers {
        for _ in 0..1024 {
            world.publish(*id);
        }
    }
    let mut unsent: Vec<usize> = publishers.iter().map(|id| world.swarm.client(*id).unsent()).collect();
    let deadline = now() + SOON;
    loop {
        world.run_for(Duration::from_millis(500));
        let after: Vec<usize> = publishers.iter().map(|id| world.swarm.client(*id).unsent()).collect();
        if after == unsent {
            break;
        }
        assert!(now() < deadline, "publishers to a stalled shard are still read from: {after:?} bytes are left");
        unsent = after;
    }
    for (id, left) in publishers.iter().zip(&unsent) {
        assert!(*left > 0, "publisher {id} got rid of 8 MiB while a shard with members of its room stood still");
    }
    let grown = world.gateway.pss_bytes().saturating_sub(pss);
    assert!(grown < 24 << 20, "{grown} bytes more while {} MiB wait outside", unsent.iter().sum::<usize>() >> 20);

    // And the rooms that go on still do.
    for id in &going_on {
        world.publish(*id);
    }
    world.run(SOON, "the rooms of the running shard go on while publishers are paused", |world| {
        going_on.iter().all(|id| goes_on(world, *id))
    });

    frozen.resume();
    world.run(3 * SOON, "everybody hears everything after the stall", World::all_heard_all);
    world.nobody_was_cut();
    println!(
        "{} publishers paused with {} MiB outside, {} of {} rooms went on, {grown} bytes more",
        publishers.len(),
        unsent.iter().sum::<usize>() >> 20,
        going_on.len(),
        apart.len()
    );
}

/// The clients of a shard that slept answered its pings in time: their answers wait in its own sockets. It must read them before it judges.
#[test]
fn a_shard_that_slept_does_not_blame_its_clients() {
    let gateway = gateway().limit("ping_interval_ms", 300).limit("pong_timeout_ms", 500).limit("write_stall_ms", 500).start();
    let stalled_thread = gateway.shard_thread(STALLED as u16);
    let mut world = World::new(gateway);
    for room in 0..20 {
        let (id, shard) = world.open(&format!("/ws?room=room-{room}"));
        world.note(id, Member { room, shard, sent: 0, heard: Vec::new() });
    }
    world.settle();
    for _ in 0..3 {
        let frozen = Frozen::stop(stalled_thread);
        world.run_for(Duration::from_millis(1500));
        frozen.resume();
        world.run_for(Duration::from_millis(700));
    }
    world.nobody_was_cut();
}

/// A stop and a go in quick succession interrupts every system call that the shard waits in.
#[test]
fn interrupted_system_calls_are_no_failure() {
    let gateway = gateway().start();
    let threads = [gateway.shard_thread(0), gateway.shard_thread(1)];
    let mut world = World::new(gateway);
    for room in 0..8 {
        let (id, shard) = world.open(&format!("/ws?room=room-{room}"));
        world.note(id, Member { room, shard, sent: 0, heard: Vec::new() });
    }
    world.settle();
    for round in 0..40 {
        Frozen::stop(threads[round % 2]).resume();
        world.live().iter().for_each(|id| world.publish(*id));
        world.run_for(Duration::from_millis(5));
        sleep_ms(1);
    }
    world.run(SOON, "everybody hears everything", World::all_heard_all);
    assert!(world.gateway.alive());
    world.nobody_was_cut();
}
