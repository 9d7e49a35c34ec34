//! Event streams as this tool reads them: the one line of data of each event, found without a copy. It is no general decoder (`proto::sse` has
//! that): an event whose data has several lines is known by its first one, which is where a stamp is.

/// One event, or a comment between events.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Event<'a> {
    pub(super) id: Option<&'a [u8]>,
    /// Empty without one.
    pub(super) name: &'a [u8],
    pub(super) data: Option<&'a [u8]>,
}

/// The first event in the bytes, once it is whole, and its length.
pub(super) fn first(bytes: &[u8]) -> Option<(Event<'_>, usize)> {
    let mut event = Event::default();
    let mut at = 0;
    loop {
        let end = at + memchr::memchr(b'\n', &bytes[at..])?;
        let line = bytes[at..end].strip_suffix(b"\r").unwrap_or(&bytes[at..end]);
        at = end + 1;
        match line.first() {
            None => return Some((event, at)),
            Some(b'd') if event.data.is_none() => event.data = value(line, b"data:"),
            Some(b'i') => event.id = value(line, b"id:").or(event.id),
            Some(b'e') => event.name = value(line, b"event:").unwrap_or(event.name),
            Some(_) => {}
        }
    }
}

/// What a line says when it begins with this.
fn value<'a>(line: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(field)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// The close code in what shardcast says when it ends a stream, `{"code":4503,…}`.
pub(super) fn bye_code(data: &[u8]) -> Option<u16> {
    serde_json::from_slice::<serde_json::Value>(data).ok()?.get("code")?.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::Position;
    use crate::proto::sse::{EventName, encode_event};
    use crate::proto::ws::MessageKind;

    #[test]
    fn what_the_encoder_writes_is_found() {
        let mut bytes = Vec::new();
        let (id, name) = (Position::parse("k.7").expect("a position"), EventName::parse("n").expect("a name"));
        encode_event(&mut bytes, Some(id), Some(&name), b"hello", MessageKind::Text);
        let expect = Event { id: Some(b"k.7"), name: b"n", data: Some(b"hello") };
        assert_eq!(first(&bytes), Some((expect, bytes.len())));
        for cut in 0..bytes.len() {
            assert_eq!(first(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn events_follow_each_other_and_comments_have_nothing() {
        let mut rest: &[u8] = b":\n\nretry: 5\n\ndata:a\ndata: b\r\n\r\nid\ndatum: x\n\nid: 1\nevent: shardcast:open\ndata: {}\n\n";
        let mut found = Vec::new();
        while let Some((event, len)) = first(rest) {
            found.push(event);
            rest = &rest[len..];
        }
        let open = Event { id: Some(b"1"), name: b"shardcast:open", data: Some(b"{}") };
        let nothing = Event::default();
        assert_eq!(found, [nothing, nothing, Event { data: Some(b"a"), ..nothing }, nothing, open]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_bye_has_its_code() {
        assert_eq!(bye_code(b"{\"code\":4503,\"reason\":\"\"}"), Some(4503));
        assert_eq!(bye_code(b"4503"), None);
    }
}
