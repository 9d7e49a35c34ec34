//! Messages compressed and inflated for permessage-deflate (RFC 7692 section 7.2), each by itself: no context is taken over from one message to the next, so
//! a [`Deflater`] and an [`Inflater`] serve all connections of a shard, and a connection has no state of its own.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::error::WsError;
use super::utf8;

/// The base-2 logarithm of the window that we compress with: 4 KiB. Few messages are longer, JSON of 64 KiB becomes no shorter with 32 KiB, and clients with
/// little memory, who ask for a small window, are served too.
pub const WINDOW_BITS: u8 = 12;

/// How hard it is tried (docs/decisions/0034). Not 1: on random bytes that level panics in zlib-rs 0.6.8.
const LEVEL: u32 = 2;

/// RFC 7692 section 7.2.1: what the sender leaves out at the end of a message.
pub const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// What is put behind a message to inflate it: that, and an empty last block, which is read as such only where the message was whole.
const END: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];

/// Room for what is inflated, at first.
const OUT_BYTES_MIN: usize = 4096;
/// More room than this is given back by [`Inflater::rest`] and [`Deflater::rest`].
const OUT_BYTES_KEPT: usize = 256 * 1024;

/// Compresses messages.
///
/// ```
/// use shardcast::proto::ws::{Deflater, Inflater};
///
/// let message = "a message, a message, a message".as_bytes();
/// let compressed = Deflater::new().deflate(message).expect("it repeats itself").to_vec();
/// assert!(compressed.len() < message.len());
/// assert_eq!(Inflater::new().inflate(&compressed, 1000), Ok(message));
/// ```
#[derive(Debug)]
pub struct Deflater {
    state: Compress,
    out: Vec<u8>,
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Deflater {
    /// One that holds the memory of its tables.
    pub fn new() -> Self {
        Self { state: Compress::new_with_window_bits(Compression::new(LEVEL), false, WINDOW_BITS), out: Vec::new() }
    }

    /// Compresses a message: the payload of a frame with RSV1, lent until the next call. None where it would not be shorter.
    pub fn deflate(&mut self, message: &[u8]) -> Option<&[u8]> {
        self.state.reset();
        self.out.clear();
        // A byte more than may be used: where it is left over, nothing more was to come.
        self.out.reserve_exact(message.len() + TAIL.len());
        let room = self.out.capacity();
        self.state.compress_vec(message, &mut self.out, FlushCompress::Sync).ok()?;
        let is_whole = self.state.total_in() == message.len() as u64 && self.out.len() < room;
        let compressed = self.out.strip_suffix(&TAIL).filter(|compressed| is_whole && compressed.len() < message.len())?;
        Some(compressed)
    }

    /// Gives back memory that only large messages need.
    pub fn rest(&mut self) {
        give_back(&mut self.out);
    }
}

/// The most that a stored block has (RFC 1951 section 3.2.4).
const STORED_BYTES_MAX: usize = 65_535;

/// Makes what is in `out` from `start` on what [`Deflater::deflate`] would give if it did not care about the length. Of such pieces, each with [`TAIL`] behind
/// it, any choice in any order is a compressed message, but for the last tail: each begins anew and ends with a whole byte.
///
/// ```
/// use shardcast::proto::ws::Inflater;
/// use shardcast::proto::ws::deflate::{Deflater, TAIL, store};
///
/// let mut message = b"short, ".to_vec();
/// store(&mut message, 0);
/// message.extend_from_slice(&TAIL);
/// message.extend_from_slice(Deflater::new().deflate(b"long, long, long, long").expect("it repeats itself"));
/// assert_eq!(Inflater::new().inflate(&message, 1000), Ok("short, long, long, long, long".as_bytes()));
/// ```
pub fn store(out: &mut Vec<u8>, start: usize) {
    let plain = out.split_off(start);
    for block in plain.chunks(STORED_BYTES_MAX) {
        let len = block.len() as u16;
        out.push(0);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(block);
    }
    // The first byte of the empty block whose rest is the tail.
    out.push(0);
}

/// Inflates messages.
#[derive(Debug)]
pub struct Inflater {
    state: Decompress,
    out: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    /// One that holds the memory of its window.
    pub fn new() -> Self {
        Self { state: Decompress::new(false), out: Vec::new() }
    }

