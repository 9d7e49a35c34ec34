//! What a simulation consists of: bounds, faults, rooms and clients, all drawn from its choices.

use std::time::Duration;

use super::nats::NatsPlan;
use super::shards::{Features, ShardsPlan};
use super::squeeze::OFFERS;
use crate::engine::sim::{Chaos, Choices, LinkOptions, SimRingSize};
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::proto::position::Epoch;
use crate::proto::slow::SlowRules;

/// A simulation before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The shards and their bounds.
    pub shards: ShardsPlan,
    /// The kernel's faults.
    pub chaos: Chaos,
    /// Descriptors that the process may have.
    pub fds_max: usize,
    /// Tight bounds and jumps of the clock: clients may be ended for being slow or silent, or not be let in. Without it, that is an error.
    pub harsh: bool,
    /// How many rooms there are.
    pub rooms: usize,
    /// The clients; the first of each room is its witness.
    pub clients: Vec<ClientPlan>,
    /// The readers of event streams.
    pub readers: Vec<ReaderPlan>,
    /// The long polls.
    pub pollers: Vec<PollerPlan>,
    /// The publishers over HTTP.
    pub posters: Vec<PosterPlan>,
    /// The clients of `shardcast.v1.json`.
    pub talkers: Vec<TalkerPlan>,
    /// The link to NATS, if there is one.
    pub nats: Option<NatsPlan>,
    /// Whether others come back to where everybody was.
    pub epilogue: Epilogue,
    /// What happens while everybody talks.
    pub interlude: Interlude,
    /// How it ends.
    pub end: End,
}

/// What the gateway does to its clients in the middle of a simulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interlude {
    /// Nothing.
    None,
    /// It hands some of them to others.
    Rebalance,
    /// It drains, and that is called off as soon as it can be, or when many are gone.
    CalledOff,
    /// It is frozen, and another process takes everything over; or none does, and it goes on.
    HandOver,
}

/// How a simulation ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Every client closes its connection.
    Close,
    /// The gateway drains.
    Drain,
}

/// When everything has been said, others come with the newest position of each room. They are given what is published from then on, and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Epilogue {
    /// Nobody comes.
    None,
    /// While the others are still there.
    Soon,
    /// When the others have gone, and with them histories and topics.
    Late,
}

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// To be a member of a room.
    Room(usize),
    /// Its own messages back.
    Echo,
    /// A page, several times over one connection.
    Page,
    /// Nothing that makes sense.
    Garbage,
}

/// Where a client or reader begins in its rooms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// With what comes next.
    Live,
    /// With the newest so many messages.
    Last(u32),
    /// With the oldest that there is.
    Earliest,
    /// After a message that somebody has heard.
    After {
        /// The newest of them.
        newest: bool,
    },
    /// After a position that is none of the room's.
    Stray {
        /// Of another life of the process; else behind the room's end.
        restart: bool,
    },
}

/// Rooms of one reader at most.
pub const READER_ROOMS_MAX: usize = 4;

/// A reader of an event stream.
#[derive(Clone, Copy, Debug)]
pub struct ReaderPlan {
    /// Its rooms are this one and those that follow it, so many.
    pub rooms: [usize; READER_ROOMS_MAX],
    /// How many of them there are.
    pub rooms_len: usize,
    /// Where it begins in its first life; then it comes back with the id of its last event.
    pub begin: Begin,
    /// How it reads.
    pub reading: Reading,
    /// How it is connected.
    pub link: LinkOptions,
    /// How many connections it makes.
    pub lives: usize,
    /// It breaks off after so many messages of one life, but for the last.
    pub cut_after: usize,
    /// When it connects, after the witnesses have.
    pub begins: Duration,
}

impl ReaderPlan {
    /// Its rooms, in the order in which it asks for them.
    pub fn topics(&self) -> &[usize] {
        &self.rooms[..self.rooms_len]
    }
}

