//! A pipeline of orders, over the durable bus: created, then paid or cancelled; billing shares the work as a group, and what it cannot handle ends as a dead letter.
//!
//! ```sh
//! nats-server -js &
//! cargo run --example orders -- nats://127.0.0.1:4222
//! ```
//!
//! Start it again while it runs: both have a part of the orders, each order's events in their order. What it does is checked by tests/event_bus.

use std::collections::HashMap;
use std::error::Error;

use serde::{Deserialize, Serialize};
use shardcast::events::event_bus::{DeadLetter, Event, Options, Received, Terms};
use shardcast::events::{EventBus, event_bus::PublishError};
use tokio::sync::mpsc;

/// What happens to an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is there.
    Created {
        /// What is to be paid, in cents.
        cents: i64,
    },
    /// The money has come.
    Paid,
    /// Nobody wants it any more.
    Cancelled,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Says what has happened: `orders.created`, `orders.paid`, `orders.cancelled`. An order's events have its number as their key, which keeps their order.
pub async fn announce(bus: &EventBus, order: &str, change: Change) -> Result<(), PublishError> {
    let event = Event::new(format!("order.{}", change.word()), "shop", change).with_key(order);
    bus.publish(&format!("orders.{}", change.word()), &event)
        .await
        .map(|receipt| println!("{order}: {change:?} is event {}", receipt.sequence))
}

/// What billing makes of one event. An error has it come again later, and in the end it is a dead letter.
fn bill(change: Change) -> Result<&'static str, String> {
    match change {
        Change::Created { cents } if cents <= 0 => Err(format!("an order of {cents} cents cannot be billed")),
        Change::Created { .. } => Ok("invoice written"),
        Change::Paid => Ok("invoice closed"),
        Change::Cancelled => Ok("invoice withdrawn"),
    }
}

/// Announces some orders, one of which cannot be billed, and bills them. Returns what was done for each order, in its order, and what is dead.
pub async fn run(
    servers: &str,
    options: Options,
    terms: Terms,
) -> Result<(HashMap<String, Vec<&'static str>>, Vec<DeadLetter>), Box<dyn Error>> {
    let bus = EventBus::connect(servers, options).await?;
    let (done, mut billed) = mpsc::unbounded_channel();
    let billing = bus
        .subscribe_group("orders.*", "billing", terms, move |received: Received<Change>| {
            let (done, Event { key, payload, .. }) = (done.clone(), received.event);
            async move {
                let what = bill(payload)?;
                let _ = done.send((key.unwrap_or_default(), what));
                Ok::<(), String>(())
            }
        })
        .await?;

    let created = |cents| Change::Created { cents };
    for (order, change) in [
        ("order-1", created(1999)),
        ("order-2", created(500)),
        ("order-3", created(-1)),
        ("order-1", Change::Paid),
        ("order-3", Change::Cancelled),
        ("order-2", Change::Cancelled),
    ] {
        announce(&bus, order, change).await?;
    }

    let mut orders: HashMap<String, Vec<&'static str>> = HashMap::new();
    // Five can be billed. The withdrawal of order-3 waits for what is before it, until that is given up.
    for _ in 0..5 {
        let (order, what) = billed.recv().await.ok_or("billing has ended")?;
        println!("{order}: {what}");
        orders.entry(order).or_default().push(what);
    }
    billing.stop().await;
    let dead = bus.dead_letters("billing", 0, 100).await?;
    for letter in &dead {
        println!("dead after {} deliveries: event {} of {}: {}", letter.deliveries, letter.event_sequence, letter.subject, letter.reason);
    }
    Ok((orders, dead))
}

#[allow(dead_code, reason = "the test calls run")]
fn main() -> Result<(), Box<dyn Error>> {
    let servers = std::env::args().nth(1).unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&servers, Options::default(), Terms::default()))?;
    Ok(())
}
