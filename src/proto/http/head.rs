//! The head of a request: request line and headers, from the first byte to the empty line.
//!
//! httparse splits the lines; this file decides what they mean and refuses what RFC 9112 wants refused, above all everything that could make
//! two servers disagree about where a request ends (request smuggling, RFC 9112 section 11.2). After any error the connection must be
//! closed: where the next request would start is then unknown.
//!
//! A caller that reads in pieces gathers bytes, asks [`head_end`] about the new ones, and calls [`parse_head`] once, when there is an end
//! or when more than `limits.head_bytes_max` bytes have come.

use std::mem::MaybeUninit;

use super::is_token;

/// The most headers a request may have. Browsers send about 20, proxies add about 10.
pub const HEADERS_MAX: usize = 100;

/// Room for the headers of one request, on the caller's stack. They borrow from the bytes of the head.
pub struct HeadStorage<'b>([MaybeUninit<httparse::Header<'b>>; HEADERS_MAX]);

impl HeadStorage<'_> {
    /// Empty storage; costs nothing to make.
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; HEADERS_MAX])
    }
}

impl Default for HeadStorage<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// A complete and accepted request head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head<'s, 'b> {
    /// The method as sent; methods are case-sensitive (RFC 9110 section 9.1).
    pub method: &'b str,
    /// The request target as sent.
    pub target: &'b str,
    /// The path of the target, percent-encoded as sent; starts with `/`.
    pub path: &'b str,
    /// What follows the target's first `?`.
    pub query: Option<&'b str>,
    /// Host and port of a target in absolute form; [`Self::host`] joins it with the header.
    pub authority: Option<&'b str>,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version_minor: u8,
    /// Bytes of the head, the empty line and any empty lines before the request line included: where the body starts.
    pub len: usize,
    /// Every header in order; [`Self::header`] and its like search them.
    pub headers: &'s [httparse::Header<'b>],
}

impl<'s, 'b> Head<'s, 'b> {
    /// The value of the first header of that name, whatever its case, without the white space around it.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The values of all headers of that name, in order.
    pub fn headers<'n>(&self, name: &'n str) -> impl DoubleEndedIterator<Item = &'b [u8]> + use<'s, 'b, 'n> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The elements of a comma-separated list, over all headers of that name (RFC 9110 section 5.6.1: empty elements do not count).
    pub fn list<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'s, 'b, 'n> {
        self.headers(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
    }

    /// Whether such a list has this element, whatever its case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whom the request is for, `host` or `host:port`: the target's authority when it has one, else the Host header (RFC 9112 section
    /// 3.2.2: an absolute target wins). Empty when HTTP/1.0 names no host.
    pub fn host(&self) -> &'b [u8] {
        self.authority.map_or_else(|| self.header("host").unwrap_or_default(), str::as_bytes)
    }

    /// Whether the connection may carry another request after this one (RFC 9112 section 9.3).
    pub fn keep_alive(&self) -> bool {
        !self.has_token("connection", "close") && (self.version_minor >= 1 || self.has_token("connection", "keep-alive"))
    }

    /// How the body ends. To be asked of *every* request, GET too: a body that is not skipped would be read as the next request.
    ///
    /// # Errors
    /// Whatever leaves the end of the body in doubt (RFC 9112 section 6.3), and transfer codings other than chunked.
    pub fn body(&self) -> Result<Body, HeadError> {
        let length = self.content_length()?;
        if self.header("transfer-encoding").is_none() {
            return Ok(match length {
                None | Some(0) => Body::None,
                Some(bytes) => Body::Length(bytes),
            });
        }
        // RFC 9112 section 6.1: a server may reject both together, and must close; in HTTP/1.0 the framing is faulty.
        if length.is_some() {
            return Err(HeadError::LengthAndTransferEncoding);
        }
        if self.version_minor == 0 {
            return Err(HeadError::TransferEncodingInHttp10);
        }
        let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        // RFC 9112 section 6.3 rule 4: chunked must be the final coding; section 7.1: and be applied only once.
        if !self.list("transfer-encoding").last().is_some_and(chunked) || self.list("transfer-encoding").filter(|c| chunked(c)).count() > 1
        {
            return Err(HeadError::TransferEncodingNotChunked);
        }
        match self.list("transfer-encoding").count() {
            1 => Ok(Body::Chunked),
            // RFC 9112 section 6.1: 501 for a coding that the server does not understand.
            _ => Err(HeadError::TransferEncodingUnknown),
        }
    }

    /// RFC 9112 section 6.3 rule 5 and RFC 9110 section 8.6: digits only; repetitions, as lines or as a list, must agree.
    fn content_length(&self) -> Result<Option<u64>, HeadError> {
        let mut length = None;
        for value in self.headers("content-length").flat_map(|value| value.split(|&byte| byte == b',')) {
            let bytes = decimal(value.trim_ascii()).ok_or(HeadError::ContentLengthInvalid)?;
            match length {
                Some(first) if first != bytes => return Err(HeadError::ContentLengthsDiffer { first, second: bytes }),
                _ => length = Some(bytes),
            }
        }
        Ok(length)
    }
}

