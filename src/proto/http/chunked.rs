//! Chunked bodies (RFC 9112 section 7.1), as they come.
//!
//! Framing is read to the letter: what another server might read otherwise is an error, because then the two would disagree about where the
//! next request starts (section 11.2). Extensions and trailers mean nothing here (sections 7.1.1 and 7.1.2 let them be dropped) and are bounded
//! over the whole body, so that a small body never makes its reader read much.
//!
//! ```text
//! 5;name=value\r\n     size in hex, extensions          Size, Extension, SizeEnd
//! hello\r\n            that many bytes                  Data, DataEnd
//! 0\r\n                the last chunk                   Size …
//! Name: value\r\n      trailers                         Trailer…
//! \r\n                 the end of the body              LastEnd
//! ```

use super::is_token;

/// Bytes of chunk extensions in one body. Known clients send none, or a signature of about 85 bytes for each chunk of 64 KiB and more.
pub const EXTENSION_BYTES_MAX: usize = 16 << 10;

/// Bytes of trailers in one body.
pub const TRAILER_BYTES_MAX: usize = 8 << 10;

/// A 64-bit size.
const SIZE_DIGITS_MAX: u8 = 16;

/// Decodes one body. A few words of state; the bytes go to the caller's buffer.
///
/// ```
/// use shardcast::proto::http::{ChunkedDecoder, Dechunked};
///
/// let mut decoder = ChunkedDecoder::new();
/// let mut body = Vec::new();
/// assert_eq!(decoder.decode(b"5\r\nhel", &mut body, 64)?, Dechunked { consumed: 6, done: false });
/// assert_eq!(decoder.decode(b"lo\r\n0\r\n\r\nGET /", &mut body, 64)?, Dechunked { consumed: 9, done: true });
/// assert_eq!(body, b"hello");
/// # Ok::<(), shardcast::proto::http::ChunkError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// Bytes of body so far.
    body_bytes: usize,
    extension_bytes: usize,
    trailer_bytes: usize,
}

