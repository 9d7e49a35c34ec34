//! A topic's frames in the order in which they are sent, and positions in them.
//!
//! A [`Log`] is a chain of chunks; each chunk is a growing range of one segment with the ends and senders of its frames. A [`Pin`] is a
//! position at a frame's border that keeps its chunk, and by the chain everything after it, alive; so memory goes exactly when the slowest
//! position has passed it, with no bookkeeping. A log itself holds only its last chunk, and not even that after [`Log::rest`].
//! What a send in flight reads is held by its own [`Gather`], segment by segment: a stuck send never pins the chain.
//!
//! ```text
//!   chunk ──next──▶ chunk ──next──▶ chunk (the log's tail, growing)
//!     ▲ pin (slow reader)              ▲ pin (fan-out under way)
//! ```

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::segment::{Arena, Gather, Range, Ranges, SegmentMemory, SegmentWriter};
use crate::ids::ConnId;

/// What a publisher said of a message besides its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// The name of the event, for who gets it as one.
    pub event: Option<Box<str>>,
    /// What it replaces older messages by, where its topic has that.
    pub key: Option<Box<str>>,
    /// The publisher does not want it back.
    pub no_echo: bool,
    /// The offset that a sequencer outside has given it; where there is none, the log's order does.
    pub offset: Option<u64>,
}

impl Attributes {
    /// Those of a message that has a name as an event, or a key; else nothing.
    pub fn of(event: Option<Box<str>>, key: Option<Box<str>>) -> Option<Arc<Self>> {
        (event.is_some() || key.is_some()).then(|| Arc::new(Self { event, key, no_echo: false, offset: None }))
    }
}

/// What a log knows about one of its frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Where it ends, counted from the beginning of its chunk.
    pub end: u32,
    /// Who published it.
    pub sender: ConnId,
    /// Rarely any; then shared by all shards.
    pub attributes: Option<Arc<Attributes>>,
}

impl Frame {
    /// Its name as an event.
    pub fn event(&self) -> Option<&str> {
        self.attributes.as_ref().and_then(|attributes| attributes.event.as_deref())
    }

    /// What it replaces older messages by.
    pub fn key(&self) -> Option<&str> {
        self.attributes.as_ref().and_then(|attributes| attributes.key.as_deref())
    }

    /// Whether its publisher does not want it back.
    pub fn is_not_echoed(&self) -> bool {
        self.attributes.as_ref().is_some_and(|attributes| attributes.no_echo)
    }

    /// The offset that a sequencer outside has given it.
    pub fn offset(&self) -> Option<u64> {
        self.attributes.as_ref()?.offset
    }
}

struct Chunk {
    /// Log offset of the first byte.
    start: u64,
    /// Number of the first frame.
    first_frame: u64,
    body: RefCell<Body>,
    next: OnceCell<Rc<Chunk>>,
    /// Charged for the table of frames, which can be larger than the frames.
    memory: Arc<SegmentMemory>,
}

#[derive(Default)]
struct Body {
    range: Option<Range>,
    frames: Vec<Frame>,
}

impl Body {
    fn len(&self) -> u32 {
        self.frames.last().map_or(0, |frame| frame.end)
    }
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + u64::from(self.body.borrow().len())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.memory.release(self.body.get_mut().frames.len() * size_of::<Frame>());
        // A long chain must not be freed by recursion: unlink one by one for as long as nobody else holds the next.
        let mut next = self.next.take();
        while let Some(mut chunk) = next.and_then(|chunk| Rc::try_unwrap(chunk).ok()) {
            next = chunk.next.take();
        }
    }
}

/// Frames handed from one shard to another: ranges with the frames in each.
#[derive(Debug, Default)]
pub struct Parcel {
    /// Ranges in order; a frame never spans two.
    pub parts: Vec<(Range, Vec<Frame>)>,
    /// Bytes in all.
    pub bytes: u64,
    /// Frames in all.
    pub frames: u64,
}

