//! What the baselines share: the process as the gateway's is (allocator, CPU, listener), and just enough WebSocket. No hub is in here.
//!
//! `GET /ws?room=NAME` joins a room, all that is said there goes to every member, the sender too; `GET /echo` says it back. A message is one frame of at
//! most 1 MiB; whoever sends fragments is ended. No UTF-8 check, no deadlines, no caps: a baseline leaves out what costs.

pub mod process;
pub mod ring;
pub mod ws;

use std::collections::HashMap;

use ws::{Batch, Ended, Wish};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Unsent bytes of one client after which it is ended.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Where a client is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Place {
    /// Its request head is not whole yet.
    #[default]
    Head,
    /// In `/echo`.
    Echo,
    /// A member of this room, at this place among its members.
    Room(usize, usize),
}

/// Who is in which room.
#[derive(Default, Debug)]
pub struct Rooms {
    names: HashMap<String, usize>,
    members: Vec<Vec<usize>>,
}

impl Rooms {
    /// Makes a client a member.
    pub fn join(&mut self, name: &str, client: usize) -> Place {
        let room = match self.names.get(name) {
            Some(room) => *room,
            None => {
                self.members.push(Vec::new());
                self.names.insert(name.to_owned(), self.members.len() - 1);
                self.members.len() - 1
            }
        };
        self.members[room].push(client);
        Place::Room(room, self.members[room].len() - 1)
    }

    /// Takes the member at this place out. The member that has its place now, if any.
    pub fn leave(&mut self, room: usize, at: usize) -> Option<usize> {
        self.members[room].swap_remove(at);
        self.members[room].get(at).copied()
    }

    /// Does what a client's bytes ask for, up to what is to be sent; returns how many were used up.
    ///
    /// # Errors
    /// As [`ws::upgrade`] and [`ws::take`].
    pub fn take(&mut self, client: usize, place: &mut Place, input: &[u8], batch: &mut Batch) -> Result<usize, Ended> {
        let mut used = 0;
        if *place == Place::Head {
            let Some((wish, length)) = ws::upgrade(input, &mut batch.answers)? else { return Ok(0) };
            used = length;
            *place = match wish {
                Wish::Echo => Place::Echo,
                Wish::Room(name) => self.join(&name, client),
            };
        }
        Ok(used + ws::take(&input[used..], batch)?)
    }

    /// The clients in a room.
    pub fn members(&self, room: usize) -> &[usize] {
        &self.members[room]
    }
}
