//! The core's ends of the ways to the shards, for all of its tasks: one thread, so each is borrowed for a moment and never while anything is awaited.

use std::cell::{RefCell, RefMut};
use std::time::Duration;

use tokio::time::sleep;

use super::link::{CoreLane, Incoming, Notice, Outgoing};
use crate::ids::ShardId;

/// How often it is looked whether an inbox has room again.
const ROOM: Duration = Duration::from_millis(1);

/// The ends.
pub(super) struct Ends {
    pub(super) lanes: Vec<RefCell<CoreLane>>,
    pub(super) wake: Box<dyn Fn(ShardId) + Send>,
}

impl Ends {
    pub(super) fn lane(&self, shard: ShardId) -> RefMut<'_, CoreLane> {
        self.lanes[shard.index()].borrow_mut()
    }

    /// Puts a message on its way if there is room; whether there was.
    pub(super) fn deliver(&self, shard: ShardId, message: Incoming) -> bool {
        self.lane(shard).deliver(message, &self.wake)
    }

    /// Puts on its way what may not be lost: waits until there is room.
    pub(super) async fn tell(&self, shard: ShardId, mut notice: Notice) {
        loop {
            let left = self.lane(shard).insist(notice, &self.wake);
            let Err(back) = left else { return };
            notice = back;
            sleep(ROOM).await;
        }
    }

    /// A message does not count against its outbox any more; its shard may wait for that.
    pub(super) fn settle(&self, shard: ShardId, message: &Outgoing) {
        let lane = self.lane(shard);
        lane.settle(message);
    }

    /// Lets every shard see the state of the connection.
    pub(super) fn nudge(&self) {
        for lane in &self.lanes {
            lane.borrow().nudge(&self.wake);
        }
    }
}
