//! Any messages as an event stream: the client's side hears what was said, and no payload or name forges anything. And any bytes as a stream:
//! the same events however they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::position::{Epoch, Position};
use shardcast::proto::sse::{Decoder, EventName, HEARTBEAT, encode_event, encode_retry};
use shardcast::proto::ws::MessageKind;

type Heard = (String, String, String);

fuzz_target!(|data: &[u8]| {
    let Some((&cut, stream)) = data.split_first() else { return };
    let whole = decode(&[stream]);
    let (front, back) = stream.split_at(usize::from(cut).min(stream.len()));
    assert_eq!(decode(&[front, back]), whole);
    assert_eq!(decode(&stream.chunks(1).collect::<Vec<_>>()), whole);

    // The same bytes as messages: a name and a payload each, parted by 0xff; without the name's bytes that no name has, and as text when it is.
    let (mut out, mut said) = (Vec::new(), Vec::new());
    encode_retry(&mut out, u64::from(cut));
    for (offset, message) in stream.split(|&byte| byte == 0xff).enumerate() {
        let (name, payload) = message.split_at(message.len().min(usize::from(cut & 15)));
        let name = str::from_utf8(name).ok().and_then(|name| EventName::parse(name).ok());
        let id = Position { epoch: Epoch(u64::from(cut)), offset: offset as u64 };
        let text = str::from_utf8(payload).ok();
        let kind = if text.is_some() { MessageKind::Text } else { MessageKind::Binary };
        let start = out.len();
        let id_len = encode_event(&mut out, Some(id), name.as_ref(), payload, kind);
        assert_eq!(out[start..start + id_len], *format!("id: {id}\n").as_bytes());
        out.extend_from_slice(HEARTBEAT);
        let name = name.as_ref().map_or("message", EventName::as_str).to_owned();
        said.push((id.to_string(), name, text.map(|text| text.replace("\r\n", "\n").replace('\r', "\n")), payload));
    }
    let (heard, retry_ms) = decode(&[&out]);
    assert_eq!((heard.len(), retry_ms), (said.len(), Some(u64::from(cut))));
    for ((id, name, data), (expect_id, expect_name, text, payload)) in heard.into_iter().zip(said) {
        assert_eq!((id, name), (expect_id, expect_name));
        match text {
            Some(text) => assert_eq!(data, text),
            None => assert_eq!(data.len(), payload.len().div_ceil(3) * 4, "base64 in one line"),
        }
    }
});

fn decode(pieces: &[&[u8]]) -> (Vec<Heard>, Option<u64>) {
    let (mut decoder, mut heard) = (Decoder::new(), Vec::new());
    for piece in pieces {
        decoder.feed(piece, |event| heard.push((event.id.to_owned(), event.name.to_owned(), event.data.to_owned())));
    }
    (heard, decoder.retry_ms())
}
