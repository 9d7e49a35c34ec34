//! One receiver's check: from each publisher of its room, every message once and in the order in which it was sent, from the first one that it sees on.

use std::ops::Range;

/// What one receiver has seen.
#[derive(Debug)]
pub(super) struct Order {
    streams: Box<[Stream]>,
    /// Of every message in the order of arrival: equal among the receivers of a room exactly when the room has one order.
    fingerprint: u64,
    count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    next: u32,
    seen: bool,
}

/// What a message's arrival means.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It is the next one, or the first at all.
    Next,
    /// It is newer than the next one: these in between are missing, for now at least.
    Skipped(Range<u32>),
    /// It is older than the next one: it came twice, or late.
    Old,
}

impl Order {
    /// Of one that joined when each publisher had sent so many messages.
    pub(super) fn new(joined: &[u32]) -> Self {
        Self { streams: joined.iter().map(|&next| Stream { next, seen: false }).collect(), fingerprint: 0, count: 0 }
    }

    /// Takes a message of the publisher with this place in its room.
    pub(super) fn see(&mut self, publisher: usize, sequence: u32) -> Seen {
        self.count += 1;
        // The odd factor makes the result depend on the order, not only on the set.
        let message = (publisher as u64) << 32 | u64::from(sequence);
        self.fingerprint = (self.fingerprint ^ message).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let stream = &mut self.streams[publisher];
        let expected = stream.next;
        if !stream.seen || sequence == expected {
            *stream = Stream { next: sequence.wrapping_add(1), seen: true };
            Seen::Next
        } else if sequence > expected {
            stream.next = sequence.wrapping_add(1);
            Seen::Skipped(expected..sequence)
        } else {
            Seen::Old
        }
    }

    /// The sequence that is expected next from this publisher: the first one after joining when nothing has come.
    pub(super) fn next(&self, publisher: usize) -> u32 {
        self.streams[publisher].next
    }

    /// Fingerprint and number of all messages.
    pub(super) fn total(&self) -> (u64, u64) {
        (self.fingerprint, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_with_the_first_that_was_seen() {
        let mut order = Order::new(&[0, 41, 7]);
        assert_eq!(order.see(1, 40), Seen::Next, "sent before it joined, and came all the same");
        assert_eq!(order.see(1, 41), Seen::Next);
        assert_eq!(order.see(0, 0), Seen::Next);
        assert_eq!([0, 1, 2].map(|publisher| order.next(publisher)), [1, 42, 7]);
    }

    #[test]
    fn a_hole_a_repeat_and_a_late_message_are_seen() {
        let mut order = Order::new(&[0]);
        assert_eq!(order.see(0, 0), Seen::Next);
        assert_eq!(order.see(0, 3), Seen::Skipped(1..3));
        assert_eq!(order.see(0, 3), Seen::Old);
        assert_eq!(order.see(0, 1), Seen::Old);
        assert_eq!(order.see(0, 4), Seen::Next);
    }

    #[test]
    fn the_fingerprint_tells_orders_apart() {
        let total = |messages: &[(usize, u32)]| {
            let mut order = Order::new(&[0, 0]);
            for &(publisher, sequence) in messages {
                order.see(publisher, sequence);
            }
            order.total()
        };
        let one = total(&[(0, 0), (1, 0), (0, 1)]);
        assert_eq!(one, total(&[(0, 0), (1, 0), (0, 1)]));
        assert_ne!(one, total(&[(1, 0), (0, 0), (0, 1)]));
        assert_ne!(one, total(&[(0, 0), (0, 1), (1, 0)]));
        assert_ne!(one, total(&[(0, 0), (1, 0)]));
    }
}
