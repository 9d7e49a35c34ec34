//! The state file: what a planned restart carries from one process to the next (`--state`). Its bytes are `proto::state`'s affair, what is in it
//! `gateway::state_stream`'s; here is when the file is read, written and put out of the way.
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
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crossbeam_channel::Receiver;

use crate::gateway::Chunk;
use crate::gateway::state_stream::{Restored, Written, write_to};
use crate::proto::position::Epoch;

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
                    topics = restored.topics(),
                    messages = restored.messages(),
                    keys = restored.keys(),
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
            let written = write_to(|bytes, _| file.write_all(bytes), epoch, hash_key, shards.into_iter().flatten(), tell)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const HASH_KEY: (u64, u64) = (3, 4);

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
