//! Long polls.

use super::Gateway;
use super::close_cause::CloseCause;
use super::replay::Replay;
use crate::engine::driver::Driver;
use crate::ids::ConnKey;

impl<D: Driver> Gateway<D> {
    pub(super) fn open_poll(&mut self, _key: ConnKey, _arrived: Vec<(u16, Replay)>) {}
    pub(super) fn refuse_poll(&mut self, _key: ConnKey, _cause: CloseCause) {}
    pub(super) fn poll_timed_out(&mut self, _key: ConnKey) {}
    pub(super) fn answer_polls(&mut self) {}
}
