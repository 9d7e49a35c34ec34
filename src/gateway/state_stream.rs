//! Everything that a process leaves to the next one, as one sequence of bytes: made of what its shards give (`snapshot`, `handover`), and read to be split
//! over the next one's shards. A file carries it (`server::state`), or a socket between the two (`server::handover`), with connections then.

use std::io::{self, Read};
use std::time::Duration;

use super::snapshot::{Chunk, KeptMessage, KeptTopic, Snapshot, UsedKey};
use crate::engine::sys::Socket;
use crate::hub::Placement;
use crate::proto::position::Epoch;
use crate::proto::state::{Connection, HEADER_BYTES, Record, StateError, decode_header, encode_header};

/// What is read at once.
const READ_BYTES: usize = 256 * 1024;

/// The whole of a process's offsets, histories and keys.
#[derive(Debug)]
pub struct Restored {
    /// Whose offsets they are.
    pub epoch: Epoch,
    /// The key of names' hashes.
    pub hash_key: (u64, u64),
    floor: u64,
    gone: Vec<(u64, u64)>,
    topics: Vec<KeptTopic>,
    keys: Vec<UsedKey>,
    /// Connections, in the order of their sockets; of a process that hands them over.
    pub connections: Vec<Connection>,
}

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Topics, gone ones included, messages, idempotency keys, and connections.
    pub counts: [u64; 4],
}

/// Writes the life of the offsets, and what each shard gives: to `out`, with the sockets of the connections among it. `tell` hears how many bytes there are so
/// far.
///
/// # Errors
/// As `out` says.
pub fn write_to(
    mut out: impl FnMut(&[u8], &[Socket]) -> io::Result<()>,
    epoch: Epoch,
    hash_key: (u64, u64),
    chunks: impl IntoIterator<Item = Chunk>,
    mut tell: impl FnMut(u64),
) -> io::Result<Written> {
    let mut bytes = Vec::new();
    encode_header(&mut bytes);
    Record::Life { epoch, hash_key }.encode(&mut bytes);
    out(&bytes, &[])?;
    let mut written = Written { bytes: bytes.len() as u64, counts: [0; 4] };
    let mut records = 1;
    for chunk in chunks {
        out(&chunk.bytes, &chunk.sockets)?;
        written.bytes += chunk.bytes.len() as u64;
        records += chunk.records;
        for (all, some) in written.counts.iter_mut().zip(chunk.counts) {
            *all += some;
        }
        tell(written.bytes);
    }
    bytes.clear();
    Record::End { records }.encode(&mut bytes);
    out(&bytes, &[])?;
    written.bytes += bytes.len() as u64;
    Ok(written)
}

/// Appends at most so many bytes; how many. None at the file's end.
fn read_some(from: &mut impl Read, bytes_max: usize, into: &mut Vec<u8>) -> Result<usize, String> {
    from.by_ref().take(bytes_max as u64).read_to_end(into).map_err(|error| error.to_string())
}

impl Restored {
    /// Reads a whole file, or what a process hands over together with its connections; or says why it is none. `unix_ms` is the time now.
    ///
    /// # Errors
    /// A sentence.
    pub fn read(from: &mut impl Read, unix_ms: u64, has_connections: bool) -> Result<Self, String> {
        let mut bytes = Vec::with_capacity(2 * READ_BYTES);
        read_some(from, HEADER_BYTES, &mut bytes)?;
        decode_header(&bytes).map_err(|error| error.to_string())?;
        bytes.clear();
        let mut reading = Reading { unix_ms, restored: None, expected: 0, has_connections };
        let (mut records, mut ended) = (0, false);
        loop {
            let read = read_some(from, READ_BYTES, &mut bytes)?;
            let mut at = 0;
            while !ended && let Some((record, length)) = Record::decode(&bytes[at..]).map_err(|error| error.to_string())? {
                ended = reading.add(record, records).map_err(|error| error.to_string())?;
                records += 1;
                at += length;
            }
            bytes.drain(..at);
            if ended && !bytes.is_empty() {
                return Err(StateError::Senseless("it goes on after its end").to_string());
            }
            if read == 0 {
                return reading.restored.filter(|_| ended).ok_or_else(|| StateError::CutOff.to_string());
            }
        }
    }

