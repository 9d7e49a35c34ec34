//! Positions: where a message stands in its topic, where a reader is, and where a subscription begins.
//!
//! To clients all of these are opaque strings. What they hold is for the server alone, so each value has one spelling: what is printed is
//! parsed to the same value, and nothing else is.

use std::fmt;

use smallvec::SmallVec;

/// The most topics of one request, and so the most offsets of a [`Cursor`].
pub const TOPICS_MAX: usize = 128;

/// The longest time that [`Start::Ago`] reaches back: ten years of 365 days.
pub const AGO_MS_MAX: u64 = 10 * 365 * 24 * 60 * 60 * 1000;

/// One life of the offsets of a topic; another one means that they started again. Printed in lowercase base 36.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Epoch(pub u64);

/// The place of a message in its topic, and so where a reader is that has it. Printed `EPOCH.OFFSET`, the offset in decimal.
///
/// ```
/// use shardcast::proto::position::{Epoch, Position};
///
/// let position = Position::parse("k3f9.1042")?;
/// assert_eq!(position, Position { epoch: Epoch(937_557), offset: 1042 });
/// assert_eq!(position.to_string(), "k3f9.1042");
/// # Ok::<(), shardcast::proto::position::PositionError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Whose offsets they are; offsets of two epochs say nothing about each other.
    pub epoch: Epoch,
    /// Grows with each message of the topic, not always by 1.
    pub offset: u64,
}

/// Where a reader of one or more topics is: what an SSE `id:` and the `next` of a poll hold.
///
/// For one topic it is exactly the position. For several it is `EPOCH.OFFSET,OFFSET,…` in the order of the topics in the URL; an offset that the
/// server is not sure of is left empty. Where a topic's epoch is another one than that of the topic before it, it stands before the offset:
/// `k3f9.17,1a.4,5`.
///
/// ```
/// use shardcast::proto::position::{Cursor, Epoch};
///
/// let cursor = Cursor::parse("k3f9.17,,4", 3)?;
/// assert!(cursor.offsets().eq([Some(17), None, Some(4)]));
/// assert_eq!(cursor.to_string(), "k3f9.17,,4");
/// assert_eq!(Cursor::parse("k3f9.17", 2).unwrap_err().to_string(), "position has 1 offset for 2 topics; their order is that of the URL");
/// # Ok::<(), shardcast::proto::position::PositionError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// In place for one topic, which is nearly all of them.
    places: SmallVec<[(Epoch, Option<u64>); 1]>,
}

/// Where the subscription to one topic begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the next message.
    Latest,
    /// With the oldest message that there is.
    Earliest,
    /// After the message at this position.
    After(Position),
    /// With the newest so many messages.
    Last(u32),
    /// With the messages of the last so many milliseconds, at most [`AGO_MS_MAX`].
    Ago {
        /// How far back, in milliseconds.
        ms: u64,
    },
}

/// Where the subscriptions of one request begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Starts {
    /// All of its topics alike. Never [`Start::After`].
    Alike(Start),
    /// Each where the cursor says.
    Resume(Cursor),
}

/// What a request says about where to begin, as sent; `None` for what it does not say.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StartWords<'a> {
    /// The header `Last-Event-ID`; an empty one says nothing.
    pub last_event_id: Option<&'a str>,
    /// The query's `after`, or what stands for the header there, `last_event_id`.
    pub after: Option<&'a str>,
    /// The query's `last`.
    pub last: Option<&'a str>,
}

impl Position {
    /// The longest printed position, in bytes: 64 bits in base 36, a dot, 64 bits in decimal.
    pub const BYTES_MAX: usize = 13 + 1 + 20;

    /// Parses the printed form.
    ///
    /// # Errors
    /// Whatever [`Position`] does not print.
    pub fn parse(text: &str) -> Result<Self, PositionError> {
        let (epoch, offset) = split(text)?;
        Ok(Self { epoch, offset: parse_offset(offset)? })
    }

    /// Appends the printed form.
    pub fn write(self, out: &mut Vec<u8>) {
        write_cursor(out, [(self.epoch, Some(self.offset))]);
    }
}

impl Cursor {
    /// The cursor of these offsets, one for each topic, all of one epoch.
    ///
    /// # Panics
    /// Without any offset, and with over [`TOPICS_MAX`]: a request never has that many topics.
    pub fn new(epoch: Epoch, offsets: impl IntoIterator<Item = Option<u64>>) -> Self {
        let places: SmallVec<_> = offsets.into_iter().map(|offset| (epoch, offset)).collect();
        assert!((1..=TOPICS_MAX).contains(&places.len()), "cursor of {} topics; 1 to {TOPICS_MAX} are possible", places.len());
        Self { places }
    }

