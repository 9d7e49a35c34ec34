//! The opening handshake (RFC 6455 section 4.2): an HTTP request that asks for a WebSocket, and the answer.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};

use super::super::http::head::{Body, Head};
use super::super::http::is_token;
use super::super::http::response::Response;
use super::extension::{Agreed, MalformedExtensions, negotiate};

/// Bytes of a Sec-WebSocket-Accept value: 20 bytes of SHA-1 in base64.
pub const ACCEPT_BYTES: usize = 28;

/// RFC 6455 section 4.2.2: the GUID that shows the answer to come from a WebSocket server.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The one version spoken here (RFC 6455 section 4.1).
const VERSION: &str = "13";

/// Lenient about the spare bits of the last character: some clients fill a key with random characters instead of encoding random bytes.
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// The Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 section 4.2.2 step 5.4).
///
/// ```
/// use shardcast::proto::ws::handshake::accept_key;
///
/// assert_eq!(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    let len = BASE64.encode_slice(digest, &mut accept).expect("20 bytes are 28 characters of base64");
    debug_assert_eq!(len, ACCEPT_BYTES);
    accept
}

/// A request that may be answered with [`switching_protocols`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upgrade<'h> {
    /// The Sec-WebSocket-Accept to answer with.
    pub accept: [u8; ACCEPT_BYTES],
    /// The page's origin, when the client is a browser (RFC 6455 section 4.2.1 item 7).
    pub origin: Option<&'h [u8]>,
    head: &'h Head<'h, 'h>,
}

impl<'h> Upgrade<'h> {
    /// The subprotocols that the client offers, best first (RFC 6455 section 4.2.1 item 8). What is no token is left out: it can match
    /// nothing, and must not reach an answer.
    pub fn protocols(&self) -> impl Iterator<Item = &'h str> + use<'h> {
        self.head.list("sec-websocket-protocol").filter(|protocol| is_token(protocol)).filter_map(|protocol| str::from_utf8(protocol).ok())
    }

    /// What is agreed to of the extensions that the client offers.
    ///
    /// # Errors
    /// When it offers what is no list of extensions.
    pub fn extension(&self) -> Result<Option<Agreed>, MalformedExtensions> {
        negotiate(self.head.headers("sec-websocket-extensions"))
    }
}

/// Judges a request as an opening handshake (RFC 6455 section 4.2.1).
///
/// # Errors
/// The first requirement that is not met; [`HandshakeError::response`] answers it.
pub fn check<'h>(head: &'h Head<'_, '_>) -> Result<Upgrade<'h>, HandshakeError> {
    if head.method != "GET" {
        return Err(HandshakeError::Method);
    }
    if !head.has_token("upgrade", "websocket") {
        return Err(HandshakeError::NoUpgrade);
    }
    // RFC 9110 section 7.8: Upgrade must be ignored in an HTTP/1.0 request.
    if head.version_minor == 0 {
        return Err(HandshakeError::Http10);
    }
    if !head.has_token("connection", "upgrade") {
        return Err(HandshakeError::NoConnectionUpgrade);
    }
    // RFC 6455 section 4.4: another version, or none, is answered with the one spoken here.
    let mut versions = head.headers("sec-websocket-version");
    if versions.next() != Some(VERSION.as_bytes()) || versions.next().is_some() {
        return Err(HandshakeError::Version);
    }
    let mut keys = head.headers("sec-websocket-key");
    let key = keys.next().ok_or(HandshakeError::KeyMissing)?;
    // RFC 6455 section 11.3.1: Sec-WebSocket-Key must not appear more than once.
    if keys.next().is_some() {
        return Err(HandshakeError::KeyRepeated);
    }
    // RFC 6455 section 4.2.1 item 5: when decoded, it is 16 bytes long.
    if BASE64.decode_slice(key, &mut [0; 18]) != Ok(16) {
        return Err(HandshakeError::KeyMalformed);
    }
    // Bytes after the head are frames: a body would be read as such.
    if head.body() != Ok(Body::None) {
        return Err(HandshakeError::Body);
    }
    Ok(Upgrade { accept: accept_key(key), origin: head.header("origin"), head })
}

