//! The mailbox: whoever has mail is awake, or somebody wakes it.
//!
//! What was broken on purpose, and what loom said. The first six fail in every model in which a receiver lies down:
//!
//! - no fence in `rouse`; none in `lie_down`; both AcqRel; `rouse` loads before its fence; `lie_down` stores after its own; `try_sleep` looks into the
//!   rings before it lies down: "sleeps with 1 messages, woken 0 times", "deadlock", and with an overflow "exceeded maximum number of branches";
//! - `rouse` stores false instead of taking the flag, or leaves it: "lay down once, woken 2 times", and "state.notified" where a wake-up too many meets a
//!   join;
//! - `try_sleep` forgets the overflow: "nobody tells it when the ring has room again";
//! - `flush` wakes nobody for what it moved from the overflow: "exceeded maximum number of branches", for the other side waits for ever;
//! - `send` passes the overflow: message 3 before message 2;
//! - the ring looks for new messages once only: "deadlock".
//!
//! With a swap instead of the compare-and-exchange loom reports deadlocks that no machine has: it lets a store of the receiver come between the
//! read and the write of a swap that finds false, and so a later load of the sender miss it.

use std::collections::BTreeSet;

use loom::thread::{self, Thread};
use shardcast::engine::mailbox::{Mailbox, mesh};
use shardcast::ids::ShardId;

use crate::search::{assert_among, outcomes};

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);
const C: ShardId = ShardId(2);

fn mailboxes<const N: usize>(messages: usize) -> [Mailbox<u8>; N] {
    mesh(N, messages).try_into().ok().expect("as many as asked for")
}

/// Sends one message and says how often the target was to be woken.
fn send(mailbox: &mut Mailbox<u8>, to: ShardId, message: u8) -> usize {
    let mut wakes = 0;
    mailbox.send(to, message);
    mailbox.flush(|shard| {
        assert_eq!(shard, to);
        wakes += 1;
    });
    wakes
}

/// Sends one message to the shard that runs on `thread`, and wakes it when that is called for.
fn send_and_wake(mailbox: &mut Mailbox<u8>, to: ShardId, message: u8, thread: &Thread) -> usize {
    let wakes = send(mailbox, to, message);
    (0..wakes).for_each(|_| thread.unpark());
    wakes
}

/// What a shard got, and how it spent the time until then.
#[derive(Default)]
struct Received {
    messages: Vec<(ShardId, u8)>,
    lay_down: usize,
    slept: usize,
}

/// Receives until there are `count` messages, as a shard does: takes what is there, lies down when there is nothing, and sleeps until it is woken. loom reports a
/// deadlock when nobody ever does that.
fn receive(mailbox: &mut Mailbox<u8>, count: usize) -> Received {
    let mut received = Received::default();
    while received.messages.len() < count {
        if let Some(message) = mailbox.receive_one() {
            received.messages.push(message);
            continue;
        }
        received.lay_down += 1;
        if mailbox.try_sleep() {
            received.slept += 1;
            thread::park();
        }
        mailbox.awake();
    }
    received
}

/// How one attempt to sleep ended: whether the receiver sleeps, how many messages lie in its rings, how often it was to be woken.
type Rest = (bool, usize, usize);

fn assert_woken(outcomes: &BTreeSet<Rest>) {
    for &(sleeps, mail, wakes) in outcomes {
        assert!(!sleeps || mail == 0 || wakes == 1, "sleeps with {mail} messages, woken {wakes} times");
        assert!(wakes <= 1, "lay down once, woken {wakes} times");
        assert!(sleeps || mail > 0, "stays awake for nothing");
    }
}

#[test]
fn a_receiver_with_mail_does_not_sleep_or_is_woken() {
    let outcomes = outcomes(None, || {
        let [mut a, mut b] = mailboxes(2);
        let receiver = thread::spawn(move || {
            while b.receive_one().is_some() {}
            (b.try_sleep(), b)
        });
        let wakes = send(&mut a, B, 1);
        let (sleeps, b) = receiver.join().expect("no panic");
        (sleeps, b.depth(), wakes)
    });
    assert_woken(&outcomes);
    assert_among(&outcomes, [(true, 1, 1), (false, 1, 0), (true, 0, 0)]);
}

