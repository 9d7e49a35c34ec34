//! What the bus of a process costs, beside tokio's broadcast channel and bare crossbeam channels: publishing and receiving in one thread, to another thread, and
//! there and back.
//!
//! `cargo bench --no-default-features --features bus --bench bus`; against a saved baseline: `-- --save-baseline before`, change, `-- --baseline before`.
//!
//! "There and back" is two hops between threads that sleep: half of it is what a subscriber waits for a message. Broadcast and the bus give every subscriber every
//! message; the crossbeam rows send to one channel after the other, which is what the bus adds topics, policies, reports and tasks to.

use std::hint::black_box;
use std::thread;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use shardcast::events::{Bus, Lag, SubscribeOptions, Subscription};
use tokio::sync::broadcast;

const QUEUE: usize = 256;
/// Messages of one round between threads.
const BURST: u64 = 128;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn subscribe(bus: &Bus<u64>, topic: &str) -> Subscription<u64> {
    bus.subscribe_with(topic, SubscribeOptions { queue_messages: QUEUE, lag: Lag::DropNewest, name: None }).expect("room")
}

/// Publishes one message and receives it everywhere, in one thread: what a message costs without waking anybody.
fn one_thread(c: &mut Criterion) {
    for subscribers in [1_u64, 8] {
        let mut group = c.benchmark_group(format!("one thread, {subscribers} subscribers"));
        group.throughput(Throughput::Elements(subscribers));
        group.bench_function("bus", |b| {
            let bus = Bus::new();
            let mut own: Vec<_> = (0..subscribers).map(|_| subscribe(&bus, "t")).collect();
            b.iter(|| {
                bus.publish("t", 1);
                own.iter_mut().for_each(|one| {
                    black_box(one.try_recv()).expect("it is there");
                });
            });
        });
        group.bench_function("tokio broadcast", |b| {
            let (sender, first) = broadcast::channel(QUEUE);
            let mut own: Vec<_> = (1..subscribers).map(|_| sender.subscribe()).chain([first]).collect();
            b.iter(|| {
                sender.send(1_u64).expect("they are there");
                own.iter_mut().for_each(|one| {
                    black_box(one.try_recv()).expect("it is there");
                });
            });
        });
        group.bench_function("crossbeam channels", |b| {
            let own: Vec<_> = (0..subscribers).map(|_| crossbeam_channel::bounded(QUEUE)).collect();
            b.iter(|| {
                own.iter().for_each(|(sender, _)| sender.try_send(1_u64).expect("there is room"));
                own.iter().for_each(|(_, receiver)| {
                    black_box(receiver.try_recv()).expect("it is there");
                });
            });
        });
        group.finish();
    }
}

/// One round: `send` says so many, and the other thread answers when it has all of them.
fn round(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    mut send: impl FnMut(u64),
    answers: crossbeam_channel::Receiver<()>,
    burst: u64,
) {
    group.bench_function(name, |b| {
        b.iter(|| {
            (0..burst).for_each(&mut send);
            answers.recv().expect("the other thread lives");
        });
    });
}

/// Receives until there is nothing more, and answers after each `burst`.
fn answer(burst: u64, mut next: impl FnMut() -> bool + Send + 'static) -> (crossbeam_channel::Receiver<()>, thread::JoinHandle<()>) {
    let (answer, answers) = crossbeam_channel::bounded(1);
    let thread = thread::spawn(move || {
        let mut got = 0;
        while next() {
            got += 1;
            if got % burst == 0 && answer.send(()).is_err() {
                return;
            }
        }
    });
    (answers, thread)
}

fn two_threads(c: &mut Criterion) {
    for burst in [1, BURST] {
        let what = if burst == 1 { "there and back".to_owned() } else { format!("{burst} to another thread") };
        let mut group = c.benchmark_group(what);
        group.throughput(Throughput::Elements(burst));

        let bus = Bus::new();
        let mut own = subscribe(&bus, "t");
        let (answers, thread) = answer(burst, move || own.recv_blocking().is_ok());
        let publisher = bus.clone();
        round(&mut group, "bus, blocking", move |n| drop(publisher.publish("t", n)), answers, burst);
        drop(bus);
        thread.join().expect("no panic");

        let bus = Bus::new();
        let mut own = subscribe(&bus, "t");
        let on = runtime();
        let (answers, thread) = answer(burst, move || on.block_on(own.recv()).is_ok());
        let publisher = bus.clone();
        round(&mut group, "bus, async", move |n| drop(publisher.publish("t", n)), answers, burst);
        drop(bus);
        thread.join().expect("no panic");

        let (sender, mut own) = broadcast::channel(QUEUE);
        let on = runtime();
        let (answers, thread) = answer(burst, move || on.block_on(own.recv()).is_ok());
        round(&mut group, "tokio broadcast, async", move |n| assert_eq!(sender.send(n).expect("it is there"), 1), answers, burst);
        thread.join().expect("no panic");

        let (sender, own) = crossbeam_channel::bounded(QUEUE);
        let (answers, thread) = answer(burst, move || own.recv().is_ok());
        round(&mut group, "crossbeam channel, blocking", move |n| sender.try_send(n).expect("there is room"), answers, burst);
        thread.join().expect("no panic");
        group.finish();
    }
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
