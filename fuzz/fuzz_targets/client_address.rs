//! A header's kind, a line of networks, a line with the peer, and a line for each header: the client is whom a reader from the left finds, and what
//! a trusted proxy appends is believed whatever stands before it.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use shardcast::proto::client_address::{ForwardingHeader, Networks, Prefix, client};

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    let header = if kind % 2 == 0 { ForwardingHeader::Forwarded } else { ForwardingHeader::XForwardedFor };
    let mut lines = text.split(|&byte| byte == b'\n');
    let (Some(networks), Some(peer)) = (lines.next(), lines.next()) else { return };
    let (Ok(networks), Ok(peer)) = (str::from_utf8(networks), str::from_utf8(peer)) else { return };
    let Ok(peer) = peer.parse::<IpAddr>() else { return };
    let trusted = match Networks::parse(networks.split_ascii_whitespace()) {
        Ok(trusted) => trusted,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for network in trusted.iter() {
        assert_eq!(Prefix::parse(&network.to_string()), Ok(network));
        assert_eq!(network.contains(peer), begins_with(&network.to_string(), peer.to_canonical()), "{peer} in {network}");
    }
    let values: Vec<_> = lines.collect();
    let answer = client(peer, &trusted, header, values.iter().copied());
    assert_eq!(answer, answer.to_canonical());
    if let Some(elements) = elements_from_the_left(header, &values) {
        assert_eq!(answer, walked(peer.to_canonical(), &trusted, header, &elements));
    }

    // What stands before an element of the peer is asked for as if it came from whom that element names.
    for named in ["203.0.113.7", "[2001:db8:ff::3]"] {
        let said = if *kind % 2 == 0 { format!("by=\"\\\"\\\\,\";for=\"{named}:80\"") } else { format!("{named}:80") };
        let named = named.trim_matches(['[', ']']).parse().expect("an address");
        let expect = client(if trusted.contains(peer) { named } else { peer }, &trusted, header, values.iter().copied());
        let own_line = values.iter().copied().chain([said.as_bytes()]);
        assert_eq!(client(peer, &trusted, header, own_line.collect::<Vec<_>>().into_iter()), expect);
        let appended = [values.last().copied().unwrap_or_default(), b",", said.as_bytes()].concat();
        let others = values.iter().copied().take(values.len().saturating_sub(1)).chain([appended.as_slice()]);
        assert_eq!(client(peer, &trusted, header, others.collect::<Vec<_>>().into_iter()), expect);
    }
});

/// Bit by bit, of the text of a network.
fn begins_with(network: &str, address: IpAddr) -> bool {
    let (first, length) = network.split_once('/').map_or((network, 128), |(first, length)| (first, length.parse().expect("a length")));
    let bits = |address: IpAddr| -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
    };
    let first: IpAddr = first.parse().expect("an address");
    first.is_ipv4() == address.is_ipv4() && bits(first).iter().zip(bits(address)).take(length).all(|(expected, bit)| *expected == bit)
}

/// All elements that are not empty, in order; none where quotes are not as the grammar has them.
fn elements_from_the_left<'v>(header: ForwardingHeader, values: &[&'v [u8]]) -> Option<Vec<&'v [u8]>> {
    let mut elements = Vec::new();
    for value in values {
        let (mut start, mut in_quotes, mut bytes) = (0, false, value.iter().enumerate());
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b',' if !in_quotes => {
                    elements.push(&value[start..at]);
                    start = at + 1;
                }
                _ if header == ForwardingHeader::XForwardedFor => {}
                b'"' => in_quotes = !in_quotes,
                b'\\' if in_quotes => _ = bytes.next()?,
                b'\\' => return None,
                _ => {}
            }
        }
        if in_quotes {
            return None;
        }
        elements.push(&value[start..]);
    }
    elements.retain(|element| !element.trim_ascii().is_empty());
    Some(elements)
}

fn walked(mut nearest: IpAddr, trusted: &Networks, header: ForwardingHeader, elements: &[&[u8]]) -> IpAddr {
    for element in elements.iter().rev() {
        // What an element says is what two peers, who are all that is trusted, are answered alike.
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|peer| {
            let only = Networks::parse([peer]).expect("an address is a network");
            client(peer.parse().expect("an address"), &only, header, [*element].into_iter())
        });
        if !trusted.contains(nearest) || one != other {
            break;
        }
        nearest = one;
    }
    nearest
}
