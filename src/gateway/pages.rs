//! The files that the gateway serves from its binary: the page `/` and the browser client. Pure: a head in, a response out.

use std::borrow::Cow;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::proto::http::{Head, Response};

/// A file that is served from the binary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Where, as in `/shardcast.js`.
    pub path: &'static str,
    /// What it is, for `Content-Type`.
    pub media_type: &'static str,
    /// What it holds.
    pub body: Cow<'static, str>,
    /// Pages of every origin may import it.
    pub shared: bool,
}

/// What a page of ours may do: run and style itself with files of this gateway, and talk to it. Nothing else, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Page {
    /// The answer to a request for it. Browsers keep it and ask each time whether it has changed (RFC 9110 section 13.1.2), so that page and
    /// client are always those of the gateway that they talk to.
    pub(super) fn response(&self, head: &Head<'_, '_>) -> Response {
        let tag = self.tag();
        let known = head.list("if-none-match").any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes());
        let response = Response::new(if known { 304 } else { 200 }).header("Cache-Control", "no-cache").header("ETag", &tag);
        let response = if self.shared {
            response.header("Access-Control-Allow-Origin", "*").header("Cross-Origin-Resource-Policy", "cross-origin")
        } else {
            response
        };
        if known {
            return response;
        }
        let response = response.header("X-Content-Type-Options", "nosniff");
        let response = if self.media_type.starts_with("text/html") { response.header("Content-Security-Policy", POLICY) } else { response };
        response.body(self.media_type, self.body.as_bytes())
    }

    /// Another one for another body.
    fn tag(&self) -> String {
        let mut hasher = SipHasher13::new();
        hasher.write(self.body.as_bytes());
        format!("\"{:016x}\"", hasher.finish())
    }
}
