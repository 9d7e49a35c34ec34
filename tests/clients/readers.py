"""Readers of event streams that people use, behind one interface: `async with Reader(url) as reader: await reader.event()`.

`EventSource` comes back by itself. The Python libraries leave that to their users: `ByHand` does it as their manuals say, with Last-Event-ID.
An event is a dict of `name`, `data` and `id`.
"""

import asyncio
import json
import threading
import time

import httpx
import httpx_sse
import sseclient

from common import Peer, soon

NAMES = ["price", "größe", "a: b"]  # names of events that cases publish; an EventSource must know them beforehand


class EventSource(Peer):
    """The package `eventsource` in Node."""

    name = "eventsource"
    bears_half_events = True

    def __init__(self, url):
        super().__init__("eventsource.mjs", url, *NAMES)
        self.errors = 0

    async def event(self):
        while True:
            event = await super().event()
            if "error" not in event:
                return event
            assert not event["gone"], f"the EventSource has given up: {event['error']}"
            self.errors += 1


class ByHand:
    """Reads in a thread, and comes back with the last id whenever the stream ends."""

    def __init__(self, url):
        self._url = url
        self._heard = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._stop = False
        self.errors = 0

    async def __aenter__(self):
        threading.Thread(target=self._run, daemon=True).start()
        return self

    async def __aexit__(self, *_):
        self._stop = True  # the thread sees it when the gateway ends

    async def event(self):
        return await soon(self._heard.get())

    def _run(self):
        last_id = ""
        with httpx.Client(timeout=httpx.Timeout(10, read=None), trust_env=False) as client:
            while not self._stop:
                headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
                if last_id:
                    headers["Last-Event-ID"] = last_id
                try:
                    for event in self._events(client, headers):
                        if self._stop:
                            return
                        last_id = event.id or last_id  # `sseclient` shows an event's own id only
                        self._hear({"name": event.event, "data": event.data, "id": last_id})
                except httpx.TransportError:
                    pass
                self.errors += 1
                time.sleep(0.02)

    def _hear(self, event):
        try:
            self._loop.call_soon_threadsafe(self._heard.put_nowait, event)
        except RuntimeError:  # the case is over, and its loop closed
            self._stop = True


class HttpxSse(ByHand):
    """The package `httpx-sse`."""

    name = "httpx_sse"
    bears_half_events = True

    def _events(self, client, headers):
        with httpx_sse.connect_sse(client, "GET", self._url, headers=headers) as source:
            for event in source.iter_sse():
                if event.retry is None:  # it shows a lone `retry:` as an event
                    yield event


class SseClient(ByHand):
    """The package `sseclient-py`."""

    name = "sseclient"
    bears_half_events = False  # where a stream just ends, it takes half an event for a whole one

    def _events(self, client, headers):
        with client.stream("GET", self._url, headers=headers) as response:
            yield from sseclient.SSEClient(response.iter_bytes()).events()


READERS = [EventSource, HttpxSse, SseClient]


class Script:
    """What was published to the topics of a stream, and what a reader must therefore hear: each message once, in the order of its topic, with
    the id that says where the reader is in every topic."""

    def __init__(self, *topics):
        self.topics = topics
        self._epoch = None
        self._at = dict.fromkeys(topics)  # the offset that the reader has
        self._next = {topic: [] for topic in topics}  # (offset, name, data), not heard yet
        self.heard = 0
        self.opened = 0

    def published(self, topic, data, position, name="message"):
        epoch, offset = position.split(".")
        assert epoch == self._epoch, f"{position} is of another epoch than {self._epoch}"
        self._next[topic].append((int(offset), name, data.replace("\r\n", "\n").replace("\r", "\n")))

    def left(self):
        return sum(len(messages) for messages in self._next.values())

    def cursor(self):
        return f"{self._epoch}.{','.join(str(self._at[topic]) for topic in self.topics)}"

    async def opens(self, reader):
        """The first event: where the reader begins."""
        event = await reader.event()
        assert event["name"] == "shardcast:open", event
        self.begins(json.loads(event["data"])["topics"])
        self._opened(event)

    def begins(self, positions):
        for topic, position in positions.items():
            self._epoch, offset = position.split(".")
            self._at[topic] = int(offset)

    def _opened(self, event):
        self.opened += 1
        assert event["id"] == self.cursor(), f"{event}, expected at {self.cursor()}"
        positions = json.loads(event["data"])["topics"]
        assert positions == {topic: f"{self._epoch}.{self._at[topic]}" for topic in self.topics}, f"{event}, expected at {self.cursor()}"

    async def hears(self, reader, count=None):
        """Reads until the reader has heard `count` messages more, or everything."""
        until = self.heard + (self.left() if count is None else count)
        while self.heard < until:
            self.take(await reader.event())

    def take(self, event):
        if event["name"] == "shardcast:open":
            self._opened(event)
            return
        topic = next((topic for topic in self.topics if self._next[topic] and event["id"] == self._id_after(topic)), None)
        assert topic is not None, f"heard {event!r:.300} at {self.cursor()}; next are { {t: m[:1] for t, m in self._next.items()} !r:.600}"
        offset, name, data = self._next[topic].pop(0)
        self._at[topic] = offset
        self.heard += 1
        assert (event["name"], event["data"]) == (name, data), f"heard {event!r:.300}, expected {name!r} {data!r:.300} with {offset}"

    def _id_after(self, topic):
        at = {**self._at, topic: self._next[topic][0][0]}
        return f"{self._epoch}.{','.join(str(at[topic]) for topic in self.topics)}"

    async def is_silent(self, reader):
        """Nothing comes twice: nothing more comes at all."""
        assert self.left() == 0
        try:
            event = await asyncio.wait_for(reader.event(), 0.2)
        except asyncio.TimeoutError:
            return
        raise AssertionError(f"heard {event} after everything")
