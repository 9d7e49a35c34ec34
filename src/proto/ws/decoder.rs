//! Messages out of bytes as they come, for one connection (RFC 6455 sections 5.4 to 5.6).
//!
//! The rule is that an idle connection holds nothing. A frame that is complete in the receive buffer is unmasked where it lies and lent from there:
//! no copy, no allocation. Only what is half-received (a header, a frame, a fragmented message) is kept, in one box that exists no longer
//! than it is needed.
//!
//! ```text
//!          ┌────────────── step ───────────────┐
//! input ─► │ header ─► begin_frame ─► payload  │ ─► Incoming, lent from the input          (a whole frame)
//!          │   │           checks        │     │                or from Partial's buffers  (put together from pieces)
//!          └───┼─────────────────────────┼─────┘
//!              └──── half? Partial ◄─────┘
//! ```

use std::mem;
use std::ops::Range;

use super::close::{CloseCode, parse_close_payload};
use super::error::WsError;
use super::frame::{FrameHeader, HEADER_MAX, OpCode, RSV1, encode_masked_begin, encode_masked_into};
use super::mask::unmask;
use super::utf8::{self, InvalidUtf8, Utf8Stream};

/// The bounds of a [`Decoder`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecoderLimits {
    /// Payload of one message, all fragments together: `limits.message_bytes_max`.
    pub message_bytes_max: u64,
    /// permessage-deflate was agreed to: messages may be compressed.
    pub deflate: bool,
}

impl DecoderLimits {
    /// The bound of a compressed message as it comes: what cannot be made smaller is made a little larger, by an eighth at most.
    const fn compressed_bytes_max(&self) -> u64 {
        self.message_bytes_max + self.message_bytes_max / 8 + 64
    }
}

/// One connection's decoder: one pointer, null while no frame or message is half-received.
///
/// ```
/// use shardcast::proto::ws::{Decoder, DecoderLimits, Incoming, MessageKind};
///
/// let mut decoder = Decoder::new();
/// let mut input = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
/// let decoded = decoder.decode(&mut input, &DecoderLimits { message_bytes_max: 65_536, deflate: false })?;
/// assert_eq!(decoded.consumed, 11);
/// assert_eq!(decoded.incoming, Some(Incoming::Message { kind: MessageKind::Text, payload: b"Hello" }));
/// # Ok::<(), shardcast::proto::ws::WsError>(())
/// ```
#[derive(Default, Debug)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// What [`Decoder::decode`] took and found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded<'a> {
    /// Bytes taken from the front of the input; all of them when `incoming` is `None`.
    pub consumed: usize,
    /// The message or control frame that these bytes completed; `None` when more bytes are needed.
    pub incoming: Option<Incoming<'a>>,
}

