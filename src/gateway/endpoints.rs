//! What a request gets. Pure: a head in, an answer out.

use crate::proto::http::{Body, Head, Response, query_pairs};
use crate::proto::topic::TopicName;
use crate::proto::ws::handshake::{self, HandshakeError, Upgrade};

use super::close_cause::CloseCause;

/// The pages that the gateway serves from its binary.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// `GET /`: tries the gateway in a browser.
    pub index: &'static str,
}

/// What there is to know about a request besides its head.
pub(super) struct Context<'a> {
    pub(super) origins: &'a [String],
    pub(super) pages: Pages,
    /// The connection is over the cap.
    pub(super) over_capacity: bool,
    pub(super) draining: bool,
    /// When to come back, where that is the answer.
    pub(super) retry_ms: u64,
}

/// What to do about a request.
pub(super) enum Answer {
    /// Send this; the connection is kept unless the response says that it closes.
    Respond(Response),
    /// Send this and close, for a reason of its own.
    Refuse(Response, CloseCause),
    /// An upgrade that a browser's page must be able to read the refusal of: accept and close with the cause's code. If that budget is
    /// used up, the response.
    RefusePolitely(Vec<u8>, Response, CloseCause),
    /// Upgrade to this room.
    Room { name: TopicName, no_echo: bool, upgrade: Vec<u8> },
    /// Upgrade to `/echo`.
    Echo { upgrade: Vec<u8> },
}

impl Answer {
    /// The same answer, to a HEAD if `head_only`: a body would be taken for the next response (RFC 9110 section 9.3.2).
    pub(super) fn for_head(self, head_only: bool) -> Self {
        match self {
            Self::Respond(response) if head_only => Self::Respond(response.head_only()),
            Self::Refuse(response, cause) if head_only => Self::Refuse(response.head_only(), cause),
            other => other,
        }
    }
}

/// The subprotocol that raw clients may name.
const RAW_PROTOCOL: &str = "shardcast.raw";

const EXISTS: &str = "GET / (a page to try it), GET /ws?room=NAME and GET /echo (WebSocket), GET /healthz";

pub(super) fn answer(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    match head.path {
        "/ws" => socket(head, context, room),
        "/echo" => socket(head, context, |_, upgrade| Ok(Answer::Echo { upgrade })),
        "/" if context.over_capacity || context.draining => unavailable(context),
        "/" => plain(head, |response| {
            response.header("Cache-Control", "no-cache").body("text/html; charset=utf-8", context.pages.index.as_bytes())
        }),
        "/healthz" => plain(head, |response| response.header("Cache-Control", "no-store").body("text/plain; charset=utf-8", b"ok\n")),
        path => Answer::Respond(body_closes(head, Response::error(404, &format!("nothing at {path}; there is: {EXISTS}")))),
    }
}

fn plain(head: &Head<'_, '_>, fill: impl FnOnce(Response) -> Response) -> Answer {
    if !matches!(head.method, "GET" | "HEAD") {
        let response = Response::error(405, &format!("{} is not possible here; use GET or HEAD", head.method)).header("Allow", "GET, HEAD");
        return Answer::Respond(body_closes(head, response));
    }
    let response = fill(Response::new(200));
    Answer::Respond(body_closes(head, response))
}

/// We read no bodies here: a request that has one ends the connection after the answer, or its bytes would be taken for the next request.
fn body_closes(head: &Head<'_, '_>, response: Response) -> Response {
    if head.keep_alive() && matches!(head.body(), Ok(Body::None | Body::Length(0))) { response } else { response.close() }
}

fn unavailable(context: &Context<'_>) -> Answer {
    let (message, cause) = if context.draining {
        ("the gateway is shutting down; come back after Retry-After", CloseCause::Shutdown)
    } else {
        ("the gateway is at its limit of connections (limits.connections_max); come back after Retry-After", CloseCause::OverCapacity)
    };
    Answer::Refuse(retry_later(Response::error(503, message), context.retry_ms).close(), cause)
}

