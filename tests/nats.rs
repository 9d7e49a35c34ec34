//! Topics that reach NATS: gateways, a real nats-server, and other clients of it, in calm weather and while the server is killed or frozen.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use common::events::{self, Reader};
use common::foreign::{Client, connect};
use common::freeze::Frozen;
use common::nats::NatsServer;
use common::raw::{self, Raw, Response};
use common::{Gateway, SOON, eventually, sleep_ms};
use serde_json::Value;
use tungstenite::Message;

fn ready(gateway: &Gateway) -> Response {
    raw::http(gateway.admin, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

fn wait_until_ready(gateway: &Gateway) {
    eventually(SOON, || match ready(gateway) {
        response if response.status == 200 => Ok(()),
        response => Err(response.text()),
    });
}

fn wait_until_unready(gateway: &Gateway, word: &str) {
    eventually(SOON, || match ready(gateway) {
        response if response.status == 503 && response.text().contains(word) => Ok(()),
        response => Err(format!("{} {:?}", response.status, response.text())),
    });
}

/// Starts one that is connected.
fn start(setup: common::Setup) -> Gateway {
    let gateway = setup.start();
    wait_until_ready(&gateway);
    gateway
}

fn metric(gateway: &Gateway, name: &str) -> u64 {
    gateway.metrics().sum(&format!("shardcast_nats_{name}"), &[]) as u64
}

fn post(gateway: &Gateway, path: &str, body: &[u8]) -> Response {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut bytes = std::mem::take(&mut request).into_bytes();
    bytes.extend_from_slice(body);
    raw::http(gateway.port, &bytes)
}

/// Publishes; the answer must be 200.
fn publish(gateway: &Gateway, topic: &str, body: &str) {
    let response = post(gateway, &format!("/publish?topic={topic}"), body.as_bytes());
    assert_eq!(response.status, 200, "{topic}: {response:?}");
}

fn refusal(response: &Response) -> (u16, String) {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"));
    (response.status, body["error"]["code"].as_str().unwrap_or_else(|| panic!("no code: {body}")).to_owned())
}

fn poll(raw: &mut Raw, path: &str) -> (Vec<String>, String) {
    raw.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let response = raw.response();
    assert_eq!(response.status, 200, "{path}: {response:?}");
    let body: Value = serde_json::from_slice(&response.body).expect("JSON");
    let messages = body["messages"].as_array().expect("messages").iter().map(|message| message["data"].as_str().expect("text").to_owned());
    (messages.collect(), body["next"].as_str().expect("next").to_owned())
}

fn text(message: &Message) -> &str {
    message.to_text().expect("text")
}

#[test]
fn a_publisher_of_nats_reaches_websockets_streams_and_polls_of_every_gateway() {
    let server = NatsServer::start();
    let (a, b) = (start(server.gateway()), start(server.gateway().shards(3)));
    let mut sockets: Vec<Client> = [&a, &a, &b].into_iter().map(|gateway| connect(gateway, "/ws?room=news.eu")).collect();
    let mut stream: Reader = events::open(b.port, "/events?topic=news.eu");
    let mut poller = Raw::connect(a.port);
    let (nothing, mut next) = poll(&mut poller, "/poll?topic=news.eu&wait=0");
    assert!(nothing.is_empty());
    server.wait_for_subscribers("shardcast.news.eu", 2);

    let mut publisher = server.client();
    let words: Vec<String> = (0..50).map(|number| format!("word {number}")).collect();
    words.iter().for_each(|word| publisher.publish("shardcast.news.eu", word));
    for word in &words {
        sockets.iter_mut().for_each(|socket| socket.expect_text(word));
        stream.expect(word);
    }
    let mut polled = Vec::new();
    while polled.len() < words.len() {
        let (more, after) = poll(&mut poller, &format!("/poll?topic=news.eu&after={next}&wait=5"));
        assert!(!more.is_empty(), "{} of {} came", polled.len(), words.len());
        polled.extend(more);
        next = after;
    }
    assert_eq!(polled, words);

    // Whoever comes later finds it in the history of its gateway, and whoever comes back goes on there.
    let mut late = events::open(a.port, "/events?topic=news.eu&last=2");
    late.expect("word 48");
    let id = late.expect("word 49");
    drop(late);
    publisher.publish("shardcast.news.eu", "while it was away");
    sockets.iter_mut().for_each(|socket| socket.expect_text("while it was away"));
    events::resume(a.port, "/events?topic=news.eu", &id).expect("while it was away");
    assert_eq!((metric(&a, "received_total"), metric(&a, "published_total"), metric(&a, "dropped_total")), (51, 0, 0));
}

/// Two gateways, members and publishers on both, on several shards each: through NATS every message comes to everybody once, and what one
/// node has published in its order.
#[test]
fn what_is_published_on_either_gateway_comes_to_everybody_once() {
    const EACH: usize = 100;
    let server = NatsServer::start();
    let (a, b) = (start(server.gateway().shards(3)), start(server.gateway().shards(3)));
    let mut foreign = server.client();
    foreign.subscribe("shardcast.>");
    let gateways = [&a, &b];
    let mut members: Vec<(usize, Client)> = (0..8).map(|n| (n % 2, connect(gateways[n % 2], "/ws?room=lobby"))).collect();
    let mut streams: Vec<Reader> = gateways.map(|gateway| events::open(gateway.port, "/events?topic=lobby")).into();
    server.wait_for_subscribers("shardcast.lobby", 2);

    // Members 0 and 1 and a request of each node take turns.
    for number in 0..EACH {
        for (node, member) in members.iter_mut().take(2) {
            member.text(&format!("{node} ws {number}"));
        }
        if number % 10 == 0 {
            gateways.iter().enumerate().for_each(|(node, gateway)| publish(gateway, "lobby", &format!("{node} http {number}")));
        }
    }
    let total = 2 * EACH + 2 * EACH.div_ceil(10);
    let check = |who: &str, heard: Vec<String>| {
        let mut last: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for said in heard {
            let (from, number) = said.rsplit_once(' ').expect("two parts");
            last.entry(from.to_owned()).or_default().push(number.parse().expect("a number"));
        }
        for (from, every) in [("0 ws", 1), ("1 ws", 1), ("0 http", 10), ("1 http", 10)] {
            assert_eq!(last[from], (0..EACH).step_by(every).collect::<Vec<_>>(), "{who} heard of {from}");
        }
    };
    for (n, (_, member)) in members.iter_mut().enumerate() {
        check(&format!("member {n}"), (0..total).map(|_| text(&member.message()).to_owned()).collect());
        member.expect_silence(100);
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        check(&format!("stream {n}"), (0..total).map(|_| stream.event().data).collect());
        stream.expect_silence(100);
    }
    let heard: Vec<_> = (0..total).map(|_| foreign.message()).collect();
    assert!(heard.iter().all(|message| message.subject == "shardcast.lobby"));
    check("the subscriber of NATS", heard.iter().map(|message| message.text().to_owned()).collect());
    assert_eq!(foreign.rest(200), [], "nothing is said twice");
    assert_eq!([&a, &b].map(|gateway| metric(gateway, "echoes_total")), [0, 0], "the server leaves echoes out");
}

#[test]
fn what_a_payload_cannot_say_comes_through_too() {
    let server = NatsServer::start();
    let (a, b) = (start(server.gateway()), start(server.gateway()));
    let (mut here, mut there) = (connect(&a, "/ws?room=r"), connect(&b, "/ws?room=r"));
    let mut stream = events::open(b.port, "/events?topic=r");
    server.wait_for_subscribers("shardcast.r", 2);
    for message in [Message::binary(&b"text as bytes"[..]), Message::binary(vec![0xff, 0]), Message::text("grün"), Message::text("")] {
        here.send(message.clone());
        assert_eq!((here.message(), there.message()), (message.clone(), message));
        stream.event();
    }
    let response = post(&a, "/publish?topic=r&event=price", b"1.5");
    assert_eq!(response.status, 200, "{response:?}");
    let event = stream.event();
    assert_eq!((event.name.as_str(), event.data.as_str()), ("price", "1.5"));
    assert_eq!((here.message(), there.message()), (Message::text("1.5"), Message::text("1.5")));

    // Others may say it as well, and cannot forge an event of the gateway's own.
    let mut foreign = server.client();
    foreign.publish_with("shardcast.r", "Shardcast-Event: shardcast:bye\r\n", b"not the end");
    foreign.publish_with("shardcast.r", "Shardcast-Event: tick\r\nShardcast-Kind: binary\r\n", b"abc");
    stream.expect("not the end");
    let event = stream.event();
    assert_eq!((event.name.as_str(), event.data.as_str()), ("tick", "YWJj"));
    assert_eq!((here.message(), here.message()), (Message::text("not the end"), Message::binary(&b"abc"[..])));
}

#[test]
fn rules_say_which_topics_go_which_way() {
    let server = NatsServer::start();
    let rules = "prices.* <- market.prices.*,alerts -> ops.alerts,room-* <-> rooms.*";
    let gateway = start(server.gateway().env("SHARDCAST_NATS_BRIDGE", rules));
    let mut foreign = server.client();
    foreign.subscribe(">");
    let mut members: Vec<Client> =
        ["prices.gold", "alerts", "room-a%20b", "lobby"].iter().map(|topic| connect(&gateway, &format!("/ws?room={topic}"))).collect();
    server.wait_for_subscribers("market.prices.gold", 1);
    server.wait_for_subscribers("rooms.a%20b", 1);
    for member in &mut members {
        member.text("from here");
        member.expect_text("from here");
    }
    let mut heard = [foreign.message(), foreign.message()].map(|message| message.subject);
    heard.sort();
    assert_eq!(heard, ["ops.alerts", "rooms.a%20b"]);
    for subject in ["market.prices.gold", "ops.alerts", "rooms.a%20b", "shardcast.lobby", "lobby"] {
        foreign.publish(subject, "from there");
    }
    foreign.settle();
    for (topic, hears) in [(0, true), (1, false), (2, true), (3, false)] {
        if hears {
            members[topic].expect_text("from there");
        }
        members[topic].expect_silence(100);
    }
    assert_eq!(foreign.rest(100).len(), 5, "what came from NATS does not go back");
}

#[test]
fn nats_is_asked_for_what_somebody_wants_and_for_nothing_else() {
    let server = NatsServer::start();
    let gateway = start(server.gateway().shards(3).limit("nats_interest_ms", 0).limit("history_age_ms", 3_600_000));
    publish(&gateway, "t", "nobody listens");
    let topics = ["t", "u", "v", "w"];
    let subscribers = |of: &str| server.subscribers(&format!("shardcast.{of}"));
    assert_eq!(topics.map(subscribers), [0; 4]);
    let first: Vec<Client> = topics.iter().map(|topic| connect(&gateway, &format!("/ws?room={topic}"))).collect();
    let second: Vec<Client> = topics.iter().map(|topic| connect(&gateway, &format!("/ws?room={topic}"))).collect();
    topics.iter().for_each(|topic| server.wait_for_subscribers(&format!("shardcast.{topic}"), 1));
    assert_eq!(metric(&gateway, "subscriptions"), 4);
    first.into_iter().for_each(Client::leave);
    assert_eq!(topics.map(subscribers), [1; 4], "somebody is left");
    second.into_iter().for_each(Client::leave);
    topics.iter().for_each(|topic| server.wait_for_subscribers(&format!("shardcast.{topic}"), 0));
    eventually(SOON, || if metric(&gateway, "subscriptions") == 0 { Ok(()) } else { Err("subscriptions are left".into()) });
    // It comes back, with what it had.
    let mut back = events::open(gateway.port, "/events?topic=t&last=1");
    back.expect("nobody listens");
    server.wait_for_subscribers("shardcast.t", 1);
    server.client().publish("shardcast.t", "again");
    back.expect("again");
}

#[test]
fn over_the_bound_of_subscriptions_a_client_is_told_so() {
    let server = NatsServer::start();
    let gateway = start(server.gateway().shards(1).limit("nats_subscriptions_max", 1));
    let mut member = connect(&gateway, "/ws?room=a");
    let closed = connect(&gateway, "/ws?room=b").closed().expect("a close frame");
    assert_eq!(u16::from(closed.code), 4503);
    assert!(closed.reason.contains("nats_subscriptions_max"), "{}", closed.reason);
    connect(&gateway, "/ws?room=a");
    member.text("still here");
    member.expect_text("still here");
}

#[test]
fn what_the_server_would_not_take_is_refused_to_its_publisher_and_costs_nobody_else_anything() {
    let server = NatsServer::start_with("max_payload: 2048");
    for shards in [1, 3] {
        let gateway = start(server.gateway().shards(shards));
        let mut foreign = server.client();
        foreign.subscribe("shardcast.big");
        let mut member = connect(&gateway, "/ws?room=big");
        let large = "x".repeat(2048);
        let response = post(&gateway, "/publish?topic=big", large.as_bytes());
        assert_eq!(refusal(&response), (413, "too_large_for_nats".to_owned()));
        let mut publisher = connect(&gateway, "/ws?room=big");
        publisher.text(&large);
        let closed = publisher.closed().expect("a close frame");
        assert_eq!(u16::from(closed.code), 1009);
        assert!(closed.reason.contains("2048 bytes"), "{}", closed.reason);
        let fits = "y".repeat(2048 - 192);
        publish(&gateway, "big", &fits);
        member.expect_text(&fits);
        assert_eq!(foreign.message().text(), fits);
        assert_eq!((metric(&gateway, "disconnects_total"), metric(&gateway, "refused_total"), metric(&gateway, "unsent_total")), (0, 2, 0));
        // The longest name, of what takes most room.
        let name = "%20".repeat(255);
        let mut reader = connect(&gateway, &format!("/ws?room={name}"));
        publish(&gateway, &name, "hello");
        reader.expect_text("hello");
        assert_eq!(metric(&gateway, "disconnects_total"), 0);
    }
}

/// Rooms `n-*` go to NATS, the others are the gateway's own.
fn half(server: &NatsServer) -> common::Setup {
    server.gateway().env("SHARDCAST_NATS_BRIDGE", "n-* <-> n.*")
}

/// Embedded topics are served as if there were no NATS.
fn own_topics_go_on(gateway: &Gateway, stream: &mut Reader) {
    publish(gateway, "own", "unmoved");
    stream.expect("unmoved");
}

#[test]
fn a_killed_server_is_told_to_publishers_and_costs_nobody_else_anything() {
    let mut server = NatsServer::start();
    let (a, b) = (start(half(&server)), start(half(&server).shards(3)));
    let (mut here, mut there) = (connect(&a, "/ws?room=n-1"), connect(&b, "/ws?room=n-1"));
    let mut own = events::open(a.port, "/events?topic=own");
    for round in 1..=3 {
        server.wait_for_subscribers("n.1", 2);
        let word = format!("round {round}");
        publish(&a, "n-1", &word);
        here.expect_text(&word);
        there.expect_text(&word);

        server.kill();
        wait_until_unready(&a, "disconnected");
        wait_until_unready(&b, "disconnected");
        for gateway in [&a, &b] {
            let response = post(gateway, "/publish?topic=n-1", b"into nowhere");
            assert_eq!(refusal(&response), (503, "nats_unavailable".to_owned()));
            assert_eq!(response.header("Retry-After"), Some("1"));
            let mut talker = connect(gateway, "/ws?room=n-1");
            talker.text("into nowhere");
            let closed = talker.closed().expect("a close frame");
            assert_eq!(u16::from(closed.code), 4503);
            assert!(closed.reason.starts_with("retry="), "{}", closed.reason);
        }
        own_topics_go_on(&a, &mut own);

        server.restart();
        wait_until_ready(&a);
        wait_until_ready(&b);
        assert_eq!([&a, &b].map(|gateway| metric(gateway, "connects_total")), [round + 1; 2]);
    }
    server.wait_for_subscribers("n.1", 2);
    publish(&b, "n-1", "the end");
    here.expect_text("the end");
    there.expect_text("the end");
    assert_eq!([&a, &b].map(|gateway| metric(gateway, "disconnects_total")), [3; 2]);
    a.expect_log("connected to NATS again");
    a.expect_log("the connection to NATS is lost");
}

/// Its sockets are there and nobody answers: first what waits is bounded, then the connection is given up. Meanwhile publishers are told, own topics go on, and
/// when the server goes on it handles what the lost connections had sent, to the new ones: nobody hears anything twice.
#[test]
fn a_frozen_server_fills_the_outbox_and_no_more_and_nothing_is_heard_twice() {
    const OUTBOX: u64 = 256 * 1024;
    let server = NatsServer::start();
    let setup = || half(&server).limit("nats_outbox_bytes_max", OUTBOX).limit("nats_ping_ms", 1000).limit("history_messages", 0);
    let (a, b) = (start(setup()), start(setup()));
    let mut own = events::open(a.port, "/events?topic=own");
    let (mut here, mut there) = (connect(&a, "/ws?room=n-1"), connect(&b, "/ws?room=n-1"));
    server.wait_for_subscribers("n.1", 2);

    let before = a.pss_bytes();
    server.freeze();
    let filler = "f".repeat(32 * 1024);
    let mut taken = 0;
    let answer = loop {
        let body = format!("{taken} {filler}");
        let response = post(&a, "/publish?topic=n-1", body.as_bytes());
        if response.status != 200 {
            break refusal(&response);
        }
        here.expect_text(&body);
        taken += 1;
        assert!(taken < 10_000, "nothing bounds it");
    };
    assert!(["nats_behind", "nats_unavailable"].contains(&answer.1.as_str()), "{answer:?}");
    let waits = metric(&a, "outbox_bytes");
    assert!(waits <= OUTBOX + 64 * 1024, "{waits} bytes wait");
    // The client's own queue has 256 of these messages, which is 8 MiB.
    let grown = a.pss_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    own_topics_go_on(&a, &mut own);

    // What a WebSocket says now is not read, or kept by another shard than its own; it is told when the connection is given up.
    let mut talker = Raw::connect(a.port);
    talker.write(raw::upgrade("/ws?room=n-1&echo=0", "").as_bytes());
    talker.expect_upgraded();
    talker.send_text("may I?");
    wait_until_unready(&a, "disconnected");
    talker.send_text("and now?");
    assert_eq!(talker.close_frame().0, Some(4503));
    let response = post(&a, "/publish?topic=n-1", b"into nowhere");
    assert_eq!(refusal(&response), (503, "nats_unavailable".to_owned()));
    own_topics_go_on(&a, &mut own);
    wait_until_unready(&b, "disconnected");

    server.thaw();
    wait_until_ready(&a);
    wait_until_ready(&b);
    server.wait_for_subscribers("n.1", 2);
    eventually(SOON, || match metric(&a, "outbox") {
        0 => Ok(()),
        waits => Err(format!("{waits} still wait")),
    });
    publish(&a, "n-1", "the end");
    // The other node has heard some of it. Nobody has heard anything twice, or in another order.
    for member in [&mut here, &mut there] {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last| last != "the end") {
            heard.push(text(&member.message()).split(" f").next().expect("split yields one").to_owned());
        }
        let said = (0..taken).map(|number| number.to_string()).chain(["may I?".to_owned(), "the end".to_owned()]);
        let mut said = said.collect::<Vec<_>>().into_iter();
        assert!(heard.iter().all(|one| said.any(|other| other == *one)), "{heard:?}");
    }
    here.expect_silence(100);
    there.expect_silence(100);
}

#[test]
fn who_we_are_is_said_with_what_is_in_a_file_and_a_wrong_word_is_no_end() {
    let server = NatsServer::start_with("authorization { user: gateway, password: right }");
    let scratch = common::Scratch::new();
    let secret = |name: &str, text: &str| {
        let file = scratch.join(name);
        std::fs::write(&file, text).expect("our directory");
        file.display().to_string()
    };
    let (right, wrong) = (secret("right", "right\n"), secret("wrong", "wrong"));
    let with = |file: &str| server.gateway().env("SHARDCAST_NATS_USER", "gateway").env("SHARDCAST_NATS_PASSWORD", file);
    start(with(&right));
    let refused = with(&wrong).start();
    wait_until_unready(&refused, "connecting");
    refused.expect_log("NATS cannot be reached");
    let mut own = connect(&refused, "/ws?room=own");
    own.text("refused");
    assert_eq!(own.close_code(), 4503, "with the default rule every topic goes to NATS");

    let (code, said) = with("/nowhere/at/all").run();
    assert_eq!(code, Some(1));
    assert!(said.contains("nats.password: /nowhere/at/all cannot be read"), "{said}");
    let (code, said) = common::gateway().arg("--nats").arg("nats://me:secret@127.0.0.1").run();
    assert_eq!(code, Some(2));
    assert!(said.contains("--nats has a server that has a user or a password in it") && !said.contains("secret@"), "{said}");
}

/// Runs openssl in a directory.
fn openssl(scratch: &common::Scratch, words: &str) {
    let mut command = std::process::Command::new("openssl");
    let output = command.args(words.split(' ')).current_dir(scratch.path()).output().expect("the package openssl is installed");
    assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn servers_are_reached_over_tls_with_an_nkey_or_a_token() {
    let scratch = common::Scratch::new();
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&scratch, &format!("req -x509 {ec} -days 2 -subj /CN=ca -keyout ca-key.pem -out ca.pem"));
    openssl(&scratch, &format!("req {ec} -subj /CN=localhost -keyout key.pem -out request.pem"));
    std::fs::write(scratch.join("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").expect("our directory");
    openssl(&scratch, "x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions -out cert.pem");
    let path = |name: &str| scratch.join(name).display().to_string();
    let tls = format!("tls {{ cert_file: {:?}, key_file: {:?} }}", path("cert.pem"), path("key.pem"));
    // The pair of NATS's own documentation.
    std::fs::write(scratch.join("seed"), "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n").expect("our directory");
    std::fs::write(scratch.join("token"), "open sesame").expect("our directory");
    let nkey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    for (who, variable, file) in [
        (format!("users: [ {{ nkey: {nkey} }} ]"), "SHARDCAST_NATS_NKEY", "seed"),
        ("token: \"open sesame\"".to_owned(), "SHARDCAST_NATS_TOKEN", "token"),
    ] {
        let server = NatsServer::start_with(&format!("{tls}\nauthorization {{ {who} }}"));
        let url = server.url().replace("nats://", "tls://");
        let setup = || NatsServer::gateway_of(&url).env(variable, path(file));
        let gateway = start(setup().env("SHARDCAST_NATS_CA", path("ca.pem")));
        let mut member = connect(&gateway, "/ws?room=r");
        server.wait_for_subscribers("shardcast.r", 1);
        member.text("in secret");
        member.expect_text("in secret");
        // A server that nobody we trust has signed for is none.
        let distrustful = setup().arg("--log").arg("info,async_nats=debug").start();
        distrustful.expect_log("UnknownIssuer");
        assert_eq!(ready(&distrustful).status, 503);
    }
}

#[test]
fn a_cluster_is_reached_by_any_of_its_servers() {
    let mut servers = NatsServer::start_cluster();
    let urls = servers.each_ref().map(NatsServer::url).join(",");
    let (a, b) = (start(NatsServer::gateway_of(&urls)), start(NatsServer::gateway_of(&urls)));
    let (mut here, mut there) = (connect(&a, "/ws?room=r"), connect(&b, "/ws?room=r"));
    let (mut said, mut last) = (0, None);
    // Servers tell each other some time later what is asked of them: it is said again until it is heard, and never heard twice.
    let mut reaches = |here: &mut Client, there: &mut Client| {
        there.socket.get_ref().set_read_timeout(Some(std::time::Duration::from_millis(100))).expect("a timeout above zero");
        eventually(SOON, || {
            said += 1;
            publish(&a, "r", &said.to_string());
            here.expect_text(&said.to_string());
            let Ok(message) = there.socket.read() else { return Err("nothing is heard".into()) };
            let number: u32 = text(&message).parse().expect("a number");
            assert!(last.is_none_or(|last| number > last), "{number} behind {last:?}");
            last = Some(number);
            Ok(())
        });
    };
    reaches(&mut here, &mut there);
    let port_of = |gateway: &Gateway| {
        let log = gateway.log();
        let line = log.lines().rfind(|line| line.contains("connected to NATS")).expect("it says so");
        line.split("port=").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|port| port.parse::<u16>().ok()).expect("a port")
    };
    // Each time the server that one of them is connected to.
    for (gateway, connects) in [(&a, 2), (&b, 2)] {
        let port = port_of(gateway);
        servers.iter_mut().find(|server| server.port == port).expect("one of them").kill();
        eventually(SOON, || match port_of(gateway) {
            now if now != port => Ok(()),
            _ => Err("it is still connected there".into()),
        });
        assert!(metric(gateway, "connects_total") >= connects);
        wait_until_ready(&a);
        wait_until_ready(&b);
        reaches(&mut here, &mut there);
    }
}

#[test]
fn after_as_many_tries_as_may_be_it_is_given_up_and_said() {
    let mut server = NatsServer::start();
    let gateway = start(half(&server).limit("nats_reconnects_max", 3));
    server.kill();
    wait_until_unready(&gateway, "given up");
    gateway.expect_log("nats_reconnects_max");
    assert_eq!(refusal(&post(&gateway, "/publish?topic=n-1", b"x")).0, 503);
    let mut own = events::open(gateway.port, "/events?topic=own");
    own_topics_go_on(&gateway, &mut own);
}

/// What has its place when a gateway is told to end reaches NATS before it does.
#[test]
fn a_gateway_that_ends_has_sent_what_it_took() {
    let server = NatsServer::start();
    let mut gateway = start(server.gateway());
    let mut foreign = server.client();
    foreign.subscribe("shardcast.last");
    let body = serde_json::to_string(&(0..1000).map(|n| serde_json::json!({"topic": "last", "data": n.to_string()})).collect::<Vec<_>>());
    let response = post(&gateway, "/v1/publish", body.expect("JSON").as_bytes());
    assert_eq!(response.status, 200, "{response:?}");
    gateway.signal(libc::SIGTERM);
    assert!(gateway.exit_within(SOON).success());
    for n in 0..1000 {
        assert_eq!(foreign.message().text(), n.to_string());
    }
}

/// The next process is connected before clients are its own: none of them is told that there is no NATS, and what they say goes out.
#[test]
fn clients_who_are_handed_over_speak_to_nats_as_before() {
    let server = NatsServer::start();
    let (mut a, b) = (start(server.gateway()), start(server.gateway()));
    let (mut here, mut there) = (connect(&a, "/ws?room=news"), connect(&b, "/ws?room=news"));
    server.wait_for_subscribers("shardcast.news", 2);
    for round in 0..3 {
        for number in 0..50 {
            here.text(&format!("{round} {number}"));
        }
        a.hand_over();
        here.text(&format!("{round} after"));
        for word in (0..50).map(|number| format!("{round} {number}")).chain([format!("{round} after")]) {
            here.expect_text(&word);
            there.expect_text(&word);
        }
        server.wait_for_subscribers("shardcast.news", 2);
        there.text("and back");
        here.expect_text("and back");
        there.expect_text("and back");
    }
    wait_until_ready(&a);
}

/// A way to a server on which the first connection gets some 1.6 MB/s up, and every other one what it likes.
fn slow_way(server: &NatsServer) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = listener.local_addr().expect("bound").port();
    let url = server.url();
    let pass = |mut from: TcpStream, mut to: TcpStream, is_slow: bool| {
        std::thread::spawn(move || {
            let mut bytes = [0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if is_slow {
                    sleep_ms(10);
                }
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    };
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let client = client.expect("it accepts");
            let server = TcpStream::connect(url.trim_start_matches("nats://")).expect("nats-server accepts");
            pass(client.try_clone().expect("descriptors"), server.try_clone().expect("descriptors"), number == 0);
            pass(server, client, false);
        }
    });
    port
}