/// A complete message or control frame, lent until the next call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// A whole message; text has been validated.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// The message, of all its fragments.
        payload: &'a [u8],
    },
    /// A whole message as it came, which is to be inflated (RFC 7692 section 7.2.2). If it is text nobody has looked at that.
    Compressed {
        /// Text or binary.
        kind: MessageKind,
        /// The message, of all its fragments.
        payload: &'a [u8],
    },
    /// To be answered with a pong of the same payload (RFC 6455 section 5.5.2).
    Ping(&'a [u8]),
    /// An answer to our ping, or an unasked sign of life.
    Pong(&'a [u8]),
    /// The last frame of the connection, with code and reason if it has them: what follows it must be discarded (RFC 6455 section 5.5.1).
    Close(Option<(CloseCode, &'a str)>),
}

/// What a message is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MessageKind {
    /// UTF-8, checked.
    Text,
    /// Any bytes.
    Binary,
}

impl MessageKind {
    /// The opcode of an unfragmented message of this kind.
    pub const fn opcode(self) -> OpCode {
        match self {
            Self::Text => OpCode::Text,
            Self::Binary => OpCode::Binary,
        }
    }
}

impl Decoder {
    /// A decoder before the first byte.
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Takes bytes from the front of `input` up to the end of the next message or control frame. The caller loops while input remains.
    /// `input` is unmasked in place, so its consumed part is spoilt.
    ///
    /// # Errors
    /// At the first byte that breaks RFC 6455 or a limit. The connection is then closed with [`WsError::close_code`], and the decoder must not be
    /// used again: drop it.
    pub fn decode<'a>(&'a mut self, input: &'a mut [u8], limits: &DecoderLimits) -> Result<Decoded<'a>, WsError> {
        self.release();
        let mut consumed = 0;
        while consumed < input.len() {
            let step = match self.step(&mut input[consumed..], limits) {
                Ok(step) => step,
                Err(error) => {
                    // The connection lingers after its close frame; what it sent is of no use to it then.
                    self.partial = None;
                    return Err(error);
                }
            };
            let start = consumed;
            consumed += step.consumed;
            if let Some(Complete { opcode, compressed, place }) = step.complete {
                let payload = match place {
                    Place::Input(range) => &input[start..][range],
                    Place::Control => self.partial.as_deref().map_or(&[][..], |partial| &partial.control),
                    Place::Message => self.partial.as_deref().and_then(|partial| partial.message.as_ref()).map_or(&[][..], |m| &m.bytes),
                };
                return Ok(Decoded { consumed, incoming: Some(incoming(opcode, compressed, payload)?) });
            }
        }
        Ok(Decoded { consumed, incoming: None })
    }

    /// Whether nothing is half-received and nothing is lent: the decoder then holds no memory.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Bytes that bring another decoder to where this one is: what is half-received, as a client could have sent it.
    pub fn to_input(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(partial) = self.partial.as_deref() else { return out };
        let frame = partial.frame.as_ref();
        let data_taken = frame.filter(|frame| !frame.opcode.is_control()).map_or(0, |frame| frame.taken as usize);
        let message = partial.message.as_ref().filter(|_| partial.lent != Lent::Message);
        let (before, taken) = message.map_or((&[][..], &[][..]), |message| message.bytes.split_at(message.bytes.len() - data_taken));
        // The first frame of a message has no fragment before it.
        if let Some(message) = message.filter(|_| frame.is_none_or(|frame| !matches!(frame.opcode, OpCode::Text | OpCode::Binary))) {
            encode_masked_into(&mut out, false, message.kind.opcode(), [0; 4], before);
            out[0] |= rsv1(message.compressed);
        }
        if let Some(frame) = frame {
            let begin = if frame.opcode.is_control() { &partial.control } else { taken };
            let start = out.len();
            encode_masked_begin(&mut out, frame.fin, frame.opcode, frame.mask, frame.payload_len as usize, begin);
            out[start] |= rsv1(frame.compressed);
        }
        out.extend_from_slice(&partial.header[..usize::from(partial.header_len)]);
        out
    }

    /// Memory that the decoder holds beside itself, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_deref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, |message| message.bytes.capacity());
            size_of::<Partial>() + partial.control.capacity() + message
        })
    }

    /// Frees the buffer that the last [`Self::decode`] lent, if it lent one; [`Self::decode`] does so too, when it is called next.
    pub fn release(&mut self) {
        let Some(partial) = self.partial.as_deref_mut() else { return };
        match mem::replace(&mut partial.lent, Lent::Nothing) {
            Lent::Nothing => return,
            Lent::Message => partial.message = None,
            Lent::Control => partial.control = Vec::new(),
        }
        self.drop_empty_partial();
    }

    /// Takes one frame, or the part of it that is there.
    fn step(&mut self, input: &mut [u8], limits: &DecoderLimits) -> Result<Step, WsError> {
        let (frame, header_len) = match self.partial.as_deref_mut().and_then(|partial| partial.frame.take()) {
            Some(frame) => (frame, 0),
            None => match self.take_header(input, limits)? {
                Some((header, len)) => (self.begin_frame(&header, limits)?, len),
                None => return Ok(Step { consumed: input.len(), complete: None }),
            },
        };
        let available = usize::try_from(frame.remaining()).unwrap_or(usize::MAX).min(input.len() - header_len);
        if available == 0 && frame.remaining() > 0 {
            // Not a byte of it yet, so that it can still be lent whole from the next input.
            self.partial.get_or_insert_default().frame = Some(frame);
            return Ok(Step { consumed: header_len, complete: None });
        }
        let range = header_len..header_len + available;
        unmask(&mut input[range.clone()], frame.mask, (frame.taken & 3) as usize);
        let complete = match frame.opcode.is_control() {
            true => self.take_control(frame, input, range.clone()),
            false => self.take_data(frame, input, range.clone())?,
        };
        self.drop_empty_partial();
        Ok(Step { consumed: range.end, complete })
    }

    /// The next frame's header and how many bytes of `input` belong to it; `None` when all of `input` was kept as its beginning.
    fn take_header(&mut self, input: &[u8], limits: &DecoderLimits) -> Result<Option<(FrameHeader, usize)>, WsError> {
        let kept = self.partial.as_deref().map_or(0, |partial| usize::from(partial.header_len));
        if kept == 0 {
            let parsed = FrameHeader::parse_agreed(input, limits.deflate)?;
            if parsed.is_some() {
                return Ok(parsed);
            }
        }
        let partial = self.partial.get_or_insert_default();
        let taken = input.len().min(HEADER_MAX - kept);
        partial.header[kept..kept + taken].copy_from_slice(&input[..taken]);
        match FrameHeader::parse_agreed(&partial.header[..kept + taken], limits.deflate)? {
            Some((header, len)) => {
                partial.header_len = 0;
                Ok(Some((header, len - kept)))
            }
            None => {
                debug_assert_eq!(taken, input.len(), "{HEADER_MAX} bytes are always a whole header");
                partial.header_len = (kept + taken) as u8;
                Ok(None)
            }
        }
    }

    /// Checks a header against the connection's state and limits.
    fn begin_frame(&self, header: &FrameHeader, limits: &DecoderLimits) -> Result<Frame, WsError> {
        // RFC 6455 section 5.1: a server must close on a frame that is not masked.
        let mask = header.masked.ok_or(WsError::NotMasked)?;
        let &FrameHeader { opcode, fin, compressed, payload_len, .. } = header;
        let frame = Frame { opcode, fin, compressed, mask, payload_len, taken: 0 };
        if frame.opcode.is_control() {
            return Ok(frame);
        }
        let open = self.partial.as_deref().and_then(|partial| partial.message.as_ref());
        // RFC 6455 section 5.4: the fragments of a message come one after the other, with only control frames between them.
        match (open, frame.opcode) {
            (None, OpCode::Continuation) => return Err(WsError::ContinuationWithoutStart),
            (Some(_), opcode @ (OpCode::Text | OpCode::Binary)) => return Err(WsError::MessageInterrupted { opcode }),
            _ => {}
        }
        // Before a byte of it is kept: a length that is only announced costs us nothing. Both terms are below 2^63.
        let limit = limits.message_bytes_max;
        let most = if compressed || open.is_some_and(|message| message.compressed) { limits.compressed_bytes_max() } else { limit };
        let total = frame.payload_len + open.map_or(0, |message| message.bytes.len() as u64);
        match (frame.payload_len > most, total > most) {
            (true, _) => Err(WsError::FrameTooBig { bytes: frame.payload_len, limit }),
            (false, true) => Err(WsError::MessageTooBig { bytes: total, limit }),
            (false, false) => Ok(frame),
        }
    }

    fn take_control(&mut self, mut frame: Frame, input: &[u8], range: Range<usize>) -> Option<Complete> {
        let opcode = frame.opcode;
        let whole = frame.taken == 0;
        frame.taken += range.len() as u64;
        let ended = frame.remaining() == 0;
        if whole && ended {
            return Some(Complete { opcode, compressed: false, place: Place::Input(range) });
        }
        let partial = self.partial.get_or_insert_default();
        partial.control.extend_from_slice(&input[range]);
        if !ended {
            partial.frame = Some(frame);
            return None;
        }
        partial.lent = Lent::Control;
        Some(Complete { opcode, compressed: false, place: Place::Control })
    }

    fn take_data(&mut self, mut frame: Frame, input: &[u8], range: Range<usize>) -> Result<Option<Complete>, WsError> {
        let piece = &input[range.clone()];
        let left_before = frame.remaining();
        let whole = frame.taken == 0;
        frame.taken += piece.len() as u64;
        let ended = frame.remaining() == 0;
        if whole && ended && frame.fin && frame.opcode != OpCode::Continuation {
            if frame.opcode == OpCode::Text && !frame.compressed {
                utf8::validate(piece)?;
            }
            return Ok(Some(Complete { opcode: frame.opcode, compressed: frame.compressed, place: Place::Input(range) }));
        }
        let partial = self.partial.get_or_insert_default();
        let message = partial.message.get_or_insert_with(|| Assembly::new(&frame));
        message.append(piece, frame.fin.then_some(left_before))?;
        if !ended {
            partial.frame = Some(frame);
            return Ok(None);
        }
        if !frame.fin {
            return Ok(None);
        }
        message.utf8.finish()?;
        partial.lent = Lent::Message;
        Ok(Some(Complete { opcode: message.kind.opcode(), compressed: message.compressed, place: Place::Message }))
    }

    fn drop_empty_partial(&mut self) {
        if self.partial.as_deref().is_some_and(Partial::is_empty) {
            self.partial = None;
        }
    }
}

