//! Any bytes as a frame: the header is what tungstenite reads there, no byte behind it counts, and encoding it again gives the same bytes.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use shardcast::proto::ws::FrameHeader;
use shardcast::proto::ws::frame::{HEADER_MAX, encode_into, encode_masked_into};
use shardcast::proto::ws::mask::unmask;
use tungstenite::protocol::frame::FrameHeader as Oracle;

fuzz_target!(|data: &[u8]| {
    let parsed = FrameHeader::parse(data);
    // More bytes never change a verdict, and none is needed behind the longest header.
    let prefixes = (0..=data.len().min(HEADER_MAX)).map(|len| FrameHeader::parse(&data[..len]));
    assert!(prefixes.skip_while(|verdict| *verdict == Ok(None)).all(|verdict| verdict == parsed));
    let Ok(Some((header, len))) = parsed else { return };
    let (oracle, payload_len) = Oracle::parse(&mut Cursor::new(data)).expect("it is as strict at most").expect("it needs no more bytes");
    assert_eq!((header.fin, header.opcode as u8, header.masked), (oracle.is_final, u8::from(oracle.opcode), oracle.mask));
    assert_eq!((header.payload_len, len), (payload_len, oracle.len(payload_len)), "the length takes the fewest bytes");

    let Some(payload) = data[len..].get(..usize::try_from(payload_len).expect("64 bits")) else { return };
    let mut again = Vec::new();
    if let Some(mask) = header.masked {
        let mut plain = payload.to_vec();
        unmask(&mut plain, mask, 0);
        assert!(plain.iter().enumerate().all(|(at, byte)| *byte == payload[at] ^ mask[at % 4]));
        encode_masked_into(&mut again, header.fin, header.opcode, mask, &plain);
    } else if header.fin {
        encode_into(&mut again, header.opcode, payload);
    }
    assert!(again.is_empty() || again == data[..len + payload.len()]);
});
