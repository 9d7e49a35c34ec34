//! Limits by client address: of the socket, or as a trusted proxy says it.

mod common;

use std::time::Duration;

use common::raw::{self, Raw, Response};
use common::{Gateway, SOON, eventually, foreign, gateway, sleep_ms};

/// Opens a WebSocket whose first bytes are `preface` and whose head has the lines `extra`.
fn open(gateway: &Gateway, preface: &[u8], extra: &str) -> Result<Raw, Response> {
    let mut raw = Raw::connect(gateway.port);
    raw.write(preface);
    raw.write(raw::upgrade("/ws?room=a", extra).as_bytes());
    let response = raw.response();
    if response.status == 101 { Ok(raw) } else { Err(response) }
}

fn is_limited(refused: Result<Raw, Response>) {
    let response = match refused {
        Ok(_) => panic!("one too many was let in"),
        Err(response) => response,
    };
    assert_eq!(response.status, 429, "{response:?}");
    assert!(response.header("retry-after").is_some(), "{response:?}");
    assert!(response.text().contains("limits.connections_per_address"), "{}", response.text());
}

#[test]
fn an_address_has_as_many_connections_as_it_may_and_no_more() {
    for shards in [1, 3] {
        let gateway = gateway().shards(shards).limit("connections_per_address", 3).start();
        let mut members: Vec<Raw> = (0..3).map(|_| open(&gateway, b"", "").expect("within the bound")).collect();
        for _ in 0..5 {
            is_limited(open(&gateway, b"", ""));
        }
        let own = format!("http://127.0.0.1:{}", gateway.port);
        let mut browser = foreign::try_connect(&gateway, "/ws", &[("origin", &own)]).expect("a browser is upgraded");
        assert_eq!(u16::from(browser.closed().expect("a close frame").code), 4529);
        gateway.wait_for_closes("address_limited", 6);
        let stream = raw::http(gateway.port, b"GET /events?topic=a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        assert!(stream.status == 200 && stream.text().contains("\"code\":4529"), "{stream:?}");
        // A place that becomes free is given away again, however often.
        for _ in 0..10 {
            drop(members.pop());
            members.push(eventually(SOON, || open(&gateway, b"", "").map_err(|response| format!("{response:?}"))));
        }
        members[0].send_text("unharmed");
        members[0].expect_text("unharmed");
    }
}

#[test]
fn half_open_connections_count_too() {
    let gateway = gateway().limit("connections_per_address", 4).limit("accept_defer_ms", 0).start();
    let silent: Vec<Raw> = (0..4).map(|_| Raw::connect(gateway.port)).collect();
    eventually(SOON, || match gateway.metrics().sum("shardcast_connections", &[]) {
        4.0 => Ok(()),
        count => Err(format!("{count} of 4 are accepted")),
    });
    is_limited(open(&gateway, b"", ""));
    drop(silent);
    eventually(SOON, || open(&gateway, b"", "").map(drop).map_err(|response| format!("{response:?}")));
}

#[test]
fn a_trusted_proxy_says_in_a_header_whose_request_it_is() {
    for (source, header) in [("x-forwarded-for", "X-Forwarded-For: {}\r\n"), ("forwarded", "Forwarded: for=\"{}\"\r\n")] {
        let gateway = gateway()
            .limit("connections_per_address", 1)
            .env("SHARDCAST_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")
            .env("SHARDCAST_CLIENT_ADDRESS", source)
            .start();
        let of = |address: &str| open(&gateway, b"", &header.replace("{}", address));
        let _first = of("203.0.113.7").expect("the first of its address");
        let _second = of("203.0.113.8").expect("the first of its address");
        is_limited(of("203.0.113.7"));
        // What stands in front of the first address that is not trusted was written by the client.
        let forged = header.replace("{}", "198.51.100.1") + &header.replace("{}", "203.0.113.7") + &header.replace("{}", "10.1.1.1");
        is_limited(open(&gateway, b"", &forged));
        let _other = of(if source == "forwarded" { "[2001:db8::1]" } else { "2001:db8::1" }).expect("the first of its /64");
        is_limited(of(if source == "forwarded" { "[2001:db8::2]" } else { "2001:db8::2" }));
    }
}

#[test]
fn whoever_is_not_trusted_cannot_say_who_it_is() {
    let gateway = gateway()
        .limit("connections_per_address", 1)
        .env("SHARDCAST_TRUSTED_PROXIES", "10.0.0.0/8")
        .env("SHARDCAST_CLIENT_ADDRESS", "x-forwarded-for")
        .start();
    let _first = open(&gateway, b"", "X-Forwarded-For: 203.0.113.7\r\n").expect("the first");
    is_limited(open(&gateway, b"", "X-Forwarded-For: 203.0.113.8\r\n"));
}

