//! Fan-out: laps over a topic's members, a bounded number of visits at a time.
//!
//! Each visited member that is not waiting for its own send gets everything from its cursor to the log's end in one send. Who is waiting
//! keeps its position and goes on when its send completes. So frames published during a lap merge, and a 10,000-way fan-out never holds the loop.
//!
//! A lap's floor is the position below which everybody was served, save those who are slow themselves. Who still has frames to get and whose send does
//! not wait for the peer holds the floor: then *we* are behind, the topic's lag says so, and its publishers pause. A send that its peer
//! has not taken within `limits.reader_hold_ms` lets the floor pass; from then on that member's queue is its own affair (`thinning`), and over its bound it is
//! ended. A lap that ends with the floor held is parked until somebody has caught up, more is published, or a moment has passed.

use std::rc::Rc;
use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::feed::{Feed, FeedKey, LastSend};
use super::seats::Seat;
use super::session::{Session, micros};
use super::topic::Role;
use crate::engine::driver::Driver;
use crate::engine::log::Pin;
use crate::engine::segment::Gather;
use crate::ids::{ConnId, ConnKey, TopicKey};

/// Members that one topic's lap visits before the next topic's has its turn.
const QUANTUM: u64 = 64;

/// How long a parked lap waits for another turn by itself.
pub(super) const UNPARK: Duration = Duration::from_millis(5);

/// Bytes to send, the position after them, and how many frames they are.
struct Portion {
    data: Rc<Gather>,
    next: Pin,
    frames: u64,
}

impl<D: Driver> Gateway<D> {
    fn feed_at(&mut self, key: FeedKey) -> Option<&mut Feed> {
        self.topics.get_mut(key.topic).and_then(|topic| topic.feed_mut(key.format))
    }

    /// Works on the laps under way, in turns, within the step's budget.
    pub(super) fn run_laps(&mut self) {
        let mut budget = self.limits.fanout_sends_per_turn;
        while budget > 0
            && let Some(key) = self.laps.pop_front()
        {
            if let Some(feed) = self.feed_at(key) {
                feed.queued = false;
            }
            let quantum = budget.min(QUANTUM);
            budget -= self.run_lap(key, quantum).max(1).min(budget);
            let Some(feed) = self.feed_at(key) else { continue };
            let Some(lap) = feed.lap.get() else { continue };
            if !lap.is_parked() {
                self.queue_lap(key);
            } else if !std::mem::replace(&mut feed.parked, true) {
                self.parked.push(key);
            }
        }
        while let Some(key) = self.slow.pop() {
            self.end(key, CloseCause::SlowConsumer);
        }
    }

    /// Gives parked laps another turn.
    pub(super) fn unpark_laps(&mut self) {
        if self.parked.is_empty() || self.now < self.next_unpark {
            return;
        }
        self.next_unpark = self.now + UNPARK;
        for key in std::mem::take(&mut self.parked) {
            if let Some(feed) = self.feed_at(key) {
                feed.parked = false;
                if feed.lap.get().is_some() {
                    self.queue_lap(key);
                }
            }
        }
    }

    /// Gives a feed on a lap its place in the row.
    pub(super) fn queue_lap(&mut self, key: FeedKey) {
        if let Some(feed) = self.feed_at(key)
            && !std::mem::replace(&mut feed.queued, true)
        {
            self.laps.push_back(key);
        }
    }

    /// Visits up to `quantum` members of one feed; how many.
    fn run_lap(&mut self, key: FeedKey, quantum: u64) -> u64 {
        let mut visits = 0;
        while visits < quantum {
            let now = self.now;
            let Some(feed) = self.feed_at(key) else { return visits };
            let Some(lap) = feed.lap.get_mut() else { return visits };
            if lap.next_floor.is_none() {
                lap.next_floor = Some(feed.log.pin());
                lap.next_born = now;
                lap.held = false;
                feed.members.begin_lap();
            }
            match feed.members.visit() {
                Some(member) => {
                    visits += 1;
                    match Seat::of_member(member) {
                        Some(seat) => self.visit_seat(key, seat),
                        None => self.visit(key, member),
                    }
                }
                None => {
                    self.finish_lap(key);
                    if self.feed_at(key).and_then(|feed| feed.lap.get()).is_some_and(|lap| lap.is_parked()) {
                        return visits;
                    }
                }
            }
        }
        visits
    }

    fn finish_lap(&mut self, key: FeedKey) {
        let topic = self.topics.get_mut(key.topic).expect("a topic on a lap is live");
        let feed = topic.feed_mut(key.format).expect("a feed on a lap is live");
        let (sessions, seats) = (&mut self.sessions, &mut self.seats);
        feed.members.end_lap(|member, place| match Seat::of_member(member) {
            Some(seat) => seats.at(seat).place = place,
            None => sessions.at(member).expect("a member is a live connection").1.place = place,
        });
        let lap = feed.lap.get_mut().expect("the lap that ends");
        lap.floor = lap.next_floor.take().expect("a lap has begun before it ends");
        lap.born = lap.next_born;
        // It holds a position: kept on, it would keep all that follows.
        lap.last = None;
        if lap.floor.offset() == feed.log.end() || feed.members.is_empty() {
            feed.lap.end();
        }
        self.everyone_was_served(key.topic);
    }

