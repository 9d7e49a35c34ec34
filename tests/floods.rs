//! Floods: connections that say nothing, crowds from one address, and crowds that are gone at once. Others go on, what is held is bounded, and the
//! counters count. Figures of the same at full size: tests/scenarios/floods.rs.

mod common;

use std::time::Duration;

use common::swarm::{Event, State, Swarm};
use common::{Gateway, SOON, eventually, gateway, raise_nofile, raw};

/// An address of the loopback network that no other client of these tests has.
const FLOODER: u32 = u32::from_be_bytes([127, 0, 1, 1]);
const WORKING: usize = 16;

/// Members of a room each, who hear what they say.
fn working(gateway: &Gateway) -> Swarm {
    let mut swarm = Swarm::new(gateway.port);
    for id in 0..WORKING {
        swarm.connect_and_open(&format!("/ws?room=work-{id}"), &mut |_, _| {});
    }
    swarm
}

/// Everybody says something and hears it, so many times.
fn work(swarm: &mut Swarm, rounds: usize) {
    for _ in 0..rounds {
        let before: Vec<u64> = (0..WORKING).map(|id| swarm.client(id).messages).collect();
        (0..WORKING).for_each(|id| swarm.send_text(id, b"still here"));
        swarm.run(SOON, "everybody hears himself", &mut |_, _| {}, |swarm| (0..WORKING).all(|id| swarm.client(id).messages > before[id]));
    }
    assert_eq!(swarm.count(&State::Open), WORKING, "{}", swarm.summary());
}

fn accepts(gateway: &Gateway, result: &str) -> u64 {
    gateway.metrics().sum("shardcast_accepts_total", &[("result", result)]) as u64
}

#[test]
fn one_address_that_floods_neither_ends_others_nor_keeps_them_out() {
    const HALF_OPEN: usize = 400;
    const HANDSHAKES: usize = 200;
    raise_nofile();
    let gateway = gateway()
        .limit("connections_per_address", 40)
        .limit("handshakes_per_address", 20)
        .limit("refusals_max", 8)
        .limit("accept_defer_ms", 0)
        .start();
    let mut others = working(&gateway);
    let (descriptors, memory) = (gateway.descriptors(), gateway.pss_bytes());
    let mut flood = Swarm::new(gateway.port);
    flood.source = Some(FLOODER);
    for number in 0..HALF_OPEN + HANDSHAKES {
        flood.connect(if number % 3 == 0 { "/ws?room=work-0" } else { "" });
        if number % 100 == 0 {
            work(&mut others, 1);
            flood.turn(Duration::ZERO, &mut |_, _| {});
        }
    }
    eventually(SOON, || {
        flood.turn(Duration::ZERO, &mut |_, _| {});
        match accepts(&gateway, "ok") + accepts(&gateway, "address_limited") + accepts(&gateway, "dropped") {
            all if all >= (HALF_OPEN + HANDSHAKES + WORKING) as u64 => Ok(()),
            all => Err(format!("{all} clients were taken up or refused")),
        }
    });
    // Two shards, each with so many that are told why; and the scrape.
    let held = gateway.kept_descriptors() - descriptors;
    assert!(held <= 40 + 2 * 8 + 4, "{held} descriptors for one address");
    let grown = gateway.pss_bytes().saturating_sub(memory);
    assert!(grown <= 8 << 20, "{grown} bytes more while one address floods");
    assert!(accepts(&gateway, "address_limited") > 0 && accepts(&gateway, "dropped") > 0, "the flood counts");
    // Nobody waits for the flooder's connections to time out: who comes now is served now.
    work(&mut others, 5);
    for _ in 0..10 {
        raw::ws(&gateway, "/ws?room=new").close(1000);
    }
    drop(flood);
    gateway.wait_for_connections(WORKING as u64);
    eventually(SOON, || match gateway.descriptors() {
        open if open <= descriptors => Ok(()),
        open => Err(format!("{open} descriptors are open, {descriptors} were before the flood")),
    });
    work(&mut others, 1);
}

#[test]
fn half_open_connections_are_ended_in_time_and_cost_little() {
    const HALF_OPEN: usize = 1000;
    raise_nofile();
    let gateway = gateway().limit("accept_defer_ms", 0).limit("head_timeout_ms", 3000).start();
    let mut others = working(&gateway);
    let memory = gateway.pss_bytes();
    let mut silent = Swarm::new(gateway.port);
    for _ in 0..HALF_OPEN {
        silent.connect("");
    }
    eventually(SOON, || match accepts(&gateway, "ok") {
        all if all == (HALF_OPEN + WORKING) as u64 => Ok(()),
        all => Err(format!("{all} clients were taken up")),
    });
    let each = gateway.pss_bytes().saturating_sub(memory) / HALF_OPEN as u64;
    assert!(each <= 4096, "{each} bytes for each connection that says nothing");
    work(&mut others, 20);
    let gone = |swarm: &Swarm| swarm.count(&State::Gone) == HALF_OPEN;
    silent.run(SOON, "the silent ones are ended", &mut |_, _: Event<'_>| {}, gone);
    gateway.wait_for_closes("head_timeout", HALF_OPEN as u64);
    work(&mut others, 1);
}

/// However few are taken down in a turn: all of them are, and nobody waits for that.
#[test]
fn a_crowd_that_is_gone_at_once_is_taken_down_in_turns() {
    const CROWD: usize = 600;
    raise_nofile();
    for per_turn in [1, 64] {
        let gateway = gateway().limit("teardowns_per_turn", per_turn).start();
        let mut others = working(&gateway);
        let mut crowd = Swarm::new(gateway.port);
        for id in 0..CROWD {
            crowd.connect(&format!("/ws?room={}", if id % 2 == 0 { "crowd".to_owned() } else { format!("alone-{id}") }));
        }
        crowd.run(SOON, "all open", &mut |_, _| {}, |swarm| swarm.count(&State::Open) == CROWD);
        let descriptors = gateway.descriptors();
        gateway.stopped(|| (0..CROWD).for_each(|id| crowd.drop_client(id, id % 3 != 0)));
        work(&mut others, 10);
        gateway.wait_for_connections(WORKING as u64);
        eventually(SOON, || match gateway.descriptors() {
            open if open <= descriptors - CROWD => Ok(()),
            open => Err(format!("{open} descriptors are open, {descriptors} were with the crowd")),
        });
        assert_eq!(gateway.closes("network_error") + gateway.closes("client_gone"), CROWD as u64);
    }
}