    /// Parses the cursor of a request for so many topics. Allocates for several topics only.
    ///
    /// # Errors
    /// What no cursor prints, and another number of offsets than there are topics.
    pub fn parse(text: &str, topics: usize) -> Result<Self, PositionError> {
        let (mut epoch, offsets) = split(text)?;
        let found = 1 + memchr::memchr_iter(b',', offsets.as_bytes()).count();
        if found != topics || found > TOPICS_MAX {
            return Err(PositionError::Offsets { found, topics });
        }
        let parse = |(index, mut offset)| {
            if index > 0 && memchr::memchr(b'.', str::as_bytes(offset)).is_some() {
                let (other, rest) = split(offset)?;
                if other == epoch {
                    // It would not have been printed.
                    return Err(PositionError::Epoch);
                }
                (epoch, offset) = (other, rest);
            }
            // The cursor of one topic is its position, which always has an offset.
            let offset = if offset.is_empty() && topics > 1 { None } else { Some(parse_offset(offset)?) };
            Ok((epoch, offset))
        };
        let places = offsets.split(',').enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { places })
    }

    /// Whose offset that of the first topic is.
    pub fn epoch(&self) -> Epoch {
        self.places[0].0
    }

    /// The offsets in the order of the topics.
    pub fn offsets(&self) -> impl ExactSizeIterator<Item = Option<u64>> + '_ {
        self.places.iter().map(|&(_, offset)| offset)
    }

    /// Where the reader is in the topic at `index`; `None` when the server was not sure.
    ///
    /// # Panics
    /// When the cursor has no topic at `index`.
    pub fn position(&self, index: usize) -> Option<Position> {
        let (epoch, offset) = self.places[index];
        offset.map(|offset| Position { epoch, offset })
    }

    /// Appends the printed form.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_cursor(out, self.places.iter().copied());
    }
}

impl From<Position> for Cursor {
    fn from(position: Position) -> Self {
        Self::new(position.epoch, [Some(position.offset)])
    }
}

impl Starts {
    /// Decides where the subscriptions of a request for so many topics begin; `None` when it does not say.
    ///
    /// The header wins over the query: an `EventSource` that comes back asks for the URL that it was made with, whose `after` or `last` was
    /// right only the first time (WHATWG HTML section 9.2.4).
    ///
    /// ```
    /// use shardcast::proto::position::{Start, StartWords, Starts};
    ///
    /// let first = StartWords { last: Some("20"), ..StartWords::default() };
    /// assert_eq!(Starts::parse(&first, 1)?, Some(Starts::Alike(Start::Last(20))));
    /// let again = StartWords { last_event_id: Some("k3f9.17"), ..first };
    /// assert!(matches!(Starts::parse(&again, 1)?, Some(Starts::Resume(cursor)) if cursor.to_string() == "k3f9.17"));
    /// # Ok::<(), shardcast::proto::position::StartError>(())
    /// ```
    ///
    /// # Errors
    /// What cannot be understood, with the name of the parameter, and both `after` and `last`.
    pub fn parse(words: &StartWords<'_>, topics: usize) -> Result<Option<Self>, StartError> {
        if let Some(id) = words.last_event_id.filter(|id| !id.is_empty()) {
            return Cursor::parse(id, topics).map(|cursor| Some(Self::Resume(cursor))).map_err(StartError::LastEventId);
        }
        match (words.after, words.last) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(StartError::AfterAndLast),
            (None, Some(last)) => match parse_decimal(last).and_then(|count| u32::try_from(count).ok()) {
                Some(count) => Ok(Some(Self::Alike(Start::Last(count)))),
                None => Err(StartError::Last),
            },
            (Some("latest"), None) => Ok(Some(Self::Alike(Start::Latest))),
            (Some("earliest"), None) => Ok(Some(Self::Alike(Start::Earliest))),
            (Some(after), None) => match after.strip_prefix('-') {
                Some(ago) => parse_ago(ago).map(|ms| Some(Self::Alike(Start::Ago { ms }))).ok_or(StartError::Ago),
                None => Cursor::parse(after, topics).map(|cursor| Some(Self::Resume(cursor))).map_err(StartError::After),
            },
        }
    }

    /// Where the subscription to the topic at `index` begins; `None` when its reader comes back, but the server was not sure where it was.
    ///
    /// # Panics
    /// When a cursor has no topic at `index`.
    pub fn of(&self, index: usize) -> Option<Start> {
        match self {
            Self::Alike(start) => Some(*start),
            Self::Resume(cursor) => cursor.position(index).map(Start::After),
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0; 64];
        f.write_str(digits(self.0, 36, &mut buffer))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.offset)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Vec::with_capacity(Position::BYTES_MAX);
        self.write(&mut out);
        f.write_str(str::from_utf8(&out).expect("digits, dots and commas"))
    }
}

