//! RFC 6455 frames, written a second time for the tests and only as far as they need it.

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// The FIN bit of the first byte.
pub const FIN: u8 = 0x80;

const MASK_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A whole masked frame. `first` is the first byte as it goes out: FIN, reserved bits and opcode.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 14);
    append_masked(&mut bytes, first, payload);
    bytes
}

/// The same, appended.
pub fn append_masked(bytes: &mut Vec<u8>, first: u8, payload: &[u8]) {
    head(bytes, first, payload.len() as u64, 0x80);
    bytes.extend_from_slice(&MASK_KEY);
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    for (at, byte) in bytes[start..].iter_mut().enumerate() {
        *byte ^= MASK_KEY[at % 4];
    }
}

/// A frame head that announces `length` bytes and brings none of them; masked.
pub fn head_only(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    head(&mut bytes, first, length, 0x80);
    bytes.extend_from_slice(&MASK_KEY);
    bytes
}

/// What no client may send: a frame without a mask.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    head(&mut bytes, first, payload.len() as u64, 0);
    bytes.extend_from_slice(payload);
    bytes
}

fn head(bytes: &mut Vec<u8>, first: u8, length: u64, mask_bit: u8) {
    bytes.push(first);
    match length {
        0..=125 => bytes.push(mask_bit | length as u8),
        126..=0xffff => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason);
    payload
}

/// Where one frame from the gateway lies in a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Parsed {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    pub payload_start: usize,
    pub end: usize,
}

/// The frame at the start of `bytes`, or `None` while it is not whole.
///
/// # Panics
/// When it is masked: a server must not mask (RFC 6455 section 5.1).
pub fn parse(bytes: &[u8]) -> Option<Parsed> {
    let [first, second, ..] = *bytes else { return None };
    assert_eq!(second & 0x80, 0, "the gateway sent a masked frame");
    let (payload_start, length) = match second {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().expect("2 bytes")))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().expect("8 bytes"))),
        short => (2, u64::from(short)),
    };
    let end = payload_start + usize::try_from(length).expect("a length of this machine");
    (bytes.len() >= end).then_some(Parsed { first, payload_start, end })
}

/// Code and reason of a close payload; no code when it is empty.
pub fn close_code(payload: &[u8]) -> (Option<u16>, String) {
    match payload {
        [] => (None, String::new()),
        [_] => panic!("a close frame of one byte"),
        [high, low, reason @ ..] => {
            (Some(u16::from_be_bytes([*high, *low])), String::from_utf8(reason.to_vec()).expect("a close reason is UTF-8"))
        }
    }
}
