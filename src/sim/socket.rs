//! A simulated client's WebSocket: tungstenite over a byte stream in memory, from its handshake to its end.

use std::cell::RefCell;
use std::fmt;
use std::io::ErrorKind;
use std::rc::Rc;

use tungstenite::handshake::client::ClientHandshake;
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Error, Message, WebSocket};

use super::ledger::Said;
use super::squeeze::{OFFERS, Squeezed};
use super::stream::SimStream;
use crate::engine::sim::{LinkId, World};

/// Any sixteen bytes in base64 will do (RFC 6455 section 4.1); always the same ones, so that a seed is a run.
const KEY: &str = "c2ltdWxhdGVkIGNsaWVudA==";

/// How a connection ended, from its client's point of view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// With close frames; the code that the server sent.
    Closed(Option<u16>),
    /// The upgrade was answered with a status.
    Refused(u16),
    /// The stream ended or broke without a word.
    Broken(&'static str),
    /// The client itself broke it off.
    Left,
}

/// A handshake whose answer is not here.
pub(super) struct Shaking(Box<MidHandshake<ClientHandshake<Squeezed>>>);

/// What a handshake has come to.
pub(super) enum Shaken {
    /// Nothing yet.
    Waits(Shaking),
    Open(Socket),
    Failed(Ended),
}

/// What has come.
pub(super) enum Heard {
    Text(String),
    Binary(Vec<u8>),
    /// A close frame; the connection ends when its stream does.
    Close(Option<u16>),
    /// A ping or a pong.
    Sign,
    /// Nothing is there now.
    Nothing,
    Ended(Ended),
}

/// An open one.
pub(super) struct Socket(Box<WebSocket<Squeezed>>);

/// Asks for an upgrade with one of the offers to compress, or none, for `who`, who fails when the answer is none.
pub(super) fn ask(
    world: &Rc<RefCell<World>>,
    link: LinkId,
    path: &str,
    (protocol, offer): (Option<&str>, Option<usize>),
    who: fmt::Arguments<'_>,
) -> Shaken {
    let mut request = tungstenite::http::Request::builder()
        .uri(format!("ws://gateway{path}"))
        .header("Host", "gateway")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", KEY);
    if let Some(protocol) = protocol {
        request = request.header("Sec-WebSocket-Protocol", protocol);
    }
    if let Some(offer) = offer {
        request = request.header("Sec-WebSocket-Extensions", OFFERS[offer].0);
    }
    let request = request.body(()).expect("a request");
    let stream = Squeezed::new(SimStream::new(world, link), world, offer, protocol.is_some());
    let config = WebSocketConfig::default().read_buffer_size(2048).write_buffer_size(0);
    shaken(tungstenite::client::client_with_config(request, stream, Some(config)), who)
}

type Answer = Result<(WebSocket<Squeezed>, tungstenite::handshake::client::Response), HandshakeError<ClientHandshake<Squeezed>>>;

fn shaken(answer: Answer, who: fmt::Arguments<'_>) -> Shaken {
    match answer {
        Ok((socket, _)) => Shaken::Open(Socket(Box::new(socket))),
        Err(HandshakeError::Interrupted(mid)) => Shaken::Waits(Shaking(Box::new(mid))),
        Err(HandshakeError::Failure(error)) => Shaken::Failed(match error {
            Error::Http(response) => Ended::Refused(response.status().as_u16()),
            Error::Io(_) | Error::Protocol(_) | Error::ConnectionClosed => Ended::Broken("during the handshake"),
            other => panic!("{who}: the handshake's answer is wrong: {other}"),
        }),
    }
}

impl Shaking {
    /// Reads on in the answer.
    pub(super) fn go_on(self, who: fmt::Arguments<'_>) -> Shaken {
        shaken(self.0.handshake(), who)
    }
}

impl Socket {
    /// Says a message, whole or in fragments. What the stream does not take now stays with the codec, in order. Whether the connection stands.
    pub(super) fn say(&mut self, said: &Said, fragments: usize) -> bool {
        messages(said, fragments).into_iter().all(|message| match self.0.send(message) {
            Ok(()) => true,
            Err(Error::Io(error)) => error.kind() == ErrorKind::WouldBlock,
            Err(_) => false,
        })
    }

    /// Hands over what the stream did not take before. Whether all of it was taken.
    pub(super) fn flush(&mut self) -> bool {
        self.0.flush().is_ok()
    }

    /// Begins the close handshake.
    pub(super) fn close(&mut self) {
        let _ = self.0.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
    }

    /// What comes next.
    pub(super) fn read(&mut self, who: fmt::Arguments<'_>) -> Heard {
        match self.0.read() {
            Ok(Message::Text(text)) => Heard::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Heard::Binary(bytes.to_vec()),
            Ok(Message::Close(frame)) => Heard::Close(frame.map(|frame| frame.code.into())),
            Ok(_) => Heard::Sign,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Heard::Nothing,
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => Heard::Ended(Ended::Closed(None)),
            Err(Error::Io(_)) => Heard::Ended(Ended::Broken("reset")),
            Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                Heard::Ended(Ended::Broken("end of stream without a close frame"))
            }
            Err(error) => panic!("{who}: the server's bytes are wrong: {error}"),
        }
    }
}

/// A message as frames: whole, or in fragments (RFC 6455 section 5.4).
fn messages(said: &Said, fragments: usize) -> Vec<Message> {
    let whole = if said.text {
        Message::text(String::from_utf8(said.payload.clone()).expect("text is made of characters"))
    } else {
        Message::binary(said.payload.clone())
    };
    if fragments == 1 || said.payload.is_empty() {
        return vec![whole];
    }
    let piece = said.payload.len().div_ceil(fragments).max(1);
    let pieces: Vec<&[u8]> = said.payload.chunks(piece).collect();
    let last = pieces.len() - 1;
    let kind = if said.text { Data::Text } else { Data::Binary };
    pieces
        .iter()
        .enumerate()
        .map(|(at, bytes)| {
            let opcode = OpCode::Data(if at == 0 { kind } else { Data::Continue });
            Message::Frame(Frame::message(bytes.to_vec(), opcode, at == last))
        })
        .collect()
}
