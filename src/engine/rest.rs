//! What a driver owes its connections' peers while it is frozen, and until it has made up for it after that.
//!
//! A frozen driver gives the kernel nothing. What it is asked to send then waits here, behind what was left of the send in flight, and is told to be sent; so
//! whoever runs on the driver can work off everything that he has, and nothing of a connection is left but its socket and its rest.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::driver::Frozen;
use super::segment::Gather;
use super::sys::Socket;
use crate::ids::ConnKey;

/// Of one connection.
#[derive(Default)]
struct Rest {
    pieces: VecDeque<Rc<Gather>>,
    /// Of the pieces, what has not been told to be sent; while the driver is thawed, all of it.
    untold: usize,
    /// Our side is shut behind it.
    shut: bool,
    /// The connection is taken down behind it.
    closes: bool,
}

/// Of all connections of a driver.
#[derive(Default)]
pub(super) struct Rests {
    by_conn: HashMap<ConnKey, Rest>,
    /// Connections whose pieces are to be told as sent.
    due: Vec<ConnKey>,
}

/// What is done behind the last piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Behind {
    pub(super) shut: bool,
    pub(super) closes: bool,
}

impl Rests {
    pub(super) fn is_empty(&self) -> bool {
        self.by_conn.is_empty()
    }

    /// Keeps the next piece of a frozen connection.
    pub(super) fn push(&mut self, key: ConnKey, data: Rc<Gather>) {
        let rest = self.by_conn.entry(key).or_default();
        rest.untold += data.len();
        rest.pieces.push_back(data);
        self.due.push(key);
    }

    /// Keeps what is left of a send that was in flight, in front of everything.
    pub(super) fn push_front(&mut self, key: ConnKey, data: Rc<Gather>) {
        let rest = self.by_conn.entry(key).or_default();
        rest.untold += data.len();
        rest.pieces.push_front(data);
        self.due.push(key);
    }

    /// Keeps what another driver had told to be sent.
    pub(super) fn push_told(&mut self, key: ConnKey, data: Rc<Gather>) {
        self.by_conn.entry(key).or_default().pieces.push_back(data);
    }

    /// Bytes that have not been told to be sent.
    pub(super) fn untold(&self, key: ConnKey) -> usize {
        if self.is_empty() { 0 } else { self.by_conn.get(&key).map_or(0, |rest| rest.untold) }
    }

    /// Whether there are pieces to be told as sent.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The connections of which something is told to be sent now; once each, as there is one send at most.
    pub(super) fn tell(&mut self) -> impl Iterator<Item = ConnKey> + '_ {
        let by_conn = &mut self.by_conn;
        self.due.drain(..).filter(|key| by_conn.get_mut(key).is_some_and(|rest| std::mem::take(&mut rest.untold) > 0))
    }

    /// Our side is shut behind what is left, if anything is. Whether that is so.
    pub(super) fn shut_behind(&mut self, key: ConnKey) -> bool {
        self.by_conn.get_mut(&key).map(|rest| rest.shut = true).is_some()
    }

    /// The connection is taken down behind what is left, if anything is. Whether that is so.
    pub(super) fn close_behind(&mut self, key: ConnKey) -> bool {
        self.by_conn.get_mut(&key).map(|rest| rest.closes = true).is_some()
    }

    /// The connection is of no use any more, and with it what was left.
    pub(super) fn forget(&mut self, key: ConnKey) {
        if !self.is_empty() {
            self.by_conn.remove(&key);
        }
    }

    /// From now on nothing of it counts as sent before it is. The connections that there is something for.
    pub(super) fn thaw(&mut self) -> Vec<ConnKey> {
        self.due.clear();
        for rest in self.by_conn.values_mut() {
            rest.untold = rest.pieces.iter().map(|piece| piece.len()).sum();
        }
        self.by_conn.keys().copied().collect()
    }

    /// The next piece to send; or, behind the last, what is to be done then, and nothing is left.
    pub(super) fn next(&mut self, key: ConnKey) -> Result<Rc<Gather>, Behind> {
        let Some(rest) = self.by_conn.get_mut(&key) else { return Err(Behind::default()) };
        if let Some(piece) = rest.pieces.pop_front() {
            rest.untold -= piece.len();
            return Ok(piece);
        }
        let behind = Behind { shut: rest.shut, closes: rest.closes };
        self.by_conn.remove(&key);
        Err(behind)
    }

    /// A connection with what is left of it.
    pub(super) fn frozen(&self, key: ConnKey, socket: Socket) -> Frozen {
        let Some(rest) = self.by_conn.get(&key) else { return Frozen { socket, rest: Vec::new(), ends: false } };
        let ranges = rest.pieces.iter().flat_map(|piece| piece.ranges());
        let bytes = ranges.flat_map(|range| range.as_slice()).copied().collect();
        Frozen { socket, rest: bytes, ends: rest.shut || rest.closes }
    }
}
