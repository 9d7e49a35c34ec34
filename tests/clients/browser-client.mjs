// The browser client and the page `/` in Chromium, for `browser.mjs`. SHARDCAST_SOAK_SECONDS is how long the hostile proxy is at work (20).
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { root, startGateway, stopGateway, WAIT } from "./gateway.mjs";
import { Hostile } from "./hostile.mjs";
import { dice } from "./payloads.mjs";

const SECONDS = Number(process.env.SHARDCAST_SOAK_SECONDS || 20);
const CLIENT_BYTES_MAX = 5 * 1024;

// A tab that has nothing but the client, of the module at `from`. What it hears is in `window.heard`.
export async function listen(context, pagePort, from, options) {
  const page = await context.newPage();
  await page.goto(`http://127.0.0.1:${pagePort}/healthz`);
  await page.evaluate(async ([from, options]) => {
    const { connect } = await import(`${from}/shardcast.js`);
    Object.assign(window, { heard: [], gaps: [], states: [], receipts: [], presence: [] });
    window.client = connect(`${from}/`, {
      ...options,
      onMessage: (message) => window.heard.push(message),
      onGap: (gap) => window.gaps.push(gap),
      onState: (state) => window.states.push(state),
      onPresence: (event) => window.presence.push(event),
    });
  }, [from, options]);
  return page;
}

export const isOn = (page, transport, timeout = WAIT) =>
  page.waitForFunction((wanted) => window.client.state === "open" && window.client.transport === wanted, transport, { timeout }).catch(async (error) => {
    throw new Error(`not on ${transport}: ${JSON.stringify(await page.evaluate(() => window.states.slice(-8)))}: ${error.message}`);
  });
const data = (page, topic) => page.evaluate((topic) => window.heard.filter((message) => message.topic === topic).map(({ data }) => data), topic);
const publish = (port, topic, body) => fetch(`http://127.0.0.1:${port}/publish?topic=${topic}`, { method: "POST", body });

// Upgrades are refused or swallowed, streams held back or refused, connections cut at random: all three transports in turn. From outside and from
// the page itself messages come all the time, and each arrives once and in order.
async function everything_arrives_once_and_in_order_through_a_hostile_proxy({ context, gateway }) {
  const random = dice();
  const proxy = await new Hostile().start(gateway.port);
  const expected = { outside: [], inside: [] };
  let isOver = false;
  try {
    const page = await listen(context, proxy.port, `http://127.0.0.1:${proxy.port}`, { topics: ["outside", "inside"], climb_ms: 500 });
    await isOn(page, "ws");
    const outside = (async () => {
      for (let number = 0; !isOver; number += 1) {
        expected.outside.push(`o ${number}\n${"x".repeat(random(300))}`);
        await publish(gateway.port, "outside", expected.outside.at(-1));
        await new Promise((resolve) => setTimeout(resolve, random(40)));
      }
    })();
    await page.evaluate(() => {
      window.sent = [];
      window.talk = setInterval(() => {
        window.sent.push(`i ${window.sent.length}`);
        window.receipts.push(window.client.publish("inside", window.sent.at(-1), { timeout_ms: 120_000 }));
      }, 100);
    });
    const moods = {
      ws: () => ({ ws: "pass", sse: "pass" }),
      sse: () => ({ ws: ["refuse", "swallow"][random(2)], sse: "pass" }),
      poll: () => ({ ws: "refuse", sse: ["buffer", "refuse"][random(2)] }),
    };
    const order = ["sse", "poll", "ws"];
    const seen = new Set();
    const took = [];
    const end = Date.now() + SECONDS * 1000;
    for (let round = 0; round < 3 || Date.now() < end; round += 1) {
      const transport = order[round % 3];
      const before = await page.evaluate(() => window.client.transport);
      Object.assign(proxy, moods[transport]());
      // Somewhere in whatever is under way. Who is cut off again within 10 s waits longer each time; over minutes there are calmer times too.
      await new Promise((resolve) => setTimeout(resolve, random(SECONDS < 60 ? 1500 : 15_000)));
      const [number, began] = [expected.outside.length, Date.now()];
      proxy.cut(random(2) === 0);
      await page.waitForFunction((number) => window.heard.some(({ data }) => data.startsWith(`o ${number}\n`)), number, { timeout: 90_000 });
      took.push(Date.now() - began);
      const after = await page.evaluate(() => window.client.transport);
      console.log(`     cut on ${before}, again on ${after}: ${took.at(-1)} ms`);
      await isOn(page, transport, 90_000);
      seen.add(transport);
    }
    isOver = true;
    await outside;
    expected.inside = await page.evaluate(() => {
      clearInterval(window.talk);
      return window.sent;
    });
    const receipts = await page.evaluate(async () => (await Promise.all(window.receipts)).map(({ pos }) => pos));
    await page.waitForFunction((count) => window.heard.length >= count, expected.outside.length + expected.inside.length, { timeout: 60_000 });
    await page.waitForTimeout(200); // nothing comes twice: nothing more comes at all
    assert.deepEqual(await data(page, "outside"), expected.outside);
    assert.deepEqual(await data(page, "inside"), expected.inside);
    assert.deepEqual(await page.evaluate(() => window.heard.filter(({ topic }) => topic === "inside").map(({ pos }) => pos)), receipts);
    assert.deepEqual(await page.evaluate(() => window.gaps), []);
    assert.equal(seen.size, 3);
    took.sort((a, b) => a - b);
    const count = expected.outside.length + expected.inside.length;
    console.log(`     ${count} messages, each once and in order, ${took.length} cuts; to recover: median ${took[took.length >> 1]} ms, longest ${took.at(-1)} ms`);
  } finally {
    isOver = true;
    proxy.stop();
  }
}

