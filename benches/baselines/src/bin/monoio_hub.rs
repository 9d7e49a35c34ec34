//! Baseline: a hub of monoio tasks on one io_uring. Two tasks per client: one reads and puts a handle of each message into the members' queues, the
//! other takes all that is queued and writes it at once; long frames go alone, uncopied.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use baselines::process;
use baselines::ws::{self, Batch, Wish};
use bytes::Bytes;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use slab::Slab;

/// A client reads into a buffer of its own while it waits, so it is small; one that is full grows up to the second.
const READ_BYTES: usize = 1024;
const READ_BYTES_MAX: usize = 64 * 1024;
/// Longer frames are written by themselves.
const COPIED_BELOW: usize = 4096;

/// What is to be written to a client.
#[derive(Default)]
struct Queue {
    pieces: RefCell<VecDeque<Bytes>>,
    waker: Cell<Option<Waker>>,
    closed: Cell<bool>,
}

impl Queue {
    fn push(&self, piece: Bytes) {
        self.pieces.borrow_mut().push_back(piece);
        self.wake();
    }

    fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What is queued, as one buffer. `None` when nothing is, and nothing will be.
    async fn next(&self) -> Option<Bytes> {
        poll_fn(|context| {
            let mut pieces = self.pieces.borrow_mut();
            if pieces.is_empty() && !self.closed.get() {
                self.waker.set(Some(context.waker().clone()));
                return Poll::Pending;
            }
            // To copy short frames costs less than a vector of them costs the kernel.
            let short = pieces.iter().take_while(|piece| piece.len() < COPIED_BELOW).count();
            if short < 2 {
                return Poll::Ready(pieces.pop_front());
            }
            let mut all = Vec::with_capacity(pieces.range(..short).map(Bytes::len).sum());
            pieces.drain(..short).for_each(|piece| all.extend_from_slice(&piece));
            Poll::Ready(Some(all.into()))
        })
        .await
    }
}

/// The members' queues.
type Room = Rc<RefCell<Slab<Rc<Queue>>>>;
type Rooms = Rc<RefCell<HashMap<String, Room>>>;

/// Where what a client says goes.
enum Audience {
    Nobody,
    Itself,
    Room(Room, usize),
}

fn main() {
    let args = process::start();
    let mut ring = monoio_io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun().setup_cqsize(32 * 1024);
    let runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(4096).uring_builder(ring).build();
    runtime.expect("Linux 6.1 or newer, and io_uring is allowed").block_on(async move {
        let listener = process::listen(args.listen);
        // The ring waits for blocking sockets by itself, and reports others as they are.
        listener.set_nonblocking(false).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let rooms = Rooms::default();
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                monoio::spawn(serve(stream, rooms.clone()));
            }
        }
    });
}

/// Serves a client to its end.
async fn serve(stream: TcpStream, rooms: Rooms) {
    let (mut reader, mut writer) = stream.into_split();
    let queue = Rc::new(Queue::default());
    let queued = queue.clone();
    monoio::spawn(async move {
        while let Some(bytes) = queued.next().await {
            if writer.write_all(bytes).await.0.is_err() {
                break;
            }
        }
        // The reader then sees the end, too.
        let _ = writer.shutdown().await;
    });
    let mut audience = Audience::Nobody;
    // A client's errors are its own.
    let _ = read(&mut reader, &queue, &rooms, &mut audience).await;
    if let Audience::Room(room, place) = audience {
        room.borrow_mut().remove(place);
    }
    queue.close();
}

async fn read(reader: &mut impl AsyncReadRent, queue: &Rc<Queue>, rooms: &Rooms, audience: &mut Audience) -> io::Result<()> {
    let mut input = Vec::with_capacity(READ_BYTES);
    let mut batch = Batch::default();
    while !batch.closed {
        if input.len() == input.capacity() {
            input.reserve(input.len());
        }
        let held = input.len();
        let room = monoio::buf::IoBufMut::slice_mut(input, held..);
        let (result, room) = reader.read(room).await;
        input = room.into_inner();
        if result? == 0 {
            break;
        }
        batch.clear();
        let full = input.len() == input.capacity();
        let used = take(&input, queue, rooms, audience, &mut batch).map_err(|ws::Ended| io::ErrorKind::InvalidData)?;
        input.drain(..used);
        if full && input.capacity() < READ_BYTES_MAX {
            input.reserve_exact(2 * input.capacity() - input.len());
        }
        if !batch.answers.is_empty() {
            queue.push(Bytes::copy_from_slice(&batch.answers));
        }
        // Cut out of one allocation, and handed on without a copy.
        let frames = Bytes::from(std::mem::take(&mut batch.frames));
        for frame in batch.writes(false).map(|range| frames.slice(range)) {
            match audience {
                Audience::Nobody => {}
                Audience::Itself => queue.push(frame),
                Audience::Room(room, _) => room.borrow().iter().for_each(|(_, member)| member.push(frame.clone())),
            }
        }
    }
    Ok(())
}

/// Does what the bytes ask for, up to what is to be sent; returns how many were used up.
fn take(input: &[u8], queue: &Rc<Queue>, rooms: &Rooms, audience: &mut Audience, batch: &mut Batch) -> Result<usize, ws::Ended> {
    let mut used = 0;
    if matches!(audience, Audience::Nobody) {
        let Some((wish, length)) = ws::upgrade(input, &mut batch.answers)? else { return Ok(0) };
        used = length;
        *audience = match wish {
            Wish::Echo => Audience::Itself,
            Wish::Room(name) => {
                let room = rooms.borrow_mut().entry(name).or_default().clone();
                let place = room.borrow_mut().insert(queue.clone());
                Audience::Room(room, place)
            }
        };
    }
    Ok(used + ws::take(&input[used..], batch)?)
}
