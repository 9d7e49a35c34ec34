//! The PROXY protocol, versions 1 and 2, as HAProxy's `doc/proxy-protocol.txt` has it: what a proxy of TCP says about a client in front of the
//! client's own bytes. "Section" below means a section of that text.
//!
//! A listener either expects it on each of its connections or on none, by configuration: a receiver must not guess (section 2), because then
//! every client could name itself. Nor should others than trusted proxies reach such a listener; with [`super::Networks`] the caller refuses them.
//!
//! ```text
//! version 1   PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n
//!             PROXY UNKNOWN …\r\n
//!
//! version 2   \r\n\r\n\0\r\nQUIT\n    12 bytes
//!             version 2, command      4 bits each
//!             family, transport       4 bits each
//!             length of what follows  2 bytes
//!             source, destination     of 4, 16 or 108 bytes each
//!             source port, destination port
//!             TLVs                    skipped
//! ```

use std::net::{IpAddr, SocketAddr};

/// The longest line of version 1 with its CRLF, in bytes (section 2.1).
pub const V1_BYTES_MAX: usize = 107;

/// The longest header of version 2, in bytes. Section 2: both formats are designed to fit the smallest segment that every TCP must take, 576 - 40;
/// its length field could say 65,551.
pub const V2_BYTES_MAX: usize = 536;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2, before the addresses.
const V2_FIXED_BYTES: usize = 16;

/// What a proxy said about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyHeader {
    /// It is this client's.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// It is the proxy's own, such as a health check (section 2.2, LOCAL).
    Local,
    /// It is a client's that has no address of TCP over IP: `UNKNOWN`, AF_UNSPEC, AF_UNIX, UDP.
    Unknown,
}

impl ProxyHeader {
    /// Who is at the other end of a connection that comes from `peer`: the header's client, and `peer` itself when it names none (sections 2.1
    /// and 2.2).
    pub fn client(self, peer: SocketAddr) -> SocketAddr {
        match self {
            Self::Proxied { source, .. } => source,
            Self::Local | Self::Unknown => SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        }
    }
}

