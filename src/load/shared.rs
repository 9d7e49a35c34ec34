//! What the threads of a run share: counts that are atomic, the schedule, and bells that wake a thread out of its runtime.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::clock::Clock;
use super::plan::{Plan, Pressure};
use crate::time::Time;

/// Everything that is shared.
pub(super) struct Shared {
    pub(super) clock: Clock,
    schedule: [AtomicU64; 3],
    /// The run cannot go on; everyone ends.
    pub(super) abort: AtomicBool,
    /// Connections that are open; in a storm, that were opened in this cycle.
    pub(super) open: AtomicU32,
    /// The cycle of a storm that threads may begin; of a resume, how many of its steps they may.
    pub(super) cycle: AtomicU32,
    pub(super) publishers: Vec<Publisher>,
    pub(super) bells: Vec<Bell>,
    pub(super) gauges: Vec<Gauge>,
}

/// When what happens, known once all connections are open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) start: Time,
    /// The window that is measured.
    pub(super) begin: Time,
    pub(super) end: Time,
}

impl Schedule {
    pub(super) fn measures(&self, at: Time) -> bool {
        self.begin <= at && at < self.end
    }
}

/// Running counts of one thread, for the progress line: one writer each.
#[derive(Default)]
pub(super) struct Gauge {
    pub(super) thread: AtomicU32,
    pub(super) published: AtomicU64,
    pub(super) deliveries: AtomicU64,
    /// The longest latency in nanoseconds since somebody looked.
    pub(super) worst: AtomicU64,
}

impl Shared {
    pub(super) fn new(plan: &Plan) -> io::Result<(Self, Vec<Ear>)> {
        let (bells, ears) = (0..plan.threads).map(|_| bell()).collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        let in_flight = match plan.pressure {
            Pressure::Closed { in_flight } => in_flight,
            Pressure::Open { .. } => 0,
        };
        let publishers = (0..plan.publishers_total())
            .map(|publisher| Publisher {
                thread: plan.thread(plan.client_of(publisher)),
                ledger: AtomicU64::new(0),
                flights: (0..in_flight).map(|_| AtomicU64::new(0)).collect(),
            })
            .collect();
        let shared = Self {
            clock: Clock::new(),
            schedule: Default::default(),
            abort: AtomicBool::new(false),
            open: AtomicU32::new(0),
            cycle: AtomicU32::new(0),
            publishers,
            bells,
            gauges: (0..plan.threads).map(|_| Gauge::default()).collect(),
        };
        Ok((shared, ears))
    }

    /// Lets the traffic begin, and sets when it ends.
    pub(super) fn set_schedule(&self, schedule: Schedule) {
        for (shared, time) in self.schedule.iter().zip([schedule.end, schedule.begin, schedule.start]).rev() {
            shared.store(time.as_nanos(), Ordering::Release);
        }
        self.ring_all();
    }

    pub(super) fn schedule(&self) -> Option<Schedule> {
        let [end, begin, start] = self.schedule.each_ref().map(|shared| Time::from_nanos(shared.load(Ordering::Acquire)));
        // The end is written last.
        (end != Time::ZERO).then_some(Schedule { start, begin, end })
    }

    pub(super) fn ring_all(&self) {
        for bell in &self.bells {
            bell.ring();
        }
    }

    pub(super) fn aborted(&self) -> bool {
        self.abort.load(Ordering::Acquire)
    }

    /// Ends everything early.
    pub(super) fn abort(&self) {
        self.abort.store(true, Ordering::Release);
        self.ring_all();
    }
}

/// One publisher, as all threads see it.
pub(super) struct Publisher {
    /// The thread that has its connection.
    pub(super) thread: usize,
    /// Messages sent, which is the next sequence, and in the lower half how many receivers a message has. In one word, so that each message has
    /// either counted a receiver that comes or goes, or not.
    ledger: AtomicU64,
    /// In a closed loop, for each message on its way: its sequence, and in the lower half how many receivers do not have it yet.
    flights: Box<[AtomicU64]>,
}

