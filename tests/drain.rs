//! Draining and rebalancing: the wait for load balancers, the backlog, the pace of goodbyes, what is finished first, and calling a drain off.

mod common;

use common::events::{self, Reader};
use common::frame::{self, FIN, TEXT};
use common::freeze::Frozen;
use common::raw::{self, Raw};
use common::swarm::{End, Event, State, Swarm};
use common::{Gateway, SOON, eventually, foreign, gateway, now, sleep_ms};
use serde_json::Value;
use std::time::Duration;

/// A request to the admin listener: status and body.
fn admin(gateway: &Gateway, line: &str) -> (u16, String) {
    let response = raw::http(gateway.admin, format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    (response.status, response.text())
}

fn ok(gateway: &Gateway, line: &str) -> Value {
    let (status, body) = admin(gateway, line);
    assert_eq!(status, 200, "{line}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{line}: {error} in {body}"))
}

fn wait_for_state(gateway: &Gateway, state: &str) -> Value {
    eventually(SOON, || match ok(gateway, "GET /drain") {
        status if status["state"] == state => Ok(status),
        status => Err(format!("{status}, and not {state}")),
    })
}

fn remaining(gateway: &Gateway) -> f64 {
    gateway.metrics().sum("shardcast_drain_remaining", &[])
}

/// Milliseconds after `retry=` in a close reason.
fn retry_ms(reason: &str) -> u64 {
    reason.strip_prefix("retry=").and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("{reason:?} says when to come back"))
}

