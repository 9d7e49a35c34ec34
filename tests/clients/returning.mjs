// Many EventSources of Node (package `eventsource`) for a test in another language, until stdin ends.
//
//   node returning.mjs URL COUNT
//   out, whenever it has changed: {"open": N, "least": N, "faults": N, "gone": N}     streams that are open; the number of the last message of the one
//   that is furthest behind (-1 before the first); messages that were missed or came twice; streams that have given up
import { EventSource } from "eventsource";

const [url, count] = process.argv.slice(2);
const streams = Array.from({ length: Number(count) }, () => ({ source: new EventSource(url), last: -1 }));
let faults = 0;
for (const stream of streams) {
  stream.source.onmessage = ({ data }) => {
    if (Number(data) !== stream.last + 1) faults += 1;
    stream.last = Number(data);
  };
}
const inState = (state) => streams.filter(({ source }) => source.readyState === state).length;
let told = "";
setInterval(() => {
  const least = Math.min(...streams.map(({ last }) => last));
  const line = JSON.stringify({ open: inState(EventSource.OPEN), least, faults, gone: inState(EventSource.CLOSED) });
  if (line !== told) process.stdout.write(`${line}\n`);
  told = line;
}, 50);
process.stdout.on("error", () => process.exit(0)); // nobody listens any more
process.stdin.resume().on("end", () => process.exit(0));