/// A long poll that goes on from answer to answer.
#[derive(Clone, Copy, Debug)]
pub struct PollerPlan {
    /// Its rooms are this one and those that follow it, so many.
    pub rooms: [usize; READER_ROOMS_MAX],
    /// How many of them there are.
    pub rooms_len: usize,
    /// Where its first request begins; then it goes on with the `next` of each answer.
    pub begin: Begin,
    /// How long a request waits for messages; whole seconds.
    pub wait: Duration,
    /// The most messages of one answer.
    pub limit: Option<u64>,
    /// How often it breaks a connection off, answered or not.
    pub breaks: usize,
    /// How it is connected.
    pub link: LinkOptions,
    /// When it connects, after the witnesses have.
    pub begins: Duration,
}

impl PollerPlan {
    /// Its rooms, in the order of its URL.
    pub fn topics(&self) -> &[usize] {
        &self.rooms[..self.rooms_len]
    }
}

/// A publisher over HTTP.
#[derive(Clone, Copy, Debug)]
pub struct PosterPlan {
    /// Where it publishes.
    pub room: usize,
    /// The listener that its connections land on.
    pub shard: ShardId,
    /// How many messages.
    pub messages: usize,
    /// The largest of them, in bytes.
    pub bytes_max: usize,
    /// What it wants to know before it is answered.
    pub ack: &'static str,
    /// It names its messages with idempotency keys, and says again what was not answered.
    pub keys: bool,
    /// Sometimes it says again what was.
    pub repeats: bool,
    /// Its messages have keys, by which newer ones replace older ones for who is slow.
    pub values: bool,
    /// How it is connected.
    pub link: LinkOptions,
    /// When it connects, after the witnesses have.
    pub begins: Duration,
}

/// A client of `shardcast.v1.json`.
#[derive(Clone, Copy, Debug)]
pub struct TalkerPlan {
    /// What it wants to hear, and how: in its later lives it goes on where it was, or begins somewhere else.
    pub reader: ReaderPlan,
    /// How many messages it publishes.
    pub messages: usize,
    /// The largest of them, in bytes.
    pub bytes_max: usize,
    /// It names its messages (`msg_id`), and says again what was not answered.
    pub names: bool,
    /// Sometimes it says again what was.
    pub repeats: bool,
    /// Its messages have keys, by which newer ones replace older ones for who is slow.
    pub values: bool,
    /// Which of the known offers to compress it makes.
    pub offer: Option<usize>,
    /// It wants to be told who is in its rooms.
    pub watches: bool,
    /// It asks for all rooms at once, where it does not go on with one.
    pub wild: bool,
    /// It wants many messages as one frame.
    pub batches: bool,
    /// Some of them it does not want back (`"echo":false`).
    pub mutes: bool,
    /// How often it does something else: lets go of a topic for a while, asks for a history, or for what cannot be.
    pub whims: usize,
}

/// How a client reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// Whatever comes, soon.
    Greedy,
    /// A little, now and then.
    Slow,
    /// Nothing any more after so many messages.
    DeafAfter(usize),
}

/// How a client ends when it has published everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    /// Not before the end of the simulation.
    Stays,
    /// With a close frame.
    Closes,
    /// It shuts its side and goes on reading.
    Shuts,
    /// It resets the connection.
    Resets,
    /// It gives its socket up, read or not.
    Vanishes,
}

/// One client.
#[derive(Clone, Copy, Debug)]
pub struct ClientPlan {
    /// What it asks for.
    pub wish: Wish,
    /// The listener that its connection lands on.
    pub shard: ShardId,
    /// It does not want its own messages (`echo=0`).
    pub no_echo: bool,
    /// Where it begins in its room.
    pub begin: Begin,
    /// How many messages it sends.
    pub messages: usize,
    /// The largest of them, in bytes.
    pub bytes_max: usize,
    /// How it reads.
    pub reading: Reading,
    /// How it leaves.
    pub leaving: Leaving,
    /// How it is connected.
    pub link: LinkOptions,
    /// Which of the known offers to compress it makes.
    pub offer: Option<usize>,
    /// It sees everything that its room is sent, from the beginning to the end.
    pub witness: bool,
    /// When it connects, after the witnesses have.
    pub begins: Duration,
}