/// All that is half-received, or lent.
#[derive(Default, Debug)]
struct Partial {
    /// The beginning of a header.
    header: [u8; HEADER_MAX],
    header_len: u8,
    lent: Lent,
    /// A frame whose header is complete and whose payload is not.
    frame: Option<Frame>,
    /// The payload of a control frame, so far.
    control: Vec<u8>,
    /// A message whose first byte or fragment has come, and whose last has not.
    message: Option<Assembly>,
}

impl Partial {
    fn is_empty(&self) -> bool {
        self.header_len == 0 && self.lent == Lent::Nothing && self.frame.is_none() && self.message.is_none()
    }
}

/// Which buffer the last call lent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Lent {
    #[default]
    Nothing,
    Message,
    Control,
}

/// A frame whose payload is under way.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: OpCode,
    fin: bool,
    compressed: bool,
    mask: [u8; 4],
    payload_len: u64,
    /// Bytes of the payload that were taken by earlier calls.
    taken: u64,
}

impl Frame {
    fn remaining(&self) -> u64 {
        self.payload_len - self.taken
    }
}

/// A message under way.
#[derive(Debug)]
struct Assembly {
    kind: MessageKind,
    compressed: bool,
    utf8: Utf8Stream,
    bytes: Vec<u8>,
}

