//! One topic on one shard: its feeds, its history, and its tie to the other shards.

use std::collections::{HashSet, VecDeque};

use super::feed::{Feed, Format};
use super::forms::{Maker, Source};
use super::history::History;
use super::places::Places;
use super::presence::Presence;
use super::rate::Said;
use super::seats::Guest;
use super::seldom::Seldom;
use crate::engine::log::{Log, Parcel, Pin};
use crate::engine::segment::Range;
use crate::hub::Home;
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::position::{Epoch, Position};
use crate::proto::slow::SlowPolicy;
use crate::proto::topic::TopicName;
use crate::time::Time;

/// Frames from another shard that wait until the topic takes new ones.
pub(super) struct HeldParcel {
    pub(super) from: ShardId,
    pub(super) key: TopicKey,
    pub(super) parcel: Parcel,
}

/// The home's part.
#[derive(Default)]
pub(super) struct HomeSide {
    pub(super) home: Home<Pin>,
    /// Parcels that wait until the topic takes messages again.
    #[expect(clippy::box_collection, reason = "8 bytes in every topic instead of 32; hardly any holds parcels")]
    pub(super) held: Option<Box<VecDeque<HeldParcel>>>,
    pub(super) history: History,
    /// What it was sent, where there are bounds to it.
    pub(super) said: Said,
}

impl HomeSide {
    /// The parcel that has waited longest.
    pub(super) fn take_held(&mut self) -> Option<HeldParcel> {
        let oldest = self.held.as_mut()?.pop_front();
        self.held.take_if(|held| held.is_empty());
        oldest
    }
}

/// The part of a shard that is not the home.
pub(super) struct AwaySide {
    pub(super) shard: ShardId,
    /// The home's key, once it has answered.
    pub(super) key: Option<TopicKey>,
    /// Messages of our clients on their way to the home; there while they publish.
    pub(super) uplink: Option<Box<Uplink>>,
    pub(super) to_acknowledge: Option<Acknowledgement>,
    /// Guests who have more of the topic than this shard was sent so far, and up to which offset.
    pub(super) latecomers: Seldom<(Guest, u64)>,
    /// Requests that wait for the home's answer.
    pub(super) joining: Seldom<Guest>,
}

/// What the home is told once everyone here was given what lies below these ends of the feeds.
#[derive(Clone, Copy)]
pub(super) struct Acknowledgement {
    ends: [u64; Format::ALL.len()],
    /// The home's offset.
    pub(super) upto: u64,
}

/// Messages on their way to a topic's home.
pub(super) struct Uplink {
    pub(super) log: Log,
    /// Where the next batch begins; none while nothing waits.
    pub(super) waiting: Option<Pin>,
    /// What the home has numbered.
    pub(super) taken: u64,
    /// What was sent to it.
    pub(super) sent: u64,
    /// A batch was sent and not yet numbered.
    pub(super) under_way: bool,
    /// Clients of whom the home has refused a message: what waits of theirs is left out.
    pub(super) ended: HashSet<ConnKey>,
}

impl Uplink {
    fn is_idle(&self) -> bool {
        self.waiting.is_none() && !self.under_way
    }
}

/// A form that messages are made into.
pub(super) struct Made {
    /// The topic's, for forms in which each message says it.
    pub(super) name: TopicName,
    pub(super) feed: Feed,
}

/// Some messages in such a form.
pub(super) struct MadePiece {
    pub(super) format: Format,
    /// The offset before the first.
    pub(super) after: u64,
    pub(super) messages: u64,
    pub(super) bytes: Range,
}

pub(super) enum Role {
    Home(Box<HomeSide>),
    Away(Box<AwaySide>),
}

