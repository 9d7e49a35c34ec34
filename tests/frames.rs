//! Frames after the handshake: RFC 6455 sections 5 to 7, byte by byte, each violation with its close code.

mod common;

use common::frame::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, masked};
use common::raw::{self, Frame, Raw};
use common::{Gateway, SOON, foreign, gateway, sleep_ms};

/// What was sent is answered with this close code, and the gateway ends the connection.
fn check(gateway: &Gateway, about: &str, bytes: &[u8], code: u16) {
    let mut raw = raw::ws(gateway, "/echo");
    raw.write(bytes);
    let (closed, reason) = raw.close_frame();
    assert_eq!(closed, Some(code), "{about}: {reason}");
    assert!(!reason.is_empty(), "{about}: the reason says what was wrong");
    raw.expect_end(SOON);
}

#[test]
fn a_protocol_error_closes_1002() {
    let gateway = gateway().start();
    let mut witness = foreign::connect(&gateway, "/echo");
    let cases: &[(&str, Vec<u8>)] = &[
        ("an unmasked frame", frame::unmasked(FIN | TEXT, b"hello")),
        ("RSV1 without an extension", masked(FIN | 0x40 | TEXT, b"hello")),
        ("RSV2", masked(FIN | 0x20 | TEXT, b"hello")),
        ("RSV3", masked(FIN | 0x10 | TEXT, b"hello")),
        ("reserved opcode 3", masked(FIN | 0x3, b"hello")),
        ("reserved opcode 7", masked(FIN | 0x7, b"")),
        ("reserved opcode 11", masked(FIN | 0xb, b"hello")),
        ("reserved opcode 15", masked(FIN | 0xf, b"")),
        ("a ping in fragments", masked(PING, b"hello")),
        ("a close in fragments", masked(CLOSE, &frame::close_payload(1000, b""))),
        ("a ping of 126 bytes", masked(FIN | PING, &[b'p'; 126])),
        ("a pong of 126 bytes", masked(FIN | PONG, &[b'p'; 126])),
        ("a close of 126 bytes", masked(FIN | CLOSE, &frame::close_payload(1000, &[b'r'; 124]))),
        ("a ping that announces 2^40 bytes", frame::head_only(FIN | PING, 1 << 40)),
        ("a continuation of nothing", masked(FIN | CONTINUATION, b"hello")),
        ("an unfinished continuation of nothing", masked(CONTINUATION, b"hello")),
        ("a new message inside a fragmented one", [masked(TEXT, b"a"), masked(FIN | TEXT, b"b")].concat()),
        ("a new fragmented message inside one", [masked(BINARY, b"a"), masked(BINARY, b"b")].concat()),
        ("a length with the highest bit set", frame::head_only(FIN | BINARY, 1 << 63)),
        ("a 16-bit length for 5 bytes", [&[FIN | TEXT, 0x80 | 126, 0, 5, 0, 0, 0, 0][..], b"hello"].concat()),
        ("a 64-bit length for 5 bytes", [&[FIN | TEXT, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0][..], b"hello"].concat()),
        ("a close of one byte", masked(FIN | CLOSE, &[3])),
        ("close code 0", masked(FIN | CLOSE, &frame::close_payload(0, b""))),
        ("close code 999", masked(FIN | CLOSE, &frame::close_payload(999, b""))),
        ("close code 1004", masked(FIN | CLOSE, &frame::close_payload(1004, b""))),
        ("close code 1005", masked(FIN | CLOSE, &frame::close_payload(1005, b""))),
        ("close code 1006", masked(FIN | CLOSE, &frame::close_payload(1006, b""))),
        ("close code 1015", masked(FIN | CLOSE, &frame::close_payload(1015, b""))),
        ("close code 1016", masked(FIN | CLOSE, &frame::close_payload(1016, b""))),
        ("close code 2999", masked(FIN | CLOSE, &frame::close_payload(2999, b""))),
        ("close code 5000", masked(FIN | CLOSE, &frame::close_payload(5000, b""))),
    ];
    for (about, bytes) in cases {
        check(&gateway, about, bytes, 1002);
    }
    gateway.wait_for_closes("1002", cases.len() as u64);
    witness.text("unharmed");
    witness.expect_text("unharmed");
}