/// What a client says to the next process comes behind what it has said to the one before, though that is still on a slow way to the server.
#[test]
fn who_is_handed_over_does_not_overtake_himself_on_the_way_to_nats() {
    let server = NatsServer::start();
    let mut listener = server.client();
    listener.subscribe("shardcast.news");
    let url = format!("nats://127.0.0.1:{}", slow_way(&server));
    let mut gateway = start(NatsServer::gateway_of(&url).limit("nats_ping_ms", 10_000));
    let mut talker = connect(&gateway, "/ws?room=news&echo=0");
    let filler = "f".repeat(20_000);
    for number in 0..100 {
        talker.text(&format!("{number} {filler}"));
    }
    eventually(SOON, || match metric(&gateway, "published_total") {
        100 => Ok(()),
        sent => Err(format!("{sent} of 100 are on their way")),
    });
    gateway.hand_over();
    talker.text("100 and the end");
    for number in 0..=100 {
        let message = listener.message();
        assert_eq!(message.text().split(' ').next(), Some(&*number.to_string()));
    }
}

/// With a server that does not answer there is no hand-over, and clients notice nothing of the trial.
#[test]
fn over_a_frozen_server_nothing_is_handed_over() {
    let server = NatsServer::start();
    let mut gateway = start(half(&server).limit("nats_ping_ms", 10_000).limit("handover_ms", 1000));
    let mut own = events::open(gateway.port, "/events?topic=own");
    let mut member = connect(&gateway, "/ws?room=n-1");
    server.wait_for_subscribers("n.1", 1);
    server.freeze();
    assert!(!gateway.try_to_hand_over());
    gateway.expect_log("there is no connection to NATS");
    own_topics_go_on(&gateway, &mut own);
    server.thaw();
    let mut foreign = server.client();
    foreign.publish("n.1", "still there");
    member.expect_text("still there");
    gateway.hand_over();
    foreign.publish("n.1", "and again");
    member.expect_text("and again");
    // Who listens to everything keeps the server from saying that nobody does.
    foreign.subscribe(">");
    foreign.settle();
    gateway.hand_over();
    gateway.expect_log("may overtake it");
    foreign.publish("n.1", "in the end");
    member.expect_text("in the end");
}