impl Plan {
    /// Draws a simulation.
    pub fn draw(choices: &mut Choices) -> Self {
        let harsh = choices.chance(250);
        let shards = choices.of(&[1, 2, 2, 3, 3, 4]);
        let chaos = draw_chaos(choices, harsh);
        let mut limits = draw_limits(choices, harsh);
        let rooms = choices.of(&[1, 1, 2, 2, 3, 4]);
        let count = choices.within(rooms..=rooms + 10);
        let message_bytes_max = limits.message_bytes_max as usize;
        let mut clients: Vec<ClientPlan> = (0..count)
            .map(|index| {
                let witness = index < rooms;
                let mut client = draw_client(choices, shards, rooms, message_bytes_max, harsh);
                if witness {
                    client.wish = Wish::Room(index);
                    client.no_echo = false;
                    client.begin = Begin::Live;
                    client.reading = Reading::Greedy;
                    client.leaving = Leaving::Stays;
                    client.link.fragile = false;
                    client.begins = Duration::ZERO;
                }
                ClientPlan { witness, ..client }
            })
            .collect();
        let readers = (0..choices.of(&[0, 1, 2, 3, 5])).map(|_| draw_reader(choices, rooms, message_bytes_max, harsh)).collect();
        // Without a history there are no polls.
        let pollers = if limits.history_messages > 0 { choices.of(&[0, 0, 1, 2]) } else { 0 };
        let pollers = (0..pollers).map(|_| draw_poller(choices, rooms, message_bytes_max, harsh)).collect();
        let stored = limits.history_messages > 0;
        let mut posters: Vec<PosterPlan> =
            (0..choices.of(&[0, 0, 1, 3])).map(|_| draw_poster(choices, shards, rooms, message_bytes_max, harsh, stored)).collect();
        let ring = SimRingSize { completions: choices.of(&[4, 16, 64, 8192]), reap: choices.of(&[1, 4, 512]) };
        let fds_max =
            if harsh && choices.chance(300) { (count + choices.below(3)).saturating_sub(choices.below(3)).max(1) } else { usize::MAX };
        let end = choices.of(&[End::Close, End::Close, End::Drain]);
        let late = if end == End::Close { Epilogue::Late } else { Epilogue::Soon };
        let epilogue = if harsh { Epilogue::None } else { choices.of(&[Epilogue::None, Epilogue::None, Epilogue::Soon, late]) };
        let seed = choices.below(1 << 32) as u64;
        // One of five has a link to NATS. The others are drawn as if there was none in any.
        let nats = (seed / 7_200_000).is_multiple_of(5).then(|| {
            NatsPlan::draw_limits(choices, &mut limits, harsh);
            NatsPlan::draw(choices, rooms, message_bytes_max, seed)
        });
        // Not drawn, as the interlude is not: plans are what they were before there was this. Where a stream gives the places nobody is told of a gap.
        let slow = match seed / 70_000 % 6 {
            _ if nats.is_some() => "",
            0 => "* drop_oldest",
            1 => "* conflate",
            2 => "room-0 conflate",
            _ => "",
        };
        let slow = SlowRules::new(slow.parse().into_iter().collect()).expect("a rule");
        limits.queue_soft_bytes = [300, 1000, 4000][seed as usize / 500_000 % 3];
        posters.iter_mut().for_each(|poster: &mut PosterPlan| poster.values = slow.thin_anybody());
        // In two of five some speak JSON; the others are drawn as if there were none in any.
        let talkers = match seed / 36_000_000 % 5 {
            0 => 1,
            1 => 3,
            _ => 0,
        };
        let thins = slow.thin_anybody();
        let mut talkers: Vec<TalkerPlan> = (0..talkers).map(|_| draw_talker(choices, rooms, message_bytes_max, harsh, thins)).collect();
        // In one of four the gateway compresses.
        let compression = (seed / 180_000_000).is_multiple_of(4);
        if compression {
            limits.deflate_bytes_min = choices.of(&[0, 16, 128]);
            limits.inflate_bytes_per_turn = choices.of(&[4 << 10, 4 << 20]);
            let offers = clients.iter_mut().map(|client| &mut client.offer).chain(talkers.iter_mut().map(|talker| &mut talker.offer));
            offers.for_each(|offer| *offer = choices.chance(700).then(|| choices.below(OFFERS.len())));
        }
        let mut features = Features { compression, ..Features::default() };
        if !talkers.is_empty() {
            features.presence = choices.chance(400);
            features.wildcards = choices.chance(400);
            limits.presence_tick_ms = choices.of(&[10, 200]);
            limits.batch_ms = choices.of(&[0, 1, 10, 200]);
        }
        for talker in &mut talkers {
            talker.watches = features.presence && choices.chance(700);
            if features.wildcards && choices.chance(500) {
                (talker.wild, talker.reader.rooms_len) = (true, rooms);
            }
        }
        let shards = ShardsPlan { shards, limits, slow, features, ring, seed };
        let interlude = match seed % 10 {
            0 => Interlude::Rebalance,
            1 => Interlude::CalledOff,
            2 | 3 if nats.is_none() => Interlude::HandOver,
            _ => Interlude::None,
        };
        // Another process does not know who has said what is in a history, and gives it to all who are behind.
        talkers.iter_mut().for_each(|talker| talker.mutes &= interlude != Interlude::HandOver);
        Self { shards, chaos, fds_max, harsh, rooms, clients, readers, pollers, posters, talkers, nats, epilogue, interlude, end }
    }

