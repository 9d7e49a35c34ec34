//! Segments: the memory of a payload is charged once, released once, by whoever lets go last, and nobody writes where somebody reads.
//!
//! What was broken on purpose, and what loom said:
//!
//! - charged twice: "the whole segment, once", 16 bytes for 8; released twice: 18446744073709551608 bytes after the last handle; never: 8;
//! - released with the writer: "while a handle is held", 0 bytes for 8;
//! - charge, or release, as a load and a store: "4 bytes while 8 are held here", 4 bytes after the last handle;
//! - an append that begins one byte too early, a ring that publishes with Relaxed, or one that looks with Relaxed: "Concurrent read and write accesses".
//!
//! A failed model with segments in it may abort after its report: loom's counted pointers cannot be dropped once it has stopped.

use std::sync::Arc;

use loom::thread;
use shardcast::engine::mailbox::mesh;
use shardcast::engine::segment::{Arena, Range, SegmentMemory, SegmentWriter};
use shardcast::ids::ShardId;

use crate::search::{assert_among, outcomes};

#[test]
fn whoever_lets_go_last_releases_the_memory() {
    let outcomes = outcomes(None, || {
        let memory = SegmentMemory::new();
        let mut writer = SegmentWriter::new(8, &memory);
        let first = writer.append(b"a", b"bc");
        let second = writer.append(b"", b"def");
        assert_eq!(memory.bytes(), 8, "the whole segment, once");
        let readers = [(first.clone(), b"abc"), (second, b"def")].map(|(range, expect)| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                assert_eq!(range.as_slice(), expect);
                assert_eq!(memory.bytes(), 8, "while a handle is held");
                let part = range.slice(1, 2);
                drop(range);
                assert_eq!(part.as_slice(), &expect[1..]);
                drop(part);
                memory.bytes()
            })
        });
        drop(writer);
        assert_eq!(first.as_slice(), b"abc");
        drop(first);
        let after = memory.bytes();
        let afters = readers.map(|reader| reader.join().expect("no panic"));
        assert_eq!(memory.bytes(), 0, "after the last handle");
        (after, afters)
    });
    assert_among(&outcomes, [(0, [8, 8]), (8, [0, 8]), (8, [8, 0])]);
}

#[test]
fn a_writer_appends_while_a_reader_reads_what_is_before() {
    outcomes(None, || {
        let memory = SegmentMemory::new();
        let mut writer = SegmentWriter::new(8, &memory);
        let first = writer.append(b"", b"abc");
        let mut joined = first.clone();
        let reader = thread::spawn(move || {
            assert_eq!(first.as_slice(), b"abc");
        });
        let second = writer.append(b"d", b"e");
        assert!(joined.try_join(&second));
        drop(writer);
        assert_eq!(joined.as_slice(), b"abcde");
        drop((joined, second));
        reader.join().expect("no panic");
        assert_eq!(memory.bytes(), 0);
    });
}

#[test]
fn a_message_between_shards_carries_its_bytes() {
    outcomes(None, || {
        let memory = SegmentMemory::new();
        let [mut a, mut b] = mesh::<Range>(2, 2).try_into().ok().expect("two mailboxes");
        let receiver = thread::spawn(move || {
            let mut bytes = 0;
            while let Some((_, range)) = b.receive_one() {
                assert_eq!(range.as_slice(), if bytes == 0 { b"abc" } else { b"def" });
                bytes += range.len();
            }
            b
        });
        // The first append takes a segment of its own size, the second one of eight bytes, and the third goes on in that while the other shard reads.
        let mut arena = Arena::new(8, 8, &memory);
        a.send(ShardId(1), arena.append(b"", b"abc"));
        a.send(ShardId(1), arena.append(b"", b"def"));
        let third = arena.append(b"", b"gh");
        arena.rest();
        drop((third, a));
        drop(receiver.join().expect("no panic"));
        assert_eq!(memory.bytes(), 0);
    });
}

#[test]
fn shards_charge_one_account() {
    outcomes(None, || {
        let memory = SegmentMemory::new();
        let shards = [4, 8].map(|capacity| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                let range = SegmentWriter::new(capacity, &memory).append(b"", b"x");
                let bytes = memory.bytes();
                assert!(bytes == capacity || bytes == 12, "{bytes} bytes while {capacity} are held here");
                range
            })
        });
        let ranges = shards.map(|shard| shard.join().expect("no panic"));
        assert_eq!(memory.bytes(), 12);
        let [first, second] = ranges;
        let other = thread::spawn(move || drop(first));
        drop(second);
        other.join().expect("no panic");
        assert_eq!(memory.bytes(), 0);
    });
}