pub(super) struct Topic {
    /// The messages in the form in which they travel between shards, and the members who get them like that.
    pub(super) raw: Feed,
    /// The forms of [`Format::MADE`], each while somebody here gets the messages in it.
    pub(super) made: [Option<Box<Made>>; Format::MADE.len()],
    pub(super) role: Role,
    /// Whose its offsets are.
    pub(super) epoch: Epoch,
    /// Who is in it, over all shards, where there is a bound to that. Of another home's topic known once it has answered.
    pub(super) places: Option<Places>,
    /// Who is in it, for those who want to know; where the operator has named it.
    pub(super) presence: Option<Box<Presence>>,
    /// Members-to-be that are still given what was before they came.
    pub(super) guests: u32,
    /// What a stream of this topic alone, or one in JSON, was given last of its history, in its form: who comes back with a crowd mostly gets the same.
    pub(super) last_piece: Option<Box<MadePiece>>,
    /// Publishers to be woken when the topic takes messages again.
    pub(super) waiters: Seldom<ConnKey>,
    /// In the list of topics that may have something for another shard.
    pub(super) dispatching: bool,
    /// In the list of topics whose members were joined or left.
    pub(super) recounted: bool,
    /// In the list of topics that may hold memory for frames to come.
    pub(super) warm: bool,
    /// What becomes of its slow readers.
    pub(super) slow: SlowPolicy,
    pub(super) last_append: Time,
}

impl Topic {
    pub(super) fn new(role: Role, log: Log, epoch: Epoch, base: u64) -> Self {
        Self {
            raw: Feed::new(log, base),
            made: Default::default(),
            role,
            epoch,
            places: None,
            presence: None,
            guests: 0,
            last_piece: None,
            waiters: Seldom::default(),
            dispatching: false,
            recounted: false,
            warm: false,
            slow: SlowPolicy::Disconnect,
            last_append: Time::ZERO,
        }
    }

    pub(super) fn feed(&self, format: Format) -> Option<&Feed> {
        match format.made() {
            None => Some(&self.raw),
            Some(place) => self.made[place].as_ref().map(|made| &made.feed),
        }
    }

    pub(super) fn feed_mut(&mut self, format: Format) -> Option<&mut Feed> {
        match format.made() {
            None => Some(&mut self.raw),
            Some(place) => self.made[place].as_mut().map(|made| &mut made.feed),
        }
    }

    /// Feeds that there are.
    pub(super) fn feeds(&self) -> impl Iterator<Item = &Feed> {
        Format::ALL.into_iter().filter_map(|format| self.feed(format))
    }

    /// The feed of a form, from now on if there was none.
    pub(super) fn made(&mut self, format: Format, name: &TopicName, log: impl FnOnce() -> Log) -> &mut Feed {
        let (base, newest) = (self.raw.offset(), self.raw.newest);
        let Some(place) = format.made() else { return &mut self.raw };
        let slot = &mut self.made[place];
        let feed = || Feed { newest, ..Feed::new(log(), base) };
        &mut slot.get_or_insert_with(|| Box::new(Made { name: name.clone(), feed: feed() })).feed
    }

    /// Appends messages to the log and makes them into the forms that somebody wants. Which feeds are on a lap then: their turn must come.
    pub(super) fn append(&mut self, now: Time, maker: &mut Maker, append: impl FnOnce(&mut Log)) -> [Option<Format>; Format::ALL.len()] {
        let laps = Format::ALL.map(|format| self.feed_mut(format).is_some_and(|feed| feed.want_lap(now)).then_some(format));
        self.last_append = now;
        for made in &mut self.made {
            // Nobody has come since the last who wanted it has gone.
            made.take_if(|made| made.feed.is_idle());
        }
        let fresh = (self.raw.latest.is_some() || self.made.iter().any(Option::is_some)).then(|| self.raw.log.pin());
        append(&mut self.raw.log);
        self.raw.grown();
        if let Some(fresh) = fresh {
            self.raw.conflate(&fresh);
            for (format, made) in Format::MADE.into_iter().zip(&mut self.made) {
                let Some(made) = made else { continue };
                let begin = made.feed.latest.is_some().then(|| made.feed.log.pin());
                let source =
                    Source { topic: &made.name, base: self.raw.base, epoch: self.epoch, keeps_keys: self.slow == SlowPolicy::Conflate };
                maker.make(format, &source, &fresh, &mut made.feed.log);
                made.feed.grown();
                if let Some(begin) = begin {
                    made.feed.conflate(&begin);
                }
            }
        }
        laps
    }

