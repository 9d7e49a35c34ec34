"""Python `websockets` that speaks `shardcast.v1.json`: by hand, as protocol.md says, and through a proxy that cuts it off."""

import asyncio
import contextlib
import json

import websockets
from websockets.asyncio.client import connect

from common import dice, limits, publish, publisher, same, soon
from cut import Cut

PROTOCOL = ["shardcast.v1.json"]
MESSAGES = 300


async def say(ws, **request):
    await ws.send(json.dumps(request))


async def hear(ws, kind):
    said = json.loads(await soon(ws.recv()))
    assert said["type"] == kind, f"{kind} is expected, and it says {said}"
    return said


async def a_client_by_hand_has_many_topics_and_receipts(gateway):
    async with connect(gateway.url("/ws"), subprotocols=PROTOCOL) as ws, connect(gateway.url("/ws?room=b")) as raw:
        assert ws.subprotocol == PROTOCOL[0]
        await hear(ws, "welcome")
        for topic in ["a", "b"]:
            await say(ws, type="subscribe", id=topic, topic=topic)
            subscribed = await hear(ws, "subscribed")
            assert (subscribed["id"], subscribed["topic"], subscribed["replayed"]) == (topic, topic, 0)
        await say(ws, type="publish", id="p", topic="b", data={"price": 17})
        said = [json.loads(await soon(ws.recv())) for _ in range(2)]
        receipt, message = sorted(said, key=lambda said: said["type"] == "message")
        assert (receipt["type"], receipt["id"], receipt["subscribers"], message["data"]) == ("ok", "p", 2, {"price": 17})
        assert receipt["pos"] == message["pos"]
        assert json.loads(await soon(raw.recv())) == {"price": 17}
        await raw.send(b"\xff\x00")
        assert (await hear(ws, "message"))["data_b64"] == "/wA="


@limits(history_messages=1000)
async def a_client_that_is_cut_off_at_random_misses_nothing(gateway):
    chance = dice("talk")
    heard, positions, gaps = {"a": [], "b": []}, {}, 0

    async def read(cut):
        nonlocal gaps
        while len(heard["a"]) < MESSAGES or len(heard["b"]) < MESSAGES:
            with contextlib.suppress(OSError, EOFError, websockets.WebSocketException):
                async with connect(f"ws://127.0.0.1:{cut.port}/ws", subprotocols=PROTOCOL) as ws:
                    for topic in heard:
                        await say(ws, type="subscribe", topic=topic, after=positions.get(topic, "earliest"))
                    async for text in ws:
                        said = json.loads(text)
                        gaps += said["type"] == "gap"
                        if said["type"] == "message":
                            heard[said["topic"]].append(int(said["data"]))
                            positions[said["topic"]] = said["pos"]
                        if all(len(numbers) >= MESSAGES for numbers in heard.values()):
                            return
            await asyncio.sleep(0.01)

    async def disturb(cut):
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.2))
            cut.after(chance.randrange(2000), reset=chance.random() < 0.5)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(cut.happened(), 0.5)
            cut.mend()

    async with Cut(gateway.port) as cut, publisher(gateway) as client:
        reader, disturber = asyncio.create_task(read(cut)), asyncio.create_task(disturb(cut))
        for number in range(MESSAGES):
            for topic in heard:
                await publish(client, topic, str(number))
            await asyncio.sleep(0.004)
        await asyncio.wait_for(reader, 20)
        disturber.cancel()
        assert cut.cuts > 2, f"it was cut off {cut.cuts} times"
    for topic, numbers in heard.items():
        same(topic, numbers, list(range(MESSAGES)))
    assert gaps == 0, f"{gaps} gaps were told"


CASES = [a_client_by_hand_has_many_topics_and_receipts, a_client_that_is_cut_off_at_random_misses_nothing]