impl Assembly {
    fn new(first: &Frame) -> Self {
        let kind = if first.opcode == OpCode::Text { MessageKind::Text } else { MessageKind::Binary };
        Self { kind, compressed: first.compressed, utf8: Utf8Stream::new(), bytes: Vec::new() }
    }

    /// Appends a piece. The buffer at most doubles, whatever the peer announced; when it is known that at most `left` bytes are still to come (the
    /// piece included), it does not grow beyond them either. Fragments that may have successors double always: exact growth by
    /// 1-byte fragments would copy the message at each.
    fn append(&mut self, piece: &[u8], left: Option<u64>) -> Result<(), InvalidUtf8> {
        if self.kind == MessageKind::Text && !self.compressed {
            self.utf8.feed(piece)?;
        }
        let len = self.bytes.len();
        if let Some(left) = left
            && len + piece.len() > self.bytes.capacity()
        {
            let most = len.saturating_add(usize::try_from(left).unwrap_or(usize::MAX));
            let target = (2 * self.bytes.capacity()).clamp(len + piece.len(), most);
            self.bytes.reserve_exact(target - len);
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

/// What one step took, and what it completed.
struct Step {
    consumed: usize,
    complete: Option<Complete>,
}

/// A complete message or control frame; never a continuation.
struct Complete {
    opcode: OpCode,
    compressed: bool,
    place: Place,
}

/// Where a payload lies.
enum Place {
    /// In the step's input.
    Input(Range<usize>),
    /// In [`Partial::control`].
    Control,
    /// In [`Partial::message`].
    Message,
}

/// The bit of a frame's first byte that says so.
fn rsv1(compressed: bool) -> u8 {
    if compressed { RSV1 } else { 0 }
}

fn incoming(opcode: OpCode, compressed: bool, payload: &[u8]) -> Result<Incoming<'_>, WsError> {
    Ok(match opcode {
        OpCode::Text if compressed => Incoming::Compressed { kind: MessageKind::Text, payload },
        OpCode::Binary if compressed => Incoming::Compressed { kind: MessageKind::Binary, payload },
        OpCode::Text => Incoming::Message { kind: MessageKind::Text, payload },
        OpCode::Binary | OpCode::Continuation => Incoming::Message { kind: MessageKind::Binary, payload },
        OpCode::Ping => Incoming::Ping(payload),
        OpCode::Pong => Incoming::Pong(payload),
        OpCode::Close => Incoming::Close(parse_close_payload(payload)?),
    })
}

impl From<InvalidUtf8> for WsError {
    fn from(_: InvalidUtf8) -> Self {
        Self::InvalidUtf8
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 65_536, deflate: false };
    const AGREED: DecoderLimits = DecoderLimits { deflate: true, ..LIMITS };
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// An [`Incoming`] that owns its bytes.
    #[derive(Clone, PartialEq, Debug)]
    pub(in super::super) enum Got {
        Text(String),
        Binary(Vec<u8>),
        Compressed(MessageKind, Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<(u16, String)>),
    }

    impl From<Incoming<'_>> for Got {
        fn from(incoming: Incoming<'_>) -> Self {
            match incoming {
                Incoming::Message { kind: MessageKind::Text, payload } => {
                    Self::Text(str::from_utf8(payload).expect("it was validated").into())
                }
                Incoming::Message { kind: MessageKind::Binary, payload } => Self::Binary(payload.into()),
                Incoming::Compressed { kind, payload } => Self::Compressed(kind, payload.into()),
                Incoming::Ping(payload) => Self::Ping(payload.into()),
                Incoming::Pong(payload) => Self::Pong(payload.into()),
                Incoming::Close(close) => Self::Close(close.map(|(code, reason)| (code.0, reason.into()))),
            }
        }
    }

    /// Decodes one receive buffer as a caller does.
    fn feed(decoder: &mut Decoder, bytes: &[u8], got: &mut Vec<Got>, limits: &DecoderLimits) -> Result<(), WsError> {
        let mut input = bytes.to_vec();
        let mut rest = &mut input[..];
        while !rest.is_empty() {
            let len = rest.len();
            let decoded = decoder.decode(rest, limits)?;
            let consumed = decoded.consumed;
            match decoded.incoming {
                Some(incoming) => got.push(incoming.into()),
                None => assert_eq!(consumed, len, "without an incoming everything is taken"),
            }
            rest = &mut rest[consumed..];
        }
        Ok(())
    }

    pub(in super::super) fn feed_pieces<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Got>, Result<Decoder, WsError>) {
        feed_limited(&LIMITS, pieces)
    }

