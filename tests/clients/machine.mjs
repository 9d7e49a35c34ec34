// What the browser client decides (`Machine` of src/web/shardcast.js), by a fake clock: which transport, when to come back, when to stop. Run by
// `tests/run clients`; the last line is `N passed, N failed`. `node machine.mjs [WORD...]` runs those whose name has one of the words.
import assert from "node:assert/strict";
import { Machine } from "../../src/web/shardcast.js";
import { runCases } from "./cases.mjs";

// A machine with its clock. `dice` is what its random numbers are.
class World {
  now = 1_000_000;
  said = [];
  open = new Map();

  constructor({ dice = 0.5, ...options } = {}) {
    this.dice = dice;
    const act = (what, about, transport) => {
      this.said.push(what === "tell" ? about.state : `${what} ${transport ?? this.open.get(about)}`);
      if (what === "open") this.open.set(about, transport);
      if (what === "drop") this.open.delete(about);
      if (what === "tell") this.state = about;
    };
    this.machine = new Machine(act, { transports: ["ws", "sse", "poll"], dice: () => this.dice, ...options });
  }

  do(input, ...about) {
    this.machine[input](this.now, ...about);
    return this.took();
  }

  // Lets time pass, tick by tick as a timer would, and says what happened.
  pass(ms) {
    const end = this.now + ms;
    for (let ticks = 0; this.machine.due <= end; ticks += 1) {
      assert.ok(ticks < 1000, "it ticks without end");
      this.now = Math.max(this.now, this.machine.due);
      this.machine.tick(this.now);
    }
    this.now = end;
    return this.took();
  }

  // Nothing runs for so long, then the timer that was due long ago.
  sleep(ms) {
    assert.ok(this.machine.due < Infinity, "no timer, no way to notice that it slept");
    this.now += ms;
    this.machine.tick(this.now);
    return this.took();
  }

  took() {
    this.machine.due; // as who arms a timer asks for it
    return this.said.splice(0);
  }

  get main() {
    return this.machine.main?.id;
  }

  get probe() {
    return this.machine.probe?.id;
  }

  // Open on this transport, told to leave the server alone for `window` after a loss.
  on(transport, window = 8000) {
    this.machine.level = this.machine.transports.indexOf(transport);
    this.do("start");
    this.do("opened", this.main, window);
    return this;
  }

  // How long it waits after this end.
  waitAfter(end) {
    this.open.delete(this.main);
    this.do("lost", this.main, end);
    assert.equal(this.state.state, "waiting");
    const left = this.machine.retryAt - this.now;
    assert.equal(this.state.retry_ms, left, "what it tells is what it does");
    return left;
  }

  // The next attempt, at once.
  next() {
    this.now = this.machine.retryAt;
    this.machine.tick(this.now);
    this.took();
    return this.state.transport;
  }
}