// By socket, by stream and by polls, as the proxy lets it; who comes and goes is told by socket.
async function a_page_knows_who_is_there_whatever_gets_through({ context, gateway }) {
  const proxy = await new Hostile().start(gateway.port);
  const people = new AbortController();
  const come = (user) => fetch(`http://127.0.0.1:${gateway.port}/events?topic=rooms.1&user=${user}`, { signal: people.signal });
  try {
    await come("Ada");
    const page = await listen(context, proxy.port, `http://127.0.0.1:${proxy.port}`, { topics: ["rooms.1"], presence: true, user: "Bob & co", climb_ms: 600_000 });
    const knows = (users) =>
      page.waitForFunction((users) => {
        const known = new Map();
        for (const { type, members } of window.presence) {
          if (type === "presence") known.clear();
          for (const { conn, user } of members) type === "leave" ? known.delete(conn) : known.set(conn, user);
        }
        return [...known.values()].sort().join() === users;
      }, users, { timeout: 2 * WAIT });
    await knows("Ada,Bob & co");
    await come("Cleo");
    await knows("Ada,Bob & co,Cleo");
    assert.ok(await page.evaluate(() => window.presence.some(({ type }) => type === "join")));
    for (const [transport, mood, users] of [["sse", { ws: "refuse" }, "Ada,Bob & co,Cleo"], ["poll", { ws: "refuse", sse: "refuse" }, "Ada,Cleo"]]) {
      await page.evaluate(() => (window.presence.length = 0));
      Object.assign(proxy, mood);
      proxy.cut();
      await isOn(page, transport, 2 * WAIT);
      await knows(users);
    }
    assert.deepEqual(await page.evaluate(async () => (await window.client.presence("rooms.1")).count), 2);
    assert.equal(await page.evaluate(() => window.client.presence("private").catch(({ code }) => code)), "no_presence");
  } finally {
    people.abort();
    proxy.stop();
  }
}

