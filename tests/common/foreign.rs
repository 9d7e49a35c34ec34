//! tungstenite as the client: a codec that others wrote.

use std::net::TcpStream;

use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::Response;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use super::{Gateway, SOON};

/// A connected WebSocket with read timeouts.
pub struct Client {
    pub socket: WebSocket<TcpStream>,
    pub response: Response,
}

/// Connects, with extra headers.
pub fn try_connect(gateway: &Gateway, path: &str, headers: &[(&'static str, &str)]) -> Result<Client, Error> {
    let mut request = format!("ws://127.0.0.1:{}{path}", gateway.port).into_client_request().expect("a valid URL");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a header value"));
    }
    let stream = TcpStream::connect(("127.0.0.1", gateway.port)).expect("the gateway accepts");
    stream.set_nodelay(true).expect("a TCP socket");
    stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
    stream.set_write_timeout(Some(SOON)).expect("a timeout above zero");
    match tungstenite::client(request, stream) {
        Ok((socket, response)) => Ok(Client { socket, response }),
        Err(tungstenite::HandshakeError::Failure(error)) => Err(error),
        Err(tungstenite::HandshakeError::Interrupted(_)) => panic!("no answer to the handshake within {SOON:?}"),
    }
}

pub fn connect(gateway: &Gateway, path: &str) -> Client {
    try_connect(gateway, path, &[]).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Client {
    pub fn send(&mut self, message: impl Into<Message>) {
        self.socket.send(message.into()).expect("the gateway reads");
    }

    pub fn text(&mut self, text: &str) {
        self.send(Message::text(text));
    }

    /// The next data message; pings are answered by the library on the way.
    pub fn message(&mut self) -> Message {
        loop {
            match self.socket.read().expect("a message comes") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    pub fn expect_text(&mut self, text: &str) {
        assert_eq!(self.message(), Message::text(text));
    }

    /// Nothing comes for this long.
    pub fn expect_silence(&mut self, ms: u64) {
        self.socket.get_ref().set_read_timeout(Some(std::time::Duration::from_millis(ms))).expect("a timeout above zero");
        loop {
            match self.socket.read() {
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(message) => panic!("silence was expected, this came: {message}"),
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("silence was expected: {error}"),
            }
        }
        self.socket.get_ref().set_read_timeout(Some(SOON)).expect("a timeout above zero");
    }

    /// Reads past messages to the gateway's close frame and finishes the close.
    pub fn closed(&mut self) -> Option<CloseFrame> {
        let frame = loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => break frame,
                Ok(_) => {}
                Err(error) => panic!("ended without a close frame: {error}"),
            }
        };
        while self.socket.read().is_ok() {}
        frame
    }

    /// The code of the gateway's close frame.
    pub fn close_code(&mut self) -> u16 {
        u16::from(self.closed().expect("the close frame has a code").code)
    }

    /// Leaves with a close handshake.
    pub fn leave(mut self) {
        self.socket.close(None).expect("an open socket");
        self.closed();
    }
}
