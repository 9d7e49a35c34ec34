//! The headers in which proxies of HTTP write whom they speak for: `Forwarded` (RFC 7239) and the older `X-Forwarded-For`.
//!
//! Each proxy appends the address that its own connection comes from. So the last element was written by the peer, the one before by whom that
//! names, and so on to the left for as long as these are trusted; what is further left a client can have written itself. Reading goes the same
//! way, from the right, and no further than it is believed: nothing that stands further left can change how the right end is read, not even an
//! open quote.
//!
//! ```text
//! Forwarded: for=1.1.1.1, for=203.0.113.7;proto=https, for=10.0.0.2      from 10.0.0.1
//!                │            │                           │                  │
//!                │            │                           │                  the peer, trusted
//!                │            │                           written by the peer, trusted
//!                │            written by 10.0.0.2, and not trusted: the client
//!                the client's own words
//! ```

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Networks;
use crate::proto::http::is_token;

/// The longest address with brackets and port that is read; the longest possible has 53 bytes.
const NODE_BYTES_MAX: usize = 64;

/// The one header whose words are believed.
///
/// Configuration chooses it, never a request: a proxy that writes one of them passes the other on as the client sent it. For the same reason every
/// proxy that is trusted has to write this one, by appending to it or in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForwardingHeader {
    /// `Forwarded: for=203.0.113.7;proto=https, for="[2001:db8::1]:4711"`.
    Forwarded,
    /// `X-Forwarded-For: 203.0.113.7, 2001:db8::1`.
    XForwardedFor,
}

/// The client's address, for a request that `peer` sent; `values` are those of all headers of that name, in their order.
///
/// It is the first address, from the peer on to the left, that is in no trusted network. When all of them are trusted it is the last one: a client
/// within these networks.
///
/// The walk also ends at an element that has no address in it: `unknown`, an obfuscated name (RFC 7239 section 6.3), one without `for`, one that
/// breaks the grammar. Then the answer is the address before it, of the trusted proxy that wrote this element. It is the only one known: the
/// proxy does not say who connected to it, so there is nobody whose word the rest would be. All clients of which it says no more are one. Nobody can
/// put somebody else in his place like that, and no client can break the elements that follow its own.
///
/// Empty elements do not count (RFC 9110 section 5.6.1.2). An answer is never an IPv4 address written as IPv6.
///
/// ```
/// use shardcast::proto::client_address::{ForwardingHeader, Networks, client};
/// use shardcast::proto::http::{HeadStorage, parse_head};
///
/// let trusted = Networks::parse(["10.0.0.0/8"])?;
/// let mut storage = HeadStorage::new();
/// let request = b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1, 203.0.113.7\r\nX-Forwarded-For: 10.0.0.2\r\n\r\n";
/// let head = parse_head(&mut storage, request, 16384)?.expect("it is complete");
///
/// let header = ForwardingHeader::XForwardedFor;
/// let from = |peer: &str| peer.parse().map(|peer| client(peer, &trusted, header, head.headers(header.name())).to_string());
/// assert_eq!(from("10.0.0.1")?, "203.0.113.7");
/// assert_eq!(from("192.0.2.1")?, "192.0.2.1", "who is not trusted may write what it likes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn client<'v>(peer: IpAddr, trusted: &Networks, header: ForwardingHeader, values: impl DoubleEndedIterator<Item = &'v [u8]>) -> IpAddr {
    let mut nearest = peer.to_canonical();
    let mut elements = values.rev().flat_map(|value| header.elements_from_the_right(value));
    while trusted.contains(nearest) {
        let Some(address) = elements.next().and_then(|element| header.address(element)) else { break };
        nearest = address;
    }
    nearest
}

impl ForwardingHeader {
    /// Its name, as it is looked up.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::XForwardedFor => "x-forwarded-for",
        }
    }

    /// The elements of a list that are not empty, the last one first.
    fn elements_from_the_right(self, value: &[u8]) -> impl Iterator<Item = &[u8]> {
        let mut left = Some(value);
        let elements = iter::from_fn(move || {
            let value = left?;
            let comma = match self {
                Self::Forwarded => last_comma_outside_quotes(value),
                Self::XForwardedFor => memchr::memrchr(b',', value),
            };
            left = comma.map(|at| &value[..at]);
            Some(value[comma.map_or(0, |at| at + 1)..].trim_ascii())
        });
        elements.filter(|element| !element.is_empty())
    }

    /// The address in an element.
    fn address(self, element: &[u8]) -> Option<IpAddr> {
        match self {
            Self::Forwarded => forwarded_for(element),
            Self::XForwardedFor => node_address(element),
        }
    }
}