fn retry_later(response: Response, retry_ms: u64) -> Response {
    response.header("Retry-After", retry_ms.div_ceil(1000).max(1).to_string())
}

/// Answers an upgrade request: refusals that any client can cause first, then whether this client is welcome, then the endpoint.
fn socket(head: &Head<'_, '_>, context: &Context<'_>, endpoint: impl FnOnce(&Head<'_, '_>, Vec<u8>) -> Result<Answer, String>) -> Answer {
    let upgrade = match handshake::check(head) {
        Ok(upgrade) => upgrade,
        Err(error) => return Answer::Respond(body_closes(head, refusal(&error))),
    };
    let mut accept = Vec::with_capacity(160);
    handshake::switching_protocols(&upgrade.accept, selected(&upgrade), &mut accept);
    let refuse = |accept: Vec<u8>, response: Response, cause| match upgrade.origin {
        Some(_) => Answer::RefusePolitely(accept, response.close(), cause),
        None => Answer::Refuse(response.close(), cause),
    };
    if context.over_capacity || context.draining {
        return match unavailable(context) {
            Answer::Refuse(response, cause) => refuse(accept, response, cause),
            other => other,
        };
    }
    if let Some(origin) = upgrade.origin
        && !is_allowed(origin, head, context.origins)
    {
        let message = format!("origin {} may not connect; it must match Host, or be listed in `origins`", String::from_utf8_lossy(origin));
        return refuse(accept, Response::error(403, &message), CloseCause::ForbiddenOrigin);
    }
    if let Err(protocols) = offers(&upgrade) {
        let message = format!("none of the offered subprotocols ({protocols}) is spoken here; offer {RAW_PROTOCOL} or none");
        return Answer::Respond(body_closes(head, Response::error(400, &message)));
    }
    endpoint(head, accept).unwrap_or_else(|message| Answer::Respond(body_closes(head, Response::error(400, &message))))
}

fn refusal(error: &HandshakeError) -> Response {
    error.response()
}

/// Browsers fail a connection when they offered subprotocols and none was selected: select the raw one, or refuse clearly.
fn selected(upgrade: &Upgrade<'_>) -> Option<&'static str> {
    upgrade.protocols().any(|protocol| protocol == RAW_PROTOCOL).then_some(RAW_PROTOCOL)
}

fn offers(upgrade: &Upgrade<'_>) -> Result<(), String> {
    let offered: Vec<&str> = upgrade.protocols().collect();
    if offered.is_empty() || offered.contains(&RAW_PROTOCOL) { Ok(()) } else { Err(offered.join(", ")) }
}

fn is_allowed(origin: &[u8], head: &Head<'_, '_>, origins: &[String]) -> bool {
    if origins.is_empty() {
        return handshake::origin_matches_host(origin, head.host());
    }
    origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(origin))
}

fn room(head: &Head<'_, '_>, upgrade: Vec<u8>) -> Result<Answer, String> {
    let mut name = None;
    let mut no_echo = false;
    for (key, value) in query_pairs(head.query.unwrap_or("")) {
        match &*key {
            b"room" | b"topic" if name.is_some() => {
                return Err("more than one room; a raw WebSocket has one: open another for another room".into());
            }
            b"room" | b"topic" => name = Some(TopicName::from_bytes(&value).map_err(|error| error.to_string())?),
            b"echo" => {
                no_echo = match &*value {
                    b"0" | b"false" => true,
                    b"1" | b"true" | b"" => false,
                    other => return Err(format!("echo={} is neither 0 nor 1", String::from_utf8_lossy(other))),
                }
            }
            // Unknown parameters are the application's own business: cache busters, its own ids.
            _ => {}
        }
    }
    Ok(Answer::Room { name: name.unwrap_or_else(TopicName::default_room), no_echo, upgrade })
}
