//! Our decoder and handshake beside tungstenite's, with outcomes of one form. Not a judge: which differences are legitimate, the targets say.

use std::io::{self, Cursor, Read, Write};

use shardcast::proto::ws::{Decoder, DecoderLimits, Incoming, MessageKind, WsError};
use tungstenite::error::ProtocolError;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::Request;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

/// Small, so that short inputs reach it.
const MESSAGE_BYTES_MAX: usize = 1024;

/// A stream whose incoming direction is in memory and whose outgoing one is dropped.
struct Wire(Cursor<Vec<u8>>);

impl Wire {
    fn new(incoming: impl Into<Vec<u8>>) -> Self {
        Self(Cursor::new(incoming.into()))
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything our decoder makes of a client's bytes, up to a close frame, and whether it is idle at the end. The bytes come in pieces of `cuts`
/// bytes, again and again; 255 stands for all that is left.
pub fn decode(input: &[u8], cuts: [u8; 4]) -> (Vec<Message>, Result<bool, WsError>) {
    decode_limited(input, cuts, &DecoderLimits { message_bytes_max: MESSAGE_BYTES_MAX as u64, deflate: false })
}

/// The same where permessage-deflate was agreed to; compressed messages are binary ones of what is in the frames.
pub fn decode_agreed(input: &[u8], cuts: [u8; 4]) -> (Vec<Message>, Result<bool, WsError>) {
    decode_limited(input, cuts, &DecoderLimits { message_bytes_max: MESSAGE_BYTES_MAX as u64, deflate: true })
}

fn decode_limited(input: &[u8], cuts: [u8; 4], limits: &DecoderLimits) -> (Vec<Message>, Result<bool, WsError>) {
    let (mut decoder, mut messages) = (Decoder::new(), Vec::new());
    let (mut input, mut came) = (input.to_vec(), 0);
    for cut in cuts.into_iter().cycle() {
        let piece = if cut == 255 { input.len() } else { input.len().min(came + usize::from(cut) + 1) };
        while came < piece {
            match decoder.decode(&mut input[came..piece], limits) {
                Ok(decoded) => {
                    came += decoded.consumed;
                    let Some(incoming) = decoded.incoming else { break };
                    let message = message(incoming);
                    messages.push(message);
                    if matches!(messages.last(), Some(Message::Close(_))) {
                        return (messages, Ok(true));
                    }
                }
                Err(error) => return (messages, Err(error)),
            }
            assert!(decoder.held_bytes() <= 256 + 2 * came, "memory follows what came, not what was announced");
        }
        assert_eq!(came, piece, "without an incoming everything is taken");
        if came == input.len() {
            break;
        }
    }
    decoder.release();
    (messages, Ok(decoder.is_idle()))
}

fn message(incoming: Incoming<'_>) -> Message {
    match incoming {
        Incoming::Message { kind: MessageKind::Text, payload } => Message::text(str::from_utf8(payload).expect("text was validated")),
        Incoming::Message { kind: MessageKind::Binary, payload } => Message::binary(payload.to_vec()),
        Incoming::Compressed { payload, .. } => Message::binary(payload.to_vec()),
        Incoming::Ping(payload) => Message::Ping(payload.to_vec().into()),
        Incoming::Pong(payload) => Message::Pong(payload.to_vec().into()),
        Incoming::Close(close) => Message::Close(close.map(|(code, reason)| CloseFrame { code: code.0.into(), reason: reason.into() })),
    }
}

/// The same by tungstenite as a server with the same limits: the messages, and the close code it fails with; none when it asks for more bytes
/// or got a close frame. It judges a frame only when it has all of it: `complete` makes every frame so.
pub fn tungstenite_decode(input: &[u8], complete: bool) -> (Vec<Message>, Option<u16>) {
    let mut input = input.to_vec();
    input.resize(input.len() + if complete { MESSAGE_BYTES_MAX + 14 } else { 0 }, 0);
    let config =
        WebSocketConfig::default().read_buffer_size(1024).max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let mut server = WebSocket::from_raw_socket(Wire::new(input), Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match server.read() {
            // Its way to refuse the code of a close frame.
            Ok(Message::Close(Some(frame))) if frame.reason.as_str() == "Protocol violation" => return (messages, Some(1002)),
            Ok(message) => messages.push(message),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return (messages, None),
            Err(Error::Protocol(_)) => return (messages, Some(1002)),
            Err(Error::Utf8(_)) => return (messages, Some(1007)),
            Err(Error::Capacity(_)) => return (messages, Some(1009)),
            Err(error) => panic!("tungstenite has no other errors over memory: {error}"),
        }
        if matches!(messages.last(), Some(Message::Close(_))) {
            return (messages, None);
        }
    }
}

/// tungstenite's own verdict, as a server, on the bytes of a handshake.
pub fn tungstenite_accepts(request: &[u8]) -> Result<(), Error> {
    tungstenite::accept(Wire::new(request)).map(drop).map_err(plain)
}

/// tungstenite's verdict, as the client that sent this key and offered these subprotocols, on the bytes of an answer.
pub fn tungstenite_opens(answer: &[u8], key: &str, protocols: &str) -> Result<(), Error> {
    let mut request = Request::get("ws://h/").header("Host", "h").header("Connection", "Upgrade").header("Upgrade", "websocket");
    request = request.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", key);
    if !protocols.is_empty() {
        request = request.header("Sec-WebSocket-Protocol", protocols);
    }
    tungstenite::client(request.body(()).expect("the headers are plain"), Wire::new(answer)).map(drop).map_err(plain)
}

fn plain<R: tungstenite::handshake::HandshakeRole>(error: HandshakeError<R>) -> Error {
    match error {
        HandshakeError::Failure(error) => error,
        HandshakeError::Interrupted(_) => panic!("memory never blocks"),
    }
}
