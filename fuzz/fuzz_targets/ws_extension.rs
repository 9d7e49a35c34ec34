//! Any bytes as the lines of Sec-WebSocket-Extensions: what is agreed to was offered and is an offer itself, and what is no list stays none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::ws::extension::negotiate;

fuzz_target!(|data: &[u8]| {
    let lines = || data.split(|byte| *byte == b'\n');
    let plain = &b"permessage-deflate"[..];
    match negotiate(lines()) {
        Ok(Some(agreed)) => {
            assert!(data.windows(plain.len()).any(|window| window == plain));
            assert!((8..=15).contains(&agreed.window().bits()));
            let mut answer = Vec::new();
            agreed.write(&mut answer);
            assert_eq!(negotiate([&answer[..]]), Ok(Some(agreed)), "an answer has the form of an offer");
            assert_eq!(negotiate(lines().chain([plain])), Ok(Some(agreed)), "the first one counts");
        }
        Ok(None) => assert!(negotiate(lines().chain([plain])).is_ok_and(|agreed| agreed.is_some()), "nothing was accepted before"),
        Err(error) => assert_eq!(negotiate(lines().chain([plain])), Err(error)),
    }
});
