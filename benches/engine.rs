//! What the engine's parts cost: mailboxes, timers, the frame log, and fan-out, over the simulated kernel and over a real ring.
//!
//! `cargo bench --features sim --bench engine`; against a saved baseline: `-- --save-baseline before`, change, `-- --baseline before`.

use std::hint::black_box;
use std::io::Read;
use std::net::TcpStream;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shardcast::engine::driver::{Driver, Event, Wait};
use shardcast::engine::log::Log;
use shardcast::engine::mailbox::mesh;
use shardcast::engine::recv_pool::RecvPool;
use shardcast::engine::segment::{Gather, SegmentMemory, SegmentWriter};
use shardcast::engine::sys::{ListenOptions, Listener, listen, local_addr};
use shardcast::engine::timers::{TICK, TimerWheel};
use shardcast::engine::uring::{RingKernel, RingSize, UringDriver, build_ring};
use shardcast::engine::wakers::Wakers;
use shardcast::ids::{ConnId, ConnKey, ShardId};
use shardcast::server::clock::Clock;
use shardcast::sim::Crowd;
use shardcast::time::Time;

/// Connections of the group over a real ring.
const PEERS: usize = 64;

fn mailbox(c: &mut Criterion) {
    let mut mailboxes = mesh::<u64>(2, 256);
    let (mut receiver, mut sender) = (mailboxes.pop().expect("two"), mailboxes.pop().expect("two"));
    let mut group = c.benchmark_group("mailbox");
    for burst in [1_u64, 64] {
        group.throughput(Throughput::Elements(burst));
        group.bench_function(format!("send, flush and receive {burst}"), |b| {
            b.iter(|| {
                (0..burst).for_each(|n| sender.send(ShardId(1), n));
                sender.flush(|_| ());
                receiver.receive(burst as usize, |_, n| {
                    black_box(n);
                })
            });
        });
    }
    group.finish();
}

fn timers(c: &mut Criterion) {
    let mut wheel = TimerWheel::new(TICK, Time::ZERO);
    let mut now = Time::ZERO;
    let mut fired = Vec::new();
    (0..10_000).for_each(|slot| wheel.set(slot, now + Duration::from_millis(u64::from(slot) * 4)));
    let mut slot = 0;
    c.bench_function("timer wheel: move one of 10,000 and look what is due", |b| {
        b.iter(|| {
            slot = (slot + 7919) % 10_000;
            now = now + Duration::from_micros(10);
            wheel.set(slot, now + Duration::from_secs(40));
            wheel.advance(now, &mut fired);
            fired.drain(..).for_each(|slot| wheel.set(slot, now + Duration::from_secs(40)));
            wheel.next_wait(now)
        });
    });
}

fn log(c: &mut Criterion) {
    let memory = SegmentMemory::new();
    let sender = ConnId { shard: ShardId(0), key: ConnKey { slot: 0, generation: 0 } };
    let mut group = c.benchmark_group("frame log");
    for frames in [1_u64, 16] {
        let mut log = Log::new(1024, 64 << 10, &memory);
        group.throughput(Throughput::Elements(frames));
        group.bench_function(format!("append and gather {frames} of 128 B"), |b| {
            b.iter(|| {
                let pin = log.pin();
                (0..frames).for_each(|_| log.append(sender, &[0x82, 126, 0, 128], &[7; 128]));
                pin.gather(64 << 10, None)
            });
        });
    }
    group.finish();
}

/// The simulated kernel's own time is in it: read it as a bound, and compare it with itself.
fn simulated(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan-out to 1,000 over the simulated kernel");
    for messages in [1, 16] {
        let mut crowd = Crowd::new(1, 1, 1000, |kernel| kernel);
        crowd.connect(1000, |shards, shard| shards.step(shard));
        group.throughput(Throughput::Elements(1000 * messages));
        group.bench_function(format!("{messages} in flight"), |b| {
            b.iter(|| crowd.publish(messages as usize, 128, |shards, shard| shards.step(shard)));
        });
    }
    group.finish();
}

/// Sends over a real ring to real sockets, whose other ends a second thread reads.
fn ring(c: &mut Criterion) {
    let options = ListenOptions { backlog: 128, notsent_bytes: 16 << 10, defer_seconds: 0, shared: false };
    let listener = listen("127.0.0.1:0".parse().expect("an address"), options).expect("a free port");
    let address = local_addr(&listener).expect("a bound socket has an address");
    let wakers = Wakers::new(1).expect("an eventfd");
    let Ok(ring) = build_ring(RingSize { submissions: 256, completions: 1024 }) else {
        return println!("io_uring is not to be had here: no group over a real ring");
    };
    let kernel =
        RingKernel::new(ring, RecvPool::new(64, 4096), ShardId(0), wakers, Some(Listener::own(listener))).expect("a ring with its buffers");
    let mut driver = UringDriver::new(kernel);
    let mut peers: Vec<TcpStream> = (0..PEERS).map(|_| TcpStream::connect(address).expect("connects")).collect();
    let mut events = Vec::new();
    let mut keys = Vec::new();
    while keys.len() < PEERS {
        driver.turn(Wait::For(Duration::from_millis(10)), &mut events).expect("the ring goes on");
        for event in events.drain(..) {
            if let Event::Accepted(socket) = event {
                keys.push(driver.adopt(socket));
            }
        }
    }
    peers.iter().for_each(|peer| peer.set_nonblocking(true).expect("a socket option"));
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            peers.retain_mut(|peer| !matches!(peer.read(&mut buffer), Ok(0)));
            if peers.is_empty() {
                break;
            }
        }
    });
    let memory = SegmentMemory::new();
    let clock = Clock::new();
    let mut group = c.benchmark_group("sends of 128 B over a real ring");
    group.throughput(Throughput::Elements(PEERS as u64));
    group.bench_function(format!("to {PEERS} sockets"), |b| {
        b.iter_custom(|rounds| {
            let data = Rc::new(Gather::new([SegmentWriter::new(128, &memory).append(&[], &[7; 128])].into_iter().collect()));
            let begun = clock.now();
            for _ in 0..rounds {
                keys.iter().for_each(|&key| driver.send(key, Rc::clone(&data)));
                let mut sent = 0;
                while sent < PEERS {
                    driver.turn(Wait::Forever, &mut events).expect("the ring goes on");
                    sent += events.drain(..).filter(|event| matches!(event, Event::Sent(_))).count();
                }
            }
            clock.now().since(begun)
        });
    });
    group.finish();
}

criterion_group!(benches, mailbox, timers, log, simulated, ring);
criterion_main!(benches);
