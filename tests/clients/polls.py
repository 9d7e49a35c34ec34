"""A poller beside publishers at full speed, and all kinds of readers beside each other: they hear the same, in the same order."""

import asyncio
import contextlib

import httpx
import websockets.asyncio.client as ws

from common import WAIT, Node, limits, publish, publisher, same, soon
from readers import EventSource, HttpxSse


class Poller:
    """Polls on one connection that is kept, each time from the `next` of the answer before."""

    def __init__(self, gateway, *topics):
        self._client = httpx.AsyncClient(base_url=gateway.http(""), timeout=WAIT, trust_env=False)
        self._topics = topics
        self._next = None
        self.answers = 0

    async def __aenter__(self):
        await self._client.__aenter__()
        assert await self.poll(wait=0) == []  # from here on
        self.answers = 0
        return self

    async def __aexit__(self, *error):
        await self._client.__aexit__(*error)

    async def poll(self, wait=5):
        after = {} if self._next is None else {"after": self._next}
        answer = await self._client.get("/poll", params={"topic": self._topics, "wait": wait, **after})
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        said = answer.json()
        self._next = said["next"]
        self.answers += 1
        return said["messages"]


@limits(history_messages=100_000)
async def a_poller_loses_nothing_at_full_speed(gateway):
    """Two rooms of which each is filled as fast as a WebSocket takes it, and one poller of both."""
    total = 20_000

    async def talk(room):
        async with ws.connect(gateway.url(f"/ws?room={room}&echo=0")) as chat:
            for number in range(total):
                await chat.send(f"{room} {number}")

    async with Poller(gateway, "a", "b") as poller:
        talking = [asyncio.create_task(talk(room)) for room in "ab"]
        due, offsets = {"a": 0, "b": 0}, {"a": 0, "b": 0}
        while due != {"a": total, "b": total}:
            messages = await poller.poll()
            assert messages, f"a poll had nothing to tell in 5 s, {due} of {total} were heard"
            for message in messages:
                topic = message["topic"]
                assert message.get("data") == f"{topic} {due[topic]}", f"{message}, expected number {due[topic]} of {total}"
                offset = int(message["pos"].split(".")[1])
                assert offset == offsets[topic] + 1, f"{message} follows {offsets[topic]}"
                due[topic], offsets[topic] = due[topic] + 1, offset
        await asyncio.gather(*talking)
        assert await poller.poll(wait=0) == []
        assert poller.answers > 10, f"{poller.answers} answers: it did not run beside the publishers"


@limits(history_messages=10_000)
async def all_readers_hear_the_same_order(gateway):
    """Two WebSockets of Python, one of Node and an HTTP client publish at once. An EventSource, httpx-sse, a poller, and WebSockets of Python and Node
    hear them all in one order, in which each publisher's own messages keep theirs."""
    each, room = 300, gateway.url("/ws?room=mix")
    names = ["python 1", "python 2", "node", "http"]
    total = each * len(names)

    async def by_python(name):
        # What the others say is not read: without a bound of its own, `websockets` would not get to the answer to its close.
        async with ws.connect(f"{room}&echo=0", max_queue=None) as chat:
            for number in range(each):
                await chat.send(f"{name} {number}")
                if number % 20 == 0:
                    await asyncio.sleep(0)

    async def by_node(node):
        for number in range(each):
            await node.tell(text=f"node {number}")

    async def by_http():
        async with publisher(gateway) as client:
            for number in range(each):
                await publish(client, "mix", f"http {number}")

    async def of_stream(source):
        return [(event["id"], event["data"]) for event in [await source.event() for _ in range(total)]]

    async def of_poller(poller):
        heard = []
        while len(heard) < total:
            heard += [(message["pos"], message["data"]) for message in await poller.poll()]
        return heard

    async def of_python(chat):
        return [await soon(chat.recv()) for _ in range(total)]

    async def of_node(node):
        return [(await node.event())["text"] for _ in range(total)]

    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        streams = [await enter(kind(gateway.http("/events?topic=mix"))) for kind in (EventSource, HttpxSse)]
        for source in streams:
            assert (await source.event())["name"] == "shardcast:open"
        poller, chat, node = await enter(Poller(gateway, "mix")), await enter(ws.connect(room)), await enter(Node(room))
        readers = [*map(of_stream, streams), of_poller(poller), of_python(chat), of_node(node)]
        publishers = [by_python("python 1"), by_python("python 2"), by_node(node), by_http()]
        source, httpx_sse, polled, python, of_peer, *_ = await asyncio.gather(*readers, *publishers)
    texts = [text for _, text in source]
    for name in names:
        same(name, [text for text in texts if text.startswith(f"{name} ")], [f"{name} {number}" for number in range(each)])
    for reader, heard, expected in [("httpx-sse", httpx_sse, source), ("poller", polled, source), ("Python", python, texts), ("Node", of_peer, texts)]:
        same(f"{reader} beside the EventSource", heard, expected)


CASES = [a_poller_loses_nothing_at_full_speed, all_readers_hear_the_same_order]
