// A proxy of the kinds that stand between browsers and gateways: it refuses upgrades or swallows them, holds back what does not end, and cuts.
import { createConnection, createServer } from "node:net";

export class Hostile {
  // What happens to each kind of request: "pass"; "refuse" (403); "swallow" (no answer ever); "buffer" (the answer's body is held back).
  ws = "pass";
  sse = "pass";
  poll = "pass";
  publish = "pass";
  // Method and path of every request.
  requests = [];
  #open = new Map();

  async start(target) {
    this.target = target;
    this.server = createServer((client) => this.#serve(client));
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    return this;
  }

  stop() {
    this.server.close();
    this.cut();
  }

  // Ends every connection, by a reset or in the middle of whatever it is.
  cut(isReset = true) {
    for (const [client, upstream] of this.#open) {
      upstream.destroy();
      isReset ? client.resetAndDestroy() : client.destroy();
    }
  }

  // Those that carry messages now, by kind.
  get carrying() {
    return [...this.#open.keys()].map((client) => client.kind).filter((kind) => kind === "ws" || kind === "sse" || kind === "poll");
  }

  count(kind) {
    return this.requests.filter((path) => kindOf(path.slice(path.indexOf(" ") + 1)) === kind).length;
  }

  #serve(client) {
    const upstream = createConnection(this.target, "127.0.0.1");
    this.#open.set(client, upstream);
    let held = false;
    client.on("data", (data) => {
      const request = /^([A-Z]+) (\/\S*) HTTP\/1\.1\r\n/.exec(data.toString("latin1"));
      if (request && client.kind !== "ws") {
        this.requests.push(`${request[1]} ${request[2]}`);
        client.kind = kindOf(request[2]);
        const does = this[client.kind] ?? "pass";
        held = does === "buffer";
        if (does === "swallow") return;
        if (does === "refuse") return void client.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone");
      }
      upstream.write(data);
    });
    upstream.on("data", (data) => {
      if (!held) return client.write(data);
      // The head may pass, what follows is kept for ever.
      const end = data.indexOf("\r\n\r\n");
      if (end >= 0) client.write(data.subarray(0, end + 4));
    });
    for (const [socket, other] of [[client, upstream], [upstream, client]]) {
      socket.on("error", () => other.destroy());
      socket.on("end", () => other.end());
      socket.on("close", () => {
        this.#open.delete(client);
        other.destroy();
      });
    }
  }
}

function kindOf(path) {
  const name = path.split("?")[0];
  return { "/ws": "ws", "/events": "sse", "/poll": "poll", "/publish": "publish", "/v1/publish": "publish" }[name] ?? "other";
}
