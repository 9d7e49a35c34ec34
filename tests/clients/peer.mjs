// A Node client (package `ws`) that a test in another language steers: commands as JSON lines on stdin, events as JSON lines on stdout.
//
//   node peer.mjs URL
//   in:  {"text": "…"} | {"binary": "<base64>"} | {"close": 1000} | {"reconnect": true}
//   out: {"open": true} | {"text": "…"} | {"binary": "<base64>"} | {"close": 1009, "reason": "…"} | {"error": "…"}
import { createInterface } from "node:readline";
import WebSocket from "ws";

const url = process.argv[2];
const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
let socket;

function connect() {
  socket = new WebSocket(url);
  socket.on("open", () => tell({ open: true }));
  socket.on("message", (data, isBinary) => tell(isBinary ? { binary: data.toString("base64") } : { text: data.toString("utf8") }));
  socket.on("close", (code, reason) => tell({ close: code, reason: reason.toString("utf8") }));
  socket.on("error", (error) => tell({ error: error.message }));
}

const commands = createInterface({ input: process.stdin });
commands.on("line", (line) => {
  const command = JSON.parse(line);
  if ("text" in command) socket.send(command.text);
  if ("binary" in command) socket.send(Buffer.from(command.binary, "base64"));
  if ("close" in command) socket.close(command.close);
  if ("reconnect" in command) connect();
});
commands.on("close", () => process.exit(0));
connect();
