// The browser client (src/web/shardcast.js) in Node, against a real gateway and through a hostile proxy. Run by `tests/run clients`; the last line is
// `N passed, N failed`. `node client.mjs [WORD...]` runs those whose name has one of the words.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { WebSocket as NodeWebSocket, WebSocketServer } from "ws";
import { connect } from "../../src/web/shardcast.js";
import { runCases } from "./cases.mjs";
import { killGateway, startGateway, stopGateway, WAIT } from "./gateway.mjs";
import { Hostile } from "./hostile.mjs";

const COUNT = 30;
const ALL = ["ws", "sse", "poll"];
const limits = { reconnect_window_ms: 200, history_messages: 1000 };

// As in a browser: who does not listen for errors does not fall over them.
class WebSocket extends NodeWebSocket {
  constructor(...about) {
    super(...about);
    this.onerror = () => {};
  }
}

// A client, and all that it said.
class Listener {
  messages = [];
  gaps = [];
  states = [];
  presence = [];
  #waiting = [];

  constructor(port, options) {
    const note = (list) => (about) => {
      this[list].push(about);
      for (const check of this.#waiting.splice(0)) check();
    };
    this.client = connect(`http://127.0.0.1:${port}`, { WebSocket, onMessage: note("messages"), onGap: note("gaps"), onState: note("states"), onPresence: note("presence"), ...options });
  }

  // Until something is true, looked at whenever the client says something.
  async until(what, test) {
    const end = Date.now() + WAIT;
    while (!test(this)) {
      const left = end - Date.now();
      assert.ok(left > 0, `${what}: ${JSON.stringify({ states: this.states.slice(-5), messages: this.messages.slice(-5), gaps: this.gaps })}`);
      let timer;
      await new Promise((resolve) => {
        this.#waiting.push(resolve);
        timer = setTimeout(resolve, left);
      });
      clearTimeout(timer);
    }
  }

  on = (transport) => this.until(`open on ${transport}`, () => this.client.state === "open" && this.client.transport === transport);
  has = (count) => this.until(`${count} messages`, () => this.messages.length >= count);
  // What they call themselves who are in a topic, as far as it was told.
  there(topic) {
    const known = new Map();
    for (const { type, members } of this.presence.filter((said) => said.topic === topic)) {
      if (type === "presence") known.clear();
      for (const { conn, user } of members) type === "leave" ? known.delete(conn) : known.set(conn, user);
    }
    return [...known.values()];
  }

  told = (type, test = () => true) => this.until(`${type}`, () => this.presence.some((said) => said.type === type && test(said)));
  data = (topic) => this.messages.filter((message) => message.topic === topic).map(({ data }) => data);
}

// A gateway, a proxy and clients, and the end of all of them.
const within = (run, options = {}) => async () => {
  const gateway = await startGateway({ ...options, limits: { ...limits, ...options.limits } });
  const proxy = await new Hostile().start(gateway.port);
  const listeners = [];
  const listen = (about) => {
    listeners.push(new Listener(proxy.port, about));
    return listeners.at(-1);
  };
  try {
    await run({ gateway, proxy, listen });
  } catch (error) {
    console.log(gateway.log.slice(-2000));
    throw error;
  } finally {
    for (const { client } of listeners) client.close();
    proxy.stop();
    await stopGateway(gateway);
  }
};

async function publish(port, topic, body, query = "", headers = {}) {
  const answer = await fetch(`http://127.0.0.1:${port}/publish?topic=${topic}${query}`, { method: "POST", body, headers });
  assert.equal(answer.status, 200);
  return (await answer.json()).pos;
}

// As a transport of its own kind of server would: what a WebSocket was told, and what it answered.
async function scripted(talk) {
  const server = createServer((_, response) => response.writeHead(404).end());
  new WebSocketServer({ server, handleProtocols: () => "shardcast.v1.json" }).on("connection", (socket) => talk(socket));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { port: server.address().port, stop: () => (server.closeAllConnections(), server.close()) };
}

const cases = {
  // What was published is what arrives, whatever carries it.
  a_message_is_the_same_on_every_transport: within(async ({ gateway, listen }) => {
    const listeners = ALL.map((transport) => listen({ transports: [transport], topics: ["a", "größe & co"] }));
    for (const [index, listener] of listeners.entries()) await listener.on(ALL[index]);
    const texts = ["", "hello", " { no json", "two\nlines", "\n", '{"n":1}', '[1,"a\\nb"]', "5", "null", "日本語 🦀", "\ufeffmark", "data: x\n\nid: 7"];
    for (const text of texts) await publish(gateway.port, "a", text);
    await publish(gateway.port, encodeURIComponent("größe & co"), "named", "&event=price");
    const bytes = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    await publish(gateway.port, "a", bytes, "", { "Content-Type": "application/octet-stream" });
    const expected = texts.map((text) => (/^[[{]/.test(text) ? JSON.parse(text) : text));
    for (const listener of listeners) {
      await listener.has(texts.length + 2);
      assert.deepEqual(listener.data("a").slice(0, -1), expected, listener.client.transport);
      assert.deepEqual(listener.data("a").at(-1), bytes, listener.client.transport);
      const [{ event, pos }] = listener.messages.filter(({ topic }) => topic !== "a");
      assert.equal(event, "price");
      assert.equal(pos, listener.client.positions["größe & co"]);
    }
    const places = listeners.map(({ messages }) => messages.map(({ topic, pos }) => topic + pos).sort());
    assert.deepEqual(places[1], places[0]);
    assert.deepEqual(places[2], places[0]);
  }),

  receipts_come_on_every_transport_and_say_where_the_message_is: within(async ({ listen }) => {
    for (const transport of ALL) {
      const listener = listen({ transports: [transport], topics: [transport] });
      const sent = ["text", { n: 1 }, [1, 2], Uint8Array.of(0, 255), "", "last"];
      const receipts = await Promise.all(sent.map((data, index) => listener.client.publish(transport, data, { event: `e${index}` })));
      await listener.has(sent.length);
      assert.deepEqual(listener.data(transport), sent, "its own, in its order");
      assert.deepEqual(listener.messages.map(({ pos }) => pos), receipts.map(({ pos }) => pos));
      assert.deepEqual(listener.messages.map(({ event }) => event), sent.map((_, index) => `e${index}`));
      // Again under the same id: told so.
      const [first, again] = [await listener.client.publish(transport, "x", { id: "one" }), await listener.client.publish(transport, "x", { id: "one" })];
      assert.deepEqual([again.pos, again.duplicate], [first.pos, true]);
      // What the gateway does not take is said to who sent it, and the connection stays.
      await assert.rejects(listener.client.publish(transport, "x".repeat(70_000)), (error) => error.code !== undefined && /65536/.test(error.message));
      await assert.rejects(listener.client.publish("", "x"), (error) => /empty/.test(error.message));
      assert.equal((await listener.client.publish(transport, "still here")).duplicate, undefined);
      assert.equal(listener.client.state, "open");
    }
  }),

  a_refused_upgrade_is_a_stream_a_held_back_stream_is_polls_and_then_it_climbs: within(async ({ gateway, proxy, listen }) => {
    Object.assign(proxy, { ws: "refuse", sse: "buffer" });
    const began = Date.now();
    const listener = listen({ topics: ["a"], climb_ms: 300 });
    await listener.on("poll");
    assert.ok(Date.now() - began >= 2000, "a stream has 2 s to begin");
    await publish(gateway.port, "a", "polled");
    await listener.has(1);
    proxy.sse = "pass";
    await listener.on("sse");
    await publish(gateway.port, "a", "streamed");
    await listener.has(2);
    proxy.ws = "pass";
    await listener.on("ws");
    await publish(gateway.port, "a", "by socket");
    await listener.has(3);
    assert.deepEqual(listener.data("a"), ["polled", "streamed", "by socket"]);
    assert.ok(!listener.states.slice(listener.states.findIndex(({ state }) => state === "open")).some(({ state }) => state !== "open"), "it climbed without a loss");
    proxy.cut();
    Object.assign(proxy, { ws: "swallow", sse: "refuse" });
    await listener.on("poll");
    await publish(gateway.port, "a", "polled again");
    await listener.has(4);
    assert.deepEqual(listener.gaps, []);
  }),

  what_is_said_while_it_is_away_comes_on_whichever_transport_comes_next: within(async ({ gateway, proxy, listen }) => {
    const listener = listen({ topics: ["a", "b"], climb_ms: 200 });
    await listener.on("ws");
    const expected = { a: [], b: [] };
    const say = async (topic, text) => {
      expected[topic].push(text);
      await publish(gateway.port, topic, text);
    };
    for (const [round, [ws, sse, transport]] of [["refuse", "pass", "sse"], ["refuse", "refuse", "poll"], ["pass", "pass", "ws"]].entries()) {
      Object.assign(proxy, { ws, sse });
      proxy.cut();
      for (const topic of ["a", "b", "a"]) await say(topic, `${topic} ${round} away`);
      await listener.on(transport);
      for (const topic of ["b", "a"]) await say(topic, `${topic} ${round} there`);
    }
    await listener.has(expected.a.length + expected.b.length);
    for (const topic of ["a", "b"]) assert.deepEqual(listener.data(topic), expected[topic]);
    assert.deepEqual(listener.gaps, []);
  }),

  every_publication_is_there_once_and_in_order_however_often_it_is_cut: within(async ({ gateway, proxy, listen }) => {
    for (const transports of [["ws"], ["sse"], ["poll"], ALL]) {
      const topic = transports.join("-");
      const listener = listen({ transports, topics: [topic], climb_ms: 200 });
      const receipts = [];
      for (let number = 0; number < COUNT; number += 1) {
        receipts.push(listener.client.publish(topic, `n ${number}`));
        if (number % 10 === 5) proxy.cut(number % 2 === 0);
        if (number % 5 === 0) await receipts.at(-1);
      }
      await Promise.all(receipts);
      const answer = await fetch(`http://127.0.0.1:${gateway.port}/v1/history?topic=${topic}`);
      const kept = (await answer.json()).messages.map(({ data }) => data);
      const expected = Array.from({ length: COUNT }, (_, number) => `n ${number}`);
      assert.deepEqual(kept, expected, topic);
      await listener.has(COUNT);
      assert.deepEqual(listener.data(topic), expected, topic);
    }
  }),

  topics_come_and_go_and_each_has_its_place: within(async ({ gateway, proxy, listen }) => {
    for (const transport of ALL) {
      const [a, b, c] = ["a", "b", "c"].map((name) => `${transport}-${name}`);
      await publish(gateway.port, b, "before");
      const listener = listen({ transports: [transport], topics: [a] });
      await listener.client.publish(a, "a1");
      await listener.has(1);
      listener.client.subscribe(b, "earliest");
      listener.client.subscribe(c);
      await listener.client.publish(c, "c1");
      await listener.has(3);
      listener.client.unsubscribe(a);
      await publish(gateway.port, a, "unheard");
      proxy.cut();
      await listener.client.publish(b, "b2");
      await listener.has(4);
      assert.deepEqual([listener.data(a), listener.data(b), listener.data(c)], [["a1"], ["before", "b2"], ["c1"]], transport);
      assert.deepEqual(Object.keys(listener.client.positions), [b, c]);
      // All gone, and one again.
      listener.client.unsubscribe(b);
      listener.client.unsubscribe(c);
      await listener.client.publish(c, "to nobody");
      listener.client.subscribe(c);
      await listener.client.publish(c, "c3");
      await listener.until("c3", () => listener.data(c).includes("c3"));
    }
  }),

  another_visit_goes_on_where_the_first_one_was: within(async ({ gateway, listen }) => {
    const first = listen({ topics: ["a", "b"] });
    for (const topic of ["a", "b"]) await first.client.publish(topic, "seen");
    await first.has(2);
    const { positions } = first.client;
    first.client.close();
    for (const topic of ["a", "b"]) await publish(gateway.port, topic, "missed");
    for (const transport of ALL) {
      const second = listen({ transports: [transport], topics: { ...positions, c: "-5m" } });
      await second.has(2);
      assert.deepEqual([second.data("a"), second.data("b")], [["missed"], ["missed"]], transport);
    }
  }),

  a_gateway_that_lost_its_memory_is_one_gap_on_every_transport: within(async ({ gateway, proxy, listen }) => {
    const listeners = ALL.map((transport) => listen({ transports: [transport], topics: ["a", "b"] }));
    for (const [index, listener] of listeners.entries()) await listener.on(ALL[index]);
    const last = await publish(gateway.port, "a", "old");
    for (const listener of listeners) await listener.has(1);
    await killGateway(gateway);
    const next = await startGateway({ listen: gateway.port, limits });
    try {
      for (const listener of listeners) await listener.until("a gap", () => listener.gaps.some(({ topic }) => topic === "a"));
      await publish(next.port, "a", "new");
      for (const listener of listeners) {
        await listener.has(2);
        assert.deepEqual(listener.data("a"), ["old", "new"]);
        const gaps = listener.gaps.filter(({ topic }) => topic === "a");
        assert.deepEqual(gaps.map(({ from, reason }) => [from, reason]), [[last, "restart"]], listener.client.transport);
      }
    } finally {
      await stopGateway(next);
    }
    assert.equal(proxy.count("other"), 0);
  }),

  a_history_that_was_too_short_is_one_gap_and_the_rest_once: within(async ({ gateway, proxy, listen }) => {
    const listeners = ALL.map((transport) => listen({ transports: [transport], topics: ["a"] }));
    for (const [index, listener] of listeners.entries()) await listener.on(ALL[index]);
    await publish(gateway.port, "a", "0");
    for (const listener of listeners) await listener.has(1);
    Object.assign(proxy, { ws: "refuse", sse: "refuse", poll: "refuse" });
    proxy.cut();
    for (let number = 1; number <= 30; number += 1) await publish(gateway.port, "a", String(number));
    Object.assign(proxy, { ws: "pass", sse: "pass", poll: "pass" });
    for (const listener of listeners) {
      await listener.until("the newest", () => listener.data("a").at(-1) === "30");
      assert.deepEqual(listener.gaps.map(({ topic, reason }) => [topic, reason]), [["a", "too_old"]]);
      // The first message of all is number 0 and has the offset 1.
      const [from, to] = [listener.gaps[0].from, listener.gaps[0].to].map((pos) => Number(pos.split(".")[1]));
      assert.equal(from, 1);
      assert.ok(to > from && to <= 21, `${to}`);
      assert.deepEqual(listener.data("a").map(Number), [0, ...Array.from({ length: 31 - to }, (_, index) => to + index)]);
    }
  }, { limits: { history_messages: 10 } }),

  a_goodbye_says_when_to_come_back_and_is_obeyed: within(async ({ gateway, listen }) => {
    const listeners = ALL.map((transport) => listen({ transports: [transport], topics: ["a"] }));
    for (const [index, listener] of listeners.entries()) await listener.on(ALL[index]);
    const gone = stopGateway(gateway);
    const [ws, sse] = listeners;
    for (const listener of [ws, sse]) {
      await listener.until("told to wait", () => listener.states.some(({ state, code }) => state === "waiting" && (code === 1012 || code === 4503)));
      const told = listener.states.find(({ state }) => state === "waiting");
      assert.ok(told.retry_ms <= limits.reconnect_window_ms, JSON.stringify(told));
    }
    await gone;
    const next = await startGateway({ listen: gateway.port, limits });
    try {
      for (const [index, listener] of listeners.entries()) await listener.on(ALL[index]);
    } finally {
      await stopGateway(next);
    }
  }),

  what_cannot_be_is_the_end_and_is_said: within(async ({ proxy, listen }) => {
    for (const transport of ["ws", "sse"]) {
      const listener = listen({ transports: [transport, "poll"], topics: ["x".repeat(300)] });
      await listener.until("stopped", () => listener.client.state === "stopped");
      const { code, reason } = listener.states.at(-1);
      assert.deepEqual([code, /255/.test(reason)], [4400, true], reason);
      await assert.rejects(listener.client.publish("a", "x", { timeout_ms: 50 }), ({ code }) => code === "timeout");
    }
    assert.equal(proxy.count("poll"), 0);
  }),

  // Nobody checks tokens here yet: the server of this case does.
  a_token_is_asked_for_each_connection_and_anew_before_it_expires: async () => {
    const told = [];
    const server = await scripted((socket) => {
      const say = (about) => socket.send(JSON.stringify(about));
      socket.on("message", (data) => {
        const said = JSON.parse(data);
        if (said.token) told.push(`${said.type} ${said.token}`);
        if (said.type === "hello") say({ type: "welcome", conn: "1", ping_ms: 45_000, retry_ms: 10, max_bytes: 1000 });
        if (said.type === "subscribe") say({ type: "auth_expiring", in_ms: 1000 });
        if (said.type === "auth") told.length < 4 ? socket.close(4501, "retry=5") : socket.close(4401, "bad token");
      });
    });
    let tokens = 0;
    const listener = new Listener(server.port, { topics: ["a"], transports: ["ws"], token: async () => `t${++tokens}` });
    try {
      await listener.until("stopped", () => listener.client.state === "stopped");
      assert.deepEqual(told, ["hello t1", "auth t2", "hello t3", "auth t4"]);
      assert.equal(listener.states.at(-1).code, 4401);
    } finally {
      listener.client.close();
      server.stop();
    }
  },

  who_is_there_is_told_when_it_opens_on_every_transport_and_comes_and_goes_on_a_socket: within(async ({ proxy, listen }) => {
    const watch = (transport) => listen({ transports: [transport], topics: ["lobby"], presence: true, user: `${transport} 日本` });
    const sees = (listener, ...users) => listener.until(`${users} are there`, () => String(listener.there("lobby").sort()) === String(users.map((user) => `${user} 日本`)));
    const socket = watch("ws");
    await sees(socket, "ws");
    const stream = watch("sse");
    await sees(stream, "sse", "ws");
    await sees(socket, "sse", "ws");
    const polls = watch("poll");
    await sees(polls, "sse", "ws");
    // After a loss each is told anew. Who has been lost may still be there.
    const listeners = [socket, stream, polls];
    for (const listener of listeners) listener.presence.length = 0;
    proxy.cut();
    for (const listener of listeners) await listener.told("presence", ({ topic, scope, count, members }) => topic === "lobby" && scope === "node" && count === members.length);
    await sees(socket, "sse", "ws");
    stream.client.close();
    await sees(socket, "ws");
    assert.ok([stream, polls].every(({ presence }) => presence.every(({ type }) => type === "presence")));
    // Of one topic only, and no more when it is left.
    socket.client.subscribe("rooms.1", "latest", { presence: true });
    await socket.told("presence", ({ topic }) => topic === "rooms.1");
    socket.client.subscribe("rooms.2");
    await socket.client.publish("rooms.2", "there");
    socket.client.unsubscribe("rooms.1");
    assert.ok(socket.presence.every(({ topic }) => topic !== "rooms.2"));
    assert.deepEqual(await socket.client.presence("rooms.1").then(({ topic }) => topic), "rooms.1");
  }, { presence: ["lobby", "rooms.*"] }),

  a_topic_of_which_nobody_is_told_who_is_there_goes_on_without: within(async ({ gateway, proxy, listen }) => {
    for (const transport of ALL) {
      const listener = listen({ transports: [transport], topics: [transport], presence: true });
      for (const text of ["before", "after a loss"]) {
        await listener.told("error", ({ topic, code, message }) => topic === transport && code === "no_presence" && /operator/.test(message));
        await listener.on(transport);
        listener.presence.length = 0;
        await publish(gateway.port, transport, text);
        await listener.until(text, () => listener.data(transport).includes(text));
        proxy.cut();
      }
      await listener.told("error");
      await listener.on(transport);
      await assert.rejects(listener.client.presence(transport), ({ code, message }) => code === "no_presence" && /operator/.test(message));
      assert.deepEqual([listener.data(transport), listener.gaps], [["before", "after a loss"], []]);
    }
  }),

  many_messages_come_in_few_frames_unless_it_asks_not_to: within(async ({ gateway, proxy, listen }) => {
    const texts = Array.from({ length: 200 }, (_, number) => `${number}\u2028 {"n":\n}`);
    for (const [batch, isMany] of [[true, false], [false, true]]) {
      let frames = 0;
      class Counting extends WebSocket {
        constructor(...about) {
          super(...about);
          this.on("message", () => (frames += 1));
        }
      }
      const topic = `batch-${batch}`;
      const listener = listen({ transports: ["ws"], topics: [topic], batch, WebSocket: Counting });
      for (const round of [1, 2]) {
        await listener.on("ws");
        const body = JSON.stringify(texts.map((data) => ({ topic, data: `${round} ${data}` })));
        const before = frames;
        const answer = await fetch(`http://127.0.0.1:${gateway.port}/v1/publish`, { method: "POST", body });
        assert.equal(answer.status, 200);
        await listener.has(round * texts.length);
        assert.equal(frames - before >= texts.length, isMany, `${frames - before} frames`);
        listener.states.length = 0;
        proxy.cut();
        await listener.until("lost", () => listener.states.length > 0);
      }
      assert.deepEqual(listener.data(topic), [1, 2].flatMap((round) => texts.map((text) => `${round} ${text}`)));
      assert.deepEqual(listener.gaps, []);
    }
  }),

  // The server of this case says several things in a frame.
  a_frame_of_several_lines_is_heard_in_order_and_a_token_holds_none_of_them_up: async () => {
    const hellos = [];
    const server = await scripted((socket) => {
      const say = (...lines) => socket.send(lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
      const message = (number) => ({ type: "message", topic: "a", pos: `k.${number}`, data: `${number}\u2028\n` });
      socket.on("message", (text) => {
        const said = JSON.parse(text);
        if (said.type === "hello") {
          hellos.push(said);
          socket.send(JSON.stringify({ type: "welcome", conn: "1", ping_ms: 45_000, retry_ms: 1, max_bytes: 1000 }));
        }
        if (said.type === "subscribe") say({ type: "subscribed", id: "a", topic: "a", pos: "k.1", recovered: false, replayed: 0 }, message(2), { type: "auth_expiring", in_ms: 1000 }, message(3));
        if (said.type === "auth") say(message(4), { type: "bye", code: 4401, reason: said.token }, message(5));
        if (said.type === "auth") socket.close(4401, "bad token");
      });
    });
    try {
      for (const batch of [undefined, false]) {
        const listener = new Listener(server.port, { topics: ["a"], transports: ["ws"], batch, token: async () => "t" });
        await listener.until("stopped", () => listener.client.state === "stopped");
        listener.client.close();
        assert.deepEqual(listener.data("a"), [2, 3, 4, 5].map((number) => `${number}\u2028\n`));
        assert.equal(listener.states.find(({ state }) => state === "stopped").reason, "t");
      }
      assert.deepEqual(hellos, [true, false].map((batch) => ({ type: "hello", token: "t", batch })));
    } finally {
      server.stop();
    }
  },

  // As long as it was told last, and not as it was at first.
  a_window_that_is_told_anew_is_obeyed: async () => {
    const server = await scripted((socket) => {
      const say = (about) => socket.send(JSON.stringify(about));
      say({ type: "welcome", conn: "1", ping_ms: 45_000, retry_ms: 1e9, max_bytes: 1000 });
      socket.on("message", (data) => {
        const { type, topic } = JSON.parse(data);
        if (type !== "subscribe") return;
        say({ type: "subscribed", id: topic, topic, pos: "a.1", recovered: false, replayed: 0 });
        say({ type: "retry", retry_ms: 1 });
        setTimeout(() => socket.terminate(), 50);
      });
    });
    const listener = new Listener(server.port, { topics: ["a"], transports: ["ws"] });
    try {
      await listener.until("lost", () => listener.states.some(({ state }) => state === "waiting"));
      const { retry_ms } = listener.states.find(({ state }) => state === "waiting");
      assert.ok(retry_ms <= 500, `${retry_ms} ms`);
    } finally {
      listener.client.close();
      server.stop();
    }
  },

  // Topics whose places a stream of NATS gives, and others: their cursor says each epoch. The server of this case has them.
  topics_of_two_epochs_go_on_where_they_were: async () => {
    const asked = [];
    const places = { a: ["k.1", "k.2"], b: ["z.8", "z.9"], c: ["k.5", "k.6"] };
    const cursor = ([a, b, c]) => `${a},${b},${c}`;
    const server = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url, "http://a");
      const after = searchParams.get("after");
      asked.push(`${pathname} ${after}`);
      const isFirst = after === "latest";
      const message = (topic) => ({ topic, pos: places[topic][1], data: topic });
      if (pathname === "/poll") {
        if (!isFirst && after === cursor(["k.2", "z.9", "k.6"])) return; // nothing more
        response.setHeader("Content-Type", "application/json");
        const messages = isFirst ? [] : ["a", "b", "c"].map(message);
        return response.end(JSON.stringify({ messages, next: cursor(isFirst ? ["k.1", "z.8", "k.5"] : ["k.2", "z.9", "k.6"]), retry_ms: 1 }));
      }
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      const topics = Object.fromEntries(Object.entries(places).map(([topic, [first, last]]) => [topic, isFirst ? first : last]));
      response.write(`id: ${cursor(Object.values(topics))}\nevent: shardcast:open\ndata: ${JSON.stringify({ topics, retry_ms: 1 })}\n\n`);
      if (!isFirst) return;
      response.write(`id: k.1,z.9,k.5\ndata: b\n\nid: k.1,z.9,k.6\ndata: c\n\nid: k.2,z.9,k.6\ndata: a\n\n`);
      setTimeout(() => response.end(), 50);
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      for (const [transport, path] of [["sse", "/events"], ["poll", "/poll"]]) {
        asked.length = 0;
        const listener = new Listener(server.address().port, { topics: ["a", "b", "c"], transports: [transport] });
        await listener.has(3);
        for (const end = Date.now() + WAIT; !asked.includes(`${path} k.2,z.9,k.6`); ) {
          assert.ok(Date.now() < end, asked.join("; "));
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
        assert.equal(asked[0], `${path} latest`);
        assert.deepEqual(listener.messages.map(({ topic, pos, data }) => [topic, pos, data]).sort(), [["a", "k.2", "a"], ["b", "z.9", "b"], ["c", "k.6", "c"]], transport);
        assert.deepEqual(listener.client.positions, { a: "k.2", b: "z.9", c: "k.6" });
        listener.client.close();
      }
    } finally {
      server.closeAllConnections();
      server.close();
    }
  },

  a_publication_waits_for_its_receipt_or_its_time: within(async ({ proxy, listen }) => {
    const listener = listen({ transports: ["sse"], topics: ["a"] });
    await listener.on("sse");
    proxy.publish = "swallow";
    await assert.rejects(listener.client.publish("a", "late", { timeout_ms: 100 }), ({ code }) => code === "timeout");
    const many = Array.from({ length: 1002 }, () => listener.client.publish("a", "much"));
    for (const one of many) one.catch(() => {});
    await assert.rejects(many.at(-1), ({ code }) => code === "too_many");
    listener.client.close();
    await assert.rejects(many[0], ({ code }) => code === "closed");
  }),
};

await runCases(cases);
