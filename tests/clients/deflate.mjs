// Compression with the package `ws`, whatever it offers, against a real gateway. Run by `tests/run clients`; the last line is `N passed, N failed`.
// `node deflate.mjs [WORD...]` runs those whose name has one of the words.
import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { runCases } from "./cases.mjs";
import { metric, startGateway, stopGateway, WAIT } from "./gateway.mjs";
import { dice, payloads, seed } from "./payloads.mjs";

// Every message compressed, the smallest too.
const offers = {
  plain: false,
  usual: true,
  ...Object.fromEntries([9, 10, 11, 12, 13, 14, 15].map((bits) => [`window of ${bits}`, { serverMaxWindowBits: bits, clientMaxWindowBits: bits, threshold: 0 }])),
};
const OURS = 12; // bits of the window that the gateway compresses with

// A connection, what was agreed to, and what it hears.
class Socket {
  heard = [];

  constructor(port, path, offer, protocol) {
    this.ws = new WebSocket(`ws://127.0.0.1:${port}${path}`, protocol, { perMessageDeflate: offer });
    this.ws.on("upgrade", ({ headers }) => (this.agreed = headers["sec-websocket-extensions"]));
    this.ws.on("message", (data, isBinary) => this.heard.push(isBinary ? data : data.toString()));
    this.ws.on("close", (code, reason) => (this.end = `${code} ${reason}`));
    this.opened = new Promise((resolve, reject) => this.ws.on("open", () => resolve(this)).on("error", reject));
  }