/// Why a text is no [`Position`] or [`Cursor`]. The fault is always the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PositionError {
    /// No dot.
    #[error("position has no dot between epoch and offset, as in k3f9.1042; send back what the server gave")]
    NoDot,
    /// Not what an [`Epoch`] prints.
    #[error("position has an epoch that no server gave: at most 64 bits in lowercase base 36, as k3f9 in k3f9.1042")]
    Epoch,
    /// Not the decimal of 64 bits.
    #[error("position has an offset that no server gave: at most 64 bits in decimal, as 1042 in k3f9.1042")]
    Offset,
    /// Not one for each topic.
    #[error("position has {found} {offsets} for {topics} {name}; their order is that of the URL",
        offsets = plural(*found, "offset", "offsets"), name = plural(*topics, "topic", "topics"))]
    Offsets {
        /// How many it has.
        found: usize,
        /// How many topics the request names.
        topics: usize,
    },
}

/// Why nobody can tell where a subscription should begin. The fault is always the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// The header is no cursor.
    #[error("Last-Event-ID: {0}")]
    LastEventId(#[source] PositionError),
    /// `after` is no cursor, and none of its words.
    #[error("after: {0}; or say earliest, latest, or how far back, as in -30s")]
    After(#[source] PositionError),
    /// `after` begins with `-` and is no time.
    #[error("after is no time to go back, such as -30s, -5m or -1h, at most 10 years")]
    Ago,
    /// `last` is no number.
    #[error("last is not a count of messages, from 0 to 4294967295")]
    Last,
    /// Two answers to one question.
    #[error("request has both after and last; send one of them")]
    AfterAndLast,
}

/// Appends the cursor of these places, epochs and offsets, as [`Cursor`] prints it, without making one first.
pub fn write_cursor(out: &mut Vec<u8>, places: impl IntoIterator<Item = (Epoch, Option<u64>)>) {
    let mut buffer = [0; 64];
    let mut before = None;
    for (epoch, offset) in places {
        if before.is_some() {
            out.push(b',');
        }
        if before != Some(epoch) {
            out.extend_from_slice(digits(epoch.0, 36, &mut buffer).as_bytes());
            out.push(b'.');
            before = Some(epoch);
        }
        if let Some(offset) = offset {
            out.extend_from_slice(digits(offset, 10, &mut buffer).as_bytes());
        }
    }
}

/// The digits of a number, faster than through `fmt`: they are written for every message.
pub(in crate::proto) fn digits(mut number: u64, base: u64, buffer: &mut [u8; 64]) -> &str {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % base) as usize];
        number /= base;
        if number == 0 {
            return str::from_utf8(&buffer[start..]).expect("digits are ASCII");
        }
    }
}

fn split(text: &str) -> Result<(Epoch, &str), PositionError> {
    let (epoch, offsets) = text.split_once('.').ok_or(PositionError::NoDot)?;
    if !is_canonical(epoch) || epoch.bytes().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'z')) {
        return Err(PositionError::Epoch);
    }
    Ok((Epoch(u64::from_str_radix(epoch, 36).map_err(|_| PositionError::Epoch)?), offsets))
}

fn parse_offset(text: &str) -> Result<u64, PositionError> {
    if is_canonical(text) { parse_decimal(text).ok_or(PositionError::Offset) } else { Err(PositionError::Offset) }
}

/// Not empty, and no zeros in front: one number has one spelling.
fn is_canonical(digits: &str) -> bool {
    !digits.is_empty() && (digits == "0" || !digits.starts_with('0'))
}

