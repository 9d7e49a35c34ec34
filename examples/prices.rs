//! Live prices: a feed publishes to a bus in this process, and one subscriber takes them to a gateway, where browsers have them as an event stream.
//!
//! ```sh
//! shardcast &
//! cargo run --example prices -- 127.0.0.1:8080
//! curl -N '127.0.0.1:8080/events?topic=prices'
//! ```
//!
//! When the gateway is slow the newest prices are the ones that count: the queue between has room for a few, and drops the oldest. tests/prices.rs checks what comes out.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use shardcast::events::{Bus, Lag, SubscribeOptions, Subscription};

/// The price of a metal, in cents.
#[derive(Clone, Debug)]
pub struct Price {
    /// `gold`.
    pub metal: &'static str,
    /// Hundredths of a dollar per ounce.
    pub cents: u32,
}

/// A connection to a gateway that publishes, one request after the other.
struct Publisher {
    host: String,
    stream: BufReader<TcpStream>,
}

impl Publisher {
    fn connect(host: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        Ok(Self { host: host.to_owned(), stream: BufReader::new(stream) })
    }

    /// `POST /publish`: the body is the message, `event` what an `EventSource` listens for.
    fn publish(&mut self, topic: &str, event: &str, body: &str) -> io::Result<()> {
        let request = format!(
            "POST /publish?topic={topic}&event={event} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if line.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(format!("the gateway has answered {:?}", line.trim_end())));
        }
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().map_err(io::Error::other)?,
                Some(_) => {}
            }
        }
        self.stream.read_exact(&mut vec![0; length])
    }
}

/// Takes prices to the gateway until the bus is gone.
fn forward(mut prices: Subscription<Price>, host: &str) -> io::Result<()> {
    let mut publisher = Publisher::connect(host)?;
    while let Ok(Price { metal, cents }) = prices.recv_blocking() {
        let body = format!("{{\"metal\":\"{metal}\",\"price\":{}.{:02}}}", cents / 100, cents % 100);
        publisher.publish("prices", "price", &body)?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "no shard: a feed that waits for the next second")]
fn pause(time: Duration) {
    thread::sleep(time);
}

/// Publishes so many prices, one `every` so often.
pub fn run(host: &str, count: u32, every: Duration) -> io::Result<()> {
    let bus = Bus::new();
    let newest = SubscribeOptions { queue_messages: 16, lag: Lag::DropOldest, name: Some("gateway".into()) };
    let prices = bus.subscribe_with("prices", newest).map_err(io::Error::other)?;
    let forwarder = {
        let host = host.to_owned();
        thread::spawn(move || forward(prices, &host))
    };
    for n in 0..count {
        let published = bus.publish("prices", Price { metal: "gold", cents: 412_300 + n * 7 % 100 });
        for lagged in published.lagged {
            eprintln!("{} is behind, and has missed {} prices", lagged.name.as_deref().unwrap_or("somebody"), lagged.missed);
        }
        if forwarder.is_finished() {
            break;
        }
        pause(every);
    }
    drop(bus);
    forwarder.join().map_err(|_| io::Error::other("the forwarder has panicked"))?
}

#[allow(dead_code, reason = "the test calls run")]
fn main() -> io::Result<()> {
    let host = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    run(&host, u32::MAX, Duration::from_secs(1))
}