/// One message in a [`Publisher`]'s ledger.
const MESSAGE: u64 = 1 << 32;

impl Publisher {
    fn flight(&self, sequence: u32) -> Option<&AtomicU64> {
        (!self.flights.is_empty()).then(|| &self.flights[sequence as usize % self.flights.len()])
    }

    /// Messages sent, which is the next sequence.
    pub(super) fn sent(&self) -> u32 {
        (self.ledger.load(Ordering::Acquire) >> 32) as u32
    }

    /// Receivers of the next message.
    pub(super) fn receivers(&self) -> u32 {
        self.ledger.load(Ordering::Acquire) as u32
    }

    /// One receiver more. Returns the first sequence that counts it.
    pub(super) fn join(&self) -> u32 {
        (self.ledger.fetch_add(1, Ordering::AcqRel) >> 32) as u32
    }

    /// One receiver less. Returns the first sequence that does not count it.
    pub(super) fn leave(&self) -> u32 {
        let before = self.ledger.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before as u32 > 0, "who leaves has joined");
        (before >> 32) as u32
    }

    /// Whether this message may take off: the one before it in its place has landed.
    pub(super) fn is_free(&self, sequence: u32) -> bool {
        self.flight(sequence).is_none_or(|flight| flight.load(Ordering::Acquire) as u32 == 0)
    }

    /// The next message is on its way to everyone who has joined.
    pub(super) fn take_off(&self, sequence: u32) {
        let mut ledger = self.ledger.load(Ordering::Acquire);
        debug_assert_eq!((ledger >> 32) as u32, sequence, "messages take off one after the other");
        loop {
            // Nobody looks at this place before the ledger says that the message was sent.
            if let Some(flight) = self.flight(sequence) {
                flight.store(u64::from(sequence) << 32 | u64::from(ledger as u32), Ordering::Release);
            }
            match self.ledger.compare_exchange_weak(ledger, ledger.wrapping_add(MESSAGE), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => ledger = now,
            }
        }
    }

    /// Gives the message up that has this one's place.
    pub(super) fn give_up(&self, sequence: u32) {
        if let Some(flight) = self.flight(sequence) {
            flight.store(0, Ordering::Release);
        }
    }

    /// One more receiver has it. True when it was the last one.
    pub(super) fn land(&self, sequence: u32) -> bool {
        let Some(flight) = self.flight(sequence) else { return false };
        let mut seen = flight.load(Ordering::Relaxed);
        loop {
            // A message that was given up is not in its place any more.
            if (seen >> 32) as u32 != sequence || seen as u32 == 0 {
                return false;
            }
            match flight.compare_exchange_weak(seen, seen - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return seen as u32 == 1,
                Err(now) => seen = now,
            }
        }
    }

    /// The messages that may still be on their way.
    pub(super) fn aloft(&self) -> std::ops::Range<u32> {
        let sent = self.sent();
        sent.saturating_sub(self.flights.len() as u32)..sent
    }
}

/// Wakes one thread. The runtime cannot be woken from outside, but a byte in a socket that it reads can.
pub(super) struct Bell {
    rung: std::sync::Arc<AtomicBool>,
    stream: UnixStream,
    landed: Sender<u32>,
}

/// The other end of a [`Bell`].
pub(super) struct Ear {
    pub(super) rung: std::sync::Arc<AtomicBool>,
    pub(super) stream: UnixStream,
    /// Publishers of this thread, one of whose messages landed with its last receiver on another thread.
    pub(super) landed: Receiver<u32>,
}

fn bell() -> io::Result<(Bell, Ear)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let rung = std::sync::Arc::new(AtomicBool::new(false));
    let (sender, receiver) = channel();
    Ok((Bell { rung: rung.clone(), stream: near, landed: sender }, Ear { rung, stream: far, landed: receiver }))
}

