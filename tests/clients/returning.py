"""Many WebSockets of Python (package `websockets`) and EventSources of Node behind a proxy that resets them all, for a test in another language.

    returning.py PORT COUNT     COUNT of each, members of the topic `clients`, to which numbers are published from 0 on
    in, a line each             `reset`
    out, every 50 ms            {"open": N, "least": N, "faults": N, "gone": N, "refusals": N, "unhinted": N}

As returning.mjs says; `refusals` are those of the WebSockets, `unhinted` those that did not say when to come back.
"""

import asyncio
import json
import random
import sys

import httpx
import websockets

from common import Peer
from cut import Cut

FIRST, LONGEST = 0.5, 20  # full jitter: a random part of these seconds, doubled up to the second


class Sockets:
    """WebSockets that come back after full jitter, or when the gateway says so, to where they were."""

    def __init__(self, url, epoch, offset, count):
        self._url, self._epoch, self._offset = url, epoch, offset
        self.open = self.faults = self.refusals = self.unhinted = 0
        self.last = [-1] * count

    async def stay(self, number):
        tries = 0
        while True:
            hint = None
            position = f"{self._epoch}.{self._offset + self.last[number] + 1}"  # each message takes the topic one further
            try:
                async with websockets.connect(f"{self._url}&after={position}", open_timeout=10, ping_interval=None, proxy=None) as socket:
                    self.open += 1
                    tries = 0
                    try:
                        async for message in socket:
                            self.faults += int(message) != self.last[number] + 1
                            self.last[number] = int(message)
                    finally:
                        self.open -= 1
            except websockets.InvalidStatus as refused:
                self.refusals += 1
                hint = told(refused.response)
                self.unhinted += hint is None
            except websockets.ConnectionClosed as closed:
                if closed.rcvd and closed.rcvd.reason.startswith("retry="):
                    hint = int(closed.rcvd.reason[6:].split()[0]) / 1000
            except (OSError, TimeoutError, EOFError, websockets.WebSocketException):
                pass
            await asyncio.sleep(random.random() * min(LONGEST, FIRST * 2**tries) if hint is None else hint)
            tries += 1


def told(response):
    try:
        return json.loads(response.body)["error"]["retry_ms"] / 1000
    except (TypeError, KeyError, ValueError):
        seconds = response.headers.get("Retry-After")
        return float(seconds) if seconds else None


async def commands(cut):
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while (line := await reader.readline()).strip() == b"reset":
        cut.after(0)
        cut.mend()


async def main(port, count):
    gateway = httpx.get(f"http://127.0.0.1:{port}/poll?topic=clients&wait=0", trust_env=False).json()
    epoch, offset = gateway["next"].split(".")
    async with Cut(port) as cut:
        sockets = Sockets(f"ws://127.0.0.1:{cut.port}/ws?room=clients", epoch, int(offset), count)
        tasks = [asyncio.ensure_future(sockets.stay(number)) for number in range(count)]
        async with Peer("returning.mjs", cut.http("/events?topic=clients"), str(count)) as node:
            streams = {"open": 0, "least": -1, "faults": 0, "gone": 0}

            async def listen():
                async for said in node.events():
                    streams.update(said)

            async def report():
                while True:
                    await asyncio.sleep(0.05)
                    said = {
                        "open": sockets.open + streams["open"],
                        "least": min(min(sockets.last), streams["least"]),
                        "faults": sockets.faults + streams["faults"],
                        "gone": streams["gone"],
                        "refusals": sockets.refusals,
                        "unhinted": sockets.unhinted,
                    }
                    print(json.dumps(said), flush=True)

            tasks += [asyncio.ensure_future(listen()), asyncio.ensure_future(report())]
            await commands(cut)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