    /// Whether a slow member will not be given the message of this offset, as a newer one has replaced it.
    pub(super) fn is_left_out(&self, member: u32, offset: u64) -> bool {
        self.feeds().any(|feed| feed.latest.as_ref().is_some_and(|latest| latest.is_left_out(member, offset)))
    }

    /// Whether a sequencer outside gives its messages their places.
    pub(super) fn is_sequenced(&self) -> bool {
        self.raw.newest.is_some()
    }

    /// What comes next has an offset above this one, and what was before is not known here.
    pub(super) fn begin_anew(&mut self, at: Position) {
        self.epoch = at.epoch;
        self.last_piece = None;
        self.raw.base = at.offset;
        self.raw.newest = Some(at.offset);
        for made in self.made.iter_mut().flatten() {
            made.feed.newest = Some(at.offset);
        }
    }

    /// The offset after which every message is in the history, at the home.
    pub(super) fn floor(&self) -> u64 {
        let Role::Home(side) = &self.role else { return self.raw.offset() };
        let first = side.history.first(&self.raw.log);
        if self.raw.newest.is_none() || first == 0 {
            return self.raw.base + first;
        }
        let mut floor = self.raw.offset();
        if let Some(oldest) = side.history.seek(first) {
            oldest.each(|number, frame, _| {
                floor = self.raw.offset_of(number, frame) - 1;
                false
            });
        }
        floor
    }

    /// The offset of the message before the frame of this number, which is the history's or the next one; or one that says the same.
    pub(super) fn offset_before(&self, number: u64) -> u64 {
        let Role::Home(side) = &self.role else { return self.raw.offset() };
        if self.raw.newest.is_none() {
            return self.raw.base + number;
        }
        if number <= side.history.first(&self.raw.log) {
            return self.floor();
        }
        let mut offset = self.raw.offset();
        if number < self.raw.log.frames()
            && let Some(before) = side.history.seek(number - 1)
        {
            before.each(|number, frame, _| {
                offset = self.raw.offset_of(number, frame);
                false
            });
        }
        offset
    }

    /// The number of the first frame of the history behind an offset.
    pub(super) fn frame_after(&self, offset: u64) -> u64 {
        let Role::Home(side) = &self.role else { return self.raw.log.frames() };
        let mut found = self.raw.log.frames();
        if offset < self.raw.offset()
            && let Some(oldest) = side.history.seek(side.history.first(&self.raw.log))
        {
            oldest.each(|number, frame, _| {
                let is_after = self.raw.offset_of(number, frame) > offset;
                if is_after {
                    found = number;
                }
                !is_after
            });
        }
        found
    }

    /// By how many bytes the slowest shard's fan-out is behind, as far as this shard is the one to know.
    pub(super) fn lag(&self) -> u64 {
        match &self.role {
            Role::Home(side) => {
                let here = self.feeds().map(Feed::lag).max().unwrap_or(0);
                here.max(side.home.lag(self.raw.log.end()))
            }
            Role::Away(side) => side.uplink.as_ref().map_or(0, |uplink| uplink.log.end() - uplink.taken),
        }
    }

    /// Members on this shard, of all forms.
    pub(super) fn members(&self) -> u64 {
        self.feeds().map(|feed| feed.members.len() as u64).sum()
    }

