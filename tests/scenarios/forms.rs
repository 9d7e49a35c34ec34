//! One message to 1,000 subscribers, as a raw frame, as an object of `shardcast.v1.json` and compressed: what a delivery costs in each form, in turns in one
//! gateway.

use std::time::Duration;

use crate::common::swarm::{Event, State, Swarm};
use crate::common::talk::PROTOCOL;
use crate::common::{Gateway, gateway, now};
use crate::full;

const PAYLOAD_BYTES: usize = 128;
/// What a delivery as an object may cost of one as a raw frame.
const JSON_MAX: f64 = 1.1;
/// What one of a compressed message may cost of a plain one.
const DEFLATE_MAX: f64 = 1.3;

/// A form: who is subscribed in it, and who publishes for them.
struct Form {
    name: &'static str,
    subscribers: std::ops::Range<usize>,
    publisher: usize,
    /// Its messages are to come compressed.
    is_compressed: bool,
    /// CPU time of a delivery, in µs, by round.
    costs: Vec<f64>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Everybody in one room, by one path and with what is said once it is open.
fn form(swarm: &mut Swarm, name: &'static str, headers: &str, path: &str, says: Option<&str>, subscribers: usize) -> Form {
    let first = swarm.len();
    for _ in 0..subscribers {
        swarm.connect_with(path, headers);
    }
    let all = first..first + subscribers;
    swarm.run(Duration::from_secs(20), "the subscribers open", &mut |_, _| {}, |swarm| {
        all.clone().all(|id| *swarm.client(id).state() == State::Open)
    });
    if let Some(says) = says {
        all.clone().for_each(|id| swarm.send_text(id, says.as_bytes()));
    }
    let publisher = swarm.connect_and_open(&format!("/ws?room={name}&echo=0"), &mut |_, _| {});
    let heard: Vec<u64> = all.clone().map(|id| swarm.client(id).messages).collect();
    let deadline = now() + Duration::from_secs(20);
    let is_heard = |swarm: &Swarm| all.clone().zip(&heard).all(|(id, before)| swarm.client(id).messages >= before + 3);
    while !is_heard(swarm) {
        assert!(now() < deadline, "a subscriber of {name} hears nothing");
        swarm.send_text(publisher, b"is everybody here?");
        swarm.run_for(Duration::from_millis(100), &mut |_, _| {});
    }
    Form { name, subscribers: all, publisher, is_compressed: false, costs: Vec::new() }
}

/// What a delivery costs in each form, in turns: the middle of all rounds, in µs.
fn measure<const FORMS: usize>(
    gateway: &Gateway,
    swarm: &mut Swarm,
    mut forms: [Form; FORMS],
    payload: &[u8],
    rounds: usize,
    messages: usize,
) -> [f64; FORMS] {
    for _ in 0..rounds {
        for form in &mut forms {
            let subscribers = form.subscribers.len();
            let mut heard = vec![0_usize; subscribers];
            let (begun, mut sent) = (gateway.cpu(), 0);
            let (mut next, deadline) = (now(), now() + Duration::from_secs(60));
            while heard.iter().any(|&heard| heard < messages) {
                assert!(now() < deadline, "a round of {} is not over ({})", form.name, swarm.summary());
                if sent < messages && now() >= next {
                    swarm.send_text(form.publisher, payload);
                    sent += 1;
                    // So slowly that hardly anything is merged: each delivery is a send of its own.
                    next += Duration::from_millis(10);
                }
                swarm.turn(Duration::from_millis(1), &mut |id, event| match event {
                    Event::Text(text) if form.subscribers.contains(&id) => {
                        assert!(!form.is_compressed, "{} comes plain", form.name);
                        assert!(text.windows(payload.len()).any(|window| window == payload), "another message");
                        heard[id - form.subscribers.start] += 1;
                    }
                    Event::Binary(message) if form.subscribers.contains(&id) => {
                        assert!(form.is_compressed && message.len() < payload.len(), "{} bytes to {}", message.len(), form.name);
                        heard[id - form.subscribers.start] += 1;
                    }
                    Event::Close(code, reason) => panic!("client {id} was closed: {code:?} {reason}"),
                    _ => {}
                });
            }
            let cpu = (gateway.cpu() - begun).as_secs_f64() * 1e6;
            form.costs.push(cpu / (subscribers * messages) as f64);
        }
    }
    forms.map(|form| median(form.costs))
}

fn sizes() -> (usize, usize, usize) {
    if full() { (1000, 300, 7) } else { (200, 40, 3) }
}

#[test]
fn an_object_costs_hardly_more_than_a_frame() {
    let (subscribers, messages, rounds) = sizes();
    let gateway = gateway().shards(1).limit("history_messages", 0).start();
    let mut swarm = Swarm::new(gateway.port);
    let subscribe = r#"{"type":"subscribe","topic":"json"}"#;
    let forms = [
        form(&mut swarm, "raw", "", "/ws?room=raw", None, subscribers),
        form(&mut swarm, "json", PROTOCOL, "/ws", Some(subscribe), subscribers),
    ];
    let [raw, json] = measure(&gateway, &mut swarm, forms, &[b'x'; PAYLOAD_BYTES], rounds, messages);
    let ratio = json / raw;
    println!("forms ({} driver): {PAYLOAD_BYTES} B to {subscribers}, {rounds} rounds of {messages} messages in turns", gateway.driver);
    println!("  CPU of a delivery: raw {raw:.2} µs, shardcast.v1.json {json:.2} µs: {ratio:.2} times (bound {JSON_MAX})");
    assert!(!full() || ratio <= JSON_MAX, "an object costs {ratio:.2} times what a raw frame does");
}

/// 1 KiB as a feed of prices has it.
fn quotes() -> String {
    let quote = |number: u32| {
        let (bid, size) = (number.wrapping_mul(2_654_435_761) >> 16, number.wrapping_mul(40_503) >> 3 & 1023);
        format!(r#"{{"symbol":"S{}","bid":{}.{:02},"size":{size}}},"#, bid % 97, bid / 100, bid % 100)
    };
    let mut text: String = (1..40).map(quote).collect();
    text.truncate(1024);
    text
}

#[test]
fn a_compressed_message_costs_no_third_more_than_one_that_is_not() {
    let (subscribers, messages, rounds) = sizes();
    let gateway = gateway().arg("--compression").shards(1).limit("history_messages", 0).start();
    let mut swarm = Swarm::new(gateway.port);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let mut forms = [("plain", ""), ("deflate", offer)]
        .map(|(name, headers)| form(&mut swarm, name, headers, &format!("/ws?room={name}"), None, subscribers));
    forms[1].is_compressed = true;
    let payload = quotes();
    let [plain, deflate] = measure(&gateway, &mut swarm, forms, payload.as_bytes(), rounds, messages);
    let ratio = deflate / plain;
    println!(
        "compression ({} driver): {} B of JSON to {subscribers}, {rounds} rounds of {messages} messages in turns",
        gateway.driver,
        payload.len()
    );
    println!("  CPU of a delivery: plain {plain:.2} µs, compressed {deflate:.2} µs: {ratio:.2} times (bound {DEFLATE_MAX})");
    assert!(!full() || ratio <= DEFLATE_MAX, "a compressed message costs {ratio:.2} times what a plain one does");
}
