//! Gateways with a JetStream stream between them, and what that costs: a server that is away for a minute, a crowd that comes back to the other gateway, and the rates
//! and latencies of the way over NATS beside its own client's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::nats::NatsServer;
use crate::common::raw::{self, Response};
use crate::common::swarm::{Event, State, Swarm};
use crate::common::{Gateway, Scratch, Setup, now, raise_nofile, sleep_ms};
use crate::full;
use crate::reset_crowd::retry_of;
use crate::watchers::{Phase, Watchers, p99, yield_to_the_gateway};

/// What those who have nothing to do with it may wait longer, in 99 of 100 messages.
const P99_GROWTH_MAX: f64 = 2.0;
/// The size of a message where that counts.
const BYTES: usize = 128;

/// Topics that begin with `kept.` are the stream's, all others the gateway's own.
fn kept(server: &NatsServer) -> Setup {
    server.gateway().env("SHARDCAST_NATS_STREAM", "KEPT").env("SHARDCAST_NATS_BRIDGE", "kept.* <-> kept.*")
}

fn start(setup: Setup) -> Gateway {
    let gateway = setup.start();
    gateway.wait_until_ready();
    gateway
}

fn metric(gateway: &Gateway, name: &str) -> u64 {
    gateway.metrics().sum(&format!("shardcast_nats_{name}"), &[]) as u64
}

