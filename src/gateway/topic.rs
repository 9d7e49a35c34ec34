//! One topic on one shard: its log, its members, its lap, and its tie to the other shards.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::engine::log::{Log, Parcel, Pin};
use crate::engine::segment::Gather;
use crate::hub::{Home, Members};
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::time::Time;

/// Fan-out under way: every member gets everything from its cursor to the log's end.
pub(super) struct Lap {
    /// Nobody who is not waiting for its own send lies before this.
    pub(super) floor: Pin,
    /// The floor once this lap is over: the log's end at its first visit; none before that.
    pub(super) next_floor: Option<Pin>,
    /// When the oldest frame behind the floor was appended.
    pub(super) born: Time,
    /// The same for the frames behind the next floor.
    pub(super) next_born: Time,
    /// Somebody holds the floor.
    pub(super) held: bool,
    /// What the last visited member was sent; most members are at the same position and get the same.
    pub(super) last: Option<LastSend>,
}

impl Lap {
    /// Somebody at this position has not been given everything yet.
    pub(super) fn hold(&mut self, position: Pin) {
        if self.next_floor.as_ref().is_some_and(|floor| position.offset() < floor.offset()) {
            self.next_floor = Some(position);
            self.held = true;
        }
    }

    /// Whether another lap would find the same holding the floor.
    pub(super) fn is_parked(&self) -> bool {
        self.held && self.next_floor.is_none()
    }
}

/// A topic's lap, if one is under way. Its memory stays for the next one until the topic rests.
#[derive(Default)]
pub(super) struct LapSlot(Option<Box<Option<Lap>>>);

impl LapSlot {
    pub(super) fn get(&self) -> Option<&Lap> {
        self.0.as_ref().and_then(|slot| slot.as_ref().as_ref())
    }

    pub(super) fn get_mut(&mut self) -> Option<&mut Lap> {
        self.0.as_mut().and_then(|slot| slot.as_mut().as_mut())
    }

    fn begin(&mut self, lap: Lap) {
        **self.0.get_or_insert_default() = Some(lap);
    }

    pub(super) fn end(&mut self) {
        if let Some(slot) = &mut self.0 {
            **slot = None;
        }
    }

    fn rest(&mut self) {
        self.0.take_if(|slot| slot.is_none());
    }
}

/// A send that the next member can share.
pub(super) struct LastSend {
    pub(super) from: u64,
    pub(super) end: u64,
    pub(super) data: Rc<Gather>,
    pub(super) next: Pin,
    pub(super) frames: u64,
}

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
    pub(super) held: VecDeque<HeldParcel>,
}

/// The part of a shard that is not the home.
pub(super) struct AwaySide {
    pub(super) shard: ShardId,
    /// The home's key, once it has answered.
    pub(super) key: Option<TopicKey>,
    /// The home's count of frames where our log begins.
    pub(super) first_frame: u64,
    /// Messages of our clients on their way to the home; there while they publish.
    pub(super) uplink: Option<Box<Uplink>>,
    /// To be acknowledged once everyone here was given what lies below the first number (ours); the second is the home's.
    pub(super) to_acknowledge: Option<(u64, u64)>,
    /// Upgrades that wait for the home's answer.
    pub(super) joining: Vec<ConnKey>,
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
}

impl Uplink {
    fn is_idle(&self) -> bool {
        self.waiting.is_none() && !self.under_way
    }
}

pub(super) enum Role {
    Home(HomeSide),
    Away(Box<AwaySide>),
}

pub(super) struct Topic {
    pub(super) log: Log,
    pub(super) members: Members,
    pub(super) lap: LapSlot,
    pub(super) role: Role,
    /// Publishers to be woken when the topic takes messages again.
    pub(super) waiters: Vec<ConnKey>,
    /// In the row of topics on a lap.
    pub(super) queued: bool,
    /// In the list of topics whose lap waits for somebody.
    pub(super) parked: bool,
    /// In the list of topics that may have something for another shard.
    pub(super) dispatching: bool,
    /// In the list of topics that may hold memory for frames to come.
    pub(super) warm: bool,
    pub(super) last_append: Time,
}

impl Topic {
    pub(super) fn new(role: Role, log: Log) -> Self {
        Self {
            log,
            members: Members::default(),
            lap: LapSlot::default(),
            role,
            waiters: Vec::new(),
            queued: false,
            parked: false,
            dispatching: false,
            warm: false,
            last_append: Time::ZERO,
        }
    }

    /// By how many bytes the slowest shard's fan-out is behind, as far as this shard is the one to know.
    pub(super) fn lag(&self) -> u64 {
        let end = self.log.end();
        let here = self.lap.get().map_or(0, |lap| end - lap.floor.offset());
        match &self.role {
            Role::Home(side) => here.max(side.home.lag(end)),
            Role::Away(side) => side.uplink.as_ref().map_or(0, |uplink| uplink.log.end() - uplink.taken),
        }
    }

    /// Whether a client's message may be taken now. When not, *we* are behind, and the publisher waits.
    pub(super) fn takes_messages(&self, limits: &Limits) -> bool {
        match &self.role {
            Role::Home(side) => side.held.is_empty() && self.lag() < limits.topic_lag_bytes_max,
            Role::Away(_) => self.lag() < limits.publish_bytes_max,
        }
    }

    /// Gives back the memory kept for frames to come, as far as nobody has a position in it. Whether all of it went.
    pub(super) fn rest(&mut self) -> bool {
        let uplink_rests = match &mut self.role {
            Role::Away(side) => {
                side.uplink.take_if(|uplink| uplink.is_idle());
                side.uplink.is_none()
            }
            Role::Home(_) => true,
        };
        self.lap.rest();
        self.log.rest() && uplink_rests
    }

    /// Whether enough was worked off to begin taking messages again: half of the bound, so that publishers are not woken for one message each.
    pub(super) fn has_recovered(&self, limits: &Limits) -> bool {
        match &self.role {
            Role::Home(_) => self.lag() < limits.topic_lag_bytes_max / 2,
            Role::Away(_) => self.lag() < limits.publish_bytes_max / 2,
        }
    }

    /// Whether nobody on this shard, and nobody elsewhere through this shard, needs the topic.
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty()
            && self.lap.get().is_none()
            && match &self.role {
                Role::Home(side) => side.home.is_empty() && side.held.is_empty(),
                Role::Away(side) => {
                    side.joining.is_empty()
                        && side.key.is_some()
                        && side.uplink.as_ref().is_none_or(|uplink| uplink.is_idle())
                        && side.to_acknowledge.is_none()
                }
            }
    }

    /// Asks for a lap for frames about to be appended, unless nobody would get them. Whether there is one; then its turn must come.
    pub(super) fn want_lap(&mut self, now: Time) -> bool {
        if self.lap.get().is_some() {
            return true;
        }
        if self.members.is_empty() {
            return false;
        }
        self.lap.begin(Lap { floor: self.log.pin(), next_floor: None, born: now, next_born: now, held: false, last: None });
        true
    }
}
