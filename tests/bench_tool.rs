//! `shardcast bench` as users run it: each scenario against the real gateway, its JSON, its exit code. No timing is asserted. One server that
//! loses messages proves that the checks can fail.

#![allow(clippy::disallowed_types, reason = "tests stand outside the gateway: real threads")]

mod common;

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Gateway, gateway};
use serde_json::Value;
use tungstenite::Message;

/// What a run of the tool came to.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    /// The report of a run whose checks passed.
    fn passed(&self) -> Value {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        let report = self.report();
        assert_eq!(report["failures"], serde_json::json!([]), "{report:#}");
        report
    }

    fn report(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}\nstderr: {}", self.stdout, self.stderr))
    }
}

fn bench(words: &[&str]) -> Run {
    let binary = std::env::var("SHARDCAST_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_shardcast").to_owned());
    let output = Command::new(binary).arg("bench").args(words).stdin(Stdio::null()).output().expect("the binary starts");
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn rooms(gateway: &Gateway) -> String {
    format!("ws://127.0.0.1:{}/ws?room=r{{room}}", gateway.port)
}

fn events(gateway: &Gateway) -> String {
    format!("http://127.0.0.1:{}/events?topic=r{{room}}", gateway.port)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn what_comes_compressed_is_inflated_and_checked_and_nothing_compressed_fails_the_run() {
    let words = [
        "-c",
        "20",
        "--in-flight",
        "2",
        "-d",
        "0.5",
        "--warmup",
        "0.1",
        "--payload",
        "1024",
        "--text",
        "--filler",
        "json",
        "--deflate",
        "--json",
    ];
    let run = |gateway: &Gateway| bench(&[&["fanout", "--url", &rooms(gateway)], &words[..]].concat());
    let report = run(&gateway().arg("--compression").start()).passed();
    let (deliveries, compressed) = (number(&report["deliveries"]), number(&report["compressed"]));
    assert!(deliveries > 0 && compressed >= deliveries, "{report:#}");
    let run = run(&gateway().start());
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.report()["failures"].to_string().contains("no message came compressed"), "{}", run.stdout);
}

#[test]
fn fanout_in_a_closed_loop_counts_every_delivery_of_every_room() {
    let gateway = gateway().start();
    let (url, pid) = (rooms(&gateway), gateway.pid().to_string());
    let words =
        ["fanout", "--url", &url, "-c", "60", "--rooms", "3", "--publishers", "2", "--in-flight", "4", "-d", "1", "--warmup", "0.2"];
    let report = bench(&[&words[..], &["--threads", "2", "--total-order", "--json", "--server-pid", &pid]].concat()).passed();
    assert_eq!((number(&report["connections"]), number(&report["rooms"])), (60, 3));
    let (published, deliveries) = (number(&report["published"]), number(&report["deliveries"]));
    // Six publishers with four messages each may be on their way at either edge of the window, to 20 receivers each.
    assert!(published > 0 && deliveries.abs_diff(published * 20) <= 2 * 6 * 4 * 20, "{published} messages, {deliveries} deliveries");
    assert_eq!(report["total_order"], serde_json::json!({ "rooms": 3, "different": 0 }));
    assert_eq!(report["checks"], serde_json::json!({ "lost": 0, "repeated": 0, "out_of_order": 0, "strayed": 0 }));
    assert!(number(&report["latency"]["count"]) > 0 && report["latency"]["p50_us"].as_f64() <= report["latency"]["max_us"].as_f64());
    let by_second: u64 = report["seconds"].as_array().expect("an array").iter().map(|second| number(&second["deliveries"])).sum();
    assert!(by_second >= deliveries, "the series has warm-up and drain too");
    assert!(number(&report["server"]["pss_open_bytes"]) > 0);
    // What the gateway says it delivered is what the receivers counted.
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("shardcast_deliveries_total", &[]) as u64, by_second);
}

