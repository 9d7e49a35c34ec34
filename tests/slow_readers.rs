//! Subscribers that read slower than their room is written: bounded, told why, and no burden to the others.

mod common;

use common::frame::{self, BINARY, CLOSE, FIN};
use common::raw::{self, End, Raw};
use common::{Gateway, SLOW_CONSUMER, SOON, Setup, eventually, gateway, now, sleep_ms};
use std::time::Duration;

const MESSAGE_BYTES: usize = 4096;

/// Small bounds, so that a slow reader is slow soon.
fn small_queues() -> Setup {
    gateway().limit("message_bytes_max", 16 << 10).limit("queue_bytes_max", 64 << 10)
}

fn slow_member(gateway: &Gateway, path: &str) -> Raw {
    let mut raw = Raw::connect_with_small_buffer(gateway.port);
    raw.write(raw::upgrade(path, "").as_bytes());
    raw.expect_upgraded();
    // It has heard itself, so it is a member before the publisher begins.
    raw.send_text("in");
    raw.expect_text("in");
    raw
}

/// A publisher that hears itself is also the healthy reader: it never writes more than it has read.
struct Publisher {
    raw: Raw,
    sent: u64,
}

impl Publisher {
    fn join(gateway: &Gateway, path: &str) -> Self {
        Self { raw: raw::ws(gateway, path), sent: 0 }
    }

    /// One numbered message, out and back.
    fn publish(&mut self) {
        let mut payload = vec![b'm'; MESSAGE_BYTES];
        payload[..8].copy_from_slice(&self.sent.to_be_bytes());
        self.raw.send(FIN | BINARY, &payload);
        let back = self.raw.frame();
        assert_eq!(back.payload[..8], self.sent.to_be_bytes(), "the healthy reader lost a message or its order");
        self.sent += 1;
    }
}

#[test]
fn a_slow_reader_that_reads_again_finds_whole_frames_and_4508() {
    let gateway = small_queues().start();
    let mut slow = slow_member(&gateway, "/ws?room=busy");
    let mut publisher = Publisher::join(&gateway, "/ws?room=busy");
    while gateway.closes(SLOW_CONSUMER) == 0 {
        for _ in 0..16 {
            publisher.publish();
        }
        assert!(publisher.sent < 10_000, "{} messages and the slow reader is still not cut", publisher.sent);
    }
    let mut next = 0;
    let reason = loop {
        let frame = slow.frame();
        match frame.first {
            first if first == FIN | BINARY => {
                assert_eq!(frame.payload.len(), MESSAGE_BYTES);
                assert_eq!(frame.payload[..8], u64::to_be_bytes(next), "what it got before the cut is the start of the room, in order");
                next += 1;
            }
            first if first == FIN | CLOSE => {
                let (code, reason) = frame::close_code(&frame.payload);
                assert_eq!(code, Some(4508), "{reason}");
                break reason;
            }
            other => panic!("an unexpected frame {other:#x}"),
        }
    };
    assert!(reason.contains("retry="), "{reason}");
    assert!(next < publisher.sent, "it lost nothing, so why was it cut?");
    slow.expect_end(SOON);
    gateway.wait_for_closes(SLOW_CONSUMER, 1);
    // The room goes on.
    publisher.publish();
}

#[test]
fn a_reader_that_never_reads_again_is_reset_and_counted() {
    let gateway = small_queues().limit("linger_ms", 300).start();
    let before = gateway.descriptors();
    let mut slow = slow_member(&gateway, "/ws?room=busy");
    let mut publisher = Publisher::join(&gateway, "/ws?room=busy");
    while gateway.closes(SLOW_CONSUMER) == 0 {
        for _ in 0..16 {
            publisher.publish();
        }
        assert!(publisher.sent < 10_000, "{} messages and the slow reader is still not cut", publisher.sent);
    }
    // The publisher's descriptor remains; the slow reader's is given back although it never read.
    eventually(Duration::from_secs(5), || match gateway.descriptors() {
        after if after <= before + 1 => Ok(()),
        after => Err(format!("{after} descriptors are open, {before} were before the two clients")),
    });
    gateway.wait_for_connections(1);
    assert_eq!(gateway.closes(SLOW_CONSUMER), 1);
    assert_eq!(slow.end_within(SOON), End::Reset);
    publisher.publish();
}

