// The page `/`: a live chat and a viewer of events, and what the browser client does meanwhile.
import { connect } from "./shardcast.js";

const LINES = 500; // of the log
const $ = (id) => document.getElementById(id);
const [room, via, text, pane, log] = ["room", "via", "text", "pane", "log"].map($);
const NAMES = { ws: "WebSocket", sse: "event stream", poll: "polls" };
const asked = new URLSearchParams(location.search);
let client;
let topics = [];
let messages = 0;
let gaps = 0;
const began = new Map(); // when own messages were sent, by their place
const heard = new Map(); // when the newest messages were heard, by theirs

function line(words, kind, about) {
  const isAtEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40;
  const item = document.createElement("li");
  const said = item.appendChild(document.createElement("span"));
  said.textContent = words;
  if (kind) item.className = kind;
  if (about) item.appendChild(document.createElement("small")).textContent = about;
  log.append(item);
  while (log.childElementCount > LINES) log.firstElementChild.remove();
  if (isAtEnd) pane.scrollTop = pane.scrollHeight;
  return item;
}

const place = ({ topic, pos }) => `${topic} ${pos}`;

// A message of one's own is known by its place, which the receipt or the message itself says first.
function measure(one) {
  const [from, to] = [began.get(one), heard.get(one)];
  if (from === undefined || to === undefined) return;
  began.delete(one);
  $("latency").textContent = `${Math.max(1, Math.round(to - from))} ms`;
}

function onMessage(message) {
  const { topic, pos, data, event } = message;
  heard.set(place(message), performance.now());
  if (heard.size > 100) heard.delete(heard.keys().next().value);
  measure(place(message));
  $("count").textContent = ++messages;
  $("position").textContent = $("position").title = pos;
  const words = typeof data === "string" ? data : data instanceof Uint8Array ? `(${data.length} bytes of binary)` : JSON.stringify(data);
  const time = new Date().toLocaleTimeString();
  line(words, "", [topics.length > 1 && topic, event, pos.split(".")[1], time].filter(Boolean).join(" · "));
}

function onGap({ topic, reason }) {
  const why = { too_old: "they are not kept any more", restart: "the gateway has started anew", unknown: "the gateway does not know the place", slow: "this reader was too slow" };
  $("gaps").textContent = ++gaps;
  line(`Messages of ${topic} may be missing here: ${why[reason] ?? reason}`, "gap");
}

function onState({ state, transport, code, reason, retry_ms }) {
  $("state").textContent = state;
  $("state").className = state;
  $("transport").textContent = NAMES[transport];
  const why = [reason || (code ? `code ${code}` : ""), state === "waiting" ? `${NAMES[transport]} in ${(retry_ms / 1000).toFixed(1)} s` : ""].filter(Boolean).join("; ");
  $("why").textContent = why;
  $("why").hidden = state === "open" || why === "";
}

function enter() {
  client?.close();
  topics = [...new Set(room.value.split(",").map((name) => name.trim()).filter(Boolean))];
  if (topics.length === 0) topics = ["lobby"];
  room.value = topics.join(", ");
  asked.set("room", topics.join(","));
  asked.set("via", via.value);
  history.replaceState(null, "", `?${asked}`);
  line(`in ${room.value}`, "note");
  client = connect("./", {
    topics: Object.fromEntries(topics.map((topic) => [topic, "-5m"])),
    transports: via.value.split(","),
    onMessage,
    onGap,
    onState,
    onAnnouncement: (words) => line(`Announcement: ${words}`, "note"),
  });
}

async function say(words) {
  const item = line(words, "unsent", "sending");
  const from = performance.now();
  try {
    const { pos } = await client.publish(topics[0], words);
    const one = place({ topic: topics[0], pos });
    began.set(one, from);
    measure(one);
  } catch (error) {
    line(`Not sent (${error.code ?? error.name}): ${error.message}`, "gap");
  }
  item.remove(); // it comes back as a message
}

$("send").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!text.value) return;
  say(text.value);
  text.value = "";
});
$("join").addEventListener("submit", (event) => event.preventDefault());
room.addEventListener("change", enter);
via.addEventListener("change", enter);

room.value = asked.get("room") || "lobby";
if ([...via.options].some(({ value }) => value === asked.get("via"))) via.value = asked.get("via");
enter();
