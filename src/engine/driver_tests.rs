//! What every [`Driver`](super::driver::Driver) must do: one list of rules, stamped out per setting by `driver_tests!`.
//!
//! A setting is a kind of driver and the world that its clients are in: the loopback device for the real drivers, and a simulated world for the ring's driver
//! over the simulated kernel, which must be told apart by none of the rules. `driver_tests!(settings)` inside a `mod tests` makes one `#[test]` per rule,
//! which goes through all of `settings`. Nothing here reads a clock: a wait is bounded by a number of turns.

pub(crate) mod bench;
mod freezing;

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Write};
use std::rc::Rc;

use self::bench::{Bench, Client, Setting, bytes, gather, received, write_some};
pub(crate) use self::freezing::{
    a_frozen_driver_takes_nothing_and_gives_nothing_until_it_is_thawed, another_driver_goes_on_with_a_frozen_connection,
    freezing_and_thawing_at_any_time_loses_nothing, what_is_behind_the_rest_of_a_frozen_connection_waits_for_it,
};
use super::driver::{CloseHow, Driver, Event};
use super::segment::Gather;
use super::sys::Socket;
use crate::ids::ShardId;

/// The client's stream breaks; what it still brought.
fn client_read_to_reset<S: Setting>(bench: &mut Bench<'_, S>, client: &mut S::Client) -> Vec<u8> {
    let (got, end) = bench.client_read_to_end(client);
    assert_eq!(end.expect_err("the client sees RST").kind(), ErrorKind::ConnectionReset);
    got
}

pub(crate) fn bytes_make_the_round_trip<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    assert_eq!(bench.driver.peer_addr(key), Some(client.address()));
    assert_eq!(bench.driver.connections(), 1);
    for size in [1, 1000, 1024, 5000] {
        bench.client_write(&mut client, &bytes(size));
        let got = bench.read(key, size);
        bench.send(key, &got);
        assert_eq!(bench.driver.unsent(key), size);
        bench.until_sent(key);
        assert_eq!(bench.driver.unsent(key), 0);
        assert_eq!(bench.client_read(&mut client, size), bytes(size));
    }
    bench.expect_silence();
}

pub(crate) fn received_bytes_may_be_changed_in_place<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.client_write(&mut client, b"shout");
    let mut shouted = Vec::new();
    while shouted.len() < 5 {
        bench.turn();
        for event in bench.events.drain(..) {
            let Event::Received(k, mut lent) = event else { panic!("not bytes: {event:?}") };
            assert_eq!(k, key);
            lent.make_ascii_uppercase();
            shouted.extend_from_slice(&lent);
        }
    }
    assert_eq!(shouted, b"SHOUT");
}

pub(crate) fn a_send_to_a_peer_that_reads_late_arrives_whole_and_in_order<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    // Ranges of all sizes, so that progress stops inside one.
    let all = bytes(S::FLOOD);
    let sizes = [1, 2, 3, 1000, 65_537];
    let (mut parts, mut rest) = (Vec::new(), &all[..]);
    while parts.len() < Gather::RANGES_MAX - 1 {
        let size = if parts.len() % 2 == 0 { sizes[parts.len() / 2 % sizes.len()] } else { S::FLOOD / 60 };
        let (part, behind) = rest.split_at(size);
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    bench.driver.send(key, gather(&parts));
    bench.settle();
    let unsent = bench.driver.unsent(key);
    assert!(unsent > 0, "the kernel took {} bytes for a peer that does not read", S::FLOOD);
    bench.expect_silence();
    let got = bench.client_read(&mut client, S::FLOOD);
    assert!(got == all, "bytes differ");
    bench.until_sent(key);
    assert_eq!(bench.driver.unsent(key), 0);
    bench.send(key, b"and one more");
    bench.until_sent(key);
    assert_eq!(bench.client_read(&mut client, 12), b"and one more");
}

pub(crate) fn reading_goes_on_while_a_send_waits<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.send(key, &bytes(S::FLOOD));
    bench.settle();
    bench.client_write(&mut client, &bytes(3000));
    assert_eq!(bench.read(key, 3000), bytes(3000));
    assert!(bench.driver.unsent(key) > 0);
}