#[test]
fn a_reader_that_stalls_below_its_bound_is_cut_after_write_stall_ms() {
    let gateway = gateway().limit("write_stall_ms", 500).limit("linger_ms", 300).start();
    let _slow = slow_member(&gateway, "/ws?room=busy");
    let mut publisher = Publisher::join(&gateway, "/ws?room=busy");
    // 512 KiB: more than the small receive buffer holds, less than the 1 MiB of the queue.
    for _ in 0..128 {
        publisher.publish();
    }
    assert_eq!(gateway.closes(SLOW_CONSUMER), 0, "cut before its time");
    gateway.wait_for_closes(SLOW_CONSUMER, 1);
    gateway.wait_for_connections(1);
}

#[test]
fn a_reader_that_is_slow_but_reads_is_not_cut_for_stalling() {
    let gateway = gateway().limit("write_stall_ms", 600).start();
    let mut slow = slow_member(&gateway, "/ws?room=busy");
    let mut publisher = Publisher::join(&gateway, "/ws?room=busy");
    for _ in 0..64 {
        publisher.publish();
    }
    let begun = now();
    for next in 0..64_u64 {
        assert_eq!(slow.frame().payload[..8], next.to_be_bytes());
        sleep_ms(40);
    }
    assert!(begun.elapsed() > Duration::from_millis(1200), "it was slower than two stalls");
    assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
}

#[test]
fn a_full_queue_never_eats_a_pong() {
    let gateway = gateway().start();
    let mut slow = slow_member(&gateway, "/ws?room=busy");
    let mut publisher = Publisher::join(&gateway, "/ws?room=busy");
    for _ in 0..100 {
        publisher.publish();
    }
    slow.send(FIN | frame::PING, b"still there?");
    sleep_ms(100);
    let (mut messages, mut pong_after) = (0, None);
    while messages < 100 || pong_after.is_none() {
        match slow.frame() {
            frame if frame.first == FIN | frame::PONG => {
                assert_eq!(frame.payload, b"still there?");
                pong_after = Some(messages);
            }
            frame => {
                assert_eq!(frame.payload[..8], u64::to_be_bytes(messages), "the pong cost a message or its order");
                messages += 1;
            }
        }
    }
}

#[test]
fn an_echo_client_that_does_not_read_is_paused_not_cut() {
    let gateway = small_queues().limit("echo_bytes_max", 32 << 10).start();
    let mut raw = Raw::connect_with_small_buffer(gateway.port);
    raw.write(raw::upgrade("/echo", "").as_bytes());
    raw.expect_upgraded();
    let before = gateway.pss_bytes();
    // More than any kernel buffer takes: at some point the gateway stops reading and our writes block.
    raw.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout above zero");
    let mut sent = 0_u64;
    let message = frame::masked(FIN | BINARY, &[7; 16 << 10]);
    let mut rest: &[u8] = &[];
    while sent < 4096 {
        use std::io::Write;
        if rest.is_empty() {
            rest = &message;
        }
        match raw.stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(_) => break,
        }
        sent += u64::from(rest.is_empty());
    }
    assert!(sent < 4096, "64 MiB of echoes were taken from a client that reads none");
    let grown = gateway.pss_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for one client that does not read");
    assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
    // It reads again and gets every whole message that it sent.
    for _ in 0..sent {
        let frame = raw.frame();
        assert_eq!((frame.first, frame.payload.len()), (FIN | BINARY, 16 << 10));
    }
    raw.stream.set_write_timeout(Some(SOON)).expect("a timeout above zero");
    raw.write(rest);
    if !rest.is_empty() {
        assert_eq!(raw.frame().payload.len(), 16 << 10);
    }
    raw.send_text("and on it goes");
    raw.expect_text("and on it goes");
}