/// Parses a header from the front of a connection's first bytes: what it says and how many bytes it has. `None` when more bytes are needed; never
/// with [`V2_BYTES_MAX`] or more.
///
/// What one call has decided, further bytes do not change.
///
/// ```
/// use shardcast::proto::client_address::proxy_protocol::parse;
///
/// let bytes = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\nGET / HTTP/1.1\r\n";
/// assert_eq!(parse(&bytes[..20])?, None);
/// let (header, len) = parse(bytes)?.expect("it is complete");
/// assert_eq!(header.client("10.0.0.1:1234".parse()?), "203.0.113.7:56324".parse()?);
/// assert!(bytes[len..].starts_with(b"GET /"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As soon as the bytes so far cannot become a header. The connection is then to be closed (sections 2.1 and 2.2); there is no answer, as nobody
/// knows which protocol the peer speaks.
pub fn parse(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyProtocolError> {
    let agreed = |signature: &[u8]| signature.iter().zip(bytes).take_while(|(expected, byte)| expected == byte).count();
    match (agreed(V1_SIGNATURE), agreed(V2_SIGNATURE)) {
        (at, _) if at == V1_SIGNATURE.len() => parse_v1(bytes),
        (_, at) if at == V2_SIGNATURE.len() => parse_v2(bytes),
        (v1, v2) => match bytes.get(v1.max(v2)) {
            Some(&byte) => Err(ProxyProtocolError::Signature { at: v1.max(v2), byte }),
            None => Ok(None),
        },
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyProtocolError> {
    // Where the CR of a line that is not too long can be. Nothing of the line is read before it has come whole (section 2.1).
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX - 1)];
    let Some(end) = memchr::memchr2(b'\r', b'\n', window) else {
        return if window.len() < V1_BYTES_MAX - 1 { Ok(None) } else { Err(ProxyProtocolError::LineTooLong) };
    };
    // Section 2.1: a single CR or LF must not end the line.
    match &bytes[end..] {
        [b'\r', b'\n', ..] => Ok(Some((parse_line(&bytes[V1_SIGNATURE.len()..end])?, end + 2))),
        [b'\r'] => Ok(None),
        _ => Err(ProxyProtocolError::LineEnd { at: end }),
    }
}

/// The line of version 1 between `PROXY ` and its end.
fn parse_line(line: &[u8]) -> Result<ProxyHeader, ProxyProtocolError> {
    // Section 2.1: after UNKNOWN anything may follow and nothing of it counts.
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(ProxyHeader::Unknown);
    }
    let mut fields = line.split(|&byte| byte == b' ');
    let (Some(protocol), Some(source), Some(destination), Some(source_port), Some(destination_port), None) =
        (fields.next(), fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(ProxyProtocolError::Fields { line: shown(line) });
    };
    let parse_address = match protocol {
        b"TCP4" => |text: &str| text.parse().map(IpAddr::V4).ok(),
        b"TCP6" => |text: &str| text.parse().map(IpAddr::V6).ok(),
        _ => return Err(ProxyProtocolError::Protocol { protocol: shown(protocol) }),
    };
    let endpoint = |address: &[u8], port: &[u8]| {
        let ip = str::from_utf8(address).ok().and_then(parse_address);
        let ip = ip.ok_or_else(|| ProxyProtocolError::Address { protocol: shown(protocol), address: shown(address) })?;
        let number = str::from_utf8(port).ok().and_then(super::decimal);
        let number = number.ok_or_else(|| ProxyProtocolError::Port { port: shown(port) })?;
        Ok(SocketAddr::new(ip.to_canonical(), number))
    };
    Ok(ProxyHeader::Proxied { source: endpoint(source, source_port)?, destination: endpoint(destination, destination_port)? })
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyProtocolError> {
    let Some(&version_and_command) = bytes.get(12) else { return Ok(None) };
    let local = match version_and_command {
        0x20 => true,
        0x21 => false,
        byte => return Err(ProxyProtocolError::Command { byte }),
    };
    let Some(&family_and_transport) = bytes.get(13) else { return Ok(None) };
    let (family, transport) = (family_and_transport >> 4, family_and_transport & 0xf);
    // Section 2.2: what is not listed must be rejected; but of LOCAL the family is ignored.
    if !local && (family > 3 || transport > 2) {
        return Err(ProxyProtocolError::Family { byte: family_and_transport });
    }
    let Some((&[high, low], block)) = bytes[14..].split_first_chunk() else { return Ok(None) };
    let announced = usize::from(u16::from_be_bytes([high, low]));
    if V2_FIXED_BYTES + announced > V2_BYTES_MAX {
        return Err(ProxyProtocolError::TooLong { bytes: V2_FIXED_BYTES + announced });
    }
    // Two addresses, and two ports where the family has ports. Of LOCAL and UNSPEC nothing is read.
    let expected = match family {
        _ if local || transport == 0 => 0,
        1 => 2 * 4 + 2 * 2,
        2 => 2 * 16 + 2 * 2,
        3 => 2 * 108,
        _ => 0,
    };
    if announced < expected {
        return Err(ProxyProtocolError::TooShort { byte: family_and_transport, announced, expected });
    }
    let Some(block) = block.get(..announced) else { return Ok(None) };
    let header = match family_and_transport {
        _ if local => ProxyHeader::Local,
        0x11 => proxied::<4>(block).expect("as long as two addresses of IPv4 and two ports: checked above"),
        0x21 => proxied::<16>(block).expect("as long as two addresses of IPv6 and two ports: checked above"),
        // Section 2.2: a receiver falls back to UNSPEC for what it has no use for.
        _ => ProxyHeader::Unknown,
    };
    Ok(Some((header, V2_FIXED_BYTES + announced)))
}

/// The addresses and ports at the front of a block whose addresses have N bytes.
fn proxied<const N: usize>(block: &[u8]) -> Option<ProxyHeader>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk()?;
    let (destination_port, _) = rest.split_first_chunk()?;
    let endpoint = |ip: &[u8; N], port: &[u8; 2]| SocketAddr::new(IpAddr::from(*ip).to_canonical(), u16::from_be_bytes(*port));
    Some(ProxyHeader::Proxied { source: endpoint(source, source_port), destination: endpoint(destination, destination_port) })
}