/// In what is well-formed this finds the commas that reading from the left finds: inside a quoted string a quote stands behind a backslash, and
/// the one that opens it stands behind none.
fn last_comma_outside_quotes(value: &[u8]) -> Option<usize> {
    let mut in_quotes = false;
    for (at, byte) in value.iter().enumerate().rev() {
        match byte {
            b'"' if !in_quotes || !value[..at].ends_with(b"\\") => in_quotes = !in_quotes,
            b',' if !in_quotes => return Some(at),
            _ => {}
        }
    }
    None
}

/// The address of an element of `Forwarded` (RFC 7239 section 4): pairs of a name, whatever its case, and a token or a quoted string, with
/// semicolons between them. White space around these, and brackets and colons without quotes, are what some proxies send.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut address = None;
    let mut rest = element;
    loop {
        rest = rest.trim_ascii_start();
        if !rest.is_empty() && rest[0] != b';' {
            let (name, after) = rest.split_at(rest.iter().position(|&byte| byte == b'=')?);
            if !is_token(name) {
                return None;
            }
            let (value, after) = split_value(&after[1..])?;
            if name.eq_ignore_ascii_case(b"for") {
                let node = unescape(value, &mut [0; NODE_BYTES_MAX]).and_then(node_address)?;
                // Section 4: no parameter more than once.
                if address.replace(node).is_some() {
                    return None;
                }
            }
            rest = after.trim_ascii_start();
        }
        match rest.split_first() {
            None => return address,
            Some((b';', after)) => rest = after,
            Some(_) => return None,
        }
    }
}

/// A value, its quotes taken off, and what follows it.
fn split_value(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let mut at = 0;
        loop {
            match quoted.get(at)? {
                b'"' => return Some((&quoted[..at], &quoted[at + 1..])),
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
    }
    let is_plain = |byte: &u8| is_token(&[*byte]) || b"[]:".contains(byte);
    let len = text.iter().take_while(|byte| is_plain(byte)).count();
    (len > 0).then(|| text.split_at(len))
}

/// The content of a quoted string without its backslashes (RFC 9110 section 5.6.4). Nothing when it is too long for an address.
fn unescape<'b>(value: &[u8], buffer: &'b mut [u8; NODE_BYTES_MAX]) -> Option<&'b [u8]> {
    let (mut bytes, mut len) = (value.iter(), 0);
    while let Some(&byte) = bytes.next() {
        *buffer.get_mut(len)? = if byte == b'\\' { *bytes.next()? } else { byte };
        len += 1;
    }
    Some(&buffer[..len])
}