/// How the body of a request ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// There is none: the next request starts right after the head.
    None,
    /// After this many bytes; never 0.
    Length(u64),
    /// With the chunk of size 0 and the trailers (RFC 9112 section 7.1).
    Chunked,
}

/// Why a request head is refused. The peer is at fault in all of them; the connection is to be closed after the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadError {
    /// No end within the limit.
    #[error("request head is over {limit} bytes (limits.head_bytes_max)")]
    TooLarge {
        /// `limits.head_bytes_max`.
        limit: usize,
    },
    /// Over [`HEADERS_MAX`] headers.
    #[error("request has over {HEADERS_MAX} headers")]
    TooManyHeaders,
    /// Not the syntax of RFC 9112.
    #[error("request head is malformed: {0}")]
    Malformed(httparse::Error),
    /// Neither HTTP/1.1 nor HTTP/1.0.
    #[error("request line does not end in HTTP/1.1 or HTTP/1.0, the versions spoken here")]
    Version,
    /// The preface of an HTTP/2 client with prior knowledge (RFC 9113 section 3.4).
    #[error("this is an HTTP/2 preface; HTTP/1.1 only is spoken here (curl: --http1.1)")]
    Http2,
    /// A TLS ClientHello.
    #[error("this is a TLS handshake; this port speaks plain HTTP/1.1 (use http:// or ws://)")]
    Tls,
    /// HTTP/1.1 without Host.
    #[error("HTTP/1.1 request has no Host header (RFC 9112 section 3.2)")]
    HostMissing,
    /// More than one Host.
    #[error("request has {count} Host headers; one is allowed (RFC 9112 section 3.2)")]
    HostRepeated {
        /// How many.
        count: usize,
    },
    /// Characters that no host and port can have.
    #[error("Host is not a host and port (RFC 9112 section 3.2)")]
    HostInvalid,
    /// `*`, `host:port`, or an absolute URL of another scheme or with user information.
    #[error("request target is neither a path nor an http URL (RFC 9112 section 3.2)")]
    TargetForm,
    /// Not digits, or beyond 64 bits.
    #[error("Content-Length is not a decimal number of bytes (RFC 9110 section 8.6)")]
    ContentLengthInvalid,
    /// Two lengths that disagree.
    #[error("Content-Length is both {first} and {second} (RFC 9112 section 6.3)")]
    ContentLengthsDiffer {
        /// The first value.
        first: u64,
        /// The one that differs.
        second: u64,
    },
    /// Two ways to end the body.
    #[error("request has both Content-Length and Transfer-Encoding (RFC 9112 section 6.1)")]
    LengthAndTransferEncoding,
    /// HTTP/1.0 knows no transfer codings.
    #[error("HTTP/1.0 request has a Transfer-Encoding (RFC 9112 section 6.1)")]
    TransferEncodingInHttp10,
    /// The end of the body cannot be found.
    #[error("Transfer-Encoding does not end in chunked, once (RFC 9112 section 6.3)")]
    TransferEncodingNotChunked,
    /// A coding besides chunked.
    #[error("Transfer-Encoding has a coding besides chunked; send the body uncompressed or with Content-Encoding")]
    TransferEncodingUnknown,
}

