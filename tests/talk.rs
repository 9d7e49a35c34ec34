//! `shardcast pub` and `shardcast sub`, as a terminal and a script have them.
#![allow(clippy::disallowed_methods, reason = "tests stand outside: real time")]

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use common::{Gateway, SOON, gateway, now, raw};
use hostile::Proxy;
use serde_json::{Value, json};

fn url(gateway: &Gateway) -> String {
    format!("ws://127.0.0.1:{}", gateway.port)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(common::binary());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to its end: exit code, stdout, stderr.
fn run(words: &[&str], input: &[u8]) -> (i32, String, String) {
    let mut child = command(words).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // Who ends early does not take all of it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let Output { status, stdout, stderr } = child.wait_with_output().expect("our child");
    writer.join().expect("no panic");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("no signal ended it"), text(stdout), text(stderr))
}

/// How many a topic has; of its own name alone.
fn subscribers(gateway: &Gateway, topic: &str) -> u64 {
    let page = raw::http(gateway.port, format!("GET /v1/topics?prefix={topic} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).text();
    let page: Value = serde_json::from_str(&page).expect("JSON");
    page["topics"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|entry| entry["topic"] == topic)
        .filter_map(|entry| entry["subscribers"].as_u64())
        .sum()
}

/// One that runs, and its lines as they come.
struct Running {
    child: Child,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (say, lines) = mpsc::channel();
    std::thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
    lines
}

impl Running {
    fn start(words: &[&str]) -> Self {
        Self::of(command(words))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let (out, err) = (lines(child.stdout.take().expect("a pipe")), lines(child.stderr.take().expect("a pipe")));
        Self { child, out, err }
    }

    /// `sub`, once all its topics have their places.
    fn sub(gateway: &Gateway, words: &[&str]) -> Self {
        let topics = || words.iter().filter(|word| !word.contains("://") && !word.starts_with('-'));
        let before: Vec<u64> = topics().map(|topic| subscribers(gateway, topic)).collect();
        let running = Self::start(&[&["sub"], words].concat());
        for (topic, before) in topics().zip(before) {
            common::eventually(SOON, || match subscribers(gateway, topic) {
                now if now > before => Ok(()),
                now => Err(format!("{topic} has {now} subscribers")),
            });
        }
        running
    }

    fn line(&self) -> String {
        self.out.recv_timeout(SOON).expect("a line")
    }

    fn complaint(&self) -> String {
        self.err.recv_timeout(SOON).expect("a line on stderr")
    }

    fn interrupt(&self) {
        // SAFETY: the child is ours and not yet waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) }, 0);
    }

    fn exit(mut self) -> i32 {
        let deadline = now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.code().expect("no signal ended it");
            }
            assert!(now() < deadline, "it does not end");
            common::sleep_ms(5);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_published_is_printed_a_line_each_until_ctrl_c() {
    let gateway = gateway().start();
    let url = url(&gateway);
    let sub = Running::sub(&gateway, &[&url, "lobby"]);
    let json = Running::sub(&gateway, &[&url, "lobby", "other", "--json"]);
    let (code, receipt, _) = run(&["pub", &url, "lobby", "hello there", "--receipts"], b"");
    let receipt: Value = serde_json::from_str(&receipt).expect("a receipt");
    assert_eq!((code, &receipt["subscribers"]), (0, &json!(2)));
    assert_eq!(
        run(&["pub", &url, "lobby", "--event", "news"], b"two\r\n{\"n\":1}\n\n\xff\0\nno newline"),
        (0, String::new(), String::new())
    );
    let expected = ["hello there", "two\\r", "{\"n\":1}", "", "/wA=", "no newline"];
    assert_eq!(expected.map(|_| sub.line()), expected);
    let objects = expected.map(|_| serde_json::from_str::<Value>(&json.line()).expect("an object"));
    assert_eq!(objects[0], json!({"topic": "lobby", "pos": receipt["pos"], "data": "hello there"}));
    let data: Vec<&Value> = objects[1..].iter().map(|object| object.get("data").unwrap_or(&object["data_b64"])).collect();
    assert_eq!(data, [&json!("two\r"), &json!({"n": 1}), &json!(""), &json!("/wA="), &json!("no newline")]);
    assert!(objects[1..].iter().all(|object| object["event"] == "news"));
    for running in [sub, json] {
        running.interrupt();
        assert_eq!(running.exit(), 0);
    }
    gateway.wait_for_closes("client_closed", 4);
}

#[test]
fn a_subscription_begins_where_it_is_told_and_ends_after_so_many() {
    let gateway = gateway().start();
    let url = url(&gateway);
    let input: String = (0..10).map(|number| format!("{number}\n")).collect();
    let (code, receipts, _) = run(&["pub", &url, "a", "--receipts"], input.as_bytes());
    let positions: Vec<Value> = receipts.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["pos"].clone()).collect();
    assert_eq!((code, positions.len()), (0, 10));
    let sub = |words: &[&str]| {
        let (code, out, err) = run(&[&["sub", &url, "a", "-n", "3"], words].concat(), b"");
        assert_eq!((code, &*err), (0, ""), "{words:?}");
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sub(&["--last", "3"]), ["7", "8", "9"]);
    assert_eq!(sub(&["--after", "earliest"]), ["0", "1", "2"]);
    assert_eq!(sub(&["--after", "-5m"]), ["0", "1", "2"]);
    assert_eq!(sub(&["--after", positions[4].as_str().expect("a position")]), ["5", "6", "7"]);
    let (code, out, err) = run(&["sub", &url, "a", "-n", "1", "--after", "a.5", "--json"], b"");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((code, &*err, &lines[0]["gap"]["reason"], &lines[1]["data"]), (0, "", &json!("restart"), &json!("0")));
    let (_, out, err) = run(&["sub", &url, "a", "-n", "1", "--after", "a.5"], b"");
    assert!(out == "0\n" && err.contains("messages of a after a.5") && err.contains("missing (restart)"), "{out}{err}");
    let (_, out, _) = run(&["sub", &url, "a", "b", "-n", "1", "--last", "1"], b"");
    assert_eq!(out, "a\t9\n");
}

#[test]
fn a_star_at_the_end_means_all_topics_that_begin_so_unless_it_is_literal() {
    let gateway = gateway().env("SHARDCAST_WILDCARDS", "true").limit("reconnect_window_ms", 100).start();
    let url = url(&gateway);
    let proxy = Proxy::before(gateway.port, common::seed());
    let publish = |topic: &str, text: &str| assert_eq!(run(&["pub", &url, topic, text], b"").0, 0);
    publish("prices.1", "before");
    let (sub, json) = (Running::start(&["sub", &proxy.url(), "prices.*"]), Running::start(&["sub", &url, "prices.*", "news", "--json"]));
    common::eventually(SOON, || if subscribers(&gateway, "prices.1") == 2 { Ok(()) } else { Err("it does not come".to_owned()) });
    for (topic, text) in [("prices.1", "one"), ("prices.2", "two"), ("news", "three")] {
        publish(topic, text);
        let object: Value = serde_json::from_str(&json.line()).expect("an object");
        assert_eq!((&object["topic"], &object["data"]), (&json!(topic), &json!(text)));
    }
    assert_eq!([sub.line(), sub.line()], ["prices.1\tone", "prices.2\ttwo"]);
    proxy.cut();
    publish("prices.2", "four");
    assert_eq!(sub.line(), "prices.2\tfour");
    let literal = Running::sub(&gateway, &[&url, "prices.*", "--literal"]);
    publish("prices.*", "five");
    assert_eq!((literal.line(), sub.line()), ("five".to_owned(), "prices.*\tfive".to_owned()));
    let none = common::gateway().start();
    let (code, _, err) = run(&["sub", &format!("ws://127.0.0.1:{}", none.port), "prices.*"], b"");
    assert!(code == 1 && err.contains("prices.*: ") && err.contains("no_wildcards") && err.contains("`wildcards`"), "{err}");
}

#[test]
fn who_is_there_is_told_where_it_is_asked_for() {
    let gateway = gateway().env("SHARDCAST_PRESENCE", "lobby").limit("presence_tick_ms", 20).start();
    let url = url(&gateway);
    let sub = Running::start(&["sub", &format!("{url}?user=anna"), "lobby", "--presence"]);
    let first = sub.complaint();
    assert!(first.starts_with("shardcast: 1 are in lobby: anna (") && first.ends_with(')'), "{first}");
    let json = Running::start(&["sub", &url, "lobby", "--presence", "--json"]);
    let roster: Value = serde_json::from_str(&json.line()).expect("an object");
    let members = roster["presence"]["members"].as_array().expect("a list");
    assert_eq!(
        (&roster["topic"], &roster["presence"]["count"], &roster["presence"]["scope"]),
        (&json!("lobby"), &json!(2), &json!("node"))
    );
    assert!(members.len() == 2 && members.iter().any(|member| member["user"] == "anna" && member["conn"].is_string()), "{roster}");
    // Who is there already may be named again before.
    while !sub.complaint().ends_with(" came to lobby, 2 are there") {}
    sub.interrupt();
    let left: Value = loop {
        let line: Value = serde_json::from_str(&json.line()).expect("an object");
        if line.get("leave").is_some() {
            break line;
        }
    };
    assert_eq!((&left["leave"]["count"], &left["leave"]["members"][0]["user"]), (&json!(1), &json!("anna")));
    assert_eq!(sub.exit(), 0);
    let (code, _, err) = run(&["sub", &url, "other", "--presence"], b"");
    assert!(code == 1 && err.contains("no_presence") && err.contains("`presence`"), "{err}");
}

#[test]
fn lines_are_published_in_order_without_a_round_trip_for_each() {
    const LINES: usize = 2000;
    let gateway = gateway().limit("history_messages", 10_000).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    proxy.weather(|weather| weather.lag = Some(Duration::from_millis(20)));
    let input: String = (0..LINES).map(|number| format!("line {number}\n")).collect();
    let began = now();
    let (code, _, err) = run(&["pub", &proxy.url(), "a"], input.as_bytes());
    let took = began.elapsed();
    assert_eq!((code, &*err), (0, ""));
    assert!(took < Duration::from_millis(20) * LINES as u32 / 4, "{LINES} lines with 20 ms each way took {took:?}");
    let (_, out, _) = run(&["sub", &url(&gateway), "a", "--after", "earliest", "-n", &LINES.to_string()], b"");
    assert!(out == input, "all lines, in order, once");
}

#[test]
fn a_connection_that_is_lost_is_said_and_nothing_is_missed() {
    let gateway = gateway().limit("reconnect_window_ms", 100).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let sub = Running::sub(&gateway, &[&proxy.url(), "a"]);
    for number in ["0", "1", "2"] {
        proxy.cut();
        assert_eq!(run(&["pub", &url(&gateway), "a", number], b"").0, 0);
        assert_eq!(sub.line(), number);
        let said = sub.complaint();
        assert!(said.starts_with("shardcast: ") && said.contains("back in"), "{said}");
    }
}

#[test]
fn an_interrupt_ends_reading_and_what_was_read_is_published() {
    let gateway = gateway().start();
    let mut command = command(&["pub", &url(&gateway), "a", "--receipts"]);
    command.stdin(Stdio::piped());
    let mut publisher = Running::of(command);
    let mut stdin = publisher.child.stdin.take().expect("a pipe");
    stdin.write_all(b"one\ntwo\n").expect("it reads");
    assert!(publisher.line().contains("pos") && publisher.line().contains("pos"));
    publisher.interrupt();
    assert_eq!(publisher.exit(), 0, "stdin is still open");
    drop(stdin);
    assert_eq!(run(&["sub", &url(&gateway), "a", "--last", "9", "-n", "2"], b"").1, "one\ntwo\n");
}

#[test]
fn who_has_seen_enough_ends_it() {
    let gateway = gateway().start();
    let mut sub = Running::sub(&gateway, &[&url(&gateway), "a"]);
    // Nobody reads its lines any more.
    sub.out = mpsc::channel().1;
    let publish = || run(&["pub", &url(&gateway), "a"], b"one\ntwo\nthree\n").0;
    common::eventually(SOON, || {
        assert_eq!(publish(), 0);
        if sub.child.try_wait().expect("our child").is_some() { Ok(()) } else { Err("it goes on".to_owned()) }
    });
    assert_eq!(sub.exit(), 0);
}

#[test]
fn what_the_gateway_does_not_take_is_said_with_its_line_and_the_others_are_published() {
    let gateway = gateway().start();
    let url = url(&gateway);
    let input = format!("one\n{}\nthree\n", "z".repeat(70_000));
    let (code, _, err) = run(&["pub", &url, "a"], input.as_bytes());
    assert!(
        code == 1 && err.contains("line 2: ") && err.contains("70000") && err.contains("65536") && err.contains("1 of 3 lines"),
        "{err}"
    );
    assert_eq!(run(&["sub", &url, "a", "--last", "9", "-n", "2"], b"").1, "one\nthree\n");
    let (code, _, err) = run(&["sub", &url, &"t".repeat(300)], b"");
    assert!(code == 1 && err.contains("bad_request"), "{err}");
    let (code, _, err) = run(&["pub", "ws://127.0.0.1:1", "a", "x", "--tries", "2"], b"");
    assert!(code == 1 && err.contains("127.0.0.1:1") && err.contains("2 tries"), "{err}");
    let (code, _, err) = run(&["pub", "ws://127.0.0.1:1", "a", "x", "--within", "1"], b"");
    assert!(code == 1 && err.contains("no answer within 1s") && err.contains("not published"), "{err}");
}

#[test]
fn wrong_words_are_usage_errors_that_say_what_is_wrong() {
    for (words, why) in [
        (&["sub"][..], "TOPIC"),
        (&["sub", "ws://127.0.0.1:1"], "topic is missing"),
        (&["sub", "tcp://127.0.0.1:1", "a"], "scheme"),
        (&["sub", "a", "--after", "yesterday"], "k3f9.1042"),
        (&["sub", "a", "b", "--after", "k3f9.7"], "one topic"),
        (&["sub", "a", "--after", "k3f9.7", "--last", "1"], "cannot be used with"),
        (&["sub", "a.*", "--last", "1"], "--literal"),
        (&["sub", "a.*", "--presence"], "--literal"),
        (&["pub"], "TOPIC"),
        (&["pub", "a", "two", "words"], "quote"),
        (&["pub", "a", "--in-flight", "0"], "in-flight"),
    ] {
        let (code, out, err) = run(words, b"");
        assert!(code == 2 && out.is_empty() && err.contains(why), "{words:?}: {code} {err}");
    }
    for words in [["sub", "--help"], ["pub", "--help"]] {
        let (code, out, _) = run(&words, b"");
        assert!(code == 0 && out.contains("Examples:") && out.contains("Exit codes:"), "{out}");
    }
}