    /// The epoch of all positions.
    pub(super) fn epoch(&self) -> Epoch {
        self.nats.as_ref().map_or(Epoch(self.shards.seed), |nats| nats.epoch)
    }
}

fn draw_chaos(choices: &mut Choices, harsh: bool) -> Chaos {
    let mut rate = |rates: &[u16]| if choices.chance(500) { choices.of(rates) } else { 0 };
    Chaos {
        defer: rate(&[50, 300, 700]),
        reorder: rate(&[100, 500]),
        short_recv: rate(&[100, 500, 1000]),
        short_send: rate(&[100, 500, 1000]),
        starve: rate(&[20, 200]),
        lose_more: rate(&[50, 500, 1000]),
        accept_fails: rate(&[100, 300]),
        interrupt: rate(&[20, 200]),
        late_cancel: rate(&[300, 1000]),
        twice_cancel: rate(&[300, 1000]),
        late_wake: rate(&[300, 1000]),
        wake_fails: rate(&[200, 1000]),
        spurious_wake: rate(&[2]),
        break_link: rate(&[if harsh { 10 } else { 3 }]),
        ghost: rate(&[300, 1000]),
    }
}

fn draw_limits(choices: &mut Choices, harsh: bool) -> Limits {
    const KIB: u64 = 1024;
    let message_bytes_max = choices.of(&[256, KIB, 8 * KIB, 64 * KIB]);
    let mut limits = Limits {
        connections_max: 1_000_000,
        queued_bytes_max: 1 << 30,
        queue_bytes_max: 1 << 30,
        message_bytes_max,
        ping_interval_ms: choices.of(&[200, 1000, 45_000]),
        pong_timeout_ms: choices.of(&[1000, 10_000]),
        reader_hold_ms: choices.of(&[5, 50]),
        linger_ms: choices.of(&[100, 5000]),
        send_bytes_max: choices.of(&[KIB, 4 * KIB, 64 * KIB]),
        echo_bytes_max: choices.of(&[KIB, 64 * KIB]),
        topic_lag_bytes_max: choices.of(&[4 * KIB, 64 * KIB, 1024 * KIB]),
        publish_bytes_max: choices.of(&[4 * KIB, 256 * KIB]),
        segment_bytes_min: choices.of(&[256, KIB]),
        segment_bytes_max: choices.of(&[4 * KIB, 64 * KIB]),
        recv_buffers: choices.of(&[1, 2, 8, 64]),
        recv_buffer_bytes: choices.of(&[32, 128, 512, 4 * KIB]),
        requests_per_turn: choices.of(&[1, 2, 64]),
        replay_bytes_per_turn: choices.of(&[1024, 512 * 1024]),
        messages_per_turn: choices.of(&[1, 3, 1024]),
        fanout_sends_per_turn: choices.of(&[1, 3, 256]),
        closes_per_turn: choices.of(&[1, 256]),
        teardowns_per_turn: choices.of(&[1, 64]),
        mailbox_messages: choices.of(&[1, 2, 16, 256]),
        history_messages: choices.of(&[0, 1, 3, 100]),
        history_age_ms: choices.of(&[1_000, 5_000, 60_000]),
        history_bytes_max: choices.of(&[1, 2 * KIB, 16 * KIB, 1 << 30, 1 << 30, 1 << 30]),
        // More than all publishers of a simulation use.
        idempotency_keys: choices.of(&[64, 65_536]),
        sse_heartbeat_ms: choices.of(&[200, 1000, 15_000]),
        log_lines_per_second: 1,
        ..Limits::default()
    };
    if harsh {
        limits.connections_max = choices.of(&[3, 8, 1_000_000]);
        limits.refusals_max = choices.of(&[1, 256]);
        limits.topics_max = choices.of(&[1, 2, 1_000_000]);
        limits.queue_bytes_max = message_bytes_max.max(choices.of(&[4 * KIB, 16 * KIB]));
        limits.queue_frames_max = choices.of(&[16, 16_384]);
        limits.write_stall_ms = choices.of(&[200, 10_000]);
        limits.head_timeout_ms = choices.of(&[100, 10_000]);
        limits.queued_bytes_max = choices.of(&[64 * KIB, 256 * KIB, 1 << 30]);
        limits.topic_subscribers_max = choices.of(&[0, 0, 1, 2, 5]);
        limits.messages_per_second_per_topic = choices.of(&[0, 0, 0, 20]);
        limits.message_bytes_per_second_per_topic = choices.of(&[0, 0, 0, 10_000]);
        limits.messages_per_second = choices.of(&[0, 0, 0, 10]);
    }
    limits
}

