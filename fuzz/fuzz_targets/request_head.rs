//! Any bytes as the requests of one connection: each head ends where the search for the end says, nothing leaves in doubt where its body ends,
//! and query values survive being escaped again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::http::{Body, Head, HeadStorage, Response, head_end, parse_head, query_pairs};
use shardcast::proto::topic::TopicName;
use shardcast_fuzz::oracle::tungstenite_opens;

const HEAD_BYTES_MAX: usize = 1024;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    loop {
        let parsed = parse_head(&mut HeadStorage::new(), rest, HEAD_BYTES_MAX).map(|head| head.map(|head| (head.len, body_bytes(&head))));
        let (len, body) = match parsed {
            Ok(Some(accepted)) => accepted,
            Ok(None) => return assert_eq!(head_end(rest, 0), None, "a head whose end is found is accepted or refused"),
            Err(error) => {
                let mut answer = Vec::new();
                Response::error(error.status(), &error.to_string()).close().encode(&mut answer);
                let read = tungstenite_opens(&answer, "", "");
                return assert!(matches!(read, Err(tungstenite::Error::Http(answer)) if answer.status() == error.status()));
            }
        };
        for cut in (0..len).step_by(len.div_ceil(8)) {
            assert_eq!(parse_head(&mut HeadStorage::new(), &rest[..cut], HEAD_BYTES_MAX), Ok(None));
            assert_eq!((head_end(&rest[..cut], 0), head_end(rest, cut)), (None, Some(len)));
        }
        let Some(next) = body.and_then(|body| rest[len..].get(usize::try_from(body).ok()?..)) else { return };
        rest = next;
    }
});

/// Bytes between this head and the next one; none when the connection ends before.
fn body_bytes(head: &Head<'_, '_>) -> Option<u64> {
    assert!(head.path.starts_with('/') && !head.host().iter().any(|byte| b" \t/,@\\".contains(byte)), "{head:?}");
    let pairs: Vec<_> = query_pairs(head.query.unwrap_or_default()).collect();
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let again: Vec<_> = pairs.iter().map(|(name, value)| escaped(name) + "=" + &escaped(value)).collect();
    assert!(query_pairs(&again.join("&")).eq(pairs.iter().cloned()));
    for (name, value) in &pairs {
        assert!(!name.contains(&b'=') || head.target.contains("%3"), "a name ends at the first =");
        if let Ok(name) = TopicName::from_bytes(value) {
            assert!(name.as_str().as_bytes() == &**value && !name.as_str().contains(char::is_control) && (1..=255).contains(&value.len()));
        }
    }
    let body = head.body().ok()?;
    let mut lengths = head.headers("content-length").flat_map(|value| value.split(|&byte| byte == b','));
    let bytes = if let Body::Length(bytes) = body { bytes } else { 0 };
    assert!(lengths.all(|length| str::from_utf8(length.trim_ascii()).is_ok_and(|length| length.parse() == Ok(bytes))));
    let codings: Vec<_> = head.list("transfer-encoding").map(<[u8]>::to_ascii_lowercase).collect();
    assert_eq!(codings, if body == Body::Chunked { vec![b"chunked".to_vec()] } else { vec![] });
    assert!(codings.is_empty() || head.version_minor == 1 && head.header("content-length").is_none());
    (head.keep_alive() && body != Body::Chunked).then_some(bytes)
}