fn publish(port: u16, topic: &str, key: &str, body: &str) -> Response {
    let head = format!(
        "POST /publish?topic={topic} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    raw::http(port, &[head.as_bytes(), body.as_bytes()].concat())
}

fn position(response: &Response) -> String {
    let answer: Value = serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"));
    answer["pos"].as_str().unwrap_or_else(|| panic!("no position: {answer}")).to_owned()
}

#[test]
fn a_server_that_is_away_costs_those_who_do_not_need_it_nothing_and_all_is_well_when_it_is_back() {
    /// From a request without a connection to its answer. Longer is no answer "at once".
    const TOLD_WITHIN: Duration = Duration::from_secs(1);
    let (watchers, away) = if full() { (1000, Duration::from_secs(60)) } else { (100, Duration::from_secs(3)) };
    let scratch = Scratch::new();
    let mut server = NatsServer::with_jetstream(&scratch);
    let gateway = start(kept(&server));
    let begin = position(&publish(gateway.port, "kept.a", "begin", "begin"));
    let watching = Watchers::start(&gateway, "own", watchers);
    sleep_ms(1000);
    watching.set(Phase::Quiet);
    let stop = AtomicBool::new(false);
    // Messages that were answered 200, answers that were refusals, and the longest time to one.
    let publisher = || {
        let (mut taken, mut refused, mut longest) = (Vec::new(), 0_u64, Duration::ZERO);
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let asked = now();
            let answer = publish(gateway.port, "kept.a", &number.to_string(), &number.to_string());
            match answer.status {
                200 => taken.push((number, position(&answer))),
                503 => {
                    refused += 1;
                    longest = longest.max(asked.elapsed());
                }
                _ => panic!("{answer:?}"),
            }
            sleep_ms(5);
        }
        (taken, refused, longest)
    };
    let (memory, (taken, refused, longest)) = std::thread::scope(|scope| {
        let publisher = scope.spawn(publisher);
        sleep_ms(if full() { 10_000 } else { 1000 });
        let before = gateway.pss_bytes();
        server.kill();
        watching.set(Phase::Storm);
        let until = now() + away;
        let mut most = before;
        while now() < until {
            sleep_ms(200);
            most = most.max(gateway.pss_bytes());
        }
        watching.set(Phase::Opening);
        server.restart();
        gateway.wait_until_ready();
        sleep_ms(1000);
        stop.store(true, Ordering::Relaxed);
        (most - before, publisher.join().expect("no panic"))
    });
    watching.set(Phase::Over);
    let (quiet, storm) = watching.finish();
    println!("NATS is away for {} s, {watchers} clients talk in a room that is the gateway's own", away.as_secs());
    println!("  they: p99 {:.1} ms before, {:.1} ms meanwhile (bound {P99_GROWTH_MAX} times)", p99(&quiet), p99(&storm));
    println!(
        "  {} messages were kept, {refused} refused, within {:.0} ms; {} KiB more memory",
        taken.len(),
        longest.as_secs_f64() * 1e3,
        memory / 1024
    );
    assert!(refused > 10 && longest <= TOLD_WITHIN + Duration::from_millis(500), "{refused} were refused, after {longest:?} at most");
    assert!(memory < 16 << 20, "{memory} bytes");
    if full() {
        assert!(p99(&storm) <= P99_GROWTH_MAX * p99(&quiet), "{:.1} ms, {:.1} ms before", p99(&storm), p99(&quiet));
    }
    // Every message that was answered is there, once, at its position.
    let mut heard = Vec::new();
    let mut next = begin;
    loop {
        let get = format!("GET /poll?topic=kept.a&after={next}&wait=0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer: Value = serde_json::from_slice(&raw::http(gateway.port, get.as_bytes()).body).expect("JSON");
        assert!(answer["gaps"].as_array().is_none_or(Vec::is_empty), "{answer}");
        let messages = answer["messages"].as_array().expect("messages");
        if messages.is_empty() {
            break;
        }
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        heard.extend(messages.iter().map(|message| (text(&message["data"]), text(&message["pos"]))));
        next = text(&answer["next"]);
    }
    for (number, position) in &taken {
        let found: Vec<_> = heard.iter().filter(|(data, _)| *data == number.to_string()).collect();
        assert_eq!(found, [&(number.to_string(), position.clone())], "{number} was answered {position}");
    }
}

#[test]
fn a_crowd_comes_back_to_the_other_gateway_for_what_that_has_not_and_those_who_are_there_notice_little() {
    const MISSED: usize = 200;
    let (watchers, crowd) = if full() { (1000, 5000) } else { (100, 300) };
    raise_nofile();
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let budget = if full() { 2000 } else { 500 };
    let [here, there] = [(); 2].map(|()| start(kept(&server).limit("history_messages", 16).limit("handshakes_per_second", budget)));
    let begin = position(&publish(here.port, "kept.t", "begin", "begin"));
    let mut positions = vec![begin];
    for number in 0..MISSED {
        positions.push(position(&publish(here.port, "kept.t", &number.to_string(), &number.to_string())));
    }
    // The other one has the topic, with as much of it as it keeps.
    let watching = Watchers::start(&there, "kept.live", watchers);
    yield_to_the_gateway();
    sleep_ms(1000);
    watching.set(Phase::Quiet);
    sleep_ms(if full() { 10_000 } else { 1000 });
    watching.set(Phase::Storm);
    let mut swarm = Swarm::new(there.port);
    let mut next: Vec<usize> = (0..crowd).map(|id| id % (MISSED - 20)).collect();
    let mut by_connection: Vec<usize> = Vec::new();
    let mut random = fastrand::Rng::with_seed(7);
    let begun = now();
    // Each within the first half second, and then when it is told to.
    let mut again: Vec<(Instant, usize)> = (0..crowd).map(|member| (begun + Duration::from_millis(random.u64(..500)), member)).collect();
    let open = |swarm: &mut Swarm, by_connection: &mut Vec<usize>, member: usize, at: usize| {
        let id = swarm.connect(&format!("/ws?room=kept.t&after={}", positions[at]));
        assert_eq!(id, by_connection.len());
        by_connection.push(member);
    };
    let mut told = 0_u64;
    while next.iter().any(|&number| number < MISSED) {
        assert!(begun.elapsed() < Duration::from_secs(120), "not all have what they missed: {}", swarm.summary());
        let mut ended = Vec::new();
        swarm.turn(Duration::from_millis(5), &mut |id, event| match event {
            Event::Text(text) => {
                let member = by_connection[id];
                assert_eq!(str::from_utf8(text).expect("text"), next[member].to_string(), "{member} hears everything once, in order");
                next[member] += 1;
            }
            Event::Close(code, reason) => panic!("one who is in was closed: {code:?} {reason}"),
            Event::Ended => ended.push(id),
            Event::Opened | Event::Binary(_) => {}
        });
        for id in ended {
            let refusal = swarm.client(id).refusal.as_ref().expect("who is in is not ended");
            told += 1;
            again.push((now() + retry_of(refusal).expect("a refusal says when to come back"), by_connection[id]));
        }
        let due: Vec<usize> = again.extract_if(.., |(at, _)| *at <= now()).map(|(_, member)| member).collect();
        due.into_iter().for_each(|member| open(&mut swarm, &mut by_connection, member, next[member]));
    }
    let took = begun.elapsed();
    watching.set(Phase::Over);
    let (quiet, storm) = watching.finish();
    println!(
        "{crowd} clients come back to the other gateway, each at one of {} positions, for what the stream alone has; {budget} handshakes a second",
        MISSED - 20
    );
    println!(
        "  all have it after {:.1} s; {told} times one was told to come back; {} messages were fetched",
        took.as_secs_f64(),
        metric(&there, "fetched_total")
    );
    println!(
        "  {watchers} who were there: p99 {:.1} ms before, {:.1} ms meanwhile (bound {P99_GROWTH_MAX} times)",
        p99(&quiet),
        p99(&storm)
    );
    assert_eq!(swarm.count(&State::Open), crowd);
    if full() {
        assert!(p99(&storm) <= P99_GROWTH_MAX * p99(&quiet), "{:.1} ms, {:.1} ms before", p99(&storm), p99(&quiet));
    }
}

/// Messages a second that NATS's client hands to a stream of its own, with as many unanswered as may be.
fn client_alone(server: &NatsServer, count: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = nats::connect(server.url()).await.expect("connects");
        let context = nats::jetstream::new(client);
        let config = nats::jetstream::stream::Config { name: "ALONE".into(), subjects: vec!["alone.>".into()], ..Default::default() };
        context.create_stream(config).await.expect("a stream");
        let (payload, begun) = (bytes::Bytes::from(vec![b'x'; BYTES]), now());
        let mut unanswered = std::collections::VecDeque::new();
        for _ in 0..count {
            if unanswered.len() >= 4096 {
                let oldest: nats::jetstream::context::PublishAckFuture = unanswered.pop_front().expect("it is not empty");
                oldest.await.expect("an acknowledgement");
            }
            unanswered.push_back(context.publish("alone.a", payload.clone()).await.expect("is sent"));
        }
        for one in unanswered {
            one.await.expect("an acknowledgement");
        }
        count as f64 / begun.elapsed().as_secs_f64()
    })
}