impl Bell {
    pub(super) fn ring(&self) {
        // A bell that is still ringing is heard.
        if !self.rung.swap(true, Ordering::AcqRel) {
            let _ = (&self.stream).write(&[1]);
        }
    }

    /// Tells the publisher's thread that it may send.
    pub(super) fn landed(&self, publisher: u32) {
        let _ = self.landed.send(publisher);
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;
    use crate::load::plan::tests::plan;

    #[test]
    fn a_message_lands_with_its_last_receiver_and_only_then_frees_its_place() {
        let plan = plan("fanout --url ws://127.0.0.1:1/ -c 3 --in-flight 2").expect("it is valid");
        let (shared, _ears) = Shared::new(&plan).expect("sockets can be made");
        let publisher = &shared.publishers[0];
        assert_eq!([publisher.join(), publisher.join(), publisher.join()], [0; 3]);
        assert!(publisher.is_free(0));
        publisher.take_off(0);
        publisher.take_off(1);
        assert!(!publisher.is_free(2));
        assert_eq!([publisher.land(0), publisher.land(0), publisher.land(1), publisher.land(0)], [false, false, false, true]);
        assert!(publisher.is_free(2) && !publisher.is_free(3));
        assert!(!publisher.land(0), "once more does not count");
        publisher.take_off(2);
        assert_eq!(publisher.aloft(), 1..3);
        publisher.give_up(3);
        assert!(publisher.is_free(3) && !publisher.land(1), "what was given up does not land");
    }

    #[test]
    fn a_message_counts_who_has_joined_and_not_left_when_it_takes_off() {
        let plan = plan("fanout --url ws://127.0.0.1:1/ -c 3 --in-flight 4").expect("it is valid");
        let (shared, _ears) = Shared::new(&plan).expect("sockets can be made");
        let publisher = &shared.publishers[0];
        publisher.join();
        publisher.take_off(0);
        assert_eq!((publisher.join(), publisher.receivers()), (1, 2), "message 1 is the first that counts the second one");
        publisher.take_off(1);
        assert_eq!((publisher.leave(), publisher.receivers()), (2, 1));
        publisher.take_off(2);
        assert_eq!([0, 1, 1, 2].map(|sequence| publisher.land(sequence)), [true, false, true, true]);
    }

    #[test]
    fn every_message_lands_while_receivers_come_and_go_on_other_threads() {
        const MESSAGES: u32 = 20_000;
        let plan = plan("fanout --url ws://127.0.0.1:1/ -c 2 --in-flight 1").expect("it is valid");
        let (shared, _ears) = Shared::new(&plan).expect("sockets can be made");
        let publisher = &shared.publishers[0];
        publisher.join();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while publisher.sent() < MESSAGES {
                    let joined = publisher.join();
                    // It gets nothing, and leaves: nobody waits for it.
                    for sequence in joined..publisher.leave() {
                        publisher.land(sequence);
                    }
                }
            });
            for sequence in 0..MESSAGES {
                publisher.take_off(sequence);
                publisher.land(sequence);
                while !publisher.is_free(sequence + 1) {
                    std::hint::spin_loop();
                }
            }
        });
        assert_eq!((publisher.sent(), publisher.receivers()), (MESSAGES, 1));
    }

    fn heard(ear: &Ear, limit: Duration) -> bool {
        ear.stream.set_read_timeout(Some(limit)).expect("a time above zero");
        (&ear.stream).read(&mut [0; 8]).is_ok_and(|count| count > 0)
    }

    #[test]
    fn a_bell_rings_once_until_it_was_heard() {
        let (bell, ear) = bell().expect("sockets can be made");
        bell.ring();
        bell.landed(5);
        assert!(heard(&ear, Duration::from_secs(5)));
        assert_eq!(ear.landed.try_recv(), Ok(5));
        assert!(!heard(&ear, Duration::from_millis(1)));
        ear.rung.store(false, Ordering::Release);
        bell.ring();
        assert!(heard(&ear, Duration::from_secs(5)));
    }
}
