//! Messages compressed and inflated as a client of permessage-deflate does it (RFC 7692 section 7.2).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The first frame of a compressed message has this bit.
pub const RSV1: u8 = 0x40;

/// A message as a client compresses it.
pub fn deflate(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 1000);
    let mut state = Compress::new(Compression::new(6), false);
    state.compress_vec(message, &mut out, FlushCompress::Sync).expect("there is room");
    assert_eq!(out.split_off(out.len() - 4), [0, 0, 0xff, 0xff]);
    out
}

/// What a client makes of one.
pub fn inflate(compressed: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let whole = [compressed, &[0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff]].concat();
    let status = Decompress::new(false).decompress_vec(&whole, &mut out, FlushDecompress::Finish);
    assert_eq!(status.expect("it is DEFLATE"), Status::StreamEnd, "a message ends with its last block");
    out
}