/// Why a request opens no WebSocket. The client, or a proxy before it, is at fault in all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Another method than GET.
    #[error("a WebSocket is opened with GET (RFC 6455 section 4.1)")]
    Method,
    /// No `Upgrade: websocket`: a browser's address bar, curl, or a proxy that does not pass it on.
    #[error("this URL is a WebSocket: open it with a WebSocket client; if that was one, a proxy in between drops the Upgrade header")]
    NoUpgrade,
    /// HTTP/1.0.
    #[error("a WebSocket needs HTTP/1.1, this request is HTTP/1.0; if the client sent 1.1, configure the proxy in between to keep it")]
    Http10,
    /// No `Connection: upgrade`.
    #[error("request has Upgrade: websocket without Connection: upgrade (RFC 6455 section 4.2.1); a proxy in between may drop it")]
    NoConnectionUpgrade,
    /// No version, or another than 13.
    #[error("Sec-WebSocket-Version must be {VERSION}, once (RFC 6455 section 4.2.1)")]
    Version,
    /// No key.
    #[error("Sec-WebSocket-Key is missing (RFC 6455 section 4.2.1)")]
    KeyMissing,
    /// Several keys.
    #[error("Sec-WebSocket-Key appears more than once (RFC 6455 section 11.3.1)")]
    KeyRepeated,
    /// Not base64 of 16 bytes.
    #[error("Sec-WebSocket-Key is not base64 of 16 bytes (RFC 6455 section 4.2.1)")]
    KeyMalformed,
    /// A request body.
    #[error("a WebSocket handshake has no body: send neither Content-Length nor Transfer-Encoding")]
    Body,
}

impl HandshakeError {
    /// The status to answer with.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Method => 405,
            // RFC 9110 section 15.5.22 for what could succeed as an upgrade; RFC 6455 section 4.4 for the version.
            Self::NoUpgrade | Self::Http10 | Self::Version => 426,
            // RFC 6455 section 4.2.1: an error such as 400 for a handshake that does not match.
            Self::NoConnectionUpgrade | Self::KeyMissing | Self::KeyRepeated | Self::KeyMalformed | Self::Body => 400,
        }
    }

    /// The whole answer, with the headers that its status asks for. [`Self::Body`] must close the connection after it; the others may keep it.
    pub fn response(&self) -> Response {
        let response = Response::error(self.status(), &self.to_string());
        match self.status() {
            // RFC 9110 section 15.5.6: Allow must be there.
            405 => response.header("Allow", "GET"),
            // RFC 9110 section 7.8: who sends Upgrade sends `Connection: upgrade`; RFC 6455 section 4.4: and the versions it speaks.
            426 => response.header("Upgrade", "websocket").header("Connection", "Upgrade").header("Sec-WebSocket-Version", VERSION),
            _ if *self == Self::Body => response.close(),
            _ => response,
        }
    }
}

