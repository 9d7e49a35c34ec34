//! The mesh between shards: a bounded ring for every ordered pair, and wake-ups for those who sleep.
//!
//! Each shard owns one [`Mailbox`]. [`Mailbox::send`] never blocks, or two shards could wait for each other: what the ring does not take waits with the sender, in
//! order, until a later [`Mailbox::flush`]. The mailbox does not know what a message is, and it does not wake anyone itself: `flush` says whom, the
//! driver does it.
//!
//! ## Who wakes whom
//! Waking costs a system call, so only a sleeper is woken. Both sides first say what they did and then look at what the other did (Dekker's protocol):
//!
//! ```text
//! sender                              receiver
//!   push into the ring                  sleeping = true
//!   fence(SeqCst)                       fence(SeqCst)
//!   was it sleeping? then wake it       is there a message? then stay awake
//! ```
//!
//! Without the fences each side's store may still sit in its store buffer while its load runs ahead (store-load reordering, which
//! Release and Acquire permit): the sender sees an awake receiver, the receiver an empty ring, and the message lies there while the receiver sleeps. With them, the
//! two fences have an order, and whoever comes second sees the other's store. The sender takes the flag with a compare-and-exchange, so that of several senders one wakes; a receiver that wakes
//! for another reason finds the message anyhow, and at worst is woken once for nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::ids::ShardId;
use crate::sync::{AtomicBool, Consumer, Ordering, Producer, PushError, RingBuffer, fence};

/// Messages taken from one source before the next one has its turn.
const BURST: usize = 32;

/// Whether a shard sleeps, for those who may have to wake it. On cache lines of its own (two: they are prefetched in pairs).
#[repr(align(128))]
#[derive(Debug)]
struct Sleeper {
    sleeping: AtomicBool,
}

impl Sleeper {
    fn new() -> Self {
        Self { sleeping: AtomicBool::new(false) }
    }