impl Parcel {
    /// The offset of the last frame, where a sequencer outside has given it.
    pub fn last_offset(&self) -> Option<u64> {
        self.parts.last()?.1.last()?.offset()
    }

    /// Adds one frame at the end.
    pub fn push(&mut self, bytes: Range, frame: &Frame) {
        let len = bytes.len() as u32;
        self.bytes += u64::from(len);
        self.frames += 1;
        if let Some((range, frames)) = self.parts.last_mut() {
            let before = range.len() as u32;
            if range.try_join(&bytes) {
                frames.push(Frame { end: before + len, ..frame.clone() });
                return;
            }
        }
        self.parts.push((bytes, vec![Frame { end: len, ..frame.clone() }]));
    }

    /// Keeps, in order, the frames that `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(&Frame, &[u8]) -> bool) {
        for (range, frames) in std::mem::take(self).parts {
            let mut from = 0;
            for frame in frames {
                let bytes = range.slice(from as usize, (frame.end - from) as usize);
                from = frame.end;
                if keep(&frame, bytes.as_slice()) {
                    self.push(bytes, &frame);
                }
            }
        }
    }
}

/// An append-only sequence of frames.
pub struct Log {
    tail: Option<Rc<Chunk>>,
    arena: Arena,
    end: u64,
    frames: u64,
}

impl Log {
    /// An empty log that holds no memory. Segments begin at `segment_bytes_min` and double up to `segment_bytes_max` while the log stays busy.
    pub fn new(segment_bytes_min: u32, segment_bytes_max: u32, memory: &Arc<SegmentMemory>) -> Self {
        Self { tail: None, arena: Arena::new(segment_bytes_min, segment_bytes_max, memory), end: 0, frames: 0 }
    }

    /// The offset after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Frames appended so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The offset of the newest frame, where a sequencer outside has given it and the log still holds it.
    pub fn last_offset(&self) -> Option<u64> {
        self.tail.as_ref()?.body.borrow().frames.last()?.offset()
    }

    /// The position at the end; what is appended from now on lies behind it.
    pub fn pin(&mut self) -> Pin {
        let (start, first_frame, memory) = (self.end, self.frames, self.arena.memory());
        let chunk = self.tail.get_or_insert_with(|| {
            Rc::new(Chunk { start, first_frame, body: RefCell::default(), next: OnceCell::new(), memory: Arc::clone(memory) })
        });
        Pin { chunk: Rc::clone(chunk), offset: self.end }
    }

    /// Appends one frame: the one copy that its payload ever sees.
    pub fn append(&mut self, sender: ConnId, head: &[u8], payload: &[u8]) {
        self.append_with(sender, None, head, payload);
    }

    /// The same with what the publisher said besides.
    pub fn append_with(&mut self, sender: ConnId, attributes: Option<Arc<Attributes>>, head: &[u8], payload: &[u8]) {
        let range = self.arena.append(head, payload);
        let end = range.len() as u32;
        self.push(range, &[Frame { end, sender, attributes }]);
    }

    /// Appends frames that another shard encoded, without a copy.
    pub fn append_parcel(&mut self, parcel: Parcel) {
        for (range, frames) in parcel.parts {
            self.push(range, &frames);
        }
    }

    /// Lets go of the memory kept for frames to come, unless somebody still has a position here; whether it did. The next segment is a small one again.
    pub fn rest(&mut self) -> bool {
        // Every position holds the tail, directly or through the chain: alone means that there is none.
        let alone = self.tail.as_ref().is_none_or(|tail| Rc::strong_count(tail) == 1);
        if alone {
            self.tail = None;
            self.arena.rest();
        }
        alone
    }

