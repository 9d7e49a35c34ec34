//! UTF-8 that comes in pieces, refused at its first impossible byte (RFC 6455 section 8.1).

/// The text is not UTF-8, whatever may follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not UTF-8")]
pub struct InvalidUtf8;

/// Validates a text over any cuts, also within a character. Keeps at most the 3 first bytes of a character that is not complete.
///
/// ```
/// use shardcast::proto::ws::utf8::Utf8Stream;
///
/// let mut stream = Utf8Stream::new();
/// assert!(stream.feed(b"gr\xc3").is_ok()); // the first byte of an ü
/// assert!(stream.feed(b"\xbcn").is_ok());
/// assert!(stream.feed(b"\xed\xa0").is_err()); // no character starts like this: a surrogate
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Utf8Stream {
    pending: [u8; 3],
    pending_len: u8,
}

impl Utf8Stream {
    /// Nothing seen yet.
    pub const fn new() -> Self {
        Self { pending: [0; 3], pending_len: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When no text can begin with what has been fed so far; the stream must not be fed again.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), InvalidUtf8> {
        let bytes = self.complete_pending(bytes)?;
        match simdutf8::compat::from_utf8(bytes) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(InvalidUtf8),
            // `error_len` is None only for the start of a character at the very end, whose bytes so far are possible.
            Err(error) => self.keep(&bytes[error.valid_up_to()..]),
        }
    }

    /// Ends the text.
    ///
    /// # Errors
    /// When it ends within a character.
    pub fn finish(self) -> Result<(), InvalidUtf8> {
        if self.pending_len == 0 { Ok(()) } else { Err(InvalidUtf8) }
    }

    /// Feeds the character that the last piece began, byte by byte; returns what follows it.
    fn complete_pending<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        while self.pending_len > 0 {
            let Some((&next, rest)) = bytes.split_first() else { break };
            bytes = rest;
            let len = usize::from(self.pending_len);
            let mut character = [0; 4];
            character[..len].copy_from_slice(&self.pending[..len]);
            character[len] = next;
            match str::from_utf8(&character[..=len]) {
                Ok(_) => self.pending_len = 0,
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => self.keep(&character[..=len])?,
            }
        }
        Ok(bytes)
    }

    fn keep(&mut self, start_of_character: &[u8]) -> Result<(), InvalidUtf8> {
        let len = start_of_character.len();
        self.pending.get_mut(..len).ok_or(InvalidUtf8)?.copy_from_slice(start_of_character);
        self.pending_len = len as u8;
        Ok(())
    }
}

/// Validates a text that is there as a whole; faster than a stream.
///
/// # Errors
/// When it is not UTF-8.
pub fn validate(bytes: &[u8]) -> Result<(), InvalidUtf8> {
    simdutf8::basic::from_utf8(bytes).map(|_| ()).map_err(|_| InvalidUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the shortest prefix that `pieces`, fed one by one, are refused at; `Ok` says whether the text may end there.
    fn feed(pieces: &[&[u8]]) -> Result<bool, usize> {
        let mut stream = Utf8Stream::new();
        let mut fed = 0;
        for piece in pieces {
            fed += piece.len();
            stream.feed(piece).map_err(|_| fed)?;
        }
        Ok(stream.finish().is_ok())
    }

    fn bytewise(bytes: &[u8]) -> Result<bool, usize> {
        feed(&bytes.chunks(1).collect::<Vec<_>>())
    }

    /// Autobahn 6.4: the byte that makes it impossible is the one that fails it.
    #[test]
    fn text_fails_at_the_first_impossible_byte() {
        for (bytes, expect) in [
            (&b""[..], Ok(true)),
            ("κόσμε🦀".as_bytes(), Ok(true)),
            (b"\xf0\x9f\xa6", Ok(false)),
            (b"\xf4\x8f\xbf\xbf", Ok(true)),
            (b"\xce\xba\xf4\x90\x80\x80", Err(4)),
            (b"\xed\x9f\xbf", Ok(true)),
            (b"\xed\xa0\x80", Err(2)),
            (b"\xc0\xaf", Err(1)),
            (b"\xc1", Err(1)),
            (b"\xe0\x9f", Err(2)),
            (b"\xe0\xa0", Ok(false)),
            (b"\xf0\x8f", Err(2)),
            (b"\xf5", Err(1)),
            (b"\xff", Err(1)),
            (b"\x80", Err(1)),
            (b"\xc3\x28", Err(2)),
            (b"\xe2\x82\x28", Err(3)),
            (b"\xf0\x9f\xa6\x28", Err(4)),
            (b"a\xf0\x9f\xa6\x80\xbf", Err(6)),
        ] {
            assert_eq!(bytewise(bytes), expect, "{bytes:02x?}");
        }
    }

    /// All of the 1-, 2- and 3-byte sequences, and 4-byte ones over the bytes where rules change, in every way to cut them.
    #[test]
    fn cuts_make_no_difference() {
        const EDGES: [u8; 22] = [
            0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xee, 0xef, 0xf0, 0xf4, 0xf5,
            0xff,
        ];
        let check = |bytes: &[u8]| {
            let expect = match str::from_utf8(bytes) {
                Ok(_) => Ok(true),
                Err(error) if error.error_len().is_none() => Ok(false),
                Err(_) => Err(()),
            };
            assert_eq!(feed(&[bytes]).map_err(|_| ()), expect, "{bytes:02x?} whole");
            assert_eq!(bytewise(bytes).map_err(|_| ()), expect, "{bytes:02x?} bytewise");
            for cut in 1..bytes.len() {
                assert_eq!(feed(&[&bytes[..cut], &bytes[cut..]]).map_err(|_| ()), expect, "{bytes:02x?} cut at {cut}");
            }
            assert_eq!(validate(bytes).is_ok(), expect == Ok(true), "{bytes:02x?} validate");
        };
        for first in 0..=255 {
            check(&[first]);
            for second in 0..=255 {
                check(&[first, second]);
                for third in EDGES {
                    check(&[first, second, third]);
                }
            }
        }
        for number in 0..EDGES.len().pow(4) {
            check(&std::array::from_fn::<u8, 4, _>(|digit| EDGES[number / EDGES.len().pow(digit as u32) % EDGES.len()]));
        }
    }

    #[test]
    fn long_text_cut_anywhere_is_valid_and_one_bad_byte_is_found() {
        let text = "abc ü 部屋 🦀 ".repeat(40);
        let bytes = text.as_bytes();
        for cut in 0..=bytes.len() {
            assert_eq!(feed(&[&bytes[..cut], &bytes[cut..]]), Ok(true), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut broken = bytes.to_vec();
            broken[at] = 0xff;
            assert!(feed(&[&broken]).is_err() && feed(&[&broken[..at], &broken[at..]]).is_err(), "0xff at {at}");
        }
    }
}
