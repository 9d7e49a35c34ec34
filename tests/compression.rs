//! permessage-deflate (RFC 7692): what is agreed to, what comes compressed, what is sent so, and what it may cost.

mod common;

use common::deflate::{RSV1, deflate, inflate};
use common::frame::{self, BINARY, CONTINUATION, FIN, PING, PONG, TEXT};
use common::raw::{self, End, Frame, Raw};
use common::talk::PROTOCOL;
use common::{Gateway, Setup, gateway};
use serde_json::{Value, json};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

fn compressing() -> Setup {
    gateway().arg("--compression")
}

/// A WebSocket that has agreed.
fn connect(gateway: &Gateway, path: &str) -> Raw {
    connect_with(gateway, path, "")
}

fn connect_with(gateway: &Gateway, path: &str, headers: &str) -> Raw {
    let mut raw = Raw::connect(gateway.port);
    raw.write(raw::upgrade(path, &format!("{OFFER}{headers}")).as_bytes());
    assert_eq!(raw.expect_upgraded().header("sec-websocket-extensions"), Some(AGREED));
    raw
}

/// A message of the gateway that is compressed: its opcode and what is in it.
fn expect_compressed(raw: &mut Raw) -> (u8, Vec<u8>) {
    let Frame { first, payload } = raw.frame();
    assert_eq!(first & 0xf0, FIN | RSV1, "{}", String::from_utf8_lossy(&payload));
    let inflated = inflate(&payload);
    assert!(payload.len() < inflated.len(), "{} bytes for {}", payload.len(), inflated.len());
    (first & 0x0f, inflated)
}

fn expect_compressed_text(raw: &mut Raw, text: &str) {
    let (opcode, payload) = expect_compressed(raw);
    assert_eq!((opcode, String::from_utf8_lossy(&payload).as_ref()), (TEXT, text));
}

/// Text that is worth it, and is not like that of another number.
fn words(number: u64) -> String {
    (0..40).map(|word| format!("{} and ", number * 7 + word % 10)).collect()
}

#[test]
fn it_is_agreed_to_where_it_is_offered_with_what_can_be_kept() {
    let gateway = compressing().start();
    for (offer, answer) in [
        ("permessage-deflate", Some("")),
        ("permessage-deflate; client_max_window_bits; server_no_context_takeover", Some("")),
        ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", Some("; server_max_window_bits=12")),
        ("permessage-deflate; server_max_window_bits=\"9\"", Some("; server_max_window_bits=9")),
        ("permessage-deflate; server_max_window_bits=16, permessage-deflate", Some("")),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; whatever", None),
    ] {
        for path in ["/ws?room=a", "/echo"] {
            let mut raw = Raw::connect(gateway.port);
            raw.write(raw::upgrade(path, &format!("Sec-WebSocket-Extensions: {offer}\r\n")).as_bytes());
            let response = raw.expect_upgraded();
            let expect = answer.map(|answer| format!("{AGREED}{answer}"));
            assert_eq!(response.header("sec-websocket-extensions"), expect.as_deref(), "{path} {offer}");
        }
    }
    connect_with(&gateway, "/ws", PROTOCOL);
    let answer = raw::http(gateway.port, raw::upgrade("/ws", "Sec-WebSocket-Extensions: permessage-deflate;\r\n").as_bytes());
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text().contains("Sec-WebSocket-Extensions is not a list"), "{}", answer.text());
    let plain = raw::ws(&gateway, "/ws");
    plain.close(1000);
}