/// Digits only: what `u64::from_str` takes besides is a sign.
fn parse_decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// `30s`, `5m`, `1h` in milliseconds.
fn parse_ago(text: &str) -> Option<u64> {
    let unit_ms = match text.as_bytes().last()? {
        b's' => 1000,
        b'm' => 60 * 1000,
        b'h' => 60 * 60 * 1000,
        _ => return None,
    };
    let ms = parse_decimal(&text[..text.len() - 1])?.checked_mul(unit_ms)?;
    (ms <= AGO_MS_MAX).then_some(ms)
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_an_epoch_in_base_36_and_a_decimal_offset() {
        for (text, epoch, offset) in [
            ("0.0", 0, 0),
            ("z.9", 35, 9),
            ("10.10", 36, 10),
            ("k3f9.1042", 937_557, 1042),
            ("3w5e11264sgsf.18446744073709551615", u64::MAX, u64::MAX),
        ] {
            let position = Position { epoch: Epoch(epoch), offset };
            assert_eq!(Position::parse(text), Ok(position));
            assert_eq!(position.to_string(), text);
            let mut out = b"id: ".to_vec();
            position.write(&mut out);
            assert_eq!(out, format!("id: {text}").as_bytes());
            assert!(text.len() <= Position::BYTES_MAX);
        }
    }

    #[test]
    fn what_no_server_gave_is_no_position() {
        use PositionError::{Epoch, NoDot, Offset};
        for (text, error) in [
            ("", NoDot),
            ("k3f9", NoDot),
            ("k3f9,1", NoDot),
            (".1", Epoch),
            ("K3F9.1", Epoch),
            ("0k.1", Epoch),
            ("+k.1", Epoch),
            ("k-3.1", Epoch),
            (" k3f9.1", Epoch),
            ("ü.1", Epoch),
            ("3w5e11264sgsg.1", Epoch),
            ("k3f9.", Offset),
            ("k3f9.01", Offset),
            ("k3f9.+1", Offset),
            ("k3f9.-1", Offset),
            ("k3f9.1 ", Offset),
            ("k3f9.1.2", Offset),
            ("k3f9.1,2", Offset),
            ("k3f9.1a", Offset),
            ("k3f9.18446744073709551616", Offset),
        ] {
            assert_eq!(Position::parse(text), Err(error), "{text:?}");
        }
    }

    fn check(text: &str, topics: usize, expect: Result<&[Option<u64>], PositionError>) {
        let parsed = Cursor::parse(text, topics);
        let offsets = parsed.as_ref().map(|cursor| cursor.offsets().collect::<Vec<_>>()).map_err(|error| *error);
        assert_eq!(offsets, expect.map(<[_]>::to_vec), "{text:?}");
        if let Ok(cursor) = parsed {
            assert_eq!(cursor.to_string(), text);
        }
    }

    #[test]
    fn a_cursor_says_an_epoch_where_it_is_another_one() {
        let cursor = Cursor::parse("k3f9.17,1a.4,5,,z.,9", 6).expect("a cursor");
        assert_eq!(cursor.to_string(), "k3f9.17,1a.4,5,,z.,9");
        let at = |index| cursor.position(index).map(|position| position.to_string());
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(at),
            ["k3f9.17", "1a.4", "1a.5", "", "", "z.9"].map(|text| (!text.is_empty()).then(|| text.to_owned()))
        );
        for text in ["k3f9.17,k3f9.4", "k3f9.17,.4", "k3f9.17,1A.4"] {
            assert_eq!(Cursor::parse(text, 2), Err(PositionError::Epoch), "{text}");
        }
        assert_eq!(Cursor::parse("k3f9.17,1a.4.5", 2), Err(PositionError::Offset));
        assert_eq!(Cursor::parse("k3f9.1a.4", 1), Err(PositionError::Offset));
    }

    #[test]
    fn a_cursor_has_one_offset_for_each_topic_in_their_order() {
        check("k3f9.17", 1, Ok(&[Some(17)]));
        check("k3f9.17,4", 2, Ok(&[Some(17), Some(4)]));
        check("k3f9.17,,4", 3, Ok(&[Some(17), None, Some(4)]));
        check("k3f9.,", 2, Ok(&[None, None]));
        check("k3f9.", 1, Err(PositionError::Offset));
        check("k3f9.1,2", 1, Err(PositionError::Offsets { found: 2, topics: 1 }));
        check("k3f9.1", 2, Err(PositionError::Offsets { found: 1, topics: 2 }));
        check("k3f9.1", 0, Err(PositionError::Offsets { found: 1, topics: 0 }));
        check("k3f9.1,x", 2, Err(PositionError::Offset));
        check("k3f9.1,02", 2, Err(PositionError::Offset));
        check("1,2", 2, Err(PositionError::NoDot));
    }

    #[test]
    fn a_cursor_holds_128_topics_and_no_more() {
        let text = |topics| format!("k3f9.{}", vec!["7"; topics].join(","));
        check(&text(128), 128, Ok(&[Some(7); 128]));
        check(&text(129), 129, Err(PositionError::Offsets { found: 129, topics: 129 }));
    }

    #[test]
    #[should_panic(expected = "cursor of 129 topics")]
    fn a_cursor_of_more_topics_than_a_request_has_is_a_bug_of_ours() {
        let _ = Cursor::new(Epoch(1), [None; 129]);
    }

    #[test]
    fn a_position_is_the_cursor_of_one_topic_and_takes_no_heap() {
        let position = Position { epoch: Epoch(5), offset: 9 };
        let cursor = Cursor::from(position);
        assert_eq!((cursor.to_string(), cursor.position(0)), (position.to_string(), Some(position)));
        assert!(!cursor.places.spilled());
    }

    fn start(after: Option<&str>, last: Option<&str>) -> Result<Option<Starts>, StartError> {
        Starts::parse(&StartWords { last_event_id: None, after, last }, 1)
    }

    #[test]
    fn a_subscription_begins_where_after_or_last_say() {
        let alike = |start| Ok(Some(Starts::Alike(start)));
        assert_eq!(start(None, None), Ok(None));
        assert_eq!(start(Some("latest"), None), alike(Start::Latest));
        assert_eq!(start(Some("earliest"), None), alike(Start::Earliest));
        assert_eq!(start(None, Some("0")), alike(Start::Last(0)));
        assert_eq!(start(None, Some("4294967295")), alike(Start::Last(u32::MAX)));
        for (text, ms) in [("-0s", 0), ("-30s", 30_000), ("-90s", 90_000), ("-5m", 300_000), ("-1h", 3_600_000), ("-87600h", AGO_MS_MAX)] {
            assert_eq!(start(Some(text), None), alike(Start::Ago { ms }), "{text}");
        }
        let resumed = start(Some("k3f9.17"), None).expect("a position").expect("a start");
        assert_eq!(resumed.of(0), Some(Start::After(Position { epoch: Epoch(937_557), offset: 17 })));
    }

    #[test]
    fn a_start_that_cannot_be_understood_is_refused_by_its_name() {
        assert_eq!(start(Some("k3f9.17"), Some("3")), Err(StartError::AfterAndLast));
        for last in ["", "-1", "+1", "4294967296", "99999999999999999999", "x"] {
            assert_eq!(start(None, Some(last)), Err(StartError::Last), "{last:?}");
        }
        for ago in ["-", "-s", "-30", "-+30s", "- 30s", "-30S", "-30d", "-87601h", "-18446744073709551615h", "--1s", "-1ü"] {
            assert_eq!(start(Some(ago), None), Err(StartError::Ago), "{ago:?}");
        }
        for (after, error) in [("", PositionError::NoDot), ("newest", PositionError::NoDot), ("a.b", PositionError::Offset)] {
            assert_eq!(start(Some(after), None), Err(StartError::After(error)), "{after:?}");
        }
        let error = Starts::parse(&StartWords { last_event_id: Some("42"), ..StartWords::default() }, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Last-Event-ID: position has no dot between epoch and offset, as in k3f9.1042; send back what the server gave"
        );
    }

    #[test]
    fn last_event_id_wins_over_the_query_of_an_old_url() {
        let words = StartWords { last_event_id: Some("k3f9.17,4"), after: Some("earliest"), last: Some("3") };
        let starts = Starts::parse(&words, 2).expect("a cursor").expect("a start");
        let after = |offset| Some(Start::After(Position { epoch: Epoch(937_557), offset }));
        assert_eq!((starts.of(0), starts.of(1)), (after(17), after(4)));
        let nothing = StartWords { last_event_id: Some(""), after: Some("earliest"), last: None };
        assert_eq!(Starts::parse(&nothing, 2).map(|starts| starts.map(|starts| starts.of(1))), Ok(Some(Some(Start::Earliest))));
        let unsure = StartWords { last_event_id: Some("k3f9.17,"), ..words };
        assert_eq!(Starts::parse(&unsure, 2).expect("a cursor").expect("a start").of(1), None);
    }
}
