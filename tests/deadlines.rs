//! What happens to clients that say nothing: pings, pong deadlines, close deadlines.

mod common;

use common::frame::{self, CLOSE, FIN, PING, PONG};
use common::raw::{self, End};
use common::swarm::{State, Swarm};
use common::{SOON, gateway, now, sleep_ms};
use std::time::Duration;

#[test]
fn a_silent_client_is_pinged_and_stays_while_it_answers() {
    let gateway = gateway().limit("ping_interval_ms", 300).limit("pong_timeout_ms", 600).start();
    let mut raw = raw::ws(&gateway, "/ws");
    let begun = now();
    let mut pings = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        let ping = raw.frame();
        assert_eq!(ping.first, FIN | PING, "{ping:?}");
        pings += 1;
        raw.send(FIN | PONG, &ping.payload);
    }
    assert!((2..=16).contains(&pings), "{pings} pings in 4 s at one per 300 ms");
    assert_eq!(gateway.connections(), 1);
    raw.close(1000);
}

#[test]
fn a_client_that_answers_no_ping_is_closed_4504() {
    let gateway = gateway().limit("ping_interval_ms", 300).limit("pong_timeout_ms", 300).start();
    let mut raw = raw::ws(&gateway, "/ws");
    assert_eq!(raw.frame().first, FIN | PING);
    let reason = raw.expect_close(4504);
    assert!(!reason.is_empty());
    gateway.wait_for_closes("4504", 1);
    gateway.wait_for_connections(0);
}

#[test]
fn any_frame_counts_as_a_pong() {
    let gateway = gateway().limit("ping_interval_ms", 300).limit("pong_timeout_ms", 600).start();
    let mut raw = raw::ws(&gateway, "/echo");
    for number in 0..30 {
        raw.send_text(&number.to_string());
        sleep_ms(100);
    }
    let mut echoes = 0;
    while echoes < 30 {
        let frame = raw.frame();
        assert_ne!(frame.first, FIN | CLOSE, "closed although it said something every 100 ms");
        echoes += u32::from(frame.first != FIN | PING);
    }
    raw.close(1000);
}

#[test]
fn a_client_that_sends_a_large_message_slowly_is_not_silent() {
    let gateway = gateway().limit("ping_interval_ms", 300).limit("pong_timeout_ms", 600).start();
    let mut raw = raw::ws(&gateway, "/echo");
    let bytes = frame::masked(FIN | frame::BINARY, &[1; 60]);
    for byte in &bytes {
        raw.write(&[*byte]);
        sleep_ms(40);
    }
    loop {
        let frame = raw.frame();
        assert_ne!(frame.first, FIN | CLOSE);
        if frame.first == FIN | frame::BINARY {
            break;
        }
    }
}

#[test]
fn pings_of_many_clients_are_spread_out() {
    let gateway = gateway().limit("ping_interval_ms", 2000).limit("pong_timeout_ms", 1000).start();
    let mut swarm = Swarm::new(gateway.port);
    for _ in 0..200 {
        swarm.connect("/ws");
    }
    let nothing = &mut |_, _: common::swarm::Event<'_>| {};
    swarm.run(SOON, "200 clients open", nothing, |swarm| swarm.count(&State::Open) == 200);
    let begun = now();
    let mut most_in_a_slice = 0;
    let mut before = 0;
    while before < 400 && begun.elapsed() < SOON {
        swarm.run_for(Duration::from_millis(100), nothing);
        let pings: u32 = (0..200).map(|id| swarm.client(id).pings).sum();
        most_in_a_slice = most_in_a_slice.max(pings - before);
        before = pings;
    }
    assert!(before >= 400, "{before} pings in {SOON:?}");
    assert!(most_in_a_slice <= 150, "{most_in_a_slice} of 200 clients were pinged within 100 ms");
}

#[test]
fn a_client_that_never_answers_a_close_is_reset_after_the_linger() {
    let gateway = gateway().limit("linger_ms", 300).start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.write(&frame::masked(FIN | 0x3, b"not a frame"));
    let (code, _) = raw.close_frame();
    assert_eq!(code, Some(1002));
    assert_eq!(raw.end_within(SOON), End::Eof, "its side ends at once");
    let descriptors = gateway.descriptors();
    // We keep our side open; the gateway gives the connection up all the same.
    common::eventually(Duration::from_secs(5), || match gateway.descriptors() {
        after if after < descriptors => Ok(()),
        after => Err(format!("{after} descriptors are open, as before")),
    });
    sleep_ms(50);
    raw.try_write(b"x");
    sleep_ms(50);
    assert!(!raw.try_write(b"x"), "the connection still takes bytes");
}

#[test]
fn a_closing_client_that_keeps_sending_cannot_keep_the_connection() {
    let gateway = gateway().limit("linger_ms", 400).start();
    let mut raw = raw::ws(&gateway, "/echo");
    raw.write(&frame::masked(FIN | 0x3, b"not a frame"));
    let begun = now();
    while raw.try_write(&frame::masked(FIN | frame::TEXT, b"still talking")) {
        assert!(begun.elapsed() < Duration::from_secs(6), "it talked on for {:?}", begun.elapsed());
        sleep_ms(20);
    }
    gateway.wait_for_connections(0);
}
