//! Plain HTTP on the client port and on the admin port: the few pages there are, connections kept alive, requests in pieces.

mod common;

use common::raw::{self, End, Raw};
use common::{SLOW_CONSUMER, SOON, gateway, sleep_ms};
use std::time::Duration;

const GET_HEALTHZ: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn healthz_answers_200_on_both_ports() {
    let gateway = gateway().start();
    for port in [gateway.port, gateway.admin] {
        let response = raw::http(port, GET_HEALTHZ);
        assert_eq!(response.status, 200, "{response:?}");
        assert!(response.header("content-length").is_some(), "{response:?}");
    }
}

#[test]
fn the_page_is_html_that_is_never_stale() {
    let gateway = gateway().start();
    let response = raw::http(gateway.port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(response.status, 200);
    assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{:?}", response.headers);
    let page = response.text();
    for part in ["id=\"send\"", "id=\"text\"", "id=\"room\"", "id=\"log\"", "id=\"state\""] {
        assert!(page.contains(part), "the page has no element with {part}");
    }
}

#[test]
fn the_page_may_run_and_ask_nothing_but_its_own_gateway() {
    let gateway = gateway().start();
    let response = raw::http(gateway.port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let policy = response.header("content-security-policy").expect("a policy");
    for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.split("; ").any(|found| found == rule), "{policy} has no {rule}");
    }
    let page = response.text();
    assert!(!page.contains("://") && !page.contains(" style=") && !page.contains("<style"), "{page}");
}

#[test]
fn files_for_browsers_are_asked_for_each_time_and_sent_when_they_have_changed() {
    let gateway = gateway().start();
    for (path, kind, shared) in [
        ("/", "text/html", None),
        ("/page.css", "text/css", None),
        ("/page.js", "text/javascript", None),
        ("/shardcast.js", "text/javascript", Some("*")),
        ("/shardcast.d.ts", "text/plain", Some("*")),
    ] {
        let ask = |known: &str| raw::http(gateway.port, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{known}\r\n").as_bytes());
        let first = ask("");
        assert_eq!(first.status, 200, "{path}");
        assert!(first.header("content-type").is_some_and(|found| found.starts_with(kind)), "{path}: {:?}", first.headers);
        assert_eq!(first.header("cache-control"), Some("no-cache"), "{path}");
        assert_eq!(first.header("access-control-allow-origin"), shared, "{path}");
        let tag = first.header("etag").expect("a tag");
        for known in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let again = ask(&format!("If-None-Match: {known}\r\n"));
            assert_eq!((again.status, again.header("etag")), (304, Some(tag)), "{path} {known}");
        }
        assert_eq!(ask("If-None-Match: \"x\"\r\n").status, 200, "{path}");
    }
}

#[test]
fn metrics_are_on_the_admin_port_and_not_for_clients() {
    let gateway = gateway().start();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let response = raw::http(gateway.admin, request);
    assert_eq!(response.status, 200);
    let kind = response.header("content-type").expect("a content type");
    assert!(kind.starts_with("application/openmetrics-text") || kind.starts_with("text/plain"), "{kind}");
    assert!(response.text().contains("shardcast_"));
    assert_eq!(raw::http(gateway.port, request).status, 404);
}

