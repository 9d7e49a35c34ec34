//! A connection, as one process hands it over to another.

use std::net::IpAddr;

use super::{Body, StateError, name, numbers, short};
use crate::proto::json::presence::User;
use crate::proto::pattern::Pattern;
use crate::proto::position::{Epoch, Position};
use crate::proto::topic::TopicName;
use crate::proto::ws::extension::Window;

/// A connection: what it does, and the bytes that were on their way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// What it does.
    pub doing: Doing,
    /// How long it has been there, in milliseconds.
    pub age_ms: u64,
    /// Whose it is, where a proxy has said so.
    pub client: Option<IpAddr>,
    /// What its client calls itself.
    pub user: Option<User>,
    /// What was agreed to about compression.
    pub deflate: Option<Window>,
    /// Bytes that came and were not handled.
    pub input: Vec<u8>,
    /// Bytes that its client is owed.
    pub rest: Vec<u8>,
}

/// What a connection does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doing {
    /// Its next request is awaited.
    Request {
        /// It was answered one before.
        served: bool,
        /// It is a trusted proxy's, and begins with a PROXY protocol header that has not come.
        preface: bool,
    },
    /// It is a WebSocket in a room.
    Room {
        /// The room.
        topic: TopicName,
        /// Its own messages are left out.
        no_echo: bool,
        /// It is thinned where the room's rule says so, and not ended.
        thins: bool,
        /// It is to be given what comes after this position; without one, what is published from now on.
        after: Option<Position>,
    },
    /// It is a WebSocket that hears what it says.
    Echo,
    /// It is a stream of events.
    Stream {
        /// When it was told to come back after a loss, in milliseconds, and over how long everybody was then.
        retry_ms: u64,
        /// See there.
        window_ms: u64,
        /// What it follows.
        topics: Vec<Following>,
    },
    /// It is a WebSocket that speaks `shardcast.v1.json`.
    Json {
        /// Over how long it was told that everybody comes back, in milliseconds.
        window_ms: u64,
        /// What it is subscribed to.
        topics: Vec<Following>,
        /// What the names of topics begin with that it wants, all of them.
        patterns: Vec<Pattern>,
        /// It takes many messages as one frame.
        batch: bool,
    },
    /// It ends: it is given what it is owed, and nothing that comes from it matters.
    Ending,
}

/// A topic that a stream follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Following {
    /// Its name.
    pub topic: TopicName,
    /// The position up to which the client was given everything.
    pub at: Position,
    /// Something after that was before the client came, and is to be given.
    pub behind: bool,
    /// It is told who comes and goes.
    pub watches: bool,
    /// A pattern has brought it.
    pub by_pattern: bool,
}

impl Connection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        numbers(out, &[self.age_ms, self.input.len() as u64]);
        match self.client {
            None => out.push(0),
            Some(IpAddr::V4(address)) => {
                out.push(4);
                out.extend_from_slice(&address.octets());
            }
            Some(IpAddr::V6(address)) => {
                out.push(6);
                out.extend_from_slice(&address.octets());
            }
        }
        short(out, self.user.as_ref().map_or("", User::as_str));
        out.push(self.deflate.map_or(0, Window::bits));
        match &self.doing {
            Doing::Request { served, preface } => out.extend_from_slice(&[0, u8::from(*served), u8::from(*preface)]),
            Doing::Room { topic, no_echo, thins, after } => {
                out.extend_from_slice(&[if *thins { 6 } else { 1 }, u8::from(*no_echo), u8::from(after.is_some())]);
                short(out, topic.as_str());
                after.iter().for_each(|after| encode_position(out, *after));
            }
            Doing::Echo => out.push(2),
            Doing::Stream { retry_ms, window_ms, topics } => {
                out.push(3);
                numbers(out, &[*retry_ms, *window_ms]);
                encode_topics(out, topics);
            }
            Doing::Ending => out.push(4),
            Doing::Json { window_ms, topics, patterns, batch } => {
                out.extend_from_slice(&[5, u8::from(*batch)]);
                numbers(out, &[*window_ms]);
                encode_topics(out, topics);
                numbers(out, &[patterns.len() as u64]);
                patterns.iter().for_each(|pattern| short(out, &pattern.to_string()));
            }
        }
        out.extend_from_slice(&self.input);
        out.extend_from_slice(&self.rest);
    }

    pub(super) fn decode(body: &mut Body<'_>) -> Result<Self, StateError> {
        let (age_ms, input) = (body.number()?, body.number()?);
        let client = match body.byte()? {
            0 => None,
            4 => Some(IpAddr::from(body.array::<4>()?)),
            6 => Some(IpAddr::from(body.array::<16>()?)),
            _ => return Err(StateError::Senseless("an address is of no known kind")),
        };
        let user = match body.short()? {
            "" => None,
            user => Some(User::parse(user).map_err(|_| StateError::Senseless("a user is none"))?),
        };
        let deflate = match body.byte()? {
            0 => None,
            bits => Some(Window::of_bits(bits).ok_or(StateError::Senseless("a window is of no known size"))?),
        };
        let doing = match body.byte()? {
            0 => Doing::Request { served: body.flag()?, preface: body.flag()? },
            kind @ (1 | 6) => {
                let (no_echo, has_more) = (body.flag()?, body.flag()?);
                let topic = name(body.short()?)?;
                Doing::Room { topic, no_echo, thins: kind == 6, after: has_more.then(|| decode_position(body)).transpose()? }
            }
            2 => Doing::Echo,
            3 => {
                let (retry_ms, window_ms) = (body.number()?, body.number()?);
                Doing::Stream { retry_ms, window_ms, topics: decode_topics(body)? }
            }
            4 => Doing::Ending,
            5 => {
                let (batch, window_ms) = (body.flag()?, body.number()?);
                let topics = decode_topics(body)?;
                let pattern = |body: &mut Body<'_>| body.short()?.parse().map_err(|_| StateError::Senseless("a pattern is none"));
                let patterns = (0..body.number()?).map(|_| pattern(body)).collect::<Result<_, _>>()?;
                Doing::Json { window_ms, topics, patterns, batch }
            }
            _ => return Err(StateError::Senseless("a connection does nothing known")),
        };
        let input = body.take(usize::try_from(input).unwrap_or(usize::MAX))?.to_vec();
        let rest = std::mem::take(&mut body.0).to_vec();
        Ok(Self { doing, age_ms, client, user, deflate, input, rest })
    }
}

