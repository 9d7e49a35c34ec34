//! permessage-deflate under a codec that does not know it: the frames that a simulated client sends are compressed, and those that come are inflated, between its
//! codec and its byte stream. What comes compressed is checked by another reading of RFC 7692 than the gateway's.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::stream::SimStream;
use crate::engine::sim::World;

/// The offers that clients make; and of how many bits the smallest window is that they inflate with, where they say so.
pub(super) const OFFERS: [(&str, Option<u8>); 5] = [
    ("permessage-deflate", None),
    ("permessage-deflate; client_max_window_bits", None),
    ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", None),
    ("permessage-deflate; server_max_window_bits=12", Some(12)),
    ("x-unknown, permessage-deflate; server_max_window_bits=10", Some(10)),
];
const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
/// Who offers a smaller window is sent nothing compressed.
const WINDOW_BITS: u8 = 12;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const MASKED: u8 = 0x80;
/// RFC 7692 section 7.2.1: what is left out at the end of a message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// More than any message.
const INFLATED_MAX: usize = 1 << 20;

/// What was offered, and what came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Terms {
    /// Nothing was, or not agreed to.
    Plain,
    /// The answer is not here; which of the offers it was.
    Offered(usize),
    Agreed(usize),
}

/// A byte stream whose frames are as if nothing were compressed.
pub(super) struct Squeezed {
    stream: SimStream,
    world: Rc<RefCell<World>>,
    terms: Terms,
    /// Its frames are of `shardcast.v1.json`.
    json: bool,
    // What comes: as it does, and as the codec gets it.
    input: Vec<u8>,
    inflated: Vec<u8>,
    // What goes: frames that are not whole, fragments of a message, and what the stream has not taken.
    frames: Vec<u8>,
    message: Vec<(u8, Vec<u8>)>,
    output: Vec<u8>,
}

impl Squeezed {
    pub(super) fn new(stream: SimStream, world: &Rc<RefCell<World>>, offer: Option<usize>, json: bool) -> Self {
        let terms = offer.map_or(Terms::Plain, Terms::Offered);
        let (input, inflated, frames, message, output) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { stream, world: Rc::clone(world), terms, json, input, inflated, frames, message, output }
    }

    /// Looks through the answer to the request, and passes it on without what the codec does not know.
    fn take_head(&mut self, offer: usize) {
        let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n").map(|at| at + 4) else { return };
        let head: Vec<u8> = self.input.drain(..end).collect();
        let head = String::from_utf8(head).expect("the head of an answer is text");
        let name = "Sec-WebSocket-Extensions: ";
        let extensions = head.lines().find_map(|line| line.strip_prefix(name));
        let bits = OFFERS[offer].1.map_or(String::new(), |bits| format!("; server_max_window_bits={bits}"));
        self.terms = match extensions {
            Some(agreed) => {
                assert!(agreed == format!("{AGREED}{bits}"), "{agreed} is agreed to where {} was offered", OFFERS[offer].0);
                Terms::Agreed(offer)
            }
            None => Terms::Plain,
        };
        head.split_inclusive("\r\n").filter(|line| !line.starts_with(name)).for_each(|line| self.inflated.extend(line.as_bytes()));
    }

    /// Passes on what is whole of what has come.
    fn take_frames(&mut self, offer: usize) {
        while let Some((first, _, payload, behind)) = frame(&self.input) {
            let payload = self.input[payload].to_vec();
            self.input.drain(..behind);
            if first & RSV1 == 0 {
                put(&mut self.inflated, first, 0, &payload);
                continue;
            }
            let takes = OFFERS[offer].1.is_none_or(|bits| bits >= WINDOW_BITS);
            assert!(takes, "a message comes compressed to one who cannot inflate it");
            assert!(first & FIN != 0 && matches!(first & 0x0f, 1 | 2), "a compressed frame begins with {first:#x}");
            let message = inflate(&payload);
            // In a frame of many short ones are stored as they are.
            let is_shorter = payload.len() < message.len() || (self.json && message.ends_with(b"\n"));
            assert!(is_shorter, "{} bytes were compressed to {}", message.len(), payload.len());
            let is_message = !self.json || message.starts_with(b"{\"type\":\"message\"");
            assert!(is_message, "compressed, and no message: {}", String::from_utf8_lossy(&message));
            put(&mut self.inflated, first & !RSV1, 0, &message);
        }
    }

    /// Takes a frame of the codec's: a message goes when it is whole, compressed or not.
    fn squeeze(&mut self, first: u8, payload: Vec<u8>) {
        if first & 0x08 != 0 {
            return put(&mut self.output, first, MASKED, &payload);
        }
        self.message.push((first, payload));
        if first & FIN == 0 {
            return;
        }
        let fragments = std::mem::take(&mut self.message);
        let message: Vec<u8> = fragments.iter().flat_map(|(_, payload)| payload).copied().collect();
        let squeezed = deflate(&message, &mut self.world.borrow_mut());
        let pieces = self.world.borrow_mut().choices.of(&[1, 1, 2, 5]);
        // What is longer by more than an eighth may be too long.
        let most = (message.len() + message.len() / 8).max(1);
        let Some(squeezed) = squeezed.filter(|squeezed| squeezed.len() <= most) else {
            return fragments.iter().for_each(|(first, payload)| put(&mut self.output, *first, MASKED, payload));
        };
        let opcode = fragments[0].0 & 0x0f;
        let piece = squeezed.len().div_ceil(pieces).max(1);
        let last = squeezed.chunks(piece).count() - 1;
        for (at, bytes) in squeezed.chunks(piece).enumerate() {
            let begins = if at == 0 { RSV1 | opcode } else { 0 };
            put(&mut self.output, begins | if at == last { FIN } else { 0 }, MASKED, bytes);
        }
    }

