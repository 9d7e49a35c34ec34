//! What waits for readers that are slow, of a topic whose messages replace each other (`conflate`): the newest message of each key, in the topic's order.
//!
//! It is there while some reader of a feed is slow, and belongs to all of them: a reader is but a place in it, and holds no position in the log. So what a reader
//! needs that is further behind than any history is bounded by what can be different: what it has not been given of it, by its hard bound. Each message is a copy of its own,
//! or one that is hardly ever replaced would keep its whole segment.
//!
//! ```text
//!   log        a1 b1 a2 c1 a3 b2 a4 …        (gone behind those who are not slow)
//!   latest           c1       b2 a4          a reader that had a1 is given c1 b2 a4, and is told of a gap from a1 up to before a4
//! ```

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::engine::log::{Frame, Pin};
use crate::engine::segment::{Range, SegmentMemory};
use crate::ids::ConnId;

/// A message that no newer one has replaced.
struct Kept {
    key: Option<Arc<str>>,
    /// Its number in the log, and where it ends there.
    frame: u64,
    end: u64,
    sender: ConnId,
    bytes: Range,
}

/// Where a reader is.
#[derive(Clone, Copy)]
struct Reader {
    /// The offset up to which it was given everything, or was told.
    at: u64,
    /// How many frames of the log that are.
    frame: u64,
}

/// What a reader is sent at once.
pub(super) struct Portion {
    /// Offsets and messages.
    pub(super) messages: Vec<(u64, Range)>,
    /// The offsets that are left out between and before them.
    pub(super) holes: Vec<RangeInclusive<u64>>,
    /// How many messages these are.
    pub(super) left_out: u64,
    /// The offset where it is then, and the end of that message in the log.
    pub(super) at: u64,
    pub(super) end: u64,
    /// There is no more: it has caught up, and is no reader of these any more.
    pub(super) is_all: bool,
}

/// The newest message of each key.
pub(super) struct Latest {
    /// By their offsets.
    messages: BTreeMap<u64, Kept>,
    by_key: HashMap<Arc<str>, u64>,
    /// By their names as members.
    readers: HashMap<u32, Reader>,
    /// Every message behind this offset is here, or a newer one of its key.
    after: u64,
    bytes: u64,
    memory: Arc<SegmentMemory>,
}

impl Latest {
    /// For a feed whose newest message has this offset.
    pub(super) fn new(newest: u64, memory: &Arc<SegmentMemory>) -> Self {
        let (messages, by_key, readers) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { messages, by_key, readers, after: newest, bytes: 0, memory: Arc::clone(memory) }
    }

    /// Takes the messages behind a position up, which are newer than all that are here.
    pub(super) fn append(&mut self, fresh: &Pin, offset_of: impl Fn(u64, &Frame) -> u64) {
        let mut end = fresh.offset();
        fresh.each(|number, frame, bytes| {
            end += bytes.len() as u64;
            self.add(offset_of(number, frame), number, end, frame, &bytes);
            true
        });
    }

    /// A member is slow: it has been given everything before this position, which has this offset.
    pub(super) fn enter(&mut self, member: u32, at: u64, behind: &Pin, offset_of: impl Fn(u64, &Frame) -> u64) {
        self.readers.insert(member, Reader { at, frame: behind.frame() });
        let known_after = self.after;
        self.after = known_after.min(at);
        let mut end = behind.offset();
        behind.each(|number, frame, bytes| {
            end += bytes.len() as u64;
            let offset = offset_of(number, frame);
            let is_older = offset <= known_after;
            if is_older && frame.key().and_then(|key| self.by_key.get(key)).is_none_or(|&newest| newest <= known_after) {
                self.add(offset, number, end, frame, &bytes);
            }
            is_older
        });
    }

