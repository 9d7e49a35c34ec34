//! A group of processes, one of which is killed twice: each event is handled to an acknowledgement, in the order of its key.
//!
//! The processes are this test's own binary, told to be a worker. `SHARDCAST_SCENARIO_FULL=1` has 100,000 events of 1,000 keys.

use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shardcast::events::EventBus;
use shardcast::events::event_bus::{Event, Options, Received, Terms};
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
    let handler = move |received: Received<u64>| {
        let line = format!("{} {}\n", received.event.key.expect("all have one"), received.event.payload);
        // One write, behind what all others have written.
        let written = (&log).write_all(line.as_bytes());
        async move {
            sleep(Duration::from_millis(1)).await;
            written
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

#[test]
fn of_four_processes_one_is_killed_twice_and_nothing_is_lost_or_out_of_order() {
    let is_full = std::env::var_os("SHARDCAST_SCENARIO_FULL").is_some();
    let (keys, each) = if is_full { (1_000, 100) } else { (200, 25) };
    let all = keys * each;
    let limit = Duration::from_secs(if is_full { 300 } else { 60 });
    let (server, store) = server();
    let log = store.join("log");
    std::fs::write(&log, "").expect("our directory");
    let lines = || std::fs::read_to_string(&log).expect("our file").lines().count();
    run(async {
        let began = Instant::now();
        let bus = EventBus::connect(&server.url(), wide()).await.expect("the server is there");
        // The group is there before its first event.
        let first =
            bus.subscribe_group("orders.*", "workers", Terms { ..terms() }, |_: Received<u64>| std::future::ready(Ok::<(), String>(())));
        first.await.expect("a new group").stop().await;
        let mut workers: Vec<Worker> = (0..4).map(|_| Worker::start(&server, &log)).collect();
        let mut publishers = JoinSet::new();
        // Each key's events come from one publisher, one after the other.
        for publisher in 0..20 {
            let bus = bus.clone();
            publishers.spawn(async move {
                for number in 0..each {
                    for key in (publisher..keys).step_by(20) {
                        let event = Event::new("order.changed", "tests", number).with_key(format!("customer-{key}"));
                        bus.publish("orders.changed", &event).await.expect("it is stored");
                    }
                }
            });
        }
        for quarter in 1..=2 {
            eventually_within(limit, || match lines() as u64 {
                handled if handled >= quarter * all / 4 => Ok(()),
                handled => Err(format!("{handled} of {all} were handled")),
            })
            .await;
            workers[0].kill();
            workers[0] = Worker::start(&server, &log);
        }
        while let Some(published) = publishers.join_next().await {
            published.expect("all are stored");
        }
        let mut client = server.client();
        eventually_within(limit, || {
            let waiting = (0..16).map(|partition| {
                let info = client.request(&format!("$JS.API.CONSUMER.INFO.EVENTS.workers-p{partition}"), "");
                let number = |field: &str| info[field].as_u64().unwrap_or_else(|| panic!("no {field} in {info}"));
                number("num_pending") + number("num_ack_pending")
            });
            match waiting.sum::<u64>() {
                0 => Ok(()),
                waiting => Err(format!("{waiting} wait, {} were handled", lines())),
            }
        })
        .await;
        let took = began.elapsed();
        let redelivered: u64 = workers.drain(..).map(Worker::stop).sum();
        let text = std::fs::read_to_string(&log).expect("our file");
        let mut next: HashMap<&str, u64> = HashMap::new();
        let mut handled = BTreeSet::new();
        for line in text.lines() {
            let (key, number) = line.split_once(' ').expect("KEY NUMBER");
            let number: u64 = number.parse().expect("a number");
            // One that was handled may come again behind a death; none may be left out.
            let next = next.entry(key).or_default();
            assert!(number <= *next, "{key}: {number} before {next}");
            *next = (*next).max(number + 1);
            handled.insert((key, number));
        }
        assert_eq!(handled.len() as u64, all);
        assert!(bus.dead_letters("workers", 0, 1).await.expect("the server answers").is_empty());
        println!(
            "{all} events of {keys} keys in {took:?}: {} handled more than once, {redelivered} deliveries to who is left were not the first",
            text.lines().count() as u64 - all
        );
    });
}