    /// Moves what lies behind `oldest`, the only position in the log, into one segment of its own size, if that saves an eighth or more; and begins small
    /// again. Whether nobody else had a position.
    pub fn compact(&mut self, oldest: &mut Pin) -> bool {
        let Some(tail) = &self.tail else { return true };
        let mut chunk = &oldest.chunk;
        let (mut allocated, mut frames) = (0, 0);
        loop {
            // Held by `oldest` or by the chunk before it, and the last one by the log too.
            let holders = if Rc::ptr_eq(chunk, tail) { 2 } else { 1 };
            if Rc::strong_count(chunk) != holders {
                return false;
            }
            let body = chunk.body.borrow();
            allocated += body.range.as_ref().map_or(0, |range| range.segment_bytes());
            frames += body.frames.len();
            match chunk.next.get() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        self.arena.rest();
        let used = (self.end - oldest.offset) as usize;
        if used == 0 || used > Self::COMPACT_BYTES_MAX || allocated <= used + used / 8 {
            return true;
        }
        let mut writer = SegmentWriter::new(used, self.arena.memory());
        let mut body = Body { range: None, frames: Vec::with_capacity(frames) };
        let first_frame = oldest.frame();
        oldest.each(|_, frame, bytes| {
            let fresh = writer.append(bytes.as_slice(), &[]);
            let end = body.len() + fresh.len() as u32;
            match &mut body.range {
                Some(range) => assert!(range.try_join(&fresh), "one segment is filled without gaps"),
                empty => *empty = Some(fresh),
            }
            body.frames.push(Frame { end, ..frame.clone() });
            true
        });
        body.frames.shrink_to_fit();
        self.arena.memory().charge(body.frames.len() * size_of::<Frame>());
        let (start, next, memory) = (oldest.offset, OnceCell::new(), Arc::clone(self.arena.memory()));
        let chunk = Rc::new(Chunk { start, first_frame, body: RefCell::new(body), next, memory });
        self.tail = Some(Rc::clone(&chunk));
        oldest.chunk = chunk;
        true
    }

    /// More than this is not copied at once.
    const COMPACT_BYTES_MAX: usize = 4 << 20;

    fn push(&mut self, range: Range, frames: &[Frame]) {
        debug_assert_eq!(frames.last().map(|frame| frame.end as usize), Some(range.len()));
        self.end += range.len() as u64;
        self.frames += frames.len() as u64;
        self.arena.memory().charge(size_of_val(frames));
        if let Some(tail) = &self.tail {
            let mut body = tail.body.borrow_mut();
            let base = body.len();
            let joined = match &mut body.range {
                Some(present) => present.try_join(&range),
                empty => {
                    *empty = Some(range.clone());
                    true
                }
            };
            if joined {
                body.frames.extend(frames.iter().map(|frame| Frame { end: base + frame.end, ..frame.clone() }));
                return;
            }
        }
        let chunk = Rc::new(Chunk {
            start: self.end - range.len() as u64,
            first_frame: self.frames - frames.len() as u64,
            body: RefCell::new(Body { range: Some(range), frames: frames.to_vec() }),
            next: OnceCell::new(),
            memory: Arc::clone(self.arena.memory()),
        });
        if let Some(tail) = self.tail.replace(Rc::clone(&chunk)) {
            let linked = tail.next.set(chunk);
            debug_assert!(linked.is_ok(), "only the tail has no next");
        }
    }
}

/// A position at a frame's border that keeps what follows alive.
#[derive(Clone)]
pub struct Pin {
    chunk: Rc<Chunk>,
    offset: u64,
}

/// A [`Pin`] without its offset, for who keeps that elsewhere: half the size.
pub struct Anchor(Rc<Chunk>);

impl Anchor {
    /// The position again.
    pub fn at(&self, offset: u64) -> Pin {
        debug_assert!((self.0.start..=self.0.end()).contains(&offset), "offset {offset} in a chunk of {}..{}", self.0.start, self.0.end());
        Pin { chunk: Rc::clone(&self.0), offset }
    }
}

/// What a position gives to send.
pub struct Gathered {
    /// The bytes; none when every frame up to `next` was left out.
    pub data: Option<Rc<Gather>>,
    /// The position after them.
    pub next: Pin,
}

impl Pin {
    /// The log offset.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What keeps this position alive, without the offset.
    pub fn anchor(self) -> Anchor {
        Anchor(self.chunk)
    }

