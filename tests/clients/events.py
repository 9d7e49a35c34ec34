"""Event streams with readers that people use: cut off at random points, told of gaps and good-byes, kept waiting for a place."""

import asyncio
import base64
import functools
import json

import websockets.asyncio.client as ws

import gateway as harness
from common import dice, free_port, limits, publish, publisher
from cut import Cut
from readers import NAMES, READERS, EventSource, Script

ROUNDS = 16
ODD_TEXTS = [
    "",
    " begins with a space",
    "two\nlines",
    "\n",
    "cr\rlf\nboth\r\nend\r\n",
    "a\n\nevent: shardcast:bye\ndata: {}\n\n",
    "a\r\rid: z.9\r\r",
    "\r\n:\r\nretry: 1\r\n\r\n",
    "nul \0, tab \t, escape \x1b",
    "\ufeffmark of byte order, and what some take for line ends: \x0b \x0c \x1c \x85 \u2028 \u2029",
    "größe κόσμε 日本語 🦀",
    '{"json": ["as", "it is"]}',
]


@limits(reconnect_window_ms=200, history_messages=1000)
async def a_reader_comes_back_through_cuts_and_has_everything_once(reader, gateway):
    """Cut inside an event or anywhere in a burst, by a reset or a plain end; more is published while it is away, and while it catches up."""
    random = dice(reader.name)
    script = Script("a", "b")
    number = 0

    async def say(client, sizes):
        nonlocal number
        for size in sizes:
            topic = random.choice(script.topics)
            # Lines, and letters of two to four bytes: cuts fall between and into them.
            text = f"{topic} {number}\n" + "".join(random.choices("x\né本🦀", k=size))
            script.published(topic, text, await publish(client, topic, text))
            number += 1

    async with Cut(gateway.port) as cut, publisher(gateway) as client, reader(cut.http("/events?topic=a&topic=b")) as source:
        await script.opens(source)
        for turn in range(ROUNDS):
            inside = turn % 2 == 0
            if inside or random.random() < 0.5:
                await script.hears(source)
            sizes = [random.randrange(200, 8000)] if inside else [random.randrange(300) for _ in range(random.randrange(5, 25))]
            # Every character is at least one byte, so the cut is before the last byte of what is said now.
            cut.after(random.randrange(1, sum(sizes) + 1), reset=not reader.bears_half_events or random.random() < 0.6)
            await say(client, sizes)
            await cut.happened()
            await say(client, [random.randrange(100) for _ in range(random.randrange(8))])
            cut.mend()
        await script.hears(source)
        await script.is_silent(source)
        assert cut.cuts == ROUNDS
        again = cut.heads[1:]
        assert len(again) >= ROUNDS and all("\r\nlast-event-id: " in head.lower() for head in again), again
        assert script.opened > 1 and source.errors >= ROUNDS, (script.opened, source.errors)


async def names_lines_and_odd_bytes_arrive_as_they_are(reader, gateway):
    """On a stream of one topic, which is sent what all have in common, and on one of two, which has ids of its own."""
    for topics in [("a",), ("a", "b")]:
        script = Script(*topics)
        url = gateway.http("/events?" + "&".join(f"topic={topic}" for topic in topics))
        async with publisher(gateway) as client, reader(url) as source, ws.connect(gateway.url("/ws?room=a&echo=0"), max_queue=None) as chat:
            await script.opens(source)
            offset = int(script.cursor().split(".")[1].split(",")[0])
            for number, text in enumerate(ODD_TEXTS):
                name = NAMES[number % len(NAMES)] if number % 2 else None
                named = {"event": name} if name else {}
                script.published("a", text, await publish(client, "a", text, **named), name or "message")
                offset += 1
            for data in [b"", b"\n\n", bytes(range(256))]:
                script.published("a", base64.b64encode(data).decode(), await publish(client, "a", data))
                offset += 1
            # The same from a WebSocket, which is not told positions: they count on.
            epoch = script.cursor().split(".")[0]
            for text in ODD_TEXTS:
                await chat.send(text)
                offset += 1
                script.published("a", text, f"{epoch}.{offset}")
            await script.hears(source)
            await script.is_silent(source)