#[test]
fn fanout_in_an_open_loop_sends_what_is_due() {
    let gateway = gateway().start();
    let words =
        ["fanout", "--url", &rooms(&gateway), "-c", "20", "--rate", "200", "-d", "1", "--warmup", "0.2", "--text", "--json", "--quiet"];
    let run = bench(&words);
    let report = run.passed();
    assert_eq!(run.stderr, "", "--quiet");
    let sent: u64 = report["seconds"].as_array().expect("an array").iter().map(|second| number(&second["published"])).sum();
    assert_eq!(sent + number(&report["unsent"]), 240, "200 a second over 1.2 s");
    assert_eq!(number(&report["latency"]["count"]), 200 * 20, "every delivery of what was due in the window");
}

#[test]
fn event_streams_are_checked_as_websockets_are() {
    let gateway = gateway().start();
    let (url, events) = (rooms(&gateway), events(&gateway));
    let words = ["fanout", "--url", &url, "--events", &events, "-c", "60", "--rooms", "3", "--publishers", "2"];
    for more in
        [&["--in-flight", "4", "--threads", "2"][..], &["--rate", "600", "--churn", "100"], &["--rate", "300", "--payload", "20000"]]
    {
        let report = bench(&[&words[..], more, &["-d", "1", "--warmup", "0.2", "--total-order", "--json"]].concat()).passed();
        assert_eq!((&report["receivers"], &report["text"]), (&serde_json::json!("events"), &serde_json::json!(true)));
        assert_eq!(report["events"].as_str(), Some(events.as_str()));
        assert_eq!((number(&report["stalls"]), number(&report["foreign"])), (0, 0), "{report:#}");
        assert_eq!((number(&report["total_order"]["rooms"]), number(&report["total_order"]["different"])), (3, 0));
        // Two of the 20 in a room are WebSockets: their deliveries count, their latencies do not.
        let (deliveries, latencies) = (number(&report["deliveries"]), number(&report["latency"]["count"]));
        assert!(deliveries > 100 && latencies > 0 && latencies < deliveries, "{report:#}");
        assert_eq!(number(&report["churned"]) > 0, more.contains(&"--churn"));
    }
    gateway.wait_for_connections(0);
    let run = bench(&["fanout", "--url", &url, "--events", &format!("http://127.0.0.1:{}/nowhere", gateway.port), "-c", "2"]);
    assert!(run.code == Some(1) && run.stderr.contains("404 Not Found': not an event stream"), "{}", run.stderr);
}

#[test]
fn receivers_leave_and_come_back_without_a_fault_or_a_stall() {
    let gateway = gateway().start();
    let url = rooms(&gateway);
    let words = ["fanout", "--url", &url, "-c", "60", "--rooms", "3", "--publishers", "2", "--churn", "200", "-d", "1", "--warmup", "0.2"];
    for pressure in [["--in-flight", "4"], ["--rate", "600"]] {
        let report = bench(&[&words[..], &pressure, &["--threads", "2", "--total-order", "--json"]].concat()).passed();
        let churned = number(&report["churned"]);
        assert!((100..=220).contains(&churned), "200 a second: {churned}");
        assert_eq!((number(&report["stalls"]), &report["churn"]), (0, &serde_json::json!(200.0)), "{report:#}");
        assert!(number(&report["deliveries"]) > 100, "{report:#}");
        assert_eq!(report["total_order"]["different"], 0, "among those that stayed");
    }
    let metrics = gateway.metrics();
    let upgraded = metrics.sum("shardcast_handshakes_total", &[("result", "upgraded")]) as u64;
    assert!((2 * 161..=2 * 310).contains(&upgraded), "60 clients, a look, and 100 to 240 that came back, twice: {upgraded}");
    gateway.wait_for_connections(0);
}