    /// How many frames of the log lie before.
    pub fn frame(&self) -> u64 {
        let within = (self.offset - self.chunk.start) as u32;
        let body = self.chunk.body.borrow();
        self.chunk.first_frame + body.frames.partition_point(|frame| frame.end <= within) as u64
    }

    /// The same log's position at `offset`, at or after this one, and at a frame's border.
    pub fn seek(&self, offset: u64) -> Self {
        debug_assert!(offset >= self.offset, "seek back from {} to {offset}", self.offset);
        let mut chunk = &self.chunk;
        while chunk.end() <= offset
            && let Some(next) = chunk.next.get()
        {
            chunk = next;
        }
        Self { chunk: Rc::clone(chunk), offset }
    }

    /// This log's position before frame `number`, at or after this one; the log's end if there are not so many.
    pub fn seek_frame(&self, number: u64) -> Self {
        let mut chunk = &self.chunk;
        loop {
            let body = chunk.body.borrow();
            let within = number.saturating_sub(chunk.first_frame);
            if within <= body.frames.len() as u64 {
                let offset = match within {
                    0 => chunk.start,
                    _ => chunk.start + u64::from(body.frames[within as usize - 1].end),
                };
                return Self { chunk: Rc::clone(chunk), offset: offset.max(self.offset) };
            }
            match chunk.next.get() {
                Some(next) => chunk = next,
                None => return Self { chunk: Rc::clone(chunk), offset: chunk.start + u64::from(body.len()) },
            }
        }
    }

    /// The first position at a frame's border at or behind `offset`, at or after this one; or, where that is the log's end, the one before the last frame.
    /// There must be a frame behind this position.
    pub fn seek_border(&self, offset: u64) -> Self {
        let offset = offset.max(self.offset);
        let mut chunk = &self.chunk;
        while chunk.end() <= offset
            && let Some(next) = chunk.next.get()
        {
            chunk = next;
        }
        let body = chunk.body.borrow();
        let within = offset.saturating_sub(chunk.start);
        let behind = |frames: &[Frame]| frames.last().map_or(0, |frame| frame.end);
        // Frames that end before the border: all that begin before `offset`, but never the log's last.
        let before = body.frames.partition_point(|frame| u64::from(frame.end) < within) + usize::from(within > 0);
        let before = before.min(body.frames.len().saturating_sub(usize::from(chunk.next.get().is_none())));
        let border = chunk.start + u64::from(behind(&body.frames[..before]));
        Self { chunk: Rc::clone(chunk), offset: border.max(self.offset) }
    }

    /// Visits frames from here on in order, each with its number and its bytes, as long as `visit` wants more. The position after the last one it took.
    pub fn each(&self, mut visit: impl FnMut(u64, &Frame, Range) -> bool) -> Self {
        let mut chunk = &self.chunk;
        let mut offset = self.offset;
        'chunks: loop {
            let body = chunk.body.borrow();
            let mut from = (offset - chunk.start) as u32;
            if let Some(range) = &body.range {
                let first = body.frames.partition_point(|frame| frame.end <= from);
                for (index, frame) in body.frames.iter().enumerate().skip(first) {
                    let bytes = range.slice(from as usize, (frame.end - from) as usize);
                    if !visit(chunk.first_frame + index as u64, frame, bytes) {
                        break 'chunks;
                    }
                    from = frame.end;
                    offset = chunk.start + u64::from(from);
                }
            }
            match chunk.next.get() {
                Some(next) => (chunk, offset) = (next, next.start.max(offset)),
                None => break,
            }
        }
        Self { chunk: Rc::clone(chunk), offset }
    }

