//! What a request gets. Pure: a head in, an answer out.

use std::borrow::Cow;

use crate::proto::http::{Body, Head, Response, query_pairs};
use crate::proto::position::{Start, StartWords, Starts, TOPICS_MAX};
use crate::proto::sse::{encode_bye, encode_retry};
use crate::proto::topic::TopicName;
use crate::proto::ws::handshake::{self, HandshakeError, Upgrade};

use super::close_cause::CloseCause;
use super::streams::{Kind, Stream};
use crate::proto::ws::CloseCode;

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
    Room { name: TopicName, no_echo: bool, start: Option<Start>, upgrade: Vec<u8> },
    /// Open this stream, or answer this poll.
    Stream(Box<Stream>),
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

/// The media type of a stream of events.
const EVENT_STREAM: &str = "text/event-stream";

/// The subprotocol that raw clients may name.
const RAW_PROTOCOL: &str = "shardcast.raw";

const EXISTS: &str =
    "GET / (a page to try it), GET /ws?room=NAME and GET /echo (WebSocket), GET /events?topic=NAME (event stream), GET /healthz";

pub(super) fn answer(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    match head.path {
        "/ws" => socket(head, context, room),
        "/echo" => socket(head, context, |_, upgrade| Ok(Answer::Echo { upgrade })),
        "/events" => events(head, context),
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
    let mut no_echo = false;
    let (names, starts) = topics(head)?;
    if names.len() > 1 {
        return Err("more than one room; a raw WebSocket has one: open another for another room, or use /events".into());
    }
    for (key, value) in query_pairs(head.query.unwrap_or("")) {
        match &*key {
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
    let name = names.into_iter().next().unwrap_or_else(TopicName::default_room);
    let start = starts.and_then(|starts| starts.of(0)).filter(|&start| start != Start::Latest);
    Ok(Answer::Room { name, no_echo, start, upgrade })
}

/// The topics that a request names, in its order, and where it wants to begin.
fn topics(head: &Head<'_, '_>) -> Result<(Vec<TopicName>, Option<Starts>), String> {
    let mut names: Vec<TopicName> = Vec::new();
    let (mut after, mut last) = (None, None);
    for (key, value) in query_pairs(head.query.unwrap_or("")) {
        match &*key {
            b"room" | b"topic" => {
                let name = TopicName::from_bytes(&value).map_err(|error| error.to_string())?;
                if names.contains(&name) {
                    return Err(format!("topic {name} is named twice"));
                }
                if names.len() == TOPICS_MAX {
                    return Err(format!("more than {TOPICS_MAX} topics; open another connection for the rest"));
                }
                names.push(name);
            }
            b"after" | b"last_event_id" => after = Some(value),
            b"last" => last = Some(value),
            _ => {}
        }
    }
    let text = |value: &Option<Cow<'_, [u8]>>| value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    let (after, last) = (text(&after).filter(|after| !after.is_empty()), text(&last));
    let id = head.header("last-event-id").map(|id| String::from_utf8_lossy(id).into_owned());
    let words = StartWords { last_event_id: id.as_deref(), after: after.as_deref(), last: last.as_deref() };
    let starts = Starts::parse(&words, names.len().max(1)).map_err(|error| error.to_string())?;
    Ok((names, starts))
}

/// A stream of events. Whoever wants one must be told with 200 that it cannot have it now: an EventSource takes any other status for good.
fn events(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    let refuse = |status, message: &str| Answer::Respond(body_closes(head, Response::error(status, message)));
    if head.method == "OPTIONS" {
        return preflight(head, context);
    }
    if !matches!(head.method, "GET" | "HEAD") {
        let message = format!("{} is not possible here; use GET", head.method);
        return Answer::Respond(body_closes(head, Response::error(405, &message).header("Allow", "GET, HEAD, OPTIONS")));
    }
    if let Some(message) = forbidden(head, context) {
        return refuse(403, &message);
    }
    let reads_events = head.list("accept").any(|kind| kind.starts_with(EVENT_STREAM.as_bytes()));
    if context.over_capacity || context.draining {
        return match unavailable(context) {
            Answer::Refuse(_, cause) if reads_events => {
                let mut body = Vec::new();
                encode_retry(&mut body, context.retry_ms);
                encode_bye(&mut body, cause.code().unwrap_or(CloseCode::OVER_CAPACITY), "", Some(context.retry_ms));
                let response = cross_origin(head, context, Response::new(200).header("Cache-Control", "no-store"));
                Answer::Refuse(response.body(EVENT_STREAM, &body).close(), cause)
            }
            other => other,
        };
    }
    let (names, starts) = match topics(head) {
        Ok((names, _)) if names.is_empty() => return refuse(400, "no topic; name one or more: /events?topic=a&topic=b"),
        Ok(topics) => topics,
        Err(message) => return refuse(400, &message),
    };
    let response = Response::new(200).header("Cache-Control", "no-cache, no-transform").header("X-Accel-Buffering", "no");
    let response = cross_origin(head, context, response).ends_by_close(EVENT_STREAM);
    if head.method == "HEAD" {
        return Answer::Respond(response);
    }
    let mut opening = Vec::new();
    response.encode(&mut opening);
    let start = |index| starts.as_ref().map_or(Some(Start::Latest), |starts| starts.of(index)).unwrap_or(Start::Latest);
    let topics = names.into_iter().enumerate().map(|(index, name)| (name, start(index))).collect();
    Answer::Stream(Box::new(Stream::new(Kind::Events, topics, opening, context.retry_ms)))
}

/// Why a page of another origin may not read here, if so. Not asked by a browser means yes.
fn forbidden(head: &Head<'_, '_>, context: &Context<'_>) -> Option<String> {
    let origin = head.header("origin").filter(|origin| !is_allowed(origin, head, context.origins))?;
    Some(format!("origin {} may not read here; it must match Host, or be listed in `origins`", String::from_utf8_lossy(origin)))
}

/// Adds what a browser asks for before it lets a page of an allowed origin read an answer (Fetch, section 3.3).
fn cross_origin(head: &Head<'_, '_>, context: &Context<'_>, response: Response) -> Response {
    match head.header("origin") {
        Some(origin) if is_allowed(origin, head, context.origins) => response
            .header("Access-Control-Allow-Origin", origin)
            .header("Access-Control-Allow-Credentials", "true")
            .header("Vary", "Origin"),
        _ => response,
    }
}

/// Answers what a browser asks before a request that is not simple.
fn preflight(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    if let Some(message) = forbidden(head, context) {
        return Answer::Respond(body_closes(head, Response::error(403, &message)));
    }
    let response = Response::new(204)
        .header("Access-Control-Allow-Methods", "GET, HEAD, POST")
        .header("Access-Control-Allow-Headers", "Content-Type, Last-Event-ID, Idempotency-Key, Authorization")
        .header("Access-Control-Max-Age", "86400");
    Answer::Respond(body_closes(head, cross_origin(head, context, response)))
}
