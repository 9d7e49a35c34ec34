//! What every test needs that waits for something or writes files; of the gateway nothing is in here.
#![allow(dead_code, reason = "every test file takes from here what it needs")]
#![allow(clippy::disallowed_methods, reason = "tests stand outside the gateway: real time")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that should come at once. Generous: two test gateways and their clients share two cores.
pub const SOON: Duration = Duration::from_secs(10);

/// A directory for one test, gone with it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("shardcast-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("a fresh name in the temporary directory");
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Asks again until the answer is `Ok`, and fails with the last reason after `limit`.
pub fn eventually<T>(limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(reason) => assert!(Instant::now() < deadline, "after {limit:?}: {reason}"),
        }
        sleep_ms(10);
    }
}

pub fn now() -> Instant {
    Instant::now()
}

pub fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