#[test]
fn a_trusted_proxys_connections_begin_with_a_proxy_protocol_header() {
    let gateway = gateway()
        .limit("connections_per_address", 1)
        .limit("head_timeout_ms", 1000)
        .env("SHARDCAST_TRUSTED_PROXIES", "127.0.0.1")
        .env("SHARDCAST_CLIENT_ADDRESS", "proxy-protocol")
        .start();
    let v1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 1234 80\r\n";
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([203, 0, 113, 8, 192, 0, 2, 1, 1, 2, 0, 80]);
    let mut first = open(&gateway, v1, "").expect("the first of its address");
    is_limited(open(&gateway, v1, ""));
    let mut second = open(&gateway, &v2, "").expect("the first of its address");
    is_limited(open(&gateway, &v2, ""));
    first.send_text("hello");
    second.expect_text("hello");
    // In pieces, and for several requests on one connection.
    let mut raw = Raw::connect(gateway.port);
    for byte in b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" {
        raw.write(&[*byte]);
    }
    assert_eq!(raw.response().status, 200);
    raw.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(raw.response().status, 200);
    // Without one, or with half of one, there is nothing that could be answered.
    let mut without = Raw::connect(gateway.port);
    without.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(without.next_frame().is_err(), "answered without a header");
    let mut half = Raw::connect(gateway.port);
    half.write(&v1[..20]);
    assert!(half.answered_within(Duration::from_secs(5)), "half a header is waited for without end");
    gateway.wait_for_connections(2);
}

#[test]
fn an_address_opens_as_many_in_a_second_as_it_may() {
    let gateway = gateway()
        .limit("handshakes_per_address", 2)
        .env("SHARDCAST_TRUSTED_PROXIES", "127.0.0.1")
        .env("SHARDCAST_CLIENT_ADDRESS", "x-forwarded-for")
        .start();
    let of = |address: &str| open(&gateway, b"", &format!("X-Forwarded-For: {address}\r\n"));
    let results: Vec<_> = (0..10).map(|_| of("203.0.113.7")).collect();
    let opened = results.iter().filter(|result| result.is_ok()).count();
    assert!((2..10).contains(&opened), "{opened} of 10 opened");
    assert!(results.iter().flat_map(|result| result.as_ref().err()).all(|response| response.status == 429));
    of("203.0.113.8").expect("another address has its own rate");
    sleep_ms(1500);
    of("203.0.113.7").expect("the rate has recovered");
}

#[test]
fn a_source_that_nobody_is_trusted_for_is_a_mistake() {
    let (code, log) = gateway().env("SHARDCAST_CLIENT_ADDRESS", "forwarded").run();
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("client_address is \"forwarded\" and no proxy is trusted to say it"), "{log}");
}

/// One socket for both families; who comes over IPv4 has its IPv4 address, for limits, proxies and logs.
#[test]
fn a_listener_of_both_families_knows_clients_by_their_own_address() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        let (code, log) = gateway().listen("[::]:0").run();
        assert_eq!(code, Some(1), "{log}");
        return assert!(log.contains("this host has no IPv6") && log.contains("--listen 0.0.0.0:0"), "{log}");
    }
    let gateway = gateway().listen("[::]:0").shards(3).limit("connections_per_address", 1).limit("messages_per_second", 1).start();
    let mut first = open(&gateway, b"", "").expect("the first over IPv4");
    is_limited(open(&gateway, b"", ""));
    let mut other = Raw::over(std::net::TcpStream::connect(("::1", gateway.port)).expect("connects over IPv6"));
    other.write(raw::upgrade("/ws?room=a", "").as_bytes());
    other.expect_upgraded();
    first.send_text("hello");
    other.expect_text("hello");
    (0..5).for_each(|_| first.send_text("too much"));
    (0..5).for_each(|_| other.send_text("too much"));
    gateway.wait_for_closes("rate_limited", 2);
    eventually(SOON, || match gateway.log() {
        log if log.contains("peer=127.0.0.1:") && log.contains("peer=[::1]:") && !log.contains("::ffff:") => Ok(()),
        log => Err(log),
    });
}

#[test]
fn a_proxy_that_comes_over_ipv4_to_a_listener_of_both_families_is_trusted_by_its_ipv4_address() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    let gateway = gateway()
        .listen("[::]:0")
        .limit("connections_per_address", 1)
        .env("SHARDCAST_TRUSTED_PROXIES", "127.0.0.0/8")
        .env("SHARDCAST_CLIENT_ADDRESS", "x-forwarded-for")
        .start();
    let of = |address: &str| open(&gateway, b"", &format!("X-Forwarded-For: {address}\r\n"));
    let _first = of("203.0.113.7").expect("the first of its address");
    let _second = of("203.0.113.8").expect("the first of its address");
    is_limited(of("::ffff:203.0.113.7"));
}