    /// Topics, gone ones included.
    pub fn topics(&self) -> usize {
        self.topics.len() + self.gone.len()
    }

    /// Messages of their histories.
    pub fn messages(&self) -> usize {
        self.topics.iter().map(|topic| topic.messages.len()).sum()
    }

    /// Idempotency keys.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// What each shard takes up.
    pub fn split(self, placement: &Placement) -> Vec<Snapshot> {
        let mut shards: Vec<Snapshot> = (0..placement.shards()).map(|_| Snapshot { floor: self.floor, ..Snapshot::default() }).collect();
        for (hash, offset) in self.gone {
            shards[placement.home_of_hash(hash).index()].gone.push((hash, offset));
        }
        for topic in self.topics {
            shards[placement.home(topic.name.as_str()).index()].topics.push(topic);
        }
        for key in self.keys {
            shards[placement.home(key.topic.as_str()).index()].keys.push(key);
        }
        for shard in &mut shards {
            // Keys of several shards have come one shard after the other.
            shard.keys.sort_by_key(|key| std::cmp::Reverse(key.age));
        }
        shards
    }
}

/// A file on its way in.
struct Reading {
    unix_ms: u64,
    restored: Option<Restored>,
    /// Messages of the last topic that are still to come.
    expected: u64,
    /// It comes from a process that hands its connections over.
    has_connections: bool,
}