    /// Bundles what follows for one send: whole frames, `bytes_max` in all but at least two frames, without those that `without` published. None at the end.
    pub fn gather(&self, bytes_max: usize, without: Option<ConnId>) -> Option<Gathered> {
        let mut ranges = Ranges::new();
        let (mut bytes, mut frames) = (0, 0);
        let mut chunk = &self.chunk;
        let mut offset = self.offset;
        'chunks: loop {
            let body = chunk.body.borrow();
            let mut from = (offset - chunk.start) as u32;
            if let Some(range) = &body.range {
                let first = body.frames.partition_point(|frame| frame.end <= from);
                let whole = body.len() - from;
                if without.is_none() && bytes + whole as usize <= bytes_max && whole > 0 && ranges.len() < Gather::RANGES_MAX {
                    ranges.push(range.slice(from as usize, whole as usize));
                    bytes += whole as usize;
                    frames += body.frames.len() - first;
                    offset += u64::from(whole);
                } else {
                    let mut run = from..from;
                    for frame in &body.frames[first..] {
                        let size = (frame.end - from) as usize;
                        let skipped = without == Some(frame.sender);
                        let opens = run.is_empty() && !skipped;
                        if !skipped && ((frames >= 2 && bytes + size > bytes_max) || (opens && ranges.len() == Gather::RANGES_MAX)) {
                            close_run(&mut ranges, range, &run);
                            offset = chunk.start + u64::from(from);
                            break 'chunks;
                        }
                        if skipped {
                            close_run(&mut ranges, range, &run);
                            run = frame.end..frame.end;
                        } else {
                            run.end = frame.end;
                            bytes += size;
                            frames += 1;
                        }
                        from = frame.end;
                    }
                    close_run(&mut ranges, range, &run);
                    offset = chunk.start + u64::from(from);
                }
            }
            match chunk.next.get() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        if offset == self.offset {
            return None;
        }
        let data = (!ranges.is_empty()).then(|| Rc::new(Gather::new(ranges)));
        Some(Gathered { data, next: Self { chunk: Rc::clone(chunk), offset } })
    }

