"""What the cases of the Python side share: peers in Node, publishing by HTTP, bounds of a case's gateway, and the seed."""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import socket

import httpx

HERE = pathlib.Path(__file__).resolve().parent
WAIT = 10
MIB = 1024 * 1024
SEED = int(os.environ.get("SHARDCAST_TEST_SEED") or random.randrange(1 << 32))


class Skip(Exception):
    """The case has nothing to do yet."""


def dice(word):
    """Random numbers that depend on the seed and on the word alone, so that a case is the same when it is run by itself."""
    return random.Random(f"{SEED} {word}")


def limits(**values):
    """Bounds of the gateway that a case is given."""

    def mark(case):
        case.limits = values
        return case

    return mark


def arguments(*words):
    """Words of the command line of the gateway that a case is run against."""

    def mark(case):
        case.arguments = words
        return case

    return mark


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, WAIT)


def publisher(gateway):
    """An HTTP client of the gateway, for `publish`."""
    return httpx.AsyncClient(base_url=gateway.http(""), timeout=WAIT, trust_env=False)


async def publish(client, topic, payload, **parameters):
    """Publishes a text or bytes, and returns the position."""
    kind = "application/octet-stream" if isinstance(payload, bytes) else "text/plain; charset=utf-8"
    body = payload if isinstance(payload, bytes) else payload.encode()
    answer = await client.post("/publish", params={"topic": topic, **parameters}, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
    return answer.json()["pos"]


def same(who, heard, expected):
    """Both lists are equal, or this says from where on they are not."""
    differs = next((n for n, (a, b) in enumerate(zip(heard, expected)) if a != b), min(len(heard), len(expected)))
    assert heard == expected, f"{who}: from {differs} on heard {heard[differs:][:3]}, expected {expected[differs:][:3]}"


class Peer:
    """A program in Node in its own process, steered by JSON lines."""

    def __init__(self, program, *arguments):
        self._command = ["node", str(HERE / program), *arguments]

    async def __aenter__(self):
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=8 * MIB)
        return self

    async def __aexit__(self, *_):
        self._process.stdin.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), 2)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def tell(self, **command):
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()

    async def event(self):
        line = await soon(self._process.stdout.readline())
        assert line, "the Node client ended"
        return json.loads(line)

    async def events(self):
        """All there are, to the end."""
        while line := await self._process.stdout.readline():
            yield json.loads(line)

    async def expect(self, expected):
        event = await self.event()
        assert event == expected, f"{event!r}, expected {expected!r}"

    async def until(self, key):
        """Skips events until one has this key."""
        while True:
            event = await self.event()
            if key in event:
                return event


class Node(Peer):
    """A WebSocket of the package `ws`."""

    def __init__(self, url):
        super().__init__("peer.mjs", url)

    async def __aenter__(self):
        await super().__aenter__()
        await self.expect({"open": True})
        return self
