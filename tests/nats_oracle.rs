//! Two gateways that share their topics by NATS, publishers of every kind at full speed through outboxes of 16 messages, and a server that is killed and
//! frozen at random times, against an oracle. It demands:
//! - of each gateway and topic: one order, the same for members on other shards;
//! - whatever a request was answered 200 for, at every member of its own gateway, once and in the publisher's order, and nothing that was refused;
//! - at the members of the other gateway: a part of that, in the same order and once;
//! - of what WebSockets said: nothing twice, nothing out of order, and nothing there that was not heard here;
//! - once the server is back, everybody goes on.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::foreign::{Client, connect};
use common::frame::{self, CLOSE, FIN, TEXT};
use common::nats::NatsServer;
use common::raw::{self, Raw};
use common::{Gateway, SOON, eventually, now, seed, sleep_ms};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const TOPICS: usize = 4;
/// Members of each topic at each gateway: on 3 shards, two of them are mostly on another than the topic's home.
const MEMBERS: usize = 3;
const REQUESTERS: usize = 2;
const TALKERS: usize = 2;
const FAULTS: usize = 4;

/// What a publisher has said to each topic; of requests, what was answered 200.
struct Said {
    name: String,
    topics: Vec<Vec<u64>>,
    refused: u64,
}

fn requester(port: u16, name: String, stop: Arc<AtomicBool>, mut random: StdRng) -> JoinHandle<Said> {
    thread::spawn(move || {
        let mut said = Said { name, topics: vec![Vec::new(); TOPICS], refused: 0 };
        let mut raw = Raw::connect(port);
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let topic = random.random_range(0..TOPICS);
            let body = format!("{} {number}", said.name);
            let head = format!("POST /publish?topic=t{topic} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
            raw.write(&[head.as_bytes(), body.as_bytes()].concat());
            match raw.response().status {
                200 => said.topics[topic].push(number),
                429 | 503 => {
                    said.refused += 1;
                    sleep_ms(1);
                }
                status => panic!("{body} is answered {status}"),
            }
        }
        said
    })
}

/// Says something in its room until it is closed, and comes back.
fn talker(port: u16, topic: usize, name: String, stop: Arc<AtomicBool>, at: Arc<AtomicU64>) -> JoinHandle<Said> {
    thread::spawn(move || {
        let mut said = Said { name, topics: vec![Vec::new(); TOPICS], refused: 0 };
        let mut open = None;
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let raw = open.get_or_insert_with(|| {
                let mut raw = Raw::connect(port);
                raw.write(raw::upgrade(&format!("/ws?room=t{topic}&echo=0"), "").as_bytes());
                raw.expect_upgraded();
                raw
            });
            said.topics[topic].push(number);
            at.store(number, Ordering::Relaxed);
            let frame = frame::masked(FIN | TEXT, format!("{} {number}", said.name).as_bytes());
            // Others talk too, and it must read on; what it gets to hear is of no interest but for a close frame.
            raw.stream.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout above zero");
            if !raw.try_write(&frame) || is_closed(raw) {
                said.refused += 1;
                open = None;
                sleep_ms(5);
            }
        }
        said
    })
}

/// Reads what there is, for a while: whether a close frame has come, or the end.
fn is_closed(raw: &mut Raw) -> bool {
    let enough = now() + Duration::from_millis(2);
    while now() < enough {
        match raw.next_frame() {
            Ok(frame) if frame.first & 0x0f == CLOSE => return true,
            Ok(_) => {}
            Err(end) => return end != raw::End::Open,
        }
    }
    false
}

/// Hears everything until both gateways have said that it is over.
fn listener(mut client: Client) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut heard = Vec::new();
        client.socket.get_ref().set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout above zero");
        let mut ends = [false; 2];
        while ends != [true; 2] {
            let message = client.message().to_text().expect("text").to_owned();
            match message.strip_prefix("end ").and_then(|node| node.parse::<usize>().ok()) {
                Some(node) => ends[node] = true,
                None => heard.push(message),
            }
        }
        heard
    })
}

/// What of a list was said by one, as numbers.
fn of(heard: &[String], name: &str) -> Vec<u64> {
    let numbers = heard.iter().filter_map(|message| message.rsplit_once(' ').filter(|(from, _)| *from == name));
    numbers.map(|(_, number)| number.parse().expect("a number")).collect()
}

/// The first list is the second one with some left out.
fn is_part(what: &str, part: &[u64], whole: &[u64]) {
    let mut left = whole.iter();
    let strange = part.iter().position(|number| !left.any(|other| other == number));
    if let Some(at) = strange {
        let (before, is_there) = (&part[at.saturating_sub(3)..=at], whole.contains(&part[at]));
        panic!(
            "{what}: heard {before:?}, the last of which comes twice, too late, or from nowhere ({})",
            if is_there { "it was said" } else { "it was not" }
        );
    }
}

