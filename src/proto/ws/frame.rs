//! One frame's header, both ways (RFC 6455 section 5.2).
//!
//! ```text
//!  byte 0                byte 1              then
//! ┌───┬───┬─────────┐  ┌──────┬─────────┐  ┌───────────────────────────┬──────────────────┬─────────┐
//! │FIN│RSV│ opcode  │  │ MASK │ length  │  │ 2 bytes if length is 126, │ 4 bytes of mask, │ payload │
//! │ 1 │ 3 │ 4 bits  │  │  1   │ 7 bits  │  │ 8 bytes if length is 127  │ if MASK is set   │         │
//! └───┴───┴─────────┘  └──────┴─────────┘  └───────────────────────────┴──────────────────┴─────────┘
//! ```

use std::fmt;

use super::error::WsError;
use super::mask::unmask;

/// The longest header: 2 bytes, a 64-bit length, a mask.
pub const HEADER_MAX: usize = 14;

/// RFC 6455 section 5.5: a control payload is at most 125 bytes.
pub const CONTROL_PAYLOAD_MAX: usize = 125;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OpCode {
    /// The next fragment of a message.
    Continuation = 0x0,
    /// A text message or its first fragment.
    Text = 0x1,
    /// A binary message or its first fragment.
    Binary = 0x2,
    /// The end of the connection.
    Close = 0x8,
    /// A question whether the peer is there.
    Ping = 0x9,
    /// The answer to a ping, or an unasked sign of life.
    Pong = 0xA,
}

impl OpCode {
    /// Whether it is close, ping or pong, which may come between the fragments of a message.
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    /// The opcode of four bits.
    ///
    /// # Errors
    /// RFC 6455 section 5.2: an unknown opcode fails the connection.
    const fn from_bits(bits: u8) -> Result<Self, WsError> {
        match bits {
            0x0 => Ok(Self::Continuation),
            0x1 => Ok(Self::Text),
            0x2 => Ok(Self::Binary),
            0x8 => Ok(Self::Close),
            0x9 => Ok(Self::Ping),
            0xA => Ok(Self::Pong),
            opcode => Err(WsError::ReservedOpCode { opcode }),
        }
    }
}

impl fmt::Display for OpCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Continuation => "continuation",
            Self::Text => "text",
            Self::Binary => "binary",
            Self::Close => "close",
            Self::Ping => "ping",
            Self::Pong => "pong",
        })
    }
}

/// A frame's header, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Whether it is the last fragment of its message.
    pub fin: bool,
    /// RSV1: the message that the frame begins is compressed. Never, where permessage-deflate was not agreed to.
    pub compressed: bool,
    /// What the frame is.
    pub opcode: OpCode,
    /// The mask of a client's frame.
    pub masked: Option<[u8; 4]>,
    /// Bytes of payload that follow; below 2^63.
    pub payload_len: u64,
}

impl FrameHeader {
    /// Parses a header from the front of `bytes`: the header and its length, or `None` when more bytes are needed.
    ///
    /// ```
    /// use shardcast::proto::ws::{FrameHeader, OpCode};
    ///
    /// let (header, len) = FrameHeader::parse(&[0x81, 0x05, b'H', b'e', b'l', b'l', b'o'])?.expect("it is complete");
    /// assert_eq!((header.opcode, header.fin, header.payload_len, len), (OpCode::Text, true, 5, 2));
    /// # Ok::<(), shardcast::proto::ws::WsError>(())
    /// ```
    ///
    /// # Errors
    /// As soon as the byte that breaks RFC 6455 section 5.2 or 5.5 is there. That a client must mask is for the decoder to check.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, WsError> {
        Self::parse_agreed(bytes, false)
    }

    /// The same where permessage-deflate was agreed to, if `deflate`.
    ///
    /// # Errors
    /// The same; and RSV1 where no message begins (RFC 7692 section 6).
    #[inline]
    pub fn parse_agreed(bytes: &[u8], deflate: bool) -> Result<Option<(Self, usize)>, WsError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let fin = first & 0x80 != 0;
        // RFC 6455 section 5.2: RSV must be 0 unless an extension defines it.
        let bits = first >> 4 & 0x7;
        if bits & !(u8::from(deflate) << 2) != 0 {
            return Err(WsError::ReservedBits { bits });
        }
        let compressed = bits != 0;
        let opcode = OpCode::from_bits(first & 0xF)?;
        // RFC 7692 section 6: RSV1 is of the first frame of a message; control frames and continuations have none.
        if compressed && !matches!(opcode, OpCode::Text | OpCode::Binary) {
            return Err(WsError::CompressedOutOfPlace { opcode });
        }
        // RFC 6455 section 5.5: control frames must not be fragmented.
        if opcode.is_control() && !fin {
            return Err(WsError::ControlFragmented { opcode });
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short_length = second & 0x7F;
        // RFC 6455 section 5.5: a control payload is at most 125 bytes.
        if opcode.is_control() && usize::from(short_length) > CONTROL_PAYLOAD_MAX {
            return Err(WsError::ControlTooLong { opcode });
        }
        let (payload_len, mask_at) = match short_length {
            126 => {
                let Some(length) = bytes.get(2..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), 4)
            }
            127 => {
                let Some(length) = bytes.get(2..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
                (u64::from_be_bytes(*length), 10)
            }
            short => (u64::from(short), 2),
        };
        // RFC 6455 section 5.2: the most significant bit of a 64-bit length must be 0.
        if payload_len >> 63 != 0 {
            return Err(WsError::LengthTopBit);
        }
        // RFC 6455 section 5.2: the minimal number of bytes must be used to encode the length.
        if (short_length == 126 && payload_len < 126) || (short_length == 127 && payload_len <= 0xFFFF) {
            return Err(WsError::LengthNotMinimal { bytes: payload_len });
        }
        if second & 0x80 == 0 {
            return Ok(Some((Self { fin, compressed, opcode, masked: None, payload_len }, mask_at)));
        }
        let Some(mask) = bytes.get(mask_at..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
        Ok(Some((Self { fin, compressed, opcode, masked: Some(*mask), payload_len }, mask_at + 4)))
    }
}

