//! Any bytes of a client, in any pieces: the same messages and the same end however they are cut, and the same as tungstenite's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::ws::{CloseCode, WsError};
use shardcast_fuzz::oracle::{decode, tungstenite_decode};
use tungstenite::Message;

fuzz_target!(|data: &[u8]| {
    let Some((cuts, input)) = data.split_first_chunk() else { return };
    let (mut ours, end) = decode(input, *cuts);
    assert_eq!(decode(input, [255; 4]), (ours.clone(), end));
    let (theirs, code) = tungstenite_decode(input, end.is_err());
    match end {
        // Registered with IANA since; tungstenite does not know it.
        Ok(_) if matches!(ours.last(), Some(Message::Close(Some(close))) if u16::from(close.code) == 1014) => {
            ours.pop();
            assert_eq!((ours, code), (theirs, Some(1002)));
        }
        Ok(_) => assert_eq!((ours, code), (theirs, None)),
        // tungstenite takes a length in more bytes than it needs, and goes on.
        Err(WsError::LengthNotMinimal { .. } | WsError::ControlTooLong { .. }) => assert!(theirs.starts_with(&ours)),
        Err(error) => {
            assert_eq!(ours, theirs);
            let expect = error.close_code();
            // It looks at the announced length before all else, and at the reason of a close frame before the code.
            let other_fault_first = expect == CloseCode::PROTOCOL_ERROR && code == Some(1009)
                || matches!(error, WsError::CloseCodeInvalid { .. }) && code == Some(1007);
            assert!(code == Some(expect.0) || other_fault_first, "{error}, but tungstenite: {code:?}");
        }
    }
});