pub(crate) fn paused_reading_leaves_bytes_until_it_resumes<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.driver.pause_recv(key);
    bench.settle();
    bench.client_write(&mut client, &bytes(5000));
    client.shut_write();
    bench.expect_silence();
    bench.driver.resume_recv(key);
    assert_eq!(bench.read_to_end(key), bytes(5000));
}

pub(crate) fn paused_reading_stops_the_client_in_the_end<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.driver.pause_recv(key);
    bench.settle();
    let all = bytes(S::FLOOD);
    let mut written = 0;
    loop {
        let more = write_some(&mut client, &all[written..]);
        if more == 0 {
            break;
        }
        written += more;
        bench.settle();
    }
    assert!(written < S::FLOOD, "the kernel took {written} bytes for a driver that does not read");
    bench.expect_silence();
    bench.driver.resume_recv(key);
    assert!(bench.read(key, written) == all[..written], "bytes differ");
}

pub(crate) fn pausing_and_resuming_at_once_loses_nothing<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    let mut all = Vec::new();
    for chunk in bytes(50_000).chunks(500) {
        bench.client_write(&mut client, chunk);
        bench.driver.pause_recv(key);
        bench.driver.resume_recv(key);
        bench.driver.pause_recv(key);
        bench.turn();
        bench.driver.resume_recv(key);
        bench.turn();
        bench.events.drain(..).for_each(|event| received(&event, key, &mut all).expect("only bytes come"));
    }
    let missing = 50_000 - all.len();
    all.extend(bench.read(key, missing));
    assert!(all == bytes(50_000), "bytes differ");
}

pub(crate) fn the_peers_end_is_told_once_after_its_bytes_and_sending_goes_on<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.client_write(&mut client, &bytes(4096));
    client.shut_write();
    assert_eq!(bench.read_to_end(key), bytes(4096));
    bench.expect_silence();
    bench.send(key, b"still here");
    bench.until_sent(key);
    assert_eq!(bench.client_read(&mut client, 10), b"still here");
    bench.driver.resume_recv(key);
    bench.expect_silence();
}

pub(crate) fn shutting_our_side_ends_the_peers_reading_only<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.send(key, b"goodbye");
    bench.until_sent(key);
    bench.driver.shut_write(key);
    let (got, end) = bench.client_read_to_end(&mut client);
    assert_eq!(got, b"goodbye");
    end.expect("an ordinary end");
    bench.client_write(&mut client, b"and you");
    drop(client);
    assert_eq!(bench.read_to_end(key), b"and you");
    bench.expect_silence();
}

pub(crate) fn shutting_our_side_fails_the_send_that_waits<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    let all = bytes(S::FLOOD);
    bench.send(key, &all);
    bench.settle();
    bench.driver.shut_write(key);
    bench.until_failed(key);
    bench.expect_silence();
    let (got, end) = bench.client_read_to_end(&mut client);
    end.expect("an ordinary end");
    assert!(got == all[..got.len()], "bytes differ");
}

pub(crate) fn sending_after_our_end_fails<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.driver.shut_write(key);
    bench.send(key, b"one thing more");
    bench.until_failed(key);
    assert_eq!(bench.driver.unsent(key), 0);
    let (got, end) = bench.client_read_to_end(&mut client);
    end.expect("an ordinary end");
    assert!(got.is_empty());
}

pub(crate) fn a_reset_by_the_peer_is_reported_once<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (client, key) = bench.connect();
    bench.send(key, &bytes(1000));
    bench.until_sent(key);
    // It closes with bytes unread, which makes the kernel send RST.
    drop(client);
    bench.until_failed(key);
    bench.expect_silence();
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    assert_eq!(bench.driver.connections(), 0);
}

pub(crate) fn a_reset_of_an_idle_connection_is_reported_once<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (client, key) = bench.connect();
    bench.settle();
    client.reset();
    bench.until_failed(key);
    bench.expect_silence();
    // Nothing that it is asked for now is answered.
    bench.send(key, b"anyone?");
    bench.driver.pause_recv(key);
    bench.driver.resume_recv(key);
    bench.driver.shut_write(key);
    bench.expect_silence();
    assert_eq!(bench.driver.unsent(key), 0);
}

pub(crate) fn a_send_that_waits_fails_when_the_peer_resets<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (client, key) = bench.connect();
    bench.send(key, &bytes(S::FLOOD));
    bench.settle();
    drop(client);
    bench.until_failed(key);
    bench.expect_silence();
    assert_eq!(bench.driver.unsent(key), 0);
}