#[test]
fn text_that_is_not_utf_8_closes_1007() {
    let gateway = gateway().start();
    let cases: &[(&str, Vec<u8>)] = &[
        ("a lone continuation byte", masked(FIN | TEXT, b"a\x80b")),
        ("an overlong slash", masked(FIN | TEXT, b"\xc0\xaf")),
        ("a surrogate", masked(FIN | TEXT, b"\xed\xa0\x80")),
        ("beyond U+10FFFF", masked(FIN | TEXT, b"\xf4\x90\x80\x80")),
        ("a character cut off at the end", masked(FIN | TEXT, "ab€".as_bytes().split_last().expect("not empty").1)),
        ("cut off at the end of the last fragment", [masked(TEXT, b"a"), masked(FIN | CONTINUATION, b"\xe2\x82")].concat()),
        ("broken across fragments", [masked(TEXT, b"\xe2\x82"), masked(FIN | CONTINUATION, b"x")].concat()),
        ("a close reason", masked(FIN | CLOSE, &frame::close_payload(1000, b"\xff\xff"))),
    ];
    for (about, bytes) in cases {
        check(&gateway, about, bytes, 1007);
    }
    gateway.wait_for_closes("1007", cases.len() as u64);
}

#[test]
fn bad_utf_8_is_refused_before_the_message_is_whole() {
    let gateway = gateway().start();
    check(&gateway, "a first fragment; the rest never comes", &masked(TEXT, b"\xc0\xaf"), 1007);
    let mut unfinished = frame::masked(FIN | TEXT, &[b"\xff\xfe\xfd".as_slice(), &[b'x'; 20_000]].concat());
    unfinished.truncate(9000);
    check(&gateway, "half of a frame; the rest never comes", &unfinished, 1007);
}

#[test]
fn a_character_may_be_split_between_fragments() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    let text = "κόσμε 🦀";
    for (at, byte) in text.bytes().enumerate() {
        let first = if at == 0 { TEXT } else { CONTINUATION };
        raw.send(first, &[byte]);
    }
    raw.send(FIN | CONTINUATION, b"");
    raw.expect_text(text);
}

#[test]
fn a_message_over_message_bytes_max_closes_1009() {
    let gateway = gateway().limit("message_bytes_max", 1000).start();
    let cases: &[(&str, Vec<u8>)] = &[
        ("one byte too many", masked(FIN | BINARY, &[0; 1001])),
        ("in fragments", [masked(BINARY, &[0; 600]), masked(FIN | CONTINUATION, &[0; 401])].concat()),
        ("announced, not sent", frame::head_only(FIN | BINARY, 1001)),
        ("a bomb of 2^62 bytes", frame::head_only(FIN | TEXT, 1 << 62)),
        ("a bomb as the second fragment", [masked(BINARY, b"a"), frame::head_only(FIN | CONTINUATION, 1 << 40)].concat()),
    ];
    for (about, bytes) in cases {
        check(&gateway, about, bytes, 1009);
    }
    gateway.wait_for_closes("1009", cases.len() as u64);
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(FIN | BINARY, &[7; 1000]);
    assert_eq!(raw.frame(), Frame::new(FIN | BINARY, [7; 1000]));
}

#[test]
fn length_bombs_cost_no_memory() {
    let gateway = gateway().limit("message_bytes_max", 1 << 30).limit("queue_bytes_max", 1 << 30).start();
    let mut bombs: Vec<Raw> = (0..20).map(|_| raw::ws(&gateway, "/echo")).collect();
    let before = gateway.pss_bytes();
    for raw in &mut bombs {
        raw.write(&frame::head_only(FIN | BINARY, 1 << 30));
        raw.write(&[0; 100]);
    }
    sleep_ms(300);
    let grown = gateway.pss_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "20 announcements of 1 GiB took {grown} bytes");
}

#[test]
fn every_message_length_comes_back_whole() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    for length in [0, 1, 2, 3, 4, 5, 7, 8, 124, 125, 126, 127, 128, 1000, 4095, 4096, 4097, 65_534, 65_535, 65_536] {
        let payload: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
        raw.send(FIN | BINARY, &payload);
        assert!(raw.frame() == Frame::new(FIN | BINARY, payload), "{length} bytes");
    }
}

