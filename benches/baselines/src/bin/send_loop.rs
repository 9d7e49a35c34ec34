//! Baseline: one epoll loop, one send(2) per member and message; with --merge one per member and read. What a socket does not take waits in a queue of
//! the client's own until epoll says that it takes more.

use std::os::fd::AsRawFd;

use baselines::ws::{self, Batch};
use baselines::{Place, QUEUE_BYTES_MAX, Rooms, process};
use libc::{EPOLLIN, EPOLLOUT, EPOLLRDHUP, c_int, epoll_event};

/// Each read takes as much as a client has sent, up to this.
const READ_BYTES: usize = 64 * 1024;

struct Client {
    place: Place,
    /// Received, and no whole frame yet.
    partial: Vec<u8>,
    /// Not taken by the socket yet, from `sent` on.
    queue: Vec<u8>,
    sent: usize,
}

struct Hub {
    epoll: c_int,
    merge: bool,
    /// By descriptor.
    clients: Vec<Option<Client>>,
    rooms: Rooms,
    read: Vec<u8>,
    doomed: Vec<usize>,
}

fn main() {
    let args = process::start();
    let listener = process::listen(args.listen);
    // SAFETY: takes no pointers.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let mut hub =
        Hub { epoll, merge: args.merge, clients: Vec::new(), rooms: Rooms::default(), read: vec![0; READ_BYTES], doomed: Vec::new() };
    let mut batch = Batch::default();
    let mut ready = vec![epoll_event { events: 0, u64: 0 }; 1024];
    hub.watch(libc::EPOLL_CTL_ADD, listener.as_raw_fd() as usize, EPOLLIN);
    loop {
        // SAFETY: the kernel writes at most as many events as there are.
        let count = unsafe { libc::epoll_wait(epoll, ready.as_mut_ptr(), ready.len() as c_int, -1) };
        for epoll_event { events, u64: fd } in ready.iter().take(count.max(0) as usize).copied() {
            let fd = fd as usize;
            if fd == listener.as_raw_fd() as usize {
                hub.accept(listener.as_raw_fd());
                continue;
            }
            if events & EPOLLOUT as u32 != 0 {
                hub.flush(fd);
            }
            if events & !(EPOLLOUT as u32) != 0 {
                hub.receive(fd, &mut batch);
            }
        }
        // Only now, or a descriptor that was closed and given out again would get its former holder's events.
        while let Some(fd) = hub.doomed.pop() {
            hub.close(fd);
        }
    }
}

impl Hub {
    fn watch(&self, operation: c_int, fd: usize, events: c_int) {
        let mut event = epoll_event { events: events as u32, u64: fd as u64 };
        // SAFETY: the kernel reads a live event.
        unsafe { libc::epoll_ctl(self.epoll, operation, fd as c_int, &mut event) };
    }

    fn accept(&mut self, listener: c_int) {
        loop {
            // SAFETY: asks for no address.
            let fd =
                unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) };
            let Ok(fd) = usize::try_from(fd) else { return };
            if self.clients.len() <= fd {
                self.clients.resize_with(fd + 1, || None);
            }
            self.clients[fd] = Some(Client { place: Place::Head, partial: Vec::new(), queue: Vec::new(), sent: 0 });
            self.watch(libc::EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP);
        }
    }

    fn receive(&mut self, fd: usize, batch: &mut Batch) {
        let Some(client) = &mut self.clients[fd] else { return };
        let held = client.partial.len();
        if self.read.len() < held + READ_BYTES {
            self.read.resize(held + READ_BYTES, 0);
        }
        self.read[..held].copy_from_slice(&client.partial);
        let room = &mut self.read[held..held + READ_BYTES];
        // SAFETY: the kernel writes into a live buffer of the size passed.
        let count = unsafe { libc::recv(fd as c_int, room.as_mut_ptr().cast(), room.len(), 0) };
        let Some(count) = usize::try_from(count).ok().filter(|count| *count > 0) else {
            if count == 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::WouldBlock {
                self.doomed.push(fd);
            }
            return;
        };
        batch.clear();
        let input = std::mem::take(&mut self.read);
        match self.take(fd, &input[..held + count], batch) {
            Ok(used) => {
                let client = self.clients[fd].as_mut().expect("looked up above");
                client.partial.clear();
                client.partial.extend_from_slice(&input[used..held + count]);
                if client.partial.is_empty() {
                    client.partial = Vec::new();
                }
            }
            Err(ws::Ended) => self.doomed.push(fd),
        }
        self.read = input;
    }

    /// Does what the bytes ask for; returns how many were used up.
    fn take(&mut self, fd: usize, input: &[u8], batch: &mut Batch) -> Result<usize, ws::Ended> {
        let client = self.clients[fd].as_mut().expect("looked up by the caller");
        let used = self.rooms.take(fd, &mut client.place, input, batch)?;
        let place = client.place;
        if !batch.answers.is_empty() {
            send(self.epoll, &mut self.clients, &mut self.doomed, fd, &batch.answers);
        }
        for write in batch.writes(self.merge) {
            let bytes = &batch.frames[write];
            match place {
                Place::Room(room, _) => {
                    for member in self.rooms.members(room) {
                        send(self.epoll, &mut self.clients, &mut self.doomed, *member, bytes);
                    }
                }
                _ => send(self.epoll, &mut self.clients, &mut self.doomed, fd, bytes),
            }
        }
        if batch.closed { Err(ws::Ended) } else { Ok(used) }
    }

    fn flush(&mut self, fd: usize) {
        let Some(client) = &mut self.clients[fd] else { return };
        client.sent += write(fd, &client.queue[client.sent..]);
        if client.sent == client.queue.len() {
            (client.queue, client.sent) = (Vec::new(), 0);
            self.watch(libc::EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLRDHUP);
        }
    }

    fn close(&mut self, fd: usize) {
        let Some(client) = self.clients[fd].take() else { return };
        if let Place::Room(room, at) = client.place
            && let Some(moved) = self.rooms.leave(room, at)
        {
            self.clients[moved].as_mut().expect("members are open").place = Place::Room(room, at);
        }
        // SAFETY: ours, and forgotten just now.
        unsafe { libc::close(fd as c_int) };
    }
}

/// Sends behind what already waits, at once if nothing does.
fn send(epoll: c_int, clients: &mut [Option<Client>], doomed: &mut Vec<usize>, fd: usize, bytes: &[u8]) {
    let client = clients[fd].as_mut().expect("members are open");
    let waited = !client.queue.is_empty();
    let sent = if waited { 0 } else { write(fd, bytes) };
    if sent == bytes.len() {
        return;
    }
    client.queue.extend_from_slice(&bytes[sent..]);
    if client.queue.len() - client.sent > QUEUE_BYTES_MAX {
        doomed.push(fd);
    }
    if !waited {
        let mut event = epoll_event { events: (EPOLLIN | EPOLLRDHUP | EPOLLOUT) as u32, u64: fd as u64 };
        // SAFETY: the kernel reads a live event.
        unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd as c_int, &mut event) };
    }
}

/// How many bytes the socket took. A broken one takes none; reading it tells.
fn write(fd: usize, bytes: &[u8]) -> usize {
    // SAFETY: the kernel reads a live buffer of the size passed.
    let count = unsafe { libc::send(fd as c_int, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    usize::try_from(count).unwrap_or(0)
}
