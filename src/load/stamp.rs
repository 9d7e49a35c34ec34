//! What the generator writes at the front of each message to know it again: who sent it, which one it is, when it was due.
//!
//! ```text
//!  binary   "SCB1"  publisher: 4 bytes  sequence: 4 bytes  due: 8 bytes          big endian, 20 bytes
//!  text     "SCB1"  the same numbers in hexadecimal digits                       36 bytes
//! ```
//!
//! Behind it comes filler, the same in all messages of a run. A server that wraps messages into something of its own (JSON, say) is fine: the stamp is looked for near the front.

use clap::ValueEnum;

use crate::time::Time;

const MARK: &[u8; 4] = b"SCB1";
const BINARY_BYTES: usize = 20;
const TEXT_BYTES: usize = 36;
/// How far behind the front of a message the stamp may begin.
const SEARCH_BYTES: usize = 512;

/// One message's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub(super) publisher: u32,
    pub(super) sequence: u32,
    pub(super) due: Time,
}

/// What is behind the stamp.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Filler {
    /// Dots
    Dots,
    /// JSON, as a feed of prices has it
    Json,
}

impl Filler {
    /// A message of this size, for stamps to be written over its front.
    pub(super) fn message(self, text: bool, bytes: usize) -> Vec<u8> {
        let mut message = vec![b'.'; Stamp::bytes(text).min(bytes)];
        if self == Self::Json {
            let mut random = fastrand::Rng::with_seed(7);
            while message.len() < bytes {
                let symbol: String = (0..4).map(|_| random.uppercase()).collect();
                let [bid, ask, size, time] = [10_000, 10_000, 1000, 60_000].map(|below| random.u32(0..below));
                let quote = format!(
                    "{{\"symbol\":\"{symbol}\",\"bid\":{}.{:02},\"ask\":{}.{:02},\"size\":{size},\"time\":\"12:30:{:02}.{:03}\"}},",
                    bid / 100,
                    bid % 100,
                    ask / 100,
                    ask % 100,
                    time / 1000,
                    time % 1000
                );
                message.extend_from_slice(quote.as_bytes());
            }
        }
        message.resize(bytes, b'.');
        message
    }
}

impl Stamp {
    /// The smallest message.
    pub(super) const fn bytes(text: bool) -> usize {
        if text { TEXT_BYTES } else { BINARY_BYTES }
    }

    /// Writes it over the front of a message.
    pub(super) fn write(self, text: bool, message: &mut [u8]) {
        message[..4].copy_from_slice(MARK);
        let mut binary = [0; 16];
        binary[..4].copy_from_slice(&self.publisher.to_be_bytes());
        binary[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        binary[8..].copy_from_slice(&self.due.as_nanos().to_be_bytes());
        if text {
            for (digits, byte) in message[4..TEXT_BYTES].as_chunks_mut::<2>().0.iter_mut().zip(binary) {
                *digits = [digit(byte >> 4), digit(byte & 0xf)];
            }
        } else {
            message[4..BINARY_BYTES].copy_from_slice(&binary);
        }
    }

    /// Finds it in a message; `None` when the message is none of ours.
    pub(super) fn read(text: bool, message: &[u8]) -> Option<Self> {
        let at = if message.starts_with(MARK) { 0 } else { memchr::memmem::find(&message[..message.len().min(SEARCH_BYTES)], MARK)? };
        let body = &message[at + MARK.len()..];
        let mut binary = [0; 16];
        if text {
            for (byte, digits) in binary.iter_mut().zip(body.get(..TEXT_BYTES - MARK.len())?.as_chunks::<2>().0) {
                *byte = value(digits[0])? << 4 | value(digits[1])?;
            }
        } else {
            binary.copy_from_slice(body.get(..BINARY_BYTES - MARK.len())?);
        }
        let word = |at: usize| u32::from_be_bytes([binary[at], binary[at + 1], binary[at + 2], binary[at + 3]]);
        Some(Self { publisher: word(0), sequence: word(4), due: Time::from_nanos(u64::from(word(8)) << 32 | u64::from(word(12))) })
    }
}

const fn digit(nibble: u8) -> u8 {
    b"0123456789abcdef"[nibble as usize]
}

const fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { publisher: 0x0102_0304, sequence: 0xfffe_fdfc, due: Time::from_nanos(0x0011_2233_4455_6677) };

    #[test]
    fn what_is_written_is_read_back_also_out_of_a_wrapping() {
        for text in [false, true] {
            let mut message = vec![b'x'; Stamp::bytes(text) + 5];
            STAMP.write(text, &mut message);
            assert_eq!(Stamp::read(text, &message), Some(STAMP));
            assert_eq!(message.iter().all(u8::is_ascii_graphic), text);
            let wrapped = [b"{\"from\":1,\"data\":\"", message.as_slice(), b"\"}"].concat();
            assert_eq!(Stamp::read(text, &wrapped), Some(STAMP));
            for cut in 0..Stamp::bytes(text) {
                assert_eq!(Stamp::read(text, &message[..cut]), None);
            }
        }
    }

    #[test]
    fn a_message_is_as_long_as_asked_for_and_keeps_its_filler_behind_the_stamp() {
        for (filler, text, bytes) in
            [(Filler::Dots, true, 36), (Filler::Json, true, 36), (Filler::Json, false, 1024), (Filler::Dots, false, 30)]
        {
            let mut message = filler.message(text, bytes);
            assert_eq!(message.len(), bytes);
            STAMP.write(text, &mut message);
            assert_eq!(Stamp::read(text, &message), Some(STAMP));
        }
        let json = String::from_utf8(Filler::Json.message(true, 1024)).expect("text");
        assert!(json.matches("\"symbol\":").count() > 10, "{json}");
    }

    #[test]
    fn a_message_of_somebody_else_has_none() {
        assert_eq!(Stamp::read(true, b"welcome"), None);
        assert_eq!(Stamp::read(true, b"SCB1not hexadecimal digits at all, or so"), None);
        assert_eq!(Stamp::read(false, b""), None);
    }
}
