//! What a request gets. Pure: a head in, an answer out.

use std::time::Duration;

use crate::proto::http::query::topic_names;
use crate::proto::http::{Body, Head, Response, query_pairs};
use crate::proto::listing::ListCursor;
use crate::proto::position::{Start, StartWords, Starts};
use crate::proto::sse::{EventName, encode_bye, encode_retry};
use crate::proto::topic::TopicName;
use crate::proto::ws::extension::{Agreed, Window};
use crate::proto::ws::handshake::{self, HandshakeError, Upgrade};

use super::close_cause::CloseCause;
use super::listing::Listing;
use super::pages::Page;
use super::polls::{Poll, for_origin};
use super::presence::{By, NO_PRESENCE, PresenceDesk, Question};
use super::publishing::{Ack, Framing, Receipts, Upload, What};
use super::session::Habits;
use super::streams::{Kind, Stream};
use crate::limits::Limits;
use crate::proto::json::presence::User;
use crate::proto::publish::Key;
use crate::proto::ws::CloseCode;

/// What there is to know about a request besides its head.
pub(super) struct Context<'a> {
    pub(super) origins: &'a [String],
    pub(super) pages: &'a [Page],
    pub(super) presence: &'a PresenceDesk,
    /// Why nobody can be served now, if that is so.
    pub(super) unavailable: Option<Unavailable>,
    /// Why no WebSocket and no stream can be opened now, if that is so.
    pub(super) busy: Option<Unavailable>,
    /// Somebody may be left to hear what is published.
    pub(super) takes_messages: bool,
    /// permessage-deflate is agreed to where it is offered.
    pub(super) compression: bool,
    pub(super) limits: &'a Limits,
    /// When to come back, where that is the answer.
    pub(super) retry_ms: u64,
}

/// Why nobody can be served now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unavailable {
    /// The connection is over the cap.
    OverCapacity,
    /// The client's address has as much as one may have.
    Address,
    /// More clients come than are taken up in a second.
    Busy,
    Draining,
}

impl Unavailable {
    const fn cause(self) -> CloseCause {
        match self {
            Self::OverCapacity => CloseCause::OverCapacity,
            Self::Address => CloseCause::AddressLimited,
            Self::Busy => CloseCause::Busy,
            Self::Draining => CloseCause::Shutdown,
        }
    }

    const fn status(self) -> u16 {
        if matches!(self, Self::Address) { 429 } else { 503 }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::OverCapacity => "the gateway is at its limit of connections (limits.connections_max); come back after Retry-After",
            Self::Address => {
                "your address has as many connections, or opens as many in a second, as one may (limits.connections_per_address, limits.handshakes_per_address); come back after Retry-After"
            }
            Self::Busy => {
                "more clients come than the gateway takes up in a second (limits.handshakes_per_second); come back after Retry-After"
            }
            Self::Draining => "the gateway is shutting down; come back after Retry-After",
        }
    }
}

impl Context<'_> {
    /// Why no WebSocket and no stream can be opened now, if that is so.
    fn unopenable(&self) -> Option<Unavailable> {
        self.unavailable.or(self.busy)
    }
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
    Room { name: TopicName, habits: Habits, start: Option<Start>, user: Option<User>, deflate: Option<Window>, upgrade: Vec<u8> },
    /// Take the body, and publish what it says.
    Upload(Box<Upload>),
    /// Open this stream, or answer this poll.
    Stream(Box<Stream>, Option<User>),
    /// Answer with this list, once it is filled.
    List(Box<Listing>),
    /// Upgrade to `/echo`.
    Echo { deflate: Option<Window>, upgrade: Vec<u8> },
    /// Upgrade to a WebSocket that speaks `shardcast.v1.json`.
    Json { user: Option<User>, deflate: Option<Window>, upgrade: Vec<u8> },
    /// Answer with who is in a topic.
    WhoIsIn(Box<Question>),
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

/// How long a poll waits that does not say.
const POLL_WAIT_MS: u64 = 25_000;