impl HeadError {
    /// The status to answer with.
    pub const fn status(&self) -> u16 {
        match self {
            // RFC 6585 section 5: for one header too large, and for all of them together.
            Self::TooLarge { .. } | Self::TooManyHeaders => 431,
            Self::Version | Self::Http2 => 505,
            Self::TransferEncodingUnknown => 501,
            Self::Malformed(_)
            | Self::Tls
            | Self::HostMissing
            | Self::HostRepeated { .. }
            | Self::HostInvalid
            | Self::TargetForm
            | Self::ContentLengthInvalid
            | Self::ContentLengthsDiffer { .. }
            | Self::LengthAndTransferEncoding
            | Self::TransferEncodingInHttp10
            | Self::TransferEncodingNotChunked => 400,
        }
    }
}

/// Parses a request head from the front of `bytes`; `None` when it is not complete yet. Reads at most `head_bytes_max` bytes.
///
/// ```
/// use shardcast::proto::http::{HeadStorage, parse_head};
///
/// let mut storage = HeadStorage::new();
/// let head = parse_head(&mut storage, b"GET /ws?room=a HTTP/1.1\r\nHost: h\r\n\r\n", 16384)?.expect("it is complete");
/// assert_eq!((head.path, head.query, head.header("HOST")), ("/ws", Some("room=a"), Some(&b"h"[..])));
/// # Ok::<(), shardcast::proto::http::HeadError>(())
/// ```
///
/// # Errors
/// As soon as the bytes so far cannot become an acceptable head, or would be over `head_bytes_max`.
pub fn parse_head<'s, 'b>(
    storage: &'s mut HeadStorage<'b>,
    bytes: &'b [u8],
    head_bytes_max: usize,
) -> Result<Option<Head<'s, 'b>>, HeadError> {
    let window = &bytes[..bytes.len().min(head_bytes_max)];
    refuse_other_protocols(window)?;
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(window, &mut storage.0) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() >= head_bytes_max => return Err(HeadError::TooLarge { limit: head_bytes_max }),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyHeaders),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        Err(error) => return Err(HeadError::Malformed(error)),
    };
    let (Some(method), Some(target), Some(version_minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed(httparse::Error::Token));
    };
    let (authority, path_and_query) = split_target(target)?;
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    // An absolute target may have a query and no path: `http://h?room=a` (RFC 9110 section 4.2.3: then the path is `/`).
    let path = if path.is_empty() { "/" } else { path };
    let head = Head { method, target, path, query, authority, version_minor, len, headers: request.headers };
    check_host(&head)?;
    Ok(Some(head))
}

/// Where the head ends in `bytes`, of which the first `scanned` were seen by earlier calls that found none: bytes up to and including the
/// empty line. Each byte is looked at once, so that a head that comes in 1-byte pieces costs no more than one that comes whole.
///
/// Lines end in CRLF or a bare LF (RFC 9112 section 2.2), in any mix, as httparse has it; empty lines before the request line are not the end.
/// When the first byte already shows that this is no HTTP (a TLS ClientHello, line noise), the end is the end of `bytes`: [`parse_head`]
/// then refuses it without waiting for a timeout.
pub fn head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let first = bytes.first()?;
    if !matches!(first, b'\r' | b'\n') && !is_token(&[*first]) {
        return Some(bytes.len());
    }
    let scanned = scanned.min(bytes.len());
    memchr::memchr_iter(b'\n', &bytes[scanned..]).map(|at| scanned + at).find(|&at| ends_head(&bytes[..at])).map(|at| at + 1)
}

