//! Two gateways whose topics a stream sequences, publishers that want receipts, and readers that move between the gateways and resume, by event streams and by polls, while
//! the server is killed and frozen at random times, against an oracle. It demands:
//! - every message that a request was answered 200 for, at every reader exactly once, and at the position that the answer said;
//! - no position with two messages, and none twice or out of order at any reader;
//! - of what was answered otherwise: at most once;
//! - what one publisher has said, in its order;
//! - no gap: whatever befell the server, nothing of the stream was lost.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::events;
use common::frame::{self, CLOSE, FIN, TEXT};
use common::nats::NatsServer;
use common::raw::{self, Raw};
use common::{Gateway, SOON, Scratch, eventually, seed, sleep_ms};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

const TOPICS: usize = 3;
const PUBLISHERS: usize = 4;
const TALKERS: usize = 2;
const READERS: usize = 6;
const POLLERS: usize = 3;
const FAULTS: usize = 5;

/// What a reader has heard: offsets and texts.
type Heard = Vec<(u64, String)>;
/// What was said on one connection, or with one request behind the other's answer: topic, text, and the position that was answered.
type Said = Vec<(usize, String, Option<u64>)>;

fn offset(position: &str) -> u64 {
    position.split_once('.').and_then(|(_, offset)| offset.parse().ok()).unwrap_or_else(|| panic!("no position: {position}"))
}

/// Publishes by requests, each with a key, and again with the same key until it is taken.
fn publisher(ports: [u16; 2], name: usize, stop: Arc<AtomicBool>, mut random: StdRng) -> JoinHandle<Vec<Said>> {
    thread::spawn(move || {
        let mut said = Vec::new();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let topic = random.random_range(0..TOPICS);
            let body = format!("p{name} {number}");
            let head = format!(
                "POST /publish?topic=t{topic} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIdempotency-Key: {name}-{number}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let position = loop {
                let port = ports[random.random_range(0..2)];
                let answer = raw::http(port, &[head.as_bytes(), body.as_bytes()].concat());
                match answer.status {
                    200 => {
                        let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
                        break Some(offset(answer["pos"].as_str().expect("a position")));
                    }
                    429 | 503 if stop.load(Ordering::Relaxed) => break None,
                    429 | 503 => sleep_ms(5),
                    status => panic!("{body} is answered {status}"),
                }
            };
            said.push((topic, body, position));
        }
        vec![said]
    })
}

/// Says something in its room, now here, now there.
fn talker(ports: [u16; 2], name: usize, stop: Arc<AtomicBool>, mut random: StdRng) -> JoinHandle<Vec<Said>> {
    thread::spawn(move || {
        let mut said = vec![Vec::new()];
        let mut open: Option<(Raw, usize)> = None;
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let Some((mut raw, topic)) = open.take().or_else(|| {
                let topic = random.random_range(0..TOPICS);
                let mut raw = Raw::connect(ports[random.random_range(0..2)]);
                raw.write(raw::upgrade(&format!("/ws?room=t{topic}&echo=0"), "").as_bytes());
                said.push(Vec::new());
                (raw.response().status == 101).then_some((raw, topic))
            }) else {
                sleep_ms(20);
                continue;
            };
            let body = format!("w{name} {number}");
            said.last_mut().expect("there is one").push((topic, body.clone(), None));
            raw.stream.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout above zero");
            let mut goes_on = raw.try_write(&frame::masked(FIN | TEXT, body.as_bytes()));
            while goes_on {
                match raw.next_frame() {
                    Ok(frame) if frame.first & 0x0f == CLOSE => goes_on = false,
                    Ok(frame) => assert!(frame.payload != body.as_bytes(), "{body}: its own word came back"),
                    Err(end) => {
                        goes_on = end == raw::End::Open;
                        break;
                    }
                }
            }
            if goes_on && random.random_range(0..50) > 0 {
                open = Some((raw, topic));
            }
        }
        said
    })
}

/// Everything of a topic from its beginning to its end, with positions, by an event stream that moves between the gateways.
fn reader(ports: [u16; 2], topic: usize, mut id: String, mut random: StdRng) -> JoinHandle<Heard> {
    thread::spawn(move || {
        let mut heard = Vec::new();
        loop {
            let mut stream =
                events::request(ports[random.random_range(0..2)], &format!("/events?topic=t{topic}"), &format!("Last-Event-ID: {id}\r\n"));
            assert_eq!(stream.response.status, 200, "{:?}", stream.response);
            let until = common::now() + Duration::from_millis(random.random_range(1..400));
            stream.raw.stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout above zero");
            while common::now() < until {
                match stream.next() {
                    Ok(event) if event.name == "message" => {
                        id = event.id;
                        heard.push((offset(&id), event.data.clone()));
                        if event.data == "end" {
                            return heard;
                        }
                    }
                    Ok(event) if event.name == "shardcast:gap" => panic!("topic {topic} after {id}: {}", event.data),
                    Ok(event) if event.name == "shardcast:bye" => break,
                    Ok(_) | Err(raw::End::Open) => {}
                    Err(_) => break,
                }
            }
        }
    })
}

