//! Topics whose messages a JetStream stream gives their places: the same order and positions at every gateway, receipts when the stream has them, the past from
//! the stream, and what befalls a stream, its consumers and its servers.

mod common;

use common::events::{self, Reader};
use common::foreign::{Client, connect};
use common::nats::NatsServer;
use common::raw::{self, Response};
use common::replaceable::Replaceable;
use common::talk::{self, Talker};
use common::{Gateway, Scratch, Setup};
use serde_json::{Value, json};

fn setup(server: &NatsServer) -> Setup {
    server.gateway().env("SHARDCAST_NATS_STREAM", "KEPT")
}

/// Starts one that reads the stream.
fn start(setup: Setup) -> Gateway {
    let gateway = setup.start();
    gateway.wait_until_ready();
    gateway
}

fn metric(gateway: &Gateway, name: &str) -> u64 {
    gateway.metrics().sum(&format!("shardcast_nats_{name}"), &[]) as u64
}

fn post_with(gateway: &Gateway, path: &str, headers: &str, body: &str) -> Response {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    raw::http(gateway.port, &[head.as_bytes(), body.as_bytes()].concat())
}

fn json_of(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

/// Publishes; the position that was given.
fn publish(gateway: &Gateway, topic: &str, body: &str) -> String {
    let response = post_with(gateway, &format!("/publish?topic={topic}"), "", body);
    assert_eq!(response.status, 200, "{topic}: {response:?}");
    json_of(&response)["pos"].as_str().unwrap_or_else(|| panic!("no position: {response:?}")).to_owned()
}

/// Messages with their positions, gaps, and where to go on.
fn poll(gateway: &Gateway, path: &str) -> (Vec<(String, String)>, Vec<Value>, String) {
    let response = raw::http(gateway.port, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    assert_eq!(response.status, 200, "{path}: {response:?}");
    let body = json_of(&response);
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {body}")).to_owned();
    let messages = body["messages"].as_array().expect("messages").iter().map(|one| (text(&one["pos"]), text(&one["data"]))).collect();
    (messages, body["gaps"].as_array().cloned().unwrap_or_default(), text(&body["next"]))
}

#[test]
fn every_gateway_has_the_same_order_and_the_same_positions() {
    const EACH: usize = 60;
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let (a, b) = (start(setup(&server).shards(3)), start(setup(&server)));
    let gateways = [&a, &b];
    let mut sockets: Vec<Client> = (0..6).map(|n| connect(gateways[n % 2], "/ws?room=lobby")).collect();
    let mut streams: Vec<Reader> = (0..4).map(|n| events::open(gateways[n % 2].port, "/events?topic=lobby")).collect();
    let mut several: Vec<Reader> = (0..4).map(|n| events::open(gateways[n % 2].port, "/events?topic=lobby&topic=other")).collect();
    let begin = gateways.map(|gateway| poll(gateway, "/poll?topic=lobby&wait=0").2);
    let mut foreign = server.client();
    let mut given = Vec::new();
    for number in 0..EACH {
        sockets[number % 6].text(&format!("ws {} {number}", number % 6));
        given.push((publish(gateways[number % 2], "lobby", &format!("http {number}")), format!("http {number}")));
        publish(gateways[number % 2], "other", "else");
        foreign.publish("shardcast.lobby", format!("nats {number}"));
    }
    let orders: Vec<Vec<(String, String)>> = streams
        .iter_mut()
        .map(|stream| (0..3 * EACH).map(|_| stream.event()).map(|event| (event.id, event.data)).collect::<Vec<_>>())
        .collect();
    assert!(orders.iter().all(|order| *order == orders[0]), "one order with the same positions for all");
    let order = &orders[0];
    for (position, said) in &given {
        assert!(order.contains(&(position.clone(), said.clone())), "{said} was answered {position}");
    }
    for who in ["ws 0", "ws 1", "ws 2", "ws 3", "ws 4", "ws 5", "nats"] {
        let numbers: Vec<usize> = order.iter().filter_map(|(_, said)| said.strip_prefix(who)?.trim().parse().ok()).collect();
        assert!(numbers.is_sorted() && !numbers.is_empty(), "{who} was heard as {numbers:?}");
    }
    let mut said: Vec<&str> = order.iter().map(|(_, said)| said.as_str()).collect();
    for socket in &mut sockets {
        let heard: Vec<String> = (0..3 * EACH).map(|_| socket.message().to_text().expect("text").to_owned()).collect();
        assert_eq!(heard, said);
        socket.expect_silence(20);
    }
    for stream in &mut several {
        let heard: Vec<String> = (0..4 * EACH).map(|_| stream.event().data).filter(|data| data != "else").collect();
        assert_eq!(heard, said);
    }
    for (gateway, begin) in gateways.into_iter().zip(begin) {
        let mut polled = Vec::new();
        let mut next = begin;
        while polled.len() < 3 * EACH {
            let (messages, gaps, after) = poll(gateway, &format!("/poll?topic=lobby&after={next}&wait=5"));
            assert!(gaps.is_empty() && !messages.is_empty());
            polled.extend(messages);
            next = after;
        }
        assert_eq!(polled, *order);
    }
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), 3 * EACH);
}

