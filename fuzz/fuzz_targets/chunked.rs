//! Any bytes as a chunked body: the same body, end or error however they are cut. And any chunking of any body: the decoder gives the body back
//! and leaves alone what follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::http::{ChunkError, ChunkedDecoder};

const BODY_BYTES_MAX: usize = 1024;

type Outcome = Result<(Vec<u8>, usize, bool), ChunkError>;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, input)) = data.split_first() else { return };
    let whole = decode(&[input]);
    let (front, back) = input.split_at(usize::from(cut).min(input.len()));
    assert_eq!(decode(&[front, back]), whole);
    assert_eq!(decode(&input.chunks(1).collect::<Vec<_>>()), whole);
    if let Ok((body, consumed, done)) = &whole {
        assert!(body.len() <= BODY_BYTES_MAX.min(*consumed) && (*done || *consumed == input.len()));
        assert!(!done || input[..*consumed].ends_with(b"\r\n\r\n") || input[..*consumed].ends_with(b"\n\r\n"));
    }

    let body = &input[..input.len().min(BODY_BYTES_MAX)];
    let mut framed = Vec::new();
    for chunk in body.chunks(1 + usize::from(cut)) {
        framed.extend_from_slice(format!("{:x};n=\"{}\"\r\n", chunk.len(), cut).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
        if framed.len() > 8 << 10 {
            return;
        }
    }
    framed.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
    let len = framed.len();
    framed.extend_from_slice(input);
    assert_eq!(decode(&[&framed]), Ok((body.to_vec(), len, true)));
});

fn decode(pieces: &[&[u8]]) -> Outcome {
    let (mut decoder, mut body, mut consumed) = (ChunkedDecoder::new(), Vec::new(), 0);
    let mut done = false;
    for piece in pieces {
        let taken = decoder.decode(piece, &mut body, BODY_BYTES_MAX)?;
        (consumed, done) = (consumed + taken.consumed, taken.done);
        if done {
            break;
        }
    }
    Ok((body, consumed, done))
}