/// A shard that stands still takes nothing: what comes for it beyond its bounds is dropped and counted, and what was taken comes in order.
#[test]
fn what_comes_faster_than_a_shard_takes_it_is_bounded_and_counted() {
    const MESSAGES: u64 = 5000;
    const INBOX: u64 = 64 * 1024;
    let server = NatsServer::start();
    let gateway = start(server.gateway().shards(1).limit("nats_inbox_bytes_max", INBOX));
    let mut member = connect(&gateway, "/ws?room=flood");
    server.wait_for_subscribers("shardcast.flood", 1);
    let mut foreign = server.client();
    let frozen = Frozen::stop(gateway.shard_thread(0));
    for number in 0..MESSAGES {
        foreign.publish("shardcast.flood", format!("{number:01024}"));
    }
    eventually(SOON, || match metric(&gateway, "received_total") {
        MESSAGES => Ok(()),
        seen => Err(format!("{seen} of {MESSAGES} were seen")),
    });
    let dropped = metric(&gateway, "dropped_total");
    assert!(MESSAGES - dropped <= INBOX / 1024, "{dropped} of {MESSAGES} were dropped");
    frozen.resume();
    for number in 0..MESSAGES - dropped {
        assert_eq!(text(&member.message()).parse(), Ok(number));
    }
    foreign.publish("shardcast.flood", "the end");
    member.expect_text("the end");
}