pub(crate) fn a_send_that_breaks_after_the_peers_end_is_reported<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (client, key) = bench.connect();
    drop(client);
    assert_eq!(bench.read_to_end(key), b"");
    // Nobody is there any more: the first send makes the peer's kernel answer RST, which is told now or when a later send meets it.
    let mut failed = false;
    for _ in 0..20 {
        bench.send(key, b"anyone?");
        bench.until("answer to a send", |event| match event {
            Event::Sent(k) if *k == key => Some(()),
            Event::Failed(k, _) if *k == key => {
                failed = true;
                Some(())
            }
            _ => None,
        });
        bench.settle();
        if failed || bench.events.iter().any(|event| matches!(event, Event::Failed(..))) {
            return;
        }
    }
    panic!("twenty sends to nobody were told as sent");
}

pub(crate) fn the_peers_address_is_known_while_there_is_a_connection<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut ending, ending_key) = bench.connect();
    let (breaking, breaking_key) = bench.connect();
    let address = Some(ending.address());
    assert_ne!(address, Some(breaking.address()));
    ending.shut_write();
    assert_eq!(bench.read_to_end(ending_key), b"");
    assert_eq!(bench.driver.peer_addr(ending_key), address);
    bench.driver.shut_write(ending_key);
    bench.settle();
    assert_eq!(bench.driver.peer_addr(ending_key), None);
    breaking.reset();
    bench.until_failed(breaking_key);
    assert_eq!(bench.driver.peer_addr(breaking_key), None);
}

pub(crate) fn closing_tells_the_peer_and_voids_the_key<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.driver.close(key, CloseHow::Close);
    // Nothing said to a key that closes has an effect.
    bench.send(key, b"too late");
    bench.driver.pause_recv(key);
    bench.driver.resume_recv(key);
    bench.driver.shut_write(key);
    bench.driver.close(key, CloseHow::Reset);
    assert_eq!(bench.driver.unsent(key), 0);
    assert_eq!(bench.driver.connections(), 1);
    bench.until_closed(key);
    assert_eq!(bench.driver.connections(), 0);
    assert_eq!(bench.driver.peer_addr(key), None);
    let (got, end) = bench.client_read_to_end(&mut client);
    assert!(got.is_empty());
    end.expect("an ordinary end");
    bench.driver.close(key, CloseHow::Close);
    bench.driver.pause_recv(key);
    bench.driver.resume_recv(key);
    bench.driver.shut_write(key);
    bench.expect_silence();
}

pub(crate) fn closing_over_unread_bytes_resets<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.driver.pause_recv(key);
    bench.settle();
    bench.client_write(&mut client, b"unread");
    bench.settle();
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    client_read_to_reset(&mut bench, &mut client);
}

pub(crate) fn what_a_client_writes_after_a_close_is_answered_with_a_reset<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.send(key, b"before");
    bench.until_sent(key);
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    // Its kernel cannot know yet.
    assert_eq!(client.write(b"too late").expect("is taken"), 8);
    bench.settle();
    client.write(b"and later").expect_err("nobody is there");
    bench.expect_silence();
}

/// Of the ring alone, which tries a send while it is handed over: epoll's driver tries it in the next turn, when it is too late.
pub(crate) fn a_send_right_before_a_close_still_goes_out<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.settle();
    bench.send(key, b"goodbye");
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    let (got, end) = bench.client_read_to_end(&mut client);
    end.expect("an ordinary end");
    assert_eq!(got, b"goodbye");
}

pub(crate) fn a_connection_with_bytes_is_closed_as_soon_as_it_is_adopted<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let mut client = bench.client();
    bench.client_write(&mut client, b"hello");
    let socket = bench.until_accepted();
    let key = bench.driver.adopt(socket);
    bench.driver.pause_recv(key);
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    bench.expect_silence();
    // An ordinary end if the bytes were received in time, else a reset.
    let _ = bench.client_read_to_end(&mut client);
}