#[test]
fn over_the_mark_of_the_process_the_reader_that_pins_most_goes_first() {
    const MARK: u64 = 2 << 20;
    let gateway = gateway()
        .limit("history_messages", 0)
        .limit("queued_bytes_max", MARK)
        .limit("queue_bytes_max", 64 << 20)
        .limit("linger_ms", 300)
        .start();
    let _slow: Vec<Raw> = (0..8).map(|number| slow_member(&gateway, &format!("/ws?room={number}"))).collect();
    let mut publishers: Vec<Publisher> = (0..8).map(|number| Publisher::join(&gateway, &format!("/ws?room={number}"))).collect();
    let before = gateway.pss_bytes();
    // 32 MiB over 8 rooms, each with one that does not read: sixteen times the mark.
    let (mut queued_most, mut pss_most) = (0, 0);
    for _ in 0..128 {
        for _ in 0..8 {
            publishers.iter_mut().for_each(Publisher::publish);
        }
        queued_most = queued_most.max(gateway.metrics().sum("shardcast_queued_bytes", &[]) as u64);
        pss_most = pss_most.max(gateway.pss_bytes());
    }
    println!("queued at most {queued_most} B with a mark of {MARK} B; Pss at most {} B more", pss_most - before);
    assert!(queued_most < MARK + (1 << 20), "{queued_most} bytes were queued with a mark of {MARK}");
    assert!(pss_most - before < 16 << 20, "{} bytes of Pss more with a mark of {MARK}", pss_most - before);
    eventually(SOON, || match gateway.closes(SLOW_CONSUMER) {
        0 => Err("nobody was cut".to_owned()),
        _ => Ok(()),
    });
    publishers.iter_mut().for_each(Publisher::publish);
}

/// A reader took a little, stopped for good, and messages went on slowly. Only a send that began with an empty queue was watched for progress; the
/// one that was to catch up was not, and the reader stayed for as long as its queue had room.
#[test]
fn a_reader_that_stops_for_good_is_cut_after_write_stall_ms_while_messages_go_on() {
    for read_first in [0, 20, 60] {
        let gateway = gateway().limit("write_stall_ms", 500).limit("ping_interval_ms", 2000).limit("linger_ms", 300).start();
        let mut slow = slow_member(&gateway, "/ws?room=busy");
        let mut publisher = Publisher::join(&gateway, "/ws?room=busy");
        for _ in 0..80 {
            publisher.publish();
        }
        for next in 0..read_first {
            assert_eq!(slow.frame().payload[..8], u64::to_be_bytes(next));
            sleep_ms(2);
        }
        // At most 180 messages wait for it, 720 KiB: below the 1 MiB of its queue, so it is its silence that ends it.
        let stopped = now();
        while gateway.closes(SLOW_CONSUMER) == 0 {
            assert!(publisher.sent < 180, "it read {read_first} messages, stopped {:?} ago and is not cut", stopped.elapsed());
            publisher.publish();
            sleep_ms(50);
        }
        gateway.wait_for_connections(1);
        publisher.publish();
    }
}

/// An echo client that never read was paused, and paused clients were neither pinged nor watched: it stayed for ever.
#[test]
fn an_echo_client_that_never_reads_is_cut_after_write_stall_ms() {
    let gateway = gateway().limit("write_stall_ms", 500).limit("linger_ms", 300).start();
    let before = gateway.descriptors();
    let mut raw = Raw::connect_with_small_buffers(gateway.port);
    raw.write(raw::upgrade("/echo", "").as_bytes());
    raw.expect_upgraded();
    let echoes = std::iter::repeat_with(|| frame::masked(FIN | BINARY, &[7; 4000]));
    raw.write_until_blocked(echoes, Duration::from_millis(700), 32 << 20);
    gateway.wait_for_closes(SLOW_CONSUMER, 1);
    gateway.wait_for_connections(0);
    eventually(SOON, || match gateway.descriptors() {
        after if after <= before => Ok(()),
        after => Err(format!("{after} descriptors are open, {before} were before the client")),
    });
}

