//! WebSocket input: messages go to their room or back to their sender, control frames are answered, and reading pauses when we are behind.

use super::Gateway;
use super::close_cause::CloseCause;
use super::json::request_bytes_max;
use super::session::State;
use crate::engine::driver::Driver;
use crate::ids::ConnKey;
use crate::proto::ws::frame::{compressed_header, server_header};
use crate::proto::ws::{CloseCode, DecoderLimits, Incoming, MessageKind, OpCode, WsError};

/// Pongs that wait for a client that does not read; RFC 6455 section 5.5.3 lets us skip the others.
const PONG_BYTES_MAX: usize = 4096;

impl<D: Driver> Gateway<D> {
    /// Handles frames; how many bytes of them. Fewer than all when reading has to pause.
    pub(super) fn read_frames(&mut self, key: ConnKey, bytes: &mut [u8]) -> usize {
        let Some(session) = self.sessions.get_mut(key) else { return bytes.len() };
        let mut decoder = session.take_decoder();
        let speaks_json = session.state == State::Json;
        let message_bytes_max = if speaks_json { request_bytes_max(&self.limits) } else { self.limits.message_bytes_max };
        let limits = DecoderLimits { message_bytes_max, deflate: session.deflate.is_some() };
        let mut used = 0;
        while used < bytes.len() {
            decoder.release();
            if self.must_pause(key, decoder.is_idle()) {
                break;
            }
            let decoded = match decoder.decode(&mut bytes[used..], &limits) {
                Ok(decoded) => decoded,
                Err(error) => {
                    self.protocol_failed(key, &error);
                    return bytes.len();
                }
            };
            used += decoded.consumed;
            let goes_on = match decoded.incoming {
                None | Some(Incoming::Pong(_)) => true,
                Some(Incoming::Message { kind, payload }) => self.handle_message(key, kind, payload),
                Some(Incoming::Compressed { kind, payload }) => self.handle_compressed(key, kind, payload, message_bytes_max),
                Some(Incoming::Ping(payload)) => {
                    self.pong(key, payload);
                    true
                }
                Some(Incoming::Close(close)) => {
                    self.client_closed(key, close.map(|(code, _)| code));
                    false
                }
            };
            if !goes_on {
                return bytes.len();
            }
        }
        decoder.release();
        if let Some(session) = self.sessions.get_mut(key)
            && !session.state.is_over()
        {
            session.keep_decoder(decoder);
            self.pump(key);
        }
        used
    }

    /// A message has come. Whether there may be more.
    fn handle_message(&mut self, key: ConnKey, kind: MessageKind, payload: &[u8]) -> bool {
        self.messages_left = self.messages_left.saturating_sub(1);
        let Some(session) = self.sessions.get(key) else { return false };
        let room = session.topic;
        if session.state == State::Json {
            self.hear(key, kind, payload);
            return self.sessions.get(key).is_some_and(|session| !session.state.is_over());
        }
        let len = payload.len() as u64;
        if let Err(over) = self.take_said(key, 1, len).and_then(|()| self.take_said_in_room(key, len)) {
            self.end_over_rate(key, &over);
            return false;
        }
        if let Some(obstacle) = room.and_then(|room| self.obstacle_of_nats(room, payload.len(), None)) {
            self.counters.nats_refused.add(1);
            self.end_with(key, obstacle.close_cause(), None, &obstacle.reason());
            return false;
        }
        self.counters.messages_in.add(1);
        self.counters.messages_in_bytes.add(len);
        self.take_message(key, kind.opcode(), payload);
        true
    }

    /// A compressed message has come: from here on it is like any other.
    fn handle_compressed(&mut self, key: ConnKey, kind: MessageKind, payload: &[u8], bytes_max: u64) -> bool {
        let mut inflater = self.inflater.take().unwrap_or_default();
        let inflated = match kind {
            MessageKind::Text => inflater.inflate_text(payload, bytes_max),
            MessageKind::Binary => inflater.inflate(payload, bytes_max),
        };
        let goes_on = match inflated {
            Ok(message) => {
                self.counters.inflated.add(1);
                self.inflate_left = self.inflate_left.saturating_sub((message.len() + payload.len()) as u64);
                self.handle_message(key, kind, message)
            }
            Err(error) => {
                self.protocol_failed(key, &error);
                false
            }
        };
        inflater.rest();
        self.inflater = Some(inflater);
        goes_on
    }

    /// Whether this connection's next bytes must wait; then they are made to. `between` says that it is not in the middle of a message.
    fn must_pause(&mut self, key: ConnKey, between: bool) -> bool {
        let Some(session) = self.sessions.get(key) else { return true };
        if session.goodbye.is_some() && between {
            self.pause_reading(key);
            return true;
        }
        if session.deflate.is_some() && self.inflate_left == 0 {
            // In the next step.
            self.pause_reading(key);
            self.woken.push(key);
            return true;
        }
        match session.state {
            State::Room if self.shared.is_over_memory() => {
                self.wait_for_memory(key);
                true
            }
            State::Room => {
                let topic = session.topic.expect("a member has a topic");
                if self.is_cut_off_from_nats(topic) {
                    // It is told so at its next message.
                    return false;
                }
                let takes = self.topics.get(topic).expect("a topic lives as long as its members").takes_messages(&self.limits);
                if !takes {
                    self.wait_for_topic(key, topic);
                    return true;
                }
                let waits = !self.nats_has_room(topic);
                if waits {
                    self.wait_for_nats(key);
                }
                waits
            }
            State::Json => {
                let busy = self.is_busy_talking(key);
                if busy {
                    self.pause_reading(key);
                }
                busy
            }
            State::Echo => {
                let full = self.direct_bytes(key) as u64 >= self.limits.echo_bytes_max;
                if full {
                    self.pause_reading(key);
                }
                full
            }
            _ => false,
        }
    }

    fn take_message(&mut self, key: ConnKey, opcode: OpCode, payload: &[u8]) {
        let Some(session) = self.sessions.get(key) else { return };
        match session.state {
            State::Room => self.publish(key, opcode, payload),
            State::Echo => {
                let deflated = if session.takes_deflated() { self.maker.deflate(payload) } else { None };
                let range = match deflated {
                    Some(deflated) => {
                        let (header, len) = compressed_header(opcode, deflated.len());
                        self.direct.append(&header[..len], deflated)
                    }
                    None => {
                        let (header, len) = server_header(opcode, payload.len());
                        self.direct.append(&header[..len], payload)
                    }
                };
                self.push_range(key, range);
            }
            _ => {}
        }
    }

    fn pong(&mut self, key: ConnKey, payload: &[u8]) {
        if self.direct_bytes(key) < PONG_BYTES_MAX || self.sessions.get(key).is_some_and(|session| session.state == State::Echo) {
            let (header, len) = server_header(OpCode::Pong, payload.len());
            self.push_direct(key, &header[..len], payload);
        }
    }

    /// RFC 6455 section 5.5.1: a close frame is answered with one, typically with the same code; then the connection ends.
    fn client_closed(&mut self, key: ConnKey, code: Option<CloseCode>) {
        self.end_with(key, CloseCause::ClientClosed, code, "");
    }

    fn protocol_failed(&mut self, key: ConnKey, error: &WsError) {
        let cause = match error.close_code() {
            CloseCode::TOO_BIG => CloseCause::TooBig,
            CloseCode::INVALID_PAYLOAD => CloseCause::InvalidPayload,
            _ => CloseCause::ProtocolError,
        };
        self.end_with(key, cause, None, &error.to_string());
    }
}
