//! Who a client is, behind proxies: the PROXY protocol before a connection's first byte ([`proxy_protocol`]), the headers `Forwarded` and
//! `X-Forwarded-For` of a request ([`forwarding`]), which networks may say such things ([`Networks`]), and the unit that limits are counted by
//! ([`Prefix`]).
//!
//! Whether a listener's connections begin with a PROXY protocol header, whose words are believed and in which header they stand is
//! configuration. Nothing of it is guessed from what a client sends: whatever is guessed, a client can send too.
//!
//! An IPv4 address written as IPv6, `::ffff:192.0.2.7` (RFC 4291 section 2.5.5.2), is the IPv4 address, wherever it comes from. Otherwise a
//! listener for both families would see one client as two.
#![forbid(unsafe_code)]

pub mod forwarding;
pub mod prefix;
pub mod proxy_protocol;

pub use forwarding::{ForwardingHeader, client};
pub use prefix::{Networks, NetworksError, Prefix, PrefixError, PrefixLengths};
pub use proxy_protocol::{ProxyHeader, ProxyProtocolError};

/// A decimal number as it prints itself: no sign, and no zeros in front, which somebody might take for octal.
fn decimal(text: &str) -> Option<u16> {
    let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_canonical { text.parse().ok() } else { None }
}