impl Reading {
    /// Takes the record with this number. Whether it was the last.
    fn add(&mut self, record: Record<'_>, number: u64) -> Result<bool, StateError> {
        let age = |at_ms| Duration::from_millis(self.unix_ms.saturating_sub(at_ms));
        let Some(restored) = &mut self.restored else {
            let Record::Life { epoch, hash_key } = record else { return Err(StateError::Senseless("it does not begin with an epoch")) };
            self.restored = Some(Restored {
                epoch,
                hash_key,
                floor: 0,
                gone: Vec::new(),
                topics: Vec::new(),
                keys: Vec::new(),
                connections: Vec::new(),
            });
            return Ok(false);
        };
        if (self.expected > 0) != matches!(record, Record::Message { .. }) {
            return Err(StateError::Senseless("a topic has other messages than it says"));
        }
        match record {
            Record::Life { .. } => return Err(StateError::Senseless("it has two epochs")),
            Record::Floor { offset } => restored.floor = restored.floor.max(offset),
            Record::Gone { hash, offset } => restored.gone.push((hash, offset)),
            Record::Topic { name, after, messages } => {
                restored.topics.push(KeptTopic { name, after, messages: Vec::new() });
                self.expected = messages;
            }
            Record::Message { at_ms, kind, event, key, payload } => {
                let topic = restored.topics.last_mut().expect("messages are expected behind a topic only");
                topic.messages.push(KeptMessage {
                    age: age(at_ms),
                    kind,
                    event: event.map(Box::from),
                    key: key.map(Box::from),
                    payload: payload.into(),
                });
                self.expected -= 1;
            }
            Record::Key { at_ms, topic, id, offset } => restored.keys.push(UsedKey { age: age(at_ms), topic, id: id.into(), offset }),
            Record::Connection(connection) if self.has_connections => restored.connections.push(*connection),
            Record::Connection(_) => return Err(StateError::Senseless("there is a connection in a file")),
            Record::End { records } if records == number => return Ok(true),
            Record::End { .. } => return Err(StateError::Senseless("records are missing")),
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::proto::topic::TopicName;
    use crate::proto::ws::MessageKind;

    const HASH_KEY: (u64, u64) = (3, 4);

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("a name")
    }

    fn chunk(records: &[Record<'_>]) -> Chunk {
        let mut chunk = Chunk { records: records.len() as u64, ..Chunk::default() };
        records.iter().for_each(|record| record.encode(&mut chunk.bytes));
        chunk
    }

    fn message(at_ms: u64, payload: &[u8]) -> Record<'_> {
        Record::Message { at_ms, kind: MessageKind::Binary, event: None, key: None, payload }
    }

    /// A file of two shards.
    fn file() -> Vec<u8> {
        let key = |id, at_ms| Record::Key { at_ms, topic: topic("a"), id, offset: 7 };
        let shards = [
            chunk(&[
                Record::Floor { offset: 5 },
                Record::Topic { name: topic("a"), after: 6, messages: 2 },
                message(1000, b"x"),
                message(2000, b"y"),
                key("late", 1500),
            ]),
            chunk(&[Record::Floor { offset: 3 }, Record::Gone { hash: 1, offset: 9 }, key("early", 1200)]),
        ];
        let mut out = Vec::new();
        write_to(|bytes, _| out.write_all(bytes), Epoch(17), HASH_KEY, shards, |_| {}).expect("a vector takes everything");
        out
    }

    fn read(bytes: &[u8]) -> Result<Restored, String> {
        Restored::read(&mut &*bytes, 5000, false)
    }

    #[test]
    fn a_file_is_split_over_as_many_shards_as_there_are_now() {
        for shards in [1, 2, 7] {
            let restored = read(&file()).expect("our own");
            assert_eq!((restored.epoch, restored.hash_key), (Epoch(17), HASH_KEY));
            let placement = Placement::new(shards, restored.hash_key);
            let snapshots = restored.split(&placement);
            assert!(snapshots.len() == usize::from(shards) && snapshots.iter().all(|shard| shard.floor == 5));
            let home = &snapshots[placement.home("a").index()];
            assert_eq!((home.topics.len(), home.topics[0].after, home.topics[0].messages.len()), (1, 6, 2));
            assert_eq!((home.topics[0].messages[1].age, &*home.topics[0].messages[1].payload), (Duration::from_secs(3), &b"y"[..]));
            assert_eq!(home.keys.iter().map(|key| &*key.id).collect::<Vec<_>>(), ["early", "late"]);
            assert_eq!(snapshots[placement.home_of_hash(1).index()].gone, [(1, 9)]);
        }
    }

    #[test]
    fn a_file_that_was_cut_off_anywhere_is_none() {
        let whole = file();
        for length in 0..whole.len() {
            let why = read(&whole[..length]).expect_err("cut off");
            assert!(why.contains("cut off"), "{length} bytes: {why}");
        }
    }

    #[test]
    fn a_file_whose_records_do_not_follow_on_each_other_is_none() {
        let check = |records: &[Record<'_>], why: &str| {
            let mut bytes = Vec::new();
            encode_header(&mut bytes);
            records.iter().for_each(|record| record.encode(&mut bytes));
            let said = read(&bytes).expect_err("senseless");
            assert!(said.contains(why), "{said}, expected {why}");
        };
        let life = || Record::Life { epoch: Epoch(1), hash_key: HASH_KEY };
        let with = |messages| Record::Topic { name: topic("a"), after: 0, messages };
        check(&[Record::End { records: 0 }], "begin with an epoch");
        check(&[life(), life()], "two epochs");
        check(&[life(), message(0, b"")], "other messages");
        check(&[life(), with(1), with(1)], "other messages");
        check(&[life(), with(1), Record::End { records: 2 }], "other messages");
        check(&[life(), Record::Floor { offset: 1 }, Record::End { records: 1 }], "records are missing");
        check(&[life(), Record::End { records: 1 }, life()], "after its end");
        check(&[life()], "cut off");
    }
}
