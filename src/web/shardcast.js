// The browser client of shardcast: each message of its topics once and in order, by WebSocket, event stream or polls, whichever gets through.
// How to use it: docs/browser.md; types: shardcast.d.ts. `Machine` decides what to use and when, `connect` does it. It is served without comments.

const OPEN_MS = { ws: 5000, sse: 2000, poll: 9000 }; // until the first word: a stream that takes longer is held back by a proxy
const ASK_MS = 28000; // of silence until the other side is asked for a sign of life
const DEAD_MS = 12000; // and from there until it is given up
const { random, min, max } = Math;

// No clock and no network: `act(what, …)` is told to open, drop and ask connections; `due` is when to call `tick`.
export class Machine {
  main; // what is used or tried: {id, level, since, heard, until}
  probe; // a better transport that is tried meanwhile
  level = 0; // the next one to try
  window = 0; // how long to wait after a loss, as the server has said
  retryAt = Infinity;
  climbAt = Infinity;
  woke = -Infinity;
  fails = 0;
  climbs = 0;
  away = 0;
  count = 0;
  climb_ms = 10000;
  dice = random;

  constructor(act, options) {
    Object.assign(this, { act }, options);
  }

  get due() {
    const { main, probe } = this;
    const until = main?.until === Infinity ? main.heard + ASK_MS : main?.until;
    return (this.planned = min(this.retryAt, this.climbAt, until ?? Infinity, probe?.until ?? Infinity));
  }

  start(now) {
    this.retryAt = this.climbAt = Infinity;
    this.main = this.open(now, this.level, 1);
    this.tell("connecting");
  }

  // The server has spoken there; after a loss it wants to be left alone for `window`.
  opened(now, id, window = this.window) {
    if (id === this.probe?.id) {
      this.drop(this.main);
      this.main = this.probe;
      this.probe = undefined;
      this.retryAt = Infinity;
      this.climbs = 0;
    }
    const { main } = this;
    if (id !== main?.id) return;
    main.since = now;
    this.level = main.level;
    this.window = window;
    this.away = 0;
    this.heard(now, id);
    this.climb(now);
    this.tell("open");
  }

  heard(now, id) {
    const { main } = this;
    if (id !== main?.id || !main.since) return;
    main.heard = now;
    main.until = Infinity;
  }

  // It has ended, with what the server said. `unreachable`: not even HTTP got through; `held`: a proxy is in the way.
  lost(now, id, { code = 0, reason = "", retry_ms, unreachable, held } = {}) {
    const { main, probe } = this;
    if (id === probe?.id) {
      this.probe = undefined;
      this.climbs++;
      return this.climb(now);
    }
    if (id !== main?.id) return;
    this.main = undefined;
    this.climbAt = Infinity;
    // These say that something must change first.
    if (/^(44..|100[0279])$/.test(code)) return this.close(now, "stopped", { code, reason });
    if (now - main.since >= 10000) this.fails = 0;
    this.hinted = retry_ms !== undefined;
    const backoff = this.dice() * min(20000, 500 * 2 ** this.fails++);
    // Was it the transport? Not if the server spoke; nor if nothing gets through, but who knows: every third time.
    if (!main.since && !this.hinted) this.level = unreachable && ++this.away % 3 ? 0 : (this.level + 1) % this.transports.length;
    const isSoon = (held && this.level) || now - this.woke < 5000;
    const wait = Math.round(retry_ms ?? (isSoon ? 0 : max(backoff, this.window * (main.since ? 1 : this.dice()))));
    this.woke = -Infinity;
    this.retryAt = now + wait;
    this.tell("waiting", { code, reason, retry_ms: wait });
  }