/// Appends the answer that opens the WebSocket (RFC 6455 section 4.2.2 step 5). `protocol` is one that the client offered, or nothing; so is what was
/// agreed to of its extensions.
///
/// # Panics
/// When `protocol` is not a token: the ones that we speak are constants of ours.
pub fn switching_protocols(accept: &[u8; ACCEPT_BYTES], protocol: Option<&str>, extension: Option<Agreed>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ");
    out.extend_from_slice(accept);
    if let Some(protocol) = protocol {
        assert!(is_token(protocol.as_bytes()), "subprotocol {protocol:?} is not a token");
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    if let Some(extension) = extension {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        extension.write(out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Whether a browser's `Origin` (RFC 6454 section 7: `scheme://host[:port]`) names the host and port of the request. A port that is not
/// written is the default of the origin's scheme, on both sides, as a proxy that ends TLS passes Host on without its port. `null`, lists,
/// and schemes other than http, https, ws and wss never match.
///
/// ```
/// use shardcast::proto::ws::handshake::origin_matches_host;
///
/// assert!(origin_matches_host(b"http://h", b"H:80"));
/// assert!(!origin_matches_host(b"null", b"h"));
/// ```
pub fn origin_matches_host(origin: &[u8], host: &[u8]) -> bool {
    let Some(scheme_end) = memchr::memmem::find(origin, b"://") else { return false };
    let default_port = match origin[..scheme_end].to_ascii_lowercase().as_slice() {
        b"http" | b"ws" => 80,
        b"https" | b"wss" => 443,
        _ => return false,
    };
    match (split_port(&origin[scheme_end + 3..], default_port), split_port(host, default_port)) {
        (Some((origin_host, origin_port)), Some((host, port))) => origin_port == port && origin_host.eq_ignore_ascii_case(host),
        _ => false,
    }
}

/// Splits `host[:port]`; `None` when it is anything else.
fn split_port(authority: &[u8], default_port: u16) -> Option<(&[u8], u16)> {
    let colon = memchr::memrchr(b':', authority).filter(|&colon| !authority[colon..].contains(&b']'));
    let (host, port) = match colon {
        // RFC 3986 section 6.2.3: an empty port is the default one.
        Some(colon) if colon + 1 == authority.len() => (&authority[..colon], default_port),
        Some(colon) => (&authority[..colon], str::from_utf8(&authority[colon + 1..]).ok()?.parse().ok()?),
        None => (authority, default_port),
    };
    let is_host = !host.is_empty() && !host.iter().any(|byte| byte.is_ascii_whitespace() || b"/?#@,\\".contains(byte));
    is_host.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::super::super::http::head::{HeadStorage, parse_head};
    use super::*;

    /// RFC 6455 section 1.3, without its subprotocols.
    const SAMPLE: &str = "Host: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                          Origin: http://example.com\r\nSec-WebSocket-Version: 13\r\n";

    fn with<T>(request_line: &str, headers: &str, look: impl FnOnce(Result<Upgrade<'_>, HandshakeError>) -> T) -> T {
        let text = format!("{request_line}\r\n{headers}\r\n");
        let mut storage = HeadStorage::new();
        let head = parse_head(&mut storage, text.as_bytes(), 16_384).expect("it is a valid head").expect("it is complete");
        look(check(&head))
    }

    fn refused(request_line: &str, headers: &str, expect: HandshakeError, status: u16) {
        with(request_line, headers, |outcome| assert_eq!(outcome, Err(expect), "{request_line} {headers}"));
        let mut out = Vec::new();
        expect.response().encode(&mut out);
        let answer = String::from_utf8(out).expect("we write UTF-8");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        if status == 426 {
            assert!(answer.contains("\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
        }
        assert_eq!(status == 405, answer.contains("\r\nAllow: GET\r\n"), "{answer}");
    }

    #[test]
    fn the_sample_handshake_of_the_rfc_is_accepted() {
        let headers = format!("{SAMPLE}Sec-WebSocket-Protocol: chat, superchat\r\n");
        with("GET /chat HTTP/1.1", &headers, |upgrade| {
            let upgrade = upgrade.expect("it is the RFC's own");
            assert_eq!(upgrade.origin, Some(&b"http://example.com"[..]));
            assert_eq!(upgrade.protocols().collect::<Vec<_>>(), ["chat", "superchat"]);
            let mut out = Vec::new();
            switching_protocols(&upgrade.accept, Some("chat"), None, &mut out);
            assert_eq!(
                String::from_utf8_lossy(&out),
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
            );
            out.clear();
            switching_protocols(&upgrade.accept, None, None, &mut out);
            assert!(out.ends_with(b"+xOo=\r\n\r\n"));
        });
    }

    #[test]
    fn what_real_clients_vary_is_accepted() {
        for (from, to) in [
            ("Upgrade: websocket", "upgrade: WebSocket"),
            ("Upgrade: websocket", "Upgrade: h2c, websocket"),
            ("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
            ("Connection: Upgrade", "connection: keep-alive\r\nConnection: upgrade"),
            ("Origin: http://example.com\r\n", ""),
            ("Origin: ", "Content-Length: 0\r\nOrigin: "),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZf=="),
        ] {
            assert!(SAMPLE.contains(from));
            with("GET / HTTP/1.1", &SAMPLE.replace(from, to), |outcome| assert!(outcome.is_ok(), "{to}: {outcome:?}"));
        }
    }

    #[test]
    fn what_is_no_handshake_is_refused_with_the_status_that_says_why() {
        use HandshakeError::*;
        for (from, to, expect, status) in [
            ("Upgrade: websocket\r\n", "", NoUpgrade, 426),
            ("Upgrade: websocket", "Upgrade: h2c", NoUpgrade, 426),
            ("Upgrade: websocket", "Upgrade: websockets", NoUpgrade, 426),
            ("Connection: Upgrade\r\n", "", NoConnectionUpgrade, 400),
            ("Connection: Upgrade", "Connection: close", NoConnectionUpgrade, 400),
            ("Sec-WebSocket-Version: 13\r\n", "", Version, 426),
            ("Version: 13", "Version: 8", Version, 426),
            ("Version: 13", "Version: 13, 8", Version, 426),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8", Version, 426),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", KeyMissing, 400),
            ("Origin: ", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: ", KeyRepeated, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWE=", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWFi", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhl!HNhbXBsZSBub25jZQ==", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub44=ZjQ=", KeyMalformed, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", &"dGhlIHNhbXBsZSBub25jZQ==".repeat(50), KeyMalformed, 400),
            ("Origin: ", "Content-Length: 5\r\nOrigin: ", Body, 400),
            ("Origin: ", "Transfer-Encoding: chunked\r\nOrigin: ", Body, 400),
            ("Origin: ", "Content-Length: x\r\nOrigin: ", Body, 400),
        ] {
            assert!(SAMPLE.contains(from));
            refused("GET / HTTP/1.1", &SAMPLE.replacen(from, to, 1), expect, status);
        }
        refused("POST / HTTP/1.1", SAMPLE, Method, 405);
        refused("get / HTTP/1.1", SAMPLE, Method, 405);
        refused("GET / HTTP/1.0", SAMPLE, Http10, 426);
    }

    #[test]
    fn protocols_are_offered_in_order_over_all_lines_and_only_tokens() {
        let headers = format!("{SAMPLE}Sec-WebSocket-Protocol: a ,, b c,shardcast.v1.json\r\nsec-websocket-protocol: x/y, é, z\r\n");
        with("GET / HTTP/1.1", &headers, |upgrade| {
            assert_eq!(upgrade.expect("it is valid").protocols().collect::<Vec<_>>(), ["a", "shardcast.v1.json", "z"]);
        });
    }

    #[test]
    fn an_origin_matches_the_host_it_names_with_default_ports_written_or_not() {
        for (origin, host, matches) in [
            ("http://h", "h", true),
            ("http://h", "h:80", true),
            ("http://h:80", "h", true),
            ("http://h", "h:", true),
            ("HTTP://Example.COM", "example.com", true),
            ("https://h", "h", true),
            ("https://h", "h:443", true),
            ("https://h:443", "h", true),
            ("http://h:8080", "h:8080", true),
            ("http://[::1]:8080", "[::1]:8080", true),
            ("http://[::1]", "[::1]", true),
            ("http://[::1]", "[::1]:80", true),
            ("https://h", "h:80", false),
            ("http://h", "h:443", false),
            ("http://h", "h:8080", false),
            ("http://h:8080", "h", false),
            ("http://h", "g", false),
            ("http://h.evil", "h", false),
            ("http://evil.h", "h", false),
            ("http://[::1]", "[::2]", false),
            ("null", "null", false),
            ("null", "h", false),
            ("", "", false),
            ("http://", "", false),
            ("http://:80", ":80", false),
            ("h", "h", false),
            ("://h", "h", false),
            ("ftp://h", "h", false),
            ("file://", "", false),
            ("chrome-extension://h", "h", false),
            ("http://h/", "h", false),
            ("http://h/", "h/", false),
            ("http://me@h", "me@h", false),
            ("http://h http://h", "h http://h", false),
            ("http://h:99999", "h:99999", false),
            ("http://h:x", "h:x", false),
        ] {
            assert_eq!(origin_matches_host(origin.as_bytes(), host.as_bytes()), matches, "{origin} {host}");
        }
    }
}