#[test]
fn whatever_befalls_the_server_nothing_is_lost_here_and_nothing_doubled_there() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = NatsServer::start();
    let setup = || {
        let setup = server.gateway().shards(3).limit("nats_outbox_messages", 16).limit("nats_outbox_bytes_max", 4096);
        setup.limit("log_lines_per_second", 1000).limit("linger_ms", 100)
    };
    let gateways = [setup().start(), setup().start()];
    let is_ready =
        |gateway: &Gateway| raw::http(gateway.admin, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").status == 200;
    let wait_until_ready =
        || eventually(2 * SOON, || if gateways.iter().all(is_ready) { Ok(()) } else { Err("a gateway is not ready".to_owned()) });
    wait_until_ready();
    let listeners: Vec<(usize, usize, JoinHandle<Vec<String>>)> = (0..2 * TOPICS * MEMBERS)
        .map(|n| (n % 2, n / 2 % TOPICS))
        .map(|(node, topic)| (node, topic, listener(connect(&gateways[node], &format!("/ws?room=t{topic}")))))
        .collect();
    let wait_until_asked =
        |server: &NatsServer| (0..TOPICS).for_each(|topic| server.wait_for_subscribers(&format!("shardcast.t{topic}"), 2));
    wait_until_asked(&server);

    let stop = Arc::new(AtomicBool::new(false));
    let mut publishers: Vec<(usize, bool, JoinHandle<Said>)> = Vec::new();
    let mut talks = Vec::new();
    for (node, gateway) in gateways.iter().enumerate() {
        for n in 0..REQUESTERS {
            let dice = StdRng::seed_from_u64(random.random());
            publishers.push((node, true, requester(gateway.port, format!("http {node} {n}"), Arc::clone(&stop), dice)));
        }
        for n in 0..TALKERS {
            let (topic, at) = (random.random_range(0..TOPICS), Arc::<AtomicU64>::default());
            talks.push(Arc::clone(&at));
            publishers.push((node, false, talker(gateway.port, topic, format!("ws {node} {n}"), Arc::clone(&stop), at)));
        }
    }
    for _ in 0..FAULTS {
        sleep_ms(random.random_range(50..400));
        if random.random() {
            server.kill();
            sleep_ms(random.random_range(0..400));
            server.restart();
        } else {
            server.freeze();
            // Up to thrice the time after which it is taken for lost.
            sleep_ms(random.random_range(0..1800));
            server.thaw();
        }
        let begun = now();
        wait_until_ready();
        assert!(begun.elapsed() < SOON, "it took {:?} until both were connected again", begun.elapsed());
    }
    // Whoever talks is heard from here on.
    let counts = || talks.iter().map(|at| at.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let since = counts();
    eventually(SOON, || {
        if counts().iter().zip(&since).all(|(now, since)| *now > since + 100) { Ok(()) } else { Err("a talker is stuck".into()) }
    });
    stop.store(true, Ordering::Relaxed);
    let said: Vec<(usize, bool, Said)> =
        publishers.into_iter().map(|(node, by_request, thread)| (node, by_request, thread.join().expect("no panic"))).collect();

    wait_until_ready();
    wait_until_asked(&server);
    for (node, gateway) in gateways.iter().enumerate() {
        for topic in 0..TOPICS {
            eventually(SOON, || {
                let body = format!("end {node}");
                let head = format!(
                    "POST /publish?topic=t{topic} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                match raw::http(gateway.port, &[head.as_bytes(), body.as_bytes()].concat()).status {
                    200 => Ok(()),
                    status => Err(format!("the end is answered {status}")),
                }
            });
        }
    }
    let mut orders: HashMap<(usize, usize), Vec<String>> = HashMap::new();
    for (node, topic, thread) in listeners {
        let heard = thread.join().expect("no panic");
        let order = orders.entry((node, topic)).or_insert_with(|| heard.clone());
        assert!(*order == heard, "gateway {node}, topic {topic}: two members heard another order");
    }
    let (mut taken, mut refused, mut reached) = (0, 0, 0);
    let mut since = since.into_iter();
    for (node, by_request, said) in &said {
        for topic in 0..TOPICS {
            let name = &said.name;
            let (here, there) = (of(&orders[&(*node, topic)], name), of(&orders[&(1 - node, topic)], name));
            let what = format!("{name}, topic {topic}");
            is_part(&format!("{what}, here"), &here, &said.topics[topic]);
            if *by_request {
                let missing = said.topics[topic].iter().find(|number| !here.contains(number));
                assert!(missing.is_none(), "{what}: {missing:?} was answered 200 and not heard");
            }
            is_part(&format!("{what}, there"), &there, &here);
            (taken, reached) = (taken + here.len(), reached + there.len());
        }
        if !by_request {
            let last = (0..TOPICS).filter_map(|topic| of(&orders[&(*node, topic)], &said.name).last().copied()).max();
            let since = since.next().expect("one for each talker");
            assert!(last > Some(since), "{}: the last that was heard is {last:?}, and the server was back at {since}", said.name);
        }
        refused += said.refused;
    }
    println!("{taken} messages were taken, {reached} of them have reached the other gateway, {refused} were refused");
    assert!(taken > 100 && reached > 100 && refused > 0, "the faults have been none, or nothing else");
}