#[test]
fn who_cannot_come_back_fails_the_run() {
    // One look and ten clients; then the server takes nobody.
    let url = format!("ws://127.0.0.1:{}/", broadcaster(11, |_| 1));
    let run = bench(&["fanout", "--url", &url, "-c", "10", "--churn", "20", "-d", "1", "--warmup", "0", "--json"]);
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    let report = run.report();
    assert_eq!(number(&report["churned"]), 0);
    assert!(run.stderr.contains("left, and could not come back: no connection"), "{}", run.stderr);
    assert!(number(&report["deliveries"]) > 10, "nobody waits for those that are gone: {report:#}");
}

#[test]
fn echo_makes_round_trips_on_every_connection() {
    let gateway = gateway().start();
    let url = format!("ws://127.0.0.1:{}/echo", gateway.port);
    let report = bench(&["echo", "--url", &url, "-c", "10", "--in-flight", "2", "-d", "1", "--warmup", "0.1", "--json"]).passed();
    let (published, trips) = (number(&report["published"]), number(&report["deliveries"]));
    assert!(published > 10 && trips.abs_diff(published) <= 40, "{published} sent, {trips} came back");
}

#[test]
fn idle_holds_its_connections_and_answers_pings() {
    let gateway = gateway().limit("ping_interval_ms", 200).start();
    let (url, pid) = (rooms(&gateway), gateway.pid().to_string());
    let report = bench(&["idle", "--url", &url, "-c", "50", "-d", "1.5", "--json", "--server-pid", &pid]).passed();
    assert!(number(&report["pings"]) >= 50, "{report:#}");
    assert_eq!(report["ended"], serde_json::json!({}));
    assert!(report["server"]["pss_per_connection_bytes"].is_i64());
    gateway.wait_for_connections(0);
}

#[test]
fn storm_brings_everyone_back_each_time() {
    let gateway = gateway().start();
    for drop in ["rst", "fin"] {
        let report =
            bench(&["storm", "--url", &rooms(&gateway), "-c", "100", "--cycles", "2", "--drop", drop, "--threads", "2", "--json"]).passed();
        let cycles = report["cycles"].as_array().expect("an array");
        assert_eq!(cycles.iter().map(|cycle| number(&cycle["handshakes"])).collect::<Vec<_>>(), [100, 100, 100]);
        assert_eq!((number(&report["handshakes"]), number(&report["latency"]["count"])), (200, 200), "the first opening is no storm");
    }
    assert_eq!(
        gateway.metrics().sum("shardcast_handshakes_total", &[("result", "upgraded")]) as u64,
        2 * (300 + 1),
        "one look before each run"
    );
}

#[test]
fn in_a_storm_hints_are_obeyed_and_its_course_is_told() {
    // A burst of 50, and then 100 a second.
    let gateway = gateway().limit("handshakes_per_second", 100).limit("rate_burst_ms", 500).start();
    let mut refusals = Vec::new();
    for backoff in ["none", "full", "hints"] {
        let words = ["storm", "--url", &rooms(&gateway), "-c", "150", "--cycles", "1", "--backoff", backoff, "--threads", "2", "--json"];
        let report = bench(&words).passed();
        let curve = &report["cycles"][1]["curve"];
        let sum = |name: &str| curve[name].as_array().expect("an array").iter().map(number).sum::<u64>();
        assert_eq!((&report["backoff"], sum("lost"), sum("handshakes")), (&serde_json::json!(backoff), 150, 150));
        assert_eq!(sum("arrivals"), 150 + sum("refusals"), "{curve:#}");
        assert!(number(&curve["arrivals_max"]) >= 1 && curve["all_back_seconds"].as_f64() > Some(0.4), "{curve:#}");
        refusals.push(sum("refusals"));
    }
    let [none, full, hints] = refusals[..] else { unreachable!("three runs") };
    assert!(hints < none && full < none, "refusals: {refusals:?}");
}

