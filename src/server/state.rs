//! The state file: what a planned restart carries from one process to the next (`--state`). Its bytes are `proto::state`'s affair, what is in it
//! `gateway::snapshot`'s; here is when the file is read, written and put out of the way.
//!
//! ```text
//!   start   lock FILE.lock ──▶ read FILE ──▶ remove it ──▶ serve, in the epoch that it names
//!                                  └ cannot be gone on from: rename it to FILE.unreadable, serve in an epoch of our own
//!   end     every shard has finished ──▶ write FILE.tmp ──▶ fsync ──▶ rename to FILE ──▶ fsync the directory
//! ```
//!
//! The file is gone before the first client is served: offsets go on from there, and whoever read the file again after a crash would give out the same ones
//! twice. So after a crash there is no file, and the next epoch is a new one: each client that comes back is told of one gap.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::engine::sys::Socket;
use crate::gateway::{Chunk, KeptMessage, KeptTopic, Snapshot, UsedKey};
use crate::hub::Placement;
use crate::proto::position::Epoch;
use crate::proto::state::{Connection, HEADER_BYTES, Record, StateError, decode_header, encode_header};

/// What is read at once.
const READ_BYTES: usize = 256 * 1024;
/// Nobody else reads what clients have said.
const MODE: u32 = 0o600;

/// Why there can be no state file.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// Another process has it.
    #[error(
        "{} is in use by another process, which has not written it yet, or is another instance: wait until it has ended, or choose another file with --state",
        .0.display()
    )]
    Taken(PathBuf),
    /// It cannot be made there.
    #[error("cannot {what} {}: {error}; choose another file with --state, in a directory that this user may write", .path.display())]
    Unusable {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
}

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

/// A state file that is this process's own.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Locked for as long as this process lives.
    lock: File,
}

impl StateFile {
    /// Takes possession of the file, which need not be there.
    ///
    /// # Errors
    /// When another process has it, and when it could not be written at the end: better to know that now.
    pub fn open(path: &Path) -> Result<Self, StateFileError> {
        let unusable = |what, path: &Path| {
            let path = path.to_owned();
            move |error| StateFileError::Unusable { what, path, error }
        };
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(unusable("use", path)(io::Error::other("it is there and no file")));
        }
        let lock_path = beside(path, ".lock");
        let lock = create(&lock_path, false).map_err(unusable("make", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateFileError::Taken(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(unusable("lock", &lock_path)(error)),
        }
        let trial = beside(path, ".tmp");
        create(&trial, true).and_then(|_| fs::remove_file(&trial)).map_err(unusable("make", &trial))?;
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Takes possession of the file from the process before, which holds this lock.
    pub fn inherit(path: &Path, lock: OwnedFd) -> Self {
        Self { path: path.to_owned(), lock: lock.into() }
    }

    /// The lock, for the process that takes over: it is locked as long as one of the two has it open (flock(2)).
    ///
    /// # Errors
    /// As dup(2).
    pub fn share_lock(&self) -> io::Result<OwnedFd> {
        self.lock.try_clone().map(OwnedFd::from)
    }

    /// Reads the file and puts it out of the way. None when there is none, or none to go on from, which is warned of. `unix_ms` is the time now; a file
    /// of over `bytes_max` is none to go on from.
    ///
    /// # Errors
    /// When it cannot be put out of the way: the next start would find it again.
    pub fn take(&self, unix_ms: u64, bytes_max: u64) -> Result<Option<Restored>, StateFileError> {
        let read = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::info!(file = %self.path.display(), "no state of an earlier process: positions of before are answered with a gap");
                return Ok(None);
            }
            Err(error) => Err(error.to_string()),
            Ok(mut file) => check_size(&file, bytes_max).and_then(|()| Restored::read(&mut file, unix_ms, false)),
        };
        match read {
            Ok(restored) => {
                fs::remove_file(&self.path).and_then(|()| self.sync_directory()).map_err(self.unusable("remove"))?;
                tracing::info!(
                    file = %self.path.display(),
                    topics = restored.topics.len() + restored.gone.len(),
                    messages = restored.topics.iter().map(|topic| topic.messages.len()).sum::<usize>(),
                    keys = restored.keys.len(),
                    "goes on where an earlier process ended"
                );
                Ok(Some(restored))
            }
            Err(why) => {
                let aside = beside(&self.path, ".unreadable");
                fs::rename(&self.path, &aside).and_then(|()| self.sync_directory()).map_err(self.unusable("put aside"))?;
                tracing::warn!(
                    "{} cannot be gone on from: {why}. Serving without it: who comes back is told of a gap (restart). It is kept as {}; delete that when you have seen it",
                    self.path.display(),
                    aside.display()
                );
                Ok(None)
            }
        }
    }

