//! The example of a chat (examples/chat.rs), over a real gateway: two talk, one is away for a while, and everybody has heard everything.

#[path = "../examples/chat.rs"]
mod chat;
mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::time::Duration;

use common::{SOON, gateway};
use hostile::{Proxy, Refusal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

type Ended = JoinHandle<Result<(), Box<dyn std::error::Error + Send + Sync>>>;

struct Person {
    says: mpsc::Sender<String>,
    sees: mpsc::UnboundedReceiver<String>,
    ended: Ended,
}

impl Person {
    fn in_lobby(url: String, name: &'static str) -> Self {
        let (says, lines) = mpsc::channel(16);
        let (show, sees) = mpsc::unbounded_channel();
        let ended = tokio::spawn(async move { chat::run(&url, "lobby", name, lines, move |line| drop(show.send(line))).await });
        Self { says, sees, ended }
    }

    async fn say(&self, text: &str) {
        self.says.send(text.to_owned()).await.expect("it runs");
    }

    /// The next line that begins so; others are left out.
    async fn see(&mut self, beginning: &str) -> String {
        let line = tokio::time::timeout(SOON, async {
            loop {
                let line = self.sees.recv().await.expect("it runs");
                if line.starts_with(beginning) {
                    return line;
                }
            }
        });
        line.await.unwrap_or_else(|_| panic!("{beginning:?} does not come"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_talk_and_who_was_away_has_heard_everything() {
    let gateway = gateway().limit("reconnect_window_ms", 100).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let mut anna = Person::in_lobby(format!("ws://127.0.0.1:{}", gateway.port), "anna");
    let mut ben = Person::in_lobby(proxy.url(), "ben");
    anna.see("* in lobby").await;
    ben.see("* in lobby").await;
    anna.say("hello").await;
    assert_eq!((anna.see("anna").await, ben.see("anna").await), ("anna: hello".to_owned(), "anna: hello".to_owned()));
    proxy.weather(|weather| weather.refusal = Some(Refusal::busy(1.0, Duration::from_millis(50))));
    proxy.cut();
    ben.see("* ").await;
    anna.say("are you there?").await;
    ben.say("soon").await;
    anna.see("anna: are you there?").await;
    proxy.weather(|weather| weather.refusal = None);
    ben.see("anna: are you there?").await;
    anna.see("ben: soon").await;
    drop(ben.says);
    ben.ended.await.expect("no panic").expect("it has said goodbye");
    gateway.wait_for_closes("client_closed", 1);
}

#[tokio::test]
async fn a_url_that_is_none_is_an_error() {
    let (_says, lines) = mpsc::channel(1);
    let error = chat::run("lobby", "lobby", "anna", lines, drop).await.expect_err("no URL");
    assert!(error.to_string().contains("ws://"), "{error}");
}