#[test]
fn the_metrics_name_the_driver_that_runs() {
    let gateway = gateway().start();
    assert_eq!(gateway.metrics().sum("shardcast_driver_info", &[("driver", &gateway.driver)]), 1.0);
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let gateway = gateway().start();
    for path in ["/healthz", "/"] {
        let get = raw::http(gateway.port, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let mut raw = Raw::connect(gateway.port);
        raw.write(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let head = raw.response_to("HEAD");
        assert_eq!((head.status, head.header("content-length")), (get.status, get.header("content-length")), "{path}");
        // Whatever follows the head of a HEAD answer would be read as the next answer.
        raw.write(GET_HEALTHZ);
        assert_eq!(raw.response().status, 200, "{path}");
    }
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    for _ in 0..3 {
        raw.write(GET_HEALTHZ);
        assert_eq!(raw.response().status, 200);
    }
}

#[test]
fn an_http_client_upgrades_on_a_connection_that_it_used_before() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(GET_HEALTHZ);
    assert_eq!(raw.response().status, 200);
    raw.write(raw::upgrade("/echo", "").as_bytes());
    raw.expect_upgraded();
    raw.send_text("after all");
    raw.expect_text("after all");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(&[GET_HEALTHZ, b"GET /nothing-here HTTP/1.1\r\nHost: localhost\r\n\r\n", GET_HEALTHZ].concat());
    let statuses = [raw.response().status, raw.response().status, raw.response().status];
    assert_eq!(statuses, [200, 404, 200]);
}

#[test]
fn connection_close_is_honoured() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(raw.response().status, 200);
    assert_eq!(raw.end_within(SOON), End::Eof);
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(b"GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(raw.response().status, 200);
    assert_eq!(raw.end_within(SOON), End::Eof);
}

#[test]
fn an_idle_connection_is_closed_after_keepalive_ms() {
    let gateway = gateway().limit("keepalive_ms", 400).start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(GET_HEALTHZ);
    assert_eq!(raw.response().status, 200);
    assert_eq!(raw.end_within(Duration::from_millis(200)), End::Open, "closed before its time");
    assert_eq!(raw.end_within(Duration::from_secs(4)), End::Eof);
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    for byte in GET_HEALTHZ {
        raw.write(&[*byte]);
        sleep_ms(1);
    }
    assert_eq!(raw.response().status, 200);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_head_costs_nothing() {
    // A reset that came together with the last bytes is not always told by a multishot receive (Linux 6.18: its hint of what is left in the socket counts a FIN
    // and not a RST); such a client is gone when its head is overdue.
    let gateway = gateway().limit("head_timeout_ms", 1000).start();
    let before = gateway.descriptors();
    for at in [0, 1, 5, GET_HEALTHZ.len() - 1] {
        for reset in [false, true] {
            let mut raw = Raw::connect(gateway.port);
            raw.write(&GET_HEALTHZ[..at]);
            sleep_ms(5);
            if reset {
                raw.reset();
            }
        }
    }
    common::eventually(SOON, || match gateway.descriptors() {
        after if after <= before => Ok(()),
        after => Err(format!("{after} descriptors are open, {before} were before")),
    });
    assert_eq!(raw::http(gateway.port, GET_HEALTHZ).status, 200);
}

/// Requests of 1 KiB, so that what the kernel holds is few of them; every second one asks for a path that its answer names.
const REQUEST_BYTES: usize = 1024;

fn numbered_request(number: usize) -> Vec<u8> {
    let path = if number.is_multiple_of(2) { "/".to_owned() } else { format!("/n-{number}") };
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Pad: ").into_bytes();
    request.resize(REQUEST_BYTES - 4, b'x');
    request.extend_from_slice(b"\r\n\r\n");
    request
}

/// One client pipelined requests and read no answer. Each answer was queued in memory and the next request read: 400 MiB for 3 MiB of
/// requests, until the process's mark of queued bytes cut others, who had done nothing.
#[test]
fn pipelined_requests_whose_answers_nobody_reads_are_not_read() {
    const OFFERED: usize = 16 << 20;
    let gateway = gateway().start();
    let mut raw = Raw::connect_with_small_buffers(gateway.port);
    let before = gateway.pss_bytes();
    let taken = raw.write_until_blocked((0..).map(numbered_request), Duration::from_millis(700), OFFERED);
    let grown = gateway.pss_bytes().saturating_sub(before);
    assert!(taken < OFFERED / 2, "{taken} bytes of requests were taken from a client that reads no answer");
    assert!(grown < 6 << 20, "{grown} bytes for one client that reads no answer to {taken} bytes of requests");

    // It reads, and finds every answer, in order; the request that was cut off is finished, and one more is answered as ever.
    let (whole, cut_off) = (taken / REQUEST_BYTES, taken % REQUEST_BYTES);
    for number in 0..=whole {
        if number == whole {
            raw.write(&numbered_request(number)[cut_off..]);
        }
        let response = raw.response();
        if number.is_multiple_of(2) {
            assert_eq!(response.status, 200, "answer {number} of {whole}");
        } else {
            assert_eq!(response.status, 404, "answer {number} of {whole}");
            assert!(response.text().contains(&format!("nothing at /n-{number};")), "answer {number} is {}", response.text());
        }
    }
    raw.write(GET_HEALTHZ);
    assert_eq!(raw.response().text(), "ok\n");
}

/// The same client, and it never read again. HTTP connections had no stall timer: it kept its place and its memory until keepalive_ms, and with
/// one more request now and then for ever.
#[test]
fn a_client_that_never_reads_its_answers_is_cut_after_write_stall_ms() {
    let gateway = gateway().limit("write_stall_ms", 500).limit("linger_ms", 300).start();
    let before = gateway.descriptors();
    let mut raw = Raw::connect_with_small_buffers(gateway.port);
    raw.write_until_blocked((0..).map(numbered_request), Duration::from_millis(700), 4 << 20);
    gateway.wait_for_closes(SLOW_CONSUMER, 1);
    common::eventually(SOON, || match gateway.descriptors() {
        after if after <= before => Ok(()),
        after => Err(format!("{after} descriptors are open, {before} were before the client")),
    });
}

/// Error answers to HEAD carried their JSON body. A client that kept the connection took it for the head of its next answer.
#[test]
fn errors_answered_to_head_have_a_length_and_no_body() {
    let gateway = gateway().start();
    let upgrade = raw::upgrade("/ws?room=a&room=b", "").replacen("GET", "HEAD", 1);
    let cases = [
        ("HEAD /nope HTTP/1.1\r\nHost: localhost\r\n\r\n", &[404][..]),
        ("HEAD /ws HTTP/1.1\r\nHost: localhost\r\n\r\n", &[405, 426]),
        ("HEAD /echo HTTP/1.1\r\nHost: localhost\r\n\r\n", &[405, 426]),
        (&upgrade, &[400, 405]),
    ];
    for (request, statuses) in cases {
        let mut raw = Raw::connect(gateway.port);
        raw.write(&[request.as_bytes(), GET_HEALTHZ].concat());
        let head = raw.response_to("HEAD");
        assert!(statuses.contains(&head.status), "{request}: {head:?}");
        let length: usize = head.header("content-length").and_then(|length| length.parse().ok()).expect("a length");
        assert!(length > 0, "the length is that of the body which GET would get: {head:?}");
        assert_eq!(raw.response().text(), "ok\n", "{request}: what follows is the next answer");
    }
    // The length is the one that GET is told.
    let mut raw = Raw::connect(gateway.port);
    raw.write(b"HEAD /nope HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, get) = (raw.response_to("HEAD"), raw.response());
    assert_eq!(head.header("content-length"), get.header("content-length"));
    assert_eq!(get.header("content-length"), Some(get.body.len().to_string().as_str()));
}

/// A HEAD without Host is answered 400 before it is anybody's request; its body went out too.
#[test]
fn a_malformed_head_request_is_answered_400_without_a_body() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(b"HEAD / HTTP/1.1\r\n\r\n");
    let head = raw.response_to("HEAD");
    assert_eq!(head.status, 400, "{head:?}");
    assert!(head.header("content-length").is_some_and(|length| length != "0"), "{head:?}");
    assert_eq!(raw.end_within(SOON), End::Eof);
    assert!(raw.unread().is_empty(), "a body came: {:?}", String::from_utf8_lossy(raw.unread()));
}
