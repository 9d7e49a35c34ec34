// The gateway as its own process, for the tests that are written in JavaScript.
import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
export const WAIT = 15_000;
const binary = process.env.SHARDCAST_TEST_BINARY ?? join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "release", "shardcast");

// Ready to be connected to. `listen` is a port, `limits` are keys of the `[limits]` table, `presence` names topics; `more` are words of its command line.
export async function startGateway({ listen = 0, limits = {}, origins = [], presence = [], more = [] } = {}) {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("SHARDCAST_")));
  for (const [name, value] of Object.entries(limits)) env[`SHARDCAST_LIMITS_${name.toUpperCase()}`] = String(value);
  if (origins.length > 0) env.SHARDCAST_ORIGINS = origins.join(",");
  if (presence.length > 0) env.SHARDCAST_PRESENCE = presence.join(",");
  const args = ["serve", "--listen", `127.0.0.1:${listen}`, "--admin", "127.0.0.1:0", "--driver", process.env.SHARDCAST_TEST_DRIVER ?? "uring", ...more];
  const child = spawn(binary, args, { env, stdio: ["ignore", "ignore", "pipe"] });
  const gateway = { child, log: "", port: 0, admin: 0, ended: new Promise((resolve) => child.once("exit", (code) => resolve(code))) };
  await new Promise((resolve, reject) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      gateway.log += `${line}\n`;
      const ready = line.match(/ready: http:\/\/\S*?:(\d+) .*admin http:\/\/\S*?:(\d+)/);
      if (ready) {
        [gateway.port, gateway.admin] = ready.slice(1).map(Number);
        resolve();
      }
    });
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the gateway ended with ${code}:\n${gateway.log}`)));
    setTimeout(() => reject(new Error(`no readiness line:\n${gateway.log}`)), WAIT).unref();
  });
  return gateway;
}

export async function stopGateway(gateway) {
  gateway.child.kill("SIGTERM");
  const code = await Promise.race([gateway.ended, new Promise((resolve) => setTimeout(() => resolve("no exit"), WAIT).unref())]);
  gateway.child.kill("SIGKILL");
  return code;
}

// SIGKILL: its clients are told nothing.
export async function killGateway(gateway) {
  gateway.child.kill("SIGKILL");
  await gateway.ended;
}

// The sum over all labels of what it counts by this name.
export async function metric(gateway, name) {
  const text = await (await fetch(`http://127.0.0.1:${gateway.admin}/metrics`)).text();
  const lines = text.split("\n").filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
  if (lines.length === 0) throw new Error(`no metric ${name}`);
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}