/// Whether a line feed right after `before` ends an empty line that follows a line that is not empty.
fn ends_head(before: &[u8]) -> bool {
    let without_cr = |bytes: &[u8]| bytes.strip_suffix(b"\r").map_or(bytes.len(), <[u8]>::len);
    match before[..without_cr(before)].strip_suffix(b"\n") {
        // The line above, without its line end: another line end, or nothing, before it means that it is empty too.
        Some(above) => !matches!(above[..without_cr(above)].last(), None | Some(b'\n')),
        None => false,
    }
}

fn refuse_other_protocols(bytes: &[u8]) -> Result<(), HeadError> {
    // RFC 8446 section 5.1: content type 22, handshake; version 3.x.
    if matches!(bytes, [0x16] | [0x16, 0x03, ..]) {
        return Err(HeadError::Tls);
    }
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    match bytes[start..].starts_with(b"PRI * HTTP/2") {
        true => Err(HeadError::Http2),
        false => Ok(()),
    }
}

/// Splits a request target into authority and the rest (RFC 9112 section 3.2: origin form, or absolute form, which servers must accept).
fn split_target(target: &str) -> Result<(Option<&str>, &str), HeadError> {
    if target.starts_with('/') {
        return Ok((None, target));
    }
    let (scheme, rest) = target.split_once("://").ok_or(HeadError::TargetForm)?;
    if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(HeadError::TargetForm);
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    // RFC 9110 section 4.2.4: user information from an untrusted source is an error; section 4.2.1: so is an empty host.
    if authority.is_empty() || authority.starts_with(':') || !is_host(authority.as_bytes()) {
        return Err(HeadError::TargetForm);
    }
    Ok((Some(authority), rest))
}

/// RFC 9112 section 3.2: 400 for an HTTP/1.1 request without Host, and for any request with several or an invalid one.
fn check_host(head: &Head<'_, '_>) -> Result<(), HeadError> {
    let count = head.headers("host").count();
    match head.header("host") {
        None if head.version_minor >= 1 => Err(HeadError::HostMissing),
        _ if count > 1 => Err(HeadError::HostRepeated { count }),
        Some(host) if !is_host(host) => Err(HeadError::HostInvalid),
        _ => Ok(()),
    }
}

/// Whether only characters of `uri-host [":" port]` occur (RFC 3986 section 3.2.2), and so neither a path, nor user information, nor a list
/// of two hosts as browsers or proxies might read it.
fn is_host(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%:[]".contains(byte))
}

