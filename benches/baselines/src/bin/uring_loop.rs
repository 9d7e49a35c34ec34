//! Baseline: one io_uring. Multishot accept and receive from a ring of buffers, one send per member and message, with --merge one per member and read,
//! all of a turn submitted at once. A client has one send in flight, as two could overtake each other; what comes meanwhile waits as handles.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use baselines::ring::{self, Buffers};
use baselines::ws::{self, Batch};
use baselines::{Place, QUEUE_BYTES_MAX, Rooms, process};
use io_uring::{IoUring, cqueue, squeue};

const READ_BUFFERS: u16 = 1024;
const READ_BYTES: usize = 16 * 1024;
const ACCEPT: u64 = 1 << 32;
const RECEIVE: u64 = 2 << 32;
const SEND: u64 = 3 << 32;

/// Bytes of a batch that are to be sent.
struct Piece {
    bytes: Rc<Vec<u8>>,
    range: Range<usize>,
}

#[derive(Default)]
struct Client {
    place: Place,
    partial: Vec<u8>,
    /// The first one is in flight, if any.
    queue: VecDeque<Piece>,
    queued: usize,
    receiving: bool,
    ending: bool,
}

struct Hub {
    ring: IoUring,
    buffers: Buffers,
    merge: bool,
    /// By descriptor, which is closed when no operation on it is in flight.
    clients: Vec<Option<Client>>,
    rooms: Rooms,
}

fn main() {
    let args = process::start();
    let listener = process::listen(args.listen);
    let ring = ring::build();
    let buffers = Buffers::register(&ring, READ_BUFFERS, READ_BYTES);
    let mut hub = Hub { ring, buffers, merge: args.merge, clients: Vec::new(), rooms: Rooms::default() };
    let accept = || ring::accept(listener.as_raw_fd()).user_data(ACCEPT);
    hub.push(&accept());
    let mut done = Vec::new();
    loop {
        // EINTR, and EBUSY while completions overflow: these are taken out now.
        let _ = hub.ring.submit_and_wait(1);
        done.extend(hub.ring.completion());
        for entry in done.drain(..) {
            let fd = entry.user_data() as u32 as usize;
            match entry.user_data() & !u64::from(u32::MAX) {
                RECEIVE => hub.received(fd, &entry),
                SEND => hub.sent(fd, entry.result()),
                _ => {
                    usize::try_from(entry.result()).into_iter().for_each(|fd| hub.accepted(fd));
                    if !cqueue::more(entry.flags()) {
                        hub.push(&accept());
                    }
                }
            }
        }
    }
}

impl Hub {
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: sends point into batches that their queue holds until they are done; receives name buffers that live for ever.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            let _ = self.ring.submit();
        }
    }

    fn accepted(&mut self, fd: usize) {
        if self.clients.len() <= fd {
            self.clients.resize_with(fd + 1, || None);
        }
        self.clients[fd] = Some(Client { receiving: true, ..Client::default() });
        self.receive(fd);
    }

    fn receive(&mut self, fd: usize) {
        self.push(&ring::receive(fd as i32).user_data(RECEIVE | fd as u64));
    }

    fn received(&mut self, fd: usize, entry: &cqueue::Entry) {
        let result = entry.result();
        if let Some(id) = cqueue::buffer_select(entry.flags()) {
            let client = self.clients[fd].as_mut().expect("it is receiving");
            let mut partial = std::mem::take(&mut client.partial);
            let fresh = self.buffers.received(id, result.max(0) as usize);
            let whole = partial.is_empty();
            partial.extend_from_slice(if whole { &[] } else { fresh });
            let input = if whole { fresh } else { &partial };
            if !client.ending {
                let mut batch = Batch::default();
                match self.rooms.take(fd, &mut client.place, input, &mut batch) {
                    Ok(used) if used < input.len() => client.partial = input[used..].to_vec(),
                    Ok(_) => {}
                    Err(ws::Ended) => batch.closed = true,
                }
                self.deliver(fd, batch);
            }
            self.buffers.give_back(id);
        }
        if !cqueue::more(entry.flags()) {
            if result > 0 || result == -libc::ENOBUFS {
                return self.receive(fd);
            }
            self.clients[fd].as_mut().expect("it was receiving").receiving = false;
            self.end(fd);
        }
    }

    fn deliver(&mut self, fd: usize, mut batch: Batch) {
        if !batch.answers.is_empty() {
            self.send(fd, Piece { range: 0..batch.answers.len(), bytes: Rc::new(std::mem::take(&mut batch.answers)) });
        }
        let place = self.clients[fd].as_ref().expect("it is open").place;
        let bytes = Rc::new(std::mem::take(&mut batch.frames));
        for write in batch.writes(self.merge) {
            let piece = || Piece { bytes: bytes.clone(), range: write.clone() };
            let Place::Room(room, _) = place else {
                self.send(fd, piece());
                continue;
            };
            for at in 0..self.rooms.members(room).len() {
                self.send(self.rooms.members(room)[at], piece());
            }
        }
        if batch.closed {
            self.end(fd);
        }
    }

    fn send(&mut self, fd: usize, piece: Piece) {
        let client = self.clients[fd].as_mut().expect("members are open");
        client.queued += piece.range.len();
        client.queue.push_back(piece);
        if client.queue.len() == 1 {
            self.submit_send(fd);
        } else if client.queued > QUEUE_BYTES_MAX {
            ring::shut(fd as i32);
        }
    }

    fn submit_send(&mut self, fd: usize) {
        let Piece { bytes, range } = &self.clients[fd].as_ref().expect("it is open").queue[0];
        let send = ring::send(fd as i32, &bytes[range.clone()]);
        self.push(&send.user_data(SEND | fd as u64));
    }

    fn sent(&mut self, fd: usize, result: i32) {
        let client = self.clients[fd].as_mut().expect("it was sending");
        let Ok(count) = usize::try_from(result) else {
            client.queue.clear();
            return self.end(fd);
        };
        client.queued -= count;
        client.queue[0].range.start += count;
        if client.queue[0].range.is_empty() {
            client.queue.pop_front();
        }
        if !client.queue.is_empty() {
            self.submit_send(fd);
        } else if client.ending {
            self.end(fd);
        }
    }

    /// Takes a client out of its room and closes it, once nothing of it is in flight.
    fn end(&mut self, fd: usize) {
        let client = self.clients[fd].as_mut().expect("it is open");
        client.ending = true;
        if let Place::Room(room, at) = std::mem::replace(&mut client.place, Place::Echo)
            && let Some(moved) = self.rooms.leave(room, at)
        {
            self.clients[moved].as_mut().expect("members are open").place = Place::Room(room, at);
        }
        let client = self.clients[fd].as_ref().expect("it is open");
        if client.queue.is_empty() || !client.receiving {
            ring::shut(fd as i32);
        }
        if client.queue.is_empty() && !client.receiving {
            self.clients[fd] = None;
            // SAFETY: ours, and forgotten just now.
            unsafe { libc::close(fd as i32) };
        }
    }
}