  async has(count) {
    for (const end = Date.now() + WAIT; this.heard.length < count; ) {
      assert.ok(Date.now() < end && !this.end, `${this.heard.length} of ${count} were heard${this.end ? `; it was closed: ${this.end}` : ""}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return this.heard;
  }
}

const within = (run) => async () => {
  const gateway = await startGateway({ more: ["--compression"], limits: { queue_bytes_max: "64MiB", history_messages: 1000 } });
  const sockets = [];
  const open = (...about) => {
    sockets.push(new Socket(gateway.port, ...about));
    return sockets.at(-1).opened;
  };
  try {
    await run({ gateway, open });
  } catch (error) {
    console.log(gateway.log.slice(-2000));
    throw error;
  } finally {
    for (const { ws } of sockets) ws.terminate();
    await stopGateway(gateway);
  }
};

const cases = {
  every_offer_sends_and_hears_every_size_and_all_hear_the_same: within(async ({ gateway, open }) => {
    const members = await Promise.all(Object.values(offers).map((offer) => open("/ws?room=a", offer)));
    for (const [name, { agreed }] of Object.keys(offers).map((name, index) => [name, members[index]])) {
      assert.equal(agreed?.includes("permessage-deflate") ?? false, name !== "plain", name);
      if (agreed) assert.match(agreed, /server_no_context_takeover/, name);
      const bits = /window of (9|1[0-4])$/.exec(name)?.[1];
      if (bits) assert.match(agreed, new RegExp(`server_max_window_bits=${bits}(?!\\d)`), name);
    }
    const sent = members.flatMap(({ ws }) => payloads().map((payload) => (ws.send(payload), payload)));
    const all = await Promise.all(members.map((member) => member.has(sent.length)));
    for (const [index, heard] of all.entries()) assert.deepEqual(heard, all[0], Object.keys(offers)[index]);
    const sorted = (list) => list.map((one) => (typeof one === "string" ? `text ${one}` : `bytes ${one.toString("latin1")}`)).sort();
    assert.deepEqual(sorted(all[0]), sorted(sent));
    const each = payloads();
    // `usual` leaves what is under 1 KiB as it is.
    const small = each.filter((payload) => Buffer.byteLength(payload) < 1024).length;
    assert.equal(await metric(gateway, "shardcast_messages_inflated_total"), each.length * 8 - small);
    const worth = each.filter((payload) => Buffer.byteLength(payload) >= 128).length;
    assert.ok((await metric(gateway, "shardcast_messages_deflated_total")) >= (worth / 3) * members.length, "those that repeat themselves, from each");
    assert.ok((await metric(gateway, "shardcast_deflated_saved_bytes_total")) > 0);
  }),

  who_wants_a_smaller_window_than_ours_hears_everything_plain: within(async ({ gateway, open }) => {
    for (const [name, offer] of Object.entries(offers)) {
      const before = await metric(gateway, "shardcast_messages_deflated_total");
      const [one, two] = [await open(`/ws?room=${name}&echo=0`, false), await open(`/ws?room=${name}`, offer)];
      one.ws.send("x".repeat(10_000));
      assert.deepEqual(await two.has(1), ["x".repeat(10_000)], name);
      const bits = typeof offer === "object" ? offer.serverMaxWindowBits : offer ? 15 : 0;
      assert.equal((await metric(gateway, "shardcast_messages_deflated_total")) - before, bits >= OURS ? 1 : 0, name);
    }
  }),

  fragments_of_a_compressed_message_are_one_message: within(async ({ gateway, open }) => {
    const plain = await open("/ws?room=a", false);
    const random = dice();
    let count = 0;
    for (const [name, offer] of Object.entries(offers)) {
      const { ws } = await open("/ws?room=a&echo=0", offer);
      for (const payload of payloads(5000)) {
        const bytes = Buffer.from(payload);
        const options = { binary: typeof payload !== "string", compress: true };
        for (let from = 0; from < bytes.length; ) {
          const to = Math.min(bytes.length, from + 1 + random(random(4) ? 5 : 500));
          ws.send(bytes.subarray(from, to), { ...options, fin: to === bytes.length });
          from = to;
        }
        assert.deepEqual((await plain.has((count += 1))).at(-1), payload, `${name}, ${bytes.length} bytes`);
      }
    }
    // `usual` decides by the first fragment, which is small.
    assert.equal(await metric(gateway, "shardcast_messages_inflated_total"), payloads(5000).length * 7);
  }),

  // With a message a frame, and with frames of many lines.
  in_json_what_is_published_compressed_is_heard_once_by_all_and_so_is_a_history: within(async ({ gateway, open }) => {
    const texts = payloads(60_000).filter((payload) => typeof payload === "string");
    const talk = async (topic, offer, batch, after) => {
      const talker = await open("/ws", offer, "shardcast.v1.json");
      for (const said of [{ type: "hello", batch }, { type: "subscribe", topic, after }]) talker.ws.send(JSON.stringify(said));
      return talker;
    };
    const told = async (talker, type, count) => {
      for (let frames = 0; ; frames = talker.heard.length) {
        const lines = talker.heard.flatMap((text) => text.trim().split("\n"));
        const all = lines.map((line) => JSON.parse(line)).filter((said) => said.type === type);
        if (all.length >= count) return all;
        await talker.has(frames + 1);
      }
    };
    for (const batch of [false, true]) {
      const topic = `batch ${batch}`;
      const talkers = await Promise.all(Object.values(offers).map((offer) => talk(topic, offer, batch)));
      for (const talker of talkers) await told(talker, "subscribed", 1);
      const counters = () => Promise.all(["deflated", "inflated"].map((what) => metric(gateway, `shardcast_messages_${what}_total`)));
      const before = await counters();
      const expected = Object.keys(offers).flatMap((name) => texts.map((text) => `${name} ${text}`));
      for (const [index, { ws }] of talkers.entries()) {
        for (const data of expected.slice(index * texts.length, (index + 1) * texts.length)) ws.send(JSON.stringify({ type: "publish", topic, data }));
      }
      const all = await Promise.all(talkers.map((talker) => told(talker, "message", expected.length)));
      for (const [index, heard] of all.entries()) assert.deepEqual(heard, all[0], Object.keys(offers)[index]);
      assert.equal(new Set(all[0].map(({ pos }) => pos)).size, expected.length, "each has its place");
      assert.deepEqual(all[0].map(({ data }) => data).sort(), expected.sort());
      assert.ok((await counters()).every((count, index) => count > before[index]), topic);
      for (const offer of [true, false]) {
        const late = await talk(topic, offer, batch, "earliest");
        assert.deepEqual(await told(late, "message", expected.length), all[0]);
      }
    }
  }),
};

console.log(`seed ${seed}: run again with SHARDCAST_TEST_SEED=${seed}`);
await runCases(cases);
