"""What benches/compare runs and shows: the servers, the rows, the figures. No code that runs them, and none that draws."""

from typing import NamedTuple

# Name: binary and flags. The first is what the others are compared with.
SERVERS = {
    "shardcast": ["shardcast"],
    "send_loop": ["send_loop"],
    "send_merged": ["send_loop", "--merge"],
    "uring_loop": ["uring_loop"],
    "uring_merged": ["uring_loop", "--merge"],
    "tokio_hub": ["tokio_hub"],
    "monoio_hub": ["monoio_hub"],
    "shardcast_system": ["shardcast"],
}
OWN = ("shardcast", "shardcast_system")
ALL = tuple(name for name in SERVERS if name != "shardcast_system")
THREE = ("shardcast", "uring_merged", "tokio_hub")
BOTH_ALLOCATORS = OWN

# What is read from the JSON of `shardcast bench`: title, path, whether it is a share to show in percent.
FIGURES = {
    "cpu": ("CPU µs each", ("server", "cpu_us_each"), False),
    "rate": ("deliveries/s", ("deliveries_per_second",), False),
    "p50": ("p50 µs", ("latency", "p50_us"), False),
    "p99": ("p99 µs", ("latency", "p99_us"), False),
    "pss": ("Pss bytes each", ("server", "pss_per_connection_bytes"), False),
    "idle": ("CPU % at rest", ("server", "cpu"), True),
    "churned": ("came back", ("churned",), False),
    "half": ("half after s", ("resume", "median_seconds"), False),
    "all": ("all after s", ("resume", "all_seconds"), False),
    "quiet99": ("others' p99 µs before", ("resume", "watchers_before", "p99_us"), False),
    "meanwhile99": ("others' p99 µs meanwhile", ("resume", "watchers_during", "p99_us"), False),
    "times99": ("meanwhile / before", ("resume", "watchers_p99_ratio"), False),
}
TRAFFIC = ("cpu", "rate", "p50", "p99")


class Row(NamedTuple):
    what: str
    # For `shardcast bench`. EVENTS is the server's template of event streams. HALF is half of the messages/s that one shard did with one in flight, which is measured first.
    words: str
    figures: tuple = TRAFFIC
    servers: tuple = ALL
    # Of a second load tool at the same time, in a room of its own.
    beside: str = ""
    shards: int = 1
    # Server and load tool share both CPUs, and nothing is pinned to one.
    shared: bool = False
    # The row that it takes turns with, and is shown in relation to.
    than: str = ""
    # The server's limits that are not the default; shardcast's alone.
    limits: tuple = ()
    # Its other settings that are not.
    compression: bool = False


