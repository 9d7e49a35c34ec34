#!/usr/bin/env node
// What a message costs a browser: Chromium hears a topic by `shardcast.v1.json`, one message a frame and many (`hello{batch}`), in turns. It prints the CPU time of
// all of the browser's processes per message, idle time taken off, frames per message, and how long messages took from the publisher to the page.
//
// usage: node benches/browser.mjs [SECONDS] [ROUNDS]      3 and 5 unless said; needs `cargo build --release`, chromium, and `npm install` in tests/clients
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root, startGateway, stopGateway } from "../tests/clients/gateway.mjs";

const require = createRequire(join(root, "tests/clients/package.json"));
const { chromium } = require("playwright-core");
const { WebSocket } = require("ws");

const [seconds = 3, rounds = 5] = process.argv.slice(2).map(Number);
const RATES = [1000, 5000]; // messages a second
const SETTLE_MS = 5000; // until a browser that was started is idle
const TICKS_PER_SECOND = 100; // of /proc, on every Linux
const PADDING = "x".repeat(100);

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

// CPU milliseconds of every process that has this profile, and their children.
function cpuMs(profile) {
  const processes = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const [parent, user, system] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").pop().split(" ").filter((_, index) => [1, 11, 12].includes(index)).map(Number);
      processes.set(Number(pid), { parent, ticks: user + system, own: readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(profile) });
    } catch {
      // It has ended meanwhile.
    }
  }
  const belongs = (pid) => processes.has(pid) && (processes.get(pid).own || belongs(processes.get(pid).parent));
  return [...processes].filter(([pid]) => belongs(pid)).reduce((sum, [, { ticks }]) => sum + ticks, 0) * (1000 / TICKS_PER_SECOND);
}

// In the page: hears a topic until so many messages have come.
const hear = ([port, topic, batch, wanted]) =>
  new Promise((resolve) => {
    const waits = [];
    let frames = 0;
    const socket = new WebSocket(`ws://127.0.0.1:${port}/ws`, ["shardcast.v1.json"]);
    socket.onmessage = ({ data }) => {
      const heard = Date.now();
      let isFull = false;
      for (const line of data.trim().split("\n")) {
        const said = JSON.parse(line);
        if (said.type === "welcome") {
          if (batch) socket.send('{"type":"hello","batch":true}');
          socket.send(JSON.stringify({ type: "subscribe", topic }));
        } else if (said.type === "subscribed") window.begin();
        else if (said.type === "message") {
          isFull = true;
          waits.push(heard - said.data.at);
        }
      }
      if (isFull) frames++;
      if (waits.length < wanted) return;
      socket.close();
      resolve({ frames, waits });
    };
  });

async function publish(port, topic, rate, wanted) {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/ws`, "shardcast.v1.json");
  await new Promise((resolve) => socket.once("message", resolve));
  const began = performance.now();
  for (let sent = 0; sent < wanted; ) {
    const due = Math.min(wanted, ((performance.now() - began) * rate) / 1000);
    for (; sent < due; sent++) socket.send(JSON.stringify({ type: "publish", topic, data: { at: Date.now(), PADDING } }));
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return socket;
}

const gateway = await startGateway();
const profile = mkdtempSync(join(tmpdir(), "shardcast-bench-"));
const context = await chromium.launchPersistentContext(profile, { executablePath: execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim(), args: ["--no-sandbox"] });
try {
  const page = await context.newPage();
  await page.goto(`http://127.0.0.1:${gateway.port}/healthz`);
  let begin;
  await page.exposeFunction("begin", () => begin());
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  const before = cpuMs(profile);
  await new Promise((resolve) => setTimeout(resolve, 2000));
  const idleMsPerS = (cpuMs(profile) - before) / 2;
  console.log(`CPU of the browser's processes, ${idleMsPerS.toFixed(0)} ms a second idle and taken off; medians of ${rounds} rounds of ${seconds} s in turns`);
  console.log("| messages a second | batch | CPU a message | frames a message | p50 | p99 |\n|---|---|---|---|---|---|");
  for (const rate of RATES) {
    const wanted = rate * seconds;
    const rows = new Map([[false, []], [true, []]]);
    for (let round = 0; round < rounds; round++) {
      for (const [batch, row] of rows) {
        const topic = `bench-${rate}-${round}-${batch}`;
        const begun = new Promise((resolve) => (begin = resolve));
        const heard = page.evaluate(hear, [gateway.port, topic, batch, wanted]);
        await begun;
        const [cpu, at] = [cpuMs(profile), performance.now()];
        const publisher = await publish(gateway.port, topic, rate, wanted);
        const { frames, waits } = await heard;
        const idle = (idleMsPerS * (performance.now() - at)) / 1000;
        publisher.close();
        waits.sort((a, b) => a - b);
        const [p50, p99] = [0.5, 0.99].map((part) => waits[Math.floor(waits.length * part)]);
        row.push({ us: ((cpuMs(profile) - cpu - idle) * 1000) / wanted, frames: frames / wanted, p50, p99 });
      }
    }
    for (const [batch, row] of rows) {
      const of = (name) => median(row.map((one) => one[name]));
      console.log(`| ${rate} | ${batch ? "yes" : "no"} | ${of("us").toFixed(0)} µs | ${of("frames").toFixed(2)} | ${of("p50")} ms | ${of("p99")} ms |`);
    }
  }
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
  await stopGateway(gateway);
}
