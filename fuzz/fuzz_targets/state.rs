//! Any bytes as records of a state file: what is accepted is written again with the same bytes. The checksum is put right first, or hardly any would be.
#![no_main]

use std::hash::Hasher;

use libfuzzer_sys::fuzz_target;
use shardcast::proto::state::{HEADER_BYTES, MAGIC, Record, VERSION, decode_header, encode_header};
use siphasher::sip::SipHasher13;

fuzz_target!(|data: &[u8]| {
    if decode_header(data).is_ok() {
        let mut header = Vec::new();
        encode_header(&mut header);
        assert_eq!(header, data[..HEADER_BYTES]);
    }
    assert!(!matches!(Record::decode(data), Ok(Some((_, length))) if length > data.len()));
    let Some((&kind, body)) = data.split_first() else { return };
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    let mut hasher = SipHasher13::new_with_keys(u64::from_le_bytes(*MAGIC), u64::from(VERSION));
    hasher.write(&bytes);
    let checksum = hasher.finish();
    bytes.extend_from_slice(&checksum.to_le_bytes());
    match Record::decode(&bytes) {
        Ok(Some((record, length))) => {
            let mut again = Vec::new();
            record.encode(&mut again);
            assert_eq!((length, &again), (bytes.len(), &bytes), "{record:?}");
        }
        Ok(None) => unreachable!("it is whole"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