/// The media type of a stream of events.
const EVENT_STREAM: &str = "text/event-stream";

/// The subprotocol that raw clients may name.
const RAW_PROTOCOL: &str = "shardcast.raw";

/// The subprotocol of many topics on one connection.
const JSON_PROTOCOL: &str = "shardcast.v1.json";

const EXISTS: &str = "GET / (a page to try it) and GET /shardcast.js (the browser client), GET /ws?room=NAME and GET /echo (WebSocket), GET /events?topic=NAME (event stream), GET /poll?topic=NAME and GET /v1/history?topic=NAME, GET /v1/topics and GET /v1/presence?topic=NAME, POST /publish?topic=NAME and POST /v1/publish, GET /healthz";

pub(super) fn answer(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    match head.path {
        "/ws" => socket(head, context, &[JSON_PROTOCOL, RAW_PROTOCOL], |protocol, deflate, upgrade| match protocol {
            Some(JSON_PROTOCOL) => talk(head, deflate, upgrade),
            _ => room(head, deflate, upgrade),
        }),
        "/echo" => socket(head, context, &[RAW_PROTOCOL], |_, deflate, upgrade| Ok(Answer::Echo { deflate, upgrade })),
        "/events" => events(head, context),
        "/poll" => poll(head, context, context.limits.poll_wait_ms),
        "/v1/history" => poll(head, context, 0),
        "/v1/topics" => list(head, context),
        "/v1/presence" => presence(head, context),
        "/publish" => publish(head, context, false),
        "/v1/publish" => publish(head, context, true),
        "/healthz" => plain(head, || Response::new(200).header("Cache-Control", "no-store").body("text/plain; charset=utf-8", b"ok\n")),
        path => match (context.pages.iter().find(|page| page.path == path), context.unavailable) {
            (Some(_), Some(why)) => unavailable(context, why),
            (Some(page), None) => plain(head, || page.response(head)),
            (None, _) => Answer::Respond(body_closes(head, Response::error(404, &format!("nothing at {path}; there is: {EXISTS}")))),
        },
    }
}

fn plain(head: &Head<'_, '_>, response: impl FnOnce() -> Response) -> Answer {
    if !matches!(head.method, "GET" | "HEAD") {
        let response = Response::error(405, &format!("{} is not possible here; use GET or HEAD", head.method)).header("Allow", "GET, HEAD");
        return Answer::Respond(body_closes(head, response));
    }
    Answer::Respond(body_closes(head, response()))
}

/// We read no bodies here: a request that has one ends the connection after the answer, or its bytes would be taken for the next request.
fn body_closes(head: &Head<'_, '_>, response: Response) -> Response {
    if head.keep_alive() && matches!(head.body(), Ok(Body::None | Body::Length(0))) { response } else { response.close() }
}

fn unavailable(context: &Context<'_>, why: Unavailable) -> Answer {
    Answer::Refuse(Response::error_for_now(why.status(), why.message(), context.retry_ms).close(), why.cause())
}

/// The same where a page may read the answer.
fn unavailable_to_page(head: &Head<'_, '_>, context: &Context<'_>, why: Unavailable) -> Answer {
    match unavailable(context, why) {
        Answer::Refuse(response, cause) => Answer::Refuse(cross_origin(head, context, response), cause),
        other => other,
    }
}

