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
    if ((code >= 4400 && code < 4500) || [1000, 1002, 1007, 1009].includes(code)) return this.close(now, "stopped", { code, reason });
    const { since } = main;
    if (now - since >= 10000) this.fails = 0;
    this.hinted = retry_ms !== undefined;
    const backoff = this.dice() * min(20000, 500 * 2 ** this.fails++);
    // Was it the transport? Not if the server spoke; nor if nothing gets through, but who knows: every third time.
    if (!since && !this.hinted) this.level = unreachable && ++this.away % 3 ? 0 : (this.level + 1) % this.transports.length;
    const isSoon = (held && this.level) || now - this.woke < 5000;
    const wait = Math.round(retry_ms ?? (isSoon ? 0 : max(backoff, this.window * (since ? 1 : this.dice()))));
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

// Offsets grow, at any length; those of two epochs say nothing about each other.
const isAfter = (pos, last) => {
  const [[epoch, offset], [was, had]] = [pos, last].map((text) => text.split("."));
  return epoch !== was || offset.padStart(20) > had.padStart(20);
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
  const { WebSocket = globalThis.WebSocket, transports = ["ws", "sse", "poll"], climb_ms = 10000, topics: wanted = [] } = options;
  const base = new URL(url, globalThis.location?.href);
  base.pathname = base.pathname.replace(/\/?$/, "/");
  const topics = new Map(); // {after: where it begins, pos: where it is}
  const links = new Map(); // by the machine's ids
  const unsent = new Map(); // publications without a receipt
  const prefix = `${Date.now()}-${random()}-`;
  let count = 0;
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
        link.token = await options.token?.();
        if (links.has(id)) end = await ways[transport](link);
      } catch (error) {
        end = error instanceof Error ? { reason: error.message, unreachable: true } : error;
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

  // What the server says on every transport: a message, a gap, an announcement.
  const hear = ({ text, data_b64, ...said }) => {
    if (text) say("onAnnouncement", text);
    const at = topics.get(said.topic);
    const pos = said.pos ?? said.to;
    if (!at || (at.pos && said.reason !== "unknown" && !isAfter(pos, at.pos))) return;
    at.pos = pos;
    if (data_b64 !== undefined) said.data = Uint8Array.from(atob(data_b64), (char) => char.charCodeAt());
    say(said.to ? "onGap" : "onMessage", said);
  };
  // Where a topic begins, unless that is known.
  const place = (topic, pos) => {
    const at = topics.get(topic);
    if (at) at.pos ??= pos;
  };

  // A request of a link, or with a body one that publishes. Only the gateway's own refusal is final, and that of polls is about polls.
  const ask = async (path, { token, stop }, body) => {
    const answer = await fetch(new URL(path, base), {
      method: body ? "POST" : "GET",
      body,
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      credentials: options.credentials,
      cache: "no-store",
      signal: stop?.signal ?? AbortSignal.timeout(10000),
    });
    const { status } = answer;
    if (answer.ok) return path[0] === "e" ? answer.body : answer.json();
    const { error } = await answer.json().catch(() => ({}));
    const isFinal = error && status < 500 && !error.retry_ms && status !== 408 && (status !== 400 || path[0] !== "p");
    throw { ...error, code: isFinal ? 4000 + status : 0, reason: error?.message ?? `HTTP ${status}`, unreachable: status >= 500, held: !error };
  };

  // The answer to a poll.
  const heard = (names, { messages, next }) => {
    for (const { gap, announcement, ...said } of messages) hear({ ...said, ...gap, text: announcement });
    const [epoch, offsets] = next.split(".");
    offsets.split(",").forEach((offset, index) => offset && place(names[index], `${epoch}.${offset}`));
  };

  // The topics and where they are. One cursor says that for all: who has no place in its epoch asks for one first.
  const where = async (link) => {
    const from = ({ pos, after }) => (pos ? pos.split(".")[0] + "." : after);
    if (new Set([...topics.values()].map(from)).size > 1) {
      for (const [topic, at] of topics) heard([topic], await ask(`poll?${query([topic], at.pos ?? at.after)}&wait=0`, link));
    }
    const all = [...topics.values()];
    link.names = [...topics.keys()];
    return query(link.names, from(all[0]) + (all[0].pos ? all.map(({ pos }) => pos.split(".")[1]) : ""));
  };

  // Each uses a link until it ends, and says how it ended.
  const ways = {
    ws: (link) => new Promise((resolve) => {
      const socket = new WebSocket(new URL("ws", base).href.replace("http", "ws"), ["shardcast.v1.json"]);
      link.send = (type, about) => socket.send(JSON.stringify({ type, ...about }));
      link.ask = () => link.send("ping");
      link.follow = (topic) => {
        const at = topics.get(topic);
        link.send(at ? "subscribe" : "unsubscribe", { id: topic, topic, after: at?.pos ?? at?.after });
      };
      link.stop.signal.onabort = () => socket.close();
      socket.onopen = () => link.send("hello", { token: link.token });
      socket.onclose = ({ code, reason }) => {
        resolve({ code, reason, retry_ms: /retry=(\d+)/.exec(reason)?.[1], ...link.bye });
      };
      socket.onmessage = async ({ data }) => {
        if (!links.has(link.id)) return;
        const said = JSON.parse(data);
        const { type, id } = said;
        step("heard", link.id);
        if (type === "subscribed") place(said.topic, said.pos);
        if (type === "welcome") {
          link.window = random() * said.retry_ms; // it is that of all clients; the other transports give each its own time
          link.left = topics.size + 1;
          for (const topic of topics.keys()) link.follow(topic);
        }
        // It is open when it knows where it is.
        if (type === "welcome" || type === "subscribed") --link.left || step("opened", link.id, link.window);
        else if (type === "ok") settle(id, said);
        else if (type === "error" && topics.has(id)) resolve({ ...said, code: said.retry_ms ? 0 : 4400, reason: said.message });
        else if (type === "error") setTimeout(pump, settle(id, { error: said }));
        else if (type === "auth_expiring") link.send("auth", { token: await options.token?.() });
        else if (type === "bye") link.bye = said;
        else hear(said);
      };
    }),

    async sse(link) {
      const body = await ask(`events?${await where(link)}`, link);
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      let last = []; // offsets
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
            const [, name, value] = /^(\w*): ?(.*)/s.exec(line) ?? [];
            fields[name] = name === "data" && fields.data !== undefined ? `${fields.data}\n${value}` : value;
          }
          const { id, event, data, retry } = fields;
          const type = /^shardcast:(.*)/.exec(event)?.[1];
          const said = type && JSON.parse(data);
          if (retry) machine.window = +retry;
          if (type === "open") {
            step("opened", link.id, said.retry_ms);
            last = link.names.map((topic) => said.topics[topic].split(".")[1]);
            for (const topic of link.names) place(topic, said.topics[topic]);
          } else if (type === "auth") step("again");
          else if (type === "bye") link.bye = said;
          else if (type) {
            hear(said);
            if (said.to) last[link.names.indexOf(said.topic)] = said.to.split(".")[1];
          } else if (id) {
            // The topic is the one whose offset has changed.
            const [epoch, offsets] = id.split(".");
            const index = offsets.split(",").findIndex((offset, index) => offset !== last[index]);
            last = offsets.split(",");
            hear({ topic: link.names[index], pos: `${epoch}.${last[index]}`, event, ...(fields[""] ? { data_b64: data } : { data: parse(data) }) });
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
      if (error) one.reject(Object.assign(new Error(error.message), { code: error.code }));
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
        said = await ask("v1/publish", { token: await options.token?.() }, body);
      } catch ({ code, reason, retry_ms = code >= 4400 ? 0 : 1000 }) {
        said = batch.map(() => ({ error: { code, message: reason, retry_ms } }));
      }
      posts = false;
      setTimeout(pump, max(...batch.map(([id], index) => settle(id, said[index]))));
    }
  };

  // A WebSocket is told; the others begin anew, once for all that changes now.
  const follow = (topic) => {
    const link = links.get(machine.main?.id);
    if (link?.send) return link.window >= 0 && link.follow(topic);
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
    subscribe(topic, after) {
      if (topics.has(topic)) return;
      topics.set(topic, /\./.test(after) ? { pos: after } : { after: after || "latest" });
      follow(topic);
    },
    unsubscribe(topic) {
      if (topics.delete(topic)) follow(topic);
    },
    publish(topic, data, { event, key, id = prefix + count++, timeout_ms = 30000 } = {}) {
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
  for (const [key, value] of Object.entries(wanted)) client.subscribe(...(wanted.map ? [value] : [key, value]));
  return client;
}