    /// Copies out the handles on everything that follows, at most `bytes_max` bytes but at least one range, for another shard.
    pub fn parcel(&self, bytes_max: u64) -> Option<(Parcel, Self)> {
        let mut parcel = Parcel::default();
        let mut chunk = &self.chunk;
        let mut offset = self.offset;
        loop {
            let body = chunk.body.borrow();
            let from = (offset - chunk.start) as u32;
            let left = body.len() - from;
            if left > 0 && parcel.bytes > 0 && parcel.bytes + u64::from(left) > bytes_max {
                break;
            }
            if let Some(range) = body.range.as_ref().filter(|_| left > 0) {
                let first = body.frames.partition_point(|frame| frame.end <= from);
                let frames: Vec<Frame> =
                    body.frames[first..].iter().map(|frame| Frame { end: frame.end - from, ..frame.clone() }).collect();
                parcel.frames += frames.len() as u64;
                parcel.bytes += u64::from(left);
                parcel.parts.push((range.slice(from as usize, left as usize), frames));
                offset += u64::from(left);
            }
            match chunk.next.get() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        (parcel.bytes > 0).then(|| (parcel, Self { chunk: Rc::clone(chunk), offset }))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({})", self.offset)
    }
}

fn close_run(ranges: &mut Ranges, range: &Range, run: &std::ops::Range<u32>) {
    if !run.is_empty() {
        ranges.push(range.slice(run.start as usize, (run.end - run.start) as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnKey, ShardId};

    fn sender(slot: u32) -> ConnId {
        ConnId { shard: ShardId(0), key: ConnKey { slot, generation: 0 } }
    }

    fn text(gathered: &Gathered) -> String {
        gathered.data.iter().flat_map(|data| data.ranges()).map(|range| String::from_utf8_lossy(range.as_slice()).into_owned()).collect()
    }

    fn log() -> (Log, Arc<SegmentMemory>) {
        let memory = SegmentMemory::new();
        (Log::new(8, 16, &memory), memory)
    }

    #[test]
    fn frames_merge_into_one_send_up_to_the_limit_but_at_least_two() {
        let (mut log, _memory) = log();
        let start = log.pin();
        for word in ["one,", "two,", "three,", "four,", "five,"] {
            log.append(sender(1), b"", word.as_bytes());
        }
        let all = start.gather(1000, None).expect("frames");
        assert_eq!(text(&all), "one,two,three,four,five,");
        assert!(all.next.gather(1000, None).is_none());
        let some = start.gather(9, None).expect("frames");
        assert_eq!(text(&some), "one,two,");
        let least = start.gather(1, None).expect("frames");
        assert_eq!(text(&least), "one,two,");
        assert_eq!((least.next.offset(), least.next.frame()), (8, 2));
        assert_eq!(text(&least.next.gather(1, None).expect("frames")), "three,four,");
    }

    #[test]
    fn frames_are_found_by_number_and_visited_in_order() {
        let (mut log, _memory) = log();
        let start = log.pin();
        for n in 0..20 {
            log.append(sender(n), b"#", n.to_string().as_bytes());
        }
        for n in 0..=20 {
            let at = start.seek_frame(n);
            assert_eq!(at.frame(), n);
            let mut seen = Vec::new();
            let next = at.each(|number, frame, bytes| {
                assert_eq!((u64::from(frame.sender.key.slot), bytes.as_slice()), (number, format!("#{number}").as_bytes()));
                seen.push(number);
                seen.len() < 7
            });
            // The one that was declined counts as not taken.
            assert_eq!((seen.first().copied(), next.frame()), ((n < 20).then_some(n), (n + 6).min(20)), "from {n}");
        }
        assert_eq!(start.seek_frame(99).offset(), log.end());
    }

    #[test]
    fn a_border_is_found_and_the_last_frame_is_always_behind_it() {
        let (mut log, _memory) = log();
        let start = log.pin();
        let words = ["one", "three", "a very long one", "x", "y"];
        words.iter().for_each(|word| log.append(sender(1), b"", word.as_bytes()));
        let borders = [0, 3, 8, 23, 24];
        for from in borders {
            let pin = start.seek(from);
            for offset in 0..=log.end() + 1 {
                let expect = borders.iter().copied().find(|&border| border >= offset.max(from)).unwrap_or(24);
                assert_eq!(pin.seek_border(offset).offset(), expect, "{offset} from {from}");
            }
        }
        assert_eq!(start.seek_border(9).frame(), 3);
    }

    #[test]
    fn a_senders_own_frames_are_left_out() {
        let (mut log, _memory) = log();
        let start = log.pin();
        for (who, word) in [(1, "a"), (2, "b"), (1, "c"), (1, "d"), (2, "e")] {
            log.append(sender(who), b"", word.as_bytes());
        }
        assert_eq!(text(&start.gather(100, Some(sender(1))).expect("frames")), "be");
        assert_eq!(text(&start.gather(100, Some(sender(2))).expect("frames")), "acd");
        let end = log.pin();
        log.append(sender(7), b"", b"own");
        let own = end.gather(100, Some(sender(7))).expect("a position behind");
        assert!(own.data.is_none());
        assert_eq!(own.next.offset(), log.end());
    }

    #[test]
    fn memory_goes_when_the_slowest_position_has_passed() {
        let (mut log, memory) = log();
        let slow = log.pin();
        for _ in 0..100_000 {
            log.append(sender(1), b"", b"12345678");
        }
        assert!(memory.bytes() >= 800_000);
        assert_eq!(slow.seek(400_000).frame(), 50_000);
        assert!(!log.rest(), "a position keeps the log from resting");
        drop(slow);
        assert!(memory.bytes() <= 32 + 4 * size_of::<Frame>(), "{} bytes", memory.bytes());
        assert!(log.rest());
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn a_stuck_send_holds_its_segments_and_not_the_chain() {
        let (mut log, memory) = log();
        let start = log.pin();
        log.append(sender(1), b"", b"12345678");
        let in_flight = start.gather(100, None).expect("frames").data;
        drop(start);
        for _ in 0..1000 {
            log.append(sender(1), b"", b"12345678");
        }
        assert!(memory.bytes() <= 8 + 32 + 4 * size_of::<Frame>(), "{} bytes", memory.bytes());
        drop(in_flight);
    }

    #[test]
    fn a_compacted_log_holds_what_it_must_and_reads_the_same() {
        let memory = SegmentMemory::new();
        let mut log = Log::new(256, 4096, &memory);
        let mut oldest = log.pin();
        for n in 0..300 {
            log.append(sender(n), b"#", n.to_string().as_bytes());
        }
        oldest = oldest.seek_frame(100);
        let before = text(&oldest.gather(100_000, None).expect("frames"));
        let reader = oldest.seek_frame(200);
        assert!(!log.compact(&mut oldest), "somebody else has a position");
        drop(reader);
        assert!(log.compact(&mut oldest));
        let used = (log.end() - oldest.offset()) as usize;
        assert_eq!(memory.bytes(), used + 200 * size_of::<Frame>());
        assert_eq!((oldest.frame(), text(&oldest.gather(100_000, None).expect("frames"))), (100, before.clone()));
        log.append(sender(7), b"#", b"new");
        assert_eq!(text(&oldest.gather(100_000, None).expect("frames")), format!("{before}#new"));
        assert_eq!(oldest.seek_frame(300).gather(100, None).map(|gathered| text(&gathered)), Some("#new".into()));
        drop(oldest);
        assert!(log.rest());
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn a_parcel_reads_the_same_on_the_other_side() {
        let (mut here, memory) = log();
        let start = here.pin();
        for n in 0..20 {
            here.append(sender(n), b"#", n.to_string().as_bytes());
        }
        let mut there = Log::new(8, 16, &memory);
        let begin = there.pin();
        let mut at = start.clone();
        while let Some((parcel, next)) = at.parcel(10) {
            there.append_parcel(parcel);
            at = next;
        }
        assert_eq!((there.end(), there.frames()), (here.end(), here.frames()));
        let here = text(&start.gather(1000, Some(sender(3))).expect("frames"));
        let there = text(&begin.gather(1000, Some(sender(3))).expect("frames"));
        assert_eq!(here, there);
        assert!(here.contains("#2#4"));
    }

    #[test]
    fn a_parcel_keeps_what_it_is_told_to_in_order() {
        let (mut here, memory) = log();
        let start = here.pin();
        for n in 0..20 {
            here.append(sender(n), b"#", n.to_string().as_bytes());
        }
        let parcel = || start.parcel(1000).expect("frames").0;
        let mut all = parcel();
        all.retain(|_, _| true);
        assert_eq!((all.bytes, all.frames, all.parts.len()), (here.end(), 20, parcel().parts.len()));
        let mut some = parcel();
        some.retain(|frame, bytes| frame.sender != sender(3) && !bytes.starts_with(b"#1"));
        assert_eq!((some.bytes, some.frames), (2 * 8, 8));
        let mut there = Log::new(8, 16, &memory);
        let begin = there.pin();
        there.append_parcel(some);
        assert_eq!(text(&begin.gather(1000, None).expect("frames")), "#0#2#4#5#6#7#8#9");
        let mut none = parcel();
        none.retain(|_, _| false);
        assert_eq!((none.bytes, none.frames, none.parts.len()), (0, 0, 0));
    }
}
