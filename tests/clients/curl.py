"""curl as people use it: it looks on at a stream, publishes with and without a length, polls in a loop, publishes many at once, reads history."""

import asyncio
import base64
import json

import websockets.asyncio.client as ws

from common import dice, limits, publish, publisher, same, soon

PIPE = asyncio.subprocess.PIPE


async def curl(*arguments, body=None, code=0):
    """What curl prints, and what it says beside."""
    process = await asyncio.create_subprocess_exec("curl", "-sS", "--max-time", "10", "--noproxy", "*", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    output, said = await soon(process.communicate(body))
    assert process.returncode == code, f"{arguments}: exit code {process.returncode}\n{output!r:.500}\n{said.decode()[-1000:]}"
    return output, said.decode()


async def curl_json(*arguments, body=None):
    output, _ = await curl("--fail-with-body", *arguments, body=body)
    return json.loads(output)


async def history(gateway, query):
    return await curl_json(gateway.http(f"/v1/history?{query}"))


async def curl_looks_on_and_goes_on_with_last_event_id(gateway):
    """`curl -N`, ended from outside, and again with the last `id:` that it printed."""

    async def look_on(*arguments):
        return await asyncio.create_subprocess_exec("curl", "-sSN", "--noproxy", "*", gateway.http("/events?topic=a"), *arguments, stdout=PIPE)

    async def read_until(process, line):
        ids = []
        while True:
            said = (await soon(process.stdout.readline())).decode()
            assert said, f"the stream ended before {line!r}"
            if said.startswith("id: "):
                ids.append(said[4:].strip())
            if said == f"{line}\n":
                return ids

    async with publisher(gateway) as client:
        first = await look_on()
        await read_until(first, "event: shardcast:open")
        positions = [await publish(client, "a", f"seen {number}") for number in range(3)]
        assert await read_until(first, "data: seen 2") == positions
        first.kill()
        await first.wait()
        positions = [positions[-1]] + [await publish(client, "a", f"missed {number}") for number in range(5)]
        second = await look_on("-H", f"Last-Event-ID: {positions[0]}")
        positions.append(await publish(client, "a", "live"))
        assert await read_until(second, "data: live") == positions
        second.kill()
        await second.wait()


async def curl_publishes_with_100_continue(gateway):
    """It waits for the gateway's word before it sends the body, and sends none when that is no."""
    url = gateway.http("/publish?topic=a")
    waits = ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "8", "-H", "Content-Type: text/plain", "--data-binary", "@-"]
    text = "größe\n" * 8000
    began = asyncio.get_running_loop().time()
    output, said = await curl(*waits, url, body=text.encode())
    assert asyncio.get_running_loop().time() - began < 4, "curl gave up waiting"
    assert "< HTTP/1.1 100 Continue" in said and "< HTTP/1.1 200 OK" in said, said
    (message,) = (await history(gateway, "topic=a"))["messages"]
    assert (message["data"], message["pos"]) == (text, json.loads(output)["pos"])
    output, said = await curl(*waits, "-w", "\n%{http_code} %{size_upload}", url, body=b"x" * 70_000)
    answer, figures = output.decode().rsplit("\n", 1)
    assert figures == "413 0" and "65536" in answer and "100 Continue" not in said, (output, said)
    assert len((await history(gateway, "topic=a"))["messages"]) == 1


async def curl_uploads_in_chunks(gateway):
    """`-T -` does not know the length: the body comes in chunks, as they are written."""
    url = gateway.http("/publish?topic=a")
    command = ["curl", "-sSv", "--max-time", "10", "--noproxy", "*", "-X", "POST", "-H", "Content-Type: text/plain", "-T", "-", url]
    pieces = ["one ", "two 🦀 ", "x" * 30_000, " end"]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    for piece in pieces:
        process.stdin.write(piece.encode())
        await process.stdin.drain()
        await asyncio.sleep(0.05)
    process.stdin.close()
    output, said = await soon(process.communicate())
    assert b"> Transfer-Encoding: chunked" in said and b"< HTTP/1.1 200 OK" in said, said
    (message,) = (await history(gateway, "topic=a"))["messages"]
    assert (message["data"], message["pos"]) == ("".join(pieces), json.loads(output)["pos"])
    # Too much is found out on the way.
    output, _ = await curl("-X", "POST", "-T", "-", "-w", "\n%{http_code}", url, body=b"x" * 200_000)
    assert output.endswith(b"\n413") and b"65536" in output, output
    assert len((await history(gateway, "topic=a"))["messages"]) == 1