/// A server with JetStream, whose files are in a directory of the test's own.
fn with_jetstream(scratch: &common::Scratch) -> NatsServer {
    NatsServer::start_with(&format!("jetstream {{ store_dir: {:?} }}", scratch.path()))
}

#[test]
fn a_stream_is_made_and_keeps_what_goes_out_and_what_comes_in() {
    let scratch = common::Scratch::new();
    let mut server = with_jetstream(&scratch);
    let setup = || server_setup(&server).env("SHARDCAST_NATS_BRIDGE", "n-* <-> n.*,out -> o.out,in <- i.in");
    let (a, b) = (start(setup()), start(setup()));
    let info = server.client().request("$JS.API.STREAM.INFO.KEPT", "");
    let config = &info["config"];
    assert_eq!(config["subjects"], serde_json::json!(["n.>", "o.out", "i.in"]));
    assert_eq!((config["retention"].as_str(), config["storage"].as_str()), (Some("limits"), Some("file")));
    let nanos = |seconds: u64| Some(seconds * 1_000_000_000);
    assert_eq!((config["max_age"].as_u64(), config["duplicate_window"].as_u64()), (nanos(604_800), nanos(120)));
    assert_eq!((config["max_msgs"].as_u64(), config["num_replicas"].as_u64()), (Some(1_000_000), Some(1)));
    for (gateway, topic) in [(&a, "n-1"), (&b, "n-2"), (&a, "out"), (&a, "own")] {
        publish(gateway, topic, "keep me");
    }
    // What comes in only has its place from the stream, and nothing goes there.
    assert_eq!(refusal(&post(&b, "/publish?topic=in", b"not here")), (403, "read_only".into()));
    let mut member = connect(&b, "/ws?room=in");
    server.client().publish("i.in", "from elsewhere");
    member.expect_text("from elsewhere");
    member.text("not here");
    assert_eq!(member.close_code(), 4403);
    let kept = |server: &NatsServer, expected: u64| {
        eventually(SOON, || match server.client().request("$JS.API.STREAM.INFO.KEPT", "")["state"]["messages"].as_u64() {
            Some(messages) if messages == expected => Ok(()),
            messages => Err(format!("{messages:?} are kept, {expected} were expected")),
        });
    };
    kept(&server, 4);

    // The files outlive the process.
    server.kill();
    wait_until_unready(&a, "disconnected");
    server.restart();
    wait_until_ready(&a);
    wait_until_ready(&b);
    kept(&server, 4);
    // Who deletes it gets a new one.
    assert_eq!(server.client().request("$JS.API.STREAM.DELETE.KEPT", "")["success"], true);
    kept(&server, 0);
    publish(&a, "n-1", "keep me too");
    kept(&server, 1);
}