fn encode_position(out: &mut Vec<u8>, at: Position) {
    numbers(out, &[at.epoch.0, at.offset]);
}

fn decode_position(body: &mut Body<'_>) -> Result<Position, StateError> {
    Ok(Position { epoch: Epoch(body.number()?), offset: body.offset()? })
}

fn encode_topics(out: &mut Vec<u8>, topics: &[Following]) {
    numbers(out, &[topics.len() as u64]);
    for Following { topic, at, behind, watches, by_pattern } in topics {
        out.extend_from_slice(&[u8::from(*behind), u8::from(*watches), u8::from(*by_pattern)]);
        short(out, topic.as_str());
        encode_position(out, *at);
    }
}

fn decode_topics(body: &mut Body<'_>) -> Result<Vec<Following>, StateError> {
    let following = |body: &mut Body<'_>| {
        let (behind, watches, by_pattern) = (body.flag()?, body.flag()?, body.flag()?);
        Ok(Following { topic: name(body.short()?)?, at: decode_position(body)?, behind, watches, by_pattern })
    };
    (0..body.number()?).map(|_| following(body)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One of each kind.
    pub(in super::super) fn examples() -> impl Iterator<Item = Connection> {
        let topic = |name| TopicName::parse(name).expect("a name");
        let at = |epoch, offset| Position { epoch: Epoch(epoch), offset };
        let topics = vec![
            Following { topic: topic("a"), at: at(1, 7), behind: false, watches: true, by_pattern: false },
            Following { topic: topic("news.sport"), at: at(2, 0), behind: true, watches: false, by_pattern: true },
        ];
        let doings = [
            Doing::Request { served: true, preface: false },
            Doing::Room { topic: topic("lobby"), no_echo: true, thins: false, after: None },
            Doing::Room { topic: topic("lobby"), no_echo: false, thins: false, after: Some(at(3, 17)) },
            Doing::Room { topic: topic("lobby"), no_echo: true, thins: true, after: Some(at(3, 17)) },
            Doing::Echo,
            Doing::Stream { retry_ms: 3000, window_ms: 60_000, topics: topics.clone() },
            Doing::Json {
                window_ms: 60_000,
                topics,
                patterns: vec!["news.*".parse().expect("a pattern"), "*".parse().expect("a pattern")],
                batch: true,
            },
            Doing::Json { window_ms: 0, topics: Vec::new(), patterns: Vec::new(), batch: false },
            Doing::Ending,
        ];
        let clients = [None, Some(IpAddr::from([192, 0, 2, 1])), Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]))];
        doings.into_iter().zip(clients.into_iter().cycle()).enumerate().map(|(number, (doing, client))| Connection {
            doing,
            age_ms: 1000 * number as u64,
            client,
            user: (number % 2 == 1).then(|| User::parse("anna").expect("a user")),
            deflate: Window::of_bits(number as u8 + 6),
            input: vec![number as u8; number],
            rest: b"rest"[..number % 5].to_vec(),
        })
    }
}