/// The address of a node (RFC 7239 section 6), with a port or without. IPv6 should have brackets; in `X-Forwarded-For` it often has none, and then
/// no port either.
fn node_address(node: &[u8]) -> Option<IpAddr> {
    let node = str::from_utf8(node).ok()?;
    let (address, port): (IpAddr, _) = if let Some(bracketed) = node.strip_prefix('[') {
        let (address, after) = bracketed.split_once(']')?;
        (address.parse::<Ipv6Addr>().ok()?.into(), if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else if let Some((address, port)) = node.split_once(':').filter(|(_, after)| !after.contains(':')) {
        (address.parse::<Ipv4Addr>().ok()?.into(), Some(port))
    } else {
        (node.parse().ok()?, None)
    };
    port.is_none_or(is_port).then(|| address.to_canonical())
}

/// RFC 7239 section 6: `1*5DIGIT`, or an obfuscated one.
fn is_port(port: &str) -> bool {
    match port.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
        None => (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::ForwardingHeader::{Forwarded, XForwardedFor};
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    const PEER: &str = "10.0.0.1";

    fn trusted() -> Networks {
        Networks::parse(["10.0.0.0/8", "2001:db8:ff::/48"]).expect("networks")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn client_of(header: ForwardingHeader, peer: &str, lines: &[&[u8]]) -> IpAddr {
        client(address(peer), &trusted(), header, lines.iter().copied())
    }

    /// Of a request whose trusted peer sends these lines.
    fn check(header: ForwardingHeader, lines: &[&str], expect: &str) {
        let bytes: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
        assert_eq!(client_of(header, PEER, &bytes), address(expect), "{header:?}: {lines:?}");
    }

    #[test]
    fn the_client_is_the_first_address_from_the_right_that_is_not_trusted() {
        for (list, expect) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7, 10.0.0.2", "203.0.113.7"),
            ("1.1.1.1, 203.0.113.7, 10.0.0.2, 2001:db8:ff::3", "203.0.113.7"),
            ("2001:db8::7,10.0.0.2", "2001:db8::7"),
            ("10.0.0.9, 203.0.113.7", "203.0.113.7"),
        ] {
            check(XForwardedFor, &[list], expect);
            check(XForwardedFor, &list.split(',').collect::<Vec<_>>(), expect);
            let elements: Vec<_> = list.split(',').map(|text| format!("For=\"{}\";proto=https", bracketed(address(text.trim())))).collect();
            check(Forwarded, &[&elements.join(", ")], expect);
            check(Forwarded, &elements.iter().map(String::as_str).collect::<Vec<_>>(), expect);
        }
    }

    fn bracketed(address: IpAddr) -> String {
        if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
    }

    #[test]
    fn a_peer_that_is_not_trusted_is_the_client_whatever_it_sends() {
        for header in [Forwarded, XForwardedFor] {
            assert_eq!(client_of(header, "192.0.2.1", &[b"for=203.0.113.7", b"203.0.113.7"]), address("192.0.2.1"));
            assert_eq!(client_of(header, "::ffff:192.0.2.1", &[b"203.0.113.7"]), address("192.0.2.1"));
        }
        let nobody = client(address(PEER), &Networks::default(), XForwardedFor, [b"203.0.113.7".as_slice()].into_iter());
        assert_eq!(nobody, address(PEER));
    }

    #[test]
    fn when_all_are_trusted_it_is_the_last_one() {
        for header in [Forwarded, XForwardedFor] {
            check(header, &[], PEER);
            check(header, &["", " , ,"], PEER);
        }
        check(XForwardedFor, &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check(Forwarded, &["for=10.0.0.3", "for=10.0.0.2"], "10.0.0.3");
    }

    #[test]
    fn empty_elements_do_not_count() {
        check(XForwardedFor, &[",203.0.113.7,,", "", "10.0.0.2 , \t,"], "203.0.113.7");
        check(Forwarded, &[",for=203.0.113.7,,", "", "for=10.0.0.2 , \t,"], "203.0.113.7");
    }

    #[test]
    fn the_walk_ends_before_an_element_without_an_address() {
        for element in
            ["unknown", "_hidden", "-", "203.0.113", "203.0.113.7:", "203.0.113.7:x", "203.0.113.7 1.1.1.1", "[203.0.113.7]", "\""]
        {
            check(XForwardedFor, &[&format!("1.1.1.1, {element}, 10.0.0.2")], "10.0.0.2");
            check(XForwardedFor, &["1.1.1.1", element], PEER);
        }
        for element in [
            "for=unknown",
            "for=_hidden",
            "for=\"_SEVKISEK\"",
            "proto=https;by=10.0.0.2",
            ";",
            "for",
            "for=",
            "=203.0.113.7",
            "for =203.0.113.7",
            "for= 203.0.113.7",
            "for=203.0.113.7 proto=https",
            "for=203.0.113.7;proto",
            "for=203.0.113.7;proto=",
            "for=203.0.113.7;a/b=c",
            "for=203.0.113.7;a=b/c",
            "for=203.0.113.7;for=203.0.113.8",
            "for=203.0.113.7;FOR=\"203.0.113.7\"",
            "for=\"203.0.113.7",
            "for=203.0.113.7\"",
            "for=\"203.0.113.7\"8",
            "for=\"203.0.113.7\\",
            "for=\" 203.0.113.7\"",
            "203.0.113.7",
        ] {
            check(Forwarded, &[&format!("for=1.1.1.1, {element}"), "for=10.0.0.2"], "10.0.0.2");
            check(Forwarded, &["for=1.1.1.1", element], PEER);
        }
        assert_eq!(client_of(XForwardedFor, PEER, &[b"1.1.1.1, \xff"]), address(PEER));
        assert_eq!(client_of(Forwarded, PEER, &[b"for=1.1.1.1, for=\"\xff\""]), address(PEER));
    }

    #[test]
    fn an_element_of_forwarded_is_read_by_its_grammar() {
        for (element, expect) in [
            // The examples of RFC 7239 section 4 and 6.
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("for=\"192.0.2.43:47011\"", "192.0.2.43"),
            ("by=203.0.113.43;host=\"a.example:80\";FOR=\"192.0.2.43:_obf.u-s_\"", "192.0.2.43"),
            ("host=\"a,b;for=1.1.1.1\\\"\\\\\";for=192.0.2.43", "192.0.2.43"),
            ("for=\"\\1\\9\\2.0.2.43\"", "192.0.2.43"),
            ("for=\"[::ffff:192.0.2.43]:00080\"", "192.0.2.43"),
            ("for=\"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535\"", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            // As it should not be and is nevertheless sent.
            ("for=192.0.2.43:47011; proto=https ;host=a.example:80", "192.0.2.43"),
            ("for=[2001:db8:cafe::17]:4711", "2001:db8:cafe::17"),
            ("for=\"2001:db8:cafe::17\"", "2001:db8:cafe::17"),
            (";;for=192.0.2.43;", "192.0.2.43"),
        ] {
            check(Forwarded, &[element], expect);
            check(Forwarded, &[&format!("for=1.1.1.1,{element} , for=10.0.0.2")], expect);
        }
        let long = format!("for=\"192.0.2.43:_{}\"", "x".repeat(NODE_BYTES_MAX - 12));
        check(Forwarded, &[&long], "192.0.2.43");
        check(Forwarded, &[&long.replace("_x", "_xx")], PEER);
    }

    #[test]
    fn an_address_may_have_brackets_and_a_port() {
        for (node, expect) in [
            ("192.0.2.43:8080", "192.0.2.43"),
            ("[2001:db8::17]", "2001:db8::17"),
            ("[2001:db8::17]:8080", "2001:db8::17"),
            ("2001:DB8::17", "2001:db8::17"),
            ("::ffff:192.0.2.43", "192.0.2.43"),
            ("[::ffff:c000:22b]:1", "192.0.2.43"),
            ("\t192.0.2.43 ", "192.0.2.43"),
        ] {
            check(XForwardedFor, &[node], expect);
        }
        for node in [
            "192.0.2.43:123456",
            "192.0.2.43:_",
            "192.0.2.43:_/",
            "192.0.2.043",
            "192.0.2.43:1:2",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:",
            "[::1]]",
            "[[::1]]",
            ":80",
            "fe80::1%1",
            "0x7f.1",
            "1",
        ] {
            check(XForwardedFor, &[node], PEER);
        }
    }

    #[test]
    fn the_names_are_those_of_the_headers() {
        assert_eq!([Forwarded, XForwardedFor].map(ForwardingHeader::name), ["forwarded", "x-forwarded-for"]);
    }

    /// A client once could hide behind its proxy's address, by an open quote to the left of what the proxy appended, wherever this is read from the
    /// left.
    #[test]
    fn nothing_that_a_client_sends_changes_what_its_proxy_says() {
        let alphabet: [&[u8]; 16] = [
            b"\"",
            b"\\",
            b",",
            b";",
            b"=",
            b" ",
            b"for=",
            b"10.0.0.2",
            b"1.1.1.1",
            b"[",
            b"]",
            b":",
            b"_x",
            b"\xff",
            b"for=\"10.0.0.2\"",
            b"by=\"",
        ];
        let line = |random: &mut StdRng| {
            let len = random.random_range(0..10);
            (0..len).flat_map(|_| alphabet[random.random_range(0..alphabet.len())]).copied().collect::<Vec<u8>>()
        };
        for seed in 0..20_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let lines: Vec<_> = (0..random.random_range(0..3)).map(|_| line(&mut random)).collect();
            for (header, says) in [
                (XForwardedFor, "203.0.113.7"),
                (XForwardedFor, "[2001:db8:ff::3]:80"),
                (Forwarded, "for=203.0.113.7"),
                (Forwarded, "by=\"a\\\"\\\\, b\";for=\"[2001:db8:ff::3]:80\""),
            ] {
                let said = header.address(says.as_bytes()).expect("an address");
                let before: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
                // Whom the proxy names is asked in its place: itself when it is not trusted, and its own lines when it is.
                let expect = client_of(header, &said.to_string(), &before);
                assert!(trusted().contains(said) || expect == said);
                let on_its_own_line = [&before[..], &[says.as_bytes()]].concat();
                assert_eq!(client_of(header, PEER, &on_its_own_line), expect, "seed {seed}: {says} after {}", shown(&before));
                let Some((last, others)) = before.split_last() else { continue };
                let appended = [last, b", ".as_slice(), says.as_bytes()].concat();
                let appended = [others, &[appended.as_slice()]].concat();
                assert_eq!(client_of(header, PEER, &appended), expect, "seed {seed}: {says} appended to {}", shown(&before));
            }
        }
    }

    fn shown(lines: &[&[u8]]) -> String {
        lines.iter().map(|line| line.escape_ascii().to_string()).collect::<Vec<_>>().join("\n")
    }
}