/// Bytes of a line for a message; lines are short.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Why a connection does not begin with a PROXY protocol header. The proxy is at fault, or whoever configured the two of them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProxyProtocolError {
    /// Something else: a client that speaks to the listener without a proxy, or a proxy that was not told.
    #[error(
        "connection does not begin with a PROXY protocol header, its byte {at} is 0x{byte:02x}; let the proxy send one, or configure the listener to expect none"
    )]
    Signature {
        /// How many bytes fit.
        at: usize,
        /// The one that does not.
        byte: u8,
    },
    /// Version 1 without an end.
    #[error("PROXY line has no CRLF in its first {V1_BYTES_MAX} bytes, the most that it may have (section 2.1)")]
    LineTooLong,
    /// A CR or an LF alone.
    #[error("PROXY line has a CR or LF at byte {at} that is no CRLF (section 2.1)")]
    LineEnd {
        /// Where.
        at: usize,
    },
    /// Version 1 with more or less in its line.
    #[error(
        "PROXY line is {line:?} after its first word; expected are a protocol, two addresses and two ports, with one space between them"
    )]
    Fields {
        /// What came.
        line: String,
    },
    /// Neither TCP4 nor TCP6 nor UNKNOWN.
    #[error("PROXY line has the protocol {protocol:?}; TCP4, TCP6 and UNKNOWN are possible (section 2.1)")]
    Protocol {
        /// What came.
        protocol: String,
    },
    /// Not of the family that the line announces.
    #[error("PROXY line has the address {address:?}, which is none of {protocol} (section 2.1)")]
    Address {
        /// TCP4 or TCP6.
        protocol: String,
        /// What came.
        address: String,
    },
    /// Not 0 to 65535, or with zeros in front.
    #[error("PROXY line has the port {port:?}; 0 to 65535 without zeros in front are possible (section 2.1)")]
    Port {
        /// What came.
        port: String,
    },
    /// Not version 2, or neither LOCAL nor PROXY.
    #[error("PROXY header has version and command 0x{byte:02x}; 0x20, LOCAL, and 0x21, PROXY, are possible (section 2.2)")]
    Command {
        /// What came.
        byte: u8,
    },
    /// A family or a transport that the specification does not name.
    #[error("PROXY header has family and transport 0x{byte:02x}; 0 to 3, and 0 to 2, are possible (section 2.2)")]
    Family {
        /// What came.
        byte: u8,
    },
    /// Over [`V2_BYTES_MAX`].
    #[error("PROXY header announces {bytes} bytes, at most {V2_BYTES_MAX} are taken (section 2); let the proxy send fewer TLVs")]
    TooLong {
        /// All of its bytes.
        bytes: usize,
    },
    /// Less than the addresses of its family need.
    #[error("PROXY header announces {announced} bytes of addresses; its family and transport, 0x{byte:02x}, have {expected} (section 2.2)")]
    TooShort {
        /// Family and transport.
        byte: u8,
        /// What came.
        announced: usize,
        /// What it has to be at least.
        expected: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use rand::{RngExt, SeedableRng};

    type Outcome = Result<Option<(ProxyHeader, usize)>, ProxyProtocolError>;

    /// What all of the bytes are: nothing up to some byte, and from there on always the same.
    fn outcome(bytes: &[u8]) -> Outcome {
        let whole = parse(bytes);
        let decided = (0..bytes.len()).find(|cut| parse(&bytes[..*cut]) != Ok(None)).unwrap_or(bytes.len());
        for cut in decided..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), whole, "{} cut at {cut}", bytes.escape_ascii());
        }
        if let Ok(Some((_, len))) = whole {
            assert_eq!(decided, len, "{}: exactly the bytes of the header decide", bytes.escape_ascii());
        }
        assert!(whole != Ok(None) || bytes.len() < V2_BYTES_MAX);
        whole
    }

    fn check(bytes: &[u8], expect: ProxyHeader) {
        assert_eq!(outcome(bytes), Ok(Some((expect, bytes.len()))), "{}", bytes.escape_ascii());
        let next = [bytes, b"PROXY GET / HTTP/1.1\r\n"].concat();
        assert_eq!(outcome(&next), Ok(Some((expect, bytes.len()))), "what follows is not touched");
    }

    fn refuse(bytes: &[u8], expect: &str) {
        let error = outcome(bytes).expect_err(&bytes.escape_ascii().to_string());
        assert_eq!(error.to_string(), expect);
    }

    fn proxied(source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader::Proxied { source: source.parse().expect("an address"), destination: destination.parse().expect("an address") }
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let len = u16::try_from(block.len()).expect("a length of 2 bytes").to_be_bytes();
        [V2_SIGNATURE, &[command, family], &len, block].concat()
    }

    const V4_BLOCK: &[u8] = &[203, 0, 113, 7, 192, 0, 2, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn a_line_names_source_and_destination() {
        check(b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n", proxied("203.0.113.7:56324", "192.0.2.1:443"));
        check(b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", proxied("255.255.255.255:65535", "0.0.0.0:0"));
        check(b"PROXY TCP6 2001:DB8::7 ::1 1 2\r\n", proxied("[2001:db8::7]:1", "[::1]:2"));
        let full = "ffff:".repeat(7) + "ffff";
        let line = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
        check(line.as_bytes(), proxied(&format!("[{full}]:65535"), &format!("[{full}]:65535")));
        check(b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:c000:201 1 2\r\n", proxied("203.0.113.7:1", "192.0.2.1:2"));
    }

    #[test]
    fn a_line_of_unknown_says_nothing_more() {
        check(b"PROXY UNKNOWN\r\n", ProxyHeader::Unknown);
        check(b"PROXY UNKNOWN \r\n", ProxyHeader::Unknown);
        check(b"PROXY UNKNOWN 1.2.3.4 5.6.7.8 1 2\r\n", ProxyHeader::Unknown);
        check(b"PROXY UNKNOWN \0\xff\"  x\r\n", ProxyHeader::Unknown);
        let line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; V1_BYTES_MAX - 16], b"\r\n"].concat();
        assert_eq!(line.len(), V1_BYTES_MAX);
        check(&line, ProxyHeader::Unknown);
        let too_long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; V1_BYTES_MAX - 15], b"\r\n"].concat();
        assert_eq!(outcome(&too_long), Err(ProxyProtocolError::LineTooLong));
    }

    #[test]
    fn a_line_with_anything_else_is_refused() {
        use ProxyProtocolError::{Address, Fields, LineEnd, Port, Protocol};
        let text = str::to_owned;
        let fields = |line: &str| Fields { line: text(line) };
        let address = |protocol: &str, address: &str| Address { protocol: text(protocol), address: text(address) };
        for (line, error) in [
            ("\r\n", fields("")),
            ("TCP4\r\n", fields("TCP4")),
            ("TCP4 1.2.3.4 5.6.7.8 1\r\n", fields("TCP4 1.2.3.4 5.6.7.8 1")),
            ("TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", fields("TCP4 1.2.3.4 5.6.7.8 1 2 3")),
            ("TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", fields("TCP4 1.2.3.4 5.6.7.8 1 2 ")),
            ("TCP4  1.2.3.4 5.6.7.8 1 2\r\n", fields("TCP4  1.2.3.4 5.6.7.8 1 2")),
            ("UNKNOWNS\r\n", fields("UNKNOWNS")),
            ("UDP4 1.2.3.4 5.6.7.8 1 2\r\n", Protocol { protocol: text("UDP4") }),
            ("tcp4 1.2.3.4 5.6.7.8 1 2\r\n", Protocol { protocol: text("tcp4") }),
            ("TCP4 1.2.3 5.6.7.8 1 2\r\n", address("TCP4", "1.2.3")),
            ("TCP4 01.2.3.4 5.6.7.8 1 2\r\n", address("TCP4", "01.2.3.4")),
            ("TCP4 1.2.3.4 5.6.7.256 1 2\r\n", address("TCP4", "5.6.7.256")),
            ("TCP4 ::1 ::1 1 2\r\n", address("TCP4", "::1")),
            ("TCP6 1.2.3.4 ::1 1 2\r\n", address("TCP6", "1.2.3.4")),
            ("TCP6 ::1 1::2::3 1 2\r\n", address("TCP6", "1::2::3")),
            ("TCP6 [::1] ::1 1 2\r\n", address("TCP6", "[::1]")),
            ("TCP6 ::1 fe80::1%1 1 2\r\n", address("TCP6", "fe80::1%1")),
            ("TCP4 1.2.3.4 5.6.7.8 65536 2\r\n", Port { port: text("65536") }),
            ("TCP4 1.2.3.4 5.6.7.8 1 02\r\n", Port { port: text("02") }),
            ("TCP4 1.2.3.4 5.6.7.8 1 +2\r\n", Port { port: text("+2") }),
            ("TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", Port { port: text("-1") }),
            ("TCP4 1.2.3.4 5.6.7.8 1 x\r\n", Port { port: text("x") }),
            ("TCP4 1.2.3.4 5.6.7.8 1 2\n", LineEnd { at: 30 }),
            ("TCP4 1.2.3.4 5.6.7.8 1 2\n\n", LineEnd { at: 30 }),
            ("TCP4 1.2.3.4 5.6.7.8 1 2\rx", LineEnd { at: 30 }),
            ("TCP4 1.2.3.4 5.6.7.8 1 2\r\r\n", LineEnd { at: 30 }),
            ("UNKNOWN a\nb\r\n", LineEnd { at: 15 }),
        ] {
            assert_eq!(outcome(format!("PROXY {line}").as_bytes()), Err(error), "{line:?}");
        }
        assert_eq!(outcome(b"PROXY TCP4 \xff 5.6.7.8 1 2\r\n"), Err(address("TCP4", "\\xff")));
        assert_eq!(outcome(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 \xff\r\n"), Err(Port { port: text("\\xff") }));
        let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 2000]].concat();
        assert_eq!(parse(&endless[..V1_BYTES_MAX - 2]), Ok(None));
        assert_eq!(parse(&endless[..V1_BYTES_MAX - 1]), Err(ProxyProtocolError::LineTooLong), "no CRLF fits any more");
        assert_eq!(outcome(&endless), Err(ProxyProtocolError::LineTooLong));
    }

    #[test]
    fn a_binary_header_names_source_and_destination() {
        check(&v2(0x21, 0x11, V4_BLOCK), proxied("203.0.113.7:56324", "192.0.2.1:443"));
        let source: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        let ports = [0, 1, 0xff, 0xff];
        let block = [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &ports].concat();
        check(&v2(0x21, 0x21, &block), proxied("[2001:db8::7]:1", "[::1]:65535"));
        let mapped = Ipv4Addr::new(203, 0, 113, 7).to_ipv6_mapped().octets();
        let block = [&mapped[..], &mapped, &ports].concat();
        check(&v2(0x21, 0x21, &block), proxied("203.0.113.7:1", "203.0.113.7:65535"));
    }

    #[test]
    fn tlvs_are_skipped_up_to_the_bound() {
        let unique_id = [5, 0, 4, 1, 2, 3, 4];
        check(&v2(0x21, 0x11, &[V4_BLOCK, &unique_id].concat()), proxied("203.0.113.7:56324", "192.0.2.1:443"));
        let padded = |len: usize| v2(0x21, 0x11, &[V4_BLOCK, &vec![4; len - 16 - V4_BLOCK.len()]].concat());
        check(&padded(V2_BYTES_MAX), proxied("203.0.113.7:56324", "192.0.2.1:443"));
        refuse(
            &padded(V2_BYTES_MAX + 1)[..16],
            "PROXY header announces 537 bytes, at most 536 are taken (section 2); let the proxy send fewer TLVs",
        );
        assert_eq!(outcome(&padded(16 + 65_535)[..2000]), Err(ProxyProtocolError::TooLong { bytes: 65_551 }));
    }

    #[test]
    fn a_connection_of_the_proxy_itself_is_local_whatever_else_it_says() {
        for family in [0x00, 0x11, 0x21, 0x31, 0x99, 0xff] {
            check(&v2(0x20, family, b""), ProxyHeader::Local);
            check(&v2(0x20, family, V4_BLOCK), ProxyHeader::Local);
        }
    }

    #[test]
    fn what_is_not_tcp_over_ip_is_unknown() {
        for (family, bytes) in
            [(0x00, 0), (0x01, 0), (0x02, 0), (0x10, 0), (0x20, 0), (0x30, 0), (0x12, 12), (0x22, 36), (0x31, 216), (0x32, 216)]
        {
            check(&v2(0x21, family, &vec![7; bytes]), ProxyHeader::Unknown);
            check(&v2(0x21, family, &vec![7; bytes + 9]), ProxyHeader::Unknown);
            if let Some(less) = bytes.checked_sub(1) {
                let error = ProxyProtocolError::TooShort { byte: family, announced: less, expected: bytes };
                assert_eq!(outcome(&v2(0x21, family, &vec![7; less])), Err(error));
            }
        }
    }

    #[test]
    fn a_binary_header_with_anything_else_is_refused_at_its_first_wrong_byte() {
        for byte in [0x00, 0x01, 0x11, 0x22, 0x2f, 0x31, 0xff] {
            assert_eq!(outcome(&v2(byte, 0x11, V4_BLOCK)[..13]), Err(ProxyProtocolError::Command { byte }));
        }
        for byte in [0x03, 0x13, 0x1f, 0x33, 0x40, 0x41, 0xf1, 0xff] {
            assert_eq!(outcome(&v2(0x21, byte, V4_BLOCK)[..14]), Err(ProxyProtocolError::Family { byte }));
        }
        for (family, expected) in [(0x11, 12), (0x21, 36)] {
            let error = ProxyProtocolError::TooShort { byte: family, announced: expected - 1, expected };
            assert_eq!(outcome(&v2(0x21, family, &vec![0; expected - 1])[..16]), Err(error));
        }
        refuse(&v2(0x22, 0x11, b""), "PROXY header has version and command 0x22; 0x20, LOCAL, and 0x21, PROXY, are possible (section 2.2)");
        refuse(&v2(0x21, 0x41, b""), "PROXY header has family and transport 0x41; 0 to 3, and 0 to 2, are possible (section 2.2)");
        refuse(
            &v2(0x21, 0x21, V4_BLOCK),
            "PROXY header announces 12 bytes of addresses; its family and transport, 0x21, have 36 (section 2.2)",
        );
    }

    #[test]
    fn what_is_no_header_is_refused_at_the_first_byte_that_shows_it() {
        for (bytes, at) in [
            (&b"GET / HTTP/1.1\r\n"[..], 0),
            (b"\x16\x03\x01", 0),
            (b"\n", 0),
            (b"POST /publish", 1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 2),
            (b"proxy TCP4", 0),
            (b"PROXY\r\n", 5),
            (b"PROXY\tTCP4", 5),
            (b"\r\nGET", 2),
            (b"\r\n\r\n\0\r\nQUIT\r\n", 11),
        ] {
            assert_eq!(outcome(bytes), Err(ProxyProtocolError::Signature { at, byte: bytes[at] }), "{}", bytes.escape_ascii());
            assert_eq!(parse(&bytes[..at]), Ok(None));
        }
        refuse(
            b"GET / HTTP/1.1",
            "connection does not begin with a PROXY protocol header, its byte 0 is 0x47; let the proxy send one, or configure the listener to expect none",
        );
    }

    #[test]
    fn the_client_is_the_source_or_else_the_peer() {
        let peer: SocketAddr = "[::ffff:10.0.0.1]:1234".parse().expect("an address");
        assert_eq!(proxied("203.0.113.7:1", "192.0.2.1:2").client(peer), "203.0.113.7:1".parse().expect("an address"));
        for header in [ProxyHeader::Local, ProxyHeader::Unknown] {
            assert_eq!(header.client(peer), "10.0.0.1:1234".parse().expect("an address"));
        }
    }

    #[test]
    fn every_pair_of_endpoints_comes_back_from_both_versions() {
        for seed in 0..500 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let ports: [u16; 2] = random.random();
            let (line, binary, ips) = if random.random() {
                let ips: [[u8; 4]; 2] = random.random();
                let block = [&ips[0][..], &ips[1], &ports[0].to_be_bytes(), &ports[1].to_be_bytes()].concat();
                ("TCP4", v2(0x21, 0x11, &block), ips.map(IpAddr::from))
            } else {
                let ips: [[u8; 16]; 2] = random.random();
                let block = [&ips[0][..], &ips[1], &ports[0].to_be_bytes(), &ports[1].to_be_bytes()].concat();
                ("TCP6", v2(0x21, 0x21, &block), ips.map(IpAddr::from))
            };
            let line = format!("PROXY {line} {} {} {} {}\r\n", ips[0], ips[1], ports[0], ports[1]);
            let header = ProxyHeader::Proxied { source: SocketAddr::new(ips[0], ports[0]), destination: SocketAddr::new(ips[1], ports[1]) };
            check(line.as_bytes(), header);
            check(&binary, header);
        }
    }

    #[test]
    fn damaged_headers_and_noise_are_decided_once() {
        for seed in 0..3000 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let mut bytes = match random.random_range(0..3) {
                0 => b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\nGET /".to_vec(),
                1 => v2(0x21, 0x11, &[V4_BLOCK, b"\x04\x00\x01x"].concat()),
                _ => (0..random.random_range(0..40)).map(|_| random.random()).collect(),
            };
            for _ in 0..random.random_range(0..4) {
                if !bytes.is_empty() {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = random.random();
                }
            }
            if let Err(error) = outcome(&bytes) {
                assert!(!error.to_string().is_empty(), "seed {seed}");
            }
        }
    }
}
