//! A chat in a terminal, over the Rust client: what you type is said in the room, what is said there is shown, and what was said while you were away comes when you are back.
//!
//! ```sh
//! shardcast &
//! cargo run --example chat -- anna lobby ws://127.0.0.1:8080
//! ```
//!
//! Browsers in the same room (`/` of the gateway) and `shardcast sub lobby` hear it too. tests/chat.rs has two of them talk.

use std::error::Error;
use std::io::BufRead;

use serde::{Deserialize, Serialize};
use shardcast::client::{Client, Data, Event, Message, Start};
use tokio::sync::mpsc;

/// What is published: a line, and who has said it.
#[derive(Serialize, Deserialize)]
struct Line {
    from: String,
    text: String,
}

/// Others say what they like: a text of any kind is shown as it is.
fn shown(message: &Message) -> String {
    match (message.data.parse::<Line>(), message.data.as_text()) {
        (Ok(Line { from, text }), _) => format!("{from}: {text}"),
        (Err(_), Some(text)) => text.to_owned(),
        (Err(_), None) => format!("({} bytes)", message.data.as_bytes().len()),
    }
}

/// Says every line in the room, and shows what there is to see, until there are no lines any more or the gateway says that it is over.
///
/// # Errors
/// The URL is none of a gateway, or the gateway does not want us back.
pub async fn run(
    url: &str,
    room: &str,
    name: &str,
    mut lines: mpsc::Receiver<String>,
    mut show: impl FnMut(String),
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (client, mut events) = Client::builder(url).subscribe(room, Start::Last(20)).start()?;
    loop {
        tokio::select! {
            line = lines.recv() => {
                let Some(text) = line else { break };
                let line = Data::json(&Line { from: name.to_owned(), text })?;
                if let Err(error) = client.publish(room, line).await {
                    show(format!("* not said: {error}"));
                }
            }
            event = events.recv() => match event {
                Some(Event::Message(message)) => show(shown(&message)),
                Some(Event::Subscribed { topic, .. }) => show(format!("* in {topic}")),
                Some(Event::Gap(_)) => show("* something was said that nobody remembers".to_owned()),
                Some(Event::Announcement(text)) => show(format!("* {text}")),
                Some(Event::Reconnecting { wait, why }) => show(format!("* {why}; back in {:.1} s", wait.as_secs_f64())),
                Some(Event::Closed(closed)) => return Err(closed.into()),
                Some(_) => {}
                None => break,
            }
        }
    }
    client.close().await;
    Ok(())
}

#[allow(dead_code, reason = "the test calls run")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_else(|| "somebody".to_owned());
    let room = words.next().unwrap_or_else(|| "lobby".to_owned());
    let url = words.next().unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned());
    let (say, lines) = mpsc::channel(1);
    // Nothing but a thread can wait for a terminal.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if say.blocking_send(line).is_err() {
                break;
            }
        }
    });
    run(&url, &room, &name, lines, |line| println!("{line}")).await
}