pub(crate) fn a_reset_throws_unsent_bytes_away_and_lets_their_memory_go<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    let data = gather(&[&bytes(S::FLOOD)]);
    bench.driver.send(key, Rc::clone(&data));
    bench.settle();
    bench.driver.close(key, CloseHow::Reset);
    bench.until_closed(key);
    bench.expect_silence();
    assert_eq!(Rc::strong_count(&data), 1);
    client_read_to_reset(&mut bench, &mut client);
}

pub(crate) fn a_close_waits_for_no_peer_and_breaks_off_a_send_that_it_does_not_read<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    let all = bytes(S::FLOOD);
    let data = gather(&[&all]);
    bench.driver.send(key, Rc::clone(&data));
    bench.settle();
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    bench.expect_silence();
    assert_eq!(Rc::strong_count(&data), 1);
    let (got, end) = bench.client_read_to_end(&mut client);
    end.expect("an ordinary end");
    assert!(got.len() < all.len() && all.starts_with(&got), "{} of {} bytes", got.len(), all.len());
}

pub(crate) fn a_close_breaks_off_a_send_to_a_peer_that_reads<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    let all = bytes(S::FLOOD);
    bench.send(key, &all);
    bench.settle();
    let mut got = bench.client_read(&mut client, 1000);
    bench.driver.close(key, CloseHow::Close);
    let (rest, end) = bench.client_read_to_end(&mut client);
    bench.until_closed(key);
    end.expect("an ordinary end");
    got.extend(rest);
    assert!(all.starts_with(&got), "what came of {} bytes is not their beginning", all.len());
}

pub(crate) fn a_reset_leaves_what_had_arrived<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.send(key, b"arrived");
    bench.until_sent(key);
    bench.settle();
    bench.driver.close(key, CloseHow::Reset);
    bench.until_closed(key);
    let got = client_read_to_reset(&mut bench, &mut client);
    assert!(got == b"arrived" || setting.resets_overtake(), "{got:?}");
}

pub(crate) fn nothing_but_closed_follows_a_close<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.client_write(&mut client, &bytes(4000));
    client.shut_write();
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    bench.expect_silence();
}

pub(crate) fn slots_are_reused_and_keys_are_not<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let mut keys = HashSet::new();
    for round in 0..50 {
        let (mut client, key) = bench.connect();
        assert!(keys.insert(key), "{key:?} was given out twice");
        bench.client_write(&mut client, b"hello");
        assert_eq!(bench.read(key, 5), b"hello");
        bench.driver.close(key, if round % 2 == 0 { CloseHow::Close } else { CloseHow::Reset });
        bench.until_closed(key);
    }
    assert!(bench.driver.slots() <= 2, "{} slots for one connection at a time", bench.driver.slots());
    assert_eq!(bench.driver.connections(), 0);
}

pub(crate) fn a_crowd_is_accepted_over_several_turns<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let clients: Vec<_> = (0..60).map(|_| bench.client()).collect();
    let keys: Vec<_> = clients
        .iter()
        .map(|_| {
            let socket = bench.until_accepted();
            bench.driver.adopt(socket)
        })
        .collect();
    assert_eq!(bench.driver.connections(), 60);
    for mut client in clients {
        bench.client_write(&mut client, b"me");
    }
    // As they come: whoever waited for one of them would hold the buffers of the others.
    let mut got: HashMap<_, _> = keys.into_iter().map(|key| (key, Vec::new())).collect();
    for _ in 0..60 {
        while bench.until("Received or PeerClosed", |event| match event {
            Event::PeerClosed(_) => Some(false),
            Event::Received(key, bytes) => {
                got.get_mut(key).expect("one of the crowd").extend_from_slice(bytes);
                Some(true)
            }
            _ => None,
        }) {}
    }
    assert!(got.values().all(|bytes| bytes == b"me"), "{got:?}");
}

pub(crate) fn clients_that_leave_the_backlog_are_accepted_and_found_gone<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    bench.driver.pause_accept();
    bench.settle();
    drop(bench.client());
    bench.client().reset();
    bench.settle();
    bench.driver.resume_accept();
    let (left, reset) = (bench.until_accepted(), bench.until_accepted());
    let (left, reset) = (bench.driver.adopt(left), bench.driver.adopt(reset));
    assert_eq!(bench.read_to_end(left), b"");
    bench.until_failed(reset);
    let (mut client, key) = bench.connect();
    bench.client_write(&mut client, b"next");
    assert_eq!(bench.read(key, 4), b"next");
}

