//! Just enough WebSocket: the upgrade, and the clients' frames turned into a server's.

use base64::Engine;
use sha1::{Digest, Sha1};

const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// What a client asked for.
#[derive(Debug)]
pub enum Wish {
    /// To be in this room.
    Room(String),
    /// To hear itself.
    Echo,
}

/// The client cannot be served on.
#[derive(Debug)]
pub struct Ended;

/// What `target` names, `/ws?room=NAME` or `/echo`.
pub fn wish(target: &str) -> Option<Wish> {
    match target.strip_prefix("/ws?room=") {
        Some(room) => Some(Wish::Room(room.to_owned())),
        None => (target == "/echo").then_some(Wish::Echo),
    }
}

/// Answers a request head, once it is whole: appends the answer to `out`, and returns the wish and the length of the head.
///
/// # Errors
/// It is no request for a WebSocket.
pub fn upgrade(head: &[u8], out: &mut Vec<u8>) -> Result<Option<(Wish, usize)>, Ended> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(head).map_err(|_| Ended)? else { return Ok(None) };
    let wish = request.path.and_then(wish).ok_or(Ended)?;
    let key = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key")).ok_or(Ended)?;
    let mut hash = Sha1::new();
    hash.update(key.value);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ");
    out.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(hash.finalize()).as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    Ok(Some((wish, length)))
}

/// What came out of one read.
#[derive(Default, Debug)]
pub struct Batch {
    /// The messages as a server's frames, one behind the other: encoded once, whoever gets them.
    pub frames: Vec<u8>,
    /// Where each of them ends.
    pub ends: Vec<usize>,
    /// Pongs and the answer to a close, for the sender alone.
    pub answers: Vec<u8>,
    /// The client closes.
    pub closed: bool,
}

impl Batch {
    /// Forgets what it holds, and keeps its memory.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.ends.clear();
        self.answers.clear();
        self.closed = false;
    }

    /// The ranges of `frames` that leave each in one write: all of it when merged, else each message.
    pub fn writes(&self, merge: bool) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let ends = if merge && !self.ends.is_empty() { &self.ends[self.ends.len() - 1..] } else { &self.ends };
        let mut start = 0;
        ends.iter().map(move |end| std::mem::replace(&mut start, *end)..*end)
    }
}

/// Takes all whole frames out of `input`; returns how many bytes that were.
///
/// # Errors
/// The client breaks the protocol, or sends what a baseline does not take: fragments, or more than 1 MiB at once.
pub fn take(input: &[u8], batch: &mut Batch) -> Result<usize, Ended> {
    let mut at = 0;
    while let Some(&[first, second]) = input[at..].first_chunk() {
        let rest = &input[at + 2..];
        let (length, extra) = match second & 0x7f {
            126 => match rest.first_chunk() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
                None => break,
            },
            127 => match rest.first_chunk() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => break,
            },
            short => (u64::from(short), 0),
        };
        if second & 0x80 == 0 || first & 0x80 == 0 || length > MESSAGE_BYTES_MAX {
            return Err(Ended);
        }
        let Some(&mask) = rest.get(extra..).and_then(|rest| rest.first_chunk::<4>()) else { break };
        let Some(payload) = rest.get(extra + 4..extra + 4 + length as usize) else { break };
        match first & 0x0f {
            1 | 2 => {
                push(&mut batch.frames, first, payload, mask);
                batch.ends.push(batch.frames.len());
            }
            8 => {
                push(&mut batch.answers, first, payload, mask);
                batch.closed = true;
            }
            9 => push(&mut batch.answers, 0x8a, payload, mask),
            10 => {}
            _ => return Err(Ended),
        }
        at += 2 + extra + 4 + payload.len();
    }
    Ok(at)
}

fn push(out: &mut Vec<u8>, first: u8, payload: &[u8], mask: [u8; 4]) {
    out.reserve(10 + payload.len());
    out.push(first);
    match payload.len() {
        short @ ..126 => out.push(short as u8),
        middle @ ..0x1_0000 => {
            out.push(126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    let start = out.len();
    out.extend_from_slice(payload);
    // Word by word; the compiler makes vectors of it.
    let (words, tail) = out[start..].as_chunks_mut::<4>();
    words.iter_mut().for_each(|word| *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes());
    tail.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ ..126 => frame.push(0x80 | short as u8),
            middle => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(middle as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[1, 2, 3, 4]);
        frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    #[test]
    fn frames_come_out_unmasked_wherever_the_read_ended() {
        let input = [masked(0x82, b"hello"), masked(0x89, b"p"), masked(0x81, &[b'x'; 300])].concat();
        for cut in 0..=input.len() {
            let mut batch = Batch::default();
            let used = take(&input[..cut], &mut batch).expect("valid");
            take(&input[used..], &mut batch).expect("valid");
            let frames = [&b"\x82\x05hello\x81\x7e\x01\x2c"[..], &[b'x'; 300]].concat();
            assert_eq!((&batch.frames, batch.answers.as_slice()), (&frames, &b"\x8a\x01p"[..]));
            assert_eq!(batch.writes(false).collect::<Vec<_>>(), [0..7, 7..frames.len()]);
            assert!(batch.writes(true).eq(std::iter::once(0..frames.len())));
        }
    }

    #[test]
    fn an_upgrade_is_answered_once_whole() {
        let head = b"GET /ws?room=a HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let mut out = Vec::new();
        assert!(matches!(upgrade(&head[..40], &mut out), Ok(None)) && out.is_empty());
        assert!(matches!(upgrade(head, &mut out), Ok(Some((Wish::Room(room), length))) if room == "a" && length == head.len()));
        assert!(out.ends_with(b": s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"));
    }
}