    /// The receiver is about to sleep. It must look for messages after this, and call [`stay_awake`](Self::stay_awake) when there are some.
    fn lie_down(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The receiver is up; senders need not wake it.
    fn stay_awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// A sender has pushed something. Whether it is the one who has to wake the receiver.
    fn rouse(&self) -> bool {
        fence(Ordering::SeqCst);
        // The load keeps the line shared while the receiver is busy, which is when most is sent. Who finds the flag taken writes nothing.
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

struct Outgoing<T> {
    shard: ShardId,
    ring: Producer<T>,
    /// What the ring did not take, behind everything in it.
    overflow: VecDeque<T>,
    /// Whether the ring got something since the last flush.
    fresh: bool,
}

impl<T> Outgoing<T> {
    /// Puts a message into the ring, or gives it back when the ring is full.
    fn push(&mut self, message: T) -> Result<(), T> {
        self.ring.push(message).map_err(|PushError::Full(message)| message)?;
        self.fresh = true;
        Ok(())
    }
}

struct Incoming<T> {
    shard: ShardId,
    ring: Consumer<T>,
}

/// One shard's end of the mesh.
pub struct Mailbox<T> {
    shard: ShardId,
    sleepers: Arc<[Sleeper]>,
    /// All other shards by number, without a gap where this one would be.
    outgoing: Vec<Outgoing<T>>,
    incoming: Vec<Incoming<T>>,
    overflow: usize,
    /// Messages sent so far.
    sent: u64,
    /// The source whose turn it is, and how many messages it may still give before the next one's.
    source: usize,
    burst: usize,
}

/// Connects `shards` shards, every one with every other, by rings of `messages` messages. The mailboxes are in the order of the shards.
///
/// # Panics
/// If there is no shard or more than 65,536, or if rings would hold nothing.
pub fn mesh<T: Send>(shards: usize, messages: usize) -> Vec<Mailbox<T>> {
    assert!((1..=1 << 16).contains(&shards) && messages > 0, "mesh of {shards} shards with rings of {messages} messages");
    let sleepers: Arc<[Sleeper]> = (0..shards).map(|_| Sleeper::new()).collect();
    let mut mailboxes: Vec<Mailbox<T>> = (0..shards)
        .map(|shard| Mailbox {
            shard: ShardId(shard as u16),
            sleepers: Arc::clone(&sleepers),
            outgoing: Vec::with_capacity(shards - 1),
            incoming: Vec::with_capacity(shards - 1),
            overflow: 0,
            sent: 0,
            source: 0,
            burst: BURST,
        })
        .collect();
    for from in 0..shards {
        for to in (0..shards).filter(|&to| to != from) {
            let (producer, consumer) = RingBuffer::new(messages);
            mailboxes[from].outgoing.push(Outgoing { shard: ShardId(to as u16), ring: producer, overflow: VecDeque::new(), fresh: false });
            mailboxes[to].incoming.push(Incoming { shard: ShardId(from as u16), ring: consumer });
        }
    }
    mailboxes
}

impl<T: Send> Mailbox<T> {
    /// Sends a message; the target sees it, but is not woken before the next [`flush`](Self::flush). Beyond the ring's size messages wait here, without a bound:
    /// the caller bounds what it has outstanding (per topic and target one batch), or looks at [`overflow`](Self::overflow).
    ///
    /// # Panics
    /// If `to` is this shard or does not exist.
    pub fn send(&mut self, to: ShardId, message: T) {
        assert!(to != self.shard && to.index() < self.sleepers.len(), "shard {} cannot send to shard {to}", self.shard);
        self.sent += 1;
        let outgoing = &mut self.outgoing[to.index() - usize::from(to > self.shard)];
        let refused = if outgoing.overflow.is_empty() { outgoing.push(message) } else { Err(message) };
        if let Err(message) = refused {
            outgoing.overflow.push_back(message);
            self.overflow += 1;
        }
    }

    /// Moves what waits into the rings as far as they have room, and calls `wake` for each shard that got something since the last flush and sleeps. To
    /// be called once a turn, after everything was sent.
    pub fn flush(&mut self, mut wake: impl FnMut(ShardId)) {
        for outgoing in &mut self.outgoing {
            while !outgoing.ring.is_full()
                && let Some(message) = outgoing.overflow.pop_front()
            {
                let taken = outgoing.push(message);
                assert!(taken.is_ok(), "a ring that has room takes a message: only this side fills it");
                self.overflow -= 1;
            }
            if std::mem::take(&mut outgoing.fresh) && self.sleepers[outgoing.shard.index()].rouse() {
                wake(outgoing.shard);
            }
        }
    }

    /// Messages that wait here because their ring is full.
    pub fn overflow(&self) -> usize {
        self.overflow
    }

    /// Hands at most `budget` messages to `handle` and returns how many. Messages of one shard come in their order; shards take turns, so that a flood
    /// of one does not hold up the others.
    pub fn receive(&mut self, budget: usize, mut handle: impl FnMut(ShardId, T)) -> usize {
        for count in 0..budget {
            let Some((from, message)) = self.receive_one() else { return count };
            handle(from, message);
        }
        budget
    }

    /// The next message, in the same order as [`receive`](Self::receive); for handlers that need the mailbox themselves, to answer.
    pub fn receive_one(&mut self) -> Option<(ShardId, T)> {
        // One more than there are sources: the first may be left because its burst is over, and be the only one that has something.
        for _ in 0..=self.incoming.len() {
            if self.burst > 0
                && let Some(incoming) = self.incoming.get_mut(self.source)
                && let Ok(message) = incoming.ring.pop()
            {
                self.burst -= 1;
                return Some((incoming.shard, message));
            }
            self.source = if self.source + 1 < self.incoming.len() { self.source + 1 } else { 0 };
            self.burst = BURST;
        }
        None
    }

    /// Says that this shard is about to sleep, so that senders wake it. False, and nothing said, when there is a reason to stay awake: a message that came in, one that waits for
    /// room in a ring, or one that was not flushed. A sender whose target's ring is full gets no call when there is room again; it may sleep for a short while without this
    /// being true, at the price of not being woken meanwhile.
    pub fn try_sleep(&mut self) -> bool {
        if self.overflow > 0 || self.outgoing.iter().any(|outgoing| outgoing.fresh) {
            return false;
        }
        self.sleepers[self.shard.index()].lie_down();
        // `is_empty` reads the sender's position anew whenever the known one says "empty": after the fence, as the protocol needs.
        let nothing = self.incoming.iter().all(|incoming| incoming.ring.is_empty());
        if !nothing {
            self.awake();
        }
        nothing
    }

    /// Says that this shard is up again; to be called after every sleep, whatever ended it.
    pub fn awake(&mut self) {
        self.sleepers[self.shard.index()].stay_awake();
    }

    /// Messages sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages that wait to be received.
    pub fn depth(&self) -> usize {
        self.incoming.iter().map(|incoming| incoming.ring.slots()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU64;
    use std::thread::{self, Thread};
    use std::time::Duration;

    use super::*;

    fn received(mailbox: &mut Mailbox<u64>, budget: usize) -> Vec<(u16, u64)> {
        let mut messages = Vec::new();
        let count = mailbox.receive(budget, |from, message| messages.push((from.0, message)));
        assert_eq!(count, messages.len());
        messages
    }

    fn woken(mailbox: &mut Mailbox<u64>) -> Vec<u16> {
        let mut shards = Vec::new();
        mailbox.flush(|shard| shards.push(shard.0));
        shards
    }

    #[test]
    fn flags_do_not_share_cache_lines() {
        assert_eq!((align_of::<Sleeper>(), size_of::<Sleeper>()), (128, 128));
    }

    #[test]
    fn every_shard_reaches_every_other_and_never_itself() {
        let mut mailboxes = mesh::<u64>(4, 8);
        for from in 0..4_u16 {
            for to in (0..4_u16).filter(|&to| to != from) {
                mailboxes[from as usize].send(ShardId(to), u64::from(from * 10 + to));
            }
        }
        for to in 0..4_u16 {
            let expect: Vec<_> = (0..4).filter(|&from| from != to).map(|from| (from, u64::from(from * 10 + to))).collect();
            assert_eq!(mailboxes[to as usize].depth(), 3);
            assert_eq!(received(&mut mailboxes[to as usize], 100), expect);
            assert_eq!(mailboxes[to as usize].depth(), 0);
        }
    }

    #[test]
    #[should_panic(expected = "shard 1 cannot send to shard 1")]
    fn mail_to_oneself_is_a_mistake() {
        mesh::<u64>(2, 8)[1].send(ShardId(1), 0);
    }

    #[test]
    fn a_single_shard_has_no_mail_and_sleeps() {
        let mut mailbox = mesh::<u64>(1, 8).remove(0);
        assert_eq!(received(&mut mailbox, 8), []);
        assert!(mailbox.try_sleep());
    }

    #[test]
    fn what_a_full_ring_refuses_waits_in_order_behind_it() {
        let mut mailboxes = mesh::<u64>(2, 4);
        let (left, right) = mailboxes.split_at_mut(1);
        let (sender, receiver) = (&mut left[0], &mut right[0]);
        (0..10).for_each(|n| sender.send(ShardId(1), n));
        assert_eq!((sender.overflow(), receiver.depth()), (6, 4));
        assert_eq!(received(receiver, 3), [(0, 0), (0, 1), (0, 2)]);
        // The ring has room, but what waits goes first.
        sender.send(ShardId(1), 10);
        assert_eq!(sender.overflow(), 7);
        let mut seen = 3;
        while seen < 11 {
            woken(sender);
            for (_, n) in received(receiver, 100) {
                assert_eq!(n, seen);
                seen += 1;
            }
        }
        assert_eq!(sender.overflow(), 0);
    }

    #[test]
    fn a_flood_of_one_shard_does_not_starve_another() {
        let mut mailboxes = mesh::<u64>(3, 1000);
        (0..1000).for_each(|n| mailboxes[0].send(ShardId(2), n));
        (0..3).for_each(|n| mailboxes[1].send(ShardId(2), n));
        let first = received(&mut mailboxes[2], 2 * BURST);
        assert_eq!(first.iter().filter(|&&(from, _)| from == 1).count(), 3);
        // A budget below the burst goes on where it stopped.
        let mut rest = Vec::new();
        while let [message] = received(&mut mailboxes[2], 1)[..] {
            rest.push(message);
        }
        assert_eq!(first.len() + rest.len(), 1003);
    }

    #[test]
    fn only_a_sleeper_is_woken_and_only_once() {
        let mut mailboxes = mesh::<u64>(3, 8);
        mailboxes[0].send(ShardId(2), 1);
        assert_eq!(woken(&mut mailboxes[0]), [0_u16; 0]);
        assert!(!mailboxes[2].try_sleep(), "there is mail");
        received(&mut mailboxes[2], 8);
        assert!(mailboxes[2].try_sleep());
        assert_eq!(woken(&mut mailboxes[0]), [0_u16; 0], "nothing was sent since");
        mailboxes[0].send(ShardId(2), 2);
        mailboxes[1].send(ShardId(2), 3);
        assert_eq!(woken(&mut mailboxes[0]), [2]);
        assert_eq!(woken(&mut mailboxes[1]), [0_u16; 0]);
        mailboxes[2].awake();
        received(&mut mailboxes[2], 8);
        assert!(mailboxes[2].try_sleep());
        mailboxes[2].awake();
        mailboxes[1].send(ShardId(2), 4);
        assert_eq!(woken(&mut mailboxes[1]), [0_u16; 0]);
    }

    #[test]
    fn a_shard_with_mail_of_its_own_to_deliver_does_not_sleep() {
        let mut mailboxes = mesh::<u64>(2, 1);
        mailboxes[0].send(ShardId(1), 1);
        assert!(!mailboxes[0].try_sleep(), "not flushed");
        woken(&mut mailboxes[0]);
        assert!(mailboxes[0].try_sleep());
        mailboxes[0].awake();
        mailboxes[0].send(ShardId(1), 2);
        assert!(!mailboxes[0].try_sleep(), "no room");
    }

    /// One shard's thread: parks when it may, and panics when it was parked for ten seconds, which means a lost wake-up.
    fn park(mailbox: &mut Mailbox<u64>, unparked: &dyn Fn() -> bool) {
        if mailbox.try_sleep() {
            // The flag falls when a sender takes it, so a spurious return parks again.
            let mut naps = 0;
            while mailbox.sleepers[mailbox.shard.index()].sleeping.load(Ordering::Relaxed) && !unparked() {
                thread::park_timeout(Duration::from_secs(1));
                naps += 1;
                assert!(naps < 10, "shard {} slept through its mail: {} waiting", mailbox.shard, mailbox.depth());
            }
            mailbox.awake();
        } else {
            thread::yield_now();
        }
    }

    #[test]
    fn the_sender_sees_a_sleeper_or_the_sleeper_sees_the_message() {
        const ROUNDS: u64 = 50_000;
        let mut mailboxes = mesh::<u64>(2, 4);
        let (mut receiver, mut sender) = (mailboxes.pop().expect("two"), mailboxes.pop().expect("two"));
        let (receiver_at, sender_at) = (AtomicU64::new(0), AtomicU64::new(0));
        // Both begin a round together, as nearly as can be, so that the stores of both may be in flight at once.
        let meet = |mine: &AtomicU64, other: &AtomicU64, step: u64| {
            mine.store(step, Ordering::SeqCst);
            let mut spins = 0_u32;
            while other.load(Ordering::SeqCst) < step {
                spins += 1;
                if spins.is_multiple_of(1000) { thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        let lost = thread::scope(|scope| {
            let woken = scope.spawn(|| {
                let mut woken = Vec::new();
                for round in 0..ROUNDS {
                    meet(&sender_at, &receiver_at, 2 * round + 1);
                    sender.send(ShardId(1), round);
                    let mut calls = 0;
                    sender.flush(|_| calls += 1);
                    woken.push(calls == 1);
                    meet(&sender_at, &receiver_at, 2 * round + 2);
                }
                woken
            });
            let mut slept = Vec::new();
            for round in 0..ROUNDS {
                meet(&receiver_at, &sender_at, 2 * round + 1);
                // Sending takes longer than lying down; so the two meet at one of these delays.
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                slept.push(receiver.try_sleep());
                meet(&receiver_at, &sender_at, 2 * round + 2);
                receiver.awake();
                assert_eq!(receiver.receive_one(), Some((ShardId(0), round)));
            }
            let woken = woken.join().expect("the sender goes on");
            slept.into_iter().zip(woken).filter(|&(slept, woken)| slept && !woken).count()
        });
        assert_eq!(lost, 0, "rounds in which the receiver slept and nobody woke it");
    }

    #[test]
    fn two_sleepers_play_ping_pong_without_losing_a_wake_up() {
        const ROUNDS: u64 = 100_000;
        let threads: [OnceLock<Thread>; 2] = [const { OnceLock::new() }; 2];
        thread::scope(|scope| {
            for mut mailbox in mesh::<u64>(2, 4) {
                let threads = &threads;
                scope.spawn(move || {
                    let (me, other) = (mailbox.shard, ShardId(1 - mailbox.shard.0));
                    threads[me.index()].set(thread::current()).expect("set once");
                    let wake = |shard: ShardId| threads[shard.index()].get().expect("who sleeps has started").unpark();
                    let mut expect = u64::from(me.0);
                    if me.0 == 0 {
                        mailbox.send(other, 1);
                        expect = 2;
                    }
                    while expect <= ROUNDS {
                        mailbox.flush(wake);
                        while let Some((_, n)) = mailbox.receive_one() {
                            assert_eq!(n, expect);
                            expect += 2;
                            mailbox.send(other, n + 1);
                        }
                        mailbox.flush(wake);
                        park(&mut mailbox, &|| expect > ROUNDS);
                    }
                });
            }
        });
    }

    #[test]
    fn three_shards_lose_nothing_and_keep_order_per_pair() {
        const SHARDS: usize = 3;
        const MESSAGES: u64 = 100_000;
        let threads: [OnceLock<Thread>; SHARDS] = [const { OnceLock::new() }; SHARDS];
        thread::scope(|scope| {
            for mut mailbox in mesh::<u64>(SHARDS, 16) {
                let threads = &threads;
                scope.spawn(move || {
                    let me = mailbox.shard;
                    threads[me.index()].set(thread::current()).expect("set once");
                    let wake = |shard: ShardId| threads[shard.index()].get().expect("who sleeps has started").unpark();
                    let others: Vec<_> = (0..SHARDS as u16).map(ShardId).filter(|&shard| shard != me).collect();
                    let mut sent = 0;
                    let mut seen = [0; SHARDS];
                    while sent < MESSAGES || mailbox.overflow() > 0 || others.iter().any(|from| seen[from.index()] < MESSAGES) {
                        // Now and then a batch larger than the ring.
                        let batch = if sent % 1000 == 0 { 40 } else { 5 };
                        for _ in 0..batch.min(MESSAGES - sent) {
                            others.iter().for_each(|&to| mailbox.send(to, sent));
                            sent += 1;
                        }
                        mailbox.flush(wake);
                        mailbox.receive(64, |from, n| {
                            assert_eq!(n, seen[from.index()], "from shard {from} to shard {me}");
                            seen[from.index()] += 1;
                        });
                        let done = others.iter().all(|from| seen[from.index()] == MESSAGES);
                        if mailbox.overflow() > 256 || sent == MESSAGES {
                            park(&mut mailbox, &|| done);
                        }
                    }
                });
            }
        });
    }
}