/// Messages a second that go through a gateway into its stream, said by WebSockets that hear nothing of it.
fn through_the_gateway(gateway: &Gateway, count: usize) -> f64 {
    const TALKERS: usize = 16;
    let mut swarm = Swarm::new(gateway.port);
    let payload = [b'x'; BYTES];
    for talker in 0..TALKERS {
        swarm.connect_and_open(&format!("/ws?room=kept.way-{talker}&echo=0"), &mut |_, _| {});
    }
    let (before, begun) = (metric(gateway, "stored_total"), now());
    let (mut said, mut looked) = (0, now());
    loop {
        for talker in 0..TALKERS {
            while said < count && swarm.client(talker).unsent() < 16 * 1024 {
                swarm.send_text(talker, &payload);
                said += 1;
            }
        }
        swarm.turn(Duration::from_millis(1), &mut |id, event| {
            assert!(!matches!(event, Event::Ended | Event::Close(..)), "talker {id} was ended")
        });
        if looked.elapsed() > Duration::from_millis(20) {
            looked = now();
            if metric(gateway, "stored_total") >= before + count as u64 {
                return count as f64 / begun.elapsed().as_secs_f64();
            }
        }
    }
}

/// From a client of one gateway to one of another: the middle of so many times, one after the other.
fn there_and_not_back(gateways: [&Gateway; 2], room: &str, count: usize) -> f64 {
    let mut swarms = gateways.map(|gateway| Swarm::new(gateway.port));
    for swarm in &mut swarms {
        swarm.connect_and_open(&format!("/ws?room={room}&echo=0"), &mut |_, _| {});
    }
    sleep_ms(500);
    let mut times = Vec::new();
    for number in 0..count {
        let begun = now();
        swarms[0].send_text(0, number.to_string().as_bytes());
        let mut has_come = false;
        while !has_come {
            swarms[0].turn(Duration::ZERO, &mut |_, event| assert!(!matches!(event, Event::Ended)));
            swarms[1].turn(Duration::from_millis(5), &mut |_, event| has_come |= matches!(event, Event::Text(_)));
        }
        times.push(begun.elapsed());
        sleep_ms(1);
    }
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Nanoseconds that a shard has run.
fn shard_ns(gateway: &Gateway) -> u64 {
    let path = format!("/proc/{}/task/{}/schedstat", gateway.pid(), gateway.shard_thread(0));
    let text = std::fs::read_to_string(path).expect("the gateway runs");
    text.split(' ').next().and_then(|run| run.parse().ok()).expect("a number")
}

#[test]
fn the_way_over_nats_beside_that_of_its_client_alone() {
    let (count, times) = if full() { (200_000, 2000) } else { (5000, 50) };
    let scratch = Scratch::new();
    let server = NatsServer::with_jetstream(&scratch);
    let here = start(kept(&server).shards(1));
    println!("{count} messages of {BYTES} B into a stream with files; five turns, each both ways");
    let mut ratios = Vec::new();
    for turn in 0..if full() { 5 } else { 1 } {
        // Whoever is first has the emptier file.
        let (alone, through) = if turn % 2 == 0 {
            let alone = client_alone(&server, count);
            (alone, through_the_gateway(&here, count))
        } else {
            let through = through_the_gateway(&here, count);
            (client_alone(&server, count), through)
        };
        server.client().request("$JS.API.STREAM.DELETE.ALONE", "");
        println!(
            "  NATS's client alone: {alone:.0} a second; through the gateway, which reads them back: {through:.0} ({:.2})",
            through / alone
        );
        ratios.push(through / alone);
    }
    ratios.sort_by(f64::total_cmp);
    println!("  the middle: {:.2} (wanted 0.8)", ratios[ratios.len() / 2]);
    let there = start(kept(&server).shards(1));
    let plain = || start(server.gateway().shards(1).env("SHARDCAST_NATS_BRIDGE", "kept.* <-> plain.*"));
    let core = [plain(), plain()];
    let by_core = there_and_not_back([&core[0], &core[1]], "kept.pair", times);
    let by_stream = there_and_not_back([&here, &there], "kept.pair", times);
    println!("from gateway to gateway, p50: {by_core:.2} ms, with a stream {by_stream:.2} ms (wanted 1)");

    drop((there, core));

    // A shard, and a core that has everything of a stream to read that nobody here wants.
    let room = 200;
    let mut swarm = Swarm::new(here.port);
    for _ in 0..room {
        swarm.connect_and_open("/ws?room=own", &mut |_, _| {});
    }
    let deliver = |swarm: &mut Swarm, messages: usize| {
        let (before, mut heard) = (shard_ns(&here), 0);
        for number in 0..messages {
            swarm.send_text(0, &[b'x'; BYTES]);
            while heard < (number + 1) * room {
                swarm.turn(Duration::from_millis(5), &mut |_, event| heard += usize::from(matches!(event, Event::Text(_))));
            }
        }
        (shard_ns(&here) - before) as f64 / heard as f64 / 1000.0
    };
    let stop = AtomicBool::new(false);
    let mut figures = [Vec::new(), Vec::new()];
    deliver(&mut swarm, 100);
    for _ in 0..if full() { 5 } else { 1 } {
        let messages = count / 200;
        figures[0].push(deliver(&mut swarm, messages));
        let read = metric(&here, "stream_offset");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = server.client();
                while !stop.load(Ordering::Relaxed) {
                    (0..20).for_each(|_| client.publish("kept.unwanted", [b'x'; BYTES]));
                    client.settle();
                    sleep_ms(2);
                }
            });
            figures[1].push(deliver(&mut swarm, messages));
            stop.store(true, Ordering::Relaxed);
        });
        stop.store(false, Ordering::Relaxed);
        assert!(metric(&here, "stream_offset") > read, "the core had nothing to do");
    }
    let [without, with] = figures.map(|mut sample| {
        sample.sort_by(f64::total_cmp);
        sample[sample.len() / 2]
    });
    println!(
        "CPU of a shard for a delivery to {room}: {without:.2} µs, {with:.2} µs beside a busy NATS core ({:.2}; wanted 1.1)",
        with / without
    );
}
