//! What a simulated kernel keeps for one shard: its listener, receive buffers, operations in flight and completions.

use std::collections::VecDeque;
use std::rc::Rc;

use super::chaos::Chaos;
use super::choices::Choices;
use crate::engine::driver::Wait;
use crate::engine::kernel::{Completion, Op, Token};
use crate::engine::recv_pool::RecvPool;
use crate::time::Time;

/// Sizes of a simulated ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimRingSize {
    /// Completions that fit; more overflow, and end multishot operations.
    pub completions: usize,
    /// Completions that one turn takes out.
    pub reap: usize,
}

impl Default for SimRingSize {
    fn default() -> Self {
        Self { completions: 8192, reap: 512 }
    }
}

/// Something that happens by itself at some time.
#[derive(Debug)]
pub(super) struct Later {
    pub(super) at: Time,
    /// Not before the shard has entered the kernel so often.
    pub(super) turns: u64,
    pub(super) deed: Deed,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Deed {
    /// The cancellation `token` of the operation `target`.
    Cancel { token: Token, target: Token },
    /// A message from another ring.
    Wake,
    /// The eventfd is signalled.
    Signal,
    /// A stale completion.
    Ghost(Token),
}

/// A shard inside its wait.
pub(super) struct Entered {
    /// When the wait ends, whatever happens.
    pub(super) until: Option<Time>,
}

pub(super) struct Ring {
    pub(super) size: SimRingSize,
    pub(super) pool: Rc<RecvPool>,
    /// Receive buffers that the kernel has.
    pub(super) posted: VecDeque<u16>,
    /// Submitted, and not yet handed over.
    pub(super) queue: Vec<(Token, Op)>,
    pub(super) accept: Option<Token>,
    pub(super) listening: bool,
    /// It is about to be closed: whoever connects now finds it closed when he tries again.
    pub(super) door_shut: bool,
    pub(super) backlog: VecDeque<u32>,
    pub(super) watch: Option<Token>,
    pub(super) signalled: bool,
    /// Links on which something may complete.
    pub(super) ready: Vec<u32>,
    /// The link of the last operation of each slot.
    pub(super) by_slot: Vec<u32>,
    pub(super) later: Vec<Later>,
    pub(super) turns: u64,
    pub(super) entered: Option<Entered>,
    completions: VecDeque<Completion>,
    overflow: VecDeque<Completion>,
}

/// No link.
pub(super) const NO_LINK: u32 = u32::MAX;

impl Ring {
    pub(super) fn new(size: SimRingSize, pool: Rc<RecvPool>) -> Self {
        let posted = (0..pool.buffers()).map(|id| id as u16).collect();
        Self {
            size,
            pool,
            posted,
            queue: Vec::new(),
            accept: None,
            listening: true,
            door_shut: false,
            backlog: VecDeque::new(),
            watch: None,
            signalled: false,
            ready: Vec::new(),
            by_slot: Vec::new(),
            later: Vec::new(),
            turns: 0,
            entered: None,
            completions: VecDeque::new(),
            overflow: VecDeque::new(),
        }
    }

    /// Whether a multishot operation that completes now may go on: not when its completion overflows (io_uring(7)), and not when chaos says so.
    pub(super) fn keeps_more(&self, choices: &mut Choices, chaos: &Chaos) -> bool {
        self.completions.len() < self.size.completions && !choices.chance(chaos.lose_more)
    }

    /// Queues a completion, perhaps before earlier ones of other operations.
    pub(super) fn post(&mut self, completion: Completion, choices: &mut Choices, chaos: &Chaos) {
        if self.completions.len() >= self.size.completions || !self.overflow.is_empty() {
            self.overflow.push_back(completion);
            return;
        }
        let mut at = self.completions.len();
        if choices.chance(chaos.reorder) {
            let mut leap = choices.within(1..=8);
            // An error that one operation of a connection took with it decides what the next one finds.
            let follows = |earlier: &Completion| {
                earlier.token == completion.token || (earlier.result.is_err() && earlier.token.key() == completion.token.key())
            };
            while leap > 0 && at > 0 && !follows(&self.completions[at - 1]) {
                at -= 1;
                leap -= 1;
            }
        }
        self.completions.insert(at, completion);
    }

    /// Moves what had overflowed into the queue, as entering the kernel does.
    pub(super) fn flush_overflow(&mut self) {
        while self.completions.len() < self.size.completions
            && let Some(completion) = self.overflow.pop_front()
        {
            self.completions.push_back(completion);
        }
    }

    /// Moves completions out.
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) {
        let count = self.size.reap.min(self.completions.len());
        completions.extend(self.completions.drain(..count));
    }

    pub(super) fn enter(&mut self, wait: Wait, now: Time) {
        let until = match wait {
            Wait::No => Some(now),
            Wait::For(duration) => Some(now + duration),
            Wait::Forever => None,
        };
        self.entered = Some(Entered { until });
    }

    /// When the shard's wait ends as things are: none while nothing ends it.
    pub(super) fn due(&self) -> Option<Time> {
        let Entered { until } = *self.entered.as_ref()?;
        let completed = (!self.completions.is_empty() || !self.overflow.is_empty()).then_some(Time::ZERO);
        [until, completed].into_iter().flatten().min()
    }

    /// When something happens here by itself next.
    pub(super) fn next_deed(&self) -> Option<Time> {
        self.later.iter().filter(|later| later.turns <= self.turns).map(|later| later.at).min()
    }

    /// Completions that wait to be taken out.
    pub(super) fn unreaped(&self) -> usize {
        self.completions.len() + self.overflow.len()
    }
}