const cases = {
  it_begins_with_the_best_transport_and_is_open_when_the_server_has_spoken() {
    const world = new World();
    assert.deepEqual(world.do("start"), ["open ws", "connecting"]);
    assert.deepEqual(world.do("opened", world.main, 8000), ["open"]);
    assert.deepEqual([world.state.state, world.state.transport], ["open", "ws"]);
  },

  a_socket_that_never_opened_is_followed_by_a_stream_and_that_by_polls() {
    const world = new World();
    world.do("start");
    for (const transport of ["sse", "poll", "ws"]) {
      world.waitAfter({ code: 1006 });
      assert.equal(world.next(), transport);
    }
  },

  a_first_word_that_does_not_come_is_waited_for_5_seconds_on_a_socket_and_2_on_a_stream() {
    const world = new World();
    world.do("start");
    assert.deepEqual(world.pass(4999), []);
    assert.deepEqual(world.pass(1), ["drop ws", "waiting"]);
    assert.equal(world.next(), "sse");
    assert.deepEqual(world.pass(1999), []);
    // A proxy holds it back: there is nothing to wait for.
    assert.deepEqual(world.pass(1), ["drop sse", "waiting", "open poll", "connecting"]);
  },

  what_a_proxy_refuses_is_followed_by_the_next_at_once_but_not_in_a_circle() {
    const world = new World();
    world.on("sse");
    world.waitAfter({});
    world.next();
    assert.equal(world.waitAfter({ held: true }), 0);
    assert.equal(world.next(), "poll");
    assert.ok(world.waitAfter({ held: true }) > 0);
    const alone = new World({ transports: ["sse"] });
    alone.do("start");
    assert.ok(alone.waitAfter({ held: true }) > 0);
  },

  a_socket_that_never_opened_comes_back_within_the_window() {
    for (const dice of [0, 0.25, 0.999]) {
      const world = new World({ dice }).on("ws", 8000);
      world.waitAfter({ code: 1012, reason: "retry=10", retry_ms: 10 });
      assert.equal(world.next(), "ws");
      assert.equal(world.waitAfter({ code: 1006 }), Math.round(8000 * dice));
    }
  },

  a_loss_without_a_goodbye_waits_what_the_server_had_said_beforehand() {
    const world = new World().on("sse", 6281);
    assert.equal(world.waitAfter({}), 6281);
  },

  a_hint_wins_over_everything() {
    for (const retry_ms of [0, 7, 45_000]) {
      const world = new World().on("ws");
      assert.equal(world.waitAfter({ code: 1012, retry_ms }), retry_ms);
      assert.equal(world.next(), "ws");
      assert.equal(world.waitAfter({ code: 4503, retry_ms }), retry_ms, "not opened either");
      assert.equal(world.next(), "ws", "whoever spoke got through");
    }
  },

  the_backoff_doubles_from_half_a_second_to_20_seconds_with_full_jitter() {
    for (const dice of [0, 0.5, 1]) {
      const world = new World({ dice });
      world.do("start");
      const waits = Array.from({ length: 8 }, () => {
        const wait = world.waitAfter({ code: 1006 });
        world.next();
        return wait;
      });
      assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000].map((ms) => ms * dice));
    }
  },

  the_backoff_begins_anew_only_after_10_seconds_of_being_open() {
    for (const [up, wait] of [[9999, 8000], [10_000, 500]]) {
      const world = new World({ dice: 1 });
      world.do("start");
      for (let fail = 0; fail < 4; fail += 1) {
        world.waitAfter({ code: 1006, unreachable: true });
        world.next();
      }
      world.do("opened", world.main, 0);
      world.pass(up);
      assert.equal(world.waitAfter({}), wait, `${up} ms open`);
    }
  },

  what_says_that_something_must_change_stops_it_for_good() {
    for (const code of [4400, 4401, 4403, 4409, 4420, 4499, 1002, 1007, 1009, 1000]) {
      const world = new World().on("ws");
      world.do("lost", world.main, { code, reason: "why" });
      assert.deepEqual([world.state.state, world.state.code, world.state.reason], ["stopped", code, "why"]);
      assert.equal(world.machine.due, Infinity);
      assert.deepEqual([...world.do("wake", true), ...world.pass(3_600_000)], []);
    }
  },

  everything_else_comes_back() {
    for (const code of [0, 1001, 1005, 1006, 1011, 1012, 1013, 4500, 4501, 4503, 4504, 4508, 4510, 4529]) {
      const world = new World().on("ws");
      world.waitAfter({ code });
      assert.equal(world.next(), "ws");
    }
  },

  a_lost_connection_is_made_anew_on_the_transport_that_worked() {
    const world = new World().on("poll");
    world.waitAfter({ unreachable: true });
    assert.equal(world.next(), "poll");
  },

  when_not_even_http_gets_through_it_does_not_fall_to_polls_for_that() {
    const world = new World();
    world.do("start");
    const tried = Array.from({ length: 6 }, () => {
      world.waitAfter(world.state.transport === "ws" ? { code: 1006 } : { unreachable: true });
      return world.next();
    });
    assert.deepEqual(tried, ["sse", "ws", "sse", "ws", "sse", "poll"], "now and then all the same");
  },

  it_climbs_by_trying_the_better_ones_in_turn_later_each_time() {
    const world = new World().on("poll");
    const tries = [];
    for (let count = 0; count < 9; count += 1) {
      const began = world.now;
      while (world.probe === undefined) {
        world.pass(500);
        world.do("heard", world.main);
      }
      tries.push([world.open.get(world.probe), world.now - began]);
      world.do("lost", world.probe, { code: 1006 });
    }
    assert.deepEqual(tries, [["ws", 10_000], ["sse", 20_000], ["ws", 40_000], ["sse", 80_000], ["ws", 160_000], ["sse", 300_000], ["ws", 300_000], ["sse", 300_000], ["ws", 300_000]]);
    assert.equal(world.state.transport, "poll", "it was open all the time");
  },

  it_changes_over_only_when_the_better_one_has_spoken() {
    const world = new World().on("sse");
    world.took();
    world.do("heard", world.main);
    assert.deepEqual(world.pass(10_000), ["open ws"]);
    const [old, probe] = [world.main, world.probe];
    assert.deepEqual(world.do("opened", probe, 5000), ["drop sse", "open"]);
    assert.deepEqual([world.main, world.probe, world.state.transport], [probe, undefined, "ws"]);
    assert.deepEqual(world.do("lost", old, {}), [], "the old one is of no interest");
    assert.deepEqual(world.pass(20_000), [], "nothing is better");
  },

  a_better_one_that_is_silent_is_given_up_and_the_connection_stays() {
    const world = new World().on("sse");
    world.pass(10_000);
    world.do("heard", world.main);
    assert.deepEqual(world.pass(15_000), ["drop ws"]);
    assert.deepEqual([world.state.state, world.state.transport], ["open", "sse"]);
  },

  when_the_connection_is_lost_while_a_better_one_is_tried_that_one_may_win() {
    const world = new World().on("sse", 8000);
    world.pass(10_000);
    world.waitAfter({});
    world.took();
    assert.deepEqual(world.do("opened", world.probe), ["open"]);
    assert.deepEqual([world.state.transport, world.machine.retryAt], ["ws", Infinity]);
  },

  silence_is_asked_about_and_then_given_up() {
    const world = new World().on("ws", 0);
    assert.deepEqual(world.pass(27_999), []);
    assert.deepEqual(world.pass(1), ["ask ws"]);
    assert.deepEqual(world.pass(11_999), []);
    world.do("heard", world.main);
    assert.deepEqual(world.pass(27_999), []);
    assert.deepEqual(world.pass(1 + 12_000), ["ask ws", "drop ws", "waiting"]);
  },

  back_from_sleep_a_socket_is_asked_and_if_silent_replaced_at_once() {
    const world = new World().on("ws", 8000);
    assert.deepEqual(world.sleep(3_600_000), ["ask ws"]);
    assert.deepEqual(world.pass(3000), ["drop ws", "waiting", "open ws", "connecting"]);
  },

  back_from_sleep_a_socket_that_answers_is_kept() {
    const world = new World().on("ws", 8000);
    assert.deepEqual(world.sleep(3_600_000), ["ask ws"]);
    world.do("heard", world.main);
    assert.deepEqual(world.pass(20_000), []);
  },

  back_from_sleep_a_loss_that_is_noticed_only_now_is_no_reason_to_wait() {
    const world = new World().on("ws", 8000);
    world.sleep(3_600_000);
    assert.equal(world.waitAfter({ code: 1006 }), 0);
    assert.equal(world.next(), "ws");
    assert.ok(world.waitAfter({ code: 1006 }) > 0, "but once only");
  },

  back_from_sleep_a_stream_without_its_comments_is_replaced_at_once() {
    const world = new World().on("sse", 8000);
    assert.deepEqual(world.sleep(3_600_000), ["drop sse", "waiting", "open sse", "connecting"]);
  },

  seen_again_it_does_not_go_on_waiting_unless_the_server_said_so() {
    const world = new World().on("ws", 8000);
    world.waitAfter({ code: 1006 });
    world.do("wake", false);
    assert.deepEqual(world.pass(0), ["open ws", "connecting"]);
    world.waitAfter({ code: 4503, retry_ms: 5000 });
    world.took();
    world.do("wake", false);
    assert.deepEqual(world.pass(4999), []);
    assert.deepEqual(world.pass(1), ["open ws", "connecting"]);
  },

  seen_again_an_open_stream_that_was_heard_of_lately_is_left_alone() {
    const world = new World().on("sse");
    world.took();
    world.pass(9000);
    world.do("wake", false);
    assert.deepEqual(world.pass(900), []);
  },

  the_network_is_back_every_connection_is_made_anew_at_once() {
    for (const transport of ["ws", "sse", "poll"]) {
      const world = new World().on(transport, 8000);
      world.took();
      world.do("wake", true);
      assert.deepEqual(world.pass(0), [`drop ${transport}`, "waiting", `open ${transport}`, "connecting"]);
    }
  },

  closed_it_does_nothing_more() {
    const world = new World().on("sse");
    world.pass(10_000);
    world.took();
    assert.deepEqual(world.do("close"), ["drop sse", "drop ws", "closed"]);
    assert.deepEqual([...world.do("wake", true), ...world.pass(3_600_000)], []);
  },

  other_topics_are_a_new_connection_on_the_same_transport() {
    const world = new World().on("sse");
    world.took();
    assert.deepEqual(world.do("again"), ["drop sse", "open sse", "connecting"]);
  },
};

await runCases(cases);