#[test]
fn whoever_comes_back_to_another_gateway_goes_on_there() {
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let a = start(setup(&server).limit("history_messages", 8));
    let mut reader = events::open(a.port, "/events?topic=t");
    publish(&a, "t", "first");
    let id = reader.expect("first");
    drop(reader);
    let mut given: Vec<(String, String)> = (0..200).map(|n| (publish(&a, "t", &n.to_string()), n.to_string())).collect();
    publish(&a, "u", "of another topic");
    // Nobody has asked the second one for the topic, nor a third, nor has the first so much of it.
    let b = start(setup(&server).shards(3));
    let c = start(setup(&server));
    for gateway in [&b, &a] {
        let mut reader = events::resume(gateway.port, "/events?topic=t", &id);
        for (position, said) in &given {
            assert_eq!(reader.expect(said), *position);
        }
        let last = publish(&c, "t", "live");
        assert_eq!(reader.expect("live"), last);
        given.push((last, "live".to_owned()));
    }
    let mut room = connect(&c, &format!("/ws?room=t&after={id}"));
    for (_, said) in &given {
        room.expect_text(said);
    }
    let (mut polled, mut next) = (Vec::new(), id.clone());
    while polled.len() < given.len() {
        let (messages, gaps, after) = poll(&c, &format!("/poll?topic=t&after={next}&wait=5"));
        assert!(gaps.is_empty() && !messages.is_empty(), "{} of {}", polled.len(), given.len());
        polled.extend(messages);
        next = after;
    }
    assert_eq!(polled[..given.len()], given);
    // A position that only says how far the stream was read, of a quiet topic, is none of a gap.
    let quiet = poll(&a, "/poll?topic=quiet&wait=0").2;
    publish(&a, "t", "more");
    let mut reader = events::resume(b.port, "/events?topic=quiet", &quiet);
    let position = publish(&a, "quiet", "said");
    assert_eq!(reader.expect("said"), position);
    let mut oldest = events::open(c.port, "/events?topic=t&after=earliest");
    oldest.expect("first");
    oldest.expect("0");
}

#[test]
fn a_key_that_was_used_is_answered_with_the_first_position_by_every_gateway() {
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let (a, b) = (start(setup(&server)), start(setup(&server)));
    let mut reader = events::open(a.port, "/events?topic=t");
    let key = "Idempotency-Key: once\r\n";
    let first = json_of(&post_with(&a, "/publish?topic=t", key, "x"));
    assert_eq!(first["duplicate"], Value::Null, "{first}");
    for gateway in [&b, &a] {
        let again = json_of(&post_with(gateway, "/publish?topic=t&ack=stored", key, "x"));
        assert_eq!((&again["pos"], &again["duplicate"]), (&first["pos"], &Value::Bool(true)));
    }
    let other = json_of(&post_with(&b, "/publish?topic=u", key, "x"));
    assert!(other["duplicate"].is_null() && other["pos"] != first["pos"], "a key is its topic's: {other}");
    assert_eq!(reader.expect("x"), first["pos"].as_str().expect("a position"));
    let last = publish(&b, "t", "y");
    assert_eq!(reader.expect("y"), last);
    let sent = json_of(&post_with(&a, "/publish?topic=t&ack=sent", "", "z"));
    assert_eq!(sent["subscribers"], 1, "{sent}");
    assert_eq!(reader.expect("z"), sent["pos"].as_str().expect("a position"));
    assert_eq!(metric(&a, "duplicates_total") + metric(&b, "duplicates_total"), 2);
}

