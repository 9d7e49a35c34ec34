//! Any text as a position, a cursor and a start: what is accepted prints as it was, and is what a reader without mercy takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::position::{AGO_MS_MAX, Cursor, Position, Start, StartWords, Starts, TOPICS_MAX};

fuzz_target!(|data: &[u8]| {
    let Some((&topics, text)) = data.split_first() else { return };
    let (Ok(text), topics) = (str::from_utf8(text), usize::from(topics)) else { return };
    if let Ok(position) = Position::parse(text) {
        assert_eq!(position.to_string(), text);
        assert!(text.len() <= Position::BYTES_MAX);
        assert_eq!(Cursor::parse(text, 1), Ok(Cursor::from(position)));
    }
    let cursor = Cursor::parse(text, topics);
    if let Ok(cursor) = &cursor {
        let mut out = Vec::new();
        cursor.write(&mut out);
        assert_eq!((out.as_slice(), cursor.to_string().as_str()), (text.as_bytes(), text));
        assert!(cursor.offsets().len() == topics && (1..=TOPICS_MAX).contains(&topics));
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b',')));
    }
    let words = StartWords { after: Some(text), ..StartWords::default() };
    match Starts::parse(&words, topics) {
        Ok(Some(Starts::Resume(resumed))) => assert_eq!(Ok(resumed), cursor),
        Ok(Some(Starts::Alike(Start::Ago { ms }))) => assert!(text.starts_with('-') && ms <= AGO_MS_MAX && ms % 1000 == 0),
        Ok(Some(Starts::Alike(start))) => assert_eq!(start, if text == "latest" { Start::Latest } else { Start::Earliest }),
        Ok(None) => unreachable!("it said something"),
        Err(error) => assert!(cursor.is_err() && !error.to_string().is_empty()),
    }
    let last = Starts::parse(&StartWords { last: Some(text), ..StartWords::default() }, topics);
    assert_eq!(last.is_ok(), text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_ok());
});
