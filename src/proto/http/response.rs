//! A response: status, headers, a short body, encoded in one piece.
//!
//! There is no `Date` header: `proto` has no clock, and RFC 9110 section 6.6.1 lets an origin server without a clock leave it out.

use std::io::Write;

use super::is_token;
use crate::proto::publish::ErrorBody;

/// A response under construction.
///
/// ```
/// use shardcast::proto::http::Response;
///
/// let mut out = Vec::new();
/// Response::new(200).header("Cache-Control", "no-store").body("text/plain", b"ok\n").encode(&mut out);
/// assert_eq!(out, b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a response does nothing until it is encoded"]
pub struct Response {
    status: u16,
    /// Whole header lines, each with its CRLF.
    lines: Vec<u8>,
    body: Vec<u8>,
    head_only: bool,
    ends_by_close: bool,
}

const CLOSE: &[u8] = b"Connection: close\r\n";

impl Response {
    /// A response without headers and with an empty body.
    ///
    /// # Panics
    /// When `status` is not a three-digit number from 100 to 599: statuses are ours, never a peer's.
    pub fn new(status: u16) -> Self {
        assert!((100..=599).contains(&status), "HTTP status {status} is not from 100 to 599");
        Self { status, lines: Vec::new(), body: Vec::new(), head_only: false, ends_by_close: false }
    }

    /// An error with a JSON body: `{"error":{"code":"not_found","message":"…"}}`.
    pub fn error(status: u16, message: &str) -> Self {
        Self::error_called(error_code(status), status, message)
    }

    /// The same where the status does not say all there is to say: with a code of its own.
    pub fn error_called(code: &str, status: u16, message: &str) -> Self {
        let mut body = Vec::with_capacity(64 + message.len());
        ErrorBody { code, message, retry_ms: None }.encode(&mut body);
        Self { body, ..Self::new(status).header("Content-Type", "application/json") }
    }

    /// An error that passes: the same with `retry_ms`, and with `Retry-After` in whole seconds, rounded up (RFC 9110 section 10.2.3).
    pub fn error_for_now(status: u16, message: &str, retry_ms: u64) -> Self {
        let mut body = Vec::with_capacity(96 + message.len());
        ErrorBody { code: error_code(status), message, retry_ms: Some(retry_ms) }.encode(&mut body);
        let seconds = retry_ms.div_ceil(1000).max(1);
        Self { body, ..Self::new(status).header("Retry-After", seconds.to_string()).header("Content-Type", "application/json") }
    }

    /// Adds a header. Control characters in the value (CR, LF and NUL among them; not the tab) become spaces, as RFC 9110 section 5.5
    /// wants of who meets them, so that a value can never forge another header or end the head.
    ///
    /// # Panics
    /// When `name` is not a token (RFC 9110 section 5.1): names are constants of ours.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        assert!(is_token(name.as_bytes()), "header name {name:?} is not a token");
        self.lines.extend_from_slice(name.as_bytes());
        self.lines.extend_from_slice(b": ");
        push_header_value(&mut self.lines, value.as_ref());
        self.lines.extend_from_slice(b"\r\n");
        self
    }

    /// Sets the body and its `Content-Type`.
    pub fn body(mut self, content_type: &str, body: &[u8]) -> Self {
        self.body.clear();
        self.body.extend_from_slice(body);
        self.header("Content-Type", content_type)
    }

    /// Adds `Connection: close`; the caller closes after it (RFC 9112 section 9.6).
    pub fn close(self) -> Self {
        if self.closes() { self } else { self.header("Connection", "close") }
    }

    /// Whether the connection ends after this response.
    pub fn closes(&self) -> bool {
        self.lines.windows(CLOSE.len()).any(|line| line == CLOSE)
    }

    /// Answers a HEAD: the head that GET would get, with the length of the body, and no body (RFC 9110 section 9.3.2).
    pub fn head_only(mut self) -> Self {
        self.head_only = true;
        self
    }

    /// A body of unknown length that the caller streams after the head and ends by closing (RFC 9112 section 6.3, rule 8): no
    /// `Content-Length`, and `Connection: close`.
    pub fn ends_by_close(mut self, content_type: &str) -> Self {
        self.ends_by_close = true;
        self.header("Content-Type", content_type).close()
    }

    /// The status it was made with.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Appends the response to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self { status, lines, body, .. } = self;
        out.reserve(64 + lines.len() + body.len());
        push(out, format_args!("HTTP/1.1 {status} {}\r\n", reason(*status)));
        out.extend_from_slice(lines);
        // RFC 9110 section 8.6: no Content-Length in 1xx and 204; sections 6.4.1 and 15.4.5: none of them, nor 304, has a body.
        let without_body = matches!(status, 100..=199 | 204 | 304);
        if !without_body && !self.ends_by_close {
            push(out, format_args!("Content-Length: {}\r\n", body.len()));
        }
        out.extend_from_slice(b"\r\n");
        if !without_body && !self.head_only {
            out.extend_from_slice(body);
        }
    }
}

