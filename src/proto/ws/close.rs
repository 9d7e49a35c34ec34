//! How a WebSocket ends: close codes and the payload of a close frame (RFC 6455 sections 5.5.1 and 7.4).

use std::fmt;
use std::ops::Deref;

use super::error::WsError;
use super::frame::CONTROL_PAYLOAD_MAX;

/// The longest close reason: a control payload without the code.
pub const REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_MAX - 2;

/// The code of a close frame: RFC 6455's own, and ours (docs/protocol.md section 5), which read like HTTP: 44xx stop, the client must
/// change something; 45xx come back and resume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The purpose is fulfilled. Never sent when a retry is wanted.
    pub const NORMAL: Self = Self(1000);
    /// The endpoint goes away: a server shuts down, a browser leaves the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// The peer broke RFC 6455.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// A kind of data that cannot be accepted.
    pub const UNSUPPORTED: Self = Self(1003);
    /// Never on the wire: what an application is told when the close frame had no code (RFC 6455 section 7.1.5).
    pub const NO_STATUS: Self = Self(1005);
    /// Never on the wire: what an application is told when there was no close frame.
    pub const ABNORMAL: Self = Self(1006);
    /// Text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// A policy that has no code of its own.
    pub const POLICY: Self = Self(1008);
    /// The message is over `limits.message_bytes_max`.
    pub const TOO_BIG: Self = Self(1009);
    /// The server failed.
    pub const INTERNAL: Self = Self(1011);
    /// The server restarts; come back.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// The server is overloaded; come back later.
    pub const TRY_AGAIN: Self = Self(1013);

    /// A message that the subprotocol does not allow.
    pub const BAD_MESSAGE: Self = Self(4400);
    /// The token is not valid.
    pub const BAD_TOKEN: Self = Self(4401);
    /// The token or the origin does not allow this.
    pub const FORBIDDEN: Self = Self(4403);
    /// No authentication in time.
    pub const AUTH_TIMEOUT: Self = Self(4408);
    /// Another connection took this one's place.
    pub const REPLACED: Self = Self(4409);
    /// Over the JSON protocol's own limits.
    pub const JSON_TOO_BIG: Self = Self(4413);
    /// Banned.
    pub const BANNED: Self = Self(4420);
    /// The server failed; come back.
    pub const INTERNAL_RETRY: Self = Self(4500);
    /// The token has expired; come back with a new one.
    pub const TOKEN_EXPIRED: Self = Self(4501);
    /// Over capacity or draining; come back.
    pub const OVER_CAPACITY: Self = Self(4503);
    /// No pong came.
    pub const NO_PONG: Self = Self(4504);
    /// The client reads more slowly than its topics are written.
    pub const SLOW_CONSUMER: Self = Self(4508);
    /// The position is not known any more; come back without it.
    pub const CONTINUITY_LOST: Self = Self(4510);
    /// Too many requests; come back later.
    pub const RATE_LIMITED: Self = Self(4529);

    /// Whether a close frame may carry it: 1000-1003 and 1007-1014 as registered with IANA, 3000-4999 (RFC 6455 section 7.4.2).
    pub const fn is_valid_on_wire(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// Whether the client should come back as it is (docs/protocol.md, Close codes): then it is told when.
    pub const fn wants_retry(self) -> bool {
        matches!(self.0, 1012 | 4500..=4599)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The payload of a close frame: empty, or a code and a reason; at most 125 bytes, without an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClosePayload {
    bytes: [u8; CONTROL_PAYLOAD_MAX],
    len: u8,
}

impl ClosePayload {
    /// The payload without a code, which answers a close frame that had none.
    pub const EMPTY: Self = Self { bytes: [0; CONTROL_PAYLOAD_MAX], len: 0 };
}

impl Deref for ClosePayload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The payload of a close frame with this code. The reason is cut at a character's end to fit. A code that must not be sent, such as
/// [`CloseCode::NO_STATUS`], gives the empty payload, which means just that.
///
/// ```
/// use shardcast::proto::ws::{CloseCode, encode_close_payload, parse_close_payload};
///
/// let payload = encode_close_payload(CloseCode::OVER_CAPACITY, "retry=8200");
/// assert_eq!(parse_close_payload(&payload), Ok(Some((CloseCode::OVER_CAPACITY, "retry=8200"))));
/// ```
pub fn encode_close_payload(code: CloseCode, reason: &str) -> ClosePayload {
    let mut payload = ClosePayload::EMPTY;
    if code.is_valid_on_wire() {
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX)];
        payload.bytes[..2].copy_from_slice(&code.0.to_be_bytes());
        payload.bytes[2..][..reason.len()].copy_from_slice(reason);
        payload.len = 2 + reason.len() as u8;
    }
    payload
}

