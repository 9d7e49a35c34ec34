"""Clients that chat: Python `websockets` and Node `ws` in one room, wscat, and the README's tour."""

import asyncio
import base64
import contextlib
import os
import re
import shlex
import sys

import websockets
from websockets.asyncio.client import connect

import gateway as harness
from common import HERE, MIB, WAIT, Node, Skip, free_port, soon


async def receive(ws):
    return await soon(ws.recv())


async def both_in(python, node):
    """Each has heard itself, and both have heard one mark: from then on each hears everything."""
    await python.send("python is in")
    while await receive(python) != "python is in":
        pass
    await node.tell(text="node is in")
    while (await node.event()).get("text") != "node is in":
        pass
    await python.send("mark")
    while await receive(python) != "mark":
        pass
    while (await node.event()).get("text") != "mark":
        pass


async def python_and_node_hear_each_other(gateway):
    url = gateway.url("/ws?room=chat")
    async with connect(url) as python, Node(url) as node:
        await both_in(python, node)
        for number in range(50):
            await python.send(f"python {number} κόσμε 🦀")
            assert await receive(python) == f"python {number} κόσμε 🦀"
            await node.expect({"text": f"python {number} κόσμε 🦀"})
            await node.tell(text=f"node {number} 日本語")
            await node.expect({"text": f"node {number} 日本語"})
            assert await receive(python) == f"node {number} 日本語"


async def binary_passes_unchanged_both_ways(gateway):
    url = gateway.url("/ws?room=bytes")
    payload = bytes(range(256)) * 200
    async with connect(url) as python, Node(url) as node:
        await both_in(python, node)
        await python.send(payload)
        assert await receive(python) == payload
        event = await node.event()
        assert base64.b64decode(event["binary"]) == payload
        await node.tell(binary=base64.b64encode(payload[::-1]).decode())
        assert await receive(python) == payload[::-1]


async def a_fragmented_message_of_python_reaches_node_whole(gateway):
    url = gateway.url("/ws?room=fragments")
    async with connect(url) as python, Node(url) as node:
        await both_in(python, node)
        await python.send(["one ", "two ", "three"])
        await node.expect({"text": "one two three"})


async def one_megabyte_is_refused_with_1009_by_default(gateway):
    url = gateway.url("/ws?room=big")
    async with connect(url) as python:
        with contextlib.suppress(websockets.ConnectionClosed):
            await python.send(b"x" * MIB)
            await receive(python)
        await asyncio.wait_for(python.wait_closed(), WAIT)
        assert python.close_code == 1009, f"Python sees {python.close_code} {python.close_reason}"
        assert "65536" in python.close_reason, f"the reason names the limit: {python.close_reason}"
    async with Node(url) as node:
        await node.tell(binary=base64.b64encode(b"x" * MIB).decode())
        closed = await node.until("close")
        assert closed["close"] == 1009, f"Node sees {closed}"


async def close_codes_reach_both(gateway):
    async with connect(gateway.url("/ws")) as python:
        await python.close(4321, "my own reasons")
        assert python.close_code == 4321
    async with Node(gateway.url("/ws")) as node:
        await node.tell(close=4321)
        assert (await node.until("close"))["close"] == 4321


async def a_ping_of_python_is_answered(gateway):
    async with connect(gateway.url("/ws")) as python:
        waiter = await python.ping(b"are you there")
        await asyncio.wait_for(waiter, WAIT)


async def room_names_are_encoded_as_every_client_does_it(gateway):
    # Node's URL parser and Python's both percent-encode; the raw room must be the same.
    async with connect(gateway.url("/ws?room=caf%C3%A9%20%F0%9F%A6%80")) as python, Node(gateway.url("/ws?room=café 🦀")) as node:
        await both_in(python, node)


async def clients_come_back_after_a_restart(_):
    """The gateway stops with 1012 and `retry=`; the clients' own reconnection finds the next one on the same port."""
    port = free_port()
    with harness.Gateway(listen=port) as first:
        url = first.url("/ws?room=again")
        node = Node(url)
        async with node:
            python = await connect(url)
            await both_in(python, node)
            code = await asyncio.to_thread(first.stop)
            assert code == 0, f"exit code {code}"
            closed = await node.until("close")
            assert closed["close"] == 1012 and "retry=" in closed["reason"], closed
            await asyncio.wait_for(python.wait_closed(), WAIT)
            assert python.close_code == 1012 and "retry=" in python.close_reason, (python.close_code, python.close_reason)
            with harness.Gateway(listen=port):
                await node.tell(reconnect=True)
                await node.until("open")
                async for python in connect(url):
                    await both_in(python, node)
                    await python.close()
                    break


