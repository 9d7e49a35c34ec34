"""Python `websockets` with its permessage-deflate, which it offers unasked: a codec over zlib that others wrote, beside clients that have none."""

import asyncio
import json

from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate

from common import arguments, dice, limits, same, soon

MESSAGES = 200
PLAIN = {"compression": None}


def agreed(ws):
    """What was agreed to, if anything."""
    return next((extension for extension in ws.protocol.extensions if isinstance(extension, PerMessageDeflate)), None)


def texts(word):
    """Some worth compressing, some not, and some that cannot be."""
    chance = dice(word)
    row = lambda: json.dumps({"symbol": chance.choice(["ABC", "DEF"]), "price": chance.randint(1, 9999), "size": chance.randint(1, 99)})
    short = lambda: str(chance.randint(0, 9))
    noise = lambda: "".join(chr(chance.randint(0x4E00, 0x9FFF)) for _ in range(chance.randint(50, 3000)))
    return [f"{number} " + chance.choice([short, lambda: row() * chance.randint(1, 200), noise])() for number in range(MESSAGES)]


async def heard(ws, count):
    return [await soon(ws.recv()) for _ in range(count)]


@arguments("--compression")
@limits(message_bytes_max=1 << 20, queue_bytes_max=64 << 20)
async def a_room_of_those_who_have_agreed_and_those_who_have_not_hears_the_same(gateway):
    sent = texts("deflate room")
    room = gateway.url("/ws?room=a")
    narrow = ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9)
    async with connect(room) as one, connect(room) as two, connect(room, **PLAIN) as plain, connect(room, compression=None, extensions=[narrow]) as small:
        assert agreed(one).remote_no_context_takeover and agreed(one).local_no_context_takeover
        windows = [extension and extension.remote_max_window_bits for extension in map(agreed, (one, two, plain, small))]
        assert windows == [15, 15, None, 9], windows

        async def publish():
            for number, text in enumerate(sent):
                await [one, plain, small][number % 3].send(text)

        *got, _ = await asyncio.gather(*[heard(ws, MESSAGES) for ws in (one, two, plain, small)], publish())
        for ws, messages in zip("one two plain small".split(), got):
            same(ws, sorted(messages), sorted(sent))
            assert messages == got[0], f"{ws} hears them in another order"
        await one.send([sent[0], "in", "fragments"])
        assert await heard(two, 1) == [sent[0] + "infragments"]
        await two.send(bytes(300_000))
        assert (await heard(plain, 2))[1] == bytes(300_000)


@arguments("--compression")
@limits(message_bytes_max=1 << 20)
async def an_echo_is_what_was_said(gateway):
    async with connect(gateway.url("/echo")) as ws:
        for text in texts("deflate echo"):
            await ws.send(text)
            assert await soon(ws.recv()) == text


@arguments("--compression")
@limits(message_bytes_max=1 << 20, queue_bytes_max=64 << 20, history_messages=1000)
async def a_client_of_json_comes_back_to_what_it_missed(gateway):
    sent = texts("deflate json")
    protocol = ["shardcast.v1.json"]
    position = "latest"
    got = []
    async with connect(gateway.url("/ws?room=a"), **PLAIN) as publisher:
        for turn in range(4):
            async with connect(gateway.url("/ws"), subprotocols=protocol) as ws:
                assert agreed(ws)
                assert json.loads(await soon(ws.recv()))["type"] == "welcome"
                await ws.send(json.dumps({"type": "subscribe", "topic": "a", "after": position}))
                assert json.loads(await soon(ws.recv()))["type"] == "subscribed"
                part = sent[turn * 50 : turn * 50 + 50]
                # The second half of each part is said to nobody.
                for text in part[:25]:
                    await publisher.send(text)
                while len(got) < turn * 50 + 25:
                    said = json.loads(await soon(ws.recv()))
                    assert said["type"] == "message", said
                    got.append(said["data"] if isinstance(said["data"], str) else json.dumps(said["data"]))
                    position = said["pos"]
            for text in part[25:]:
                await publisher.send(text)
            await heard(publisher, 50)
    same("who came back", got, sent[: len(got)])


CASES = [
    a_room_of_those_who_have_agreed_and_those_who_have_not_hears_the_same,
    an_echo_is_what_was_said,
    a_client_of_json_comes_back_to_what_it_missed,
]
