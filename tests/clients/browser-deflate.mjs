// Compression with Chromium, which offers it always, for `browser.mjs`.
import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { isOn, listen } from "./browser-client.mjs";
import { metric, WAIT } from "./gateway.mjs";
import { Hostile } from "./hostile.mjs";
import { dice, payloads } from "./payloads.mjs";

// What the page hears, in letters: `t` and a text, or `b` and bytes in base64.
const written = (payload) => (typeof payload === "string" ? `t${payload}` : `b${Buffer.from(payload).toString("base64")}`);

// Of every size and in both directions; a client without compression is in the room too.
async function a_page_and_a_plain_client_hear_each_other_whatever_the_size({ context, gateway }) {
  const page = await context.newPage();
  await page.goto(`http://127.0.0.1:${gateway.port}/healthz`);
  const extensions = await page.evaluate(async () => {
    window.heard = [];
    window.socket = new WebSocket(`ws://${location.host}/ws?room=a`);
    window.socket.binaryType = "arraybuffer";
    window.socket.onmessage = ({ data }) =>
      window.heard.push(typeof data === "string" ? `t${data}` : `b${btoa(Array.from(new Uint8Array(data), (byte) => String.fromCharCode(byte)).join(""))}`);
    await new Promise((resolve) => (window.socket.onopen = resolve));
    return window.socket.extensions;
  });
  assert.match(extensions, /^permessage-deflate; .*server_no_context_takeover/);
  const plain = new WebSocket(`ws://127.0.0.1:${gateway.port}/ws?room=a`, { perMessageDeflate: false });
  try {
    const heard = [];
    plain.on("message", (data, isBinary) => heard.push(written(isBinary ? data : data.toString())));
    await new Promise((resolve, reject) => plain.on("open", resolve).on("error", reject));
    const sent = payloads();
    for (const payload of sent) plain.send(payload);
    await page.evaluate((sent) => {
      for (const one of sent) window.socket.send(one[0] === "t" ? one.slice(1) : Uint8Array.from(atob(one.slice(1)), (char) => char.charCodeAt()));
    }, sent.map(written));
    await page.waitForFunction((count) => window.heard.length >= count, 2 * sent.length, { timeout: WAIT });
    const all = await page.evaluate(() => window.heard);
    for (const end = Date.now() + WAIT; heard.length < all.length; await page.waitForTimeout(10)) assert.ok(Date.now() < end, `${heard.length} were heard`);
    assert.deepEqual(heard, all);
    assert.deepEqual([...all].sort(), [...sent, ...sent].map(written).sort());
    assert.equal(await metric(gateway, "shardcast_messages_inflated_total"), sent.length, "all of the page's");
    assert.ok((await metric(gateway, "shardcast_messages_deflated_total")) > 0);
  } finally {
    plain.terminate();
  }
}

// Through a proxy that cuts, so that some comes live and some out of the history.
async function the_browser_client_hears_each_message_once_through_compression({ context, gateway }) {
  const proxy = await new Hostile().start(gateway.port);
  const random = dice();
  const texts = payloads(60_000).filter((payload) => typeof payload === "string");
  try {
    const page = await listen(context, proxy.port, `http://127.0.0.1:${proxy.port}`, { topics: ["outside", "inside"], transports: ["ws"] });
    await isOn(page, "ws");
    const expected = [];
    const receipts = page.evaluate(async (texts) => {
      window.sent = texts.flatMap((text) => [`1 ${text}`, `2 ${text}`]);
      const all = [];
      for (const text of window.sent) {
        all.push(window.client.publish("inside", text, { timeout_ms: 60_000 }));
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      return (await Promise.all(all)).map(({ pos }) => pos);
    }, texts);
    for (let round = 0; round < 5; round += 1) {
      for (const text of texts) {
        expected.push(`${round} ${text}`);
        await fetch(`http://127.0.0.1:${gateway.port}/publish?topic=outside`, { method: "POST", body: expected.at(-1) });
        await new Promise((resolve) => setTimeout(resolve, random(20)));
      }
      if (round < 4) proxy.cut(random(2) === 0);
    }
    const places = await receipts;
    const heard = (topic) => page.evaluate((topic) => window.heard.filter((message) => message.topic === topic).map(({ pos, data }) => [pos, data]), topic);
    await page.waitForFunction((count) => window.heard.length >= count, expected.length + places.length, { timeout: 2 * WAIT });
    await page.waitForTimeout(200); // nothing comes twice: nothing more comes at all
    assert.deepEqual((await heard("outside")).map(([, data]) => data), expected);
    assert.deepEqual(await heard("inside"), (await page.evaluate(() => window.sent)).map((text, index) => [places[index], text]));
    assert.deepEqual(await page.evaluate(() => window.gaps), []);
    assert.ok((await page.evaluate(() => window.states.filter(({ state }) => state === "open").length)) > 1, "it was cut off");
    for (const counter of ["shardcast_messages_deflated_total", "shardcast_messages_inflated_total"]) assert.ok((await metric(gateway, counter)) > 0, counter);
  } finally {
    proxy.stop();
  }
}

export const cases = {
  a_page_and_a_plain_client_hear_each_other_whatever_the_size,
  the_browser_client_hears_each_message_once_through_compression,
};
export const more = ["--compression"];
export const limits = { reconnect_window_ms: 200, history_messages: 1000, queue_bytes_max: "64MiB" };
