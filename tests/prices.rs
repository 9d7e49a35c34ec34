//! The example of live prices (examples/prices.rs), into a real gateway: an event stream has each price, in order.

mod common;
#[path = "../examples/prices.rs"]
mod prices;

use std::time::Duration;

use common::{events, gateway};

#[test]
fn an_event_stream_has_each_price_in_order() {
    let gateway = gateway().start();
    let mut reader = events::open(gateway.port, "/events?topic=prices");
    prices::run(&format!("127.0.0.1:{}", gateway.port), 20, Duration::from_millis(5)).expect("the gateway takes them");
    let expected: Vec<(String, String)> =
        (0..20).map(|n| ("price".to_owned(), format!("{{\"metal\":\"gold\",\"price\":4123.{:02}}}", n * 7 % 100))).collect();
    let seen: Vec<(String, String)> = (0..20).map(|_| reader.event()).map(|event| (event.name, event.data)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_gateway_that_is_away_is_an_error() {
    // A port that nobody has.
    let error = prices::run("127.0.0.1:1", 20, Duration::from_millis(5)).expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
