//! Resuming: event streams drop, their room goes on without them, and then all come back at once for what they missed, while others read on.
//!
//! A run is a list of [`Step`]s that all threads take together: the main thread says which one (`course`), and each tells when it is done. `comers` is
//! the part of the threads that have those who come back; `watchers` that of the last thread, which has everyone else; `result` is what comes of it.

mod comers;
mod result;
mod watchers;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::measure::{Latencies, Tally};
use super::plan::Plan;
use super::shared::Shared;
use super::storm::Cycle;
use super::worker::{Hearing, Worker};
use crate::time::Time;
use comers::Comers;
pub(super) use result::{Resumed, ResumedCycle, ServerCpu};
use watchers::Watchers;

/// The room that is missed, which is also the number of its publisher and of that one's client.
const MISSED: u32 = 0;
/// The room that is watched, likewise.
const WATCHED: u32 = 1;

/// What all threads do before any of them does the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Everyone connects. From here to the end the watchers get their messages.
    Open,
    /// The missed room gets so many messages.
    Publish(u32),
    /// Those who come back, and are here now, read to its end: it gives them a position, and shows that what was live follows what was missed.
    Read,
    /// They are reset.
    Drop,
    /// What that left behind is over when it ends.
    Settle,
    /// The watchers alone are measured.
    Quiet,
    /// All come back and read to the room's end; they and the watchers are measured.
    Resume,
    End,
}

impl Step {
    /// For the progress line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Open => "connecting",
            Self::Publish(_) => "publishing",
            Self::Read => "reading",
            Self::Drop => "dropping",
            Self::Settle => "warm-up",
            Self::Quiet => "quiet",
            Self::Resume => "resuming",
            Self::End => "ending",
        }
    }
}

/// The steps of a plan, in their order.
pub(super) fn steps(plan: &Plan) -> Vec<Step> {
    let behind = plan.resume.expect("the plan of this scenario has it").behind;
    let mut steps = vec![Step::Open, Step::Publish(1), Step::Read];
    for _ in 0..plan.cycles {
        steps.extend([Step::Drop, Step::Publish(behind), Step::Settle, Step::Quiet, Step::Resume, Step::Publish(1), Step::Read]);
    }
    steps.push(Step::End);
    steps
}

/// What one thread saw in one step.
#[derive(Default, Debug)]
pub(super) struct Part {
    /// Who was opened, who not, and why.
    pub(super) opened: Cycle,
    /// From the beginning of the step to a client's last message.
    pub(super) complete: Latencies,
    /// Clients that did not get to the room's end in time.
    pub(super) incomplete: u64,
    /// Times that a client was told that messages are missing.
    pub(super) gaps: u64,
    /// Why nothing that follows would mean anything.
    pub(super) hopeless: Option<String>,
    /// Of the last step.
    pub(super) ended: Option<Box<Ended>>,
}

impl Part {
    pub(super) fn add(&mut self, other: Self) {
        self.opened.add(other.opened);
        self.complete.add(&other.complete);
        self.incomplete += other.incomplete;
        self.gaps += other.gaps;
        self.hopeless = self.hopeless.take().or(other.hopeless);
        match (&mut self.ended, other.ended) {
            (Some(ended), Some(other)) => ended.add(*other),
            (ended, other) => *ended = ended.take().or(other),
        }
    }
}

/// What a thread counted over the whole run.
#[derive(Default, Debug)]
pub(super) struct Ended {
    pub(super) tally: Tally,
    /// Latencies of the watchers, of messages that were due in a quiet phase, and while others came back.
    pub(super) before: Latencies,
    pub(super) during: Latencies,
}

impl Ended {
    fn add(&mut self, other: Self) {
        self.tally.add(other.tally);
        self.before.add(&other.before);
        self.during.add(&other.during);
    }
}

/// Lets a thread's steps wait for their turn.
#[derive(Default)]
struct Turn(RefCell<Option<Waker>>);

