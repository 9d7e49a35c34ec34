//! What outlives a planned restart, as bytes: where the offsets of topics are, the messages kept of them, and idempotency keys.
//!
//! ```text
//!   file     = "SHARDCST", version u32, record…
//!   record   = kind u8, length u32, body, checksum u64 of kind, length and body
//!   records  = Life, then of each shard { Floor, Gone…, { Topic, Message… }…, Key…, Connection… }, then End
//! ```
//!
//! Connections are handed over from process to process only, and never in a file.
//!
//! All numbers are little-endian. Two writers of one version write the same bytes, and each value has one spelling: what is read prints as it was. The
//! checksum is SipHash-1-3 under a fixed key: it is there for disks that forget and files that were cut off, not for whoever can write the file. What
//! follows on what is the reader's affair (`server::state`); here each record stands for itself.

mod connection;

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

pub use connection::{Connection, Doing, Following};

use crate::proto::position::Epoch;
use crate::proto::publish::Key;
use crate::proto::sse::EventName;
use crate::proto::topic::TopicName;
use crate::proto::ws::MessageKind;

/// What the file begins with.
pub const MAGIC: &[u8; 8] = b"SHARDCST";
/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 3;
/// The bytes before the first record.
pub const HEADER_BYTES: usize = MAGIC.len() + 4;

/// The longest body of a record: the largest `limits.message_bytes_max`, and room for what goes with a message.
const BODY_BYTES_MAX: usize = (1 << 30) + 1024;
/// Offsets are below this: a topic with one above it was never.
const OFFSET_MAX: u64 = u64::MAX / 2;
/// Kind and length.
const PREFIX_BYTES: usize = 5;
const CHECKSUM_BYTES: usize = 8;

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// The first: whose offsets they are.
    Life {
        /// The life of the offsets.
        epoch: Epoch,
        /// The key by which names are hashed, for homes and for [`Record::Gone`].
        hash_key: (u64, u64),
    },
    /// No topic that is remembered no more has had an offset above this.
    Floor {
        /// The offset.
        offset: u64,
    },
    /// A topic of which no message is kept.
    Gone {
        /// The hash of its name.
        hash: u64,
        /// The offset of its newest message.
        offset: u64,
    },
    /// A topic; its messages follow.
    Topic {
        /// Its name.
        name: TopicName,
        /// The offset before the first message that follows.
        after: u64,
        /// How many follow.
        messages: u64,
    },
    /// A message of the topic before.
    Message {
        /// When it came: milliseconds since 1970.
        at_ms: u64,
        /// Text, which is UTF-8 then, or binary.
        kind: MessageKind,
        /// The name of its event, where it has one.
        event: Option<&'a str>,
        /// What it replaces older messages by, where it has that.
        key: Option<&'a str>,
        /// The payload.
        payload: &'a [u8],
    },
    /// An idempotency key.
    Key {
        /// When it was used: milliseconds since 1970.
        at_ms: u64,
        /// Of which topic.
        topic: TopicName,
        /// The key.
        id: &'a str,
        /// The offset of the message that was published with it.
        offset: u64,
    },
    /// The last: how many records come before it.
    End {
        /// So many.
        records: u64,
    },
    /// A connection.
    Connection(Box<Connection>),
}

/// Why bytes are no state that this program can go on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// They begin otherwise.
    #[error("it is no state file of shardcast: it begins with other bytes")]
    NotState,
    /// A newer program, or an older one, has written them.
    #[error("it has version {found}, and this program reads version {VERSION}: another release has written it")]
    Version {
        /// Its version.
        found: u32,
    },
    /// The bytes are not those that were written.
    #[error("a checksum does not match: it is damaged")]
    Checksum,
    /// A record is larger than any that is written.
    #[error("a record has {bytes} bytes, where {BODY_BYTES_MAX} are possible: it is damaged")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// What was written makes no sense.
    #[error("{0}: another program has written it, or a bug")]
    Senseless(&'static str),
    /// It ends before its end.
    #[error("it ends too early: it was cut off")]
    CutOff,
}

/// Appends the bytes before the first record.
pub fn encode_header(out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
}

