//! Any bytes as a request: parsing, routing values and the handshake never panic, and the end of a head is found wherever the search begins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::http::{HeadStorage, head_end, parse_head, query_pairs};
use shardcast::proto::topic::TopicName;
use shardcast::proto::ws::handshake;

fuzz_target!(|data: &[u8]| {
    for scanned in [1, data.len() / 2] {
        assert!(head_end(data, 0).is_none_or(|end| end <= data.len() && head_end(data, scanned.min(end.saturating_sub(4))).is_some()));
    }
    let mut storage = HeadStorage::new();
    if let Ok(Some(head)) = parse_head(&mut storage, data, 16 << 10) {
        assert!(head.len <= data.len());
        let _ = (head.body(), head.keep_alive(), handshake::check(&head).is_ok());
        for (_, value) in query_pairs(head.query.unwrap_or("")) {
            let _ = TopicName::from_bytes(&value);
        }
    }
});