    /// The other shards that have members, and what they call the topic, as far as this shard is the one to know.
    pub(super) fn away(&self) -> impl Iterator<Item = (ShardId, TopicKey)> + '_ {
        let home = if let Role::Home(side) = &self.role { Some(&side.home) } else { None };
        home.into_iter().flat_map(Home::shards)
    }

    /// Whether a client's message may be taken now. When not, *we* are behind, and the publisher waits.
    pub(super) fn takes_messages(&self, limits: &Limits) -> bool {
        match &self.role {
            Role::Home(side) => side.held.is_none() && self.lag() < limits.topic_lag_bytes_max,
            Role::Away(_) => self.lag() < limits.publish_bytes_max,
        }
    }

    /// Notes that the home is to be told once everyone here was given what the feeds hold now.
    pub(super) fn acknowledge_later(&mut self, upto: u64) {
        let ends = Format::ALL.map(|format| self.feed(format).map_or(0, |feed| feed.log.end()));
        if let Role::Away(side) = &mut self.role {
            side.to_acknowledge = Some(Acknowledgement { ends, upto });
        }
    }

    /// Whether everyone here was given what it says.
    pub(super) fn has_served(&self, acknowledgement: &Acknowledgement) -> bool {
        let served = |(format, &end)| self.feed(format).is_none_or(|feed| feed.served() >= end);
        Format::ALL.into_iter().zip(&acknowledgement.ends).all(served)
    }

    /// Gives back the memory kept for frames to come, as far as nobody has a position in it. Whether all of it went.
    pub(super) fn rest(&mut self) -> bool {
        let uplink_rests = match &mut self.role {
            Role::Away(side) => {
                side.uplink.take_if(|uplink| uplink.is_idle());
                side.uplink.is_none()
            }
            Role::Home(side) => {
                if side.history.compact(&mut self.raw.log) {
                    // What is left of it is the history's.
                    self.raw.lap.rest();
                    return self.rest_made();
                }
                true
            }
        };
        self.raw.rest() && uplink_rests && self.rest_made()
    }

    fn rest_made(&mut self) -> bool {
        self.last_piece = None;
        let mut rested = true;
        for made in &mut self.made {
            made.take_if(|made| made.feed.is_idle());
            rested &= made.as_mut().is_none_or(|made| made.feed.rest());
        }
        rested
    }

    /// Whether enough was worked off to begin taking messages again: half of the bound, so that publishers are not woken for one message each.
    pub(super) fn has_recovered(&self, limits: &Limits) -> bool {
        match &self.role {
            Role::Home(_) => self.lag() < limits.topic_lag_bytes_max / 2,
            Role::Away(_) => self.lag() < limits.publish_bytes_max / 2,
        }
    }

    /// Somebody wants to be a member: whether there is room. Who got a place gives it back when it leaves.
    pub(super) fn take_place(&self) -> bool {
        self.places.as_ref().is_none_or(Places::take)
    }

    /// A member, or a guest, has left.
    pub(super) fn give_place_back(&self) {
        if let Some(places) = &self.places {
            places.give_back();
        }
    }

    /// Somebody who was not yet a member does not want to be one any more.
    pub(super) fn guest_leaves(&mut self) {
        // Before the home has answered nobody is a guest; who asked is in `joining`.
        if matches!(&self.role, Role::Away(side) if side.key.is_none()) {
            return;
        }
        debug_assert!(self.guests > 0, "who has no seat is a guest");
        self.guests -= 1;
        self.give_place_back();
    }

    /// Whether no message of clients here is on its way to the home.
    pub(super) fn has_no_uplink(&self) -> bool {
        match &self.role {
            Role::Home(_) => true,
            Role::Away(side) => side.uplink.as_ref().is_none_or(|uplink| uplink.is_idle()),
        }
    }

    /// Whether nobody on this shard, and nobody elsewhere through this shard, needs the topic.
    pub(super) fn is_unused(&self) -> bool {
        self.feeds().all(Feed::is_idle)
            && self.guests == 0
            && match &self.role {
                Role::Home(side) => side.home.is_empty() && side.held.is_none() && side.history.is_empty(),
                Role::Away(side) => side.joining.is_empty() && side.key.is_some() && self.has_no_uplink() && side.to_acknowledge.is_none(),
            }
    }
}
