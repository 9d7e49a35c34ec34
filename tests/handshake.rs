//! The opening handshake: every refusal of docs/protocol.md, and what must be accepted.

mod common;

use common::frame::{self, FIN, TEXT};
use common::raw::{self, End, KEY, Raw};
use common::{SOON, foreign, gateway, sleep_ms};
use std::time::Duration;

/// One request and the status that it must be answered with.
fn check(port: u16, about: &str, request: &str, status: u16) -> raw::Response {
    let response = raw::http(port, request.as_bytes());
    assert_eq!(response.status, status, "{about}: {response:?}");
    response
}

/// An upgrade request with one line replaced; an empty replacement drops the line.
fn upgrade_with(line: &str, replacement: &str) -> String {
    let request = raw::upgrade("/ws", "");
    assert!(request.contains(line), "{line} is not in the request");
    let replacement = if replacement.is_empty() { String::new() } else { format!("{replacement}\r\n") };
    request.replace(&format!("{line}\r\n"), &replacement)
}

#[test]
fn a_malformed_request_is_answered_400() {
    let gateway = gateway().start();
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let cases = [
        ("garbage", "\x01\x02\x03 garbage\r\n\r\n".to_owned()),
        ("no request line", ": nonsense\r\n\r\n".to_owned()),
        ("no Host", upgrade_with("Host: localhost", "")),
        ("two Hosts", upgrade_with("Host: localhost", "Host: a\r\nHost: b")),
        ("a header without a colon", upgrade_with("Host: localhost", "Host localhost")),
        ("no key", upgrade_with(&key, "")),
        ("a key of 15 bytes", upgrade_with(&key, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA")),
        ("a key that is not base64", upgrade_with(&key, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==")),
        ("two keys", upgrade_with(&key, &format!("{key}\r\n{key}"))),
        ("a room name that is not UTF-8", raw::upgrade("/ws?room=%ff", "")),
        ("a room name with a control character", raw::upgrade("/ws?room=a%00b", "")),
        ("a room name of 256 bytes", raw::upgrade(&format!("/ws?room={}", "r".repeat(256)), "")),
    ];
    for (about, request) in cases {
        check(gateway.port, about, &request, 400);
    }
}

#[test]
fn an_unknown_path_is_answered_404() {
    let gateway = gateway().start();
    check(gateway.port, "a path that is not there", &raw::upgrade("/wss", ""), 404);
    check(gateway.port, "a page that is not there", "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404);
}

#[test]
fn another_method_is_answered_405_with_the_methods_there_are() {
    let gateway = gateway().start();
    for method in ["POST", "PUT", "DELETE"] {
        let request = format!("{method} /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let response = check(gateway.port, method, &request, 405);
        assert!(response.header("allow").is_some_and(|allow| allow.contains("GET")), "{response:?}");
    }
}

#[test]
fn a_request_without_upgrade_or_with_another_version_is_answered_426() {
    let gateway = gateway().start();
    let cases = [
        ("no upgrade at all", "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        ("an upgrade to something else", upgrade_with("Upgrade: websocket", "Upgrade: h2c")),
        ("version 8", upgrade_with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8")),
        ("no version", upgrade_with("Sec-WebSocket-Version: 13", "")),
    ];
    for (about, request) in cases {
        let response = check(gateway.port, about, &request, 426);
        assert!(response.header("upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket")), "{about}: {response:?}");
        assert_eq!(response.header("sec-websocket-version"), Some("13"), "{about}: {response:?}");
    }
}

#[test]
fn a_head_over_head_bytes_max_is_answered_431() {
    let gateway = gateway().limit("head_bytes_max", 2048).start();
    let fits = raw::upgrade("/echo", &format!("X-Filler: {}\r\n", "x".repeat(1500)));
    let mut raw = Raw::connect(gateway.port);
    raw.write(fits.as_bytes());
    raw.expect_upgraded();
    check(gateway.port, "4 KiB of one header", &raw::upgrade("/echo", &format!("X-Filler: {}\r\n", "x".repeat(4096))), 431);
    // Refused by what has come, not by what is still to come.
    let mut endless = Raw::connect(gateway.port);
    endless.write(format!("GET /echo HTTP/1.1\r\nX-Filler: {}", "x".repeat(4096)).as_bytes());
    assert_eq!(endless.response().status, 431);
    endless.expect_end(SOON);
}

#[test]
fn an_http_2_preface_is_answered_505() {
    let gateway = gateway().start();
    check(gateway.port, "the preface of RFC 9113 section 3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 505);
}

#[test]
fn a_refused_client_is_told_in_words_what_to_do() {
    let gateway = gateway().start();
    let response = check(gateway.port, "a path that is not there", &raw::upgrade("/socket", ""), 404);
    assert!(!response.text().trim().is_empty(), "a refusal has a body that says why");
}

#[test]
fn header_names_and_tokens_are_compared_without_case() {
    let gateway = gateway().start();
    let request = format!(
        "GET /echo HTTP/1.1\r\nHOST: localhost\r\ncOnNeCtIoN: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\nSEC-WEBSOCKET-KEY: {KEY}\r\n\r\n"
    );
    let mut raw = Raw::connect(gateway.port);
    raw.write(request.as_bytes());
    raw.expect_upgraded();
}

#[test]
fn a_browser_from_a_foreign_origin_is_upgraded_and_closed_4403() {
    let gateway = gateway().start();
    let host = format!("127.0.0.1:{}", gateway.port);
    for origin in ["http://evil.example", "https://localhost.evil.example", "null"] {
        let mut client = foreign::try_connect(&gateway, "/ws", &[("origin", origin)]).expect("a browser is upgraded");
        assert_eq!(client.close_code(), 4403, "{origin} at {host}");
    }
    gateway.wait_for_closes("4403", 3);
}

#[test]
fn a_browser_from_the_same_host_is_welcome_and_others_have_no_origin() {
    let gateway = gateway().start();
    let own = format!("http://127.0.0.1:{}", gateway.port);
    let mut browser = foreign::try_connect(&gateway, "/echo", &[("origin", &own)]).expect("its own page");
    browser.text("hello");
    browser.expect_text("hello");
    let mut program = foreign::connect(&gateway, "/echo");
    program.text("hello");
    program.expect_text("hello");
}

#[test]
fn the_subprotocol_is_selected_or_refused_clearly() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(raw::upgrade("/ws", "Sec-WebSocket-Protocol: something.else, shardcast.raw\r\n").as_bytes());
    assert_eq!(raw.expect_upgraded().header("sec-websocket-protocol"), Some("shardcast.raw"));
    let mut raw = Raw::connect(gateway.port);
    raw.write(raw::upgrade("/ws", "").as_bytes());
    assert_eq!(raw.expect_upgraded().header("sec-websocket-protocol"), None, "none offered, none selected");
    check(gateway.port, "nothing we speak", &raw::upgrade("/ws", "Sec-WebSocket-Protocol: chat.v9\r\n"), 400);
}

#[test]
fn compression_is_not_agreed_to() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(raw::upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n").as_bytes());
    assert_eq!(raw.expect_upgraded().header("sec-websocket-extensions"), None);
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    for byte in raw::upgrade("/echo", "").as_bytes() {
        raw.write(&[*byte]);
        sleep_ms(1);
    }
    raw.expect_upgraded();
    raw.send_text("still here");
    raw.expect_text("still here");
}

#[test]
fn frames_in_the_packet_of_the_handshake_are_not_lost() {
    let gateway = gateway().start();
    let whole = [raw::upgrade("/echo", "").into_bytes(), frame::masked(FIN | TEXT, b"one"), frame::masked(FIN | TEXT, b"two")].concat();
    // In one piece, and cut at every place in the second frame and before it.
    let head = whole.len() - frame::masked(FIN | TEXT, b"one").len() - frame::masked(FIN | TEXT, b"two").len();
    for cut in std::iter::once(whole.len()).chain(head - 3..whole.len()) {
        let mut raw = Raw::connect(gateway.port);
        raw.write(&whole[..cut]);
        if cut < whole.len() {
            sleep_ms(2);
            raw.write(&whole[cut..]);
        }
        raw.expect_upgraded();
        raw.expect_text("one");
        raw.expect_text("two");
    }
}

#[test]
fn a_client_that_trickles_its_head_is_gone_in_time() {
    let gateway = gateway().limit("head_timeout_ms", 500).start();
    let mut raw = Raw::connect(gateway.port);
    let begun = common::now();
    let mut open = true;
    for byte in raw::upgrade("/echo", &format!("X-Filler: {}\r\n", "x".repeat(1000))).bytes() {
        open = raw.try_write(&[byte]) && raw.end_within(Duration::from_millis(50)) == End::Open;
        if !open || begun.elapsed() > Duration::from_secs(6) {
            break;
        }
    }
    assert!(!open, "one byte every 50 ms kept a connection for {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_millis(400), "closed before its time: {:?}", begun.elapsed());
    let said = String::from_utf8_lossy(raw.unread()).into_owned();
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    gateway.wait_for_closes("head_timeout", 1);
}

#[test]
fn a_client_that_says_nothing_is_gone_in_time() {
    let gateway = gateway().limit("head_timeout_ms", 500).start();
    let mut raw = Raw::connect(gateway.port);
    assert_eq!(raw.end_within(Duration::from_millis(300)), End::Open, "closed before its time");
    raw.expect_end(Duration::from_secs(5));
    gateway.wait_for_closes("head_timeout", 1);
}

#[test]
fn garbage_of_any_length_ends_the_connection_and_nothing_else() {
    let gateway = gateway().start();
    let mut healthy = foreign::connect(&gateway, "/echo");
    for length in [1, 7, 100, 5000, 40_000] {
        let garbage: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8 | 0x80).collect();
        let mut raw = Raw::connect(gateway.port);
        raw.try_write(&garbage);
        raw.try_write(b"\r\n\r\n");
        raw.expect_end(SOON);
    }
    healthy.text("unharmed");
    healthy.expect_text("unharmed");
}
