//! The rules for a driver that is frozen, thawed, or gone on with by another one.

use std::io::{ErrorKind, Read};

use super::bench::{Bench, Setting, bytes, gather};
use super::client_read_to_reset;
use crate::engine::driver::{CloseHow, Driver, Event};
use crate::ids::ShardId;

pub(crate) fn a_frozen_driver_takes_nothing_and_gives_nothing_until_it_is_thawed<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    let (mut idle, idle_key) = bench.connect();
    let mut all = bytes(S::FLOOD);
    bench.send(key, &all);
    bench.settle();
    assert!(bench.driver.unsent(key) > 0);
    bench.freeze();
    // Nobody waits for the peer now.
    bench.until_sent(key);
    for piece in [&b"more"[..], b"and the end"] {
        bench.send(key, piece);
        assert_eq!(bench.driver.unsent(key), piece.len());
        bench.until_sent(key);
        assert_eq!(bench.driver.unsent(key), 0);
        all.extend_from_slice(piece);
    }
    bench.send(idle_key, b"hello");
    bench.until_sent(idle_key);
    bench.client_write(&mut client, b"said meanwhile");
    bench.client_write(&mut idle, b"by both");
    let mut newcomer = bench.client();
    bench.driver.pause_accept();
    bench.driver.resume_accept();
    bench.driver.pause_recv(key);
    bench.driver.resume_recv(key);
    bench.expect_silence();
    assert!(idle.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "a frozen driver has sent something");

    bench.driver.thaw();
    assert!(bench.driver.unsent(key) > 0, "what is owed counts as under way");
    assert!(bench.client_read(&mut client, all.len()) == all, "bytes differ");
    bench.until_sent(key);
    assert_eq!(bench.client_read(&mut idle, 5), b"hello");
    bench.until_sent(idle_key);
    assert_eq!(bench.read(key, 14), b"said meanwhile");
    assert_eq!(bench.read(idle_key, 7), b"by both");
    let socket = bench.until_accepted();
    let key = bench.driver.adopt(socket);
    bench.send(key, b"welcome");
    bench.until_sent(key);
    assert_eq!(bench.client_read(&mut newcomer, 7), b"welcome");
    bench.expect_silence();
}

pub(crate) fn freezing_and_thawing_at_any_time_loses_nothing<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    for round in 0..20 {
        let mut sent = bytes(1000 * round + 1);
        bench.send(key, &sent);
        bench.client_write(&mut client, &bytes(round));
        (0..round % 3).for_each(|_| bench.turn());
        match round % 2 {
            0 => bench.freeze(),
            _ => bench.driver.freeze(),
        }
        if round % 5 == 0 {
            bench.turn_until("the end of a send", |bench| (bench.driver.unsent(key) == 0).then_some(()));
            bench.send(key, b"behind");
            sent.extend_from_slice(b"behind");
        }
        bench.driver.thaw();
        assert!(bench.client_read(&mut client, sent.len()) == sent, "bytes differ");
        bench.turn_until("the end of a send", |bench| (bench.driver.unsent(key) == 0).then_some(()));
        bench.events.retain(|event| !matches!(event, Event::Sent(_)));
        assert_eq!(bench.read(key, round), bytes(round));
    }
    bench.expect_silence();
}

pub(crate) fn what_is_behind_the_rest_of_a_frozen_connection_waits_for_it<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let all = bytes(S::FLOOD);
    let mut clients = Vec::new();
    for closes in [false, true] {
        let (mut client, key) = bench.connect();
        bench.send(key, &all);
        bench.settle();
        bench.freeze();
        bench.until_sent(key);
        match closes {
            false => bench.driver.shut_write(key),
            true => bench.driver.close(key, CloseHow::Close),
        }
        bench.expect_silence();
        assert!(bench.driver.frozen(key).is_some_and(|frozen| frozen.ends && !frozen.rest.is_empty()));
        bench.driver.thaw();
        let (got, end) = bench.client_read_to_end(&mut client);
        assert!(got == all && end.is_ok(), "{} bytes, then {end:?}", got.len());
        match closes {
            false => bench.until_sent(key),
            true => bench.until_closed(key),
        }
        bench.expect_silence();
        clients.push(client);
    }
    // A reset waits for nothing.
    let (mut client, key) = bench.connect();
    bench.send(key, &all);
    bench.settle();
    bench.freeze();
    bench.driver.close(key, CloseHow::Reset);
    bench.until_closed(key);
    client_read_to_reset(&mut bench, &mut client);
}

pub(crate) fn another_driver_goes_on_with_a_frozen_connection<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let mut next = Bench::of_shard(setting, ShardId(1));
    let (mut client, key) = bench.connect();
    let (mut idle, idle_key) = bench.connect();
    let mut all = bytes(S::FLOOD);
    bench.send(key, &all);
    bench.settle();
    assert_eq!(bench.driver.frozen(key), None);
    bench.freeze();
    bench.until_sent(key);
    bench.send(key, b"behind");
    bench.until_sent(key);
    bench.client_write(&mut client, b"to whoever reads it");
    let frozen = bench.driver.frozen(key).expect("it is still");
    let calm = bench.driver.frozen(idle_key).expect("it is still");
    assert!(frozen.rest.ends_with(b"behind") && !frozen.ends);
    assert!(calm.rest.is_empty() && !calm.ends);

    next.freeze();
    let key = next.driver.inherit(setting.passed(frozen.socket), Some(gather(&[&frozen.rest])));
    let idle_key = next.driver.inherit(setting.passed(calm.socket), None);
    next.send(key, b" and here");
    next.until_sent(key);
    next.expect_silence();
    next.driver.thaw();
    all.extend_from_slice(b"behind and here");
    assert!(next.client_read(&mut client, all.len()) == all, "bytes differ");
    next.until_sent(key);
    assert_eq!(next.read(key, 19), b"to whoever reads it");
    next.client_write(&mut idle, b"as before");
    assert_eq!(next.read(idle_key, 9), b"as before");
    next.expect_silence();
}