    /// Inflates a message of at most `bytes_max`, which is lent until the next call. Memory grows with what really comes out.
    ///
    /// # Errors
    /// 1009 at the first byte too many, 1007 for what is not DEFLATE or not all of it.
    pub fn inflate(&mut self, compressed: &[u8], bytes_max: u64) -> Result<&[u8], WsError> {
        let most = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        self.out.clear();
        self.state.reset(false);
        // A message without a byte is an empty one, as that without a block is.
        let (mut rest, mut ends) = (compressed, compressed.is_empty());
        loop {
            if self.out.len() == self.out.capacity() {
                // One more than allowed shows that there are too many.
                let target = (2 * self.out.capacity()).max(OUT_BYTES_MIN).min(most.saturating_add(1));
                self.out.reserve_exact(target.saturating_sub(self.out.len()).max(1));
            }
            if rest.is_empty() && ends {
                return if compressed.is_empty() { Ok(&[]) } else { Err(WsError::NotDeflate) };
            }
            let taken_before = self.state.total_in();
            let status = self.state.decompress_vec(rest, &mut self.out, FlushDecompress::None).map_err(|_| WsError::NotDeflate)?;
            rest = &rest[(self.state.total_in() - taken_before) as usize..];
            if self.out.len() > most {
                return Err(WsError::InflatesTooBig { bytes: compressed.len() as u64, limit: bytes_max });
            }
            let is_full = self.out.len() == self.out.capacity();
            match status {
                Status::StreamEnd if ends => return if rest.is_empty() { Ok(&self.out) } else { Err(WsError::NotDeflate) },
                // RFC 7692 section 7.2.3.4: a sender may end its blocks with a last one; whether more follow or not.
                Status::StreamEnd if rest.is_empty() => return Ok(&self.out),
                Status::StreamEnd => self.state.reset(false),
                Status::Ok | Status::BufError if is_full => {}
                Status::Ok | Status::BufError if rest.is_empty() && !ends => (rest, ends) = (&END, true),
                Status::Ok | Status::BufError if !rest.is_empty() => return Err(WsError::NotDeflate),
                Status::Ok | Status::BufError => {}
            }
        }
    }

    /// The same for text.
    ///
    /// # Errors
    /// The same, and 1007 for what is not UTF-8.
    pub fn inflate_text(&mut self, compressed: &[u8], bytes_max: u64) -> Result<&[u8], WsError> {
        let text = self.inflate(compressed, bytes_max)?;
        utf8::validate(text)?;
        Ok(text)
    }