#[test]
fn a_stream_that_is_made_anew_is_a_gap_and_a_consumer_that_is_deleted_is_none() {
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let (a, b) = (start(setup(&server)), start(setup(&server).shards(3)));
    let mut streams = [&a, &b].map(|gateway| events::open(gateway.port, "/events?topic=t"));
    let mut rooms = [&a, &b].map(|gateway| connect(gateway, "/ws?room=t"));
    let first = publish(&a, "t", "first");
    streams.iter_mut().for_each(|stream| assert_eq!(stream.expect("first"), first));
    rooms.iter_mut().for_each(|room| room.expect_text("first"));

    let mut foreign = server.client();
    let names = foreign.request("$JS.API.CONSUMER.NAMES.KEPT", "");
    let names = names["consumers"].as_array().expect("names");
    assert_eq!(names.len(), 2, "one for each gateway");
    for name in names {
        let deleted = foreign.request(&format!("$JS.API.CONSUMER.DELETE.KEPT.{}", name.as_str().expect("a name")), "");
        assert_eq!(deleted["success"], true);
    }
    let second = publish(&b, "t", "second");
    streams.iter_mut().for_each(|stream| assert_eq!(stream.expect("second"), second));
    rooms.iter_mut().for_each(|room| room.expect_text("second"));
    assert_eq!(metric(&a, "holes_total"), 0);

    assert_eq!(foreign.request("$JS.API.STREAM.DELETE.KEPT", "")["success"], true);
    for stream in &mut streams {
        let gap = stream.expect_control("gap");
        assert_eq!((gap["from"].as_str(), gap["reason"].as_str()), (Some(second.as_str()), Some("restart")), "{gap}");
    }
    for room in &mut rooms {
        assert_eq!(room.close_code(), 4510);
    }
    [&a, &b].into_iter().for_each(Gateway::wait_until_ready);
    let third = publish(&a, "t", "third");
    assert_ne!(third.split('.').next(), first.split('.').next(), "another epoch");
    streams.iter_mut().for_each(|stream| assert_eq!(stream.expect("third"), third));
    let mut back = events::resume(b.port, "/events?topic=t", &second);
    let gap = back.expect_control("gap");
    assert_eq!((gap["from"].as_str(), gap["reason"].as_str()), (Some(second.as_str()), Some("restart")), "{gap}");
    assert_eq!([&a, &b].map(|gateway| metric(gateway, "holes_total")), [1, 1]);
}

/// Numbers, from here on, in order and without a hole.
fn expect_numbers(stream: &mut Reader, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| drop(stream.expect(&number.to_string())));
}

#[test]
fn members_who_are_handed_over_miss_nothing_of_the_stream() {
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let mut a = start(setup(&server).shards(2));
    let b = start(setup(&server));
    let mut streams: Vec<Reader> = (0..4).map(|_| events::open(a.port, "/events?topic=t")).collect();
    let mut rooms: Vec<Client> = (0..4).map(|_| connect(&a, "/ws?room=t")).collect();
    let mut talkers: Vec<Talker> = (0..2).map(|_| talk::connect(a.port)).collect();
    talkers.iter_mut().for_each(|talker| drop(talker.subscribe("t")));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let port = b.port;
    let publisher = std::thread::spawn(move || {
        let mut number = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let body = number.to_string();
            let head =
                format!("POST /publish?topic=t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            assert_eq!(raw::http(port, &[head.as_bytes(), body.as_bytes()].concat()).status, 200);
            number += 1;
        }
        number
    });
    streams.iter_mut().for_each(|stream| expect_numbers(stream, 0..20));
    a.hand_over();
    streams.iter_mut().for_each(|stream| expect_numbers(stream, 20..60));
    let _ = stop.send(());
    let said = publisher.join().expect("no panic");
    streams.iter_mut().for_each(|stream| expect_numbers(stream, 60..said));
    for room in &mut rooms {
        (0..said).for_each(|number| room.expect_text(&number.to_string()));
    }
    for talker in &mut talkers {
        (0..said).for_each(|number| drop(talker.expect_message("t", number.to_string())));
    }
    rooms[0].text("and they are heard");
    rooms.iter_mut().for_each(|room| room.expect_text("and they are heard"));
    talkers.iter_mut().for_each(|talker| drop(talker.expect_message("t", "and they are heard")));
}

