//! Any bytes as the first ones of a connection from a proxy: decided once, by exactly the bytes of the header, and what it says comes back when
//! it is said again.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use shardcast::proto::client_address::ProxyHeader;
use shardcast::proto::client_address::proxy_protocol::{V1_BYTES_MAX, V2_BYTES_MAX, parse};

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    let cuts = || 0..data.len().min(V2_BYTES_MAX + 1);
    let decided = cuts().find(|cut| parse(&data[..*cut]) != Ok(None)).unwrap_or(data.len());
    assert!(cuts().skip(decided).all(|cut| parse(&data[..cut]) == whole));
    match whole {
        Ok(None) => assert!(data.len() < V2_BYTES_MAX),
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Some((header, len))) => {
            let is_line = data.starts_with(b"PROXY ");
            assert!(decided == len && len <= if is_line { V1_BYTES_MAX } else { V2_BYTES_MAX });
            assert!(!is_line || data[..len].ends_with(b"\r\n") && header != ProxyHeader::Local);
            if let ProxyHeader::Proxied { source, destination } = header {
                let (line, binary) = said(source, destination);
                assert_eq!(parse(line.as_bytes()), Ok(Some((header, line.len()))));
                assert_eq!(parse(&binary), Ok(Some((header, binary.len()))));
            }
        }
    }
});

/// A header of each version, of IPv6 always: IPv4 addresses come back from it as what they are.
fn said(source: SocketAddr, destination: SocketAddr) -> (String, Vec<u8>) {
    let ipv6 = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    assert!([source, destination].iter().all(|address| address.ip() == address.ip().to_canonical()));
    let line = format!("PROXY TCP6 {} {} {} {}\r\n", ipv6(source), ipv6(destination), source.port(), destination.port());
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    binary.extend([source, destination].iter().flat_map(|address| ipv6(*address).octets()));
    binary.extend([source, destination].iter().flat_map(|address| address.port().to_be_bytes()));
    (line, binary)
}
