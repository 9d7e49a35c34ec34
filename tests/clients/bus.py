"""Programs that speak NATS (nats-py) and clients of the gateway: each hears the other, without a line of code between."""

import asyncio
import contextlib
import json
import pathlib
import subprocess
import tempfile

import httpx
import nats
from websockets.asyncio.client import connect

import gateway as harness
from common import WAIT, same, soon
from readers import HttpxSse


@contextlib.asynccontextmanager
async def server(*args):
    """A nats-server of this case's own: its URL. With `-js` it keeps streams, in a directory that goes with it."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", directory, "-sd", directory, *args]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=harness._die_with_parent)
        try:
            ports = pathlib.Path(directory) / f"nats-server_{process.pid}.ports"
            async with asyncio.timeout(WAIT):
                while not ports.exists() or not ports.read_text().endswith("}"):
                    await asyncio.sleep(0.01)
            yield json.loads(ports.read_text())["nats"][0]
        finally:
            process.kill()
            process.wait()


async def heard_by(ws, program, subject, word):
    """Says a word until a member has heard it: from then on NATS was asked for the room."""
    while True:
        await program.publish(subject, word.encode())
        with contextlib.suppress(asyncio.TimeoutError):
            while await asyncio.wait_for(ws.recv(), 0.2) != word:
                pass
            return


async def has_all(program):
    """Waits until the server has what a program has said. nats-py writes a ping ahead of what is not flushed: only a second one comes behind it."""
    await program.flush()
    await program.flush()


async def data(stream):
    """The data of the next message of an event stream."""
    while (event := await stream.event())["name"] != "message":
        pass
    return event["data"]


async def a_program_that_speaks_nats_and_clients_of_two_gateways_hear_each_other(_):
    async with server() as url, await nats.connect(url) as program:
        with harness.Gateway("--nats", url) as one, harness.Gateway("--nats", url) as other:
            async with connect(one.url("/ws?room=news.eu")) as here, connect(other.url("/ws?room=news.eu")) as there:
                async with HttpxSse(other.http("/events?topic=news.eu")) as stream:
                    assert (await stream.event())["name"] == "shardcast:open"
                    await heard_by(here, program, "shardcast.news.eu", "are you there")
                    await heard_by(there, program, "shardcast.news.eu", "and you")
                    said = [f"{number} κόσμε 🦀" for number in range(300)]
                    for word in ["from here on", *said]:
                        await program.publish("shardcast.news.eu", word.encode())
                    for name, ws in {"here": here, "there": there}.items():
                        while await soon(ws.recv()) != "from here on":
                            pass
                        same(name, [await soon(ws.recv()) for _ in said], said)
                    while await data(stream) != "from here on":
                        pass
                    same("stream", [await data(stream) for _ in said], said)

                    inbox = await program.subscribe("shardcast.news.eu")
                    await has_all(program)
                    for number in range(100):
                        await here.send(f"here {number}")
                    said = [f"here {number}" for number in range(100)]
                    heard = [(await inbox.next_msg(timeout=WAIT)) for _ in said]
                    same("the program", [message.data.decode() for message in heard], said)
                    assert all(message.headers["Shardcast-Node"] for message in heard), heard[0].headers
                    for name, ws in {"here": here, "there": there}.items():
                        same(name, [await soon(ws.recv()) for _ in said], said)
                    with contextlib.suppress(nats.errors.TimeoutError):
                        raise AssertionError(f"said twice: {await inbox.next_msg(timeout=0.2)}")


async def workers_of_a_queue_group_share_what_clients_say(_):
    async with server() as url, await nats.connect(url) as one, await nats.connect(url) as other:
        with harness.Gateway("--nats", url) as gateway:
            done = []

            async def work(message):
                done.append(int(message.data))

            for program in (one, other):
                await program.subscribe("shardcast.orders.>", queue="workers", cb=work)
                await has_all(program)
            async with connect(gateway.url("/ws?room=orders.created&echo=0")) as client:
                for number in range(200):
                    await client.send(str(number))
                async with asyncio.timeout(WAIT):
                    while len(done) < 200:
                        await asyncio.sleep(0.01)
            assert sorted(done) == list(range(200)), "each order was worked at once"


async def a_program_that_reads_and_writes_the_stream_has_the_positions_of_clients(_):
    async with server("-js") as url, await nats.connect(url) as program:
        stream = program.jetstream()
        keep = {"SHARDCAST_NATS_STREAM": "KEPT"}
        with harness.Gateway("--nats", url, env=keep) as one, harness.Gateway("--nats", url, env=keep) as other:
            async with httpx.AsyncClient() as http:
                for gateway in (one, other):
                    async with asyncio.timeout(WAIT):
                        while (await http.get(f"http://127.0.0.1:{gateway.admin}/readyz")).status_code != 200:
                            await asyncio.sleep(0.05)
                said = []
                for number in range(60):
                    word = f"{number} κόσμε 🦀"
                    if number % 2:
                        place = (await stream.publish("shardcast.news.eu", word.encode())).seq
                    else:
                        gateway = (one, other)[number % 4 // 2]
                        answer = (await http.post(gateway.http("/publish?topic=news.eu"), content=word.encode())).raise_for_status().json()
                        place = int(answer["pos"].split(".")[1])
                    said.append((place, word))
                # The program, by a consumer that it can come back to, and clients of either gateway, from the beginning.
                reader = await stream.pull_subscribe("shardcast.news.eu", durable="reader")
                heard = []
                while len(heard) < len(said):
                    for message in await reader.fetch(20, timeout=WAIT):
                        heard.append((message.metadata.sequence.stream, message.data.decode()))
                        await message.ack()
                same("the program", heard, said)
                for name, gateway in {"one": one, "other": other}.items():
                    async with HttpxSse(gateway.http("/events?topic=news.eu&after=earliest")) as events:
                        heard = []
                        while len(heard) < len(said):
                            event = await events.event()
                            if event["name"] == "message":
                                heard.append((int(event["id"].split(".")[1]), event["data"]))
                        same(name, heard, said)


CASES = [
    a_program_that_speaks_nats_and_clients_of_two_gateways_hear_each_other,
    workers_of_a_queue_group_share_what_clients_say,
    a_program_that_reads_and_writes_the_stream_has_the_positions_of_clients,
]
