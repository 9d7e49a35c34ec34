//! One client's connection on its thread's runtime: it connects, opens the WebSocket or the event stream, writes what is queued, and reads.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;

use super::plan::Plan;
use super::target::Target;
use super::wire::{self, Awaits, Input, Refusal, Request};
use crate::proto::ws::OpCode;
use crate::proto::ws::frame::encode_masked_into;

/// How long connecting and the handshake may take together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The buffer that a handshake's answer is read into; most have some 150 bytes.
const HEAD_BYTES: usize = 512;
/// A queue's buffer is kept when it is no larger than this.
const KEPT_BYTES: usize = 64 << 10;

/// Why a WebSocket or an event stream could not be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    Connect(io::Error),
    Timeout,
    /// The server ended the connection instead of answering.
    Ended,
    Io(io::Error),
    Refused(Refusal),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "no connection: {}", plain(error)),
            Self::Timeout => write!(f, "no answer within {} s", OPEN_TIMEOUT.as_secs()),
            Self::Ended => f.write_str("ended before it answered the handshake"),
            Self::Io(error) => write!(f, "failed during the handshake: {}", plain(error)),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl OpenError {
    /// When the server said to come back.
    pub(super) fn retry(&self) -> Option<Duration> {
        match self {
            Self::Refused(Refusal::Later { retry_ms, .. }) => Some(Duration::from_millis(*retry_ms)),
            _ => None,
        }
    }
}

/// How an open connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The server's close frame, with its code.
    Closed(Option<u16>),
    /// The stream ended without one.
    Eof,
    Failed(String),
    /// The server broke the protocol.
    Protocol(String),
    /// It left, as it was told to, to come back.
    Left,
    /// It could not come back.
    NotBack(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(Some(code)) => write!(f, "closed {code}"),
            Self::Closed(None) => f.write_str("closed without a code"),
            Self::Eof => f.write_str("ended without a close frame"),
            Self::Failed(error) => f.write_str(error),
            Self::Protocol(error) => write!(f, "broke the protocol: {error}"),
            Self::Left => f.write_str("left, and was not back at the end"),
            Self::NotBack(error) => write!(f, "left, and could not come back: {error}"),
        }
    }
}

/// An error without the number that std puts behind it.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// The writing side of an open WebSocket, and what waits to be written.
pub(super) struct Link {
    half: RefCell<Option<OwnedWriteHalf<TcpStream>>>,
    queue: RefCell<Vec<u8>>,
    flushing: Cell<bool>,
    broken: Cell<bool>,
    pub(super) fd: RawFd,
}

/// The reading side.
pub(super) struct Reader {
    half: OwnedReadHalf<TcpStream>,
    pub(super) input: Input,
}

/// Opens a client's connection, what the plan has it be: TCP, request, answer.
pub(super) async fn open(plan: &Plan, client: u32) -> Result<(Link, Reader), OpenError> {
    open_after(plan, client, None).await
}

/// The same for an event stream that goes on after this position.
pub(super) async fn open_after(plan: &Plan, client: u32, position: Option<&str>) -> Result<(Link, Reader), OpenError> {
    match monoio::time::timeout(OPEN_TIMEOUT, open_slowly(plan.target_of(client), Request::of(plan, client, position))).await {
        Ok(outcome) => outcome,
        Err(_) => Err(OpenError::Timeout),
    }
}

async fn open_slowly(target: &Target, request: Request) -> Result<(Link, Reader), OpenError> {
    let mut stream = TcpStream::connect_addr(target.address).await.map_err(OpenError::Connect)?;
    // Messages go out when they are due, not when the last one was acknowledged.
    stream.set_nodelay(true).map_err(OpenError::Io)?;
    stream.write_all(request.bytes).await.0.map_err(OpenError::Io)?;
    let mut input = Input::new(HEAD_BYTES);
    input.events = request.awaits == Awaits::Stream;
    loop {
        if read(&mut stream, &mut input).await.map_err(OpenError::Io)? == 0 {
            return Err(OpenError::Ended);
        }
        if let Some(length) = wire::answer(input.unused(), &request.awaits).map_err(OpenError::Refused)? {
            input.advance(length);
            break;
        }
    }
    let fd = stream.as_raw_fd();
    let (read, write) = stream.into_split();
    let link =
        Link { half: RefCell::new(Some(write)), queue: RefCell::default(), flushing: Cell::new(false), broken: Cell::new(false), fd };
    Ok((link, Reader { half: read, input }))
}

/// Reads behind what the input holds.
async fn read(stream: &mut impl AsyncReadRent, input: &mut Input) -> io::Result<usize> {
    let bytes = input.lend();
    let (held, capacity) = (bytes.len(), bytes.capacity());
    let (result, slice) = stream.read(bytes.slice_mut(held..capacity)).await;
    input.put_back(slice.into_inner());
    result
}

impl Reader {
    /// Waits for bytes. `Err` is the end.
    pub(super) async fn fill(&mut self) -> Result<(), End> {
        match read(&mut self.half, &mut self.input).await {
            Ok(0) => Err(End::Eof),
            Ok(_) => Ok(()),
            Err(error) => Err(End::Failed(plain(&error))),
        }
    }
}

impl Link {
    /// Puts a message behind what is queued; it goes out when this thread's turn of tasks comes round.
    pub(super) fn send(self: &Rc<Self>, opcode: OpCode, payload: &[u8]) {
        if self.broken.get() {
            return;
        }
        encode_masked_into(&mut self.queue.borrow_mut(), true, opcode, fastrand::u32(..).to_ne_bytes(), payload);
        if !self.flushing.replace(true) {
            // One task per burst, not one per connection: most connections of a fan-out never write.
            drop(monoio::spawn(Self::flush(self.clone())));
        }
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn queued(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Whether writing has failed; reading tells how it ended.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    async fn flush(self: Rc<Self>) {
        let Some(mut half) = self.half.borrow_mut().take() else { return };
        loop {
            let bytes = std::mem::take(&mut *self.queue.borrow_mut());
            if bytes.is_empty() {
                break;
            }
            let (result, mut bytes) = half.write_all(bytes).await;
            if result.is_err() {
                self.broken.set(true);
                break;
            }
            let mut queue = self.queue.borrow_mut();
            if queue.is_empty() && bytes.capacity() <= KEPT_BYTES {
                bytes.clear();
                *queue = bytes;
                break;
            }
        }
        if !self.broken.get() {
            *self.half.borrow_mut() = Some(half);
        }
        self.flushing.set(false);
    }

    /// Lets go of the socket: it closes when the reader does the same.
    pub(super) fn let_go(&self) {
        self.broken.set(true);
        self.half.borrow_mut().take();
    }

    /// Says that nothing more will be sent.
    pub(super) async fn shut_write(&self) {
        let half = self.half.borrow_mut().take();
        if let Some(mut half) = half {
            let _ = half.shutdown().await;
        }
    }
}
