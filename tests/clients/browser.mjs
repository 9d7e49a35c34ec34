// A real browser: two tabs chat through the page `/`, and the cases of `browser-events.mjs`, `browser-client.mjs` and `browser-deflate.mjs`. Run by `tests/run browser`; the last
// line is `N passed, N failed`. `node browser.mjs [WORD...]` runs those whose name has one of the words.
//
// Chromium is the system's own (package `chromium`), driven by playwright-core. The profile is new and temporary; nothing but loopback is asked for.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import * as client from "./browser-client.mjs";
import * as deflate from "./browser-deflate.mjs";
import * as events from "./browser-events.mjs";
import { startGateway, stopGateway, WAIT } from "./gateway.mjs";
import { seed } from "./payloads.mjs";

// A tab on the page, connected to a room.
async function openTab(context, port, room) {
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  await page.goto(`http://127.0.0.1:${port}/`);
  await stateIs(page, "open");
  await enterRoom(page, room);
  return page;
}

async function enterRoom(page, room) {
  await page.fill("#room", room);
  await page.dispatchEvent("#room", "change");
  await stateIs(page, "open");
}

const stateIs = (page, state) =>
  page.waitForFunction((wanted) => document.querySelector("#state")?.textContent.trim() === wanted, state, { timeout: WAIT });

async function say(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
}

const hears = (page, text) =>
  page.waitForFunction((wanted) => [...document.querySelectorAll("#log li")].some((line) => line.textContent.includes(wanted)), text, { timeout: WAIT });

const log = (page) => page.$$eval("#log li", (lines) => lines.map((line) => line.textContent));

const cases = {
  async two_tabs_in_one_room_hear_each_other({ context, gateway }) {
    const [ada, bob] = [await openTab(context, gateway.port, "tabs"), await openTab(context, gateway.port, "tabs")];
    await say(ada, "hello from Ada 🦀");
    await hears(ada, "hello from Ada 🦀");
    await hears(bob, "hello from Ada 🦀");
    await say(bob, "and hello from Bob");
    await hears(ada, "and hello from Bob");
    assert.deepEqual([...ada.problems, ...bob.problems], []);
    // Who is here is told to nobody, unless the operator says so.
    assert.ok(await ada.locator("#presence").isHidden());
  },

  async rooms_do_not_hear_each_other({ context, gateway }) {
    const [ada, eve] = [await openTab(context, gateway.port, "private"), await openTab(context, gateway.port, "elsewhere")];
    await say(ada, "only for private");
    await hears(ada, "only for private");
    await say(eve, "only for elsewhere");
    await hears(eve, "only for elsewhere");
    assert.ok(!(await log(eve)).some((line) => line.includes("only for private")));
    assert.ok(!(await log(ada)).some((line) => line.includes("only for elsewhere")));
  },

  async a_message_is_text_and_never_markup({ context, gateway }) {
    const page = await openTab(context, gateway.port, "markup");
    await say(page, '<img src=x onerror="document.title=1"><b>bold</b>');
    await hears(page, "<b>bold</b>");
    assert.equal(await page.$("#log img"), null);
    assert.equal(await page.$("#log b"), null);
  },

  async a_tab_changes_its_room_without_a_reload({ context, gateway }) {
    const [ada, bob] = [await openTab(context, gateway.port, "first"), await openTab(context, gateway.port, "second")];
    await enterRoom(ada, "second");
    await say(ada, "moved over");
    await hears(ada, "moved over");
    await hears(bob, "moved over");
  },

  async a_tab_comes_back_after_a_restart({ context, gateway }) {
    const page = await openTab(context, gateway.port, "again");
    assert.equal(await stopGateway(gateway), 0);
    await page.waitForFunction(() => document.querySelector("#state")?.textContent.trim() !== "open", undefined, { timeout: WAIT });
    const next = await startGateway({ listen: gateway.port });
    try {
      // The gateway told it when: within reconnect_window_ms.
      await page.waitForFunction(() => document.querySelector("#state")?.textContent.trim() === "open", undefined, { timeout: 2 * WAIT });
      await say(page, "back again");
      await hears(page, "back again");
    } finally {
      await stopGateway(next);
    }
  },
};

const words = process.argv.slice(2);
console.log(`seed ${seed}: run again with SHARDCAST_TEST_SEED=${seed}`);
const profile = mkdtempSync(join(tmpdir(), "shardcast-browser-"));
let passed = 0;
let failed = 0;
const context = await chromium.launchPersistentContext(profile, {
  executablePath: execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim(),
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
try {
  const under = ({ cases, limits, presence, more }) => Object.entries(cases).map((named) => [...named, { limits, presence, more }]);
  const all = [...Object.entries(cases), ...under(events), ...under(client), ...under(deflate)];
  for (const [name, run, options] of all) {
    if (words.length > 0 && !words.some((word) => name.includes(word))) continue;
    let gateway;
    const began = performance.now();
    try {
      gateway = await startGateway(options);
      await run({ context, gateway });
      passed += 1;
      console.log(`ok   ${name} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}: ${error.stack}\n${gateway?.log.slice(-2000) ?? ""}`);
    } finally {
      await Promise.all(context.pages().slice(1).map((page) => page.close()));
      if (gateway) await stopGateway(gateway);
    }
  }
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