    fn add(&mut self, offset: u64, number: u64, end: u64, frame: &Frame, bytes: &Range) {
        let mut key = None;
        if let Some(name) = frame.key() {
            let replaced = self.by_key.get_mut(name).map(|newest| std::mem::replace(newest, offset));
            match replaced.and_then(|replaced| self.messages.remove(&replaced)) {
                Some(replaced) => {
                    self.bytes -= replaced.bytes.len() as u64;
                    key = replaced.key;
                }
                None => {
                    let name: Arc<str> = Arc::from(name);
                    self.by_key.insert(Arc::clone(&name), offset);
                    key = Some(name);
                }
            }
        }
        self.bytes += bytes.len() as u64;
        let bytes = bytes.copy(&self.memory);
        self.messages.insert(offset, Kept { key, frame: number, end, sender: frame.sender, bytes });
    }

    /// A member is no reader any more. Whether that was the last one.
    pub(super) fn leave(&mut self, member: u32) -> bool {
        self.readers.remove(&member);
        self.readers.is_empty()
    }

    /// Takes the next messages of a reader, without those of one sender: at most so many bytes, but at least one message if there is one.
    pub(super) fn take(&mut self, member: u32, without: Option<ConnId>, bytes_max: usize) -> Option<Portion> {
        let mut reader = *self.readers.get(&member)?;
        let mut portion = Portion { messages: Vec::new(), holes: Vec::new(), left_out: 0, at: reader.at, end: 0, is_all: true };
        let mut bytes = 0;
        for (&offset, kept) in self.messages.range(reader.at + 1..) {
            let is_wanted = Some(kept.sender) != without;
            if is_wanted && bytes > 0 && bytes + kept.bytes.len() > bytes_max {
                portion.is_all = false;
                break;
            }
            if kept.frame > reader.frame {
                portion.left_out += kept.frame - reader.frame;
                portion.holes.push(reader.at + 1..=offset - 1);
            }
            if is_wanted {
                bytes += kept.bytes.len();
                portion.messages.push((offset, kept.bytes.clone()));
            }
            reader = Reader { at: offset, frame: kept.frame + 1 };
            (portion.at, portion.end) = (offset, kept.end);
        }
        if portion.is_all {
            self.readers.remove(&member);
        } else {
            self.readers.insert(member, reader);
        }
        Some(portion)
    }

    /// Whether nobody reads these any more.
    pub(super) fn is_unused(&self) -> bool {
        self.readers.is_empty()
    }