pub(crate) fn paused_accepting_leaves_clients_in_the_backlog<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    bench.driver.pause_accept();
    bench.driver.pause_accept();
    bench.settle();
    let mut client = bench.client();
    bench.expect_silence();
    bench.driver.resume_accept();
    bench.driver.resume_accept();
    let socket = bench.until_accepted();
    let key = bench.driver.adopt(socket);
    bench.client_write(&mut client, b"at last");
    assert_eq!(bench.read(key, 7), b"at last");
}

pub(crate) fn stopped_accepting_refuses_clients_and_keeps_connections<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    bench.driver.stop_accept();
    bench.driver.stop_accept();
    bench.driver.resume_accept();
    bench.settle();
    assert!(bench.refuses_clients());
    bench.client_write(&mut client, b"still on");
    assert_eq!(bench.read(key, 8), b"still on");
    bench.expect_silence();
}

pub(crate) fn stopped_accepting_takes_who_waits_in_the_backlog_first<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    bench.driver.pause_accept();
    bench.settle();
    let mut clients: Vec<S::Client> = (0..5).map(|_| bench.client()).collect();
    bench.settle();
    assert!(bench.driver.shut_door());
    assert!(bench.driver.is_listening());
    bench.driver.stop_accept();
    let sockets: Vec<Socket> = clients.iter().map(|_| bench.until_accepted()).collect();
    assert!(!bench.driver.is_listening());
    for (number, (socket, client)) in sockets.into_iter().zip(&mut clients).enumerate() {
        let key = bench.driver.adopt(socket);
        let word = [number as u8; 3];
        bench.send(key, &word);
        bench.until_sent(key);
        assert_eq!(bench.client_read(client, 3), word);
    }
    assert!(bench.refuses_clients());
    bench.expect_silence();
}

pub(crate) fn another_listener_is_accepted_on_after_the_first_was_closed<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut client, key) = bench.connect();
    assert!(bench.driver.shut_door());
    bench.driver.stop_accept();
    bench.settle();
    assert!(bench.refuses_clients());
    bench.driver.listen(setting.listener(&bench.address));
    let (mut new, new_key) = bench.connect();
    bench.client_write(&mut new, b"new");
    assert_eq!(bench.read(new_key, 3), b"new");
    bench.client_write(&mut client, b"old");
    assert_eq!(bench.read(key, 3), b"old");
}

pub(crate) fn a_socket_accepted_here_is_adopted_there<S: Setting>(setting: &S) {
    let (mut here, mut there) = (Bench::new(setting), Bench::of_shard(setting, ShardId(1)));
    let mut client = here.client();
    let socket = here.until_accepted();
    let key = there.driver.adopt(socket);
    there.client_write(&mut client, b"moved");
    assert_eq!(there.read(key, 5), b"moved");
    there.send(key, b"welcome");
    there.until_sent(key);
    assert_eq!(there.client_read(&mut client, 7), b"welcome");
    assert_eq!((here.driver.connections(), there.driver.connections()), (0, 1));
    here.expect_silence();
}

pub(crate) fn a_wake_up_reaches_the_other_shard<S: Setting>(setting: &S) {
    let (mut here, mut there) = (Bench::new(setting), Bench::of_shard(setting, ShardId(1)));
    here.driver.wake(ShardId(1));
    here.driver.wake(ShardId(1));
    here.settle();
    there.turn_until("wake-up", |there| (there.woken > 0).then_some(()));
    there.settle();
    there.expect_silence();
    here.expect_silence();
}

