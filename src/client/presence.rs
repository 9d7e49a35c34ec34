//! Who is in a topic (docs/protocol.md section 14). Values only.

use std::sync::Arc;

/// Somebody who is in a topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// What the gateway calls its connection; a client finds its own in [`Event::Connected`](super::Event::Connected).
    pub conn: Box<str>,
    /// What it calls itself ([`Builder::user`](super::Builder::user)), which nobody has checked.
    pub user: Option<Box<str>>,
}

/// What the gateway says of who is in a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presence {
    /// Which topic.
    pub topic: Arc<str>,
    /// How many are there now.
    pub count: u64,
    /// Those who are there, or have come, or have gone. None where they are too many to be named (`presence_members_max` of the gateway).
    pub members: Option<Vec<Member>>,
    /// Whose clients these are: `node`, those of one gateway.
    pub scope: Box<str>,
}

impl Presence {
    /// About how many bytes it takes besides itself.
    pub(super) fn weight(&self) -> usize {
        let member = |member: &Member| size_of::<Member>() + member.conn.len() + member.user.as_ref().map_or(0, |user| user.len());
        self.topic.len() + self.members.iter().flatten().map(member).sum::<usize>()
    }
}
