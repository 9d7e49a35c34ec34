//! The word for lost continuity: what a reader of a topic did not get, and why. Every transport says it the same way.

use super::json::{push_position, push_string};
use super::position::Position;

/// Messages of a topic that a reader should have had and does not get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The position after which messages may be missing; `None` when the reader's position says nothing.
    pub from: Option<Position>,
    /// The last position that may be missing: what is delivered next comes after it.
    pub to: Position,
    /// Up to here messages are missing between those that are delivered next, too: of each key only the newest comes.
    pub until: Option<Position>,
    /// Why.
    pub reason: GapReason,
}

/// Why messages are missing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GapReason {
    /// History does not reach back that far any more.
    TooOld,
    /// The position is of another epoch: offsets have started again.
    Restart,
    /// Nobody can say what the position means here.
    Unknown,
    /// The reader was too slow, and its topic drops messages for such readers.
    Slow,
}

impl GapReason {
    /// The word on the wire and in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::TooOld => "too_old",
            Self::Restart => "restart",
            Self::Unknown => "unknown",
            Self::Slow => "slow",
        }
    }
}

impl Gap<'_> {
    /// Appends `"from":…,"to":…,"reason":…`, the members that all transports share.
    pub(in crate::proto) fn push_members(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"from\":");
        push_position(out, self.from);
        out.extend_from_slice(b",\"to\":");
        push_position(out, Some(self.to));
        if self.until.is_some() {
            out.extend_from_slice(b",\"until\":");
            push_position(out, self.until);
        }
        out.extend_from_slice(b",\"reason\":\"");
        out.extend_from_slice(self.reason.word().as_bytes());
        out.push(b'"');
    }

    /// Appends the gap as a JSON object: `{"topic":"a","from":"k3f9.3","to":"k3f9.90","reason":"too_old"}`; `from` may be `null`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"topic\":");
        push_string(out, self.topic);
        out.push(b',');
        self.push_members(out);
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_says_what_is_missing_and_why() {
        let at = |text| Position::parse(text).expect("a position");
        for (from, reason, expect) in [
            (Some("k3f9.3"), GapReason::TooOld, r#"{"topic":"a\"b","from":"k3f9.3","to":"k3f9.90","reason":"too_old"}"#),
            (Some("j1.700"), GapReason::Restart, r#"{"topic":"a\"b","from":"j1.700","to":"k3f9.90","reason":"restart"}"#),
            (None, GapReason::Unknown, r#"{"topic":"a\"b","from":null,"to":"k3f9.90","reason":"unknown"}"#),
            (None, GapReason::Slow, r#"{"topic":"a\"b","from":null,"to":"k3f9.90","reason":"slow"}"#),
        ] {
            let mut out = Vec::new();
            Gap { topic: "a\"b", from: from.map(at), to: at("k3f9.90"), until: None, reason }.write(&mut out);
            assert_eq!(str::from_utf8(&out), Ok(expect));
        }
        let mut out = Vec::new();
        let (to, until) = (at("k3f9.9"), Some(at("k3f9.20")));
        Gap { topic: "a", from: Some(at("k3f9.3")), to, until, reason: GapReason::Slow }.write(&mut out);
        assert_eq!(str::from_utf8(&out), Ok(r#"{"topic":"a","from":"k3f9.3","to":"k3f9.9","until":"k3f9.20","reason":"slow"}"#));
    }
}
