//! Plain HTTP on the client port and on the admin port: the few pages there are, connections kept alive, requests in pieces.

mod common;

use common::raw::{self, End, Raw};
use common::{SOON, gateway, sleep_ms};
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
