//! Any bytes as a message of `shardcast.v1.json`: what is a request is an object of serde_json's tree too, and its id comes back in JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use shardcast::proto::json::reply::Reply;
use shardcast::proto::json::request::{ID_BYTES_MAX, Request, Said};

const MESSAGE_BYTES_MAX: usize = 256;

fuzz_target!(|data: &[u8]| {
    let Ok(said) = Said::parse(data, MESSAGE_BYTES_MAX) else { return };
    if let Ok(tree) = serde_json::from_slice::<Value>(data) {
        assert!(tree.is_object());
    }
    assert!(said.id.is_none_or(|id| id.len() <= ID_BYTES_MAX));
    let mut out = Vec::new();
    match &said.request {
        Ok(Request::Publish(publish)) => assert!(publish.payload.len() <= MESSAGE_BYTES_MAX),
        Ok(_) => {}
        Err(fault) => {
            Reply::Error { id: said.id, code: fault.code(), message: &fault.to_string(), retry_ms: None }.write(&mut out);
            // The id is the client's own JSON; without it all is ours.
            out.clear();
            Reply::Error { id: None, code: fault.code(), message: &fault.to_string(), retry_ms: None }.write(&mut out);
            serde_json::from_slice::<Value>(&out).expect("an error is JSON, whatever was asked for");
        }
    }
});
