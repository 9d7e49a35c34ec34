//! A topic's members that get its messages in one form: their log, and the laps over them.

use std::rc::Rc;

use super::conflation::Latest;
use crate::engine::log::{Frame, Log, Pin};
use crate::engine::segment::Gather;
use crate::hub::Members;
use crate::ids::TopicKey;
use crate::time::Time;

/// In which form a member gets messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// WebSocket frames with the payload as it came: what a topic's log consists of.
    Raw,
    /// Events of a stream (`text/event-stream`), made from the log where somebody wants them.
    Sse,
    /// Messages of `shardcast.v1.json`, as WebSocket frames, made likewise.
    Json,
    /// What is [`Self::Raw`], compressed where that is shorter.
    RawDeflate,
    /// What is [`Self::Json`], likewise.
    JsonDeflate,
    /// Messages of `shardcast.v1.json`, each followed by a line break: many leave as one frame, whose header they get then (`batches`).
    Lines,
    /// The same as pieces of a compressed message.
    LinesDeflate,
}

impl Format {
    /// All of them; each has its number's place.
    pub(super) const ALL: [Self; 7] =
        [Self::Raw, Self::Sse, Self::Json, Self::RawDeflate, Self::JsonDeflate, Self::Lines, Self::LinesDeflate];
    /// Those that are made where somebody wants them.
    pub(super) const MADE: [Self; 6] = [Self::Sse, Self::Json, Self::RawDeflate, Self::JsonDeflate, Self::Lines, Self::LinesDeflate];

    /// Its place among those that are made.
    pub(super) const fn made(self) -> Option<usize> {
        (self as usize).checked_sub(1)
    }

    /// What it is before it is compressed.
    pub(super) const fn plain(self) -> Self {
        match self {
            Self::Raw | Self::RawDeflate => Self::Raw,
            Self::Json | Self::JsonDeflate => Self::Json,
            Self::Lines | Self::LinesDeflate => Self::Lines,
            Self::Sse => Self::Sse,
        }
    }
}

/// The members of one topic in one form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FeedKey {
    pub(super) topic: TopicKey,
    pub(super) format: Format,
}

/// A log and who is given it.
pub(super) struct Feed {
    pub(super) log: Log,
    /// The offset of the last message before the log began; the first one in it has the next.
    pub(super) base: u64,
    /// Where the offsets are given by a sequencer outside: that of the newest message, or how far it was read when this began. They are not dense then.
    pub(super) newest: Option<u64>,
    pub(super) members: Members,
    pub(super) lap: LapSlot,
    /// What waits for those who are slow, where messages replace each other and somebody is.
    pub(super) latest: Option<Box<Latest>>,
    /// In the row of feeds on a lap.
    pub(super) queued: bool,
    /// In the list of feeds whose lap waits for somebody.
    pub(super) parked: bool,
}

impl Feed {
    pub(super) fn new(log: Log, base: u64) -> Self {
        Self { log, base, newest: None, members: Members::default(), lap: LapSlot::default(), latest: None, queued: false, parked: false }
    }

    /// The offset of the newest message.
    pub(super) fn offset(&self) -> u64 {
        self.newest.unwrap_or(self.base + self.log.frames())
    }

    /// The offset of the frame of this number.
    pub(super) fn offset_of(&self, number: u64, frame: &Frame) -> u64 {
        frame.offset().unwrap_or(self.base + number + 1)
    }

    /// The offset of the last message between two positions that are not the same.
    pub(super) fn offset_before(&self, from: &Pin, next: &Pin) -> u64 {
        if self.newest.is_none() || next.offset() == self.log.end() {
            return if self.newest.is_none() { self.base + next.frame() } else { self.offset() };
        }
        let (end, mut last) = (next.frame(), self.base);
        from.each(|number, frame, _| {
            let wanted = number < end;
            if wanted {
                last = self.offset_of(number, frame);
            }
            wanted
        });
        last
    }

    /// Messages were appended.
    pub(super) fn grown(&mut self) {
        if let (Some(newest), Some(last)) = (&mut self.newest, self.log.last_offset()) {
            *newest = last;
        }
    }

    /// Messages were appended behind this position: they replace what waits for those who are slow.
    pub(super) fn conflate(&mut self, fresh: &Pin) {
        let base = self.base;
        if let Some(latest) = &mut self.latest {
            latest.append(fresh, |number, frame| frame.offset().unwrap_or(base + number + 1));
        }
    }

    /// A member goes, or has caught up.
    pub(super) fn forget_slow(&mut self, member: u32) {
        self.latest.take_if(|latest| latest.leave(member));
    }

    /// Bytes and messages that wait for a member, whose position is this while it has one.
    pub(super) fn waiting(&self, member: u32, behind: Option<Pin>) -> (u64, u64) {
        match (behind, &self.latest) {
            (Some(behind), _) => (self.log.end() - behind.offset(), self.log.frames() - behind.frame()),
            (None, Some(latest)) => latest.waiting(member),
            (None, None) => (0, 0),
        }
    }

    /// Whether nobody needs it.
    pub(super) fn is_idle(&self) -> bool {
        self.members.is_empty() && self.lap.get().is_none()
    }

    /// The offset below which everybody was served, save who is slow.
    pub(super) fn served(&self) -> u64 {
        self.lap.get().map_or(self.log.end(), |lap| lap.floor.offset())
    }

    /// By how many bytes its fan-out is behind.
    pub(super) fn lag(&self) -> u64 {
        self.log.end() - self.served()
    }

    /// Gives back memory kept for frames to come; whether all of it went.
    pub(super) fn rest(&mut self) -> bool {
        self.lap.rest();
        self.log.rest()
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

    pub(super) fn rest(&mut self) {
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
