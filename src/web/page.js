// The page `/`: a live chat and a viewer of events, and what the browser client does meanwhile.
import { connect } from "./shardcast.js";

const LINES = 500; // of the log
const USERS = 20; // that are named
const LOOK_MS = 30_000; // until it is asked again who is here, where that is not told
const $ = (id) => document.getElementById(id);
const [room, via, user, text, pane, log] = ["room", "via", "user", "text", "pane", "log"].map($);
const NAMES = { ws: "WebSocket", sse: "event stream", poll: "polls" };
const asked = new URLSearchParams(location.search);
let client;
let topics = [];
let messages = 0;
let gaps = 0;
const began = new Map(); // when own messages were sent, by their place
const heard = new Map(); // when the newest messages were heard, by theirs
const there = new Map(); // by topic: how many are in it, and what they call themselves, by their connections

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

// Where the gateway tells nobody who is there nothing is shown.
function onPresence({ topic, type, count, members = [] }) {
  const isChange = type === "join" || type === "leave";
  const users = (isChange && there.get(topic)?.users) || new Map();
  for (const { conn, user } of members) type === "leave" ? users.delete(conn) : users.set(conn, user);
  type === "error" ? there.delete(topic) : there.set(topic, { count, users });
  showPresence();
}

function showPresence() {
  $("presence").hidden = there.size === 0;
  const words = ([topic, { count, users }]) => {
    const known = [...users.values()].filter(Boolean).sort().slice(0, USERS);
    const more = count - known.length;
    const names = [known.join(", "), known.length > 0 && more > 0 && `and ${more} more`].filter(Boolean).join(" ");
    return `${count} ${topics.length > 1 ? `in ${topic}` : "here"}${names && `: ${names}`}`;
  };
  $("here").textContent = [...there].map(words).join("; ");
}

// A stream and polls tell it only when they open.
function look() {
  if (client.state !== "open" || client.transport === "ws") return;
  const asker = client;
  for (const topic of there.keys()) {
    const hear = (present) => asker === client && onPresence({ type: "presence", ...present });
    client.presence(topic).then(hear, () => {}); // next time
  }
}

function enter() {
  const positions = client?.positions ?? {};
  client?.close();
  topics = [...new Set(room.value.split(",").map((name) => name.trim()).filter(Boolean))];
  if (topics.length === 0) topics = ["lobby"];
  room.value = topics.join(", ");
  asked.set("room", topics.join(","));
  asked.set("via", via.value);
  user.value ? asked.set("user", user.value) : asked.delete("user");
  history.replaceState(null, "", `?${asked}`);
  line(`in ${room.value}${user.value && ` as ${user.value}`}`, "note");
  for (const topic of there.keys()) if (!topics.includes(topic)) there.delete(topic);
  showPresence();
  client = connect("./", {
    topics: Object.fromEntries(topics.map((topic) => [topic, positions[topic] ?? "-5m"])),
    presence: true,
    user: user.value,
    onPresence,
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
user.addEventListener("change", enter);
setInterval(look, LOOK_MS);

room.value = asked.get("room") || "lobby";
user.value = asked.get("user") ?? "";
if ([...via.options].some(({ value }) => value === asked.get("via"))) via.value = asked.get("via");
enter();