#[test]
fn a_frame_may_come_byte_by_byte() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    let bytes =
        [masked(FIN | TEXT, b"slowly"), masked(TEXT, b"in "), masked(FIN | PING, b"p"), masked(FIN | CONTINUATION, b"parts")].concat();
    for byte in bytes {
        raw.write(&[byte]);
        sleep_ms(1);
    }
    raw.expect_text("slowly");
    assert_eq!(raw.frame(), Frame::new(FIN | PONG, *b"p"));
    raw.expect_text("in parts");
}

#[test]
fn many_frames_in_one_packet_are_answered_in_order() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    let bytes: Vec<u8> = (0..500).flat_map(|number: u32| masked(FIN | TEXT, number.to_string().as_bytes())).collect();
    raw.write(&bytes);
    for number in 0..500 {
        raw.expect_text(&number.to_string());
    }
}

#[test]
fn a_fragmented_message_is_answered_as_one_frame() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(BINARY, b"one ");
    raw.send(CONTINUATION, b"");
    raw.send(CONTINUATION, b"two ");
    raw.send(FIN | CONTINUATION, b"three");
    assert_eq!(raw.frame(), Frame::new(FIN | BINARY, *b"one two three"));
}

#[test]
fn control_frames_between_fragments_are_answered_at_once() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(TEXT, b"begin ");
    raw.send(FIN | PING, b"are you there");
    assert_eq!(raw.frame(), Frame::new(FIN | PONG, *b"are you there"));
    raw.send(FIN | PONG, b"nobody asked");
    raw.send(FIN | CONTINUATION, b"end");
    raw.expect_text("begin end");
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/ws");
    for payload in [b"".as_slice(), b"p", &[0xff; 125]] {
        raw.send(FIN | PING, payload);
        assert_eq!(raw.frame(), Frame::new(FIN | PONG, payload));
    }
}

#[test]
fn a_pong_that_nobody_asked_for_is_ignored() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(FIN | PONG, b"unasked");
    raw.send_text("next");
    raw.expect_text("next");
}

#[test]
fn a_close_is_answered_with_its_code() {
    let gateway = gateway().start();
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 3000, 3999, 4000, 4999] {
        raw::ws(&gateway, "/echo").close(code);
    }
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(FIN | CLOSE, b"");
    let (code, _) = raw.close_frame();
    assert!(code.is_none() || code == Some(1000), "a close without a code was answered with {code:?}");
    raw.expect_end(SOON);
}

#[test]
fn messages_before_a_close_are_answered_and_those_after_it_are_not() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.write(
        &[masked(FIN | TEXT, b"before"), masked(FIN | CLOSE, &frame::close_payload(1000, b"")), masked(FIN | TEXT, b"after")].concat(),
    );
    raw.expect_text("before");
    assert_eq!(raw.frame(), Frame::new(FIN | CLOSE, frame::close_payload(1000, b"")));
    raw.expect_end(SOON);
    assert!(raw.unread().is_empty());
}

#[test]
fn an_unfinished_message_does_not_stand_in_the_way_of_a_close() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(TEXT, b"never finished");
    raw.close(1000);
}

#[test]
fn the_gateway_says_fin_after_its_close_frame_and_waits_for_the_client() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.write(&masked(FIN | 0x3, b"not a frame"));
    let (code, _) = raw.close_frame();
    assert_eq!(code, Some(1002));
    // FIN and not RST: a reset would take from the client what it had not read yet.
    assert_eq!(raw.end_within(SOON), raw::End::Eof);
    assert!(raw.try_write(&masked(FIN | CLOSE, &frame::close_payload(1002, b""))));
    drop(raw);
    gateway.wait_for_connections(0);
}

#[test]
fn a_client_that_vanishes_is_counted_as_gone() {
    let gateway = gateway().start();
    let fin = raw::ws(&gateway, "/echo");
    let reset = raw::ws(&gateway, "/echo");
    gateway.wait_for_connections(2);
    drop(fin);
    reset.reset();
    gateway.wait_for_connections(0);
    gateway.wait_for_closes("client_gone", 1);
    gateway.wait_for_closes("network_error", 1);
}

#[test]
fn a_client_that_shuts_its_side_gets_what_it_is_owed() {
    let gateway = gateway().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send_text("last words");
    raw.shutdown_write();
    raw.expect_text("last words");
    raw.expect_end(SOON);
}