    /// Bytes and messages, of which a reader has none or some before it.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.bytes, self.messages.len() as u64)
    }

    /// Bytes and messages that wait for a reader. Looks at each.
    pub(super) fn waiting(&self, member: u32) -> (u64, u64) {
        let Some(reader) = self.readers.get(&member) else { return (0, 0) };
        self.messages.range(reader.at + 1..).fold((0, 0), |sum, (_, kept)| (sum.0 + kept.bytes.len() as u64, sum.1 + 1))
    }

    /// Lets go of what every reader has been given.
    pub(super) fn forget_passed(&mut self) {
        let Some(passed) = self.readers.values().map(|reader| reader.at).min() else { return };
        let waiting = self.messages.split_off(&(passed + 1));
        for (offset, kept) in std::mem::replace(&mut self.messages, waiting) {
            self.bytes -= kept.bytes.len() as u64;
            if let Some(key) = kept.key.filter(|key| self.by_key.get(key) == Some(&offset)) {
                self.by_key.remove(&key);
            }
        }
        self.after = self.after.max(passed);
    }

    /// Whether a reader will not be given the message of this offset, as a newer one has replaced it.
    pub(super) fn is_left_out(&self, member: u32, offset: u64) -> bool {
        self.readers.get(&member).is_some_and(|reader| offset > reader.at) && !self.messages.contains_key(&offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::log::{Attributes, Log};
    use crate::ids::{ConnKey, ShardId};
    use rand::{RngExt, SeedableRng};

    fn sender(slot: u32) -> ConnId {
        ConnId { shard: ShardId(0), key: ConnKey { slot, generation: 0 } }
    }

    /// Offsets begin behind 10.
    fn offset_of(number: u64, _: &Frame) -> u64 {
        11 + number
    }

    fn append(log: &mut Log, latest: &mut Option<Latest>, from: u32, key: &str, text: &str) {
        let fresh = log.pin();
        let key = (!key.is_empty()).then(|| Box::from(key));
        log.append_with(sender(from), Attributes::of(None, key), &[], text.as_bytes());
        if let Some(latest) = latest {
            latest.append(&fresh, offset_of);
        }
    }

    fn texts(portion: &Portion) -> Vec<(u64, String)> {
        portion.messages.iter().map(|(offset, bytes)| (*offset, String::from_utf8_lossy(bytes.as_slice()).into_owned())).collect()
    }

    fn said(portion: &Portion) -> String {
        texts(portion).into_iter().map(|(offset, text)| format!("{offset}:{text} ")).collect()
    }

    fn log() -> (Log, Arc<SegmentMemory>) {
        let memory = SegmentMemory::new();
        (Log::new(64, 256, &memory), memory)
    }

    #[test]
    fn a_reader_gets_the_newest_of_each_key_in_order_and_every_message_without_one() {
        let (mut log, memory) = log();
        let behind = log.pin();
        let mut latest = None;
        for (key, text) in [("a", "a1"), ("b", "b1"), ("", "x"), ("a", "a2"), ("c", "c1"), ("", "y"), ("a", "a3")] {
            append(&mut log, &mut latest, 1, key, text);
        }
        let mut latest = Latest::new(17, &memory);
        latest.enter(7, 10, &behind, offset_of);
        assert_eq!(latest.waiting(7), (8, 5), "b1 x c1 y a3");
        let portion = latest.take(7, None, 4).expect("a reader");
        assert_eq!((said(&portion).as_str(), portion.left_out, &portion.holes[..]), ("12:b1 13:x ", 1, &[11..=11][..]));
        assert!(!portion.is_all && (portion.at, portion.end) == (13, 5));
        // Meanwhile everything is said anew, but what has no key.
        let mut some = Some(latest);
        for (key, text) in [("c", "c2"), ("b", "b2")] {
            append(&mut log, &mut some, 2, key, text);
        }
        let mut latest = some.expect("still there");
        let portion = latest.take(7, None, 100).expect("a reader");
        assert_eq!(said(&portion), "16:y 17:a3 18:c2 19:b2 ");
        assert_eq!((portion.left_out, portion.holes.as_slice(), portion.is_all, portion.end), (2, &[14..=15][..], true, log.end()));
        assert!(latest.is_unused());
    }

    #[test]
    fn a_reader_that_is_further_behind_finds_what_was_before_the_first_ones_place() {
        let (mut log, memory) = log();
        let far = log.pin();
        let mut none = None;
        ["a", "b", "c"].iter().for_each(|key| append(&mut log, &mut none, 1, key, "old"));
        let near = log.pin();
        append(&mut log, &mut none, 1, "b", "new");
        let mut latest = Latest::new(14, &memory);
        latest.enter(1, 13, &near, offset_of);
        assert_eq!(said(&latest.take(1, None, 1).expect("a reader")), "14:new ");
        latest.enter(1, 13, &near, offset_of);
        latest.enter(2, 10, &far, offset_of);
        assert_eq!(said(&latest.take(2, None, 100).expect("a reader")), "11:old 13:old 14:new ");
        assert!(!latest.is_unused() && latest.leave(1));
    }

    #[test]
    fn what_every_reader_has_passed_is_let_go_and_the_rest_is_bounded_by_its_keys() {
        let (mut log, memory) = log();
        let behind = log.pin();
        let mut latest = Some(Latest::new(10, &memory));
        latest.as_mut().expect("made").enter(1, 10, &behind, offset_of);
        drop(behind);
        for n in 0..10_000 {
            append(&mut log, &mut latest, 1, &format!("key {}", n % 20), "12345678");
        }
        let mut latest = latest.expect("made");
        assert_eq!((latest.size(), latest.waiting(1)), ((160, 20), (160, 20)));
        assert!(memory.bytes() < 3000, "{} bytes", memory.bytes());
        latest.take(1, None, 80).expect("a reader");
        latest.forget_passed();
        assert_eq!((latest.size(), latest.by_key.len()), ((80, 10), 10));
        let portion = latest.take(1, None, 1000).expect("a reader");
        assert_eq!((portion.messages.len(), portion.left_out, portion.is_all), (10, 0, true));
    }

    #[test]
    fn its_own_messages_are_passed_and_a_replaced_one_is_known_not_to_come() {
        let (mut log, memory) = log();
        let behind = log.pin();
        let mut latest = Some(Latest::new(10, &memory));
        latest.as_mut().expect("made").enter(1, 10, &behind, offset_of);
        for (from, key, text) in [(5, "a", "a1"), (6, "b", "b1"), (5, "c", "c1"), (6, "a", "a2")] {
            append(&mut log, &mut latest, from, key, text);
        }
        let mut latest = latest.expect("made");
        assert!(latest.is_left_out(1, 11) && !latest.is_left_out(1, 12) && !latest.is_left_out(2, 11));
        let portion = latest.take(1, Some(sender(6)), 100).expect("a reader");
        assert_eq!((said(&portion).as_str(), portion.is_all, portion.at), ("13:c1 ", true, 14));
    }

    /// Against a list of everything: at each moment what a reader is given is the newest of each key that it has not got, in order.
    #[test]
    fn random_readers_end_with_the_newest_of_every_key() {
        for seed in 0..200 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let (mut log, memory) = log();
            let mut pins = vec![log.pin()];
            let mut latest: Option<Latest> = None;
            let mut all: Vec<(String, String)> = Vec::new();
            let mut heard: HashMap<u32, (u64, HashMap<String, String>)> = HashMap::new();
            for step in 0..300 {
                if random.random_range(0..4) > 0 {
                    let key = if random.random_range(0..6) == 0 { String::new() } else { format!("k{}", random.random_range(0..7)) };
                    let text = format!("{step}");
                    append(&mut log, &mut latest, 1, &key, &text);
                    all.push((key, text));
                    pins.push(log.pin());
                    continue;
                }
                let member = random.random_range(0..3);
                match heard.get_mut(&member) {
                    None => {
                        let behind = random.random_range(0..pins.len());
                        let newest = 10 + all.len() as u64;
                        let latest = latest.get_or_insert_with(|| Latest::new(newest, &memory));
                        latest.enter(member, 10 + behind as u64, &pins[behind], offset_of);
                        heard.insert(member, (10 + behind as u64, HashMap::new()));
                    }
                    Some((at, values)) => {
                        let Some(table) = &mut latest else { continue };
                        let portion = table.take(member, None, random.random_range(1..12)).expect("a reader");
                        let waiting = &all[(*at - 10) as usize..];
                        let is_newest = |index: usize| {
                            let (key, _) = &waiting[index];
                            key.is_empty() || waiting[index + 1..].iter().all(|(other, _)| other != key)
                        };
                        let expect = (0..waiting.len())
                            .filter(|&index| is_newest(index))
                            .map(|index| (*at + 1 + index as u64, waiting[index].1.clone()));
                        let expect: Vec<_> = expect.take(portion.messages.len()).collect();
                        assert_eq!(texts(&portion), expect, "seed {seed}, step {step}");
                        let given = portion.messages.len() as u64 + portion.left_out;
                        assert_eq!(portion.at, *at + given, "what is given and what is left out is everything");
                        let holes: u64 = portion.holes.iter().map(|hole| hole.end() - hole.start() + 1).sum();
                        assert_eq!(holes, portion.left_out);
                        for (offset, text) in texts(&portion) {
                            values.insert(all[(offset - 11) as usize].0.clone(), text);
                        }
                        *at = portion.at;
                        if portion.is_all {
                            assert_eq!(portion.at, 10 + all.len() as u64);
                            heard.remove(&member);
                            latest = latest.filter(|latest| !latest.is_unused());
                        } else if random.random_range(0..3) == 0 {
                            table.forget_passed();
                        }
                    }
                }
            }
        }
    }
}
