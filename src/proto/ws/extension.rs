//! Which extensions are agreed to in the opening handshake: permessage-deflate (RFC 7692 section 7.1), or none.
//!
//! We take over no context, and ask the same of the client: then a message is compressed once for all who get it, and a connection has no state for it.

use std::num::NonZeroU8;

use super::super::http::is_token;
use super::deflate::WINDOW_BITS;

const DEFLATE: &str = "permessage-deflate";

/// RFC 7692 section 7.1.2: the largest window, which is what nobody having said anything means.
const WINDOW_BITS_MAX: u8 = 15;

/// permessage-deflate, as it was agreed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The base-2 logarithm of the largest window that the client can inflate with, where it has set a bound.
    pub server_max_window_bits: Option<u8>,
}

/// What is to be known of it once the connection is open: the largest window that the client can inflate with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window(NonZeroU8);

impl Window {
    /// One of this base-2 logarithm, from 8 to 15.
    pub fn of_bits(bits: u8) -> Option<Self> {
        NonZeroU8::new(bits).filter(|_| (8..=WINDOW_BITS_MAX).contains(&bits)).map(Self)
    }

    /// Its base-2 logarithm.
    pub fn bits(self) -> u8 {
        self.0.get()
    }

    /// Whether the client can inflate what we compress. If not its own messages are inflated, and it is sent none: a message need not be compressed
    /// (RFC 7692 section 6).
    pub fn takes_ours(self) -> bool {
        self.bits() >= WINDOW_BITS
    }
}

impl Agreed {
    /// What is to be known of it from now on.
    pub fn window(self) -> Window {
        let bits = self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
        Window::of_bits(bits).expect("other bounds are declined")
    }

    /// Appends the value of the answer's Sec-WebSocket-Extensions.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"permessage-deflate; server_no_context_takeover; client_no_context_takeover");
        if let Some(bits) = self.server_max_window_bits {
            // RFC 7692 section 7.1.2.1: a bound is accepted by being said again.
            out.extend_from_slice(format!("; server_max_window_bits={bits}").as_bytes());
        }
    }
}

/// A Sec-WebSocket-Extensions that does not follow the grammar (RFC 6455 section 9.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Sec-WebSocket-Extensions is not a list of extensions with their parameters (RFC 6455 section 9.1)")]
pub struct MalformedExtensions;

/// The first of a client's offers that can be accepted, of all values of its Sec-WebSocket-Extensions in order. None when there is none: then nothing is
/// agreed to, and all is well.
///
/// ```
/// use shardcast::proto::ws::extension::{Agreed, negotiate};
///
/// let chrome = negotiate([&b"permessage-deflate; client_max_window_bits"[..]]);
/// assert_eq!(chrome, Ok(Some(Agreed { server_max_window_bits: None })));
/// assert_eq!(negotiate([&b"permessage-bzip2"[..]]), Ok(None));
/// ```
///
/// # Errors
/// For bytes that are no such list, also behind an offer that could be accepted.
pub fn negotiate<'h>(values: impl IntoIterator<Item = &'h [u8]>) -> Result<Option<Agreed>, MalformedExtensions> {
    let mut agreed = None;
    for value in values {
        let mut scanner = Scanner { rest: value };
        loop {
            // RFC 9110 section 5.6.1: empty elements of a list do not count.
            while scanner.takes(b',') {}
            if scanner.rest.is_empty() {
                break;
            }
            let offer = offer(&mut scanner)?;
            agreed = agreed.or(offer);
            if !scanner.rest.is_empty() && !scanner.takes(b',') {
                return Err(MalformedExtensions);
            }
        }
    }
    Ok(agreed)
}

/// Reads one offer; what it is accepted as, if it is.
fn offer(scanner: &mut Scanner<'_>) -> Result<Option<Agreed>, MalformedExtensions> {
    let name = scanner.token()?;
    let mut is_fine = name == DEFLATE.as_bytes();
    let mut seen: [bool; 4] = [false; 4];
    let mut agreed = Agreed { server_max_window_bits: None };
    while scanner.takes(b';') {
        let parameter = scanner.token()?;
        let value = if scanner.takes(b'=') { Some(scanner.value()?) } else { None };
        let value = value.as_deref();
        // RFC 7692 section 7.1: an offer with a parameter that is not defined, has a value that is not, or comes twice is declined.
        let (number, fits) = match parameter {
            b"server_no_context_takeover" => (0, value.is_none()),
            b"client_no_context_takeover" => (1, value.is_none()),
            b"server_max_window_bits" => {
                agreed.server_max_window_bits = value.and_then(window_bits);
                (2, agreed.server_max_window_bits.is_some())
            }
            // We inflate with the largest window, and need not set the client a bound.
            b"client_max_window_bits" => (3, value.is_none_or(|value| window_bits(value).is_some())),
            _ => {
                is_fine = false;
                continue;
            }
        };
        is_fine &= fits && !std::mem::replace(&mut seen[number], true);
    }
    Ok(is_fine.then_some(agreed))
}