#[test]
fn a_gateway_waits_for_load_balancers_before_it_stops_accepting() {
    let mut gateway = gateway().limit("drain_wait_ms", 1500).start();
    let mut early = foreign::connect(&gateway, "/ws?room=lobby");
    let begun = now();
    gateway.signal(libc::SIGTERM);
    eventually(SOON, || match admin(&gateway, "GET /readyz") {
        (503, body) if body.contains("draining") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(ok(&gateway, "GET /drain")["state"], "waiting");
    let mut late = foreign::connect(&gateway, "/ws?room=lobby");
    late.text("served as before");
    early.expect_text("served as before");
    late.expect_text("served as before");
    assert!(begun.elapsed() < Duration::from_millis(1500), "too slow to say anything");
    assert_eq!(early.close_code(), 1012);
    assert!(begun.elapsed() > Duration::from_millis(1500), "told after {:?}", begun.elapsed());
    assert_eq!(late.close_code(), 1012);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_drain_by_the_admin_listener_leaves_the_process_until_a_signal_ends_it() {
    let mut gateway = gateway().start();
    assert_eq!(ok(&gateway, "GET /drain")["state"], "serving");
    let mut clients: Vec<foreign::Client> = (0..20).map(|_| foreign::connect(&gateway, "/ws?room=lobby")).collect();
    let answer = ok(&gateway, "POST /drain");
    assert_eq!(answer["connections"], 20);
    assert_eq!(answer["exits"], false);
    assert!((25_000..=30_000).contains(&answer["deadline_ms"].as_u64().expect("milliseconds")), "{answer}");
    assert!(remaining(&gateway) > 0.0);
    assert_eq!(admin(&gateway, "GET /readyz").0, 503);
    for client in &mut clients {
        assert_eq!(client.close_code(), 1012);
    }
    drop(clients);
    assert_eq!(wait_for_state(&gateway, "drained")["connections"], 0);
    assert_eq!(remaining(&gateway), 0.0);
    assert!(std::net::TcpStream::connect(("127.0.0.1", gateway.port)).is_err(), "it does not accept any more");
    sleep_ms(200);
    assert!(gateway.alive());
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.exit_within(Duration::from_secs(3)).code(), Some(0));
}

#[test]
fn a_drain_with_exit_ends_the_process_and_cannot_be_called_off() {
    let mut gateway = gateway().start();
    let client = foreign::connect(&gateway, "/ws?room=lobby");
    assert_eq!(ok(&gateway, "POST /drain?exit=1")["exits"], true);
    let (status, body) = admin(&gateway, "DELETE /drain");
    assert!(status == 409 && body.contains("cannot be called off"), "{status} {body}");
    drop(client);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_drain_by_a_signal_cannot_be_called_off() {
    let mut gateway = gateway().limit("drain_wait_ms", 2000).start();
    let (status, body) = admin(&gateway, "DELETE /drain");
    assert!(status == 409 && body.contains("no drain"), "{status} {body}");
    ok(&gateway, "POST /drain");
    gateway.signal(libc::SIGTERM);
    eventually(SOON, || match ok(&gateway, "GET /drain") {
        status if status["exits"] == true => Ok(()),
        status => Err(status.to_string()),
    });
    let (status, body) = admin(&gateway, "DELETE /drain");
    assert!(status == 409 && body.contains("signal"), "{status} {body}");
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

/// A swarm of members of one room.
fn members(gateway: &Gateway, count: usize) -> Swarm {
    let mut swarm = Swarm::new(gateway.port);
    for _ in 0..count {
        swarm.connect("/ws?room=lobby");
    }
    swarm.run(SOON, "members", &mut |_, _| {}, |swarm| swarm.count(&State::Open) == count);
    swarm
}

fn serves(gateway: &Gateway) {
    assert_eq!(admin(gateway, "GET /readyz"), (200, "ok\n".to_owned()));
    assert_eq!(remaining(gateway), 0.0);
    // On every shard.
    let mut clients: Vec<foreign::Client> = (0..8).map(|_| foreign::connect(gateway, "/ws?room=after")).collect();
    clients[0].text("again");
    clients.iter_mut().for_each(|client| client.expect_text("again"));
    clients.into_iter().for_each(foreign::Client::leave);
}

#[test]
fn a_drain_is_called_off_while_it_waits_and_before_its_first_goodbye() {
    let gateway = gateway().limit("drain_wait_ms", 800).start();
    let mut client = foreign::connect(&gateway, "/echo");
    for wait in [false, true] {
        ok(&gateway, "POST /drain");
        if wait {
            wait_for_state(&gateway, "draining");
        }
        assert_eq!(ok(&gateway, "DELETE /drain")["state"], "serving");
        serves(&gateway);
        // Where the door was shut, the first goodbyes may have come before it was opened again.
        if !wait {
            client.text("unharmed");
            client.expect_text("unharmed");
        }
    }
}

#[test]
fn a_drain_is_called_off_in_the_middle_and_who_was_not_told_stays() {
    let mut gateway = gateway().limit("drain_pace_ms", 4000).limit("drain_rate_min", 1).start();
    let mut swarm = members(&gateway, 100);
    ok(&gateway, "POST /drain");
    swarm.run(SOON, "a quarter to be told", &mut |_, _| {}, |swarm| swarm.count(&State::Gone) >= 25);
    assert_eq!(ok(&gateway, "DELETE /drain")["state"], "serving");
    serves(&gateway);
    let left = swarm.count(&State::Open);
    assert!((20..=75).contains(&left), "{}", swarm.summary());
    swarm.run_for(Duration::from_millis(1500), &mut |_, _| {});
    // Those who were being told when it was called off may still have gone.
    let open: Vec<usize> = (0..100).filter(|&id| *swarm.client(id).state() == State::Open).collect();
    assert!(open.len() + 3 >= left, "goodbyes went on: {}", swarm.summary());
    swarm.send_text(open[0], b"still here");
    let mut heard = 0;
    let expected = open.len();
    let on = &mut |_, event: Event<'_>| heard += usize::from(matches!(event, Event::Text(b"still here")));
    swarm.run_for(Duration::from_millis(500), on);
    assert_eq!(heard, expected);
    // And it can drain again, to the end.
    ok(&gateway, "POST /drain?exit=1");
    swarm.run(SOON, "everybody to be told", &mut |_, _| {}, |swarm| swarm.count(&State::Gone) == 100);
    let told = (0..100).filter(|&id| swarm.client(id).end() == Some(&End::Closed(Some(1012)))).count();
    assert_eq!(told, 100, "{}", swarm.summary());
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_drain_is_called_off_when_nobody_is_left() {
    let gateway = gateway().start();
    let mut client = foreign::connect(&gateway, "/echo");
    ok(&gateway, "POST /drain");
    assert_eq!(client.close_code(), 1012);
    drop(client);
    wait_for_state(&gateway, "drained");
    assert_eq!(ok(&gateway, "DELETE /drain")["state"], "serving");
    serves(&gateway);
}

/// Orders that follow each other without a pause find every shard in the state that the last one has left.
#[test]
fn a_drain_is_called_off_and_begun_again_without_a_pause() {
    let mut gateway = gateway().shards(4).start();
    for round in 0..10 {
        ok(&gateway, "POST /drain");
        wait_for_state(&gateway, "drained");
        assert_eq!(ok(&gateway, "DELETE /drain")["state"], "serving", "round {round}");
        let status = ok(&gateway, "POST /drain");
        assert_eq!(status["state"], "draining", "round {round}");
        assert_eq!(ok(&gateway, "DELETE /drain")["state"], "serving", "round {round}");
        serves(&gateway);
    }
    ok(&gateway, "POST /drain");
    wait_for_state(&gateway, "drained");
    ok(&gateway, "DELETE /drain");
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_drain_whose_address_was_taken_meanwhile_goes_on() {
    let gateway = gateway().start();
    ok(&gateway, "POST /drain");
    wait_for_state(&gateway, "drained");
    let taken = std::net::TcpListener::bind(("127.0.0.1", gateway.port)).expect("the gateway has let go of it");
    let (status, body) = admin(&gateway, "DELETE /drain");
    assert!(status == 409 && body.contains("in use") && body.contains("goes on"), "{status} {body}");
    assert_eq!(ok(&gateway, "GET /drain")["state"], "drained");
    drop(taken);
    assert_eq!(ok(&gateway, "DELETE /drain")["state"], "serving");
    serves(&gateway);
}

/// Closing a listener resets whoever waits in its backlog: they are accepted first, and told.
#[test]
fn who_waits_in_the_backlog_is_told_and_not_reset() {
    let mut gateway = gateway().start();
    let mut clients = Vec::new();
    let frozen: Vec<Frozen> = (0..2).map(|shard| Frozen::stop(gateway.shard_thread(shard))).collect();
    for number in 0..90 {
        let mut raw = Raw::connect(gateway.port);
        match number % 3 {
            0 => raw.write(raw::upgrade("/ws", "").as_bytes()),
            1 => raw.write(raw::upgrade("/ws", &format!("Origin: http://localhost:{}\r\n", gateway.port)).as_bytes()),
            _ => raw.write(events::get("/events?topic=a", "").as_bytes()),
        }
        clients.push(raw);
    }
    gateway.signal(libc::SIGTERM);
    wait_for_state(&gateway, "draining");
    drop(frozen);
    for (number, mut raw) in clients.into_iter().enumerate() {
        let response = raw.response_to("HEAD");
        match number % 3 {
            0 => {
                assert_eq!(response.status, 503, "{response:?}");
                assert!(response.header("retry-after").is_some(), "{response:?}");
            }
            1 => {
                assert_eq!(response.status, 101, "{response:?}");
                retry_ms(&raw.expect_close(1012));
            }
            _ => {
                assert_eq!(response.status, 200, "{response:?}");
                let text = String::from_utf8(raw.take().expect("retry and bye")).expect("text");
                assert!(text.contains("retry: ") && text.contains("event: shardcast:bye"), "{text}");
            }
        }
        assert_eq!(raw.end_within(SOON), raw::End::Eof, "client {number}");
    }
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

/// With TCP_DEFER_ACCEPT the kernel keeps a connection to itself until its first bytes: closing the listener resets it.
#[test]
fn who_has_just_connected_is_told_and_not_reset() {
    let mut gateway = gateway().start();
    let mut clients: Vec<Raw> = (0..10).map(|_| Raw::connect(gateway.port)).collect();
    gateway.signal(libc::SIGTERM);
    sleep_ms(50);
    for raw in &mut clients {
        raw.write(raw::upgrade("/ws", "").as_bytes());
        assert_eq!(raw.response().status, 503);
        assert_eq!(raw.end_within(SOON), raw::End::Eof);
    }
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn goodbyes_are_even_over_the_window_and_few_clients_do_not_take_it() {
    const CLIENTS: usize = 300;
    let mut gateway = gateway().limit("drain_pace_ms", 3000).limit("drain_rate_min", 10).start();
    let mut swarm = members(&gateway, CLIENTS);
    let begun = now();
    gateway.signal(libc::SIGTERM);
    let mut times = Vec::new();
    let mut hints = Vec::new();
    let on = &mut |_, event: Event<'_>| {
        if let Event::Close(code, reason) = event {
            assert_eq!(code, Some(1012));
            times.push(begun.elapsed().as_millis() as u64);
            hints.push(retry_ms(&reason));
        }
    };
    swarm.run(SOON, "goodbyes", on, |swarm| swarm.count(&State::Gone) == CLIENTS);
    // Ten slices between the first and the last goodbye.
    let (first, last) = (times[0], times[CLIENTS - 1] + 1);
    assert!((2500..4500).contains(&(last - first)), "from {first} to {last} ms");
    let spread = variation(times.iter().map(|time| (time - first) * 10 / (last - first)));
    assert!(spread < 0.3, "coefficient of variation {spread}: {times:?}");
    // And the hints over theirs.
    assert!(hints.iter().all(|hint| *hint <= 10_000));
    assert!(hints.iter().any(|hint| *hint < 2000) && hints.iter().any(|hint| *hint > 8000), "{hints:?}");
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));

    let mut few = common::gateway().start();
    let mut clients: Vec<foreign::Client> = (0..3).map(|_| foreign::connect(&few, "/ws")).collect();
    let begun = now();
    few.signal(libc::SIGTERM);
    clients.iter_mut().for_each(|client| assert_eq!(client.close_code(), 1012));
    drop(clients);
    assert_eq!(few.exit_within(SOON).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(2), "three goodbyes took {:?}", begun.elapsed());
}

/// Standard deviation over mean of how many fall into each of ten slices.
fn variation(slices: impl Iterator<Item = u64>) -> f64 {
    let mut counts = [0_f64; 10];
    slices.for_each(|slice| counts[slice as usize] += 1.0);
    let mean = counts.iter().sum::<f64>() / 10.0;
    let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 10.0;
    variance.sqrt() / mean
}

#[test]
fn a_room_is_served_as_before_until_each_member_is_told() {
    let mut gateway = gateway().limit("drain_pace_ms", 2000).limit("drain_rate_min", 1).start();
    let mut swarm = members(&gateway, 60);
    // Who has begun a request is not sent away; who has gone does not hear what it publishes.
    let mut publisher = Raw::connect(gateway.port);
    publisher.write(b"POST /publish?topic=lobby HTTP/1.1\r\nHost: localhost\r\n");
    sleep_ms(50);
    gateway.signal(libc::SIGTERM);
    sleep_ms(700);
    publisher.write(b"Content-Length: 4\r\n\r\nlate");
    let mut heard = 0;
    let on = &mut |_, event: Event<'_>| heard += usize::from(matches!(event, Event::Text(b"late")));
    swarm.run(SOON, "goodbyes", on, |swarm| swarm.count(&State::Gone) == 60);
    let response = publisher.response();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")), "{response:?}");
    drop(publisher);
    assert!((10..60).contains(&heard), "{heard} of 60 heard what was published in the middle of the drain");
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_message_that_is_half_sent_is_taken_before_its_sender_is_told() {
    let mut gateway = gateway().limit("drain_pace_ms", 2000).limit("drain_rate_min", 1).start();
    // Goodbyes come in a random order: somebody hears it.
    let mut swarm = members(&gateway, 50);
    let mut halves: Vec<Raw> = (0..5).map(|_| raw::ws(&gateway, "/echo")).collect();
    let message = frame::masked(FIN | TEXT, b"in two halves");
    for half in &mut halves {
        half.write(&message[..9]);
    }
    sleep_ms(50);
    gateway.signal(libc::SIGTERM);
    swarm.run(SOON, "goodbyes", &mut |_, _| {}, |swarm| swarm.count(&State::Gone) == 50);
    for half in &mut halves {
        half.write(&message[9..]);
        half.expect_text("in two halves");
        retry_ms(&half.expect_close(1012));
    }
    drop(halves);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

/// Who never sends the rest is told after the linger all the same.
#[test]
fn a_message_that_never_comes_whole_does_not_hold_the_drain() {
    let mut gateway = gateway().limit("linger_ms", 700).start();
    let mut half = raw::ws(&gateway, "/ws?room=lobby");
    half.write(&frame::masked(FIN | TEXT, b"in two halves")[..9]);
    sleep_ms(50);
    let begun = now();
    gateway.signal(libc::SIGTERM);
    retry_ms(&half.expect_close(1012));
    assert!(begun.elapsed() > Duration::from_millis(700), "{:?}", begun.elapsed());
    drop(half);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_publisher_that_waits_for_its_receipt_gets_it() {
    // One shard: between two of them a reader that holds one message holds the way of the next.
    let mut gateway = gateway().shards(1).limit("reader_hold_ms", 60_000).limit("write_stall_ms", 60_000).start();
    // A reader that does not read holds the receipt of ack=sent.
    let stuck = Raw::connect_with_small_buffer(gateway.port);
    let mut stuck = events::request_on(stuck, "/events?topic=a", "");
    stuck.expect_open();
    let filling = "x".repeat(60_000);
    let mut publisher = Raw::connect(gateway.port);
    let request = |ack: &str, body: &str| {
        format!("POST /publish?topic=a{ack} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    for _ in 0..10 {
        publisher.write(&request("", &filling));
        assert_eq!(publisher.response().status, 200);
    }
    publisher.write(&request("&ack=sent", "last"));
    sleep_ms(200);
    assert!(!publisher.answered_within(Duration::from_millis(100)), "the reader holds it");
    gateway.signal(libc::SIGTERM);
    sleep_ms(300);
    // It reads on: what was queued comes, then the goodbye; and the receipt.
    let mut last = String::new();
    let bye = loop {
        let event = stuck.event();
        if event.name == "shardcast:bye" {
            break event.json();
        }
        last = event.data;
    };
    assert_eq!(last, "last");
    assert_eq!(bye["code"].as_u64(), Some(1012));
    let response = publisher.response();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")), "{response:?}");
    drop((stuck, publisher));
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn streams_get_a_bye_that_says_when_to_come_back() {
    let mut gateway = gateway().limit("reconnect_window_ms", 4000).start();
    let mut readers: Vec<Reader> = (0..60).map(|_| events::open(gateway.port, "/events?topic=a&topic=b")).collect();
    ok(&gateway, "POST /drain?exit=1");
    let hints: Vec<u64> = readers
        .iter_mut()
        .map(|reader| {
            let bye = reader.expect_bye();
            assert_eq!(bye["code"].as_u64(), Some(1012), "{bye}");
            bye["retry_ms"].as_u64().expect("milliseconds")
        })
        .collect();
    assert!(hints.iter().all(|hint| *hint <= 4000));
    assert!(hints.iter().any(|hint| *hint < 1000) && hints.iter().any(|hint| *hint > 3000), "{hints:?}");
    drop(readers);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_rebalance_tells_its_share_and_nobody_else() {
    let gateway = gateway().limit("drain_pace_ms", 1500).limit("drain_rate_min", 1).start();
    let mut swarm = members(&gateway, 200);
    let mut streams: Vec<Reader> = (0..50).map(|_| events::open(gateway.port, "/events?topic=a")).collect();
    let begun = now();
    let answer = ok(&gateway, "POST /rebalance?share=0.2");
    assert_eq!((&answer["connections"], &answer["leaving"], &answer["window_ms"]), (&250.into(), &50.into(), &1500.into()));
    let (status, body) = admin(&gateway, "POST /rebalance?share=0.1");
    assert!(status == 409 && body.contains("under way"), "{status} {body}");
    assert_eq!(admin(&gateway, "GET /readyz").0, 200);
    let mut told = 0;
    let on = &mut |_, event: Event<'_>| {
        if let Event::Close(code, reason) = event {
            assert_eq!(code, Some(1012));
            retry_ms(&reason);
            told += 1;
        }
    };
    // Each shard rounds its share.
    eventually(SOON, || {
        swarm.turn(Duration::from_millis(5), on);
        match gateway.closes("rebalance") {
            count @ 49..=51 => Ok(count),
            count => Err(format!("{count} were told, 50 should be")),
        }
    });
    assert!(begun.elapsed() > Duration::from_millis(1000), "not paced: {:?}", begun.elapsed());
    swarm.run_for(Duration::from_millis(1000), on);
    let total = gateway.closes("rebalance");
    assert!((49..=51).contains(&total), "{total}");
    let mut byes = 0;
    for stream in &mut streams {
        if stream.raw.answered_within(Duration::from_millis(1)) {
            assert_eq!(stream.expect_bye()["code"].as_u64(), Some(1012));
            byes += 1;
        }
    }
    assert_eq!(told + byes, total as usize);
    assert!(byes > 0 && told > 0, "{told} and {byes}");
    assert_eq!(swarm.count(&State::Open), 200 - told);
    serves(&gateway);
    // The next one may begin.
    ok(&gateway, "POST /rebalance?share=0.01");
    ok(&gateway, "POST /drain");
    assert_eq!(admin(&gateway, "POST /rebalance?share=0.1").0, 409);
}

#[test]
fn progress_is_logged_every_second_and_what_is_left_at_the_deadline_too() {
    let mut gateway = gateway().limit("drain_ms", 2500).limit("linger_ms", 60_000).start();
    let deaf: Vec<Raw> = (0..5).map(|_| raw::ws(&gateway, "/ws")).collect();
    ok(&gateway, "POST /drain");
    sleep_ms(1500);
    assert_eq!(remaining(&gateway), 5.0);
    wait_for_state(&gateway, "drained");
    assert!(gateway.alive());
    let log = gateway.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("left=5")).collect();
    assert!(lines.len() == 2 && lines[0].contains("gone=0") && lines[0].contains("seconds_left=1"), "{log}");
    assert!(log.contains("deadline of the drain"), "{log}");
    assert_eq!(gateway.closes("shutdown"), 5);
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.exit_within(Duration::from_secs(3)).code(), Some(0));
    drop(deaf);
}

#[test]
fn a_stuck_shard_does_not_keep_the_process_from_ending() {
    let mut gateway = gateway().limit("drain_ms", 500).start();
    let frozen = Frozen::stop(gateway.shard_thread(1));
    gateway.signal(libc::SIGTERM);
    let begun = now();
    frozen.ended();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(gateway.exit_within(SOON).code(), Some(1));
    gateway.expect_log("1 shards have not finished");
}