/// Checks the bytes before the first record.
///
/// # Errors
/// What is no state, or of another version, and fewer bytes than [`HEADER_BYTES`].
pub fn decode_header(bytes: &[u8]) -> Result<(), StateError> {
    let header = bytes.first_chunk::<HEADER_BYTES>();
    if bytes.len() < MAGIC.len() && MAGIC.starts_with(bytes) {
        return Err(StateError::CutOff);
    }
    if !bytes.starts_with(MAGIC) {
        return Err(StateError::NotState);
    }
    let [.., a, b, c, d] = header.ok_or(StateError::CutOff)?;
    match u32::from_le_bytes([*a, *b, *c, *d]) {
        VERSION => Ok(()),
        found => Err(StateError::Version { found }),
    }
}

impl<'a> Record<'a> {
    /// Appends the record.
    ///
    /// # Panics
    /// If it is longer than any that is read, which takes a payload above the largest `limits.message_bytes_max`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&[self.kind(), 0, 0, 0, 0]);
        let body = out.len();
        match self {
            Self::Life { epoch, hash_key } => numbers(out, &[epoch.0, hash_key.0, hash_key.1]),
            Self::Floor { offset } => numbers(out, &[*offset]),
            Self::Gone { hash, offset } => numbers(out, &[*hash, *offset]),
            Self::Topic { name, after, messages } => {
                numbers(out, &[*after, *messages]);
                out.extend_from_slice(name.as_str().as_bytes());
            }
            Self::Message { at_ms, kind, event, key, payload } => {
                numbers(out, &[*at_ms]);
                out.push(u8::from(*kind == MessageKind::Binary) | (u8::from(key.is_some()) << 2));
                key.iter().for_each(|key| short(out, key));
                short(out, event.unwrap_or(""));
                out.extend_from_slice(payload);
            }
            Self::Key { at_ms, topic, id, offset } => {
                numbers(out, &[*at_ms, *offset]);
                short(out, topic.as_str());
                out.extend_from_slice(id.as_bytes());
            }
            Self::End { records } => numbers(out, &[*records]),
            Self::Connection(connection) => connection.encode(out),
        }
        let length = out.len() - body;
        assert!(length <= BODY_BYTES_MAX, "record of {length} bytes; {BODY_BYTES_MAX} are possible");
        out[begin + 1..body].copy_from_slice(&(length as u32).to_le_bytes());
        let checksum = checksum(&out[begin..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }

    /// Takes the record at the front of `bytes`: it, and how many bytes it has. None while it is not whole.
    ///
    /// # Errors
    /// What was not written by [`encode`](Self::encode).
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, StateError> {
        let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]);
        if length as usize > BODY_BYTES_MAX {
            return Err(StateError::TooLong { bytes: length.into() });
        }
        let end = PREFIX_BYTES + length as usize;
        let Some(written) = bytes.get(end..end + CHECKSUM_BYTES).and_then(|bytes| bytes.first_chunk()) else { return Ok(None) };
        if checksum(&bytes[..end]) != u64::from_le_bytes(*written) {
            return Err(StateError::Checksum);
        }
        let mut body = Body(&bytes[PREFIX_BYTES..end]);
        let record = match kind {
            0 => Self::Life { epoch: Epoch(body.number()?), hash_key: (body.number()?, body.number()?) },
            1 => Self::Floor { offset: body.offset()? },
            2 => Self::Gone { hash: body.number()?, offset: body.offset()? },
            3 => {
                let (after, messages) = (body.offset()?, body.offset()?);
                Self::Topic { after, messages, name: body.rest_name()? }
            }
            4 => {
                let at_ms = body.number()?;
                let (kind, has_key) = match body.byte()? {
                    byte @ (0 | 4) => (MessageKind::Text, byte > 1),
                    byte @ (1 | 5) => (MessageKind::Binary, byte > 1),
                    _ => return Err(StateError::Senseless("a message is neither text nor binary")),
                };
                let key = if has_key { Some(body.short()?) } else { None };
                if key.is_some_and(|key| Key::parse(key).is_err()) {
                    return Err(StateError::Senseless("there is a key that none can be"));
                }
                let event = Some(body.short()?).filter(|event| !event.is_empty());
                if event.is_some_and(|event| EventName::parse(event).is_err()) {
                    return Err(StateError::Senseless("an event has a name that none can have"));
                }
                let payload = std::mem::take(&mut body.0);
                if kind == MessageKind::Text && simdutf8::basic::from_utf8(payload).is_err() {
                    return Err(StateError::Senseless("a text is not UTF-8"));
                }
                Self::Message { at_ms, kind, event, key, payload }
            }
            5 => {
                let (at_ms, offset) = (body.number()?, body.offset()?);
                let topic = name(body.short()?)?;
                let id = text(std::mem::take(&mut body.0))?;
                if Key::parse(id).is_err() {
                    return Err(StateError::Senseless("there is an idempotency key that none can be"));
                }
                Self::Key { at_ms, topic, id, offset }
            }
            6 => Self::End { records: body.number()? },
            7 => Self::Connection(Box::new(Connection::decode(&mut body)?)),
            _ => return Err(StateError::Senseless("there is a record of no known kind")),
        };
        if !body.0.is_empty() {
            return Err(StateError::Senseless("a record goes on after its end"));
        }
        Ok(Some((record, end + CHECKSUM_BYTES)))
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Life { .. } => 0,
            Self::Floor { .. } => 1,
            Self::Gone { .. } => 2,
            Self::Topic { .. } => 3,
            Self::Message { .. } => 4,
            Self::Key { .. } => 5,
            Self::End { .. } => 6,
            Self::Connection(_) => 7,
        }
    }
}