@limits(reconnect_window_ms=200, history_messages=8)
async def an_outrun_history_is_one_gap(reader, gateway):
    async with Cut(gateway.port) as cut, publisher(gateway) as client, reader(cut.http("/events?topic=a&topic=b")) as source:
        script = Script("a", "b")
        await script.opens(source)
        script.published("a", "before", await publish(client, "a", "before"))
        await script.hears(source)
        cut.after(0)
        positions = [await publish(client, "a", f"missed {number}") for number in range(50)]
        await publish(client, "b", "not missed")
        cut.mend()
        heard = {"a": [], "b": []}
        gaps = []
        opened = False
        while not (opened and heard["b"] and heard["a"] and heard["a"][-1] == "missed 49"):
            event = await source.event()
            if event["name"] == "shardcast:open":
                opened = True
            elif event["name"] == "shardcast:gap":
                assert not heard["a"], f"{event} after {heard}"
                gaps.append(json.loads(event["data"]))
            else:
                heard["b" if event["data"] == "not missed" else "a"].append(event["data"])
        kept = len(heard["a"])
        assert 8 <= kept <= 9, f"8 messages are kept, an eighth more at times: {kept}"
        assert heard["a"] == [f"missed {number}" for number in range(50 - kept, 50)] and heard["b"] == ["not missed"], heard
        first_missed = int(positions[0].split(".")[1])
        epoch = positions[0].split(".")[0]
        assert gaps == [{"topic": "a", "from": f"{epoch}.{first_missed - 1}", "to": positions[49 - kept], "reason": "too_old"}], gaps
        # From here on it is a stream like any other.
        script = Script("a", "b")
        script.begins({"a": positions[-1], "b": f"{epoch}.1"})
        script.published("a", "live", await publish(client, "a", "live"))
        await script.hears(source)
        await script.is_silent(source)


async def a_restart_is_one_gap_and_then_live(reader, _):
    """The gateway is killed, or told to stop; then streams hear `bye` before they end. Positions of the old process mean nothing to the new one."""
    for drained in [False, True]:
        port = free_port()
        bounds = {"reconnect_window_ms": 200}
        with harness.Gateway(listen=port, limits=bounds) as first:
            async with reader(first.http("/events?topic=a&topic=b")) as source:
                script = Script("a", "b")
                await script.opens(source)
                async with publisher(first) as client:
                    for number in range(3):
                        script.published("a", f"old {number}", await publish(client, "a", f"old {number}"))
                    await script.hears(source)
                was = script.cursor()
                if drained:
                    stopping = asyncio.create_task(asyncio.to_thread(first.stop))
                    bye = await source.event()
                    told = json.loads(bye["data"])
                    assert (bye["name"], told["code"]) == ("shardcast:bye", 1012) and 0 <= told["retry_ms"] <= 200, bye
                    assert await stopping == 0
                else:
                    await asyncio.to_thread(first.kill)
                with harness.Gateway(listen=port, limits=bounds) as second:
                    opened = await source.event()
                    assert opened["name"] == "shardcast:open", opened
                    gaps = [await source.event() for _ in script.topics]
                    assert all(gap["name"] == "shardcast:gap" for gap in gaps), gaps
                    told = sorted((gap["topic"], gap["from"], gap["reason"]) for gap in (json.loads(gap["data"]) for gap in gaps))
                    epoch, offsets = was.split(".")
                    assert told == [(topic, f"{epoch}.{offset}", "restart") for topic, offset in zip("ab", offsets.split(","))], told
                    script = Script("a", "b")
                    script.begins(dict(zip("ab", (json.loads(gap["data"])["to"] for gap in gaps))))
                    assert gaps[-1]["id"] == script.cursor(), gaps
                    async with publisher(second) as client:
                        for topic in "abab":
                            script.published(topic, f"new in {topic}", await publish(client, topic, f"new in {topic}"))
                        await script.hears(source)
                        await script.is_silent(source)


@limits(reconnect_window_ms=200, connections_max=2)
async def an_eventsource_gets_in_when_a_place_is_free(gateway):
    """It would give up for good on a status like 503: it is answered 200, `bye` and the end, and comes back until there is a place."""
    async with ws.connect(gateway.url("/ws?room=a")) as chat, ws.connect(gateway.url("/ws?room=a")) as other:
        async with EventSource(gateway.http("/events?topic=a")) as source:
            for _ in range(3):
                bye = await source.event()
                told = json.loads(bye["data"])
                assert (bye["name"], told["code"]) == ("shardcast:bye", 4503) and 0 <= told["retry_ms"] <= 200, bye
            await other.close()
            while (event := await source.event())["name"] == "shardcast:bye":
                pass
            assert event["name"] == "shardcast:open", event
            await chat.send("welcome")
            event = await source.event()
            assert (event["name"], event["data"]) == ("message", "welcome"), event


def of(reader, case):
    bound = functools.partial(case, reader)
    bound.__name__ = f"{reader.name}: {case.__name__}"
    bound.limits = getattr(case, "limits", None)
    return bound


FOR_ALL = [
    a_reader_comes_back_through_cuts_and_has_everything_once,
    names_lines_and_odd_bytes_arrive_as_they_are,
    an_outrun_history_is_one_gap,
    a_restart_is_one_gap_and_then_live,
]
CASES = [of(reader, case) for case in FOR_ALL for reader in READERS] + [an_eventsource_gets_in_when_a_place_is_free]
