// What the tests of compression send, and random numbers that depend on the seed alone.
export const seed = Number(process.env.SHARDCAST_TEST_SEED || Math.floor(Math.random() * 2 ** 32));
const SIZES = [1, 2, 125, 126, 127, 128, 129, 1023, 1024, 1025, 4096, 40_000, 65_535, 65_536];

// Numbers below `end` (mulberry32).
export function dice() {
  let state = seed >>> 0;
  return (end) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % end;
  };
}

// From 1 byte to `most`, each size as text that repeats itself, as bytes that do, and as bytes that cannot be compressed.
export function payloads(most = 65_536) {
  const random = dice();
  const row = () => `{"symbol":"ABC","price":${random(10_000)},"größe":${random(100)}}`;
  return SIZES.filter((size) => size <= most).flatMap((size) => {
    let text = "";
    while (text.length < size) text += row();
    // As many bytes in UTF-8: what is cut at a letter of two is filled up.
    const cut = Buffer.from(text).subarray(0, size).toString().replace("\ufffd", "?");
    return [cut, Buffer.alloc(size, "shardcast "), Buffer.from(Array.from({ length: size }, () => random(256)))];
  });
}