/// The same by polls.
fn poller(ports: [u16; 2], topic: usize, mut next: String, mut random: StdRng) -> JoinHandle<Heard> {
    thread::spawn(move || {
        let mut heard = Vec::new();
        loop {
            let get = format!("GET /poll?topic=t{topic}&after={next}&wait=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let answer = raw::http(ports[random.random_range(0..2)], get.as_bytes());
            if answer.status != 200 {
                assert_eq!(answer.status, 503, "{answer:?}");
                sleep_ms(20);
                continue;
            }
            let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert!(answer["gaps"].as_array().is_none_or(Vec::is_empty), "topic {topic} after {next}: {answer}");
            answer["next"].as_str().expect("where to go on").clone_into(&mut next);
            for message in answer["messages"].as_array().expect("messages") {
                let data = message["data"].as_str().expect("text").to_owned();
                heard.push((offset(message["pos"].as_str().expect("a position")), data.clone()));
                if data == "end" {
                    return heard;
                }
            }
        }
    })
}

#[test]
fn whatever_befalls_the_server_every_message_is_at_every_reader_once_at_its_position() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let scratch = Scratch::new();
    let mut server = NatsServer::with_jetstream(&scratch);
    let setup = || {
        let setup = server.gateway().shards(3).env("SHARDCAST_NATS_STREAM", "KEPT").limit("history_messages", 16);
        setup.limit("nats_outbox_messages", 64).limit("log_lines_per_second", 1000).limit("nats_interest_ms", 200)
    };
    let gateways = [setup().start(), setup().start()];
    gateways.iter().for_each(Gateway::wait_until_ready);
    let ports = [gateways[0].port, gateways[1].port];
    let mut begin = Vec::new();
    for topic in 0..TOPICS {
        let mut stream = events::open(ports[0], &format!("/events?topic=t{topic}"));
        begin.push(stream.last_id());
        stream.expect_silence(1);
    }
    let mut dice = || StdRng::seed_from_u64(random.random());
    let mut listeners: Vec<(&str, usize, JoinHandle<Heard>)> = Vec::new();
    for n in 0..READERS {
        listeners.push(("a stream", n % TOPICS, reader(ports, n % TOPICS, begin[n % TOPICS].clone(), dice())));
    }
    for n in 0..POLLERS {
        listeners.push(("a poll", n % TOPICS, poller(ports, n % TOPICS, begin[n % TOPICS].clone(), dice())));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishers: Vec<JoinHandle<Vec<Said>>> =
        (0..PUBLISHERS).map(|name| publisher(ports, name, Arc::clone(&stop), dice())).collect();
    publishers.extend((0..TALKERS).map(|name| talker(ports, name, Arc::clone(&stop), dice())));
    for fault in 0..FAULTS {
        sleep_ms(random.random_range(100..500));
        if fault % 2 == 0 || random.random() {
            server.kill();
            sleep_ms(random.random_range(0..400));
            server.restart();
        } else {
            server.freeze();
            sleep_ms(random.random_range(0..1800));
            server.thaw();
        }
        gateways.iter().for_each(Gateway::wait_until_ready);
    }
    sleep_ms(300);
    stop.store(true, Ordering::Relaxed);
    let said: Vec<Said> = publishers.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    gateways.iter().for_each(Gateway::wait_until_ready);
    for topic in 0..TOPICS {
        eventually(2 * SOON, || {
            let head = format!(
                "POST /publish?topic=t{topic} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIdempotency-Key: end\r\nContent-Length: 3\r\n\r\nend"
            );
            match raw::http(ports[0], head.as_bytes()).status {
                200 => Ok(()),
                status => Err(format!("the end is answered {status}")),
            }
        });
    }
    let mut orders: HashMap<usize, Heard> = HashMap::new();
    for (who, topic, thread) in listeners {
        let heard = thread.join().expect("no panic");
        assert!(heard.is_sorted_by(|one, next| one.0 < next.0), "topic {topic}: positions grow at every reader");
        let order = orders.entry(topic).or_insert_with(|| heard.clone());
        if let Some(at) = (0..order.len().max(heard.len())).find(|&at| order.get(at) != heard.get(at)) {
            let around = |list: &[(u64, String)]| list[at.saturating_sub(3).min(list.len())..(at + 3).min(list.len())].to_vec();
            panic!("topic {topic}: two readers heard another order, {who} {:?} where another has {:?}", around(&heard), around(order));
        }
    }
    let (mut taken, mut untold) = (0, 0);
    let places: Vec<BTreeMap<&str, u64>> =
        (0..TOPICS).map(|topic| orders[&topic].iter().map(|(offset, said)| (said.as_str(), *offset)).collect()).collect();
    for (topic, order) in &orders {
        assert_eq!(places[*topic].len(), order.len(), "topic {topic}: a message came twice");
    }
    for said in &said {
        let mut last = [0; TOPICS];
        for (topic, body, position) in said {
            let place = places[*topic].get(body.as_str()).copied();
            if position.is_some() {
                assert_eq!(place, *position, "{body}: where it is, and where it was answered to be");
                taken += 1;
            }
            if let Some(place) = place {
                assert!(place > last[*topic], "{body} came before what its publisher had said before it");
                last[*topic] = place;
                untold += usize::from(position.is_none());
            }
        }
    }
    println!("{taken} messages were answered with their positions, {untold} others were heard");
    assert!(taken > 100 && untold > 20, "the faults have been all there was");
}
