//! A group of processes, one of which is killed twice: each event is handled to an acknowledgement, in the order of its key.
//!
//! The processes are this test's own binary, told to be a worker. `SHARDCAST_SCENARIO_FULL=1` has 100,000 events of 1,000 keys.

use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shardcast::events::EventBus;
use shardcast::events::event_bus::{Event, Options, Received};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{eventually_within, options, run, server, terms};
use crate::nats::NatsServer;

const URL: &str = "SHARDCAST_TEST_EVENTS_URL";
const LOG: &str = "SHARDCAST_TEST_EVENTS_LOG";

fn wide() -> Options {
    Options { partitions: 16, ..options() }
}

/// A worker of the group. Its end is that of its standard input.
struct Worker(Child);

impl Worker {
    fn start(server: &NatsServer, log: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test has a file"));
        command.args(["--exact", "processes::worker", "--ignored", "--nocapture"]);
        command.env(URL, server.url()).env(LOG, log).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Self(command.spawn().expect("our own binary"))
    }

    /// SIGKILL, as by the kernel when memory is short.
    fn kill(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet waited for, so its id is not reused.
        assert_eq!(unsafe { libc::kill(self.0.id().cast_signed(), signal) }, 0);
    }

    /// Ends it as it should, and says how many deliveries were not the first.
    fn stop(mut self) -> u64 {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().expect("it is piped").read_to_string(&mut said).expect("text");
        assert!(self.0.wait().expect("our child").success(), "{said}");
        let number = said.lines().find_map(|line| line.split_once("redelivered ")).map(|(_, number)| number.trim());
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number in {said}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "a process that another test starts"]
fn worker() {
    let url = std::env::var(URL).expect("a test starts this");
    let log = OpenOptions::new().append(true).open(std::env::var(LOG).expect("a test starts this")).expect("the test's file");
    let (log, pid) = (Arc::new(log), std::process::id());
    let handler = move |received: Received<u64>| {
        let (log, line) = (Arc::clone(&log), format!("{} {} {pid}\n", received.event.key.expect("all have one"), received.event.payload));
        async move {
            sleep(Duration::from_millis(1)).await;
            // Last, so that what a death interrupts was not handled; and one write, behind what all others have written.
            (&*log).write_all(line.as_bytes())
        }
    };
    run(async {
        let bus = EventBus::connect(&url, wide()).await.expect("the server is there");
        let subscription = bus.subscribe_group("orders.*", "workers", terms(), handler).await.expect("the group");
        let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        closed.await.expect("no panic").expect("a pipe");
        let redelivered = subscription.stats().redelivered;
        subscription.stop().await;
        println!("redelivered {redelivered}");
    });
}

/// How many events were handled, once or more than once.
fn handled(log: &Path) -> u64 {
    let text = std::fs::read_to_string(log).expect("our file");
    text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(event, _)| event).collect::<BTreeSet<_>>().len() as u64
}

/// Looks at what was handled: all of it, and each key in its order. How many were handled more than once.
fn assert_in_order(log: &Path, all: u64) -> u64 {
    let text = std::fs::read_to_string(log).expect("our file");
    let mut next: HashMap<&str, u64> = HashMap::new();
    let mut handled = BTreeSet::new();
    for line in text.lines() {
        let [key, number, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?} is not KEY NUMBER PROCESS") };
        let number: u64 = number.parse().expect("a number");
        // One that was handled may come again behind a death; none may be left out.
        let next = next.entry(key).or_default();
        assert!(number <= *next, "{key}: {number} before {next}");
        *next = (*next).max(number + 1);
        handled.insert((key, number));
    }
    assert_eq!(handled.len() as u64, all);
    text.lines().count() as u64 - all
}

/// Waits until the server waits for nothing.
async fn all_are_acknowledged(server: &NatsServer, limit: Duration) {
    let mut client = server.client();
    eventually_within(limit, || {
        let waiting = (0..16).map(|partition| {
            let info = client.request(&format!("$JS.API.CONSUMER.INFO.EVENTS.workers-p{partition}"), "");
            let number = |field: &str| info[field].as_u64().unwrap_or_else(|| panic!("no {field} in {info}"));
            number("num_pending") + number("num_ack_pending")
        });
        match waiting.sum::<u64>() {
            0 => Ok(()),
            waiting => Err(format!("{waiting} wait")),
        }
    })
    .await;
}