fn numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// A text of at most 255 bytes, its length before it.
fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("names of topics and events are shorter"));
    out.extend_from_slice(text.as_bytes());
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(u64::from_le_bytes(*MAGIC), u64::from(VERSION));
    hasher.write(bytes);
    hasher.finish()
}

/// What is left of a record's body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(StateError::Senseless("a record ends before its end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        self.take(N).map(|bytes| bytes.try_into().expect("so many were taken"))
    }

    fn byte(&mut self) -> Result<u8, StateError> {
        self.take(1).map(|byte| byte[0])
    }

    /// A byte that is 0 or 1.
    fn flag(&mut self) -> Result<bool, StateError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Senseless("something is neither so nor otherwise")),
        }
    }

    fn number(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    fn offset(&mut self) -> Result<u64, StateError> {
        let offset = self.number()?;
        if offset < OFFSET_MAX { Ok(offset) } else { Err(StateError::Senseless("an offset is higher than any can be")) }
    }

    fn short(&mut self) -> Result<&'a str, StateError> {
        let length = self.byte()?;
        self.take(length.into()).and_then(text)
    }

    fn rest_name(&mut self) -> Result<TopicName, StateError> {
        name(text(std::mem::take(&mut self.0))?)
    }
}

fn text(bytes: &[u8]) -> Result<&str, StateError> {
    str::from_utf8(bytes).map_err(|_| StateError::Senseless("a name is not UTF-8"))
}

