//! What a peer can do wrong on an open WebSocket, and the close code it gets for it.

use super::close::CloseCode;
use super::frame::OpCode;

/// A breach of RFC 6455 or of our limits. The peer is at fault in all of them; the connection is closed with [`Self::close_code`], and the
/// text fits the reason of the close frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WsError {
    /// A reserved bit without an extension that gives it a meaning.
    #[error("frame sets reserved bits {bits:03b}, but no extension was negotiated (RFC 6455 section 5.2)")]
    ReservedBits {
        /// RSV1 is 4, RSV2 is 2, RSV3 is 1.
        bits: u8,
    },
    /// RSV1, which permessage-deflate gives a meaning in the first frame of a message, in another one.
    #[error("{opcode} frame has RSV1 set; only the first frame of a compressed message has (RFC 7692 section 6)")]
    CompressedOutOfPlace {
        /// Which frame.
        opcode: OpCode,
    },
    /// An opcode that RFC 6455 leaves to the future.
    #[error("frame has the reserved opcode {opcode:#x} (RFC 6455 section 5.2)")]
    ReservedOpCode {
        /// The opcode: 3 to 7 or 11 to 15.
        opcode: u8,
    },
    /// A control frame without FIN.
    #[error("{opcode} frame is fragmented; control frames must not be (RFC 6455 section 5.5)")]
    ControlFragmented {
        /// Which control frame.
        opcode: OpCode,
    },
    /// A control frame with an extended length.
    #[error("{opcode} frame announces over 125 bytes, the most for a control frame (RFC 6455 section 5.5)")]
    ControlTooLong {
        /// Which control frame.
        opcode: OpCode,
    },
    /// A longer form of the length than needed.
    #[error("frame writes the length {bytes} in more bytes than it needs (RFC 6455 section 5.2)")]
    LengthNotMinimal {
        /// The length it announces.
        bytes: u64,
    },
    /// A 64-bit length with the top bit set.
    #[error("frame announces a length of 2^63 bytes or more (RFC 6455 section 5.2)")]
    LengthTopBit,
    /// A client's frame without mask.
    #[error("frame is not masked; a client must mask every frame (RFC 6455 section 5.1)")]
    NotMasked,
    /// A continuation while no message is open.
    #[error("continuation frame without a message to continue (RFC 6455 section 5.4)")]
    ContinuationWithoutStart,
    /// A new message while one is open.
    #[error("{opcode} frame inside a fragmented message; a continuation must follow (RFC 6455 section 5.4)")]
    MessageInterrupted {
        /// Which data frame.
        opcode: OpCode,
    },
    /// One frame over the limit.
    #[error("frame announces {bytes} bytes, limit {limit} (limits.message_bytes_max)")]
    FrameTooBig {
        /// What the frame announces.
        bytes: u64,
        /// `limits.message_bytes_max`.
        limit: u64,
    },
    /// Fragments over the limit together.
    #[error("fragment brings the message to {bytes} bytes, limit {limit} (limits.message_bytes_max)")]
    MessageTooBig {
        /// What came so far and what the fragment announces.
        bytes: u64,
        /// `limits.message_bytes_max`.
        limit: u64,
    },
    /// A compressed message that is over the limit when it is inflated.
    #[error("compressed message of {bytes} bytes inflates to more than {limit} (limits.message_bytes_max)")]
    InflatesTooBig {
        /// Its bytes as they came.
        bytes: u64,
        /// The limit of what is inflated.
        limit: u64,
    },
    /// A compressed message that is none.
    #[error("message is marked as compressed and is not whole DEFLATE blocks (RFC 7692 section 7.2.2)")]
    NotDeflate,
    /// Text that is not UTF-8.
    #[error("text message is not UTF-8 (RFC 6455 section 8.1)")]
    InvalidUtf8,
    /// A close frame with half a code.
    #[error("close frame has a payload of 1 byte; a code takes 2 (RFC 6455 section 5.5.1)")]
    CloseCodeCut,
    /// A close code that must not be sent.
    #[error("close frame has the code {code}, which must not be sent (RFC 6455 section 7.4)")]
    CloseCodeInvalid {
        /// The code.
        code: u16,
    },
    /// A close reason that is not UTF-8.
    #[error("close reason is not UTF-8 (RFC 6455 section 5.5.1)")]
    CloseReasonNotUtf8,
}

impl WsError {
    /// The code to close with (RFC 6455 section 7.4.1).
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::FrameTooBig { .. } | Self::MessageTooBig { .. } | Self::InflatesTooBig { .. } => CloseCode::TOO_BIG,
            Self::InvalidUtf8 | Self::CloseReasonNotUtf8 | Self::NotDeflate => CloseCode::INVALID_PAYLOAD,
            Self::ReservedBits { .. }
            | Self::CompressedOutOfPlace { .. }
            | Self::ReservedOpCode { .. }
            | Self::ControlFragmented { .. }
            | Self::ControlTooLong { .. }
            | Self::LengthNotMinimal { .. }
            | Self::LengthTopBit
            | Self::NotMasked
            | Self::ContinuationWithoutStart
            | Self::MessageInterrupted { .. }
            | Self::CloseCodeCut
            | Self::CloseCodeInvalid { .. } => CloseCode::PROTOCOL_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::close::REASON_BYTES_MAX;
    use super::*;

    #[test]
    fn texts_carry_the_numbers_and_fit_a_close_frame() {
        let too_big = WsError::FrameTooBig { bytes: 70_001, limit: 65_536 };
        assert_eq!(too_big.to_string(), "frame announces 70001 bytes, limit 65536 (limits.message_bytes_max)");
        for (opcode, name) in [(OpCode::Close, "close"), (OpCode::Ping, "ping"), (OpCode::Pong, "pong")] {
            let text = WsError::ControlFragmented { opcode }.to_string();
            assert_eq!(text, format!("{name} frame is fragmented; control frames must not be (RFC 6455 section 5.5)"));
        }
        for (opcode, name) in [(OpCode::Text, "text"), (OpCode::Binary, "binary"), (OpCode::Continuation, "continuation")] {
            assert!(WsError::MessageInterrupted { opcode }.to_string().starts_with(&format!("{name} frame inside a fragmented message")));
        }
        for error in [
            WsError::ReservedBits { bits: 7 },
            WsError::ReservedOpCode { opcode: 15 },
            WsError::ControlFragmented { opcode: OpCode::Close },
            WsError::ControlTooLong { opcode: OpCode::Close },
            WsError::LengthNotMinimal { bytes: 65_535 },
            WsError::LengthTopBit,
            WsError::NotMasked,
            WsError::ContinuationWithoutStart,
            WsError::MessageInterrupted { opcode: OpCode::Binary },
            WsError::FrameTooBig { bytes: u64::MAX >> 1, limit: 1 << 30 },
            WsError::MessageTooBig { bytes: u64::MAX >> 1, limit: 1 << 30 },
            WsError::InflatesTooBig { bytes: u64::MAX >> 1, limit: 1 << 31 },
            WsError::CompressedOutOfPlace { opcode: OpCode::Continuation },
            WsError::NotDeflate,
            WsError::InvalidUtf8,
            WsError::CloseCodeCut,
            WsError::CloseCodeInvalid { code: 65_535 },
            WsError::CloseReasonNotUtf8,
        ] {
            assert!(error.to_string().len() <= REASON_BYTES_MAX, "{error}");
            assert!(error.close_code().is_valid_on_wire(), "{error}");
        }
    }
}