#[test]
fn of_two_senders_exactly_one_wakes_a_sleeper() {
    let outcomes = outcomes(None, || {
        let [mut a, mut b, mut c] = mailboxes(1);
        let senders = [thread::spawn(move || send(&mut a, C, 1)), thread::spawn(move || send(&mut b, C, 2))];
        let sleeps = c.try_sleep();
        let wakes = senders.map(|sender| sender.join().expect("no panic")).iter().sum();
        (sleeps, c.depth(), wakes)
    });
    assert_woken(&outcomes);
    assert_among(&outcomes, [(true, 2, 1), (false, 2, 0), (false, 2, 1)]);
}

#[test]
fn two_senders_never_leave_a_receiver_asleep() {
    // The bound is for the time it takes: 2 s with 3, 13 s with 4, 85 s with 5.
    let outcomes = outcomes(Some(3), || {
        let [a, b, mut c] = mailboxes(1);
        let receiver = thread::current();
        let senders = [(a, 1), (b, 2)].map(|(mut mailbox, message)| {
            let receiver = receiver.clone();
            thread::spawn(move || send_and_wake(&mut mailbox, C, message, &receiver))
        });
        let mut received = receive(&mut c, 2);
        received.messages.sort();
        assert_eq!(received.messages, [(A, 1), (B, 2)]);
        let wakes: usize = senders.map(|sender| sender.join().expect("no panic")).iter().sum();
        assert!(wakes <= received.lay_down, "lay down {} times, woken {wakes} times", received.lay_down);
        received.slept
    });
    assert_among(&outcomes, [0, 1, 2]);
}

#[test]
fn a_sleep_that_something_else_ends_loses_nothing() {
    // The bound is for the time it takes: 2 s with 4, 4 s with 5; without one 4.8 million interleavings, 3 minutes.
    let outcomes = outcomes(Some(4), || {
        let [mut a, mut b] = mailboxes(2);
        let receiver = thread::current();
        let sender = thread::spawn(move || (1..=2).map(|message| send_and_wake(&mut a, B, message, &receiver)).sum::<usize>());
        // A deadline, or an event of a socket: up again, and nobody said so to the sender.
        b.try_sleep();
        b.awake();
        let received = receive(&mut b, 2);
        assert_eq!(received.messages, [(A, 1), (A, 2)]);
        sender.join().expect("no panic");
        received.slept
    });
    assert_among(&outcomes, [0, 1, 2]);
}

#[test]
fn what_a_full_ring_refuses_comes_with_later_flushes() {
    // The bound is for the time it takes: 2 s with 4, 18 s with 5.
    let outcomes = outcomes(Some(4), || {
        let [mut a, mut b] = mailboxes(1);
        let receiver = thread::current();
        let sender = thread::spawn(move || {
            (1..=3).for_each(|message| a.send(B, message));
            let mut waited = false;
            loop {
                a.flush(|_| receiver.unpark());
                if a.overflow() == 0 {
                    break;
                }
                assert!(!a.try_sleep(), "nobody tells it when the ring has room again");
                waited = true;
                thread::yield_now();
            }
            assert!(a.try_sleep(), "all is delivered, and it has no mail");
            waited
        });
        let received = receive(&mut b, 3);
        assert_eq!(received.messages, [(A, 1), (A, 2), (A, 3)]);
        (sender.join().expect("no panic"), received.slept > 0)
    });
    assert_among(&outcomes, [(true, false), (true, true)]);
}

#[test]
fn two_shards_that_answer_each_other_may_both_lie_down() {
    // The bound is for the time it takes: 2 s with 5, 45 s without one.
    let outcomes = outcomes(Some(5), || {
        let [mut a, mut b] = mailboxes(2);
        let first = thread::current();
        let second = thread::spawn(move || {
            send_and_wake(&mut b, A, 1, &first);
            let received = receive(&mut b, 1);
            assert_eq!(received.messages, [(A, 1)]);
            send_and_wake(&mut b, A, 2, &first);
            received.slept
        });
        send_and_wake(&mut a, B, 1, second.thread());
        let received = receive(&mut a, 2);
        assert_eq!(received.messages, [(B, 1), (B, 2)]);
        (received.slept, second.join().expect("no panic"))
    });
    assert_among(&outcomes, [(0, 0), (1, 1), (2, 0)]);
}