/// The header of an unfragmented frame from us, who must not mask (RFC 6455 section 5.1): the array's first bytes, and how many.
///
/// ```
/// use shardcast::proto::ws::{OpCode, frame::server_header};
///
/// let (header, len) = server_header(OpCode::Text, 5);
/// assert_eq!(header[..len], [0x81, 0x05]);
/// ```
pub const fn server_header(opcode: OpCode, payload_len: usize) -> ([u8; 10], usize) {
    debug_assert!(!opcode.is_control() || payload_len <= CONTROL_PAYLOAD_MAX);
    let mut header = [0; 10];
    header[0] = 0x80 | opcode as u8;
    let bytes = (payload_len as u64).to_be_bytes();
    let len = match payload_len {
        0..=125 => {
            header[1] = bytes[7];
            2
        }
        126..=0xFFFF => {
            header[1] = 126;
            (header[2], header[3]) = (bytes[6], bytes[7]);
            4
        }
        _ => {
            header[1] = 127;
            let mut at = 0;
            while at < 8 {
                header[2 + at] = bytes[at];
                at += 1;
            }
            10
        }
    };
    (header, len)
}

/// RSV1 in the first byte of a frame (RFC 7692 section 6).
pub const RSV1: u8 = 0x40;

/// The same for a message that is compressed.
pub const fn compressed_header(opcode: OpCode, payload_len: usize) -> ([u8; 10], usize) {
    let (mut header, len) = server_header(opcode, payload_len);
    header[0] |= RSV1;
    (header, len)
}

/// Appends a whole unfragmented frame from us.
pub fn encode_into(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let (header, len) = server_header(opcode, payload.len());
    out.reserve(len + payload.len());
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(payload);
}

/// Appends a whole frame as a client sends it, masked and perhaps a fragment: for clients and for tests.
pub fn encode_masked_into(out: &mut Vec<u8>, fin: bool, opcode: OpCode, mask: [u8; 4], payload: &[u8]) {
    encode_masked_begin(out, fin, opcode, mask, payload.len(), payload);
}