@limits(history_messages=1000)
async def curl_polls_and_loses_nothing_between(gateway):
    """One curl for each poll, each with the `next` of the one before, while others publish at any time."""
    random = dice("curl polls")
    total = 150
    said = {"a": [], "b": []}

    async def talk():
        async with publisher(gateway) as client:
            for number in range(total):
                topic = random.choice("ab")
                said[topic].append((await publish(client, topic, f"{number}"), f"{number}"))
                await asyncio.sleep(random.choice([0, 0, 0.001, 0.03]))

    heard = {"a": [], "b": []}
    answer = await curl_json(gateway.http("/poll?topic=a&topic=b&wait=0"))
    assert answer["messages"] == [], answer
    talking = asyncio.create_task(talk())
    polls = 0
    while (count := len(heard["a"]) + len(heard["b"])) < total:
        answer = await curl_json(gateway.http(f"/poll?topic=a&topic=b&wait=5&after={answer['next']}"))
        polls += 1
        assert answer["messages"], f"a poll had nothing to tell in 5 s, {count} of {total} were heard"
        for message in answer["messages"]:
            heard[message["topic"]].append((message["pos"], message["data"]))
    await talking
    for topic in said:
        same(topic, heard[topic], said[topic])
    assert (await curl_json(gateway.http(f"/poll?topic=a&topic=b&wait=0&after={answer['next']}")))["messages"] == []
    assert polls > 10, f"{polls} polls are not a loop"


async def curl_publishes_a_batch_and_pages_through_history(gateway):
    items = [
        {"topic": "a", "data": "text"},
        {"topic": "a", "data": {"n": 1, "list": [1, "two"]}, "event": "price"},
        {"topics": ["a", "b"], "data": "to both"},
        {"topic": "", "data": "nowhere"},
        {"topic": "a", "data_b64": base64.b64encode(bytes(range(256))).decode()},
        {"topic": "b", "data": "once", "id": "key-1"},
        {"topic": "b", "data": "once", "id": "key-1"},
    ]
    async with ws.connect(gateway.url("/ws?room=a")) as chat:
        results = await curl_json("-H", "Content-Type: application/json", "--data-binary", "@-", gateway.http("/v1/publish"), body=json.dumps(items).encode())
        for expected in ["text", '{"n":1,"list":[1,"two"]}', "to both", bytes(range(256))]:
            assert await soon(chat.recv()) == expected
    assert len(results) == len(items), results
    assert results[3]["error"]["code"] == "bad_request" and results[3]["error"]["message"], results[3]
    assert results[6]["duplicate"] is True and results[6]["pos"] == results[5]["pos"], results[5:]
    positions = [results[0]["pos"], results[1]["pos"], results[2]["results"][0]["pos"], results[4]["pos"]]
    expected = [
        {"topic": "a", "pos": positions[0], "data": "text"},
        {"topic": "a", "pos": positions[1], "event": "price", "data": {"n": 1, "list": [1, "two"]}},
        {"topic": "a", "pos": positions[2], "data": "to both"},
        {"topic": "a", "pos": positions[3], "data_b64": items[4]["data_b64"]},
    ]
    assert (await history(gateway, "topic=a"))["messages"] == expected
    assert [message["data"] for message in (await history(gateway, "topic=b"))["messages"]] == ["to both", "once"]
    assert (await history(gateway, "topic=a&last=1"))["messages"] == expected[3:]
    assert (await history(gateway, f"topic=a&after={positions[1]}"))["messages"] == expected[2:]
    # In pages of one.
    paged, query = [], "topic=a&limit=1"
    while (page := await history(gateway, query))["messages"]:
        assert len(page["messages"]) == 1, page
        paged += page["messages"]
        query = f"topic=a&limit=1&after={page['next']}"
    assert paged == expected, paged


CASES = [
    curl_looks_on_and_goes_on_with_last_event_id,
    curl_publishes_with_100_continue,
    curl_uploads_in_chunks,
    curl_polls_and_loses_nothing_between,
    curl_publishes_a_batch_and_pages_through_history,
]
