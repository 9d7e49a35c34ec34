//! Random conversations, cut at random: the codec against itself, and against tungstenite.

use super::close::{CloseCode, encode_close_payload};
use super::decoder::tests::{Got, feed_over, feed_pieces};
use super::frame::{OpCode, encode_into, encode_masked_into};

/// xorshift64*: deterministic, and small enough to have here.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn mask(&mut self) -> [u8; 4] {
        (self.next() as u32).to_be_bytes()
    }

    fn length(&mut self, max: usize) -> usize {
        let most = [2, 10, 125, 127, 1000, 70_000][self.below(6)].min(max);
        self.below(most + 1)
    }

    fn text(&mut self, len: usize) -> String {
        let characters = ['a', 'é', '部', '🦀'];
        let mut text = String::new();
        while text.len() < len {
            text.push(characters[self.below(4)]);
        }
        text
    }

    fn control(&mut self, out: &mut Vec<u8>) -> Got {
        let payload: Vec<u8> = (0..self.below(126)).map(|_| self.next() as u8).collect();
        let (opcode, got) = match self.below(2) {
            0 => (OpCode::Ping, Got::Ping(payload.clone())),
            _ => (OpCode::Pong, Got::Pong(payload.clone())),
        };
        let mask = self.mask();
        encode_masked_into(out, true, opcode, mask, &payload);
        got
    }

    /// A message in one or several frames, with control frames between them: its bytes, and what must come out.
    fn message(&mut self, out: &mut Vec<u8>, expect: &mut Vec<Got>) {
        let (kind, payload, got) = if self.below(2) == 0 {
            let len = self.length(65_000);
            let text = self.text(len);
            (OpCode::Text, text.clone().into_bytes(), Got::Text(text))
        } else {
            let payload: Vec<u8> = (0..self.length(65_536)).map(|_| self.next() as u8).collect();
            (OpCode::Binary, payload.clone(), Got::Binary(payload))
        };
        let (mut opcode, mut rest) = (kind, &payload[..]);
        while self.below(3) == 0 {
            let (fragment, next) = rest.split_at(self.below(rest.len() + 1));
            let mask = self.mask();
            encode_masked_into(out, false, opcode, mask, fragment);
            (opcode, rest) = (OpCode::Continuation, next);
            if self.below(2) == 0 {
                expect.push(self.control(out));
            }
        }
        let mask = self.mask();
        encode_masked_into(out, true, opcode, mask, rest);
        expect.push(got);
    }

    fn conversation(&mut self) -> (Vec<u8>, Vec<Got>) {
        let (mut bytes, mut expect) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.below(8) {
            match self.below(4) {
                0 => expect.push(self.control(&mut bytes)),
                _ => self.message(&mut bytes, &mut expect),
            }
        }
        (bytes, expect)
    }

    fn pieces<'b>(&mut self, mut bytes: &'b [u8]) -> Vec<&'b [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at((1 + self.length(5000)).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}

#[test]
fn cuts_make_no_difference_to_valid_frames() {
    for seed in 1..=600u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let (bytes, expect) = random.conversation();
        let pieces = random.pieces(&bytes);
        let cut = random.below(bytes.len() + 1);
        let ways = [
            ("uncut", feed_pieces([&bytes[..]])),
            ("cut", feed_pieces(pieces.iter().copied())),
            ("by two decoders", feed_over(&bytes, cut)),
        ];
        for (how, (got, decoder)) in ways {
            let decoder = decoder.unwrap_or_else(|error| panic!("seed {seed} {how}: {error}"));
            assert!(got == expect, "seed {seed} {how}: other incomings than were sent");
            assert!(decoder.is_idle(), "seed {seed} {how}: holds {} bytes at the end", decoder.held_bytes());
        }
    }
}

#[test]
fn any_bytes_end_the_same_way_however_they_are_cut() {
    for seed in 1..=3000u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut bytes = random.conversation().0;
        bytes.truncate(2000);
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        let pieces = random.pieces(&bytes);
        let (whole, cut) = (feed_pieces([&bytes[..]]), feed_pieces(pieces));
        assert_eq!(whole.0, cut.0, "seed {seed}");
        assert_eq!(whole.1.as_ref().err(), cut.1.as_ref().err(), "seed {seed}");
        if let (Ok(whole), Ok(cut)) = (whole.1, cut.1) {
            assert_eq!(whole.is_idle(), cut.is_idle(), "seed {seed}");
        }
    }
}

/// A stream whose two directions are in memory.
#[derive(Default)]
struct Wire {
    incoming: std::io::Cursor<Vec<u8>>,
    outgoing: Vec<u8>,
}

impl std::io::Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.incoming.read(buffer)
    }
}

impl std::io::Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn foreign_client(incoming: Vec<u8>) -> tungstenite::WebSocket<Wire> {
    let wire = Wire { incoming: std::io::Cursor::new(incoming), outgoing: Vec::new() };
    tungstenite::WebSocket::from_raw_socket(wire, tungstenite::protocol::Role::Client, None)
}

#[test]
fn what_tungstenite_sends_is_understood() {
    for seed in 1..=50u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut client = foreign_client(Vec::new());
        let mut expect = Vec::new();
        for _ in 0..5 {
            let len = random.length(60_000);
            let letters = random.text(len);
            client.send(tungstenite::Message::text(letters.clone())).expect("the wire takes everything");
            client.send(tungstenite::Message::binary(letters.clone())).expect("the wire takes everything");
            client.send(tungstenite::Message::Ping(vec![1, 2, 3].into())).expect("the wire takes everything");
            expect.extend([Got::Text(letters.clone()), Got::Binary(letters.into()), Got::Ping(vec![1, 2, 3])]);
        }
        client.close(None).expect("the wire takes everything");
        expect.push(Got::Close(None));
        let bytes = client.get_ref().outgoing.clone();
        let (got, decoder) = feed_pieces(random.pieces(&bytes));
        assert!(decoder.is_ok_and(|decoder| decoder.is_idle()), "seed {seed}");
        assert!(got == expect, "seed {seed}");
    }
}

#[test]
fn what_we_send_is_understood_by_tungstenite() {
    let mut bytes = Vec::new();
    let lengths = [0, 1, 125, 126, 65_535, 65_536, 100_000];
    for len in lengths {
        encode_into(&mut bytes, OpCode::Text, "x".repeat(len).as_bytes());
        encode_into(&mut bytes, OpCode::Binary, &vec![0xfe; len]);
    }
    encode_into(&mut bytes, OpCode::Ping, b"p");
    encode_into(&mut bytes, OpCode::Close, &encode_close_payload(CloseCode::SLOW_CONSUMER, "retry=8200"));
    let mut client = foreign_client(bytes);
    for len in lengths {
        assert_eq!(client.read().expect("a text"), tungstenite::Message::text("x".repeat(len)));
        assert_eq!(client.read().expect("a binary"), tungstenite::Message::binary(vec![0xfe; len]));
    }
    assert_eq!(client.read().expect("a ping"), tungstenite::Message::Ping(b"p".to_vec().into()));
    let tungstenite::Message::Close(Some(close)) = client.read().expect("a close") else { panic!("a close frame") };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (4508, "retry=8200"));
}