/// What [`ChunkedDecoder::decode`] took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dechunked {
    /// Bytes taken from the front of the input; all of them while `done` is false.
    pub consumed: usize,
    /// The body has ended: the next request starts after what was consumed.
    pub done: bool,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A size of which so many digits have come.
    Size {
        size: u64,
        digits: u8,
    },
    /// White space after the size: an extension must follow.
    SizeSpace {
        size: u64,
    },
    /// An extension.
    Extension {
        size: u64,
    },
    /// The LF after a size.
    SizeEnd {
        size: u64,
    },
    /// So many bytes of the chunk, at least one.
    Data {
        left: u64,
    },
    /// The CR after a chunk.
    DataCr,
    /// The LF after a chunk.
    DataLf,
    /// The first byte of a trailer, or the CR of the end.
    TrailerStart,
    /// The name of a trailer.
    TrailerName,
    /// Its value.
    TrailerValue,
    /// The LF after a trailer.
    TrailerLf,
    /// The LF of the end.
    LastLf,
    Done,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl ChunkedDecoder {
    /// A decoder before the first byte of the body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` up to the end of the body, and appends what is body to `out`, which grows only by bytes that are
    /// there. `max` bounds the body, in bytes.
    ///
    /// # Errors
    /// At the first byte that breaks the framing or a bound; a chunk that would lead over `max` at its announcement. The connection is then closed
    /// after [`ChunkError::status`], and the decoder must not be used again: where the next request starts is unknown.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>, max: usize) -> Result<Dechunked, ChunkError> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                out.extend_from_slice(&input[at..at + len]);
                at += len;
                self.body_bytes += len;
                let left = left - len as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                self.state = self.step(input[at], max)?;
                at += 1;
            }
        }
        Ok(Dechunked { consumed: at, done: self.state == State::Done })
    }

    /// One byte of framing.
    fn step(&mut self, byte: u8, max: usize) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(ChunkError::SizeTooLong);
                }
                let digit = char::from(byte).to_digit(16).expect("the pattern has hex digits only");
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, byte) => return Err(ChunkError::Size { byte }),
            (State::Size { size, .. } | State::Extension { size }, b'\r') => State::SizeEnd { size },
            // RFC 9112 section 7.1.1: white space is allowed around the semicolon, and by its grammar nowhere else.
            (State::Size { size, .. } | State::SizeSpace { size }, b' ' | b'\t') => self.extension(State::SizeSpace { size })?,
            (State::Size { size, .. } | State::SizeSpace { size }, b';') => self.extension(State::Extension { size })?,
            (State::Size { .. } | State::SizeSpace { .. }, byte) => return Err(ChunkError::Size { byte }),
            (State::Extension { size }, byte) if is_field_byte(byte) => self.extension(State::Extension { size })?,
            (State::Extension { .. }, byte) => return Err(ChunkError::Extension { byte }),
            (State::SizeEnd { size }, b'\n') => self.begin_chunk(size, max)?,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::DataCr | State::DataLf, byte) => return Err(ChunkError::DataEnd { byte }),
            (State::TrailerStart, b'\r') => State::LastLf,
            // An obs-fold, a space in front, is no trailer either (RFC 9112 section 5.2).
            (State::TrailerStart | State::TrailerName, byte) if is_token(&[byte]) => self.trailer(State::TrailerName)?,
            (State::TrailerName, b':') => self.trailer(State::TrailerValue)?,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, byte) if is_field_byte(byte) => self.trailer(State::TrailerValue)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::TrailerStart | State::TrailerName | State::TrailerValue, byte) => return Err(ChunkError::Trailer { byte }),
            (State::LastLf, b'\n') => State::Done,
            (State::SizeEnd { .. } | State::TrailerLf | State::LastLf, byte) => return Err(ChunkError::LineEnd { byte }),
            (State::Data { .. } | State::Done, _) => unreachable!("decode() takes data, and nothing after the end"),
        })
    }

    fn begin_chunk(&self, size: u64, max: usize) -> Result<State, ChunkError> {
        // Before a byte of it is kept: a size that is only announced costs nothing.
        match usize::try_from(size).ok().and_then(|size| size.checked_add(self.body_bytes)) {
            _ if size == 0 => Ok(State::TrailerStart),
            Some(total) if total <= max => Ok(State::Data { left: size }),
            _ => Err(ChunkError::TooLarge { limit: max }),
        }
    }

    fn extension(&mut self, next: State) -> Result<State, ChunkError> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX { Err(ChunkError::ExtensionsTooLong) } else { Ok(next) }
    }

    fn trailer(&mut self, next: State) -> Result<State, ChunkError> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX { Err(ChunkError::TrailersTooLong) } else { Ok(next) }
    }
}

/// Why a chunked body is refused. The peer is at fault in all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChunkError {
    /// Over the caller's limit.
    #[error("body is over {limit} bytes; send less, or in parts")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// No hex digit, semicolon or CR where one must be.
    #[error("chunk size has the byte 0x{byte:02x}; it is hex digits and CRLF (RFC 9112 section 7.1)")]
    Size {
        /// The byte.
        byte: u8,
    },
    /// Over 16 digits.
    #[error("chunk size has over {SIZE_DIGITS_MAX} hex digits")]
    SizeTooLong,
    /// A control character.
    #[error("chunk extension has the byte 0x{byte:02x} (RFC 9112 section 7.1.1)")]
    Extension {
        /// The byte.
        byte: u8,
    },
    /// Over [`EXTENSION_BYTES_MAX`].
    #[error("chunk extensions are over {EXTENSION_BYTES_MAX} bytes; they are not used here: leave them out")]
    ExtensionsTooLong,
    /// A chunk that is longer than its size.
    #[error("chunk is followed by the byte 0x{byte:02x}, not by CRLF: its size is wrong (RFC 9112 section 7.1)")]
    DataEnd {
        /// The byte.
        byte: u8,
    },
    /// Not `Name: value`.
    #[error("trailer has the byte 0x{byte:02x} (RFC 9112 section 7.1.2)")]
    Trailer {
        /// The byte.
        byte: u8,
    },
    /// Over [`TRAILER_BYTES_MAX`].
    #[error("trailers are over {TRAILER_BYTES_MAX} bytes; they are not used here: leave them out")]
    TrailersTooLong,
    /// A CR without its LF.
    #[error("CR is followed by the byte 0x{byte:02x}, not by LF (RFC 9112 section 7.1)")]
    LineEnd {
        /// The byte.
        byte: u8,
    },
}