/// The reason phrase of a status, for people who read the wire; `Unknown` for one that the gateway never sends.
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// The word for `code` of [`ErrorBody`] when the status says all there is to say; `error` for one that the gateway never sends.
pub const fn error_code(status: u16) -> &'static str {
    match status {
        400 => "bad_request",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        405 => "method_not_allowed",
        408 => "timeout",
        413 => "too_large",
        426 => "upgrade_required",
        429 => "too_many_requests",
        431 => "head_too_large",
        500 => "internal",
        501 => "not_implemented",
        503 => "unavailable",
        505 => "version_not_supported",
        _ => "error",
    }
}

/// Appends a header value that cannot leave its line: see [`Response::header`].
pub(in crate::proto) fn push_header_value(out: &mut Vec<u8>, value: &[u8]) {
    out.extend(value.iter().map(|&byte| if byte.is_ascii_control() && byte != b'\t' { b' ' } else { byte }));
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a Vec never fails");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(response: Response, expect: &str) {
        let mut out = b"before".to_vec();
        response.encode(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), format!("before{expect}"));
    }

    #[test]
    fn every_response_says_how_long_its_body_is() {
        check(Response::new(200), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        check(Response::new(404).close(), "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        check(Response::new(200).body("text/plain", b"hi"), "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi");
    }

    #[test]
    fn responses_1xx_204_and_304_have_neither_length_nor_body() {
        check(Response::new(100), "HTTP/1.1 100 Continue\r\n\r\n");
        check(Response::new(204).body("a/b", b"x"), "HTTP/1.1 204 No Content\r\nContent-Type: a/b\r\n\r\n");
        check(Response::new(304), "HTTP/1.1 304 Not Modified\r\n\r\n");
    }

    #[test]
    fn head_gets_the_length_of_the_body_and_no_body() {
        check(
            Response::new(200).body("text/plain", b"hello").head_only(),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n",
        );
    }

    #[test]
    fn a_stream_has_no_length_and_ends_by_close() {
        check(
            Response::new(200).ends_by_close("text/event-stream"),
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
        );
    }

    #[test]
    fn a_header_value_cannot_forge_a_header() {
        check(
            Response::new(200).header("X", "a\r\nSet-Cookie: b\0\x7f\tü"),
            "HTTP/1.1 200 OK\r\nX: a  Set-Cookie: b  \tü\r\nContent-Length: 0\r\n\r\n",
        );
        check(Response::new(200).body("a\r\n\r\nb", b""), "HTTP/1.1 200 OK\r\nContent-Type: a    b\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    #[should_panic(expected = "is not a token")]
    fn a_header_name_that_is_no_token_is_a_bug_of_ours() {
        let _ = Response::new(200).header("X: y\r\nZ", "1");
    }

    #[test]
    fn errors_are_json_with_every_string_escaped() {
        check(
            Response::error(400, "a \"b\" \\ \r\n\t\0\x1f\x7f ü🦀"),
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 88\r\n\r\n\
             {\"error\":{\"code\":\"bad_request\",\"message\":\"a \\\"b\\\" \\\\ \\r\\n\\t\\u0000\\u001f\\u007f ü🦀\"}}\n",
        );
    }

    /// The foreign table is older than RFC 9110, which gave two of them new names (sections 15.5.14 and 15.5.21).
    #[test]
    fn phrases_are_those_of_the_registry_as_another_crate_has_it() {
        for status in (100..=599).filter(|&status| reason(status) != "Unknown") {
            let foreign = tungstenite::http::StatusCode::from_u16(status).expect("a valid status").canonical_reason();
            let expect = match status {
                413 => Some("Content Too Large"),
                422 => Some("Unprocessable Content"),
                _ => foreign,
            };
            assert_eq!(Some(reason(status)), expect, "{status}");
            assert_eq!(Response::new(status).status(), status);
        }
        for status in [102, 299, 418, 599] {
            check(
                Response::new(status),
                &format!("HTTP/1.1 {status} Unknown\r\n{}\r\n", if status < 200 { "" } else { "Content-Length: 0\r\n" }),
            );
        }
    }

    #[test]
    #[should_panic(expected = "is not from 100 to 599")]
    fn a_status_of_no_class_is_a_bug_of_ours() {
        let _ = Response::new(600);
    }

    #[test]
    fn every_status_the_gateway_sends_has_its_phrase_and_every_error_its_word() {
        for status in [101, 200, 204, 400, 401, 403, 404, 405, 408, 413, 426, 429, 431, 500, 501, 503, 505] {
            assert_ne!(reason(status), "Unknown", "{status}");
            assert_eq!(error_code(status) == "error", status < 400, "{status}");
        }
    }
}