fn draw_client(choices: &mut Choices, shards: u16, rooms: usize, message_bytes_max: usize, harsh: bool) -> ClientPlan {
    let room = Wish::Room(choices.below(rooms));
    let deaf = Reading::DeafAfter(choices.below(20));
    ClientPlan {
        wish: choices.of(&[room, room, room, room, room, room, room, Wish::Echo, Wish::Page, Wish::Garbage]),
        shard: ShardId(choices.below(shards.into()) as u16),
        no_echo: choices.chance(200),
        begin: draw_begin(choices),
        messages: choices.of(&[0, 1, 5, 25]),
        bytes_max: message_bytes_max.min(choices.of(&[16, 200, 1000, 70_000])),
        reading: choices.of(&[Reading::Greedy, Reading::Greedy, Reading::Greedy, Reading::Slow, deaf]),
        leaving: choices.of(&[Leaving::Stays, Leaving::Stays, Leaving::Closes, Leaving::Shuts, Leaving::Resets, Leaving::Vanishes]),
        link: LinkOptions {
            up_max: choices.of(&[64, 1024, 64 << 10]),
            // A client that reads all there is must not be slow for want of room.
            down_max: choices.of(&[64, 1024, 64 << 10]).max(message_bytes_max / 8),
            fragile: choices.chance(if harsh { 300 } else { 100 }),
            sink: false,
        },
        offer: None,
        witness: false,
        begins: Duration::from_micros(choices.below(30_000) as u64),
    }
}

pub(super) fn draw_begin(choices: &mut Choices) -> Begin {
    let last = Begin::Last(choices.of(&[0, 1, 2, 7, 1000]));
    let after = Begin::After { newest: choices.chance(300) };
    let stray = if choices.chance(100) { Begin::Stray { restart: choices.chance(500) } } else { after };
    choices.of(&[Begin::Live, Begin::Live, last, last, Begin::Earliest, after, after, stray])
}