async function tabs_show_who_is_here_by_the_names_they_give({ context, gateway }) {
  const open = async (query) => {
    const page = await context.newPage();
    await page.setViewportSize({ width: 390, height: 760 });
    await page.goto(`http://127.0.0.1:${gateway.port}/?${query}`);
    return page;
  };
  const shows = (page, words) => page.locator("#here", { hasText: words }).waitFor({ timeout: WAIT });
  const [ada, bob] = [await open("room=rooms.1&user=Ada"), await open("room=rooms.1")];
  for (const page of [ada, bob]) await shows(page, /^2 here: Ada and 1 more$/);
  await ada.getByRole("textbox", { name: "Message", exact: true }).fill("hello");
  await ada.keyboard.press("Enter");
  const log = bob.getByRole("log");
  await log.getByText("hello", { exact: true }).waitFor({ timeout: WAIT });
  // Another name is another connection, and what was heard is not heard again.
  await bob.getByRole("textbox", { name: "Your name", exact: true }).fill("Bob <b>");
  await bob.keyboard.press("Enter");
  for (const page of [ada, bob]) await shows(page, /^2 here: Ada, Bob <b>$/);
  assert.ok(await bob.evaluate(() => document.activeElement.id === "user" && new URLSearchParams(location.search).get("user") === "Bob <b>"));
  assert.equal(await log.getByText("hello", { exact: true }).count(), 1);
  assert.ok(await bob.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is wider than the phone");
  // By stream it is known too, and of several topics each is told apart; what is told of none is shown of none.
  await bob.getByRole("combobox", { name: "by", exact: true }).selectOption("sse");
  await shows(bob, /^2 here: Ada, Bob <b>$/);
  await bob.locator("#room").fill("rooms.1, rooms.2, private");
  await bob.locator("#room").press("Enter");
  await shows(bob, /^2 in rooms\.1: Ada, Bob <b>; 1 in rooms\.2: Bob <b>$/);
  await ada.close();
  await bob.locator("#room").fill("private");
  await bob.locator("#room").press("Enter");
  await bob.locator("#presence").waitFor({ state: "hidden", timeout: WAIT });
}

// Without it the tab would wait a minute.
async function back_from_offline_it_is_back_at_once({ context }) {
  const gateway = await startGateway({ limits: { reconnect_window_ms: 600_000 } });
  const proxy = await new Hostile().start(gateway.port);
  try {
    for (const transport of ["sse", "poll"]) {
      const page = await listen(context, proxy.port, `http://127.0.0.1:${proxy.port}`, { topics: ["a"], transports: [transport] });
      await isOn(page, transport);
      await page.evaluate(() => (window.states.length = 0));
      await context.setOffline(true);
      proxy.cut();
      // A poll that is under way is held by an offline browser, and not ended.
      if (transport === "sse") await page.waitForFunction(() => window.states.some(({ state }) => state === "waiting"), undefined, { timeout: WAIT });
      await publish(gateway.port, "a", "meanwhile");
      await context.setOffline(false);
      await isOn(page, transport);
      await page.waitForFunction(() => window.heard.length === 1, undefined, { timeout: WAIT });
      await page.close();
    }
  } finally {
    await context.setOffline(false);
    proxy.stop();
    await stopGateway(gateway);
  }
}

async function a_page_of_another_origin_imports_the_client_and_uses_every_transport({ context }) {
  const other = createServer((_, response) => response.setHeader("Content-Type", "text/html").end("<!doctype html><title>other</title>"));
  await new Promise((resolve) => other.listen(0, "127.0.0.1", resolve));
  const { port } = other.address();
  const gateway = await startGateway({ origins: [`http://127.0.0.1:${port}`] });
  try {
    for (const transport of ["ws", "sse", "poll"]) {
      const page = await listen(context, port, `http://127.0.0.1:${gateway.port}`, { topics: [transport], transports: [transport] });
      await isOn(page, transport);
      const { pos } = await page.evaluate((topic) => window.client.publish(topic, { n: 1 }), transport);
      await page.waitForFunction(() => window.heard.length === 1, undefined, { timeout: WAIT });
      assert.deepEqual(await page.evaluate(() => window.heard.map(({ pos, data }) => [pos, data])), [[pos, { n: 1 }]]);
      await page.close();
    }
  } finally {
    other.close();
    await stopGateway(gateway);
  }
}

async function a_page_that_may_not_connect_is_told_to_stop({ context, gateway }) {
  const other = createServer((_, response) => response.setHeader("Content-Type", "text/html").end("<!doctype html><title>stranger</title>"));
  await new Promise((resolve) => other.listen(0, "127.0.0.1", resolve));
  try {
    const page = await listen(context, other.address().port, `http://127.0.0.1:${gateway.port}`, { topics: ["a"] });
    await page.waitForFunction(() => window.client.state === "stopped", undefined, { timeout: WAIT });
    assert.equal(await page.evaluate(() => window.states.at(-1).code), 4403);
  } finally {
    other.close();
  }
}

// The page of docs/browser.md, to the letter but for the host, from another origin and in two tabs.
async function the_page_of_the_how_to_chats({ context }) {
  const [, html] = /^```html\n(.*?)^```/ms.exec(readFileSync(join(root, "docs", "browser.md"), "utf8"));
  let gateway;
  const other = createServer((_, response) => response.setHeader("Content-Type", "text/html").end(html.replaceAll("https://HOST", `http://127.0.0.1:${gateway.port}`)));
  await new Promise((resolve) => other.listen(0, "127.0.0.1", resolve));
  const origin = `http://127.0.0.1:${other.address().port}`;
  gateway = await startGateway({ origins: [origin] });
  try {
    const [ada, bob] = [await context.newPage(), await context.newPage()];
    for (const page of [ada, bob]) {
      await page.goto(origin);
      await page.waitForFunction(() => document.title === "open, ws", undefined, { timeout: WAIT });
    }
    await ada.getByLabel("Message").fill("hello Bob");
    await ada.getByRole("button").click();
    for (const page of [ada, bob]) await page.locator("#log li", { hasText: "hello Bob" }).waitFor({ timeout: WAIT });
  } finally {
    other.close();
    await stopGateway(gateway);
  }
}

async function files_are_small_checked_each_time_and_sent_once({ gateway }) {
  const base = `http://127.0.0.1:${gateway.port}`;
  for (const [path, type] of [["/", "text/html"], ["/page.js", "text/javascript"], ["/page.css", "text/css"], ["/shardcast.js", "text/javascript"], ["/shardcast.d.ts", "text/plain"]]) {
    const answer = await fetch(base + path);
    assert.equal(answer.status, 200, path);
    assert.ok(answer.headers.get("content-type").startsWith(type), path);
    assert.equal(answer.headers.get("cache-control"), "no-cache", path);
    assert.equal(answer.headers.get("access-control-allow-origin"), path.startsWith("/shardcast") ? "*" : null, path);
    const body = await answer.text();
    const tag = answer.headers.get("etag");
    for (const known of [tag, `W/${tag}`, `"x", ${tag}`]) {
      const again = await fetch(base + path, { headers: { "If-None-Match": known }, cache: "no-store" });
      assert.deepEqual([again.status, await again.text(), again.headers.get("etag")], [304, "", tag], `${path} ${known}`);
    }
    assert.equal((await fetch(base + path, { headers: { "If-None-Match": '"x"' } })).status, 200);
    if (path === "/shardcast.js") {
      const bytes = gzipSync(body, { level: 9 }).length;
      console.log(`     /shardcast.js: ${body.length} bytes, ${bytes} gzipped`);
      assert.ok(bytes < CLIENT_BYTES_MAX, `${bytes} bytes gzipped`);
    }
  }
}

// What needs a label has one, everything can be done with a keyboard, nothing is asked for elsewhere, and the policy forbids nothing that it needs.
async function the_page_can_be_used_with_keyboard_and_screen_reader_and_shows_what_happens({ context, gateway }) {
  const proxy = await new Hostile().start(gateway.port);
  const pictures = join(root, "tests", ".cache");
  mkdirSync(pictures, { recursive: true });
  const people = new AbortController();
  try {
    for (const user of ["Ada", "Bob"]) await fetch(`http://127.0.0.1:${gateway.port}/events?topic=lobby&user=${user}`, { signal: people.signal });
    const page = await context.newPage();
    const [problems, requests] = [[], []];
    page.on("pageerror", (error) => problems.push(error.message));
    page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    page.on("request", (request) => requests.push(new URL(request.url()).host));
    await page.setViewportSize({ width: 960, height: 640 });
    await page.goto(`http://127.0.0.1:${proxy.port}/?room=lobby&user=Cleo`);
    const state = page.getByRole("status");
    await state.filter({ hasText: /^open$/ }).waitFor({ timeout: WAIT });
    await page.getByText("3 here: Ada, Bob, Cleo").waitFor({ timeout: WAIT });
    // From the first key on: topics, transport, name, log, message, button.
    const stops = [];
    for (let stop = 0; stop < 6; stop += 1) {
      await page.keyboard.press("Tab");
      stops.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    }
    assert.deepEqual(stops, ["room", "via", "user", "pane", "text", "Send"]);
    for (const [role, name] of [["textbox", "Topics"], ["combobox", "by"], ["region", "Who is here"], ["textbox", "Your name"], ["log", "Messages"], ["textbox", "Message"], ["button", "Send"], ["heading", "shardcast"]]) {
      assert.equal(await page.getByRole(role, { name, exact: true }).count(), 1, `${role} ${name}`);
    }
    const log = page.getByRole("log");
    const hears = (text) => log.getByText(text, { exact: true }).first().waitFor({ timeout: WAIT });
    await page.getByRole("textbox", { name: "Message", exact: true }).focus();
    await page.keyboard.type("good morning");
    await page.keyboard.press("Enter");
    await hears("good morning");
    await publish(gateway.port, "lobby", JSON.stringify({ match: 12, score: "2:1" }));
    await hears('{"match":12,"score":"2:1"}');
    for (const words of ["anybody from Lisbon here?", "yes, two of us", "the stream goes on where it was"]) await publish(gateway.port, "lobby", words);
    await hears("the stream goes on where it was");
    const fact = (id) => page.locator(`#${id}`).textContent();
    await page.waitForFunction(() => /^\d+ ms$/.test(document.querySelector("#latency").textContent), undefined, { timeout: WAIT });
    assert.deepEqual([await fact("transport"), await fact("count"), await fact("gaps")], ["WebSocket", "5", "0"]);
    assert.match(await fact("position"), /^[0-9a-z]+\.5$/);
    assert.deepEqual(await contrasts(page), []);
    await page.screenshot({ path: join(pictures, "page-desktop.png") });
    // A phone, in the dark, behind a proxy that lets no WebSocket through.
    proxy.ws = "refuse";
    await page.emulateMedia({ colorScheme: "dark" });
    await page.setViewportSize({ width: 390, height: 760 });
    proxy.cut();
    await page.locator("#transport", { hasText: "event stream" }).waitFor({ timeout: 3 * WAIT });
    await state.filter({ hasText: /^open$/ }).waitFor({ timeout: 2 * WAIT });
    await page.getByRole("textbox", { name: "Message", exact: true }).fill("from the train");
    await page.getByRole("button", { name: "Send" }).click();
    await hears("from the train");
    assert.deepEqual(await contrasts(page), []);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is wider than the phone");
    await page.screenshot({ path: join(pictures, "page-phone.png") });
    // The refused upgrade and the cut are told in the console, and nothing else is.
    assert.deepEqual(problems.filter((problem) => !/WebSocket connection|ERR_|Failed to load resource/.test(problem)), []);
    assert.deepEqual([...new Set(requests)], [`127.0.0.1:${proxy.port}`]);
  } finally {
    people.abort();
    proxy.stop();
  }
}

// Texts whose contrast to what is behind them is under 4.5 (WCAG 2.2, 1.4.3).
const contrasts = (page) =>
  page.evaluate(() => {
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const luminance = (color) => {
      const [r, g, b] = channels(color).slice(0, 3).map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        if (channels(color)[3] !== 0) return color;
      }
      return "rgb(255, 255, 255)";
    };
    const faults = [];
    for (const element of document.querySelectorAll("h1, label, small, dt, dd, li span, input, select, button, p:not([hidden])")) {
      if (element.getClientRects().length === 0) continue;
      const [one, two] = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((a, b) => b - a);
      const ratio = (one + 0.05) / (two + 0.05);
      if (ratio < 4.5) faults.push(`${element.tagName} ${element.id} ${ratio.toFixed(2)}`);
    }
    return faults;
  });

export const cases = {
  everything_arrives_once_and_in_order_through_a_hostile_proxy,
  a_page_knows_who_is_there_whatever_gets_through,
  tabs_show_who_is_here_by_the_names_they_give,
  back_from_offline_it_is_back_at_once,
  a_page_of_another_origin_imports_the_client_and_uses_every_transport,
  a_page_that_may_not_connect_is_told_to_stop,
  the_page_of_the_how_to_chats,
  files_are_small_checked_each_time_and_sent_once,
  the_page_can_be_used_with_keyboard_and_screen_reader_and_shows_what_happens,
};
export const presence = ["lobby", "rooms.*"];
export const limits = { reconnect_window_ms: 200, history_messages: 20_000, history_bytes_max: "64MiB" };
