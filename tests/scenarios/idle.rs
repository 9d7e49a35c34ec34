//! 10,000 idle WebSockets in rooms, after one delivered message and two ping rounds: at most 400 bytes of Pss each, at most 0.5 % of CPU.

use std::time::Duration;

use crate::common::swarm::{Event, State, Swarm};
use crate::common::{gateway, now, raise_nofile};
use crate::{CLIENTS, full, kib, settled_pss};

/// Small rooms, as people chat in: what a room costs counts with its members. SHARDCAST_SCENARIO_ROOMS tries other sizes.
const ROOMS: usize = 1000;
const PSS_BYTES_EACH_MAX: u64 = 400;
const CPU_PERCENT_MAX: f64 = 0.5;
const DEFAULT_PING_MS: u64 = 45_000;

#[test]
fn ten_thousand_idle_clients_cost_at_most_400_bytes_each() {
    raise_nofile();
    let rooms = std::env::var("SHARDCAST_SCENARIO_ROOMS").ok().map_or(ROOMS, |text| text.parse().expect("a number of rooms"));
    let ping_ms = if full() { DEFAULT_PING_MS } else { 3000 };
    // What a connection costs: the message that each room keeps for those who come later is none of it (docs/benchmarks.md has that).
    let gateway =
        gateway().limit("ping_interval_ms", ping_ms).limit("pong_timeout_ms", ping_ms.min(10_000)).limit("history_messages", 0).start();
    let mut swarm = Swarm::new(gateway.port);
    let empty = settled_pss(&gateway, &mut swarm);
    let nothing = &mut |_, _: Event<'_>| {};

    for batch in 0..CLIENTS / 1000 {
        for id in batch * 1000..(batch + 1) * 1000 {
            swarm.connect(&format!("/ws?room=room-{}", id % rooms));
        }
        swarm.run(Duration::from_secs(20), "1,000 more clients open", nothing, |swarm| swarm.count(&State::Open) == swarm.len());
    }
    let connected = settled_pss(&gateway, &mut swarm);

    for id in 0..rooms {
        swarm.send_text(id, b"{\"username\":\"ada\",\"content\":\"hello, room\",\"room\":\"r\"}");
    }
    swarm.run(Duration::from_secs(20), "everybody hears one message", nothing, |swarm| {
        (0..CLIENTS).all(|id| swarm.client(id).messages == 1)
    });
    let delivered = settled_pss(&gateway, &mut swarm);

    let rounds = Duration::from_millis(ping_ms * 3) + Duration::from_secs(20);
    swarm.run(rounds, "two ping rounds", nothing, |swarm| (0..CLIENTS).all(|id| swarm.client(id).pings >= 2));
    let pinged = settled_pss(&gateway, &mut swarm);
    let each = pinged.saturating_sub(empty) / CLIENTS as u64;

    let (cpu, begun) = (gateway.cpu(), now());
    swarm.run_for(Duration::from_secs(if full() { 90 } else { 6 }), nothing);
    let percent = 100.0 * (gateway.cpu() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    let at_default = percent * ping_ms as f64 / DEFAULT_PING_MS as f64;

    println!("idle ({} driver): {CLIENTS} clients in {rooms} rooms", gateway.driver);
    println!(
        "  Pss: empty {} KiB, connected {} KiB, one message {} KiB, two ping rounds {} KiB",
        kib(empty),
        kib(connected),
        kib(delivered),
        kib(pinged)
    );
    println!("  each: {each} B above the empty process (bound {PSS_BYTES_EACH_MAX} B)");
    println!(
        "  CPU: {percent:.2} % at a ping every {ping_ms} ms; by rule of three {at_default:.2} % at {DEFAULT_PING_MS} ms (bound {CPU_PERCENT_MAX} %)"
    );
    assert_eq!(swarm.count(&State::Open), CLIENTS, "{}", swarm.summary());
    assert!(each <= PSS_BYTES_EACH_MAX, "{each} bytes each");
    if full() {
        assert!(percent <= CPU_PERCENT_MAX, "{percent:.2} % of CPU");
    }
}
