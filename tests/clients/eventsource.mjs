// The EventSource of Node (package `eventsource`) for a test in another language: events as JSON lines on stdout, until stdin ends.
//
//   node eventsource.mjs URL NAME...     the names of events beside `message` and the gateway's own
//   out: {"name": "message", "data": "…", "id": "…"} | {"error": "…", "gone": false}     gone: it has given up for good
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const source = new EventSource(url);
for (const name of ["message", "shardcast:open", "shardcast:gap", "shardcast:bye", ...names]) {
  source.addEventListener(name, (event) => tell({ name: event.type, data: event.data, id: event.lastEventId }));
}
source.onerror = (event) => tell({ error: event.message ?? "", gone: source.readyState === EventSource.CLOSED });
process.stdin.resume().on("end", () => process.exit(0));