/// Appends the beginning of such a frame: its header, with the length of the whole payload, and the first bytes of that.
pub fn encode_masked_begin(out: &mut Vec<u8>, fin: bool, opcode: OpCode, mask: [u8; 4], payload_len: usize, begin: &[u8]) {
    let (mut header, len) = server_header(opcode, payload_len);
    header[0] = u8::from(fin) << 7 | opcode as u8;
    header[1] |= 0x80;
    out.reserve(len + mask.len() + begin.len());
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(begin);
    unmask(&mut out[start..], mask, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expect: Result<Option<(FrameHeader, usize)>, WsError>) {
        assert_eq!(FrameHeader::parse(bytes), expect, "{bytes:02x?}");
        // A header that is accepted at some length asks for more at every shorter one, and ignores what follows.
        if let Ok(Some((_, len))) = expect {
            for cut in 0..len {
                assert_eq!(FrameHeader::parse(&bytes[..cut]), Ok(None), "{bytes:02x?} cut at {cut}");
            }
            assert_eq!(FrameHeader::parse(&[bytes, &[0xFF; 20]].concat()), expect);
        }
    }

    fn header(fin: bool, opcode: OpCode, masked: Option<[u8; 4]>, payload_len: u64) -> FrameHeader {
        FrameHeader { fin, compressed: false, opcode, masked, payload_len }
    }

    /// RFC 6455 section 5.7.
    #[test]
    fn the_sample_frames_of_the_rfc_are_parsed() {
        let mask = Some([0x37, 0xfa, 0x21, 0x3d]);
        check(&[0x81, 0x05], Ok(Some((header(true, OpCode::Text, None, 5), 2))));
        check(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d], Ok(Some((header(true, OpCode::Text, mask, 5), 6))));
        check(&[0x01, 0x03], Ok(Some((header(false, OpCode::Text, None, 3), 2))));
        check(&[0x80, 0x02], Ok(Some((header(true, OpCode::Continuation, None, 2), 2))));
        check(&[0x89, 0x05], Ok(Some((header(true, OpCode::Ping, None, 5), 2))));
        check(&[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d], Ok(Some((header(true, OpCode::Pong, mask, 5), 6))));
        check(&[0x82, 0x7e, 0x01, 0x00], Ok(Some((header(true, OpCode::Binary, None, 256), 4))));
        check(&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], Ok(Some((header(true, OpCode::Binary, None, 65_536), 10))));
    }

    #[test]
    fn the_length_takes_the_fewest_bytes() {
        let binary = |payload_len, len| Ok(Some((header(true, OpCode::Binary, None, payload_len), len)));
        check(&[0x82, 0x00], binary(0, 2));
        check(&[0x82, 0x7d], binary(125, 2));
        check(&[0x82, 0x7e, 0x00, 0x7e], binary(126, 4));
        check(&[0x82, 0x7e, 0x00, 0x7d], Err(WsError::LengthNotMinimal { bytes: 125 }));
        check(&[0x82, 0x7e, 0x00, 0x00], Err(WsError::LengthNotMinimal { bytes: 0 }));
        check(&[0x82, 0x7e, 0xff, 0xff], binary(65_535, 4));
        check(&[0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Err(WsError::LengthNotMinimal { bytes: 65_535 }));
        check(&[0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], binary(u64::MAX >> 1, 10));
        check(&[0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0], Err(WsError::LengthTopBit));
    }

    #[test]
    fn a_reserved_bit_closes_1002() {
        for bits in 1..8 {
            check(&[0x80 | bits << 4 | 1], Err(WsError::ReservedBits { bits }));
        }
    }

    #[test]
    fn rsv1_begins_a_compressed_message_where_that_was_agreed_to_and_closes_1002_elsewhere() {
        let agreed = |first: u8| FrameHeader::parse_agreed(&[first, 0x05], true);
        for (first, opcode, fin) in [(0xc1, OpCode::Text, true), (0x41, OpCode::Text, false), (0xc2, OpCode::Binary, true)] {
            let header = FrameHeader { compressed: true, ..header(fin, opcode, None, 5) };
            assert_eq!(agreed(first), Ok(Some((header, 2))));
            check(&[first], Err(WsError::ReservedBits { bits: 4 }));
        }
        for (first, opcode) in [(0xc0, OpCode::Continuation), (0xc8, OpCode::Close), (0xc9, OpCode::Ping), (0xca, OpCode::Pong)] {
            assert_eq!(agreed(first), Err(WsError::CompressedOutOfPlace { opcode }));
        }
        for bits in [1, 2, 3, 5, 6, 7] {
            assert_eq!(agreed(0x81 | bits << 4), Err(WsError::ReservedBits { bits }));
        }
        assert_eq!(agreed(0x81), Ok(Some((header(true, OpCode::Text, None, 5), 2))), "a message need not be compressed");
        assert_eq!(compressed_header(OpCode::Text, 126).0[..4], [0xc1, 126, 0, 126]);
    }

    #[test]
    fn a_reserved_opcode_closes_1002() {
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            check(&[0x80 | opcode], Err(WsError::ReservedOpCode { opcode }));
            check(&[opcode, 0x80], Err(WsError::ReservedOpCode { opcode }));
        }
    }

    #[test]
    fn control_frame_over_125_bytes_closes_1002() {
        for opcode in [OpCode::Close, OpCode::Ping, OpCode::Pong] {
            check(&[0x80 | opcode as u8, 0x7d], Ok(Some((header(true, opcode, None, 125), 2))));
            check(&[0x80 | opcode as u8, 0x7e], Err(WsError::ControlTooLong { opcode }));
            check(&[0x80 | opcode as u8, 0xff], Err(WsError::ControlTooLong { opcode }));
        }
    }

    #[test]
    fn fragmented_control_frame_closes_1002() {
        for opcode in [OpCode::Close, OpCode::Ping, OpCode::Pong] {
            check(&[opcode as u8], Err(WsError::ControlFragmented { opcode }));
        }
    }

    #[test]
    fn what_we_encode_parses_back() {
        for payload_len in [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 100_000] {
            for opcode in [OpCode::Text, OpCode::Binary] {
                let (bytes, len) = server_header(opcode, payload_len);
                check(&bytes[..len], Ok(Some((header(true, opcode, None, payload_len as u64), len))));
            }
        }
        let mut out = b"x".to_vec();
        encode_into(&mut out, OpCode::Text, b"Hello");
        assert_eq!(out, b"x\x81\x05Hello");
        out.clear();
        encode_masked_into(&mut out, true, OpCode::Text, [0x37, 0xfa, 0x21, 0x3d], b"Hello");
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }
}