/// A member, as soon as the stream is read.
fn eventually_in(gateway: &Gateway, path: &str) -> Client {
    eventually(SOON, || match metric(gateway, "stream_reading") {
        1 => Ok(()),
        _ => Err("the stream is not read".into()),
    });
    connect(gateway, path)
}

fn server_setup(server: &NatsServer) -> common::Setup {
    server.gateway().env("SHARDCAST_NATS_STREAM", "KEPT")
}

#[test]
fn a_stream_that_is_another_is_told_by_its_field_until_it_fits() {
    let scratch = common::Scratch::new();
    let server = with_jetstream(&scratch);
    let mut foreign = server.client();
    let mut wanted = serde_json::json!({
        "name": "KEPT", "subjects": ["shardcast.>"], "retention": "limits", "storage": "file", "discard": "old", "num_replicas": 1,
        "max_age": 60_000_000_000_u64, "max_msgs": 1_000_000, "duplicate_window": 30_000_000_000_u64, "max_consumers": -1,
    });
    let made = foreign.request("$JS.API.STREAM.CREATE.KEPT", &wanted.to_string());
    assert!(made["error"].is_null(), "{made}");
    let gateway = server_setup(&server).start();
    wait_until_unready(&gateway, "nats stream: not as asked for");
    let mut member = eventually_in(&gateway, "/ws?room=r");
    member.text("read all the same");
    member.expect_text("read all the same");
    let line = "the stream is not as asked for: max_age is 60s, 604800s (limits.nats_stream_age_ms) is asked for";
    gateway.expect_log(line);
    wanted["max_age"] = 604_800_000_000_000_u64.into();
    wanted["duplicate_window"] = 120_000_000_000_u64.into();
    let changed = foreign.request("$JS.API.STREAM.UPDATE.KEPT", &wanted.to_string());
    assert!(changed["error"].is_null(), "{changed}");
    wait_until_ready(&gateway);

    let without = NatsServer::start();
    let gateway = server_setup(&without).start();
    wait_until_unready(&gateway, "nats stream: not seen yet");
    gateway.expect_log("is JetStream enabled?");
    // Nobody else gives messages their places.
    assert_eq!(connect(&gateway, "/ws?room=r").close_code(), 4503);
    assert_eq!(refusal(&post(&gateway, "/publish?topic=r", b"x")), (503, "nats_unavailable".into()));
}