impl Turn {
    /// Waits until the main thread has come to the step with this number.
    async fn of(&self, shared: &Shared, number: usize) {
        poll_fn(|context| {
            if shared.cycle.load(Ordering::Acquire) as usize > number || shared.aborted() {
                return Poll::Ready(());
            }
            *self.0.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The bell rang.
    fn look(&self) {
        let waker = self.0.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A thread's part from connecting to the end.
pub(super) async fn run(worker: Rc<Worker>, mut hearing: Hearing, reports: Sender<Part>) {
    let turn = Rc::new(Turn::default());
    let is_watchers = worker.index + 1 == usize::from(worker.plan.threads);
    let watchers = is_watchers.then(|| Rc::new(Watchers::new(worker.clone())));
    {
        let (turn, watchers) = (turn.clone(), watchers.clone());
        drop(monoio::spawn(async move {
            while hearing.hear().await {
                turn.look();
                if let Some(watchers) = &watchers {
                    watchers.send_due();
                }
            }
        }));
    }
    let mut comers = Comers::new(worker.clone());
    for (number, step) in steps(&worker.plan).into_iter().enumerate() {
        turn.of(&worker.shared, number).await;
        if worker.shared.aborted() {
            return;
        }
        let part = match &watchers {
            Some(watchers) => watchers.take(step).await,
            None => comers.take(step).await,
        };
        if reports.send(part).is_err() {
            return;
        }
    }
}

/// When the watchers' message with this number is due, counted since the run began.
fn due(rate: f64, number: u64) -> Time {
    Time::ZERO + Duration::from_secs_f64(number as f64 / rate)
}

/// The first message that is due at this time or later.
fn first_due(rate: f64, from: Time) -> u64 {
    (from.since(Time::ZERO).as_secs_f64() * rate).ceil() as u64
}

/// Rings the watchers' bell when a message is due, up to the last step.
pub(super) fn pace(shared: &Shared, rate: f64, steps: usize) {
    /// Between two looks at the clock: bounds what pacing costs at high rates.
    const GRAIN: Duration = Duration::from_micros(50);
    while (shared.cycle.load(Ordering::Acquire) as usize) < steps && !shared.aborted() {
        let next = shared.clock.now() + GRAIN;
        shared.clock.sleep_until(due(rate, first_due(rate, next)));
        if let Some(bell) = shared.bells.last() {
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::tests::plan;

    #[test]
    fn each_cycle_misses_comes_back_and_reads_one_live_message_more() {
        let plan =
            plan("resume --url ws://127.0.0.1:1/{room} --events http://127.0.0.1:1/{room} --behind 7 --cycles 2").expect("it is valid");
        let cycle = [Step::Drop, Step::Publish(7), Step::Settle, Step::Quiet, Step::Resume, Step::Publish(1), Step::Read];
        let expected = [&[Step::Open, Step::Publish(1), Step::Read][..], &cycle, &cycle, &[Step::End]].concat();
        assert_eq!(steps(&plan), expected);
    }

    #[test]
    fn messages_are_due_at_the_rate() {
        assert_eq!([0, 1, 100].map(|number| due(50.0, number).as_millis()), [0, 20, 2000]);
        for (millis, number) in [(0, 0), (1, 1), (20, 1), (21, 2), (2000, 100)] {
            assert_eq!(first_due(50.0, Time::from_millis(millis)), number, "from {millis} ms on");
        }
    }

    #[test]
    fn parts_add_up() {
        let part = |gaps: u64, hopeless: Option<&str>| {
            let mut part = Part { gaps, incomplete: 1, hopeless: hopeless.map(str::to_owned), ..Part::default() };
            part.complete.record(Duration::from_millis(gaps));
            let mut ended = Ended::default();
            ended.tally.faults.lost = gaps;
            ended.before.record(Duration::from_millis(gaps));
            part.ended = Some(Box::new(ended));
            part
        };
        let mut all = Part::default();
        all.add(part(1, None));
        all.add(part(2, Some("gone")));
        all.add(part(4, Some("away")));
        assert_eq!((all.gaps, all.incomplete, all.complete.count(), all.hopeless.as_deref()), (7, 3, 3, Some("gone")));
        let ended = all.ended.expect("each had one");
        assert_eq!((ended.tally.faults.lost, ended.before.count(), ended.during.count()), (7, 3, 0));
    }
}