    /// Hands over what waits. Whether all of it went.
    fn drain(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl Read for Squeezed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.inflated.is_empty() {
            if self.terms == Terms::Plain && self.input.is_empty() {
                return self.stream.read(buffer);
            }
            let count = self.stream.read(buffer)?;
            if count == 0 {
                return Ok(0);
            }
            self.input.extend(&buffer[..count]);
            if let Terms::Offered(offer) = self.terms {
                self.take_head(offer);
            }
            match self.terms {
                Terms::Agreed(offer) => self.take_frames(offer),
                Terms::Plain => self.inflated.append(&mut self.input),
                Terms::Offered(_) => {}
            }
        }
        let count = buffer.len().min(self.inflated.len());
        buffer[..count].copy_from_slice(&self.inflated[..count]);
        self.inflated.drain(..count);
        Ok(count)
    }
}

impl Write for Squeezed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !matches!(self.terms, Terms::Agreed(_)) {
            return self.stream.write(bytes);
        }
        if !self.drain()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.frames.extend(bytes);
        while let Some((first, mask, payload, behind)) = frame(&self.frames) {
            let payload = self.frames[payload].iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
            self.frames.drain(..behind);
            self.squeeze(first, payload);
        }
        self.drain()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.drain()? { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
    }
}

/// The first frame, if it is whole: its first byte, its mask, where its payload is, and where it ends.
fn frame(bytes: &[u8]) -> Option<(u8, [u8; 4], std::ops::Range<usize>, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let mut mask = [0; 4];
    if second & MASKED != 0 {
        mask = bytes.get(at..at + 4)?.try_into().ok()?;
        at += 4;
    }
    let end = at + length as usize;
    (bytes.len() >= end).then_some((first, mask, at..end, end))
}

/// Appends a frame; one that is masked with a mask of zeros.
fn put(out: &mut Vec<u8>, first: u8, masked: u8, payload: &[u8]) {
    out.push(first);
    match payload.len() {
        short @ 0..=125 => out.push(masked | short as u8),
        middle @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend((middle as u16).to_be_bytes());
        }
        long => {
            out.push(masked | 127);
            out.extend((long as u64).to_be_bytes());
        }
    }
    if masked != 0 {
        out.extend([0; 4]);
    }
    out.extend(payload);
}

/// RFC 7692 section 7.2.2, with nothing taken over.
fn inflate(payload: &[u8]) -> Vec<u8> {
    let mut state = Decompress::new(false);
    let mut out = Vec::with_capacity(4096);
    let input = [payload, &TAIL].concat();
    while state.total_in() < input.len() as u64 {
        assert!(out.len() < INFLATED_MAX, "{} bytes inflate to more than any message has", payload.len());
        out.reserve(4096);
        let rest = &input[state.total_in() as usize..];
        let before = (state.total_in(), state.total_out());
        state
            .decompress_vec(rest, &mut out, FlushDecompress::Sync)
            .unwrap_or_else(|error| panic!("what is compressed is not DEFLATE: {error}"));
        assert!(before != (state.total_in(), state.total_out()), "a compressed message ends before its last bytes");
    }
    while out.len() == out.capacity() {
        out.reserve(4096);
        state
            .decompress_vec(&[], &mut out, FlushDecompress::Sync)
            .unwrap_or_else(|error| panic!("what is compressed is not DEFLATE: {error}"));
    }
    out
}

/// A message as senders of different habits compress it, or not: in one block or several, stored, or with a last one (RFC 7692 section 7.2.3).
fn deflate(message: &[u8], world: &mut World) -> Option<Vec<u8>> {
    if !world.choices.chance(700) {
        return None;
    }
    // Level 1 panics on random bytes in zlib-rs 0.6.8.
    let level = world.choices.of(&[0, 6, 6, 9]);
    let mut state = Compress::new(Compression::new(level), false);
    let mut out = Vec::with_capacity(message.len() * 2 + 256);
    let (one, other) = message.split_at(if world.choices.chance(200) { message.len() / 2 } else { 0 });
    let ends = world.choices.chance(200);
    let mut compress = |bytes: &[u8], flush| state.compress_vec(bytes, &mut out, flush).expect("there is room");
    if !one.is_empty() {
        compress(one, FlushCompress::Sync);
    }
    compress(other, if ends { FlushCompress::Finish } else { FlushCompress::Sync });
    if ends {
        // A last block, and an empty one behind it without the tail.
        out.push(0);
    } else {
        let left = out.strip_suffix(&TAIL).map(<[u8]>::len).expect("a flush ends so");
        out.truncate(left);
    }
    Some(out)
}
