// Chromium's own EventSource and fetch, for `browser.mjs`.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { Cut } from "./cut.mjs";
import { killGateway, startGateway, stopGateway, WAIT } from "./gateway.mjs";
import { dice } from "./payloads.mjs";

// Bounds of the gateway that the cases are given.
export const limits = { reconnect_window_ms: 200, history_messages: 1000 };
const ROUNDS = 12;

async function publish(port, topic, body, query = "") {
  const answer = await fetch(`http://127.0.0.1:${port}/publish?topic=${topic}${query}`, { method: "POST", body });
  assert.equal(answer.status, 200, await answer.clone().text());
  return (await answer.json()).pos;
}

// A tab of a page on `pagePort`, which listens to a stream. What it hears is in `window.heard`.
async function listen(context, pagePort, url, names = []) {
  const page = await context.newPage();
  await page.goto(`http://127.0.0.1:${pagePort}/`);
  await page.evaluate(([url, names]) => {
    window.heard = [];
    window.errors = 0;
    window.source = new EventSource(url);
    window.source.onerror = () => (window.errors += 1);
    for (const name of ["message", "shardcast:open", "shardcast:gap", "shardcast:bye", ...names]) {
      window.source.addEventListener(name, (event) => window.heard.push({ name: event.type, data: event.data, id: event.lastEventId }));
    }
  }, [url, names]);
  return page;
}

const heard = (page) => page.evaluate(() => window.heard);
const messages = async (page) => (await heard(page)).filter((event) => !event.name.startsWith("shardcast:"));
const hearsNow = (page, test, about) => page.waitForFunction(test, about, { timeout: WAIT });
const hearsCount = (page, count) =>
  hearsNow(page, (count) => window.heard.filter((event) => !event.name.startsWith("shardcast:")).length >= count, count).catch(async (error) => {
    throw new Error(`${(await messages(page)).length} of ${count} messages were heard: ${error.message}`);
  });
const hearsEvent = (page, name, count = 1) =>
  hearsNow(page, ([name, count]) => window.heard.filter((event) => event.name === name).length >= count, [name, count]);