#[test]
fn a_storm_can_be_the_servers_own() {
    let gateway = gateway().limit("reconnect_window_ms", 500).limit("drain_pace_ms", 300).start();
    let url = rooms(&gateway);
    let words = ["storm", "--url", &url, "-c", "100", "--cycles", "1", "--drop", "server", "--backoff", "hints", "--json"];
    let report = std::thread::scope(|scope| {
        let run = scope.spawn(|| bench(&words).passed());
        gateway.wait_for_connections(100);
        // The tool settles for 0.3 s before it waits for us.
        common::sleep_ms(600);
        let request = b"POST /rebalance?share=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_eq!(common::raw::http(gateway.admin, request).status, 200);
        run.join().expect("the run passes")
    });
    let curve = &report["cycles"][1]["curve"];
    let sum = |name: &str| curve[name].as_array().expect("an array").iter().map(number).sum::<u64>();
    assert_eq!(["lost", "arrivals", "handshakes", "refusals"].map(sum), [100, 100, 100, 0]);
    assert!(curve["all_back_seconds"].as_f64().is_some_and(|seconds| (0.1..3.0).contains(&seconds)), "{curve:#}");
}

#[test]
fn all_come_back_to_what_they_missed_while_watchers_read_on() {
    let gateway = gateway().start();
    let (url, events, pid) = (rooms(&gateway), events(&gateway), gateway.pid().to_string());
    let words = ["resume", "--url", &url, "--events", &events, "-c", "40", "--watchers", "10", "--cycles", "2"];
    for (more, behind) in
        [(&["--behind", "30", "--threads", "3", "--payload", "20000"][..], 30), (&["--behind", "99", "--concurrency", "8"], 99)]
    {
        let before = gateway.metrics().sum("shardcast_replayed_total", &[]) as u64;
        let report =
            bench(&[&words[..], more, &["--rate", "500", "-d", "0.5", "--warmup", "0.1", "--json", "--server-pid", &pid]].concat())
                .passed();
        let resume = &report["resume"];
        assert_eq!((number(&report["connections"]), number(&resume["watchers"]), number(&resume["behind"])), (40, 10, behind));
        assert_eq!((number(&resume["resumed"]), number(&resume["gaps"])), (80, 0));
        assert_eq!(report["checks"], serde_json::json!({ "lost": 0, "repeated": 0, "out_of_order": 0, "strayed": 0 }));
        for cycle in resume["cycles"].as_array().expect("an array") {
            let time = |name: &str| cycle[name].as_f64().expect("a time");
            assert!(time("first_seconds") <= time("median_seconds") && time("median_seconds") <= time("all_seconds"), "{report:#}");
            assert_eq!((number(&cycle["resumed"]), number(&cycle["given_up"]), &cycle["failed"]), (40, 0, &serde_json::json!({})));
        }
        // Two quiet phases of half a second, 500 messages a second, ten watchers; what is due at their edges may fall to either side.
        let quiet = number(&resume["watchers_before"]["count"]);
        assert!((4000..=12_000).contains(&quiet), "{report:#}");
        assert!(report["server"]["cpu_us_each"].is_number());
        assert_eq!(
            gateway.metrics().sum("shardcast_replayed_total", &[]) as u64 - before,
            80 * behind,
            "each got what it missed, and no more"
        );
    }
    gateway.wait_for_connections(0);
}

#[test]
fn who_comes_back_too_late_is_told_of_a_gap_and_fails_the_run() {
    let gateway = gateway().limit("history_messages", 5).start();
    let (url, events) = (rooms(&gateway), events(&gateway));
    let words =
        ["resume", "--url", &url, "--events", &events, "-c", "10", "--watchers", "2", "--behind", "20", "--cycles", "1", "-d", "0.2"];
    let run = bench(&[&words[..], &["--warmup", "0", "--json"]].concat());
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    let report = run.report();
    assert_eq!((number(&report["resume"]["gaps"]), number(&report["checks"]["lost"])), (10, 10 * 15), "{report:#}");
    assert_eq!(number(&report["resume"]["resumed"]), 10, "they have all that there is");
    assert!(run.stderr.contains("10 times a client was told of a gap") && run.stderr.contains("limits.history_messages"), "{}", run.stderr);
}

