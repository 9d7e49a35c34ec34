//! Any bytes as a message of permessage-deflate: inflated within the bound or refused, the same message after message, and deflated to what another
//! implementation inflates; and any bytes of a client that may send such ones, in any pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use shardcast::proto::ws::{Deflater, Inflater};
use shardcast_fuzz::oracle::decode_agreed;

const BYTES_MAX: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut inflater = Inflater::new();
    let first = inflater.inflate(data, BYTES_MAX).map(<[u8]>::to_vec);
    assert!(first.as_ref().is_ok_and(|message| message.len() as u64 <= BYTES_MAX) || first.is_err());
    // One that is too long and broken besides is called either.
    assert_eq!(inflater.inflate(data, BYTES_MAX).ok(), first.as_deref().ok(), "nothing is taken over");

    let mut deflater = Deflater::new();
    if let Some(compressed) = deflater.deflate(data) {
        assert!(compressed.len() < data.len());
        assert_eq!(inflater.inflate(compressed, data.len() as u64), Ok(data));
        let whole = [compressed, &[0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff]].concat();
        assert_eq!(decompress_to_vec_with_limit(&whole, data.len() + 1).expect("another implementation inflates it"), data);
    }
    // Blocks with a last one, as senders without a flush make them.
    for level in [0, 6] {
        let theirs = compress_to_vec(data, level);
        assert_eq!(inflater.inflate(&theirs, data.len() as u64), Ok(data));
        assert_eq!(inflater.inflate(&[&theirs[..], &[0]].concat(), data.len() as u64), Ok(data));
    }

    let Some((cuts, input)) = data.split_first_chunk() else { return };
    assert_eq!(decode_agreed(input, *cuts), decode_agreed(input, [255; 4]));
});
