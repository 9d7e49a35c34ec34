//! A gateway whose next process may be anything: what becomes of a hand-over then.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::{Gateway, Setup, put_program};

/// A gateway at whose path scripts can be put, and the program itself.
pub struct Replaceable {
    pub gateway: Gateway,
    pub path: PathBuf,
    pub real: PathBuf,
}

impl Replaceable {
    pub fn start(setup: Setup) -> Self {
        let gateway = setup.ordinary_user().start();
        let path = std::fs::read_link(format!("/proc/{}/exe", gateway.pid())).expect("it runs");
        let real = path.with_extension("real");
        std::fs::copy(&path, &real).expect("our directory");
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o755)).expect("our file");
        Self { gateway, path, real }
    }

    /// The next process does this in place of serving.
    pub fn replace(&self, instead: &str) {
        let script = format!("#!/bin/sh\n[ \"$1\" = config ] && exec {real} \"$@\"\n{instead}\n", real = self.real.display());
        put_program(&self.path, &script);
    }
}
