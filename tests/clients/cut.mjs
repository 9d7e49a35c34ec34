// A TCP proxy in front of the gateway that cuts a stream of events off after so many bytes of it. Other requests pass, and so does a stream's head: an
// EventSource to which only a part of it came takes it for another type, and gives up for good.
import { createConnection, createServer } from "node:net";

export class Cut {
  // The Last-Event-ID of each request for a stream, undefined without one; method and path of all requests.
  streams = [];
  requests = [];
  cuts = 0;
  #left;
  #isReset = false;
  #isOut = false;
  #happened;
  #open = new Map();

  async start(target) {
    this.server = createServer((client) => this.#serve(client, target));
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    return this;
  }

  stop() {
    this.server.close();
    for (const [client, upstream] of this.#open) [client, upstream].forEach((socket) => socket.destroy());
  }

  // Lets `count` more bytes of streams through. Then they are reset, or end, and none gets through until `mend`.
  after(count, isReset) {
    this.#left = count;
    this.#isReset = isReset;
    return new Promise((resolve) => (this.#happened = resolve));
  }

  mend() {
    this.#isOut = false;
  }

  #serve(client, target) {
    const upstream = createConnection(target, "127.0.0.1");
    this.#open.set(client, upstream);
    let isStream = false;
    let isInHead = false;
    client.on("data", (data) => {
      const head = data.toString("latin1");
      for (const [, method, path] of head.matchAll(/^([A-Z]+) (\/\S*) HTTP\/1\.1\r$/gm)) this.requests.push(`${method} ${path}`);
      if (head.startsWith("GET /events")) {
        isStream = isInHead = true;
        this.streams.push(/^last-event-id: (.*)\r$/im.exec(head)?.[1]);
        if (this.#isOut) return this.#end(client, true);
      }
      upstream.write(data);
    });
    upstream.on("data", (data) => {
      if (!isStream || this.#left === undefined) {
        isInHead = isInHead && !data.includes("\r\n\r\n");
        return client.write(data);
      }
      const end = isInHead ? data.indexOf("\r\n\r\n") : -4;
      const head = end < 0 && isInHead ? data.length : end + 4;
      isInHead = isInHead && end < 0;
      const passes = data.subarray(0, head + this.#left);
      this.#left -= passes.length - Math.min(head, passes.length);
      if (this.#left > 0) return client.write(passes);
      this.#left = undefined;
      this.#isOut = true;
      upstream.removeAllListeners("data");
      // What came before the cut arrives: a reset would overtake it.
      client.write(passes, () => setTimeout(() => this.#cut(client), 10));
    });
    for (const [socket, other] of [[client, upstream], [upstream, client]]) {
      socket.on("error", () => other.destroy());
      socket.on("end", () => other.end());
      socket.on("close", () => this.#open.delete(client));
    }
  }

  #cut(client) {
    this.cuts += 1;
    this.#end(client, this.#isReset);
    this.#happened();
  }

  #end(client, isReset) {
    this.#open.get(client)?.destroy();
    isReset ? client.resetAndDestroy() : client.end();
  }
}
