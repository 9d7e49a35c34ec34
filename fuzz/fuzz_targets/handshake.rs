//! Any request as an opening handshake: accepted when tungstenite accepts it, with an answer that its client takes, and otherwise refused with a
//! reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::http::{Head, HeadStorage, parse_head};
use shardcast::proto::ws::handshake::{HandshakeError, check, origin_matches_host, switching_protocols};
use shardcast_fuzz::oracle::{tungstenite_accepts, tungstenite_opens};
use tungstenite::Error;
use tungstenite::error::ProtocolError;

fuzz_target!(|data: &[u8]| {
    let mut storage = HeadStorage::new();
    let Ok(Some(head)) = parse_head(&mut storage, data, 16 << 10) else { return };
    let theirs = tungstenite_accepts(&data[..head.len]);
    let mut answer = Vec::new();
    match check(&head) {
        Ok(upgrade) => {
            let protocols: Vec<_> = upgrade.protocols().collect();
            switching_protocols(&upgrade.accept, protocols.last().copied(), None, &mut answer);
            let key = str::from_utf8(head.header("sec-websocket-key").expect("it was checked")).expect("base64");
            tungstenite_opens(&answer, key, &protocols.join(",")).expect("a client takes the answer");
            assert!(theirs.is_ok() || is_stricter(&theirs, &head), "{theirs:?}");
            let host = head.host().to_ascii_lowercase();
            let origin = upgrade.origin.unwrap_or_default().to_ascii_lowercase();
            let name = host.split(|&byte| byte == b':').next().unwrap_or_default();
            assert!(!origin_matches_host(&origin, &host) || origin.windows(name.len().max(1)).any(|window| window == name));
        }
        Err(error) => {
            error.response().encode(&mut answer);
            let read = tungstenite_opens(&answer, "", "");
            assert!(matches!(read, Err(Error::Http(answer)) if answer.status() == error.status()));
            assert!(theirs.is_err() || is_laxer(&error, &head), "{error}");
        }
    }
});

/// What tungstenite refuses and RFC 6455 allows: lists in Upgrade, and in Connection over lines, with tabs or with bytes over 127; a key whose
/// spare bits are set (clients that fill it with random characters); targets and headers outside of what the crate `http` holds.
fn is_stricter(theirs: &Result<(), Error>, head: &Head<'_, '_>) -> bool {
    let is_plain = |name, value: &str| head.header(name).is_some_and(|sent| sent.eq_ignore_ascii_case(value.as_bytes()));
    match theirs {
        Err(Error::Protocol(ProtocolError::MissingUpgradeWebSocketHeader)) => !is_plain("upgrade", "websocket"),
        Err(Error::Protocol(ProtocolError::MissingConnectionUpgradeHeader)) => !is_plain("connection", "upgrade"),
        Err(Error::Protocol(ProtocolError::InvalidSecWebSocketKey)) => {
            // The 22nd character, the last one before `==`, has 4 spare bits.
            head.header("sec-websocket-key").and_then(|key| key.get(21)).is_some_and(|last| !b"AQgw".contains(last))
        }
        Err(Error::HttpFormat(_)) => true,
        _ => false,
    }
}

/// What tungstenite takes and we do not: a version or a key twice, a key of several pieces of base64 that are padded each, a body, and words in
/// Connection that no comma parts.
fn is_laxer(error: &HandshakeError, head: &Head<'_, '_>) -> bool {
    match error {
        HandshakeError::Version => head.headers("sec-websocket-version").count() > 1,
        HandshakeError::KeyRepeated | HandshakeError::Body => true,
        HandshakeError::KeyMalformed => {
            head.header("sec-websocket-key").is_some_and(|key| key.iter().rev().skip(2).any(|&byte| byte == b'='))
        }
        HandshakeError::NoConnectionUpgrade => head.header("connection").is_some_and(|value| value.contains(&b' ')),
        _ => false,
    }
}