#[test]
fn compressed_messages_are_echoed_compressed_where_that_is_shorter() {
    let gateway = compressing().start();
    let mut raw = connect(&gateway, "/echo");
    let text = words(1);
    raw.send(FIN | RSV1 | TEXT, &deflate(text.as_bytes()));
    expect_compressed_text(&mut raw, &text);
    raw.send(FIN | BINARY, &[7; 60_000]);
    assert_eq!(expect_compressed(&mut raw), (BINARY, vec![7; 60_000]), "what comes plain may go compressed");
    raw.send(FIN | RSV1 | TEXT, &deflate(b"short"));
    assert_eq!(raw.frame(), Frame::new(FIN | TEXT, b"short"), "and the other way round");
    raw.send(FIN | RSV1 | BINARY, &deflate(b""));
    assert_eq!(raw.frame(), Frame::new(FIN | BINARY, b""));
    // In fragments, with a ping between them that is not compressed.
    let compressed = deflate(text.as_bytes());
    raw.send(RSV1 | TEXT, &compressed[..10]);
    raw.send(CONTINUATION, b"");
    raw.send(FIN | PING, b"there?");
    raw.send(FIN | CONTINUATION, &compressed[10..]);
    assert_eq!(raw.frame(), Frame::new(FIN | PONG, b"there?"));
    expect_compressed_text(&mut raw, &text);
    raw.close(1000);
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("shardcast_messages_inflated_total", &[]), 4.0);
    assert_eq!(metrics.sum("shardcast_messages_deflated_total", &[]), 3.0);
    assert!(metrics.sum("shardcast_deflated_saved_bytes_total", &[]) > 59_000.0);
}