    /// Gives back memory that only large messages need.
    pub fn rest(&mut self) {
        give_back(&mut self.out);
    }
}

fn give_back(out: &mut Vec<u8>) {
    if out.capacity() > OUT_BYTES_KEPT {
        *out = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflated(compressed: &[u8]) -> Result<Vec<u8>, WsError> {
        Inflater::new().inflate(compressed, 65_536).map(<[u8]>::to_vec)
    }

    /// What a sender makes of a message that ends its blocks with a last one.
    fn finished(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(message.len() + 64);
        let mut state = Compress::new(Compression::new(6), false);
        state.compress_vec(message, &mut out, FlushCompress::Finish).expect("there is room");
        out
    }

    /// RFC 7692 section 7.2.3.
    #[test]
    fn the_examples_of_the_rfc_are_inflated() {
        let hello = Ok(b"Hello".to_vec());
        assert_eq!(inflated(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]), hello, "7.2.3.1");
        assert_eq!(inflated(&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]), hello, "7.2.3.3: no compression");
        assert_eq!(inflated(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]), hello, "7.2.3.4: a last block");
        assert_eq!(inflated(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]), hello, "a last block, and nothing behind it");
        let two = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflated(&two), hello, "7.2.3.5: two blocks");
        assert_eq!(inflated(&[0x00]), Ok(Vec::new()), "7.2.3.6: an empty message");
        assert_eq!(inflated(&[]), Ok(Vec::new()), "the same, by a sender who leaves that byte out too");
    }

    #[test]
    fn what_is_deflated_inflates_to_what_it_was_and_is_shorter() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let json = r#"{"type":"message","topic":"news","pos":"k3f9.17","data":{"symbol":"ABC","price":17.25}}"#;
        for len in [160, 1000, 4097, 65_536] {
            let message = &json.repeat(1000).into_bytes()[..len];
            let compressed = deflater.deflate(message).expect("it repeats itself");
            assert!(compressed.len() < len);
            assert_eq!(inflater.inflate(compressed, 65_536), Ok(message), "{len} bytes");
        }
        assert_eq!(deflater.deflate(b""), None);
    }

    #[test]
    fn nothing_is_taken_over_from_the_message_before() {
        let mut deflater = Deflater::new();
        let message = b"one and one and one is three";
        let first = deflater.deflate(message).expect("it repeats itself").to_vec();
        let second = deflater.deflate(message).expect("it repeats itself").to_vec();
        assert_eq!(first, second);
        let mut inflater = Inflater::new();
        assert!(inflater.inflate(&first[..first.len() / 2], 100).is_err());
        assert_eq!(inflater.inflate(&second, 100), Ok(&message[..]), "nor from one that failed");
    }

    #[test]
    fn what_would_not_be_shorter_is_left_as_it_is() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(70_000)
        .collect();
        let mut deflater = Deflater::new();
        for len in [1, 5, 100, 4096, 65_536, 70_000] {
            assert_eq!(deflater.deflate(&noise[..len]), None, "{len} bytes of noise");
        }
    }

    #[test]
    fn a_message_of_the_limit_is_inflated_and_one_byte_more_closes_1009_with_both_numbers() {
        let zeros = finished(&[0; 65_536]);
        assert_eq!(inflated(&zeros).map(|zeros| zeros.len()), Ok(65_536));
        let more = finished(&[0; 65_537]);
        let error = inflated(&more).expect_err("it is over the limit");
        assert_eq!(error, WsError::InflatesTooBig { bytes: more.len() as u64, limit: 65_536 });
        assert_eq!(error.close_code().0, 1009);
    }

    #[test]
    fn a_bomb_costs_the_limit_and_no_more_memory() {
        let bomb = finished(&vec![0; 64 << 20]);
        assert!(bomb.len() < 70_000, "64 MiB in {} bytes", bomb.len());
        let mut inflater = Inflater::new();
        assert!(matches!(inflater.inflate(&bomb, 65_536), Err(WsError::InflatesTooBig { .. })));
        assert!(inflater.out.capacity() <= 65_537 + OUT_BYTES_MIN, "{} bytes", inflater.out.capacity());
        assert!(inflater.inflate(&bomb, 8 << 20).is_err() && inflater.out.capacity() > 4 << 20);
        inflater.rest();
        assert_eq!(inflater.out.capacity(), 0);
    }

    #[test]
    fn what_is_not_deflate_or_not_whole_closes_1007() {
        let message = b"a message that is cut, a message that is cut off somewhere in the middle of its blocks".repeat(3);
        let compressed = Deflater::new().deflate(&message).expect("it repeats itself").to_vec();
        for cut in 1..compressed.len() {
            assert_eq!(inflated(&compressed[..cut]), Err(WsError::NotDeflate), "cut at {cut}");
        }
        for bad in [&b"\xff\xff\xff"[..], b"\x06", b"Hello", b"\x00\x05\x00\xfa\xfeHello\x00", b"\x00\x05\x00\xfa\xffHe"] {
            assert_eq!(inflated(bad), Err(WsError::NotDeflate), "{bad:02x?}");
        }
        assert_eq!(WsError::NotDeflate.close_code().0, 1007);
    }

    #[test]
    fn text_is_looked_at_when_it_is_inflated() {
        let mut inflater = Inflater::new();
        assert_eq!(inflater.inflate_text(&finished("grün".as_bytes()), 100), Ok("grün".as_bytes()));
        assert_eq!(inflater.inflate_text(&finished(b"gr\xfcn"), 100), Err(WsError::InvalidUtf8));
    }
}