  tick(now) {
    if (now - this.planned > 10000) this.wake(now); // so late: it has slept
    for (const one of [this.main, this.probe]) {
      if (now >= one?.until) {
        this.drop(one);
        this.lost(now, one.id, { held: !one.since && this.transports[one.level] === "sse" });
      } else if (one?.since && one.until === Infinity && now - one.heard >= ASK_MS) this.ask(one, now + DEAD_MS);
    }
    if (now >= this.retryAt) this.start(now);
    if (now >= this.climbAt) {
      this.climbAt = Infinity;
      this.probe = this.open(now, this.climbs % this.level, 3);
    }
  }

  // The page is seen again, or (`isNew`) the network is back: no waiting, but for what the server has asked for.
  wake(now, isNew) {
    const { main } = this;
    this.woke = now;
    if (isNew) this.climbs = 0;
    if (!this.hinted && this.retryAt > now && this.retryAt < Infinity) this.retryAt = now;
    if (!main?.since) return;
    const isStream = this.transports[main.level] === "sse"; // it cannot be asked, but has a comment every 15 s
    if (isNew || (isStream && now - main.heard > 17000)) main.until = now;
    else if (!isStream) this.ask(main, now + 3000);
  }

  // For other topics.
  again(now) {
    this.rest();
    this.start(now);
  }

  close(now, state = "closed", about) {
    this.rest();
    this.tell(state, about);
  }

  rest() {
    for (const one of [this.main, this.probe]) this.drop(one);
    this.main = this.probe = undefined;
    this.retryAt = this.climbAt = Infinity;
  }

  open(now, level, patience) {
    const transport = this.transports[level];
    this.act("open", ++this.count, transport);
    return { id: this.count, level, until: now + OPEN_MS[transport] * patience };
  }

  drop(one) {
    if (one) this.act("drop", one.id);
  }

  ask(one, until) {
    one.until = until;
    this.act("ask", one.id);
  }

  climb(now) {
    if (this.level && this.main?.since) this.climbAt = now + min(300000, this.climb_ms * 2 ** this.climbs);
  }

  tell(state, about) {
    this.state = state;
    this.act("tell", { state, transport: this.transports[this.level], ...about });
  }
}

