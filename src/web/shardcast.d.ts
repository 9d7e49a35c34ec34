/** The browser client of shardcast. How to use it, and what happens when: docs/browser.md. */

/** What carries the messages. */
export type Transport = "ws" | "sse" | "poll";

/** `stopped` is for good: the server said that something must change first. `closed`: you called `close()`. */
export type State = "connecting" | "open" | "waiting" | "stopped" | "closed";

export interface Message {
  topic: string;
  /** Where it is in its topic. Opaque: keep it, send it back. */
  pos: string;
  /** A JSON object or array as published, any other text as a string, a binary message as bytes. */
  data: unknown;
  /** The name that the publisher gave it. */
  event?: string;
  key?: string;
}

/** Messages that were published and will not come. */
export interface Gap {
  topic: string;
  /** What you have; null when that says nothing. */
  from: string | null;
  /** What comes next is after it. */
  to: string;
  reason: "too_old" | "restart" | "unknown" | "slow";
}

/** A connection in a topic. */
export interface Member {
  conn: string;
  /** What it calls itself; nobody has checked it. */
  user?: string;
}

/** Who is in a topic, on the gateway that says so. */
export interface Present {
  topic: string;
  count: number;
  /** Left out where they are many. */
  members?: Member[];
  scope: "node";
}

/**
 * `presence` is all who are there; `join` and `leave` are those who have come and gone since; what they tell applies in order. `error` says why nobody is
 * told, such as `no_presence`.
 */
export type PresenceEvent =
  | ({ type: "presence" | "join" | "leave" } & Present)
  | { type: "error"; topic: string; code?: string; message: string };

export interface Status {
  state: State;
  /** The one in use, or the next one to be tried. */
  transport: Transport;
  /** Why it waits or has stopped: a close code, as in docs/protocol.md section 7; 0 when there was none. */
  code?: number;
  reason?: string;
  /** When it tries again. */
  retry_ms?: number;
}

export interface Receipt {
  pos: string;
  /** Members of the topic on that gateway. */
  subscribers: number;
  /** It was sent twice, after a loss, and is published once. */
  duplicate?: boolean;
}

export interface Options {
  /**
   * Names, or names with where to begin: a position (`client.positions` of an earlier visit), `latest` (the default), `earliest`, or how far back,
   * as in `-5m`.
   */
  topics?: string[] | Record<string, string | null | undefined>;
  /** Whether it is told who is in these topics. */
  presence?: boolean;
  /** What this client calls itself where it is told who is there: 1 to 128 bytes. */
  user?: string;
  onMessage?(message: Message): void;
  onGap?(gap: Gap): void;
  onPresence?(event: PresenceEvent): void;
  onState?(status: Status): void;
  /** What the operator says to everybody. */
  onAnnouncement?(text: string): void;
  /** Asked for each connection, and again before what it gave expires. */
  token?(): string | undefined | Promise<string | undefined>;
  /** Which to use, the best first; all three unless said. */
  transports?: Transport[];
  /** Whether messages that come close together may come in one frame, up to 10 ms later, which costs a page much less; `true` unless said. */
  batch?: boolean;
  /** How soon a better transport is tried again; 10,000 unless said, doubled with each failure up to 5 minutes. */
  climb_ms?: number;
  /** Of `fetch`; `include` sends cookies to another origin. */
  credentials?: RequestCredentials;
  /** Where the runtime has none of its own. */
  WebSocket?: unknown;
}

export interface PublishOptions {
  /** The name of the event. */
  event?: string;
  /** What it replaces for slow readers. */
  key?: string;
  /** The idempotency key; made unless given. */
  id?: string;
  /** How long to try; 30,000 unless said. */
  timeout_ms?: number;
}

export interface Client {
  readonly state: State;
  readonly transport: Transport;
  /** Where it is in each topic, or begins: give it to `topics` to go on from there. */
  readonly positions: Record<string, string>;
  subscribe(topic: string, after?: string, options?: { presence?: boolean }): void;
  unsubscribe(topic: string): void;
  /**
   * Text, bytes, or what JSON.stringify takes. The promise is the receipt; it is rejected with an Error whose `code` says why: one of the gateway's
   * (docs/protocol.md section 11), `timeout`, `too_many` (1,000 wait), `stopped` or `closed`.
   */
  publish(topic: string, data: unknown, options?: PublishOptions): Promise<Receipt>;
  /** Who is in a topic, asked by HTTP; rejected with an Error whose `code` says why, as `no_presence`. */
  presence(topic: string): Promise<Present>;
  close(): void;
}

/** `url` is the gateway's, with the path under which a proxy has it. */
export function connect(url: string | URL, options?: Options): Client;

/** What `connect` decides by; without clock and network, for tests. */
export class Machine {
  constructor(
    act: (what: "open" | "drop" | "ask" | "tell", about: number | Status, transport?: Transport) => void,
    options: { transports: Transport[]; climb_ms?: number; dice?: () => number },
  );
  /** When to call `tick`. */
  readonly due: number;
  start(now: number): void;
  opened(now: number, id: number, window?: number): void;
  heard(now: number, id: number): void;
  lost(now: number, id: number, end?: { code?: number; reason?: string; retry_ms?: number; unreachable?: boolean }): void;
  tick(now: number): void;
  wake(now: number, isNew?: boolean): void;
  again(now: number): void;
  close(now: number): void;
}