    /// The floor has risen: tell the home, or let held-back publishers go on.
    pub(super) fn everyone_was_served(&mut self, topic_key: TopicKey) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        match &topic.role {
            Role::Home(_) => self.release(topic_key),
            Role::Away(_) => self.acknowledge(topic_key),
        }
        self.free_if_unused(topic_key);
    }

    fn visit(&mut self, feed_key: FeedKey, slot: u32) {
        let feed = self.topics.get_mut(feed_key.topic).and_then(|topic| topic.feed_mut(feed_key.format)).expect("a feed on a lap is live");
        let (key, session) = self.sessions.at(slot).expect("a member is a live connection");
        debug_assert!(session.topic == Some(feed_key.topic) && session.seated);
        let end = feed.log.end();
        if session.cursor == end {
            return;
        }
        if session.is_conflated() {
            return self.see_to_conflated(feed_key, slot, key);
        }
        let unsent = self.driver.unsent(key);
        if unsent > 0 || session.direct.is_some() {
            let lap = feed.lap.get_mut().expect("on a lap");
            let behind = session.behind().unwrap_or_else(|| lap.floor.seek(session.cursor));
            // Only a send that its peer does not take makes the reader slow, and not us.
            let waits = unsent > 0 && u64::from(micros(self.now).wrapping_sub(session.sent_us)) >= self.limits.reader_hold_ms * 1000;
            session.behind.get_or_insert_with(|| behind.clone().anchor());
            if !waits && !session.habits.is_thinned() && behind.offset() >= lap.floor.offset() {
                lap.hold(behind);
            } else {
                self.see_to_slow(feed_key, slot, key, behind);
            }
            return;
        }
        let id = ConnId { shard: self.shard, key };
        let bytes_max = self.limits.send_bytes_max as usize;
        if let Some(portion) = next_portion(feed, session, bytes_max, id) {
            let lap = feed.lap.get_mut().expect("on a lap");
            if portion.next.offset() < end && session.cursor >= lap.floor.offset() {
                // Too much for one send: the rest is still ours to deliver.
                lap.hold(portion.next.clone());
            }
            session.move_to(portion.next, end);
            session.born_us = micros(lap.born);
            session.in_flight_frames = portion.frames as u32;
            self.counters.deliveries_bytes.add(portion.data.len() as u64);
            self.start_send(key, portion.data);
        } else if session.goodbye.is_some() {
            self.pump(key);
        }
    }

    /// Sends the next frames of its room to a member that was behind. Whether there were any.
    pub(super) fn catch_up(&mut self, key: ConnKey) -> bool {
        let id = self.id(key);
        let Some(session) = self.sessions.get_mut(key) else { return false };
        if let Some(topic) = session.topic.filter(|_| session.is_conflated()) {
            let format = session.format();
            return self.send_latest(FeedKey { topic, format }, key.slot, key);
        }
        let Some(behind) = session.behind() else { return false };
        let topic_key = session.topic.expect("who is behind is a member");
        let format = session.format();
        let topic = self.topics.get_mut(topic_key).expect("a topic lives as long as its members");
        let feed = topic.feed_mut(format).expect("a feed lives as long as its members");
        let Some(gathered) = behind.gather(self.limits.send_bytes_max as usize, session.habits.no_echo().then_some(id)) else {
            let end = feed.log.end();
            session.move_to(behind, end);
            return false;
        };
        let frames = gathered.next.frame() - behind.frame();
        session.move_to(gathered.next, feed.log.end());
        if feed.parked && session.behind.is_none() {
            self.queue_lap(FeedKey { topic: topic_key, format });
        }
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Some(data) = gathered.data else { return false };
        session.in_flight_frames = frames as u32;
        self.counters.deliveries_bytes.add(data.len() as u64);
        self.start_send(key, data);
        true
    }
}

/// What a member on a lap gets; when that is nothing but its own messages, it is moved past them here. Members at the same position share one gather.
fn next_portion(feed: &mut Feed, session: &mut Session, bytes_max: usize, id: ConnId) -> Option<Portion> {
    let lap = feed.lap.get_mut().expect("on a lap");
    let end = feed.log.end();
    if let Some(last) = &lap.last
        && (last.from, last.end) == (session.cursor, end)
        && !session.habits.no_echo()
    {
        return Some(Portion { data: Rc::clone(&last.data), next: last.next.clone(), frames: last.frames });
    }
    let from = session.behind().unwrap_or_else(|| lap.floor.seek(session.cursor));
    let gathered = from.gather(bytes_max, session.habits.no_echo().then_some(id))?;
    let frames = gathered.next.frame() - from.frame();
    let Some(data) = gathered.data else {
        session.move_to(gathered.next, end);
        return None;
    };
    if !session.habits.no_echo() {
        lap.last = Some(LastSend { from: from.offset(), end, data: Rc::clone(&data), next: gathered.next.clone(), frames });
    }
    Some(Portion { data, next: gathered.next, frames })
}
