//! Why a connection ended: the one place that maps a cause to its close code, its metric label and who is at fault.

use crate::proto::ws::CloseCode;

/// Who brought a connection to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nobody: an ordinary end.
    Nobody,
    /// The client, or the network between.
    Peer,
    /// The gateway: it is full, behind, or going away.
    Gateway,
}

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $fault:ident, $code:expr;)+) => {
        /// Why a connection ended.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum CloseCause {
            $($(#[doc = $doc])+ $name,)+
        }

        impl CloseCause {
            /// Every cause, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
            /// How many causes there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The value of the `cause` label in metrics and logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// Who is at fault.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)+ }
            }

            /// The code of the close frame that a WebSocket is sent (docs/protocol.md, Close codes); none where no frame is sent.
            pub const fn code(self) -> Option<CloseCode> {
                match self { $(Self::$name => $code,)+ }
            }
        }
    };
}

impl CloseCause {
    /// Whether the client should come back as it is: then the close frame says when.
    pub fn wants_retry(self) -> bool {
        self.code().is_some_and(CloseCode::wants_retry)
    }
}

causes! {
    /// The client began the close handshake; its own code is answered.
    ClientClosed = "client_closed", Nobody, None;
    /// The client's side of the connection ended without a close frame (RFC 6455 section 7.1.5 calls that 1006).
    ClientGone = "client_gone", Peer, None;
    /// The kernel reported an error: reset, timed out, unreachable.
    NetworkError = "network_error", Peer, None;
    /// A frame that RFC 6455 forbids.
    ProtocolError = "protocol_error", Peer, Some(CloseCode::PROTOCOL_ERROR);
    /// A text message that is not UTF-8.
    InvalidPayload = "invalid_payload", Peer, Some(CloseCode::INVALID_PAYLOAD);
    /// A message that is no request of `shardcast.v1.json`.
    BadMessage = "bad_message", Peer, Some(CloseCode::BAD_MESSAGE);
    /// A message over `limits.message_bytes_max`.
    TooBig = "too_big", Peer, Some(CloseCode::TOO_BIG);
    /// Nothing came in after a ping.
    NoPong = "no_pong", Peer, Some(CloseCode::NO_PONG);
    /// The client reads slower than its topics are written.
    SlowConsumer = "slow_consumer", Peer, Some(CloseCode::SLOW_CONSUMER);
    /// Messages after the position that the client came with are missing.
    ContinuityLost = "continuity_lost", Gateway, Some(CloseCode::CONTINUITY_LOST);
    /// A browser page from an origin that may not connect.
    ForbiddenOrigin = "forbidden_origin", Peer, Some(CloseCode::FORBIDDEN);
    /// Connections or topics are at their cap.
    OverCapacity = "over_capacity", Gateway, Some(CloseCode::OVER_CAPACITY);
    /// The topic has as many members as it may.
    TopicFull = "topic_full", Gateway, Some(CloseCode::OVER_CAPACITY);
    /// The client publishes more than its connection, its address or the topic may.
    RateLimited = "rate_limited", Peer, Some(CloseCode::RATE_LIMITED);
    /// The client's address has as many connections, or opens as many in a second, as one may.
    AddressLimited = "address_limited", Peer, Some(CloseCode::RATE_LIMITED);
    /// More clients come at once than the gateway takes up.
    Busy = "busy", Gateway, Some(CloseCode::OVER_CAPACITY);
    /// The client publishes to a topic that goes to NATS, to which there is no connection.
    NatsUnavailable = "nats_unavailable", Gateway, Some(CloseCode::OVER_CAPACITY);
    /// The client publishes to a topic that only comes from NATS.
    ReadOnly = "read_only", Peer, Some(CloseCode::FORBIDDEN);
    /// The gateway is shutting down.
    Shutdown = "shutdown", Gateway, Some(CloseCode::SERVICE_RESTART);
    /// The gateway hands some of its clients to others.
    Rebalance = "rebalance", Gateway, Some(CloseCode::SERVICE_RESTART);
    /// The operator has ended it; the code may be another one (`POST /disconnect`).
    Disconnected = "disconnected", Gateway, Some(CloseCode::SERVICE_RESTART);
    /// No whole request head in time.
    HeadTimeout = "head_timeout", Peer, None;
    /// A request that was answered with an error and closed.
    BadRequest = "bad_request", Peer, None;
    /// An HTTP connection whose answer said that it closes, or that waited too long for its next request.
    HttpDone = "http_done", Nobody, None;
    /// The shutdown's deadline came before the connection was finished.
    ShutdownDeadline = "shutdown_deadline", Gateway, None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_mean_come_back_carry_a_hint() {
        for cause in CloseCause::ALL {
            if let Some(code) = cause.code() {
                assert!(code.is_valid_on_wire(), "{cause:?}");
                assert_eq!(cause.wants_retry(), code.0 >= 4500 || code.0 == 1012, "{cause:?}");
            }
        }
    }
}
