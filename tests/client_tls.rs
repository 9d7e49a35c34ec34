//! The Rust client over TLS (feature `client-tls`), against a server whose certificate an authority of the test's own has signed. No gateway is in it: that has no TLS.
#![allow(clippy::disallowed_methods, reason = "tests stand outside: real time")]

#[path = "common/basics.rs"]
mod basics;

use std::net::TcpListener;
use std::sync::Arc;

use basics::{SOON, Scratch};
use shardcast::client::{Client, Event, Events, TrustError};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use tungstenite::handshake::server::{Request, Response};

fn openssl(scratch: &Scratch, words: &str) {
    let mut command = std::process::Command::new("openssl");
    let output = command.args(words.split(' ')).current_dir(scratch.path()).output().expect("the package openssl is installed");
    assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, and a certificate of it for 127.0.0.1.
fn certificates() -> Scratch {
    let scratch = Scratch::new();
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&scratch, &format!("req -x509 {ec} -days 2 -subj /CN=ca -keyout ca-key.pem -out ca.pem"));
    openssl(&scratch, &format!("req {ec} -subj /CN=localhost -keyout key.pem -out request.pem"));
    std::fs::write(scratch.join("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").expect("our directory");
    openssl(&scratch, "x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions -out cert.pem");
    scratch
}

/// A server that welcomes everybody, and ends them with 4403 when they say something. Its port.
fn server(certificates: &Scratch) -> u16 {
    let chain = CertificateDer::pem_file_iter(certificates.join("cert.pem")).expect("PEM").map(|one| one.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(certificates.join("key.pem")).expect("a key");
    let config =
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().expect("of ring");
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).expect("they fit"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).expect("a connection"), stream);
            #[expect(clippy::result_large_err, reason = "the library's own type")]
            let shake = |_: &Request, mut response: Response| {
                response.headers_mut().insert("Sec-WebSocket-Protocol", "shardcast.v1.json".parse().expect("a word"));
                Ok(response)
            };
            // Who does not trust us goes before that.
            let Ok(mut socket) = tungstenite::accept_hdr(stream, shake) else { continue };
            let welcome = r#"{"type":"welcome","conn":"0-0-0","ping_ms":45000,"retry_ms":100,"max_bytes":65536}"#;
            if socket.send(welcome.into()).is_ok() && socket.read().is_ok() {
                let _ = socket.send(r#"{"type":"bye","code":4403,"reason":"heard in secret"}"#.into());
                let _ = socket.close(None);
                while socket.read().is_ok() {}
            }
        }
    });
    port
}

async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(SOON, events.recv()).await.expect("in time").expect("it is not over")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_trusts_the_authority_is_connected_and_who_does_not_is_not() {
    let certificates = certificates();
    let url = format!("wss://127.0.0.1:{}", server(&certificates));
    let pem = std::fs::read(certificates.join("ca.pem")).expect("our file");
    let builder = Client::builder(&url).trust(&pem).expect("an authority").token(|| async { Ok::<_, String>("x".to_owned()) });
    let (_client, mut events) = builder.start().expect("a URL");
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    let Event::Closed(closed) = next(&mut events).await else { panic!("it was told to stop") };
    assert_eq!((closed.code, &*closed.reason), (Some(4403), "4403 heard in secret"));
    // The system's authorities have not signed for it; nor has the other's name.
    for builder in [Client::builder(&url), Client::builder(&url.replace("127.0.0.1", "localhost")).trust(&pem).expect("an authority")] {
        let (_client, mut events) = builder.tries_max(1).start().expect("a URL");
        let Event::Closed(closed) = next(&mut events).await else { panic!("it must not be connected") };
        assert!(closed.reason.contains("certificate"), "{closed}");
    }
}

#[test]
fn what_is_no_authority_is_said() {
    let trust = |pem: &str| Client::builder("wss://127.0.0.1").trust(pem.as_bytes()).map(drop);
    assert!(matches!(trust(""), Err(TrustError::Nothing)));
    assert!(trust("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    assert!(trust("-----BEGIN CERTIFICATE-----\nAAAA\n").is_err());
}