/// Frozen for half a second and then not handed over: what came meanwhile is kept, and given out as fast as a topic takes it, in its order.
#[test]
fn a_hand_over_that_is_called_off_loses_nothing_of_what_came_meanwhile() {
    const MESSAGES: u32 = 600;
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let limits = [("handover_ms", 500), ("nats_inbox_messages", 64), ("topic_lag_bytes_max", 4096)];
    let mut place = Replaceable::start(limits.into_iter().fold(setup(&server).shards(2), |setup, (name, value)| setup.limit(name, value)));
    place.gateway.wait_until_ready();
    let other = start(setup(&server));
    let mut streams: Vec<Reader> = (0..4).map(|_| events::open(place.gateway.port, "/events?topic=t")).collect();
    place.replace("echo prepared >&0; exec sleep 60");
    let port = other.port;
    let filler = "x".repeat(1500);
    let said = |number: u32| format!("{number} {filler}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..MESSAGES {
                let body = said(number);
                let head = format!(
                    "POST /publish?topic=t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                assert_eq!(raw::http(port, &[head.as_bytes(), body.as_bytes()].concat()).status, 200);
            }
        });
        for _ in 0..3 {
            assert!(!place.gateway.try_to_hand_over());
        }
    });
    for stream in &mut streams {
        (0..MESSAGES).for_each(|number| drop(stream.expect(&said(number))));
    }
    assert_eq!(metric(&place.gateway, "holes_total"), 0);
}

#[test]
fn another_leader_is_no_gap_and_loses_nothing() {
    let scratch: [Scratch; 3] = std::array::from_fn(|_| Scratch::new());
    let servers = NatsServer::start_cluster_with(|n| format!("server_name: n{n}\njetstream {{ store_dir: {:?} }}", scratch[n].path()));
    let urls = servers.each_ref().map(NatsServer::url);
    let make = |urls: &[String]| {
        let setup = NatsServer::gateway_of(&urls.join(",")).env("SHARDCAST_NATS_STREAM", "KEPT");
        setup.limit("nats_stream_replicas", 3)
    };
    let (a, b) = (make(&urls[..2]).start(), make(&urls[1..]).start());
    [&a, &b].into_iter().for_each(Gateway::wait_until_ready);
    let mut streams = [&a, &b].map(|gateway| events::open(gateway.port, "/events?topic=t"));
    let mut foreign = servers[0].client();
    let mut number = 0;
    let mut given = Vec::new();
    for step in 0..4 {
        if step > 0 {
            let down = foreign.request("$JS.API.STREAM.LEADER.STEPDOWN.KEPT", "");
            assert_eq!(down["success"], true, "{down}");
        }
        for _ in 0..25 {
            given.push(publish([&a, &b][number % 2], "t", &number.to_string()));
            number += 1;
        }
    }
    for stream in &mut streams {
        for (number, position) in given.iter().enumerate() {
            assert_eq!(stream.expect(&number.to_string()), *position);
        }
        stream.expect_silence(20);
    }
    assert_eq!([&a, &b].map(|gateway| metric(gateway, "holes_total")), [0, 0]);
}