/// Parses the payload of a close frame: `None` when it is empty.
///
/// # Errors
/// 1002 for half a code or one that must not be sent, 1007 for a reason that is not UTF-8 (RFC 6455 section 5.5.1).
pub fn parse_close_payload(payload: &[u8]) -> Result<Option<(CloseCode, &str)>, WsError> {
    match payload {
        [] => Ok(None),
        [_] => Err(WsError::CloseCodeCut),
        [high, low, reason @ ..] => {
            let code = CloseCode(u16::from_be_bytes([*high, *low]));
            if !code.is_valid_on_wire() {
                return Err(WsError::CloseCodeInvalid { code: code.0 });
            }
            let reason = str::from_utf8(reason).map_err(|_| WsError::CloseReasonNotUtf8)?;
            Ok(Some((code, reason)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_on_the_wire_are_those_of_the_rfc_of_iana_and_of_applications() {
        let valid = |code: u16| CloseCode(code).is_valid_on_wire();
        let ranges: Vec<u16> = (0..=u16::MAX).filter(|&code| valid(code) && (code == 0 || !valid(code - 1))).collect();
        assert_eq!(ranges, [1000, 1007, 3000], "where valid ranges start");
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            assert!(!valid(code), "{code}");
        }
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4529, 4999] {
            assert!(valid(code), "{code}");
        }
    }

    #[test]
    fn a_code_is_written_as_its_number() {
        assert_eq!(format!("{} {:>6}", CloseCode::SLOW_CONSUMER, CloseCode(7)), "4508      7");
    }

    #[test]
    fn a_payload_is_nothing_or_a_code_and_a_reason() {
        for (payload, expect) in [
            (&b""[..], Ok(None)),
            (b"\x03", Err(WsError::CloseCodeCut)),
            (b"\x03\xe8", Ok(Some((CloseCode::NORMAL, "")))),
            (b"\x11\xb7bye \xc3\xbc", Ok(Some((CloseCode(4535), "bye ü")))),
            (b"\x03\xe7", Err(WsError::CloseCodeInvalid { code: 999 })),
            (b"\x03\xed", Err(WsError::CloseCodeInvalid { code: 1005 })),
            (b"\x03\xe8\xc3", Err(WsError::CloseReasonNotUtf8)),
            (b"\x03\xe8\xed\xa0\x80", Err(WsError::CloseReasonNotUtf8)),
        ] {
            assert_eq!(parse_close_payload(payload), expect, "{payload:02x?}");
        }
        assert_eq!(WsError::CloseReasonNotUtf8.close_code(), CloseCode::INVALID_PAYLOAD);
    }

    #[test]
    fn a_reason_is_cut_at_the_end_of_a_character() {
        for (reason, kept) in [("", 0), ("retry=8200", 10), (&"a".repeat(123), 123), (&"a".repeat(124), 123), (&"ü".repeat(62), 122)] {
            let payload = encode_close_payload(CloseCode::GOING_AWAY, reason);
            assert_eq!(parse_close_payload(&payload), Ok(Some((CloseCode::GOING_AWAY, &reason[..kept]))), "{reason}");
            assert!(payload.len() <= CONTROL_PAYLOAD_MAX);
        }
    }

    #[test]
    fn a_code_that_must_not_be_sent_leaves_the_payload_empty() {
        for code in [CloseCode::NO_STATUS, CloseCode::ABNORMAL, CloseCode(0), CloseCode(1015)] {
            assert!(encode_close_payload(code, "why").is_empty(), "{code}");
        }
    }
}
