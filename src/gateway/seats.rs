//! Who is in a topic, and who is about to be. A raw WebSocket has one topic, and its membership lies in its session; a stream or a poll may have
//! many topics, and has a seat for each.

use super::feed::FeedKey;
use crate::engine::log::{Anchor, Pin};
use crate::ids::ConnKey;

/// The membership of a stream in one of its topics.
pub(super) struct Seat {
    pub(super) conn: ConnKey,
    /// Which of the stream's topics it is.
    pub(super) number: u16,
    pub(super) feed: FeedKey,
    /// Where in the feed's members it is.
    pub(super) place: u32,
    /// The offset in the feed's log up to which everything was handed to the driver.
    pub(super) cursor: u64,
    /// Keeps what lies behind `cursor` alive, while it waits for a send in flight.
    pub(super) behind: Option<Anchor>,
    /// Messages were left out for it, and it has not caught up since.
    pub(super) thinned: bool,
}

/// Members of a feed are slots of connections, or of seats with this bit set.
const SEAT: u32 = 1 << 31;

impl Seat {
    /// What the members of its feed have for the seat in this slot.
    pub(super) fn member(slot: u32) -> u32 {
        slot | SEAT
    }

    /// The slot of a seat, if the member has one.
    pub(super) fn of_member(member: u32) -> Option<u32> {
        (member & SEAT != 0).then_some(member & !SEAT)
    }

    /// Moves the cursor to a position of its feed's log; what lies between it and `end` is kept.
    pub(super) fn move_to(&mut self, position: Pin, end: u64) {
        self.cursor = position.offset();
        self.behind = (self.cursor < end).then(|| position.anchor());
        self.thinned &= self.behind.is_some();
    }

    /// Whether it is given the newest message of each key, and has no position in the log (`conflation`).
    pub(super) fn is_conflated(&self) -> bool {
        self.thinned && self.behind.is_none()
    }

    /// The position of `cursor`, while it is behind.
    pub(super) fn behind(&self) -> Option<Pin> {
        self.behind.as_ref().map(|anchor| anchor.at(self.cursor))
    }
}

/// The seats of a shard.
#[derive(Default)]
pub(super) struct Seats {
    seats: Vec<Option<Seat>>,
    free: Vec<u32>,
}

impl Seats {
    pub(super) fn insert(&mut self, seat: Seat) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.seats[slot as usize] = Some(seat);
                slot
            }
            None => {
                self.seats.push(Some(seat));
                u32::try_from(self.seats.len() - 1).ok().filter(|&slot| slot < SEAT - 1).expect("a shard has fewer than 2^31 seats")
            }
        }
    }

    /// Bytes that their table has allocated.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.seats.capacity() * size_of::<Option<Seat>>() + self.free.capacity() * size_of::<u32>()) as u64
    }

    /// How many are taken.
    pub(super) fn len(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    /// A seat that is taken.
    pub(super) fn at(&mut self, slot: u32) -> &mut Seat {
        self.seats[slot as usize].as_mut().expect("a seat in use")
    }

    /// The same, to look at.
    pub(super) fn see(&self, slot: u32) -> &Seat {
        self.seats[slot as usize].as_ref().expect("a seat in use")
    }

    /// A seat, if it is taken.
    pub(super) fn get(&self, slot: u32) -> Option<&Seat> {
        self.seats.get(slot as usize)?.as_ref()
    }

    pub(super) fn remove(&mut self, slot: u32) -> Seat {
        self.free.push(slot);
        self.seats[slot as usize].take().expect("a seat in use")
    }
}

/// Who asks for a topic and is no member yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guest {
    /// The connection.
    pub conn: ConnKey,
    /// Which of its topics, where it may have several.
    pub number: u16,
    /// Which of the connection's requests, where it may make several.
    pub turn: u16,
}