#[test]
fn who_cannot_inflate_with_our_window_is_sent_nothing_compressed() {
    let gateway = compressing().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(raw::upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n").as_bytes());
    raw.expect_upgraded();
    let text = words(2);
    raw.send(FIN | RSV1 | TEXT, &deflate(text.as_bytes()));
    raw.expect_text(&text);
}

#[test]
fn the_bit_where_it_has_no_meaning_closes_1002() {
    let gateway = compressing().start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.send(FIN | RSV1 | TEXT, &deflate(b"not agreed to"));
    assert!(raw.expect_close(1002).contains("reserved bits 100"));
    let mut raw = connect(&gateway, "/echo");
    raw.send(RSV1 | TEXT, b"\x00");
    raw.send(FIN | RSV1 | CONTINUATION, b"\x00");
    assert!(raw.expect_close(1002).contains("continuation frame has RSV1 set"));
    for (first, reason) in [(FIN | RSV1 | PING, "ping frame has RSV1"), (FIN | 0x20 | TEXT, "bits 010"), (FIN | 0x50 | TEXT, "bits 101")] {
        let mut raw = connect(&gateway, "/echo");
        raw.send(first, b"");
        let said = raw.expect_close(1002);
        assert!(said.contains(reason), "{first:02x}: {said}");
    }
}

#[test]
fn what_is_not_deflate_or_not_text_closes_1007() {
    let gateway = compressing().start();
    let whole = deflate(words(3).as_bytes());
    for (first, payload, reason) in [
        (FIN | RSV1 | BINARY, &b"no DEFLATE"[..], "not whole DEFLATE blocks"),
        (FIN | RSV1 | BINARY, &whole[..whole.len() / 2], "not whole DEFLATE blocks"),
        (FIN | RSV1 | TEXT, &deflate(b"gr\xfcn"), "not UTF-8"),
    ] {
        for (path, headers) in [("/echo", ""), ("/ws?room=a", ""), ("/ws", PROTOCOL)] {
            let mut raw = connect_with(&gateway, path, headers);
            raw.send(first, payload);
            let said = raw.expect_close(1007);
            assert!(said.contains(reason), "{path}: {said}");
        }
    }
}

/// A gigabyte of zeros in a megabyte: the blocks of 16 MiB, again and again.
fn gigabyte() -> Vec<u8> {
    deflate(&vec![0; 16 << 20]).into_iter().chain([0, 0, 0xff, 0xff]).collect::<Vec<u8>>().repeat(64)
}

#[test]
fn a_bomb_costs_its_sender_1009_and_us_no_memory() {
    let gateway = compressing().start();
    connect(&gateway, "/echo").close(1000);
    let before = gateway.pss_bytes();
    let bomb = gigabyte();
    assert!(bomb.len() > 1_000_000 && bomb.len() < 1_200_000, "{} bytes", bomb.len());
    for number in 0..20 {
        let path = ["/echo", "/ws?room=a"][number % 2];
        // As it is: over the limit before a byte of it is inflated.
        let mut raw = connect(&gateway, path);
        raw.try_write(&frame::head_only(FIN | RSV1 | BINARY, bomb.len() as u64));
        assert!(raw.expect_close(1009).contains(&format!("frame announces {} bytes, limit 65536", bomb.len())));
        // In fragments, up to the limit.
        let mut raw = connect(&gateway, path);
        raw.send(RSV1 | BINARY, &bomb[..50_000]);
        raw.try_write(&frame::masked(CONTINUATION, &bomb[50_000..100_000]));
        assert!(raw.expect_close(1009).contains("brings the message to 100000 bytes, limit 65536"));
        // As much as may come at once: 64 MiB.
        let mut raw = connect(&gateway, path);
        raw.send(FIN | RSV1 | BINARY, &bomb[..65_000]);
        assert!(raw.expect_close(1009).contains("compressed message of 65000 bytes inflates to more than 65536"));
    }
    let mut raw = connect_with(&gateway, "/ws", PROTOCOL);
    assert!(raw.frame().payload.starts_with(br#"{"type":"welcome""#));
    raw.send(FIN | RSV1 | TEXT, &bomb[..65_000]);
    assert!(raw.expect_close(1009).contains("inflates to more than 135168"));
    let grown = gateway.pss_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes");
    assert_eq!(gateway.closes("too_big"), 61);
}

/// Each of them is small where it comes and large where it goes: who sends many has to wait for the next turn, and is not forgotten.
#[test]
fn what_inflates_to_much_is_taken_over_several_turns_and_all_of_it() {
    let gateway = compressing().limit("inflate_bytes_per_turn", 4096).start();
    let mut reader = raw::ws(&gateway, "/ws?room=a");
    let mut publisher = connect(&gateway, "/ws?room=a&echo=0");
    let text = |number: usize| format!("{number} {}", "z".repeat(20_000));
    let burst: Vec<u8> = (0..100).flat_map(|number| frame::masked(FIN | RSV1 | TEXT, &deflate(text(number).as_bytes()))).collect();
    assert!(burst.len() < 10_000);
    publisher.write(&burst);
    for number in 0..100 {
        reader.expect_text(&text(number));
    }
    publisher.send_text("and plain");
    reader.expect_text("and plain");
}

#[test]
fn half_a_compressed_message_goes_on_in_another_process() {
    let mut gateway = compressing().start();
    let mut member = raw::ws(&gateway, "/ws?room=a");
    let text = words(4);
    let compressed = deflate(text.as_bytes());
    let whole = frame::masked(FIN | RSV1 | TEXT, &compressed);
    let mut framed = connect(&gateway, "/ws?room=a&echo=0");
    framed.write(&whole[..whole.len() / 2]);
    let mut head = connect(&gateway, "/ws?room=a&echo=0");
    head.write(&whole[..1]);
    let mut fragmented = connect(&gateway, "/echo");
    fragmented.send(RSV1 | TEXT, &compressed[..10]);
    let rest = frame::masked(FIN | CONTINUATION, &compressed[10..]);
    fragmented.write(&rest[..12]);
    let mut idle = connect(&gateway, "/echo");
    let mut talker = connect_with(&gateway, "/ws", PROTOCOL);
    assert!(talker.frame().payload.starts_with(br#"{"type":"welcome""#));
    let ping = frame::masked(FIN | RSV1 | TEXT, &deflate(br#"{"type":"ping","id":7}"#));
    talker.write(&ping[..9]);
    // What was written is here.
    for raw in [&mut framed, &mut head, &mut talker] {
        assert_eq!(raw.end_within(std::time::Duration::from_millis(20)), End::Open);
    }

    gateway.hand_over();
    framed.write(&whole[whole.len() / 2..]);
    member.expect_text(&text);
    head.write(&whole[1..]);
    member.expect_text(&text);
    fragmented.write(&rest[12..]);
    expect_compressed_text(&mut fragmented, &text);
    idle.send(FIN | RSV1 | TEXT, &compressed);
    expect_compressed_text(&mut idle, &text);
    talker.write(&ping[9..]);
    talker.expect_text(r#"{"type":"pong","id":7}"#);
}

/// A reader, and how it is sent the messages of a room.
struct Reader {
    raw: Raw,
    speaks_json: bool,
    has_agreed: bool,
}

impl Reader {
    fn new(gateway: &Gateway, room: &str, speaks_json: bool, has_agreed: bool) -> Self {
        let offer = if has_agreed { OFFER } else { "" };
        let mut raw = Raw::connect(gateway.port);
        if speaks_json {
            raw.write(raw::upgrade("/ws", &format!("{offer}{PROTOCOL}")).as_bytes());
            raw.expect_upgraded();
            let mut reader = Self { raw, speaks_json, has_agreed };
            reader.expect_reply("welcome");
            reader.say(&json!({"type": "subscribe", "topic": room}));
            reader.expect_reply("subscribed");
            return reader;
        }
        raw.write(raw::upgrade(&format!("/ws?room={room}"), offer).as_bytes());
        raw.expect_upgraded();
        Self { raw, speaks_json, has_agreed }
    }

    fn say(&mut self, request: &Value) {
        self.raw.send_text(&request.to_string());
    }

    /// An answer, which is never compressed.
    fn expect_reply(&mut self, kind: &str) -> Value {
        let Frame { first, payload } = self.raw.frame();
        let said: Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!((first, said["type"].as_str()), (FIN | TEXT, Some(kind)), "{said}");
        said
    }

    /// The next message, as it was published, and whether it came compressed.
    fn message(&mut self) -> (String, bool) {
        let Frame { first, payload } = self.raw.frame();
        let is_compressed = first & RSV1 != 0;
        assert!(self.has_agreed || !is_compressed, "it has not agreed to that");
        let payload = if is_compressed { inflate(&payload) } else { payload };
        let text = String::from_utf8(payload).expect("text");
        if !self.speaks_json {
            return (text, is_compressed);
        }
        let said: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(said["type"], "message", "{said}");
        (said["data"].as_str().expect("text").to_owned(), is_compressed)
    }

    fn expect(&mut self, text: &str) {
        let (said, is_compressed) = self.message();
        assert_eq!(said, text);
        assert_eq!(is_compressed, self.has_agreed, "whoever has agreed is sent what is worth it compressed");
    }
}

/// One of each kind.
fn readers(gateway: &Gateway, room: &str) -> Vec<Reader> {
    [(false, false), (false, true), (true, false), (true, true)].map(|(json, agreed)| Reader::new(gateway, room, json, agreed)).into()
}

fn deflated(gateway: &Gateway) -> f64 {
    gateway.metrics().sum("shardcast_messages_deflated_total", &[])
}

#[test]
fn a_message_is_compressed_once_for_all_who_get_it_so() {
    let gateway = compressing().shards(1).start();
    let mut all: Vec<Reader> = (0..5).flat_map(|_| readers(&gateway, "a")).collect();
    let mut publisher = raw::ws(&gateway, "/ws?room=a&echo=0");
    for number in 0..10 {
        publisher.send_text(&words(number));
        all.iter_mut().for_each(|reader| reader.expect(&words(number)));
    }
    assert_eq!(deflated(&gateway), 20.0, "ten messages in two forms");
    // What is not worth it.
    publisher.send_text("short");
    for reader in &mut all {
        assert_eq!(reader.message(), ("short".to_owned(), false));
    }
    // Whoever does not get it so does not have it made.
    all.retain(|reader| !reader.has_agreed);
    gateway.wait_for_connections(all.len() as u64 + 1);
    let before = deflated(&gateway);
    for number in 0..10 {
        publisher.send_text(&words(number));
        all.iter_mut().for_each(|reader| reader.expect(&words(number)));
    }
    assert_eq!(deflated(&gateway), before);
    // One who comes later.
    let mut late = Reader::new(&gateway, "a", false, true);
    publisher.send_text(&words(7));
    late.expect(&words(7));
    assert_eq!(deflated(&gateway), before + 1.0);
}

#[test]
fn messages_of_all_publishers_keep_their_order_on_every_shard() {
    let gateway = compressing().shards(3).start();
    let mut all: Vec<Reader> = (0..6).flat_map(|_| readers(&gateway, "a")).collect();
    let mut publisher = connect(&gateway, "/ws?room=a&echo=0");
    let text = |number: u64| if number.is_multiple_of(3) { number.to_string() } else { words(number) };
    for number in 0..300 {
        publisher.send(FIN | RSV1 | TEXT, &deflate(text(number).as_bytes()));
    }
    for reader in &mut all {
        for number in 0..300 {
            assert_eq!(reader.message(), (text(number), reader.has_agreed && !number.is_multiple_of(3)));
        }
    }
    // By HTTP, and to whom it is binary.
    let binary = [0xff; 5000];
    let request = format!(
        "POST /publish?topic=a HTTP/1.1\r\nHost: h\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        binary.len()
    );
    assert_eq!(raw::http(gateway.port, &[request.as_bytes(), &binary].concat()).status, 200);
    for reader in all.iter_mut().filter(|reader| reader.has_agreed && !reader.speaks_json) {
        assert_eq!(expect_compressed(&mut reader.raw), (BINARY, binary.to_vec()));
    }
}

#[test]
fn who_leaves_its_own_messages_out_is_sent_the_others_compressed() {
    let gateway = compressing().start();
    let mut alone = connect(&gateway, "/ws?room=a&echo=0");
    let mut other = connect(&gateway, "/ws?room=a");
    let mut talker = Reader::new(&gateway, "a", true, true);
    for number in 0..20 {
        alone.send_text(&words(2 * number));
        expect_compressed_text(&mut other, &words(2 * number));
        talker.expect(&words(2 * number));
        talker.say(&json!({"type": "publish", "topic": "a", "data": words(2 * number + 1), "echo": false}));
        expect_compressed_text(&mut other, &words(2 * number + 1));
        expect_compressed_text(&mut alone, &words(2 * number + 1));
    }
    alone.expect_silence(20);
    talker.raw.expect_silence(20);
}

#[test]
fn what_was_before_and_what_comes_are_one_sequence() {
    let gateway = compressing().limit("history_messages", 10_000).start();
    let mut publisher = raw::ws(&gateway, "/ws?room=a&echo=0");
    let mut ready = Reader::new(&gateway, "a", false, false);
    (0..500).for_each(|number| publisher.send_text(&words(number)));
    publisher.send_text("all are there");
    while ready.message().0 != "all are there" {}
    let mut raw = connect(&gateway, "/ws?room=a&after=earliest");
    let mut talkers: Vec<Reader> = (0..3).map(|_| Reader::new(&gateway, "elsewhere", true, true)).collect();
    for talker in &mut talkers {
        talker.say(&json!({"type": "subscribe", "topic": "a", "after": "earliest"}));
        assert_eq!(talker.expect_reply("subscribed")["replayed"], 501);
    }
    (501..600).for_each(|number| publisher.send_text(&words(number)));
    for number in 0..600 {
        let text = if number == 500 { "all are there".to_owned() } else { words(number) };
        let Frame { first, payload } = raw.frame();
        let payload = if first & RSV1 == 0 { payload } else { inflate(&payload) };
        assert_eq!(String::from_utf8_lossy(&payload), text, "{number}");
        for talker in &mut talkers {
            let (said, is_compressed) = talker.message();
            assert_eq!((said, is_compressed), (text.clone(), number != 500));
        }
    }
    // The same piece to those who come for the same.
    assert!(deflated(&gateway) <= 2.0 * 2.0 * 600.0, "{}", deflated(&gateway));
}

/// Text that is compressed to about a half.
fn noisy(number: u64) -> String {
    let mut state = number * 2 + 1;
    let mut digit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from_digit((state >> 20) as u32 % 10, 10).expect("a digit")
    };
    (0..8000).map(|_| digit()).collect()
}

#[test]
fn a_reader_that_was_behind_is_given_all_of_it_and_one_that_does_not_read_is_ended() {
    let gateway = compressing().limit("queue_bytes_max", 4 << 20).start();
    let mut behind: Vec<Raw> = Vec::new();
    for headers in ["", PROTOCOL] {
        let mut raw = Raw::connect_with_small_buffer(gateway.port);
        let path = if headers.is_empty() { "/ws?room=a" } else { "/ws" };
        raw.write(raw::upgrade(path, &format!("{OFFER}{headers}")).as_bytes());
        raw.expect_upgraded();
        behind.push(raw);
    }
    let mut behind: Vec<Reader> =
        behind.into_iter().zip([false, true]).map(|(raw, speaks_json)| Reader { raw, speaks_json, has_agreed: true }).collect();
    behind[1].expect_reply("welcome");
    behind[1].say(&json!({"type": "subscribe", "topic": "a"}));
    behind[1].expect_reply("subscribed");
    let mut publisher = raw::ws(&gateway, "/ws?room=a&echo=0");
    for number in 0..400 {
        publisher.send_text(&noisy(number));
    }
    for reader in &mut behind {
        (0..400).for_each(|number| reader.expect(&noisy(number)));
    }
    assert_eq!(gateway.closes("slow_consumer"), 0);
    for number in 0..2000 {
        publisher.send_text(&noisy(number));
    }
    gateway.wait_for_closes("slow_consumer", 2);
    publisher.close(1000);
}

#[test]
fn in_a_drain_everybody_is_given_what_is_queued_and_told_goodbye() {
    let mut gateway = compressing().start();
    let mut all = readers(&gateway, "a");
    let mut publisher = raw::ws(&gateway, "/ws?room=a&echo=0");
    (0..50).for_each(|number| publisher.send_text(&words(number)));
    all[0].expect(&words(0));
    gateway.signal(libc::SIGTERM);
    for (place, reader) in all.iter_mut().enumerate() {
        (u64::from(place == 0)..50).for_each(|number| reader.expect(&words(number)));
        if reader.speaks_json {
            assert_eq!(reader.expect_reply("bye")["code"], 4503);
            assert_eq!(reader.raw.close_frame().0, Some(4503));
        } else {
            assert_eq!(reader.raw.close_frame().0, Some(1012));
        }
    }
    drop(all);
    drop(publisher);
    assert!(gateway.exit_within(common::SOON).success());
}

#[test]
fn members_go_on_as_they_have_agreed_in_another_process() {
    let mut gateway = compressing().start();
    let mut all = readers(&gateway, "a");
    let mut publisher = raw::ws(&gateway, "/ws?room=a&echo=0");
    for round in 0..3 {
        for number in 0..20 {
            publisher.send_text(&words(100 * round + number));
        }
        for reader in &mut all {
            (0..20).for_each(|number| reader.expect(&words(100 * round + number)));
        }
        gateway.hand_over();
    }
    publisher.send_text(&words(999));
    all.iter_mut().for_each(|reader| reader.expect(&words(999)));
}
