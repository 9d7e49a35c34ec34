//! The answers to publications: results in the order of the items, and errors as JSON says them.

use crate::proto::json::{push_number, push_position, push_string};
use crate::proto::position::Position;

/// How publishing one message to one topic went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// `{"pos":"k3f9.17","subscribers":12}`, with `"duplicate":true` in front when the id was known and `pos` is the first one's.
    Published {
        /// Where the message is in its topic.
        position: Position,
        /// Subscribers on this node.
        subscribers: u64,
        /// The message had been published before and was not again.
        duplicate: bool,
    },
    /// `{"error":{…}}`.
    Failed(ErrorBody<'a>),
}

/// How one item went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemOutcome<'a> {
    /// The outcome itself: of an item with `topic`, or one that failed as a whole.
    One(Outcome<'a>),
    /// `{"results":[…]}`: of an item with `topics`, in their order.
    Each(&'a [Outcome<'a>]),
}

/// An error as JSON says it: `{"error":{"code":"too_large","message":"…","retry_ms":N}}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorBody<'a> {
    /// A word for programs.
    pub code: &'a str,
    /// A sentence for people.
    pub message: &'a str,
    /// When to try again, in milliseconds; `None` when that will not help.
    pub retry_ms: Option<u64>,
}

impl Outcome<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Published { position, subscribers, duplicate } => {
                out.extend_from_slice(if *duplicate { b"{\"duplicate\":true,\"pos\":" } else { b"{\"pos\":" });
                push_position(out, Some(*position));
                out.extend_from_slice(b",\"subscribers\":");
                push_number(out, *subscribers);
                out.push(b'}');
            }
            Self::Failed(error) => error.write(out),
        }
    }
}

impl ErrorBody<'_> {
    /// Appends the body of an HTTP response that says only this: the JSON object and a line end.
    ///
    /// ```
    /// use shardcast::proto::publish::ErrorBody;
    ///
    /// let mut body = Vec::new();
    /// ErrorBody { code: "too_large", message: "body is over 65536 bytes", retry_ms: None }.encode(&mut body);
    /// assert_eq!(body, b"{\"error\":{\"code\":\"too_large\",\"message\":\"body is over 65536 bytes\"}}\n");
    /// ```
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.write(out);
        out.push(b'\n');
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"error\":{\"code\":");
        push_string(out, self.code);
        out.extend_from_slice(b",\"message\":");
        push_string(out, self.message);
        if let Some(ms) = self.retry_ms {
            out.extend_from_slice(b",\"retry_ms\":");
            push_number(out, ms);
        }
        out.extend_from_slice(b"}}");
    }
}

/// Appends the answer to a publication: the outcome of its item, or an array of all of them, and a line end.
///
/// ```
/// use shardcast::proto::position::Position;
/// use shardcast::proto::publish::{ErrorBody, ItemOutcome, Outcome, encode_results};
///
/// let published = Outcome::Published { position: Position::parse("k3f9.17")?, subscribers: 12, duplicate: false };
/// let mut out = Vec::new();
/// encode_results(&mut out, false, [ItemOutcome::One(published)]);
/// assert_eq!(out, b"{\"pos\":\"k3f9.17\",\"subscribers\":12}\n");
///
/// out.clear();
/// let failed = Outcome::Failed(ErrorBody { code: "over_capacity", message: "topic is behind", retry_ms: Some(50) });
/// encode_results(&mut out, true, [ItemOutcome::Each(&[published, failed])]);
/// assert!(out.starts_with(b"[{\"results\":[{\"pos\""));
/// # Ok::<(), shardcast::proto::position::PositionError>(())
/// ```
///
/// # Panics
/// When it is no array and there is not exactly one item.
pub fn encode_results<'a>(out: &mut Vec<u8>, is_array: bool, items: impl IntoIterator<Item = ItemOutcome<'a>>) {
    let mut count = 0;
    push_list(out, is_array.then_some(b"[]"), items, |out, item| {
        count += 1;
        match item {
            ItemOutcome::One(outcome) => outcome.write(out),
            ItemOutcome::Each(outcomes) => {
                out.extend_from_slice(b"{\"results\":");
                push_list(out, Some(b"[]"), outcomes, |out, outcome| outcome.write(out));
                out.push(b'}');
            }
        }
    });
    assert!(is_array || count == 1, "the body of one object has {count} results");
    out.push(b'\n');
}

fn push_list<T>(out: &mut Vec<u8>, around: Option<&[u8; 2]>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    out.extend(around.map(|around| around[0]));
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.extend(around.map(|around| around[1]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_answered_with_an_array_even_of_none() {
        let mut out = Vec::new();
        encode_results(&mut out, true, []);
        assert_eq!(out, b"[]\n");
    }

    #[test]
    fn each_result_stands_in_the_place_of_its_item() {
        let published =
            |duplicate| Outcome::Published { position: Position::parse("k3f9.17").expect("a position"), subscribers: 12, duplicate };
        let failed = Outcome::Failed(ErrorBody { code: "over_capacity", message: "topic \"a\" is behind", retry_ms: Some(50) });
        let mut out = Vec::new();
        let each = [published(false), failed];
        encode_results(&mut out, true, [ItemOutcome::One(published(true)), ItemOutcome::Each(&each), ItemOutcome::One(failed)]);
        let error = r#"{"error":{"code":"over_capacity","message":"topic \"a\" is behind","retry_ms":50}}"#;
        let expect = format!(
            r#"[{{"duplicate":true,"pos":"k3f9.17","subscribers":12}},{{"results":[{{"pos":"k3f9.17","subscribers":12}},{error}]}},{error}]"#
        );
        assert_eq!(String::from_utf8_lossy(&out), expect + "\n");
        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
    }

    #[test]
    #[should_panic(expected = "the body of one object has 2 results")]
    fn one_object_has_one_result() {
        let one = ItemOutcome::Each(&[]);
        encode_results(&mut Vec::new(), false, [one, one]);
    }
}