fn draw_reader(choices: &mut Choices, rooms: usize, message_bytes_max: usize, harsh: bool) -> ReaderPlan {
    let first = choices.below(rooms);
    let deaf = Reading::DeafAfter(choices.below(20));
    ReaderPlan {
        rooms: std::array::from_fn(|index| (first + index) % rooms),
        rooms_len: choices.within(1..=rooms.min(READER_ROOMS_MAX)),
        begin: draw_begin(choices),
        reading: choices.of(&[Reading::Greedy, Reading::Greedy, Reading::Greedy, Reading::Greedy, Reading::Slow, deaf]),
        link: LinkOptions {
            up_max: choices.of(&[64, 1024]),
            // Events are larger than messages: base64, names and ids.
            down_max: choices.of(&[64, 1024, 64 << 10]).max(message_bytes_max / 8),
            fragile: choices.chance(if harsh { 300 } else { 200 }),
            sink: false,
        },
        lives: choices.of(&[1, 2, 3, 6]),
        cut_after: choices.of(&[0, 1, 3, 10, 50]),
        begins: Duration::from_micros(choices.below(30_000) as u64),
    }
}

fn draw_poller(choices: &mut Choices, rooms: usize, message_bytes_max: usize, harsh: bool) -> PollerPlan {
    let first = choices.below(rooms);
    PollerPlan {
        rooms: std::array::from_fn(|index| (first + index) % rooms),
        rooms_len: choices.within(1..=rooms.min(READER_ROOMS_MAX)),
        begin: draw_begin(choices),
        wait: Duration::from_secs(choices.of(&[0, 1, 25])),
        limit: choices.of(&[None, None, Some(2), Some(10)]),
        breaks: choices.of(&[0, 1, 5]),
        link: LinkOptions {
            up_max: choices.of(&[64, 1024]),
            down_max: choices.of(&[64, 1024, 64 << 10]).max(message_bytes_max / 8),
            fragile: choices.chance(if harsh { 300 } else { 200 }),
            sink: false,
        },
        begins: Duration::from_micros(choices.below(30_000) as u64),
    }
}

fn draw_poster(choices: &mut Choices, shards: u16, rooms: usize, message_bytes_max: usize, harsh: bool, stored: bool) -> PosterPlan {
    let keys = choices.chance(600);
    let fragile = choices.chance(if keys && !harsh { 400 } else { 100 });
    // What may break must come to an end before it does, once.
    let most = if fragile { 1000 } else { 70_000 };
    PosterPlan {
        room: choices.below(rooms),
        shard: ShardId(choices.below(shards.into()) as u16),
        messages: choices.of(&[1, 3, 10]),
        bytes_max: message_bytes_max.min(choices.of(&[16, 200, 1000, most])),
        ack: choices.of(&["accepted", if stored { "stored" } else { "accepted" }, "sent", "sent"]),
        keys,
        // Where the clock jumps a key may be forgotten meanwhile.
        repeats: keys && !harsh && choices.chance(500),
        values: false,
        link: LinkOptions { up_max: choices.of(&[64, 1024, 64 << 10]), down_max: choices.of(&[64, 1024]), fragile, sink: false },
        begins: Duration::from_micros(choices.below(30_000) as u64),
    }
}

fn draw_talker(choices: &mut Choices, rooms: usize, message_bytes_max: usize, harsh: bool, thins: bool) -> TalkerPlan {
    let reader = draw_reader(choices, rooms, message_bytes_max, harsh);
    let speaks = !matches!(reader.reading, Reading::DeafAfter(_));
    let names = choices.chance(500);
    TalkerPlan {
        reader,
        // Fewer than idempotency keys are remembered, with those of publishers over HTTP.
        messages: if speaks { choices.of(&[0, 1, 5, 10]) } else { 0 },
        bytes_max: message_bytes_max.min(choices.of(&[16, 200, 1000, 70_000])),
        names,
        repeats: names && !harsh && choices.chance(500),
        values: thins,
        // With keys, what it does not want replaces what it wants.
        offer: None,
        watches: false,
        wild: false,
        batches: choices.chance(400),
        mutes: !thins && choices.chance(300),
        whims: if speaks { choices.of(&[0, 3, 10]) } else { 0 },
    }
}
