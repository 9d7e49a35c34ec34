//! Whole simulated gateways in the debug build: the first seeds break no rule, and a seed is one run.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use shardcast::engine::sim::{Chaos, Choices, LinkOptions, SimRingSize, World};
use shardcast::gateway::close_cause::CloseCause;
use shardcast::gateway::counters::Counters;
use shardcast::hub::Placement;
use shardcast::ids::ShardId;
use shardcast::limits::Limits;
use shardcast::proto::ws::OpCode;
use shardcast::proto::ws::frame::encode_masked_into;
use shardcast::sim::{Crowd, Obeys, Shards, ShardsPlan, StormPlan, run};

#[test]
fn the_first_seeds_break_no_rule() {
    for seed in 0..50 {
        println!("seed {seed}");
        run(Choices::seeded(seed));
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let mut digests = Vec::new();
    for seed in 100..110 {
        let report = run(Choices::seeded(seed));
        assert_eq!(report, run(Choices::seeded(seed)), "seed {seed}");
        digests.push(report.digest);
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 10, "different seeds are different runs");
}

/// `simulate --storm 500000 --shards 16` is the same at full size.
#[test]
fn who_was_told_when_to_come_back_comes_within_the_budget_and_nobody_starves() {
    for obeys in [Obeys::Hints, Obeys::Refusals] {
        let plan = StormPlan { clients: 20_000, shards: 16, per_second: 800, obeys };
        let storm = plan.run();
        assert_eq!(storm.findings(&plan), Vec::<String>::new(), "{obeys:?}: {storm:?}");
        assert_eq!(storm.returns.iter().sum::<u64>(), 20_000);
    }
    let unpaced = StormPlan { clients: 2_000, shards: 16, per_second: 800, obeys: Obeys::Nothing }.run();
    assert_eq!(unpaced.arrivals[0], 2_000, "without hints all come at once");
}

fn closes(counters: &[Arc<Counters>], cause: CloseCause) -> u64 {
    counters.iter().map(|shard| shard.closes.of(cause).value()).sum()
}

fn crowd(clients: usize) -> Crowd {
    let mut crowd = Crowd::new(3, 7, clients, |kernel| kernel);
    crowd.connect(clients, Shards::step);
    crowd
}

/// When each goodbye of the first `time` was said, in milliseconds from now.
fn goodbyes(crowd: &mut Crowd, cause: CloseCause, time: Duration) -> Vec<u64> {
    let counters = crowd.shards.counters.clone();
    let mut begun = None;
    let mut times = Vec::new();
    crowd.shards.run_until(time, |world| {
        let begun = *begun.get_or_insert(world.now);
        times.resize(closes(&counters, cause) as usize, world.now.since(begun).as_millis() as u64);
        false
    });
    times
}

/// Over all shards together, from the first goodbye on: in each tenth of the window as many as in every other, give or take what jitter does at its edges.
#[test]
fn goodbyes_are_even_over_the_window_of_a_drain() {
    for clients in [200_usize, 3000] {
        let mut crowd = crowd(clients);
        crowd.shards.drain(Duration::from_secs(30), true);
        let times = goodbyes(&mut crowd, CloseCause::Shutdown, Duration::from_secs(29));
        assert_eq!(times.len(), clients);
        // 200 a second, behind the time in which the door is shut.
        let window = clients as u64 * 5;
        assert!(times[0] >= 200 && times[clients - 1] <= 200 + window + 20, "{} to {} ms", times[0], times[clients - 1]);
        let mut slices = [0_usize; 10];
        times.iter().for_each(|time| slices[((time - 200) * 10 / window).min(9) as usize] += 1);
        // Three shards, each with a goodbye at either edge of a slice; and what is due within a millisecond is said together.
        assert!(slices.iter().all(|count| count.abs_diff(clients / 10) <= 6 + clients / 300), "{clients}: {slices:?}");
        assert!(crowd.shards.have_finished());
    }
}

#[test]
fn three_clients_do_not_take_the_window_of_a_drain() {
    let mut crowd = crowd(3);
    crowd.shards.drain(Duration::from_secs(30), true);
    let times = goodbyes(&mut crowd, CloseCause::Shutdown, Duration::from_millis(300));
    assert_eq!(times.len(), 3, "{times:?}");
}

#[test]
fn a_rebalance_tells_its_share_evenly_and_shards_go_on() {
    let mut crowd = crowd(1500);
    crowd.shards.rebalance(200_000, Duration::from_secs(3));
    let times = goodbyes(&mut crowd, CloseCause::Rebalance, Duration::from_secs(10));
    // Each of three shards rounds its share.
    assert!(times.len().abs_diff(300) <= 3, "{}", times.len());
    assert!(*times.last().expect("some were told") <= 3020, "{times:?}");
    let mut slices = [0_usize; 10];
    times.iter().for_each(|time| slices[(time / 300).min(9) as usize] += 1);
    assert!(slices.iter().all(|count| count.abs_diff(30) <= 7), "{slices:?}");
    // The next one may begin, and a drain ends it.
    crowd.shards.rebalance(1_000_000, Duration::from_secs(100));
    crowd.shards.drain(Duration::from_secs(30), true);
    let told = goodbyes(&mut crowd, CloseCause::Shutdown, Duration::from_secs(20)).len();
    let handed_over = closes(&crowd.shards.counters, CloseCause::Rebalance) as usize;
    assert!(told + handed_over == 1500 && handed_over < 310, "{told} and {handed_over}");
}

#[test]
fn shards_whose_drain_is_called_off_take_clients_again() {
    let mut crowd = crowd(600);
    let mut told = 0;
    for _ in 0..2 {
        let before = told;
        crowd.shards.drain(Duration::from_secs(30), false);
        told = goodbyes(&mut crowd, CloseCause::Shutdown, Duration::from_millis(700)).len();
        assert!((50..150).contains(&(told - before)), "{before}, then {told}");
        crowd.shards.call_off_drain();
        let more = goodbyes(&mut crowd, CloseCause::Shutdown, Duration::from_secs(10)).len();
        assert_eq!(more, told, "goodbyes went on");
        crowd.connect(100, Shards::step);
    }
}

/// A shard gives out the state of its topics when it ends. One that ended while another still had messages for it would leave them out.
#[test]
fn no_shard_ends_while_another_has_messages_for_it() {
    let world = Rc::new(RefCell::new(World::new(Choices::seeded(1), Chaos::CALM)));
    let limits = Limits { connections_max: 10, queued_bytes_max: 1 << 30, ..Limits::default() };
    let mut shards = Shards::start(
        &ShardsPlan { shards: 2, limits, slow: Default::default(), features: Default::default(), ring: SimRingSize::default(), seed: 1 },
        &world,
    );
    let (home, away) = (ShardId(0), ShardId(1));
    let placement = Placement::new(2, (1, !1));
    let room = (0..).map(|number| format!("room-{number}")).find(|room| placement.home(room) == home).expect("half of all");
    let client = world.borrow_mut().connect(away, LinkOptions::default()).expect("it listens");
    let say = |bytes: &[u8]| assert_eq!(world.borrow_mut().client_write(client, bytes).ok(), Some(bytes.len()));
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    say(format!("GET /ws?room={room} HTTP/1.1\r\nHost: gateway\r\n{upgrade}").as_bytes());
    shards.run_until(Duration::from_millis(10), |_| false);
    shards.drain(Duration::from_secs(30), true);
    // The door is shut, and no goodbye is said yet.
    shards.run_until(Duration::from_millis(150), |_| false);

    let turns = |shards: &mut Shards, shard: ShardId| {
        for _ in 0..20 {
            world.borrow_mut().stir();
            shards.step(shard);
        }
    };
    let mut message = Vec::new();
    encode_masked_into(&mut message, true, OpCode::Text, [1, 2, 3, 4], &[b'x'; 100]);
    // The home does not see to its mail: the second waits until the first has arrived.
    for _ in 0..2 {
        say(&message);
        turns(&mut shards, away);
    }
    world.borrow_mut().client_close(client);
    turns(&mut shards, away);
    assert_eq!(shards.shared.connections(), 0);
    let pass = |shards: &mut Shards, shard| {
        for _ in 0..5 {
            let now = world.borrow().now;
            world.borrow_mut().now = now + Duration::from_millis(20);
            turns(shards, shard);
            assert!(shards.due(shard).is_some(), "{shard} ends before the second message is in its home's history");
        }
    };
    pass(&mut shards, away);
    pass(&mut shards, home);
    assert!(shards.shared.is_drained() && shards.shared.history_bytes() < 200, "only the first has arrived");
    shards.run_until(Duration::from_secs(1), |_| false);
    assert!(shards.have_finished() && shards.shared.history_bytes() >= 200);
}