    fn feed_limited<'p>(limits: &DecoderLimits, pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Got>, Result<Decoder, WsError>) {
        let (mut decoder, mut got) = (Decoder::new(), Vec::new());
        for piece in pieces {
            if let Err(error) = feed(&mut decoder, piece, &mut got, limits) {
                return (got, Err(error));
            }
        }
        decoder.release();
        (got, Ok(decoder))
    }

    /// What another decoder makes of the bytes from `cut` on, told where the first one was.
    pub(in super::super) fn feed_over(bytes: &[u8], cut: usize) -> (Vec<Got>, Result<Decoder, WsError>) {
        let (mut got, first) = feed_pieces([&bytes[..cut]]);
        let Ok(first) = first else { return (got, first) };
        let (rest, second) = feed_pieces([&first.to_input()[..], &bytes[cut..]]);
        got.extend(rest);
        (got, second)
    }

    /// Decodes whole, in two pieces at every cut, and byte by byte: always the same, and nothing is held at the end.
    fn check(bytes: &[u8], expect: &[Got]) {
        let check_one = |how: &str, (got, decoder): (Vec<Got>, Result<Decoder, WsError>)| {
            let decoder = decoder.unwrap_or_else(|error| panic!("{how}: {error}"));
            assert_eq!(got, expect, "{how}: {bytes:02x?}");
            assert!(decoder.is_idle() && decoder.held_bytes() == 0, "{how}: {bytes:02x?}");
        };
        check_one("whole", feed_pieces([bytes]));
        check_one("bytewise", feed_pieces(bytes.chunks(1)));
        if bytes.len() < 2000 {
            for cut in 1..bytes.len() {
                check_one(&format!("cut at {cut}"), feed_pieces([&bytes[..cut], &bytes[cut..]]));
                check_one(&format!("by another decoder from byte {cut} on"), feed_over(bytes, cut));
            }
        }
    }

    /// The same for bytes that are refused: with the same error, at the same byte however they are cut.
    fn check_refused(bytes: &[u8], refused_at: usize, expect: WsError, code: u16) {
        assert_eq!(feed_pieces([bytes]).1.err(), Some(expect), "whole: {bytes:02x?}");
        assert_eq!(feed_pieces(bytes.chunks(1)).1.err(), Some(expect), "bytewise: {bytes:02x?}");
        assert_eq!(feed_pieces(bytes[..refused_at].chunks(1)).1.err(), Some(expect), "up to byte {refused_at}: {bytes:02x?}");
        assert!(feed_pieces(bytes[..refused_at - 1].chunks(1)).1.is_ok(), "before byte {refused_at}: {bytes:02x?}");
        assert_eq!(expect.close_code(), CloseCode(code));
    }

    fn frame(fin: bool, opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_masked_into(&mut out, fin, opcode, MASK, payload);
        out
    }

    fn text(text: &str) -> Got {
        Got::Text(text.into())
    }

    #[test]
    fn an_idle_decoder_is_one_pointer() {
        assert_eq!(size_of::<Decoder>(), 8);
        assert!(size_of::<Partial>() <= 128, "{}", size_of::<Partial>());
        assert!(Decoder::new().is_idle());
    }

    /// RFC 6455 section 5.7, the masked ones.
    #[test]
    fn the_sample_frames_of_the_rfc_are_decoded() {
        check(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58], &[text("Hello")]);
        check(&[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58], &[Got::Pong(b"Hello".into())]);
    }

    #[test]
    fn every_kind_and_length_is_decoded() {
        for len in [0, 1, 3, 125, 126, 127, 400, 65_535, 65_536] {
            let payload: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            check(&frame(true, OpCode::Binary, &payload), &[Got::Binary(payload.clone())]);
            let letters = "é".repeat(len / 2) + &"x".repeat(len % 2);
            check(&frame(true, OpCode::Text, letters.as_bytes()), &[text(&letters)]);
            if len <= 125 {
                check(&frame(true, OpCode::Ping, &payload), &[Got::Ping(payload.clone())]);
                check(&frame(true, OpCode::Pong, &payload), &[Got::Pong(payload)]);
            }
        }
    }

    #[test]
    fn frames_in_one_read_come_one_by_one() {
        let bytes = [frame(true, OpCode::Text, b"a"), frame(true, OpCode::Ping, b""), frame(true, OpCode::Binary, b"\xff")].concat();
        check(&bytes, &[text("a"), Got::Ping(vec![]), Got::Binary(vec![0xff])]);
    }

    #[test]
    fn fragments_are_put_together_with_control_frames_between_them() {
        let bytes = [
            frame(false, OpCode::Text, "gr\u{fc}".as_bytes().split_at(3).0),
            frame(true, OpCode::Ping, b"there?"),
            frame(false, OpCode::Continuation, b""),
            frame(true, OpCode::Pong, b""),
            frame(true, OpCode::Continuation, b"\xbcn"),
            frame(false, OpCode::Binary, b""),
            frame(true, OpCode::Continuation, b""),
            frame(true, OpCode::Close, b"\x03\xe8bye"),
        ]
        .concat();
        let close = Got::Close(Some((1000, "bye".into())));
        check(&bytes, &[Got::Ping(b"there?".into()), Got::Pong(vec![]), text("grün"), Got::Binary(vec![]), close]);
    }

    #[test]
    fn close_frames_are_parsed() {
        check(&frame(true, OpCode::Close, b""), &[Got::Close(None)]);
        check(&frame(true, OpCode::Close, b"\x11\x94"), &[Got::Close(Some((4500, String::new())))]);
        check_refused(&frame(true, OpCode::Close, b"\x03"), 7, WsError::CloseCodeCut, 1002);
        check_refused(&frame(true, OpCode::Close, b"\x03\xed"), 8, WsError::CloseCodeInvalid { code: 1005 }, 1002);
        check_refused(&frame(true, OpCode::Close, b"\x03\xe8\xff"), 9, WsError::CloseReasonNotUtf8, 1007);
    }

    #[test]
    fn unmasked_client_frame_closes_1002() {
        check_refused(&[0x81, 0x00], 2, WsError::NotMasked, 1002);
        check_refused(&[0x81, 0x05, b'H'], 2, WsError::NotMasked, 1002);
        check_refused(&[0x89, 0x00], 2, WsError::NotMasked, 1002);
    }

    #[test]
    fn bad_headers_close_1002_at_the_byte() {
        check_refused(&[0xc1, 0x80], 1, WsError::ReservedBits { bits: 4 }, 1002);
        check_refused(&[0x83, 0x80], 1, WsError::ReservedOpCode { opcode: 3 }, 1002);
        check_refused(&[0x09, 0x80], 1, WsError::ControlFragmented { opcode: OpCode::Ping }, 1002);
        check_refused(&[0x89, 0xfe, 0, 126], 2, WsError::ControlTooLong { opcode: OpCode::Ping }, 1002);
        check_refused(&[0x82, 0xfe, 0, 125, 1, 2, 3, 4], 4, WsError::LengthNotMinimal { bytes: 125 }, 1002);
        check_refused(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], 10, WsError::LengthTopBit, 1002);
    }

    #[test]
    fn fragments_out_of_order_close_1002() {
        check_refused(&frame(true, OpCode::Continuation, b"x"), 6, WsError::ContinuationWithoutStart, 1002);
        check_refused(&frame(false, OpCode::Continuation, b"x"), 6, WsError::ContinuationWithoutStart, 1002);
        let first = frame(false, OpCode::Text, b"x");
        for opcode in [OpCode::Text, OpCode::Binary] {
            let bytes = [&first[..], &frame(true, opcode, b"y")].concat();
            check_refused(&bytes, first.len() + 6, WsError::MessageInterrupted { opcode }, 1002);
        }
        let bytes = [first.clone(), frame(true, OpCode::Continuation, b""), frame(true, OpCode::Continuation, b"")].concat();
        check_refused(&bytes, first.len() + 12, WsError::ContinuationWithoutStart, 1002);
    }

    #[test]
    fn message_over_the_limit_closes_1009_at_its_header() {
        let limit = LIMITS.message_bytes_max;
        let bytes = frame(true, OpCode::Binary, &[0; 70_001]);
        check_refused(&bytes, 14, WsError::FrameTooBig { bytes: 70_001, limit }, 1009);
        let bomb = [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        check_refused(&bomb, 14, WsError::FrameTooBig { bytes: u64::MAX >> 1, limit }, 1009);
        let first = frame(false, OpCode::Binary, &[0; 65_535]);
        let bytes = [&first[..], &frame(true, OpCode::Continuation, b"ab")].concat();
        check_refused(&bytes, first.len() + 6, WsError::MessageTooBig { bytes: 65_537, limit }, 1009);
        let bytes = [&first[..], &bomb].concat().into_iter().enumerate().map(|(at, b)| if at == first.len() { 0x80 } else { b });
        let bytes: Vec<u8> = bytes.collect();
        check_refused(&bytes, first.len() + 14, WsError::FrameTooBig { bytes: u64::MAX >> 1, limit }, 1009);
    }

    /// Autobahn 6.4: at the byte, not at the end of the frame or message.
    #[test]
    fn text_that_is_not_utf8_closes_1007_at_the_first_impossible_byte() {
        let bad = ["κόσμε".as_bytes(), b"\xf4\x90\x80\x80edited"].concat();
        check_refused(&frame(true, OpCode::Text, &bad), 6 + 12, WsError::InvalidUtf8, 1007);
        check_refused(&frame(false, OpCode::Text, &bad), 6 + 12, WsError::InvalidUtf8, 1007);
        let first = frame(false, OpCode::Text, b"x\xed");
        check_refused(&[&first[..], &frame(false, OpCode::Continuation, b"\xa0")].concat(), first.len() + 7, WsError::InvalidUtf8, 1007);
        // An unfinished character is fine until the message ends.
        let cut = frame(true, OpCode::Text, b"x\xe2\x82");
        check_refused(&cut, cut.len(), WsError::InvalidUtf8, 1007);
        check_refused(&[&first[..], &frame(true, OpCode::Continuation, b"")].concat(), first.len() + 6, WsError::InvalidUtf8, 1007);
    }

    #[test]
    fn a_compressed_message_is_handed_on_as_it_came_however_it_is_cut_and_by_whichever_decoder() {
        let marked = |fin, opcode, payload: &[u8]| {
            let mut bytes = frame(fin, opcode, payload);
            bytes[0] |= RSV1;
            bytes
        };
        let bytes = [
            marked(true, OpCode::Text, b"\xff no text"),
            marked(false, OpCode::Binary, b"a\x80"),
            frame(true, OpCode::Ping, b"there?"),
            frame(false, OpCode::Continuation, b"b"),
            frame(true, OpCode::Continuation, b"c"),
            frame(true, OpCode::Text, b"plain"),
        ]
        .concat();
        let compressed = |kind, payload: &[u8]| Got::Compressed(kind, payload.to_vec());
        let expect = [
            compressed(MessageKind::Text, b"\xff no text"),
            Got::Ping(b"there?".into()),
            compressed(MessageKind::Binary, b"a\x80bc"),
            text("plain"),
        ];
        assert_eq!(feed_limited(&AGREED, [&bytes[..]]).0, expect);
        for cut in 1..bytes.len() {
            assert_eq!(feed_limited(&AGREED, [&bytes[..cut], &bytes[cut..]]).0, expect, "cut at {cut}");
            let (mut got, first) = feed_limited(&AGREED, [&bytes[..cut]]);
            let first = first.expect("it is valid").to_input();
            got.extend(feed_limited(&AGREED, [&first[..], &bytes[cut..]]).0);
            assert_eq!(got, expect, "by another decoder from byte {cut} on");
        }
        let again = [marked(false, OpCode::Text, b"a"), marked(true, OpCode::Continuation, b"b")].concat();
        let error = WsError::CompressedOutOfPlace { opcode: OpCode::Continuation };
        assert_eq!(feed_limited(&AGREED, [&again[..]]).1.err(), Some(error));
        let long = marked(true, OpCode::Binary, &[0; 70_000]);
        assert!(feed_limited(&AGREED, [&long[..]]).1.is_ok(), "what cannot be compressed grows a little");
        let error = WsError::FrameTooBig { bytes: 80_000, limit: 65_536 };
        assert_eq!(feed_limited(&AGREED, [&marked(true, OpCode::Binary, &[0; 80_000])[..]]).1.err(), Some(error));
    }

    #[test]
    fn a_whole_frame_is_lent_from_the_input_without_memory_of_our_own() {
        let mut input = frame(true, OpCode::Text, b"Hello");
        let at = input.as_ptr() as usize + 6;
        let mut decoder = Decoder::new();
        let Some(Incoming::Message { payload, .. }) = decoder.decode(&mut input, &LIMITS).expect("it is valid").incoming else {
            panic!("a message");
        };
        assert_eq!(payload.as_ptr() as usize, at);
        assert!(decoder.is_idle());
        // A header in one read and its whole payload in the next is lent as well.
        let mut input = frame(true, OpCode::Text, b"Hello");
        let (header, body) = input.split_at_mut(6);
        assert_eq!(decoder.decode(header, &LIMITS).expect("it is valid").incoming, None);
        assert!(!decoder.is_idle());
        assert!(decoder.decode(body, &LIMITS).expect("it is valid").incoming.is_some());
        assert!(decoder.is_idle());
    }

    #[test]
    fn memory_follows_the_bytes_that_came_and_is_freed_after_the_message() {
        let bytes = frame(true, OpCode::Binary, &[7; 60_000]);
        let mut decoder = Decoder::new();
        let mut came = 0;
        for piece in bytes.chunks(1000) {
            let mut piece = piece.to_vec();
            came += piece.len();
            decoder.decode(&mut piece, &LIMITS).expect("it is valid");
            assert!(
                decoder.held_bytes() <= size_of::<Partial>() + (2 * came).min(60_000),
                "{} bytes held after {came}",
                decoder.held_bytes()
            );
        }
        assert!(!decoder.is_idle() && decoder.held_bytes() >= 60_000, "the message is lent");
        decoder.release();
        assert!(decoder.is_idle());
        decoder.release();
        // Releasing does nothing to what is half-received.
        decoder.decode(&mut frame(false, OpCode::Text, b"ab"), &LIMITS).expect("it is valid");
        decoder.release();
        assert!(!decoder.is_idle());
        assert_eq!(
            decoder.decode(&mut frame(true, OpCode::Continuation, b"c"), &LIMITS).expect("it is valid").incoming.map(Got::from),
            Some(text("abc"))
        );
        assert!(!decoder.is_idle());
        assert_eq!(decoder.decode(&mut [], &LIMITS), Ok(Decoded { consumed: 0, incoming: None }));
        assert!(decoder.is_idle());
    }

    #[test]
    fn tiny_fragments_do_not_copy_the_message_at_each() {
        let mut decoder = Decoder::new();
        let mut growths = 0;
        for number in 0..65_536 {
            let before = decoder.held_bytes();
            let opcode = if number == 0 { OpCode::Binary } else { OpCode::Continuation };
            decoder.decode(&mut frame(false, opcode, b"x"), &LIMITS).expect("it is valid");
            growths += usize::from(decoder.held_bytes() != before);
        }
        assert!(growths <= 20, "{growths} growths for 65536 fragments");
    }
}