/// Answers an upgrade request: refusals that any client can cause first, then whether this client is welcome, then the endpoint.
fn socket(
    head: &Head<'_, '_>,
    context: &Context<'_>,
    spoken: &[&'static str],
    endpoint: impl FnOnce(Option<&'static str>, Option<Window>, Vec<u8>) -> Result<Answer, String>,
) -> Answer {
    let upgrade = match handshake::check(head) {
        Ok(upgrade) => upgrade,
        Err(error) => return Answer::Respond(body_closes(head, refusal(&error))),
    };
    let mut accept = Vec::with_capacity(160);
    let selected = selected(&upgrade, spoken);
    let agreed = match if context.compression { upgrade.extension() } else { Ok(None) } {
        Ok(agreed) => agreed,
        Err(error) => return Answer::Respond(body_closes(head, Response::error(400, &error.to_string()))),
    };
    handshake::switching_protocols(&upgrade.accept, selected, agreed, &mut accept);
    let refuse = |accept: Vec<u8>, response: Response, cause| match upgrade.origin {
        Some(_) => Answer::RefusePolitely(accept, response.close(), cause),
        None => Answer::Refuse(response.close(), cause),
    };
    if let Some(why) = context.unopenable() {
        return match unavailable(context, why) {
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
    if let (None, Some(offered)) = (selected, offered(&upgrade)) {
        let spoken = spoken.join(", ");
        let message = format!("none of the offered subprotocols ({offered}) is spoken here; offer {spoken} or none");
        return Answer::Respond(body_closes(head, Response::error(400, &message)));
    }
    endpoint(selected, agreed.map(Agreed::window), accept)
        .unwrap_or_else(|message| Answer::Respond(body_closes(head, Response::error(400, &message))))
}

fn refusal(error: &HandshakeError) -> Response {
    error.response()
}

/// Browsers fail a connection when they offered subprotocols and none was selected: select the first that is spoken, or refuse clearly.
fn selected(upgrade: &Upgrade<'_>, spoken: &[&'static str]) -> Option<&'static str> {
    upgrade.protocols().find_map(|offered| spoken.iter().copied().find(|&spoken| spoken == offered))
}

fn offered(upgrade: &Upgrade<'_>) -> Option<String> {
    let offered: Vec<&str> = upgrade.protocols().collect();
    (!offered.is_empty()).then(|| offered.join(", "))
}

fn is_allowed(origin: &[u8], head: &Head<'_, '_>, origins: &[String]) -> bool {
    if origins.is_empty() {
        return handshake::origin_matches_host(origin, head.host());
    }
    origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(origin))
}

fn room(head: &Head<'_, '_>, deflate: Option<Window>, upgrade: Vec<u8>) -> Result<Answer, String> {
    let (names, starts) = topics(head)?;
    if names.len() > 1 {
        return Err("more than one room; a raw WebSocket has one: open another for another room, or use /events".into());
    }
    let no_echo = match parameter(head, "echo").as_deref() {
        Some("0" | "false") => true,
        None | Some("1" | "true" | "") => false,
        Some(other) => return Err(format!("echo={other} is neither 0 nor 1")),
    };
    let thins = match parameter(head, "slow").as_deref() {
        Some("drop") => true,
        None | Some("disconnect" | "") => false,
        Some(other) => return Err(format!("slow={other} is neither drop nor disconnect")),
    };
    let name = names.into_iter().next().unwrap_or_else(TopicName::default_room);
    let start = starts.and_then(|starts| starts.of(0)).filter(|&start| start != Start::Latest);
    Ok(Answer::Room { name, habits: Habits::new(no_echo, thins), start, user: user(head)?, deflate, upgrade })
}

fn talk(head: &Head<'_, '_>, deflate: Option<Window>, upgrade: Vec<u8>) -> Result<Answer, String> {
    match topics(head)? {
        (names, None) if names.is_empty() => Ok(Answer::Json { user: user(head)?, deflate, upgrade }),
        _ => Err(format!("with {JSON_PROTOCOL} topics are not named in the URL; send {{\"type\":\"subscribe\",\"topic\":\"a\"}}")),
    }
}

/// What a client calls itself.
fn user(head: &Head<'_, '_>) -> Result<Option<User>, String> {
    parameter(head, "user").map(|user| User::parse(&user)).transpose().map_err(|error| error.to_string())
}

/// The topics that a request names, in its order, and where it wants to begin.
fn topics(head: &Head<'_, '_>) -> Result<(Vec<TopicName>, Option<Starts>), String> {
    let names = topic_names(head.query.unwrap_or("")).map_err(|error| error.to_string())?;
    let after = parameter(head, "after").or_else(|| parameter(head, "last_event_id")).filter(|after| !after.is_empty());
    let last = parameter(head, "last");
    let id = head.header("last-event-id").map(|id| String::from_utf8_lossy(id).into_owned());
    let words = StartWords { last_event_id: id.as_deref(), after: after.as_deref(), last: last.as_deref() };
    let starts = Starts::parse(&words, names.len().max(1)).map_err(|error| error.to_string())?;
    if let Some(name) = names.iter().enumerate().find_map(|(index, name)| starts.as_ref()?.of(index).is_none().then_some(name)) {
        return Err(format!("position has no offset for topic {name}; send back what the server gave"));
    }
    Ok((names, starts))
}

/// A stream of events. Whoever wants one must be told with 200 that it cannot have it now: an EventSource takes any other status for good.
fn events(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    let refuse = |status, message: &str| refuse(head, context, status, message);
    if let Some(answer) = gate(head, context, "GET, HEAD") {
        return answer;
    }
    let reads_events = head.list("accept").any(|kind| kind.starts_with(EVENT_STREAM.as_bytes()));
    if let Some(why) = context.unopenable() {
        return match unavailable_to_page(head, context, why) {
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
    let user = match user(head) {
        Ok(user) => user,
        Err(message) => return refuse(400, &message),
    };
    let response = Response::new(200).header("Cache-Control", "no-cache, no-transform").header("X-Accel-Buffering", "no");
    let response = cross_origin(head, context, response).ends_by_close(EVENT_STREAM);
    if head.method == "HEAD" {
        return Answer::Respond(response);
    }
    let mut opening = Vec::new();
    response.encode(&mut opening);
    let start = |index| starts.as_ref().and_then(|starts| starts.of(index)).unwrap_or(Start::Latest);
    let topics = names.into_iter().enumerate().map(|(index, name)| (name, start(index))).collect();
    Answer::Stream(Box::new(Stream::new(Kind::Events, topics, opening, context.retry_ms)), user)
}

/// The value of a query parameter, as text.
fn parameter(head: &Head<'_, '_>, name: &str) -> Option<String> {
    let found = query_pairs(head.query.unwrap_or("")).find(|(key, _)| **key == *name.as_bytes());
    found.map(|(_, value)| String::from_utf8_lossy(&value).into_owned())
}

fn number(head: &Head<'_, '_>, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = parameter(head, name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name}={text} is not a whole number"))
}

/// The origin of a page that may read the answer.
fn reader(head: &Head<'_, '_>, context: &Context<'_>) -> Option<Vec<u8>> {
    head.header("origin").filter(|origin| is_allowed(origin, head, context.origins)).map(<[u8]>::to_vec)
}

/// A poll; of history, one that never waits.
fn poll(head: &Head<'_, '_>, context: &Context<'_>, wait_ms_max: u64) -> Answer {
    let refuse = |status, message: &str| refuse(head, context, status, message);
    if let Some(answer) = closed_gate(head, context, "GET") {
        return answer;
    }
    if context.limits.history_messages == 0 {
        return refuse(
            400,
            "topics have no history here (limits.history_messages is 0), so a poll would miss what comes between two of them; use /events or /ws",
        );
    }
    let parsed = topics(head).and_then(|topics| Ok((topics, number(head, "wait")?, number(head, "limit")?)));
    let ((names, starts), wait, limit) = match parsed {
        Ok(((names, _), ..)) if names.is_empty() => return refuse(400, "no topic; name one or more: ?topic=a&topic=b"),
        Ok(parsed) => parsed,
        Err(message) => return refuse(400, &message),
    };
    let usual = if wait_ms_max == 0 { Start::Earliest } else { Start::Latest };
    let start = |index| starts.as_ref().and_then(|starts| starts.of(index)).unwrap_or(usual);
    let topics = names.into_iter().enumerate().map(|(index, name)| (name, start(index))).collect();
    let wait = Duration::from_millis(wait.map_or(POLL_WAIT_MS, |seconds| seconds.saturating_mul(1000)).min(wait_ms_max));
    let messages_max = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)).max(1);
    let keep = !body_closes(head, Response::new(200)).closes();
    let poll = Poll { wait, messages_max, keep, origin: reader(head, context) };
    Answer::Stream(Box::new(Stream::poll(topics, poll, context.retry_ms)), None)
}

/// The topics that there are.
fn list(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    let refuse = |status, message: &str| refuse(head, context, status, message);
    if let Some(answer) = closed_gate(head, context, "GET") {
        return answer;
    }
    if context.limits.topics_listed == 0 {
        return refuse(403, "topics are not listed here (limits.topics_listed is 0); ask whoever gave you this address for the names");
    }
    let from = match parameter(head, "after") {
        None => ListCursor::default(),
        Some(text) => match ListCursor::parse(&text) {
            Some(cursor) => cursor,
            None => {
                return refuse(400, &format!("after={text} is no place in the list; send back `next` of the answer before, or nothing"));
            }
        },
    };
    let limit = match number(head, "limit") {
        Ok(limit) => limit.unwrap_or(100).clamp(1, context.limits.topics_listed),
        Err(message) => return refuse(400, &message),
    };
    let prefix = parameter(head, "prefix").unwrap_or_default().into();
    let mut listing = Listing::new(from, prefix, limit, reader(head, context));
    listing.keep = !body_closes(head, Response::new(200)).closes();
    Answer::List(Box::new(listing))
}

/// Who is in a topic.
fn presence(head: &Head<'_, '_>, context: &Context<'_>) -> Answer {
    let refuse = |status, message: &str| refuse(head, context, status, message);
    if let Some(answer) = closed_gate(head, context, "GET") {
        return answer;
    }
    match topics(head) {
        Ok((names, _)) => match <[TopicName; 1]>::try_from(names) {
            Ok([topic]) if context.presence.is_for(&topic) => {
                let keep = !body_closes(head, Response::new(200)).closes();
                Answer::WhoIsIn(Box::new(Question { topic, by: By::Request { keep, origin: reader(head, context) } }))
            }
            Ok(_) => {
                let refused = Response::error_called("no_presence", 403, NO_PRESENCE);
                Answer::Respond(body_closes(head, cross_origin(head, context, refused)))
            }
            Err(_) => refuse(400, "name one topic: /v1/presence?topic=a"),
        },
        Err(message) => refuse(400, &message),
    }
}

/// Publishing: the body is still to come.
fn publish(head: &Head<'_, '_>, context: &Context<'_>, items: bool) -> Answer {
    let refuse = |status, message: &str| refuse(head, context, status, message);
    if let Some(answer) = gate(head, context, "POST") {
        return answer;
    }
    // Whoever was not told goodbye yet still hears what is published.
    if let Some(why) = context.unavailable.filter(|&why| why != Unavailable::Draining || !context.takes_messages) {
        return unavailable_to_page(head, context, why);
    }
    let bytes_max =
        if items { context.limits.body_bytes_max.max(context.limits.message_bytes_max) } else { context.limits.message_bytes_max };
    let framing = match head.body() {
        Ok(Body::None) => Framing::Length(0),
        Ok(Body::Length(bytes)) if bytes > bytes_max => {
            let limit = if items { "limits.body_bytes_max" } else { "limits.message_bytes_max" };
            return refuse(413, &format!("the body has {bytes} bytes; {bytes_max} are possible ({limit})"));
        }
        Ok(Body::Length(bytes)) => Framing::Length(bytes),
        Ok(Body::Chunked) => Framing::Chunked(Box::default()),
        Err(error) => return refuse(error.status(), &error.to_string()),
    };
    let ack = match parameter(head, "ack").as_deref() {
        None | Some("accepted") => Ack::Accepted,
        Some("stored") if context.limits.history_messages == 0 => {
            return refuse(400, "ack=stored is not possible: topics have no history here (limits.history_messages is 0)");
        }
        Some("stored") => Ack::Accepted,
        Some("sent") => Ack::Sent,
        Some(other) => return refuse(400, &format!("ack={other} is none of accepted, stored, sent")),
    };
    let what = if items {
        What::Items
    } else {
        match message_of(head) {
            Ok(what) => what,
            Err(message) => return refuse(400, &message),
        }
    };
    let expects = head.has_token("expect", "100-continue") && head.version_minor >= 1;
    let receipts = Receipts::default();
    let origin = reader(head, context);
    let bytes_max = bytes_max as usize;
    Answer::Upload(Box::new(Upload { what, framing, bytes_max, ack, keep: true, expects, origin, body: Vec::new(), receipts }))
}

/// What `/publish` is told of its message beside the body.
fn message_of(head: &Head<'_, '_>) -> Result<What, String> {
    let (topics, _) = topics(head)?;
    if topics.is_empty() {
        return Err("no topic; name one or more: /publish?topic=a".into());
    }
    let event = match parameter(head, "event") {
        Some(name) => Some(EventName::parse(name.as_str()).map_err(|error| format!("event: {error}"))?.as_str().into()),
        None => None,
    };
    let key = match parameter(head, "key") {
        Some(key) => Some(Key::parse(key.as_str()).map_err(|error| format!("key {error}"))?.as_str().into()),
        None => None,
    };
    let id = match head.header("idempotency-key") {
        Some(id) => {
            let id = str::from_utf8(id).map_err(|_| "Idempotency-Key is not UTF-8".to_owned())?;
            Some(Key::parse(id).map_err(|error| format!("Idempotency-Key {error}"))?.as_str().into())
        }
        None => None,
    };
    let binary = head.header("content-type").is_some_and(is_binary);
    Ok(What::Body { topics, binary, event, key, id })
}

/// Whether a media type says that a body is bytes and no text. Types are compared without regard to case (RFC 9110 section 8.3.1).
fn is_binary(content_type: &[u8]) -> bool {
    let kind = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/octet-stream")
}

/// Why a page of another origin may not read here, if so. Not asked by a browser means yes.
fn forbidden(head: &Head<'_, '_>, context: &Context<'_>) -> Option<String> {
    let origin = head.header("origin").filter(|origin| !is_allowed(origin, head, context.origins))?;
    Some(format!("origin {} may not read here; it must match Host, or be listed in `origins`", String::from_utf8_lossy(origin)))
}

/// Adds what a browser asks for before it lets a page of an allowed origin read an answer.
fn cross_origin(head: &Head<'_, '_>, context: &Context<'_>, response: Response) -> Response {
    for_origin(response, reader(head, context).as_deref())
}

/// What is answered before a request of an API is looked at: a preflight, another method, a page that may not read here; none when it may go on.
fn gate(head: &Head<'_, '_>, context: &Context<'_>, allow: &str) -> Option<Answer> {
    if head.method == "OPTIONS" {
        return Some(preflight(head, context));
    }
    if !allow.split(", ").any(|method| method == head.method) {
        let usual = allow.split(", ").next().unwrap_or(allow);
        let response = Response::error(405, &format!("{} is not possible here; use {usual}", head.method));
        return Some(Answer::Respond(body_closes(
            head,
            cross_origin(head, context, response.header("Allow", format!("{allow}, OPTIONS"))),
        )));
    }
    forbidden(head, context).map(|message| refuse(head, context, 403, &message))
}

/// The same, and that nobody can be served now.
fn closed_gate(head: &Head<'_, '_>, context: &Context<'_>, allow: &str) -> Option<Answer> {
    gate(head, context, allow).or_else(|| context.unavailable.map(|why| unavailable_to_page(head, context, why)))
}

/// An error that a page may read. A body that comes with the request is not read: the connection ends with the answer.
fn refuse(head: &Head<'_, '_>, context: &Context<'_>, status: u16, message: &str) -> Answer {
    Answer::Respond(body_closes(head, cross_origin(head, context, Response::error(status, message))))
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