#[test]
fn a_client_that_speaks_json_goes_on_at_another_gateway_and_is_told_when_the_stream_is_another_one() {
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let a = start(setup(&server).shards(2).limit("history_messages", 8));
    let b = start(setup(&server).shards(3));
    let mut here = talk::connect(a.port);
    let begin = here.subscribe("t")["pos"].clone();
    here.say(json!({"type": "publish", "id": 1, "topic": "t", "data": {"n": 0}, "echo": false}));
    let receipt = here.expect("ok");
    for number in 1..200 {
        here.publish("t", number.to_string());
    }
    let mut last = Value::Null;
    for number in 1..200 {
        last = here.expect_message("t", number.to_string())["pos"].clone();
    }

    // What it wants is neither in the one's memory any more nor ever was in the other's.
    for gateway in [&b, &a] {
        let mut there = talk::connect(gateway.port);
        let subscribed = there.subscribe_with("t", json!({"after": begin}));
        assert_eq!((&subscribed["pos"], &subscribed["recovered"]), (&begin, &true.into()), "{subscribed}");
        assert_eq!(there.expect_message("t", json!({"n": 0}))["pos"], receipt["pos"]);
        for number in 1..199 {
            there.expect_message("t", number.to_string());
        }
        assert_eq!(there.expect_message("t", "199")["pos"], last);

        there.say(json!({"type": "history", "id": "h", "topic": "t", "after": begin, "limit": 3}));
        let history = there.expect("history");
        let data: Vec<&Value> = history["messages"].as_array().expect("messages").iter().map(|message| &message["data"]).collect();
        assert_eq!(data, [&json!({"n": 0}), &"1".into(), &"2".into()], "{history}");
        assert_eq!(history["next"], history["messages"][2]["pos"]);
    }

    let mut there = talk::connect(b.port);
    assert_eq!(there.subscribe_with("t", json!({"after": last}))["replayed"], 0);
    assert_eq!(server.client().request("$JS.API.STREAM.DELETE.KEPT", "")["success"], true);
    for client in [&mut here, &mut there] {
        let gap = client.expect("gap");
        assert_eq!((&gap["topic"], &gap["from"], &gap["reason"]), (&"t".into(), &last, &"restart".into()), "{gap}");
    }
    [&a, &b].into_iter().for_each(Gateway::wait_until_ready);
    let receipt = there.published("t", "anew");
    assert_eq!(here.expect_message("t", "anew")["pos"], receipt["pos"]);
}

#[test]
fn the_permissions_that_are_documented_suffice() {
    let scratch = Scratch::new();
    let api = ["STREAM.INFO.KEPT", "STREAM.CREATE.KEPT", "STREAM.MSG.GET.KEPT", "CONSUMER.CREATE.KEPT", "CONSUMER.MSG.NEXT.KEPT.>"];
    let publish_to: Vec<String> = api.iter().map(|what| format!("\"$JS.API.{what}\"")).chain(["\"shardcast.>\"".to_owned()]).collect();
    let server = NatsServer::start_with(&format!(
        "jetstream {{ store_dir: {:?} }}\n\
         authorization {{ users: [\n\
           {{ user: gateway, password: right, permissions: {{ publish: [{}], subscribe: [\"shardcast.>\", \"_INBOX.>\"] }} }}\n\
         ] }}",
        scratch.path(),
        publish_to.join(", ")
    ));
    let password = scratch.join("password");
    std::fs::write(&password, "right\n").expect("our directory");
    let setup = || {
        let setup = setup(&server).limit("history_messages", 4);
        setup.env("SHARDCAST_NATS_USER", "gateway").env("SHARDCAST_NATS_PASSWORD", password.to_str().expect("a plain path"))
    };
    let (a, b) = (start(setup()), start(setup()));
    let mut reader = events::open(a.port, "/events?topic=t");
    let first = publish(&a, "t", "first");
    assert_eq!(reader.expect("first"), first);
    for number in 0..20 {
        publish(&a, "t", &number.to_string());
    }
    // The past, too.
    let mut back = events::resume(b.port, "/events?topic=t", &first);
    expect_numbers(&mut back, 0..20);
    for gateway in [&a, &b] {
        assert!(!gateway.log().contains("ermission"), "{}", gateway.log());
    }
}