// A page of another origin: it has nothing but a body.
async function otherPage() {
  const server = createServer((_, response) => response.setHeader("Content-Type", "text/html").end("<!doctype html><title>other</title>"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { port: server.address().port, origin: `http://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}

// Cut inside an event or anywhere in a burst, by a reset or a plain end; more is published while the page is away, and while it catches up.
async function an_event_source_comes_back_through_cuts_and_has_everything_once({ context, gateway }) {
  const random = dice();
  const cut = await new Cut().start(gateway.port);
  try {
    const page = await listen(context, cut.port, "/events?topic=a&topic=b", ["price"]);
    await hearsEvent(page, "shardcast:open");
    const at = { a: 0, b: 0 };
    const expected = { a: [], b: [] };
    let number = 0;
    const say = async (size) => {
      const topic = random(2) ? "a" : "b";
      const name = random(4) ? "message" : "price";
      const letters = ["x", "\n", "é", "本", "🦀"];
      const text = `${topic} ${number++}\n${Array.from({ length: size }, () => letters[random(5)]).join("")}`;
      const position = await publish(gateway.port, topic, text, name === "message" ? "" : `&event=${name}`);
      at[topic] += 1;
      assert.ok(position.endsWith(`.${at[topic]}`), `${position}, the publication of ${topic} number ${at[topic]}`);
      expected[topic].push({ name, data: text });
    };
    for (let round = 0; round < ROUNDS; round += 1) {
      const isInside = round % 2 === 0;
      if (isInside || random(2)) await hearsCount(page, number);
      const sizes = isInside ? [200 + random(8000)] : Array.from({ length: 5 + random(15) }, () => random(300));
      // Every character is at least one byte, so the cut is before the last byte of what is said now.
      const happened = cut.after(1 + random(sizes.reduce((sum, size) => sum + size, 0)), random(10) < 6);
      for (const size of sizes) await say(size);
      await happened;
      for (let away = random(8); away > 0; away -= 1) await say(random(100));
      cut.mend();
    }
    await hearsCount(page, number);
    await page.waitForTimeout(200); // nothing comes twice: nothing more comes at all
    const all = await messages(page);
    const epoch = all[0].id.split(".")[0];
    const was = { a: 0, b: 0 };
    for (const { name, data, id } of all) {
      const topic = data[0];
      assert.deepEqual({ name, data }, expected[topic][was[topic]], `${topic} number ${was[topic]}`);
      was[topic] += 1;
      assert.equal(id, `${epoch}.${was.a},${was.b}`);
    }
    assert.deepEqual(was, at);
    assert.equal(await page.evaluate(() => window.heard.filter((event) => event.name === "shardcast:gap").length), 0);
    assert.equal(cut.cuts, ROUNDS);
    const [first, ...again] = cut.streams;
    assert.ok(first === undefined && again.length >= ROUNDS && again.every((id) => id?.startsWith(`${epoch}.`)), JSON.stringify(cut.streams));
    assert.ok((await page.evaluate(() => window.errors)) >= ROUNDS);
  } finally {
    cut.stop();
  }
}

async function odd_bytes_arrive_as_they_are({ context, gateway }) {
  const page = await listen(context, gateway.port, "/events?topic=a", ["größe"]);
  await hearsEvent(page, "shardcast:open");
  const texts = ["", " space", "two\nlines", "\n", "cr\rlf\nboth\r\nend\r\n", "a\n\nevent: shardcast:bye\ndata: {}\n\n", "nul \0 \u000b \u0085 \u2028", "\ufeffmark", "日本語 🦀"];
  for (const text of texts) await publish(gateway.port, "a", text, `&event=${encodeURIComponent("größe")}`);
  const bytes = Uint8Array.from({ length: 256 }, (_, byte) => byte);
  await fetch(`http://127.0.0.1:${gateway.port}/publish?topic=a`, { method: "POST", body: bytes, headers: { "Content-Type": "application/octet-stream" } });
  await hearsCount(page, texts.length + 1);
  const named = texts.map((text) => ["größe", text.replace(/\r\n?/g, "\n")]);
  assert.deepEqual((await messages(page)).map(({ name, data }) => [name, data]), [...named, ["message", Buffer.from(bytes).toString("base64")]]);
}

async function a_killed_gateway_is_one_gap_and_then_live({ context, gateway }) {
  const page = await listen(context, gateway.port, "/events?topic=a");
  await hearsEvent(page, "shardcast:open");
  const old = await publish(gateway.port, "a", "old");
  await hearsCount(page, 1);
  await killGateway(gateway);
  const next = await startGateway({ listen: gateway.port, limits });
  try {
    await hearsEvent(page, "shardcast:gap");
    const position = await publish(next.port, "a", "new");
    await hearsCount(page, 2);
    const gaps = (await heard(page)).filter((event) => event.name === "shardcast:gap").map((event) => JSON.parse(event.data));
    assert.deepEqual(gaps.map(({ topic, from, reason }) => ({ topic, from, reason })), [{ topic: "a", from: old, reason: "restart" }]);
    assert.deepEqual((await messages(page)).map(({ data, id }) => [data, id]), [["old", old], ["new", position]]);
    // Told to stop, it says so first.
    assert.equal(await stopGateway(next), 0);
    await hearsEvent(page, "shardcast:bye");
    const bye = JSON.parse((await heard(page)).find((event) => event.name === "shardcast:bye").data);
    assert.ok(bye.code === 1012 && bye.retry_ms <= limits.reconnect_window_ms, JSON.stringify(bye));
  } finally {
    await stopGateway(next);
  }
}

// It would give up for good on a status like 503: it is answered 200, `bye` and the end, and comes back until there is a place. A page of another
// origin, so that the page itself takes none.
async function an_event_source_gets_in_when_a_place_is_free({ context }) {
  const other = await otherPage();
  const gateway = await startGateway({ limits: { ...limits, connections_max: 2 }, origins: [other.origin] });
  const url = `http://127.0.0.1:${gateway.port}/events?topic=a`;
  const holders = [new AbortController(), new AbortController()];
  try {
    for (const { signal } of holders) await (await fetch(url, { signal })).body.getReader().read();
    const page = await listen(context, other.port, url);
    await hearsEvent(page, "shardcast:bye", 3);
    const byes = (await heard(page)).filter((event) => event.name === "shardcast:bye");
    for (const bye of byes) assert.equal(JSON.parse(bye.data).code, 4503);
    assert.ok(!(await heard(page)).some((event) => event.name === "shardcast:open"));
    holders.forEach((holder) => holder.abort());
    await hearsEvent(page, "shardcast:open");
    const position = await publish(gateway.port, "a", "welcome");
    await hearsCount(page, 1);
    assert.deepEqual(await messages(page), [{ name: "message", data: "welcome", id: position }]);
  } finally {
    holders.forEach((holder) => holder.abort());
    other.stop();
    await stopGateway(gateway);
  }
}

// A page that is listed in `origins` listens, publishes and reads the receipt; another one does none of that, with a preflight or without.
async function pages_of_other_origins_may_what_origins_says({ context }) {
  const [listed, stranger] = [await otherPage(), await otherPage()];
  const gateway = await startGateway({ limits, origins: [listed.origin] });
  const cut = await new Cut().start(gateway.port);
  const base = `http://127.0.0.1:${cut.port}`;
  // The answer as the page may read it, or the name of the error.
  const post = (page, body, key) =>
    page.evaluate(async ([url, body, key]) => {
      try {
        const answer = await fetch(url, { method: "POST", body, headers: key ? { "Idempotency-Key": key } : {} });
        return { status: answer.status, said: await answer.json() };
      } catch (error) {
        return error.name;
      }
    }, [`${base}/publish?topic=a`, body, key]);
  try {
    const page = await listen(context, listed.port, `${base}/events?topic=a`);
    await hearsEvent(page, "shardcast:open");
    const once = await post(page, "once", "key-1");
    assert.equal(once.status, 200, JSON.stringify(once));
    assert.ok(cut.requests.includes("OPTIONS /publish?topic=a"), "the browser asks first");
    const again = await post(page, "once", "key-1");
    assert.deepEqual([again.status, again.said.pos, again.said.duplicate], [200, once.said.pos, true], JSON.stringify(again));
    const simple = await post(page, "simple");
    assert.equal(simple.status, 200, JSON.stringify(simple));
    await hearsCount(page, 2);
    assert.deepEqual((await messages(page)).map(({ data, id }) => [data, id]), [["once", once.said.pos], ["simple", simple.said.pos]]);
    const polled = await page.evaluate(async (url) => (await fetch(url)).json(), `${base}/poll?topic=a&after=${once.said.pos}`);
    assert.deepEqual(polled.messages, [{ topic: "a", pos: simple.said.pos, data: "simple" }]);

    const refused = await listen(context, stranger.port, `${base}/events?topic=a`);
    await refused.waitForFunction(() => window.source.readyState === EventSource.CLOSED, undefined, { timeout: WAIT });
    assert.deepEqual(await heard(refused), []);
    assert.equal(await post(refused, "refused", "key-2"), "TypeError");
    assert.equal(await post(refused, "refused"), "TypeError");
    const history = await (await fetch(`${base}/v1/history?topic=a`)).json();
    assert.deepEqual(history.messages.map(({ data }) => data), ["once", "simple"]);
  } finally {
    cut.stop();
    listed.stop();
    stranger.stop();
    await stopGateway(gateway);
  }
}

export const cases = {
  an_event_source_comes_back_through_cuts_and_has_everything_once,
  odd_bytes_arrive_as_they_are,
  a_killed_gateway_is_one_gap_and_then_live,
  an_event_source_gets_in_when_a_place_is_free,
  pages_of_other_origins_may_what_origins_says,
};