fn name(text: &str) -> Result<TopicName, StateError> {
    TopicName::parse(text).map_err(|_| StateError::Senseless("a topic has a name that none can have"))
}

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["life", "floor", "gone", "topic", "message", "key", "end", "connection"][usize::from(self.kind())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("a name")
    }

    fn examples() -> Vec<Record<'static>> {
        vec![
            Record::Life { epoch: Epoch(7), hash_key: (1, u64::MAX) },
            Record::Floor { offset: 9 },
            Record::Gone { hash: u64::MAX, offset: 3 },
            Record::Topic { name: topic("lobby"), after: 17, messages: 2 },
            Record::Message {
                at_ms: 1_700_000_000_000, kind: MessageKind::Text, event: None, key: None, payload: "grüß dich".as_bytes()
            },
            Record::Message { at_ms: 1, kind: MessageKind::Text, event: None, key: Some("gold"), payload: b"17" },
            Record::Message { at_ms: 0, kind: MessageKind::Binary, event: Some("price"), key: Some("ß"), payload: &[0, 255] },
            Record::Key { at_ms: 5, topic: topic("lobby"), id: "once", offset: 18 },
            Record::End { records: 7 },
        ]
        .into_iter()
        .chain(connection::tests::examples().map(|connection| Record::Connection(Box::new(connection))))
        .collect()
    }

    fn bytes(record: &Record<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        record.encode(&mut out);
        out
    }

    /// A record with these bytes for a body, and the checksum that goes with them.
    fn forged(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    #[test]
    fn what_is_written_is_read_one_record_after_the_other() {
        let mut all = Vec::new();
        examples().iter().for_each(|record| record.encode(&mut all));
        let mut rest = &all[..];
        for expected in examples() {
            let (record, length) = Record::decode(rest).expect("our own").expect("whole");
            assert_eq!(record, expected);
            rest = &rest[length..];
        }
        assert_eq!(Record::decode(rest), Ok(None));
    }

    #[test]
    fn random_records_read_as_they_were_written() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2000 {
            let payload: Vec<u8> = (0..random.usize(0..300)).map(|_| random.u8(..)).collect();
            let letters: String = (0..random.usize(1..60)).map(|_| random.alphanumeric()).collect();
            let number = random.u64(..) >> random.u32(2..64);
            let record = match random.u8(0..5) {
                0 => Record::Message { at_ms: number, kind: MessageKind::Binary, event: None, key: None, payload: &payload },
                1 => Record::Message {
                    at_ms: number,
                    kind: MessageKind::Text,
                    event: Some(&letters),
                    key: Some(&letters),
                    payload: letters.as_bytes(),
                },
                2 => Record::Key { at_ms: number, topic: topic(&letters), id: &letters, offset: number },
                3 => Record::Topic { name: topic(&letters), after: number, messages: number / 3 },
                _ => Record::Gone { hash: !number, offset: number },
            };
            let bytes = bytes(&record);
            assert_eq!(Record::decode(&bytes), Ok(Some((record, bytes.len()))), "seed {seed}");
        }
    }

    #[test]
    fn a_record_that_is_cut_off_is_awaited_and_one_with_any_bit_turned_is_refused() {
        for record in examples() {
            let whole = bytes(&record);
            for length in 0..whole.len() {
                assert_eq!(Record::decode(&whole[..length]), Ok(None), "{record} of {length} bytes");
            }
            for bit in 0..whole.len() * 8 {
                let mut damaged = whole.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                // A longer one is awaited, and does not come.
                assert!(!matches!(Record::decode(&damaged), Ok(Some(_))), "{record} with bit {bit} turned");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_though_its_checksum_matches() {
        let check = |kind, body: &[u8], why| match Record::decode(&forged(kind, body)) {
            Err(error @ StateError::Senseless(_)) => assert!(error.to_string().contains(why), "{error}, expected {why}"),
            other => panic!("{other:?}, expected {why}"),
        };
        check(8, &[], "no known kind");
        check(1, &[0; 7], "ends before its end");
        check(1, &[0; 9], "goes on after its end");
        check(3, &[&[255; 16], &b"a"[..]].concat(), "an offset is higher");
        check(3, &[0; 16], "topic has a name");
        check(3, &[&[0; 16], &[255][..]].concat(), "not UTF-8");
        check(4, &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0], "neither text nor binary");
        check(4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255], "a text is not UTF-8");
        check(4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'\n'], "an event has a name");
        check(4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 9], "ends before its end");
        check(5, &[&[0; 16], &b"\x01a"[..], &[b'x'; 256]].concat(), "an idempotency key");
    }

    #[test]
    fn a_length_that_no_record_has_is_not_awaited() {
        let bytes = [4, 255, 255, 255, 255];
        assert_eq!(Record::decode(&bytes), Err(StateError::TooLong { bytes: u64::from(u32::MAX) }));
    }

    #[test]
    fn a_header_names_the_program_and_the_version() {
        let mut header = Vec::new();
        encode_header(&mut header);
        assert_eq!((header.len(), decode_header(&header)), (HEADER_BYTES, Ok(())));
        for length in 0..HEADER_BYTES {
            assert_eq!(decode_header(&header[..length]), Err(StateError::CutOff), "{length} bytes");
        }
        header[8] = 9;
        let newer = decode_header(&header).expect_err("of another version");
        assert!(newer.to_string().contains("version 9"), "{newer}");
        assert_eq!(decode_header(b"PK\x03\x04"), Err(StateError::NotState));
    }
}