/// RFC 7692 section 7.1.2: a decimal number without leading zeros, from 8 to 15.
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// What is left of a value. White space may stand before everything.
struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// Whether this byte comes next; then it is taken.
    fn takes(&mut self, wanted: u8) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(&[wanted]);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn token(&mut self) -> Result<&'a [u8], MalformedExtensions> {
        self.skip_space();
        let len = self.rest.iter().take_while(|byte| is_token(&[**byte])).count();
        let (token, rest) = self.rest.split_at(len);
        self.rest = rest;
        if token.is_empty() { Err(MalformedExtensions) } else { Ok(token) }
    }

    /// A token, or one in quotes (RFC 6455 section 9.1).
    fn value(&mut self) -> Result<Vec<u8>, MalformedExtensions> {
        if !self.takes(b'"') {
            return self.token().map(<[u8]>::to_vec);
        }
        let mut value = Vec::new();
        loop {
            let (&byte, rest) = self.rest.split_first().ok_or(MalformedExtensions)?;
            self.rest = rest;
            match byte {
                b'"' => break,
                b'\\' => {
                    let (&escaped, rest) = rest.split_first().ok_or(MalformedExtensions)?;
                    self.rest = rest;
                    value.push(escaped);
                }
                byte => value.push(byte),
            }
        }
        if is_token(&value) { Ok(value) } else { Err(MalformedExtensions) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(values: &[&str]) -> Result<Option<String>, MalformedExtensions> {
        let agreed = negotiate(values.iter().map(|value| value.as_bytes()))?;
        Ok(agreed.map(|agreed| {
            let mut out = Vec::new();
            agreed.write(&mut out);
            let prefix = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
            String::from_utf8(out).expect("it is ASCII").strip_prefix(prefix).expect("no context is taken over").to_owned()
        }))
    }

    #[test]
    fn the_first_offer_that_can_be_accepted_is() {
        let bits = |bits| Ok(Some(format!("; server_max_window_bits={bits}")));
        let plain = Ok(Some(String::new()));
        let none = Ok(None);
        for (offers, expect) in [
            ("", &none),
            (",", &none),
            ("permessage-deflate", &plain),
            (" permessage-deflate ", &plain),
            ("permessage-deflate; client_max_window_bits", &plain),
            ("permessage-deflate;client_max_window_bits=8", &plain),
            ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", &plain),
            ("permessage-deflate; server_max_window_bits=8", &bits(8)),
            ("permessage-deflate; server_max_window_bits=15", &bits(15)),
            ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", &bits(12)),
            ("permessage-deflate ; server_max_window_bits = \"1\\0\"", &bits(10)),
            ("x-webkit-deflate-frame, permessage-deflate", &plain),
            ("foo; a=\"b,c;d\", permessage-deflate", &Err(MalformedExtensions)),
            ("foo; a=\"b\"; c, permessage-deflate", &plain),
            (", permessage-deflate,, foo,", &plain),
            ("permessage-deflate; server_max_window_bits=9, permessage-deflate", &bits(9)),
            ("permessage-deflate; later=1, permessage-deflate; server_max_window_bits=11", &bits(11)),
            // Declined.
            ("permessage-bzip2", &none),
            ("PERMESSAGE-DEFLATE", &none),
            ("permessage-deflate; mystery", &none),
            ("permessage-deflate; server_no_context_takeover=1", &none),
            ("permessage-deflate; client_no_context_takeover=\"x\"", &none),
            ("permessage-deflate; server_max_window_bits", &none),
            ("permessage-deflate; server_max_window_bits=7", &none),
            ("permessage-deflate; server_max_window_bits=16", &none),
            ("permessage-deflate; server_max_window_bits=08", &none),
            ("permessage-deflate; server_max_window_bits=+9", &none),
            ("permessage-deflate; server_max_window_bits=100", &none),
            ("permessage-deflate; client_max_window_bits=16", &none),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits", &none),
            ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", &none),
            ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", &none),
            // No list of extensions.
            ("permessage-deflate foo", &Err(MalformedExtensions)),
            ("permessage-deflate;", &Err(MalformedExtensions)),
            ("permessage-deflate; =8", &Err(MalformedExtensions)),
            ("permessage-deflate; server_max_window_bits=", &Err(MalformedExtensions)),
            ("permessage-deflate; server_max_window_bits=\"\"", &Err(MalformedExtensions)),
            ("permessage-deflate; server_max_window_bits=\"9", &Err(MalformedExtensions)),
            ("permessage-deflate; server_max_window_bits=\"9\\", &Err(MalformedExtensions)),
            ("permessage-deflate, \u{fc}", &Err(MalformedExtensions)),
            ("; permessage-deflate", &Err(MalformedExtensions)),
        ] {
            assert_eq!(answer(&[offers]), *expect, "{offers}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        assert_eq!(answer(&[]), Ok(None));
        assert_eq!(answer(&["foo", "permessage-deflate; server_max_window_bits=13"]), Ok(Some("; server_max_window_bits=13".to_owned())));
        assert_eq!(answer(&["permessage-deflate", "=="]), Err(MalformedExtensions));
    }

    #[test]
    fn who_has_a_smaller_window_than_ours_is_sent_nothing_compressed() {
        for bits in 8..=15 {
            assert_eq!(Agreed { server_max_window_bits: Some(bits) }.window().takes_ours(), bits >= WINDOW_BITS, "{bits}");
        }
        assert!(Agreed { server_max_window_bits: None }.window().takes_ours());
        assert_eq!([0, 7, 8, 15, 16].map(|bits| Window::of_bits(bits).is_some()), [false, false, true, true, false]);
    }
}