#[test]
fn a_resume_that_cannot_be_measured_says_why() {
    let gateway = gateway().limit("connections_max", 20).start();
    let (url, events) = (rooms(&gateway), events(&gateway));
    let words = ["resume", "--url", &url, "--events", &events, "--watchers", "1", "--cycles", "1", "-d", "0.2", "--warmup", "0"];
    let run = bench(&[&words[..], &["-c", "40"]].concat());
    // The gateway turns streams away in the stream, and publishers with a status: whom it meets first is a matter of turns.
    assert!(run.code == Some(1) && run.stderr.contains("503") && run.stdout.is_empty(), "{}{}", run.stdout, run.stderr);
    let run = bench(&["resume", "--url", &url, "-c", "4"]);
    assert!(run.code == Some(2) && run.stderr.contains("resume needs --events"), "{}", run.stderr);
}

#[test]
fn slow_readers_are_told_apart_from_healthy_ones() {
    let gateway = gateway().limit("queue_bytes_max", 64 << 10).limit("write_stall_ms", 300).limit("linger_ms", 500).start();
    let words = ["slow", "--url", &rooms(&gateway), "-c", "20", "--slow-percent", "10", "--payload", "32768", "--rate", "300"];
    let report = bench(&[&words[..], &["-d", "3", "--warmup", "0.2", "--json"]].concat()).passed();
    assert_eq!(number(&report["slow"]["readers"]), 2);
    let ended: u64 = report["slow"]["ended"].as_object().expect("an object").iter().map(|(_, count)| number(count)).sum();
    assert_eq!(ended, 2, "each slow reader's end is named: {report:#}");
    assert_eq!(gateway.closes(common::SLOW_CONSUMER), 2);
    assert_eq!(number(&report["checks"]["lost"]), 0);

    // A short pause costs nobody a message.
    let report = bench(&[&words[..7], &["--slow-pause", "0.1", "--rate", "50", "-d", "1", "--warmup", "0.2", "--json"]].concat()).passed();
    assert_eq!(report["slow"]["ended"], serde_json::json!({ "caught up": 2 }));
}

#[test]
fn a_drawing_is_written() {
    let gateway = gateway().start();
    let file = std::env::temp_dir().join(format!("shardcast-bench-{}.svg", std::process::id()));
    let path = file.to_str().expect("UTF-8");
    bench(&[
        "echo",
        "--url",
        &format!("ws://127.0.0.1:{}/echo", gateway.port),
        "-c",
        "2",
        "-d",
        "1",
        "--warmup",
        "0",
        "--json",
        "--plot",
        path,
    ])
    .passed();
    let svg = std::fs::read_to_string(&file).expect("it was written");
    let _ = std::fs::remove_file(&file);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.matches("<polyline").count() == 2);
}

#[test]
fn epoll_serves_where_io_uring_is_not_there() {
    let gateway = gateway().start();
    let binary = std::env::var("SHARDCAST_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_shardcast").to_owned());
    let status = Command::new(binary)
        .args(["bench", "fanout", "--url", &rooms(&gateway), "-c", "20", "-d", "0.5", "--warmup", "0.1", "--quiet"])
        .env("MONOIO_FORCE_LEGACY_DRIVER", "1")
        .stdout(Stdio::null())
        .status()
        .expect("the binary starts");
    assert!(status.success());
}