/// Connects, and makes the group: it is there before its first event.
async fn group(server: &NatsServer) -> EventBus {
    let bus = EventBus::connect(&server.url(), wide()).await.expect("the server is there");
    let handler = |_: Received<u64>| std::future::ready(Err::<(), _>("there is nothing"));
    bus.subscribe_group("orders.*", "workers", terms(), handler).await.expect("a new group").stop().await;
    bus
}

/// Publishes these numbers of each key, one after the other.
async fn publish(bus: &EventBus, keys: impl Iterator<Item = u64> + Clone, numbers: Range<u64>) {
    for number in numbers {
        for key in keys.clone() {
            let event = Event::new("order.changed", "tests", number).with_key(format!("customer-{key}"));
            bus.publish("orders.changed", &event).await.expect("it is stored");
        }
    }
}

#[test]
fn of_four_processes_one_is_killed_twice_and_nothing_is_lost_or_out_of_order() {
    let is_full = std::env::var_os("SHARDCAST_SCENARIO_FULL").is_some();
    let (keys, each) = if is_full { (1_000, 100) } else { (200, 50) };
    let limit = Duration::from_secs(if is_full { 300 } else { 60 });
    let (server, store) = server();
    let log = store.join("log");
    std::fs::write(&log, "").expect("our directory");
    let lines = || std::fs::read_to_string(&log).expect("our file").lines().map(str::to_owned).collect::<Vec<_>>();
    run(async {
        let began = Instant::now();
        let bus = group(&server).await;
        let mut workers: Vec<Worker> = (0..4).map(|_| Worker::start(&server, &log)).collect();
        let mut publishers = JoinSet::new();
        let is_over = Arc::new(AtomicBool::new(false));
        // Each key's events come from one publisher, one after the other; until both deaths are behind, and so many at least.
        for publisher in 0..20 {
            let (bus, is_over) = (bus.clone(), Arc::clone(&is_over));
            publishers.spawn(async move {
                let own = (publisher..keys).step_by(20);
                let mut number = 0;
                while number < each || !is_over.load(Ordering::Relaxed) {
                    publish(&bus, own.clone(), number..number + 1).await;
                    number += 1;
                    if !is_full {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
                number * own.count() as u64
            });
        }
        for _ in 0..2 {
            // In the middle of its work.
            let own = format!(" {}", workers[0].0.id());
            eventually_within(limit, || match lines().iter().filter(|line| line.ends_with(&own)).count() {
                handled if handled >= 100 => Ok(()),
                handled => Err(format!("{own} has handled {handled}")),
            })
            .await;
            workers[0].kill();
            workers[0] = Worker::start(&server, &log);
        }
        is_over.store(true, Ordering::Relaxed);
        let mut all = 0;
        while let Some(published) = publishers.join_next().await {
            all += published.expect("all are stored");
        }
        all_are_acknowledged(&server, limit).await;
        let took = began.elapsed();
        let redelivered: u64 = workers.drain(..).map(Worker::stop).sum();
        let again = assert_in_order(&log, all);
        assert!(bus.dead_letters("workers", 0, 1).await.expect("the server answers").is_empty());
        println!(
            "{all} events of {keys} keys in {took:?}: {again} handled more than once, {redelivered} deliveries to who is left were not the first"
        );
    });
}

/// Longer than its lease, so that its work is another's when it goes on: it begins with nothing of what it still has.
#[test]
fn a_process_that_stands_still_for_longer_than_its_lease_mixes_nothing_up() {
    let (keys, limit) = (100, Duration::from_secs(60));
    let (server, store) = server();
    let log = store.join("log");
    std::fs::write(&log, "").expect("our directory");
    let wait_for = async |least: u64| {
        eventually_within(limit, || match handled(&log) {
            handled if handled >= least => Ok(()),
            handled => Err(format!("{handled} of {least} were handled")),
        })
        .await;
    };
    run(async {
        let bus = group(&server).await;
        let workers = [(); 2].map(|()| Worker::start(&server, &log));
        let publisher = {
            let bus = bus.clone();
            tokio::spawn(async move { publish(&bus, 0..keys, 0..30).await })
        };
        wait_for(keys * 5).await;
        workers[0].signal(libc::SIGSTOP);
        publisher.await.expect("all are stored");
        // The other has all of its work.
        wait_for(keys * 30).await;
        workers[0].signal(libc::SIGCONT);
        publish(&bus, 0..keys, 30..40).await;
        all_are_acknowledged(&server, limit).await;
        let redelivered: u64 = workers.into_iter().map(Worker::stop).sum();
        assert!(redelivered > 0, "what stood still has come again");
        let again = assert_in_order(&log, keys * 40);
        println!("{again} were handled more than once");
    });
}