/// A plain decimal number; `None` for anything else, and beyond 64 bits.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 16_384;

    /// Parses `text` and hands the outcome to `look`.
    fn with<T>(text: &str, look: impl FnOnce(Result<Option<Head<'_, '_>>, HeadError>) -> T) -> T {
        look(parse_head(&mut HeadStorage::new(), text.as_bytes(), MAX))
    }

    fn head<T>(text: &str, look: impl FnOnce(&Head<'_, '_>) -> T) -> T {
        with(text, |outcome| {
            look(&outcome.unwrap_or_else(|error| panic!("{text:?}: {error}")).unwrap_or_else(|| panic!("{text:?}: incomplete")))
        })
    }

    fn refused(text: &str, expect: HeadError, status: u16) {
        with(text, |outcome| assert_eq!(outcome, Err(expect), "{text:?}"));
        assert_eq!(expect.status(), status, "{expect}");
    }

    #[test]
    fn a_head_is_parsed_to_its_parts() {
        let text = "GET /a/b?x=1?y HTTP/1.1\r\nHost: h:80\r\nX-Two: 1\r\nx-two:  2 \r\n\r\nbody";
        head(text, |head| {
            assert_eq!((head.method, head.target, head.path, head.query), ("GET", "/a/b?x=1?y", "/a/b", Some("x=1?y")));
            assert_eq!((head.version_minor, head.len, head.headers.len()), (1, text.len() - 4, 3));
            assert_eq!((head.host(), head.header("X-TWO"), head.header("y")), (&b"h:80"[..], Some(&b"1"[..]), None));
            assert_eq!(head.headers("x-two").collect::<Vec<_>>(), [b"1", b"2"]);
        });
    }

    #[test]
    fn every_prefix_of_a_head_needs_more_bytes() {
        let text = "\r\nPOST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n";
        for cut in 0..text.len() {
            with(&text[..cut], |outcome| assert_eq!(outcome, Ok(None), "{cut}"));
        }
        head(text, |head| assert_eq!(head.len, text.len()));
    }

    #[test]
    fn an_absolute_target_is_accepted_and_its_authority_wins_over_host() {
        for (target, path, query, host) in [
            ("/x", "/x", None, "other"),
            ("/?q", "/", Some("q"), "other"),
            ("//x", "//x", None, "other"),
            ("http://h:81/p?q", "/p", Some("q"), "h:81"),
            ("HTTPS://h", "/", None, "h"),
            ("ws://[::1]:8080?q=/", "/", Some("q=/"), "[::1]:8080"),
        ] {
            head(&format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n"), |head| {
                assert_eq!((head.path, head.query, head.host()), (path, query, host.as_bytes()), "{target}");
            });
        }
    }

    #[test]
    fn other_target_forms_are_refused_400() {
        for target in ["*", "h:80", "h", "x/y", "ftp://h/", "http:///x", "http://:80/", "http://me@h/", "http://", "://h/"] {
            refused(&format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n"), HeadError::TargetForm, 400);
        }
    }

    #[test]
    fn http_1_1_needs_exactly_one_host() {
        refused("GET / HTTP/1.1\r\n\r\n", HeadError::HostMissing, 400);
        refused("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", HeadError::HostRepeated { count: 2 }, 400);
        refused("GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", HeadError::HostRepeated { count: 2 }, 400);
        for host in ["a b", "a/b", "a,b", "me@h", "http://h", "ü", "a\\b"] {
            refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), HeadError::HostInvalid, 400);
        }
        head("GET / HTTP/1.1\r\nHost:\r\n\r\n", |head| assert_eq!(head.host(), b""));
        head("GET / HTTP/1.0\r\n\r\n", |head| assert_eq!(head.host(), b""));
    }

    #[test]
    fn other_protocols_and_versions_are_told_what_is_spoken_here() {
        refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HeadError::Http2, 505);
        refused("\r\nPRI * HTTP/2", HeadError::Http2, 505);
        refused("GET / HTTP/2.0\r\nHost: h\r\n\r\n", HeadError::Version, 505);
        refused("GET / HTTP/1.2\r\nHost: h\r\n\r\n", HeadError::Version, 505);
        refused("\x16\x03\x01\x02\0\x01", HeadError::Tls, 400);
        assert!(HeadError::Http2.to_string().contains("HTTP/1.1 only"));
    }

    #[test]
    fn malformed_heads_are_refused_400() {
        for (text, error) in [
            ("GET /\r\n\r\n", httparse::Error::Token),
            ("GET  / HTTP/1.1\r\n\r\n", httparse::Error::Token),
            ("G@T / HTTP/1.1\r\n\r\n", httparse::Error::Token),
            ("GET / HTTP/1.1 \r\n\r\n", httparse::Error::NewLine),
            ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", httparse::Error::HeaderName),
            ("GET / HTTP/1.1\r\n: h\r\n\r\n", httparse::Error::HeaderName),
            ("GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", httparse::Error::HeaderName),
            ("GET / HTTP/1.1\r\nHost: h\0\r\n\r\n", httparse::Error::HeaderValue),
            ("GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", httparse::Error::HeaderValue),
        ] {
            refused(text, HeadError::Malformed(error), 400);
        }
    }

    #[test]
    fn a_head_over_the_limit_is_refused_431() {
        let text = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let parse = |bytes: &[u8], max| parse_head(&mut HeadStorage::new(), bytes, max).map(|head| head.map(|head| head.len));
        assert_eq!(parse(text.as_bytes(), text.len()), Ok(Some(text.len())));
        let too_large = HeadError::TooLarge { limit: text.len() - 1 };
        assert_eq!(parse(text.as_bytes(), text.len() - 1), Err(too_large));
        assert_eq!(parse(&text.as_bytes()[..text.len() - 1], text.len() - 1), Err(too_large));
        assert_eq!(parse(&text.as_bytes()[..text.len() - 2], text.len() - 1), Ok(None));
        assert_eq!(HeadError::TooLarge { limit: MAX }.to_string(), "request head is over 16384 bytes (limits.head_bytes_max)");
        assert_eq!(too_large.status(), 431);
    }

    #[test]
    fn over_100_headers_are_refused_431() {
        let with_headers = |count: usize| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(count - 1));
        head(&with_headers(100), |head| assert_eq!(head.headers.len(), 100));
        refused(&with_headers(101), HeadError::TooManyHeaders, 431);
    }

    #[test]
    fn list_tokens_are_found_in_any_line_and_case() {
        let text = "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive ,\tUpGrade\r\nconnection: x,,y\r\n\r\n";
        head(text, |head| {
            for (token, found) in
                [("upgrade", true), ("Keep-Alive", true), ("y", true), ("", false), ("up", false), ("keep-alive ,", false)]
            {
                assert_eq!(head.has_token("Connection", token), found, "{token:?}");
            }
        });
    }

    #[test]
    fn http_1_1_keeps_alive_and_http_1_0_only_on_request() {
        for (version, connection, keeps) in
            [(1, "x", true), (1, "close", false), (1, "keep-alive, Close", false), (0, "x", false), (0, "Keep-Alive", true)]
        {
            head(&format!("GET / HTTP/1.{version}\r\nHost: h\r\nConnection: {connection}\r\n\r\n"), |head| {
                assert_eq!(head.keep_alive(), keeps, "{version} {connection}");
            });
        }
    }

    #[test]
    fn a_body_whose_end_is_in_doubt_is_refused() {
        use HeadError::*;
        for (minor, headers, expect) in [
            (1, "", Ok(Body::None)),
            (1, "Content-Length: 0", Ok(Body::None)),
            (1, "Content-Length: 007", Ok(Body::Length(7))),
            (1, "Content-Length: 5\r\ncontent-length: 5", Ok(Body::Length(5))),
            (1, "Content-Length: 5, 5", Ok(Body::Length(5))),
            (1, "Content-Length: 18446744073709551615", Ok(Body::Length(u64::MAX))),
            (1, "Content-Length: 18446744073709551616", Err(ContentLengthInvalid)),
            (1, "Content-Length:", Err(ContentLengthInvalid)),
            (1, "Content-Length: +5", Err(ContentLengthInvalid)),
            (1, "Content-Length: -5", Err(ContentLengthInvalid)),
            (1, "Content-Length: 0x5", Err(ContentLengthInvalid)),
            (1, "Content-Length: 5 5", Err(ContentLengthInvalid)),
            (1, "Content-Length: 5,", Err(ContentLengthInvalid)),
            (1, "Content-Length: 5\r\nContent-Length: 6", Err(ContentLengthsDiffer { first: 5, second: 6 })),
            (1, "Content-Length: 5, 6", Err(ContentLengthsDiffer { first: 5, second: 6 })),
            (1, "Transfer-Encoding: chunked", Ok(Body::Chunked)),
            (1, "Transfer-Encoding: , ChunkeD", Ok(Body::Chunked)),
            (1, "Transfer-Encoding: chunked\r\nContent-Length: 5", Err(LengthAndTransferEncoding)),
            (1, "Content-Length: 0\r\nTransfer-Encoding: chunked", Err(LengthAndTransferEncoding)),
            (0, "Transfer-Encoding: chunked", Err(TransferEncodingInHttp10)),
            (1, "Transfer-Encoding: gzip, chunked", Err(TransferEncodingUnknown)),
            (1, "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", Err(TransferEncodingUnknown)),
            (1, "Transfer-Encoding: gzip", Err(TransferEncodingNotChunked)),
            (1, "Transfer-Encoding:", Err(TransferEncodingNotChunked)),
            (1, "Transfer-Encoding: chunked, gzip", Err(TransferEncodingNotChunked)),
            (1, "Transfer-Encoding: chunked, chunked", Err(TransferEncodingNotChunked)),
            (1, "Transfer-Encoding: xchunked", Err(TransferEncodingNotChunked)),
            (1, "Transfer-Encoding: chunked;q=1", Err(TransferEncodingNotChunked)),
        ] {
            let line_end = if headers.is_empty() { "" } else { "\r\n" };
            head(&format!("POST / HTTP/1.{minor}\r\nHost: h\r\n{headers}{line_end}\r\n"), |head| {
                assert_eq!(head.body(), expect, "{headers}")
            });
        }
        assert_eq!((TransferEncodingUnknown.status(), TransferEncodingNotChunked.status()), (501, 400));
    }

    #[test]
    fn the_end_of_a_head_is_found_in_one_piece_and_in_bytes() {
        for (text, end) in [
            ("", None),
            ("GET / HTTP/1.1\r\nHost: h\r\n", None),
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\nrest", Some(27)),
            ("GET / HTTP/1.1\nHost: h\n\nrest\n\n", Some(24)),
            ("A\r\n\nB", Some(4)),
            ("A\n\r\nB", Some(4)),
            ("\r\n\r\n", None),
            ("\n\n\n\n\n", None),
            ("\r\n\r\nA\r\n\r\n\r\n", Some(9)),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(18)),
            ("\x16\x03\x01", Some(3)),
        ] {
            assert_eq!(head_end(text.as_bytes(), 0), end, "{text:?}");
            let piecewise = (1..=text.len()).find_map(|len| head_end(&text.as_bytes()[..len], len - 1));
            assert_eq!(piecewise, if text.starts_with('\x16') { Some(1) } else { end }, "{text:?} byte by byte");
        }
    }

    /// The caller parses only once an end was found: an end that is missed would hang a request that httparse accepts.
    #[test]
    fn head_end_agrees_with_httparse_on_every_mix_of_line_ends() {
        const ALPHABET: [&str; 5] = ["\r", "\n", "a", ":", "\r\n"];
        for number in 0..5usize.pow(6) {
            let tail: String = (0..6).map(|digit| ALPHABET[number / 5usize.pow(digit) % 5]).collect();
            for text in [format!("GET / HTTP/1.0{tail}"), format!("{tail}GET / HTTP/1.0\r\n\r\n")] {
                let found = head_end(text.as_bytes(), 0);
                match parse_head(&mut HeadStorage::new(), text.as_bytes(), MAX) {
                    Ok(Some(head)) => assert_eq!(found, Some(head.len), "{text:?}"),
                    Ok(None) => assert_eq!(found, None, "{text:?}"),
                    Err(_) => {}
                }
            }
        }
    }

    /// Whatever the bytes are, an accepted head keeps its promises and an error is one of ours.
    #[test]
    fn mutated_heads_never_panic_and_never_end_beyond_the_limit() {
        let seed_text = b"\r\nPOST http://h:1/a?b=%2f+c HTTP/1.1\r\nHost: h:1\r\nConnection: close, upgrade\r\nContent-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
        for seed in 1..=20_000u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut random = |bound: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 33) as usize % bound
            };
            let mut bytes = seed_text.to_vec();
            for _ in 0..1 + random(6) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = random(256) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"\r\n :,/?*h0"[random(10)]),
                }
            }
            let max = 60 + random(200);
            let mut storage = HeadStorage::new();
            if let Ok(Some(head)) = parse_head(&mut storage, &bytes, max) {
                assert!(head.len <= max.min(bytes.len()) && head.path.starts_with('/'), "seed {seed}: {head:?}");
                assert_eq!(head_end(&bytes, 0), Some(head.len), "seed {seed}: {head:?}");
                let _ = (head.body(), head.keep_alive(), head.host());
                super::super::query::query_pairs(head.query.unwrap_or_default()).for_each(drop);
                let _ = crate::proto::ws::handshake::check(&head);
            }
        }
    }
}
