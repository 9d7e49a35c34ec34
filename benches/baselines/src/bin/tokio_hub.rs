//! Baseline: the hub as one writes it with tokio and tokio-tungstenite. A task per client with a queue of its own; whoever has something to say puts a
//! handle of it into each member's queue, and each member's task feeds all that is queued and then flushes once. One thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use baselines::process;
use baselines::ws::{Wish, wish};
use futures_util::{SinkExt, StreamExt};
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// What a task takes out of its queue before it flushes.
const FEED_MAX: usize = 1024;

/// The queues of a room's members.
type Room = Rc<RefCell<Slab<UnboundedSender<Message>>>>;

#[derive(Default)]
struct Hub {
    rooms: RefCell<HashMap<String, Room>>,
}

fn main() {
    let args = process::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(process::listen(args.listen)).expect("a listener");
        let hub = Rc::new(Hub::default());
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            // A client's errors are its own.
            let hub = hub.clone();
            tokio::task::spawn_local(async move { drop(serve(stream, hub).await) });
        }
    });
}

/// Upgrades a client and serves it to its end.
async fn serve(stream: TcpStream, hub: Rc<Hub>) -> Result<(), Error> {
    let mut wanted = None;
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let look = |request: &Request, response: Response| {
        wanted = wish(&request.uri().to_string());
        Ok(response)
    };
    // Its default of 128 KiB for each client would be most of what an idle one costs.
    let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
    let socket = tokio_tungstenite::accept_hdr_async_with_config(stream, look, Some(config)).await?;
    match wanted {
        Some(Wish::Room(name)) => {
            let room = hub.rooms.borrow_mut().entry(name).or_default().clone();
            let (sender, queue) = unbounded_channel();
            let place = room.borrow_mut().insert(sender);
            let outcome = in_room(socket, queue, &room).await;
            room.borrow_mut().remove(place);
            outcome
        }
        Some(Wish::Echo) => echo(socket).await,
        None => Ok(()),
    }
}

async fn in_room(mut socket: WebSocketStream<TcpStream>, mut queue: UnboundedReceiver<Message>, room: &Room) -> Result<(), Error> {
    let mut queued = Vec::new();
    loop {
        tokio::select! {
            biased;
            count = queue.recv_many(&mut queued, FEED_MAX) => {
                debug_assert!(count > 0, "the room holds the other end");
                for message in queued.drain(..) {
                    socket.feed(message).await?;
                }
                socket.flush().await?;
            }
            message = socket.next() => match message.transpose()? {
                Some(message @ (Message::Text(_) | Message::Binary(_))) => {
                    // The payload is shared, not copied.
                    for (_, member) in &*room.borrow() {
                        let _ = member.send(message.clone());
                    }
                }
                // The library answers pings; the answer leaves with the flush.
                Some(Message::Ping(_)) => socket.flush().await?,
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

async fn echo(mut socket: WebSocketStream<TcpStream>) -> Result<(), Error> {
    while let Some(message) = socket.next().await.transpose()? {
        match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await?,
            Message::Ping(_) => socket.flush().await?,
            _ => {}
        }
    }
    Ok(())
}