pub(crate) fn exhausted_receive_buffers_delay_bytes_and_lose_none<S: Setting>(setting: &S) {
    const EACH: usize = 100 * 1024;
    let mut bench = Bench::new(setting);
    let (mut clients, keys): (Vec<_>, Vec<_>) = (0..4).map(|_| bench.connect()).unzip();
    let all = bytes(EACH);
    let mut written = [0; 4];
    let mut got = vec![Vec::new(); 4];
    let mut held: Vec<Event> = Vec::new();
    for turn in 0..S::TURNS_MAX {
        for (client, written) in clients.iter_mut().zip(&mut written) {
            *written += write_some(client, &all[*written..]);
        }
        bench.turn();
        held.append(&mut bench.events);
        // The gateway holds on to what it got for a while, longer than the pool lasts.
        if turn % 3 == 2 {
            for event in held.drain(..) {
                let index = keys.iter().position(|&key| matches!(&event, Event::Received(k, _) if *k == key)).expect("only bytes come");
                received(&event, keys[index], &mut got[index]).expect("its bytes");
            }
        }
        if got.iter().all(|got| got.len() == EACH) {
            break;
        }
    }
    assert!(got.iter().all(|got| *got == all), "{:?} of {EACH} bytes", got.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(bench.driver.recv_starved() > 0);
}

pub(crate) fn a_starved_connection_that_goes_leaves_its_buffers_to_others<S: Setting>(setting: &S) {
    let mut bench = Bench::new(setting);
    let (mut greedy, greedy_key) = bench.connect();
    bench.client_write(&mut greedy, &bytes(64 * 1024));
    // All buffers are out now, as bytes of the greedy one.
    bench.settle();
    let held = std::mem::take(&mut bench.events);
    let mut pairs: Vec<_> = (0..8).map(|_| bench.connect()).collect();
    for (client, _) in &mut pairs {
        bench.client_write(client, b"small");
    }
    bench.settle();
    assert!(bench.driver.recv_starved() > 0);
    bench.driver.close(greedy_key, CloseHow::Reset);
    bench.until_closed(greedy_key);
    drop(held);
    for (_, key) in &pairs {
        assert_eq!(bench.read(*key, 5), b"small");
    }
}

/// Stamps out one `#[test]` for each rule above, which goes through all the settings that `$settings` yields.
macro_rules! driver_tests {
    ($settings:expr) => {
        $crate::engine::driver_tests::driver_tests! { $settings;
            bytes_make_the_round_trip
            received_bytes_may_be_changed_in_place
            a_send_to_a_peer_that_reads_late_arrives_whole_and_in_order
            reading_goes_on_while_a_send_waits
            paused_reading_leaves_bytes_until_it_resumes
            paused_reading_stops_the_client_in_the_end
            pausing_and_resuming_at_once_loses_nothing
            the_peers_end_is_told_once_after_its_bytes_and_sending_goes_on
            shutting_our_side_ends_the_peers_reading_only
            shutting_our_side_fails_the_send_that_waits
            sending_after_our_end_fails
            a_reset_by_the_peer_is_reported_once
            a_reset_of_an_idle_connection_is_reported_once
            a_send_that_waits_fails_when_the_peer_resets
            a_send_that_breaks_after_the_peers_end_is_reported
            the_peers_address_is_known_while_there_is_a_connection
            closing_tells_the_peer_and_voids_the_key
            closing_over_unread_bytes_resets
            what_a_client_writes_after_a_close_is_answered_with_a_reset
            a_connection_with_bytes_is_closed_as_soon_as_it_is_adopted
            a_reset_throws_unsent_bytes_away_and_lets_their_memory_go
            a_close_waits_for_no_peer_and_breaks_off_a_send_that_it_does_not_read
            a_close_breaks_off_a_send_to_a_peer_that_reads
            a_reset_leaves_what_had_arrived
            nothing_but_closed_follows_a_close
            slots_are_reused_and_keys_are_not
            a_crowd_is_accepted_over_several_turns
            clients_that_leave_the_backlog_are_accepted_and_found_gone
            paused_accepting_leaves_clients_in_the_backlog
            stopped_accepting_refuses_clients_and_keeps_connections
            stopped_accepting_takes_who_waits_in_the_backlog_first
            another_listener_is_accepted_on_after_the_first_was_closed
            a_socket_accepted_here_is_adopted_there
            a_wake_up_reaches_the_other_shard
            exhausted_receive_buffers_delay_bytes_and_lose_none
            a_starved_connection_that_goes_leaves_its_buffers_to_others
            a_frozen_driver_takes_nothing_and_gives_nothing_until_it_is_thawed
            freezing_and_thawing_at_any_time_loses_nothing
            what_is_behind_the_rest_of_a_frozen_connection_waits_for_it
            another_driver_goes_on_with_a_frozen_connection
        }
    };
    ($settings:expr; $($rule:ident)+) => {
        $(#[test]
        fn $rule() {
            for setting in $settings {
                $crate::engine::driver_tests::$rule(&setting);
            }
        })+
    };
}
pub(crate) use driver_tests;