// A place ends with an offset; another start, as `latest` or `-5m`, with a letter.
const isPlace = (pos) => /\d$/.test(pos);
const epoch = (pos) => pos.split(".")[0];
// Offsets grow, at any length; those of two epochs say nothing about each other.
const isAfter = (pos, last) => epoch(pos) !== epoch(last) || pos.padStart(40) > last.padStart(40);
// A cursor is the places of several topics, and says an epoch where it is another one: k3f9.17,4,1a.5. An offset may be missing.
const join = (places) => places.map((pos, index) => (index && epoch(pos) === epoch(places[index - 1]) ? pos.split(".")[1] : pos));
const split = (cursor) => {
  let last;
  return cursor.split(",").map((text) => (last = /\./.test(text) ? text : `${epoch(last)}.${text}`));
};
// Objects and arrays are JSON, as they are on the other transports.
const parse = (text) => {
  try {
    return /^\s*[[{]/.test(text) ? JSON.parse(text) : text;
  } catch {
    return text;
  }
};
const query = (names, after) => new URLSearchParams([...names.map((topic) => ["topic", topic]), ["after", after]]);

export function connect(url, options = {}) {
  const {
    WebSocket = globalThis.WebSocket, transports = ["ws", "sse", "poll"], climb_ms = 10000, batch = true, topics: wanted = [],
    token, credentials, user,
  } = options;
  const base = new URL(url, globalThis.location?.href);
  base.pathname = base.pathname.replace(/\/?$/, "/");
  const topics = new Map(); // {pos: where it is or begins, presence: whether it is told who is there}
  const links = new Map(); // by the machine's ids
  const unsent = new Map(); // publications without a receipt
  const who = new URLSearchParams(user && { user });
  let timer, posts, renews;

  const machine = new Machine((what, id, name) => acts[what](id, name), { transports: transports.filter((name) => WebSocket || name !== "ws"), climb_ms });
  const step = (input, ...about) => {
    machine[input](Date.now(), ...about);
    clearTimeout(timer);
    const { due } = machine;
    if (due < Infinity) timer = setTimeout(step, max(0, due - Date.now()), "tick");
  };
  const say = (name, about) => queueMicrotask(() => options[name]?.(about));
  const acts = {
    async open(id, transport) {
      const link = { id, stop: new AbortController() };
      links.set(id, link);
      let end;
      try {
        await 0;
        link.token = await token?.();
        if (links.has(id)) end = await ways[transport](link);
      } catch (error) {
        end = error?.end ?? { reason: error?.message, unreachable: true };
      }
      link.stop.abort();
      if (links.delete(id)) step("lost", id, end);
    },
    drop(id) {
      links.get(id)?.stop.abort();
      links.delete(id);
    },
    ask(id) {
      links.get(id)?.ask?.();
    },
    tell(about) {
      Object.assign(client, about);
      if (/ed$/.test(about.state)) for (const id of unsent.keys()) settle(id, { error: { code: about.state, message: about.reason } });
      say("onState", about);
      pump();
    },
  };

  // What the server says on every transport: a message, a gap, an announcement; who is there, which has no place.
  const hear = ({ text, data_b64, ...said }) => {
    if (text) say("onAnnouncement", text);
    const at = topics.get(said.topic);
    const pos = said.pos ?? said.to;
    if (!at || (pos && said.reason !== "unknown" && !isAfter(pos, at.pos))) return;
    at.pos = pos ?? at.pos;
    if (data_b64 !== undefined) said.data = Uint8Array.from(atob(data_b64), (char) => char.charCodeAt());
    say(said.to ? "onGap" : pos ? "onMessage" : "onPresence", said);
  };
  // Where a topic begins, unless that is known.
  const place = (topic, pos) => {
    const at = topics.get(topic);
    if (at && isPlace(pos) && !isPlace(at.pos)) at.pos = pos;
  };

  // A request of a link, or with a body one that publishes. Only the gateway's own refusal is final, and that of polls is about polls.
  const ask = async (path, { token, stop }, body) => {
    const answer = await fetch(new URL(path, base), {
      method: body && "POST",
      body,
      headers: token && { Authorization: `Bearer ${token}` },
      credentials,
      cache: "no-store",
      signal: stop?.signal ?? AbortSignal.timeout(10000),
    });
    const { status } = answer;
    if (answer.ok) return path[0] === "e" ? answer.body : answer.json();
    const { error: { code, message: reason = `HTTP ${status}`, retry_ms } = {} } = await answer.json().catch(() => ({}));
    const isFinal = code && status < 500 && !retry_ms && status !== 408 && (status !== 400 || path[0] !== "p");
    const end = { code: isFinal ? 4000 + status : 0, reason, retry_ms, unreachable: status >= 500, held: !code };
    throw Object.assign(new Error(reason), { code, end });
  };

  // The answer to a poll.
  const heard = (names, { messages, next }) => {
    for (const { gap, announcement, ...said } of messages) hear({ ...said, ...gap, text: announcement });
    split(next).forEach((pos, index) => place(names[index], pos));
  };

  // The topics and where they are. Who has no place asks for one first, unless all begin alike.
  const where = async (link) => {
    if (new Set([...topics.values()].map(({ pos }) => isPlace(pos) || pos)).size > 1) {
      for (const [topic, { pos }] of topics) if (!isPlace(pos)) heard([topic], await ask(`poll?${query([topic], pos)}&wait=0`, link));
    }
    link.names = [...topics.keys()];
    const all = [...topics.values()].map(({ pos }) => pos);
    return query(link.names, isPlace(all[0]) ? join(all) : all[0]);
  };

  // A stream and polls do not tell who is there: it is asked when they open. A better transport that is tried beside them has newer words.
  const look = (link) => {
    for (const [topic, { presence }] of topics) {
      const tell = (said) => links.size < 2 && links.has(link.id) && hear({ type: "presence", ...said });
      if (presence) client.presence(topic).then(tell, ({ code, message }) => tell({ type: "error", topic, code, message }));
    }
  };

  // Each uses a link until it ends, and says how it ended.
  const ways = {
    ws: (link) => new Promise((resolve) => {
      const socket = new WebSocket(new URL(`ws?${who}`, base).href.replace("http", "ws"), ["shardcast.v1.json"]);
      link.send = (type, about) => socket.send(JSON.stringify({ type, ...about }));
      link.ask = () => link.send("ping");
      link.follow = (topic, isPlain) => {
        const at = topics.get(topic);
        link.send(at ? "subscribe" : "unsubscribe", { id: topic, topic, after: at?.pos, presence: !isPlain && at?.presence });
      };
      link.stop.signal.onabort = () => socket.close();
      socket.onopen = () => link.send("hello", { token: link.token, batch });
      socket.onclose = ({ code, reason }) => {
        resolve({ code, reason, retry_ms: /retry=(\d+)/.exec(reason)?.[1], ...link.bye });
      };
      // A frame has one object, or several with a line for each. Who waits for a token holds none of them up.
      socket.onmessage = ({ data }) => data.trim().split("\n").forEach((line) => links.has(link.id) && heed(JSON.parse(line)));
      const heed = async (said) => {
        const { type, id } = said;
        step("heard", link.id);
        if (type === "subscribed") place(said.topic, said.pos);
        // It is that of all clients; the other transports give each its own time.
        if (type === "welcome" || type === "retry") machine.window = random() * said.retry_ms;
        if (type === "welcome") {
          link.left = topics.size + 1;
          for (const topic of topics.keys()) link.follow(topic);
        }
        // It is open when it knows where it is.
        if (type === "welcome" || type === "subscribed") --link.left || step("opened", link.id);
        else if (type === "ok") settle(id, said);
        else if (said.code === "no_presence") hear({ ...said, topic: id }), link.follow(id, true);
        else if (type === "error" && topics.has(id)) resolve({ ...said, code: said.retry_ms ? 0 : 4400, reason: said.message });
        else if (type === "error") setTimeout(pump, settle(id, { error: said }));
        else if (type === "auth_expiring") link.send("auth", { token: await token?.() });
        else if (type === "bye") link.bye = said;
        else hear(said);
      };
    }),

    async sse(link) {
      const body = await ask(`events?${await where(link)}&${who}`, link);
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      let last = []; // the place in each topic
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return link.bye;
        step("heard", link.id);
        const blocks = (text + value).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          if (!links.has(link.id)) return;
          const fields = {};
          for (const line of block.split("\n")) {
            const [, name, value] = /^(\w*):\x20?(.*)/s.exec(line) ?? [];
            fields[name] = name in fields ? `${fields[name]}\n${value}` : value;
          }
          const { id, event, data, retry } = fields;
          const type = /^shardcast:(.*)/.exec(event)?.[1];
          const said = type && JSON.parse(data);
          if (retry) machine.window = +retry;
          if (type === "open") {
            step("opened", link.id, said.retry_ms);
            look(link);
            last = link.names.map((topic) => said.topics[topic]);
            last.forEach((pos, index) => place(link.names[index], pos));
          } else if (type === "auth") step("again");
          else if (type === "bye") link.bye = said;
          else if (type) {
            hear(said);
            if (said.to) last[link.names.indexOf(said.topic)] = said.to;
          } else if (id) {
            // The topic is the one whose place has changed.
            const said = fields[""] ? { data_b64: data } : { data: parse(data) };
            split(id).forEach((pos, index) => pos === last[index] || hear({ topic: link.names[index], pos, event, ...said }));
            last = split(id);
          }
        }
      }
    },

    async poll(link) {
      link.ask = () => step("again");
      for (let wait = 0; ; wait = 25) {
        const path = `poll?${await where(link)}&wait=${wait}`;
        const began = Date.now();
        const answer = await ask(path, link);
        if (!links.has(link.id)) return;
        step(wait ? "heard" : "opened", link.id, answer.retry_ms);
        wait || look(link);
        heard(link.names, answer);
        // Somebody answers in the gateway's place.
        if (wait && !answer.messages.length && Date.now() - began < 1000) await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    },
  };

  // Ends a publication, or returns how long to wait before it is tried again.
  const settle = (id, { error, ...receipt }) => {
    const one = unsent.get(id);
    if (one && error?.retry_ms) one.via = 0;
    else if (one) {
      unsent.delete(id);
      clearTimeout(one.timer);
      if (error) one.reject(Object.assign(new Error(error.message), error));
      else one.resolve(receipt);
    }
    return error?.retry_ms ?? 0;
  };

  // Sends what has no receipt, in order; what was sent and lost again, under an id by which the gateway knows it.
  const pump = async () => {
    const link = links.get(machine.main?.id);
    const isOpen = machine.state === "open" && !renews;
    if (isOpen && link?.send) {
      for (const [id, one] of unsent) if (one.via !== link.id) link.send("publish", { id, msg_id: id, ...one.item }), (one.via = link.id);
    } else if (unsent.size && !posts && (isOpen || !topics.size)) {
      posts = true;
      const batch = [...unsent].slice(0, 8);
      let said;
      try {
        const body = JSON.stringify(batch.map(([id, { item }]) => ({ id, ...item })));
        said = await ask("v1/publish", { token: await token?.() }, body);
      } catch ({ code, message, end: { code: isFinal, retry_ms = isFinal ? 0 : 1000 } = {} }) {
        said = batch.map(() => ({ error: { code, message, retry_ms } }));
      }
      posts = false;
      setTimeout(pump, max(...batch.map(([id], index) => settle(id, said[index]))));
    }
  };

  // A WebSocket is told; the others begin anew, once for all that changes now.
  const follow = (topic) => {
    const link = links.get(machine.main?.id);
    if (link?.send) return "left" in link && link.follow(topic);
    renews ||= setTimeout(() => {
      renews = 0;
      if (!machine.main) step(machine.state ? "wake" : "start");
      else if (topics.size) step("again");
    });
  };

  const life = new AbortController();
  const on = (target, name, hear) => target?.addEventListener?.(name, hear, { signal: life.signal });
  on(globalThis, "online", () => step("wake", true));
  on(globalThis.document, "visibilitychange", () => document.hidden || step("wake"));

  const client = {
    get positions() {
      return Object.fromEntries([...topics].map(([topic, { pos }]) => [topic, pos]));
    },
    subscribe(topic, after, { presence } = {}) {
      if (topics.has(topic)) return;
      topics.set(topic, { pos: after || "latest", presence });
      follow(topic);
    },
    presence: async (topic) => ask(`v1/presence?${new URLSearchParams({ topic })}`, { token: await token?.() }),
    unsubscribe(topic) {
      if (topics.delete(topic)) follow(topic);
    },
    publish(topic, data, { event, key, id = `${random()}${random()}`, timeout_ms = 30000 } = {}) {
      return new Promise((resolve, reject) => {
        const fail = (code, message) => settle(id, { error: { code, message } });
        const timer = setTimeout(fail, timeout_ms, "timeout", `no receipt in ${timeout_ms} ms`);
        const payload = data instanceof Uint8Array ? { data_b64: btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join("")) } : { data };
        unsent.set(id, { item: { topic, event, key, ...payload }, timer, resolve, reject });
        if (unsent.size > 1000) fail("too_many", "1000 wait for receipts");
        pump();
      });
    },
    close() {
      life.abort();
      step("close");
    },
  };
  for (const [key, value] of Object.entries(wanted)) client.subscribe(...(wanted.map ? [value, ""] : [key, value]), options);
  return client;
}