impl ChunkError {
    /// The status to answer with; the connection is closed after it.
    pub const fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            // RFC 6585 section 5: trailers are fields too.
            Self::TrailersTooLong => 431,
            Self::Size { .. }
            | Self::SizeTooLong
            | Self::Extension { .. }
            | Self::ExtensionsTooLong
            | Self::DataEnd { .. }
            | Self::Trailer { .. }
            | Self::LineEnd { .. } => 400,
        }
    }
}

/// What a field value and a quoted string may hold: no control character but the tab (RFC 9110 section 5.5).
fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(Vec<u8>, usize, bool), ChunkError>;

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, max: usize) -> Outcome {
        let (mut decoder, mut out, mut consumed) = (ChunkedDecoder::new(), Vec::new(), 0);
        for piece in pieces {
            let taken = decoder.decode(piece, &mut out, max)?;
            consumed += taken.consumed;
            assert!(taken.done || taken.consumed == piece.len());
            if taken.done {
                return Ok((out, consumed, true));
            }
        }
        Ok((out, consumed, false))
    }

    /// The outcome of the whole, which is the same however the input is cut: in two, and byte by byte.
    fn outcome(input: &[u8], max: usize) -> Outcome {
        let whole = decode([input], max);
        for cut in (0..=input.len()).step_by(input.len().div_ceil(200).max(1)) {
            assert_eq!(decode([&input[..cut], &input[cut..]], max), whole, "{:?} cut at {cut}", String::from_utf8_lossy(input));
        }
        assert_eq!(decode(input.chunks(1), max), whole, "{:?} byte by byte", String::from_utf8_lossy(input));
        whole
    }

    fn body(input: &[u8], expect: &[u8]) {
        assert_eq!(outcome(input, 64), Ok((expect.to_vec(), input.len(), true)), "{:?}", String::from_utf8_lossy(input));
        let next = [input, b"GET /".as_slice()].concat();
        assert_eq!(outcome(&next, 64), Ok((expect.to_vec(), input.len(), true)), "the next request is not touched");
        for end in 0..input.len() {
            let cut = outcome(&input[..end], 64).expect("the beginning of a good body is no error");
            assert!(!cut.2 && cut.1 == end && expect.starts_with(&cut.0), "it is not over before its last byte");
        }
    }

    #[test]
    fn a_body_is_its_chunks_together() {
        body(b"0\r\n\r\n", b"");
        body(b"5\r\nhello\r\n0\r\n\r\n", b"hello");
        body(b"5\r\nhello\r\n1\r\n \r\n05\r\nworld\r\n000\r\n\r\n", b"hello world");
        body(b"a\r\n0123456789\r\nA\r\n\r\n0\r\n\r\n0\r\n\r\n0\r\n\r\n", b"0123456789\r\n0\r\n\r\n0\r\n");
        body(b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x");
    }

    #[test]
    fn extensions_and_trailers_are_dropped() {
        body(b"5;a\r\nhello\r\n0;b=\"c;\t\\\"\xc3\xbc\"\r\n\r\n", b"hello");
        body(b"5 \t; a = b\r\nhello\r\n0\r\n\r\n", b"hello");
        body(b"0\r\nA:\r\nDigest: x y\tz \xff\r\n\r\n", b"");
    }

    #[test]
    fn what_another_server_might_read_otherwise_is_refused() {
        use ChunkError::{DataEnd, Extension, LineEnd, Size, SizeTooLong, Trailer};
        for (input, error) in [
            (&b"\r\n"[..], Size { byte: b'\r' }),
            (b"x", Size { byte: b'x' }),
            (b";a\r\n", Size { byte: b';' }),
            (b" 5\r\n", Size { byte: b' ' }),
            (b"-5\r\n", Size { byte: b'-' }),
            (b"+5\r\n", Size { byte: b'+' }),
            (b"0x5\r\n", Size { byte: b'x' }),
            (b"5_0\r\n", Size { byte: b'_' }),
            (b"5\n", Size { byte: b'\n' }),
            (b"5 \r\n", Size { byte: b'\r' }),
            (b"5 5\r\n", Size { byte: b'5' }),
            (b"00000000000000005\r\n", SizeTooLong),
            (b"5\rx", LineEnd { byte: b'x' }),
            (b"5\r\r\n", LineEnd { byte: b'\r' }),
            (b"5;a\n", Extension { byte: b'\n' }),
            (b"5;a\0", Extension { byte: 0 }),
            (b"5;a\rb", LineEnd { byte: b'b' }),
            (b"5\r\nhellox", DataEnd { byte: b'x' }),
            (b"5\r\nhello\n", DataEnd { byte: b'\n' }),
            (b"5\r\nhello\rx", DataEnd { byte: b'x' }),
            (b"0\r\n\n", Trailer { byte: b'\n' }),
            (b"0\r\n\rx", LineEnd { byte: b'x' }),
            (b"0\r\n A: b\r\n", Trailer { byte: b' ' }),
            (b"0\r\n: b\r\n", Trailer { byte: b':' }),
            (b"0\r\nA b\r\n", Trailer { byte: b' ' }),
            (b"0\r\nA\r\n", Trailer { byte: b'\r' }),
            (b"0\r\nA: b\n", Trailer { byte: b'\n' }),
            (b"0\r\nA: b\rc", LineEnd { byte: b'c' }),
            (b"0\r\nGET / HTTP/1.1\r\n", Trailer { byte: b' ' }),
        ] {
            assert_eq!(outcome(input, 64), Err(error), "{:?}", String::from_utf8_lossy(input));
            assert_eq!(error.status(), 400);
            let before = decode([&input[..input.len() - 1]], 64);
            assert!(before.is_ok() || input.ends_with(b"\n"), "not before the byte that shows it: {before:?}");
        }
    }

    #[test]
    fn a_body_over_the_limit_is_refused_when_it_is_announced() {
        let limit = |limit| Err(ChunkError::TooLarge { limit });
        assert_eq!(outcome(b"4\r\nfour\r\n0\r\n\r\n", 4), Ok((b"four".to_vec(), 14, true)));
        assert_eq!(outcome(b"5\r\n", 4), limit(4));
        assert_eq!(outcome(b"4\r\nfour\r\n1\r\n", 4), limit(4));
        assert_eq!(outcome(b"1\r\n", 0), limit(0));
        for size in ["ffffffffffffffff", "FFFFFFFFFFFFFFFE", "7fffffffffffffff"] {
            assert_eq!(outcome(format!("1\r\nx\r\n{size}\r\n").as_bytes(), 64), limit(64));
        }
        assert_eq!(ChunkError::TooLarge { limit: 4 }.status(), 413);
        // The limit is on this body alone, whatever `out` held before.
        let mut out = vec![0; 100];
        let taken = ChunkedDecoder::new().decode(b"4\r\nfour\r\n0\r\n\r\n", &mut out, 4);
        assert_eq!((taken, out.len()), (Ok(Dechunked { consumed: 14, done: true }), 104));
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_the_whole_body() {
        let extended = |bytes: usize| [b"1;".to_vec(), vec![b'e'; bytes - 1], b"\r\nx\r\n".to_vec()].concat();
        let half = extended(EXTENSION_BYTES_MAX / 2);
        let full = [half.clone(), half, b"0\r\n\r\n".to_vec()].concat();
        assert_eq!(outcome(&full, 64).map(|(body, ..)| body), Ok(b"xx".to_vec()));
        assert_eq!(outcome(&[extended(EXTENSION_BYTES_MAX), b"0;".to_vec()].concat(), 64), Err(ChunkError::ExtensionsTooLong));
        let trailer = |bytes: usize| [b"0\r\nA:".to_vec(), vec![b't'; bytes - 2], b"\r\n\r\n".to_vec()].concat();
        assert_eq!(outcome(&trailer(TRAILER_BYTES_MAX), 64).map(|(.., done)| done), Ok(true));
        assert_eq!(outcome(&trailer(TRAILER_BYTES_MAX + 1), 64), Err(ChunkError::TrailersTooLong));
        assert_eq!((ChunkError::TrailersTooLong.status(), ChunkError::ExtensionsTooLong.status()), (431, 400));
    }

    #[test]
    fn a_decoder_that_is_done_takes_nothing_more() {
        let mut decoder = ChunkedDecoder::new();
        let mut out = Vec::new();
        assert!(decoder.decode(b"0\r\n\r\n", &mut out, 64).expect("a body").done);
        assert_eq!(decoder.decode(b"5\r\n", &mut out, 64), Ok(Dechunked { consumed: 0, done: true }));
    }
}
