//! Who is in a topic, as JSON: answers to those who ask, and what those who watch are told.

use std::fmt;

use super::reply::begin;
use super::{push_number, push_string};
use crate::ids::ConnId;

/// What a client calls itself: 1 to 128 bytes of UTF-8 without control characters. Nobody has checked that it is who it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User(Box<str>);

/// Why a text is no [`User`]. The fault is the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UserError {
    /// Empty, or too long.
    #[error("user is {bytes} bytes; 1 to {} are possible", User::BYTES_MAX)]
    Length {
        /// How long.
        bytes: usize,
    },
    /// It would break a line, or hide something.
    #[error("user has a control character (code {code})")]
    ControlCharacter {
        /// Its code point.
        code: u32,
    },
}

impl User {
    /// The longest, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks it and takes a copy.
    ///
    /// # Errors
    /// Empty, over [`Self::BYTES_MAX`], or with a control character (Unicode category Cc).
    pub fn parse(text: &str) -> Result<Self, UserError> {
        if !(1..=Self::BYTES_MAX).contains(&text.len()) {
            return Err(UserError::Length { bytes: text.len() });
        }
        match text.chars().find(|char| char.is_control()) {
            Some(char) => Err(UserError::ControlCharacter { code: u32::from(char) }),
            None => Ok(Self(text.into())),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A member of a topic.
pub type Member<'a> = (ConnId, Option<&'a User>);

/// Appends how many are in a topic and, unless they are too many to be named, who: members of an object, without braces.
///
/// ```
/// use shardcast::ids::{ConnId, ConnKey, ShardId};
/// use shardcast::proto::json::presence::{User, push_roster};
///
/// let anna = (ConnId { shard: ShardId(0), key: ConnKey { slot: 3, generation: 1 } }, Some(&User::parse("anna")?));
/// let mut out = Vec::new();
/// push_roster(&mut out, 1, Some([anna]));
/// assert_eq!(str::from_utf8(&out).unwrap(), r#""count":1,"members":[{"conn":"0-3-1","user":"anna"}]"#);
/// # Ok::<(), shardcast::proto::json::presence::UserError>(())
/// ```
pub fn push_roster<'a>(out: &mut Vec<u8>, count: usize, members: Option<impl IntoIterator<Item = Member<'a>>>) {
    out.extend_from_slice(b"\"count\":");
    push_number(out, count as u64);
    let Some(members) = members else { return };
    out.extend_from_slice(b",\"members\":[");
    for (index, (conn, user)) in members.into_iter().enumerate() {
        out.extend_from_slice(if index > 0 { b",{\"conn\":" } else { b"{\"conn\":" });
        push_string(out, &conn.to_string());
        if let Some(user) = user {
            out.extend_from_slice(b",\"user\":");
            push_string(out, user.as_str());
        }
        out.push(b'}');
    }
    out.push(b']');
}

/// What a client is told of who is in a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Who is there.
    Presence,
    /// Who has come.
    Join,
    /// Who has gone.
    Leave,
}

/// Appends what a client is told: `roster` is what [`push_roster`] has written. `count` is who is there afterwards.
pub fn write_presence(out: &mut Vec<u8>, kind: Kind, id: Option<&str>, topic: &str, roster: &[u8]) {
    let kind = match kind {
        Kind::Presence => "presence",
        Kind::Join => "join",
        Kind::Leave => "leave",
    };
    begin(out, kind, id);
    out.push(b',');
    push_body(out, topic, roster);
    out.push(b'}');
}

/// Appends the same as the answer to a request by HTTP.
pub fn write_answer(out: &mut Vec<u8>, topic: &str, roster: &[u8]) {
    out.push(b'{');
    push_body(out, topic, roster);
    out.extend_from_slice(b"}\n");
}

fn push_body(out: &mut Vec<u8>, topic: &str, roster: &[u8]) {
    out.extend_from_slice(b"\"topic\":");
    push_string(out, topic);
    out.push(b',');
    out.extend_from_slice(roster);
    // Of how many nodes it is: each knows its own clients.
    out.extend_from_slice(b",\"scope\":\"node\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnKey, ShardId};

    #[test]
    fn what_a_client_may_call_itself() {
        assert_eq!(User::parse("Анна 7").map(|user| user.to_string()), Ok("Анна 7".to_owned()));
        for (text, expect) in [
            (String::new(), "user is 0 bytes; 1 to 128 are possible"),
            ("x".repeat(129), "user is 129 bytes; 1 to 128 are possible"),
            ("a\nb".to_owned(), "user has a control character (code 10)"),
        ] {
            assert_eq!(User::parse(&text).expect_err(&text).to_string(), expect);
        }
        assert!(User::parse(&"x".repeat(128)).is_ok());
    }

    #[test]
    fn what_is_told_is_json() {
        let conn = |slot| ConnId { shard: ShardId(1), key: ConnKey { slot, generation: 2 } };
        let user = User::parse("a\"b").expect("a user");
        let mut roster = Vec::new();
        push_roster(&mut roster, 2, Some([(conn(3), None), (conn(4), Some(&user))]));
        for (kind, id, expect) in [
            (
                Kind::Presence,
                Some("7"),
                r#"{"type":"presence","id":7,"topic":"a","count":2,"members":[{"conn":"1-3-2"},{"conn":"1-4-2","user":"a\"b"}],"scope":"node"}"#,
            ),
            (
                Kind::Join,
                None,
                r#"{"type":"join","topic":"a","count":2,"members":[{"conn":"1-3-2"},{"conn":"1-4-2","user":"a\"b"}],"scope":"node"}"#,
            ),
        ] {
            let mut out = Vec::new();
            write_presence(&mut out, kind, id, "a", &roster);
            assert_eq!(str::from_utf8(&out), Ok(expect));
            serde_json::from_slice::<serde_json::Value>(&out).expect("another parser reads it");
        }
        let mut crowd = Vec::new();
        push_roster(&mut crowd, 1_000_000, None::<[Member<'_>; 0]>);
        let mut out = Vec::new();
        write_answer(&mut out, "a", &crowd);
        assert_eq!(str::from_utf8(&out), Ok("{\"topic\":\"a\",\"count\":1000000,\"scope\":\"node\"}\n"));
    }
}