    /// Writes the file: the life of the offsets, and what each shard gives. `tell` hears how many bytes there are so far.
    ///
    /// # Errors
    /// When it cannot be written whole; then there is none.
    pub fn write(
        &self,
        epoch: Epoch,
        hash_key: (u64, u64),
        shards: impl IntoIterator<Item = Receiver<Chunk>>,
        tell: impl FnMut(u64),
    ) -> io::Result<Written> {
        let path = beside(&self.path, ".tmp");
        let written = create(&path, true).and_then(|mut file| {
            let written = write_to(|bytes, _| file.write_all(bytes), epoch, hash_key, shards, tell)?;
            file.sync_all()?;
            Ok(written)
        });
        let renamed = written.and_then(|written| fs::rename(&path, &self.path).map(|()| written));
        match renamed {
            Ok(written) => self.sync_directory().map(|()| written),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn unusable(&self, what: &'static str) -> impl FnOnce(io::Error) -> StateFileError {
        let path = self.path.clone();
        move |error| StateFileError::Unusable { what, path, error }
    }

    /// A rename is on disk when its directory is.
    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn create(path: &Path, empty: bool) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(empty).mode(MODE).open(path)
}

fn check_size(file: &File, bytes_max: u64) -> Result<(), String> {
    match file.metadata() {
        Ok(found) if found.len() > bytes_max => {
            Err(format!("it has {} bytes, over {bytes_max}: more than histories may take here (limits.history_bytes_max)", found.len()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Appends at most so many bytes; how many. None at the file's end.
fn read_some(from: &mut impl Read, bytes_max: usize, into: &mut Vec<u8>) -> Result<usize, String> {
    from.by_ref().take(bytes_max as u64).read_to_end(into).map_err(|error| error.to_string())
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
    shards: impl IntoIterator<Item = Receiver<Chunk>>,
    mut tell: impl FnMut(u64),
) -> io::Result<Written> {
    let mut bytes = Vec::new();
    encode_header(&mut bytes);
    Record::Life { epoch, hash_key }.encode(&mut bytes);
    out(&bytes, &[])?;
    let mut written = Written { bytes: bytes.len() as u64, counts: [0; 4] };
    let mut records = 1;
    for chunk in shards.into_iter().flatten() {
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
            Record::Message { at_ms, kind, event, payload } => {
                let topic = restored.topics.last_mut().expect("messages are expected behind a topic only");
                topic.messages.push(KeptMessage { age: age(at_ms), kind, event: event.map(Box::from), payload: payload.into() });
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
        Record::Message { at_ms, kind: MessageKind::Binary, event: None, payload }
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
        let shards = shards.map(|chunk| {
            let (sender, receiver) = crossbeam_channel::bounded(1);
            sender.send(chunk).expect("it is listened to");
            receiver
        });
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

    #[test]
    fn a_state_file_is_one_process_s_and_read_once() {
        let directory = std::env::temp_dir().join(format!("shardcast-state-{}", std::process::id()));
        fs::create_dir(&directory).expect("a name of our own");
        let path = directory.join("state");
        let mine = StateFile::open(&path).expect("it can be made");
        assert!(matches!(StateFile::open(&path), Err(StateFileError::Taken(_))));
        assert!(mine.take(0, u64::MAX).expect("nothing is there").is_none());
        let written = mine.write(Epoch(9), HASH_KEY, [], |_| {}).expect("it can be written");
        assert_eq!(written.bytes, fs::metadata(&path).expect("it is there").len());
        assert_eq!(mine.take(0, u64::MAX).expect("it can be removed").map(|restored| restored.epoch), Some(Epoch(9)));
        assert!(!path.exists());
        mine.write(Epoch(9), HASH_KEY, [], |_| {}).expect("it can be written");
        assert!(mine.take(0, 10).expect("it can be renamed").is_none(), "it is too large");
        assert!(directory.join("state.unreadable").exists() && !path.exists());
        assert!(matches!(StateFile::open(&directory), Err(StateFileError::Unusable { .. })), "a directory is no file");
        fs::remove_dir_all(&directory).expect("our own directory");
    }
}