async def wscat_chats_from_the_command_line(gateway):
    """`npx wscat -c URL`, as the README says it."""
    url = gateway.url("/ws?room=wscat")
    async with connect(url) as python:
        await python.send("I am in")
        assert await receive(python) == "I am in"
        wscat = await asyncio.create_subprocess_exec(
            "npx", "--no-install", "wscat", "-c", url, "-x", "hello from wscat", "-w", "1", cwd=HERE,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,  # it leaves when its input ends
        )
        assert await receive(python) == "hello from wscat"
        output, _ = await asyncio.wait_for(wscat.communicate(), 2 * WAIT)
        assert b"hello from wscat" in output, output


async def the_readme_s_tour_works(gateway):
    """The section "tour" of the README, to the letter but for the ports: wscat and the Python program chat, and curl looks on, reads the stream and publishes."""
    readme = harness.ROOT / "README.md"
    found = re.search(r"^## [^\n]*tour.*?(?=^## )", readme.read_text(), re.M | re.S | re.I) if readme.exists() else None
    if not found:
        raise Skip("README.md has no section with a tour")
    tour = found[0].replace("localhost:8080", f"127.0.0.1:{gateway.port}").replace("127.0.0.1:9090", f"127.0.0.1:{gateway.admin}")
    (program,) = re.findall(r"^```python\n(.*?)^```", tour, re.M | re.S)
    commands = [line for block in re.findall(r"^```sh\n(.*?)^```", tour, re.M | re.S) for line in block.splitlines() if line.strip()]
    (wscat_line,) = [line for line in commands if line.startswith("npx wscat")]

    async def start(*command):
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command, cwd=HERE, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )

    # wscat shows what comes only on a terminal; `script` (package bsdutils, in every Debian) is one.
    wscat = await start("script", "-qfec", wscat_line, "/dev/null")
    try:
        await asyncio.wait_for(wscat.stdout.readuntil(b"Connected"), 2 * WAIT)
        python = await start(sys.executable, "-c", program)
        await asyncio.wait_for(wscat.stdout.readuntil(b"hello from Python"), WAIT)
        wscat.stdin.write(b"typed into wscat\n")
        output, _ = await asyncio.wait_for(python.communicate(), 3 * WAIT)
        assert python.returncode == 0, f"the Python program ended with {python.returncode}:\n{output.decode()}"
        assert b"hello from Python" in output and b"typed into wscat" in output, output
    finally:
        wscat.stdin.close()
        await asyncio.wait_for(wscat.wait(), WAIT)
    streams = []
    for line in commands:
        if line.startswith("curl -N"):
            # It does not end by itself: it must show what the next ones publish, after what was said before.
            streams.append(await start(*shlex.split(line), "-sS", "--fail"))
            await asyncio.wait_for(streams[-1].stdout.readuntil(b"data: hello from Python"), WAIT)
        elif line.startswith("curl"):
            curl = await start(*shlex.split(line), "-sS", "--fail")
            output, _ = await asyncio.wait_for(curl.communicate(), WAIT)
            assert curl.returncode == 0 and output, f"{line}: exit code {curl.returncode}, {output}"
    assert streams, "the tour has no stream of events"
    for stream in streams:
        await asyncio.wait_for(stream.stdout.readuntil(b"data: hello by HTTP"), WAIT)
        stream.kill()
        await stream.wait()


CASES = [
    python_and_node_hear_each_other,
    binary_passes_unchanged_both_ways,
    a_fragmented_message_of_python_reaches_node_whole,
    one_megabyte_is_refused_with_1009_by_default,
    close_codes_reach_both,
    a_ping_of_python_is_answered,
    room_names_are_encoded_as_every_client_does_it,
    clients_come_back_after_a_restart,
    wscat_chats_from_the_command_line,
    the_readme_s_tour_works,
]