#[test]
fn errors_say_what_is_wrong() {
    let gateway = gateway().start();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound").port();
    for (url, code, says) in [
        (format!("ws://127.0.0.1:{closed}/"), 1, "cannot be reached"),
        (format!("ws://127.0.0.1:{}/nowhere", gateway.port), 1, "HTTP/1.1 404 Not Found"),
        (format!("wss://127.0.0.1:{}/", gateway.port), 2, "TLS"),
    ] {
        let run = bench(&["echo", "--url", &url, "-d", "1"]);
        assert_eq!(run.code, Some(code), "{url}");
        assert!(run.stderr.contains(says) && run.stderr.starts_with("shardcast: "), "{url}: {}", run.stderr);
    }
    let run = bench(&["fanout", "--url", &rooms(&gateway), "-c", "3000000"]);
    assert!(run.code == Some(1) && run.stderr.contains("3000064 file descriptors"), "{}", run.stderr);
}

/// A server of one room that treats the deliveries by their number, counted over all clients. It takes so many clients, and then listens no more.
fn broadcaster(clients: usize, treat: fn(u32) -> usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let members: Arc<Mutex<Vec<Sender<Message>>>> = Arc::default();
    let number = Arc::new(AtomicU32::new(0));
    // Threads end with their sockets, and with the test process at the latest.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(clients) {
            let (members, number) = (members.clone(), number.clone());
            std::thread::spawn(move || {
                let Ok(mut socket) = tungstenite::accept(stream) else { return };
                let (sender, inbox) = channel();
                members.lock().expect("no panic holds it").push(sender);
                // Short waits: a thread takes turns at reading what its client says and writing what the others said.
                socket.get_ref().set_read_timeout(Some(Duration::from_millis(1))).expect("a time above zero");
                loop {
                    match socket.read() {
                        Ok(message @ (Message::Binary(_) | Message::Text(_))) => {
                            for member in members.lock().expect("no panic holds it").iter() {
                                for _ in 0..treat(number.fetch_add(1, Ordering::Relaxed) + 1) {
                                    let _ = member.send(message.clone());
                                }
                            }
                        }
                        Ok(_) => {}
                        Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                    for message in inbox.try_iter() {
                        if socket.send(message).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    port
}

#[test]
fn a_server_that_loses_or_repeats_messages_fails_the_checks() {
    for (treat, fault) in [
        ((|number| usize::from(!number.is_multiple_of(50))) as fn(u32) -> usize, "lost"),
        (|number| 1 + usize::from(number.is_multiple_of(50)), "repeated"),
    ] {
        let url = format!("ws://127.0.0.1:{}/", broadcaster(usize::MAX, treat));
        let words = ["fanout", "--url", &url, "-c", "5", "--in-flight", "4", "-d", "1", "--warmup", "0.2", "--json"];
        let run = bench(&words);
        assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
        let report = run.report();
        assert!(number(&report["checks"][fault]) > 0, "{report:#}");
        let other = if fault == "lost" { "repeated" } else { "lost" };
        assert_eq!(number(&report["checks"][other]), 0, "{report:#}");
        assert_eq!(number(&report["stalls"]), 0, "a loss does not stop the closed loop: {report:#}");
        assert!(number(&report["deliveries"]) > 100, "{report:#}");
        assert!(run.stderr.contains("messages"), "{}", run.stderr);
    }
    // A loss is found also while receivers come and go.
    let url = format!("ws://127.0.0.1:{}/", broadcaster(usize::MAX, |number| usize::from(!number.is_multiple_of(50))));
    let words = ["fanout", "--url", &url, "-c", "10", "--rate", "500", "--churn", "20", "-d", "1", "--warmup", "0.2", "--json"];
    let run = bench(&words);
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    assert!(number(&run.report()["checks"]["lost"]) > 0 && number(&run.report()["churned"]) > 0, "{}", run.stdout);
    // And the same server without a fault passes.
    let url = format!("ws://127.0.0.1:{}/", broadcaster(usize::MAX, |_| 1));
    bench(&["fanout", "--url", &url, "-c", "5", "--in-flight", "4", "-d", "1", "--warmup", "0.2", "--json"]).passed();
}
