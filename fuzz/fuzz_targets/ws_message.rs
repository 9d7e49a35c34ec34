//! Any bytes, in any pieces: the decoder never panics, takes what it says, and gives the same messages however the bytes were cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::ws::{Decoder, DecoderLimits, Incoming};

fn messages(input: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    for bytes in input.to_vec().chunks_mut(piece) {
        let mut at = 0;
        while at < bytes.len() {
            let Ok(decoded) = decoder.decode(&mut bytes[at..], &DecoderLimits { message_bytes_max: 4096 }) else { return out };
            at += decoded.consumed;
            match decoded.incoming {
                Some(Incoming::Message { payload, .. } | Incoming::Ping(payload) | Incoming::Pong(payload)) => out.push(payload.to_vec()),
                Some(Incoming::Close(_)) => return out,
                None => assert_eq!(at, bytes.len()),
            }
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, input)) = data.split_first() else { return };
    assert_eq!(messages(input, usize::from(piece) + 1), messages(input, usize::MAX.min(input.len().max(1))));
});