/// Reads as fast as it can until the connection ends, and counts the bytes.
fn read_fast(mut raw: Raw, heard: &std::sync::atomic::AtomicU64) {
    use std::io::Read;
    let mut chunk = vec![0; 1 << 20];
    while let Ok(count @ 1..) = raw.stream.read(&mut chunk) {
        heard.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
    }
}

/// One publisher, faster than anything, and one reader, as fast as it can. Nothing bounded what lay between what was read from the one and what
/// the other was sent: half a GiB in seconds, with default limits.
#[test]
fn a_flood_between_one_publisher_and_one_reader_is_bounded() {
    use std::sync::atomic::{AtomicU64, Ordering};
    const MESSAGE: usize = 1000;
    const FRAME_OUT: u64 = 4 + MESSAGE as u64;
    const ROOM: u64 = 64 << 20;
    for shards in [1, 2] {
        for echo in ["&echo=0", ""] {
            let gateway = gateway().shards(shards).start();
            let path = format!("/ws?room=flood{echo}");
            let reader = raw::ws(&gateway, "/ws?room=flood&echo=0");
            let mut publisher = raw::ws(&gateway, &path);
            // It has come round once: both are members.
            publisher.send(FIN | BINARY, &[0; MESSAGE]);
            let own = Raw::over(publisher.stream.try_clone().expect("a descriptor"));
            let (heard, own_heard, sent) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(1));
            let (before, mut most, mut queued) = (gateway.pss_bytes(), 0, 0.0_f64);
            std::thread::scope(|scope| {
                let hang_up = [reader.stream.try_clone().expect("a descriptor"), publisher.stream.try_clone().expect("a descriptor")];
                let (heard, own_heard, sent) = (&heard, &own_heard, &sent);
                scope.spawn(move || read_fast(reader, heard));
                scope.spawn(move || read_fast(own, own_heard));
                let stop = now() + Duration::from_millis(1500);
                let flood = scope.spawn(move || {
                    let batch = frame::masked(FIN | BINARY, &[b'z'; MESSAGE]).repeat(64);
                    while now() < stop && publisher.try_write(&batch) {
                        sent.fetch_add(64, Ordering::Relaxed);
                    }
                });
                while now() < stop && most < 4 * ROOM {
                    most = most.max(gateway.pss_bytes().saturating_sub(before));
                    queued = queued.max(gateway.metrics().sum("shardcast_queued_bytes", &[]));
                    sleep_ms(20);
                }
                if most >= ROOM {
                    hang_up.iter().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Both)));
                }
                let _ = flood.join();
                // Whoever was not cut hears everything.
                if most < ROOM && gateway.closes(SLOW_CONSUMER) == 0 {
                    let all = sent.load(Ordering::Relaxed) * FRAME_OUT;
                    eventually(3 * SOON, || match heard.load(Ordering::Relaxed) {
                        bytes if bytes >= all => Ok(()),
                        bytes => Err(format!("{bytes} of {all} bytes came")),
                    });
                }
                hang_up.iter().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Both)));
            });
            println!("{shards} shards, {path}: {} MiB sent, at most {} KiB more", sent.load(Ordering::Relaxed) / 1024, most >> 10);
            assert!(
                most < ROOM,
                "{shards} shards, {path}: {most} bytes more under a flood that default limits should bound; {queued} queued"
            );
            gateway.wait_for_connections(0);
            let mut after = Publisher::join(&gateway, "/ws?room=flood");
            after.publish();
        }
    }
}
