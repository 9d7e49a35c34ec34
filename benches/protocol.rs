//! What the protocol core costs by itself: decoding, unmasking, validating, head and handshake, events.
//!
//! `cargo bench --bench protocol`; against a saved baseline: `-- --save-baseline before`, change, `-- --baseline before`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shardcast::proto::http::{HeadStorage, parse_head};
use shardcast::proto::position::{Epoch, Position};
use shardcast::proto::sse::encode_event;
use shardcast::proto::ws::frame::encode_masked_into;
use shardcast::proto::ws::{Decoder, DecoderLimits, MessageKind, OpCode, handshake, mask, utf8};

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 1 << 20, deflate: false };
const HEAD: &[u8] = b"GET /ws?room=lobby HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: https://example.org\r\n\r\n";

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode 16 masked frames");
    for bytes in [16, 128, 4096] {
        let mut input = Vec::new();
        for _ in 0..16 {
            encode_masked_into(&mut input, true, OpCode::Text, [1, 2, 3, 4], &vec![b'x'; bytes]);
        }
        group.throughput(Throughput::Elements(16));
        group.bench_function(format!("{bytes} B"), |b| {
            b.iter_batched_ref(
                || input.clone(),
                |input| {
                    let mut decoder = Decoder::new();
                    let mut at = 0;
                    while at < input.len() {
                        at += decoder.decode(&mut input[at..], &LIMITS).expect("valid frames").consumed;
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn bytes(c: &mut Criterion) {
    let mut group = c.benchmark_group("64 KiB");
    let mut data = vec![b'x'; 64 << 10];
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("unmask", |b| b.iter(|| mask::unmask(black_box(&mut data), [1, 2, 3, 4], 1)));
    let text = "grüße, мир ".repeat((64 << 10) / 16);
    group.bench_function("utf-8", |b| b.iter(|| utf8::validate(black_box(text.as_bytes()))));
    group.finish();
}

fn open(c: &mut Criterion) {
    c.bench_function("request head and handshake", |b| {
        b.iter(|| {
            let mut storage = HeadStorage::new();
            let head = parse_head(&mut storage, black_box(HEAD), 16 << 10).expect("a valid head").expect("a whole head");
            let upgrade = handshake::check(&head).expect("a valid upgrade");
            black_box(upgrade.accept)
        });
    });
}

fn event(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode an event of 128 B");
    group.throughput(Throughput::Elements(1));
    let id = Some(Position { epoch: Epoch(937_557), offset: 1042 });
    let mut out = Vec::with_capacity(1024);
    for (name, data, kind) in [
        ("one line", vec![b'x'; 128], MessageKind::Text),
        ("eight lines", b"fifteen bytes..\n".repeat(8), MessageKind::Text),
        ("binary", vec![0; 128], MessageKind::Binary),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                encode_event(&mut out, black_box(id), None, black_box(&data), kind)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, bytes, open, event);
criterion_main!(benches);