MAIN = {
    "one": Row("1,000 in a room, 1 in flight", "fanout -c 1000 --in-flight 1"),
    "deep": Row("1,000 in a room, 16 in flight", "fanout -c 1000 --in-flight 16"),
    "rooms": Row("100 rooms × 10, a publisher each, 16 in flight", "fanout -c 1000 --rooms 100 --in-flight 16"),
    "wide": Row("10,000 in a room, 4 in flight", "fanout -c 10000 --in-flight 4"),
    "large": Row("16 KiB to 1,000, 4 in flight", "fanout -c 1000 --payload 16384 --in-flight 4"),
    "echo64": Row("echo, 64 connections", "echo -c 64"),
    "echo1000": Row("echo, 1,000 connections", "echo -c 1000"),
    "paced": Row("100,000 deliveries/s offered to 1,000", "fanout -c 1000 --rate 100", ("cpu", "p50", "p99")),
    "pair": Row("a publisher and a subscriber", "fanout -c 2 --in-flight 1", ("p50", "p99", "cpu")),
    "idle": Row("10,000 idle connections in a room", "idle -c 10000", ("pss", "idle")),
    "lone": Row("10,000 idle connections, a room each", "idle -c 10000 --rooms 10000", ("pss", "idle")),
    "storm5": Row("storm of 5,000", "storm -c 5000", ("cpu", "p50", "p99")),
    "storm10": Row("storm of 10,000", "storm -c 10000", ("cpu", "p50", "p99")),
}
SHARDS = "fanout -c 1000 --rate HALF"
QUIET = "fanout -c 10 --rate 100"
JSON = "fanout -c 1000 --in-flight 1 --payload 1024 --text --filler json"
NO_HISTORY = (("history_messages", 0),)
RESUME = "resume -c 5000 --behind 50 --watchers 1000 --rate 50 --events EVENTS"
RESUMED = ("half", "all", "cpu", "quiet99", "meanwhile99", "times99")
ALSO = {
    "everyone": Row("100 in a room, all of them publish, 1 in flight each", "fanout -c 100 --publishers 100 --in-flight 1", TRAFFIC, THREE),
    "churn": Row(
        "1,000 in a room, 1 in flight, 500 leave and come back per second",
        "fanout -c 1000 --in-flight 1 --churn 500", (*TRAFFIC, "churned"), THREE,
    ),
    "slow10": Row("200 in a room, 1,000 messages/s of 1 KiB, 10 % stop reading", "slow --slow-percent 10", ("p50", "p99"), THREE),
    "topics": Row("10,000 rooms of one, who publishes", "fanout -c 10000 --rooms 10000 --in-flight 1", TRAFFIC, THREE),
    "quiet": Row("10 in a room, 100 messages/s", QUIET, ("p50", "p99"), THREE),
    "hot": Row("the same beside a room of 1,000, 16 in flight", QUIET, ("p50", "p99"), THREE, "fanout -c 1000 --in-flight 16", than="quiet"),
    "grow100": Row("100 in a room, 1 in flight", "fanout -c 100 --in-flight 1", TRAFFIC, THREE),
    "grow10000": Row("10,000 in a room, 1 in flight", "fanout -c 10000 --in-flight 1", TRAFFIC, THREE),
    "size1k": Row("1 KiB to 1,000, 4 in flight", "fanout -c 1000 --payload 1024 --in-flight 4", TRAFFIC, THREE),
    "size4k": Row("4 KiB to 1,000, 4 in flight", "fanout -c 1000 --payload 4096 --in-flight 4", TRAFFIC, THREE),
    "size64k": Row("64 KiB to 1,000, 4 in flight", "fanout -c 1000 --payload 65536 --in-flight 4", TRAFFIC, THREE),
    "shards1": Row("1 shard, 2 CPUs with the load", SHARDS, ("cpu", "p50", "p99"), ("shardcast",), shared=True),
    "shards2": Row("2 shards, 2 CPUs with the load", SHARDS, ("cpu", "p50", "p99"), ("shardcast",), shards=2, shared=True, than="shards1"),
    "one_text": Row("one with text", f"{MAIN['one'].words} --text", TRAFFIC, ("shardcast",)),
    "sse": Row("1,000 event streams in a room, 1 in flight", "fanout -c 1001 --in-flight 1 --events EVENTS", TRAFFIC, ("shardcast",), than="one_text"),
    "pair_text": Row("pair with text", f"{MAIN['pair'].words} --text", MAIN["pair"].figures, ("shardcast",)),
    "sse_pair": Row(
        "a publisher and an event stream", "fanout -c 2 --in-flight 1 --events EVENTS", MAIN["pair"].figures, ("shardcast",), than="pair_text",
    ),
    "json1k": Row("1 KiB of JSON to 1,000, 1 in flight", JSON, TRAFFIC, ("shardcast",)),
    "deflate1k": Row("the same, compressed", f"{JSON} --deflate", TRAFFIC, ("shardcast",), than="json1k", compression=True),
    "history_off": Row("one without a history", MAIN["one"].words, TRAFFIC, ("shardcast",), limits=NO_HISTORY),
    "history_on": Row("one with the history that is the default", MAIN["one"].words, TRAFFIC, ("shardcast",), than="history_off"),
    "history_off16": Row("deep without a history", MAIN["deep"].words, TRAFFIC, ("shardcast",), limits=NO_HISTORY),
    "history_on16": Row("deep with the history that is the default", MAIN["deep"].words, TRAFFIC, ("shardcast",), than="history_off16"),
    "resume": Row(
        "5,000 event streams come back at once to 50 messages each, while 1,000 others get 50 messages/s",
        RESUME, RESUMED, ("shardcast",),
    ),
    "resume64": Row("the same, 64 at a time", f"{RESUME} --concurrency 64", RESUMED, ("shardcast",)),
    "alloc_rooms": Row("rooms, mimalloc and system", MAIN["rooms"].words, (*TRAFFIC, "pss"), BOTH_ALLOCATORS),
    "alloc_deep": Row("deep, mimalloc and system", MAIN["deep"].words, (*TRAFFIC, "pss"), BOTH_ALLOCATORS),
    "alloc_storm5": Row("storm5, mimalloc and system", MAIN["storm5"].words, ("cpu", "p50", "p99", "pss"), BOTH_ALLOCATORS),
}
ROWS = MAIN | ALSO
# Words for --rows that stand for several.
GROUPS = {
    "main": tuple(MAIN),
    "also": tuple(ALSO),
    "grow": ("grow100", "one", "grow10000"),
    "size": ("size1k", "size4k", "large", "size64k"),
    "shards": ("shards1", "shards2"),
    "events": ("one_text", "sse", "pair_text", "sse_pair", "history_off", "history_on", "history_off16", "history_on16", "resume", "resume64"),
    "deflate": ("json1k", "deflate1k"),
    "alloc": ("alloc_rooms", "alloc_deep", "alloc_storm5"),
}
