"""The same scores in Redis, laid out in several ways: bytes for a pair and server time for a look-up of 50 pairs.

1,000 queries x 50 documents, and some layouts also at 10 and 500 documents for a query. Every layout has a Redis of its own. Bytes
are the growth of used_memory. Two times of a look-up, both the server's own: of its command (INFO commandstats), and of the whole
process (INFO cpu), which counts reading the question and writing the answer too. Look-ups of all layouts alternate.
The last thing printed is a table in Markdown, which is where ADR 6 has its figures from.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import itertools
import json
import os
import random
import statistics
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import redis  # noqa: E402  the path must be set first

from bento_service.cache import layout  # noqa: E402
from bento_service.cache.keys import DIGEST_BYTES  # noqa: E402
from bento_service.pairs import KnownScore  # noqa: E402
from redis_servers import RedisServer  # noqa: E402

ASKED = 50
TTL_MS = 3_600_000
SHORT_DIGEST_BYTES = 8
QUERIES_PER_PIPELINE = 20
FINGERPRINT = "9b2ed4c91b0bd817" * 4

# KEYS the string · ARGV digests one behind the other · returns their values one behind the other
SCAN_STRING = f"""
local blob, asked, found = redis.call('GET', KEYS[1]) or '', {{}}, {{}}
for first = 1, #ARGV[1], {DIGEST_BYTES} do asked[#asked + 1] = string.sub(ARGV[1], first, first + {DIGEST_BYTES - 1}) end
local known, size = {{}}, {DIGEST_BYTES + layout.VALUE_BYTES}
for first = 1, #blob, size do
  known[string.sub(blob, first, first + {DIGEST_BYTES - 1})] = string.sub(blob, first + {DIGEST_BYTES}, first + size - 1)
end
for n, digest in ipairs(asked) do found[n] = known[digest] or '' end
return table.concat(found)
"""


@dataclass(frozen=True)
class Query:
    """A query's digest and its pairs: 16-byte digest and what is known."""

    digest: bytes
    pairs: list[tuple[bytes, KnownScore]]

    @property
    def tag(self) -> str:
        """The query in a key's name, as our layout writes it."""
        return base64.urlsafe_b64encode(self.digest).rstrip(b"=").decode()


Pipeline = Any
Store = Callable[[Pipeline, Query], None]
Look = Callable[[Pipeline, Query, Sequence[int]], None]
Read = Callable[[Any], int]


@dataclass(frozen=True)
class Layout:
    """One way to lay pairs out.

    store: writes a query's pairs · look: asks for some of them · found: counts the pairs in an answer · command: what a look-up is in
    INFO commandstats · scripts: that it needs.
    """

    name: str
    store: Store
    look: Look
    found: Read
    command: str
    scripts: tuple[str, ...] = field(default=(), repr=False)


def make_queries(queries: int, documents: int) -> list[Query]:
    """Draw digests and scores."""
    drawn = random.Random(documents)

    def known() -> KnownScore:
        raw = struct.unpack("<f", struct.pack("<f", drawn.uniform(-0.2, 0.9)))[0]
        return KnownScore(raw, drawn.randint(20, 256), truncated=False)

    return [
        Query(drawn.randbytes(DIGEST_BYTES), [(drawn.randbytes(DIGEST_BYTES), known()) for _ in range(documents)])
        for _ in range(queries)
    ]


def _digest_of(script: str) -> str:
    return hashlib.sha1(script.encode()).hexdigest()  # noqa: S324  Redis names scripts so


def _count_listed(answer: list[bytes | None]) -> int:
    return sum(value is not None for value in answer)


def _hash_key(query: Query) -> str:
    return layout.query_keys(FINGERPRINT, query.digest)[1]


def _pair_key(digest: bytes) -> bytes:
    return f"{layout.PREFIX}{FINGERPRINT[: layout.FINGERPRINT_DIGITS]}:".encode() + digest


def _store_keys(pipeline: Pipeline, query: Query) -> None:
    for digest, known in query.pairs:
        pipeline.set(_pair_key(digest), layout.pack_value(digest, known), px=TTL_MS)


def _look_keys(pipeline: Pipeline, query: Query, places: Sequence[int]) -> None:
    pipeline.mget([_pair_key(query.pairs[place][0]) for place in places])


def _cut_script(script: str, digest_bytes: int) -> str:
    """Let one of our scripts take digests of another length."""
    constant = f"DIGEST, TOKEN, CHUNK = {DIGEST_BYTES},"
    if constant not in script:
        raise SystemExit("the scripts of layout.py no longer begin as they did: mend _cut_script")
    return script.replace(constant, f"DIGEST, TOKEN, CHUNK = {digest_bytes},")


def _store_settled(pipeline: Pipeline, query: Query, *, digest_bytes: int) -> None:
    for first in range(0, len(query.pairs), layout.MOST_PAIRS):
        pairs = query.pairs[first : first + layout.MOST_PAIRS]
        keys = layout.query_keys(FINGERPRINT, query.digest)
        digests = b"".join(digest[:digest_bytes] for digest, _ in pairs)
        values = b"".join(layout.pack_value(digest, known) for digest, known in pairs)
        script = _digest_of(_cut_script(layout.SETTLE, digest_bytes))
        pipeline.evalsha(script, len(keys), *keys, bytes(layout.TOKEN_BYTES), TTL_MS, layout.PAGE_PAIRS, 0, digests, values, b"")


def _look_claimed(pipeline: Pipeline, query: Query, places: Sequence[int], *, digest_bytes: int) -> None:
    keys = layout.query_keys(FINGERPRINT, query.digest)
    digests = b"".join(query.pairs[place][0][:digest_bytes] for place in places)
    script = _digest_of(_cut_script(layout.CLAIM, digest_bytes))
    pipeline.evalsha(script, len(keys), *keys, bytes(layout.TOKEN_BYTES), 2000, 60_000, digests)


def _ours(name: str, digest_bytes: int) -> Layout:
    return Layout(
        name,
        partial(_store_settled, digest_bytes=digest_bytes),
        partial(_look_claimed, digest_bytes=digest_bytes),
        lambda answer: answer[0].count(b"h"),
        "evalsha",
        (_cut_script(layout.SETTLE, digest_bytes), _cut_script(layout.CLAIM, digest_bytes)),
    )


def _hash_of(name: str, key: Callable[[Query], str], *, text: bool = False, expires: bool = True) -> Layout:
    """Lay out a hash read with HMGET, without claims. text: hex digests and JSON, as one writes them by hand."""

    def field_of(digest: bytes) -> bytes | str:
        return digest.hex() if text else digest

    def value_of(digest: bytes, known: KnownScore) -> bytes | str:
        if not text:
            return layout.pack_value(digest, known)
        # 9 digits are a whole float32; json's 17 would make the value longer than what Redis keeps in the compact form.
        return f'{{"raw":{known.raw:.9g},"token_count":{known.token_count},"truncated":{json.dumps(known.truncated)}}}'

    def store(pipeline: Pipeline, query: Query) -> None:
        pipeline.hset(key(query), mapping={field_of(digest): value_of(digest, known) for digest, known in query.pairs})
        if expires:
            pipeline.pexpire(key(query), TTL_MS)

    def look(pipeline: Pipeline, query: Query, places: Sequence[int]) -> None:
        pipeline.hmget(key(query), [field_of(query.pairs[place][0]) for place in places])

    return Layout(name, store, look, _count_listed, "hmget")


def _store_string(pipeline: Pipeline, query: Query) -> None:
    records = b"".join(digest + layout.pack_value(digest, known) for digest, known in query.pairs)
    pipeline.append(_hash_key(query), records)
    pipeline.pexpire(_hash_key(query), TTL_MS)


def _look_string(pipeline: Pipeline, query: Query, places: Sequence[int]) -> None:
    digests = b"".join(query.pairs[place][0] for place in places)
    pipeline.evalsha(_digest_of(SCAN_STRING), 1, _hash_key(query), digests)


KEYS = Layout("a key for each pair: SET, MGET", _store_keys, _look_keys, _count_listed, "mget")
OURS = _ours("**a hash for each query, 16-byte digests: our scripts**", DIGEST_BYTES)
STRING = Layout(
    "a string for each query, records appended, scanned in Lua",
    _store_string,
    _look_string,
    lambda answer: len(answer) // layout.VALUE_BYTES,
    "evalsha",
    (SCAN_STRING,),
)
LAYOUTS = (
    KEYS,
    OURS,
    _hash_of("the same hash without claims: HSET, HMGET", _hash_key),
    _hash_of("a hash for each query, hex digests and JSON: HSET, HMGET", _hash_key, text=True),
    STRING,
    _ours("a hash for each query, 8-byte digests: our scripts", SHORT_DIGEST_BYTES),
    _hash_of("one hash for all, no time to live: HSET, HMGET", lambda _: f"{layout.PREFIX}all", expires=False),
)
AT_OTHER_SIZES = (KEYS, OURS, STRING)
SIZES = (10, 500)


class Trial:
    """One layout in a Redis of its own."""

    def __init__(self, server: RedisServer, laid_out: Layout, queries: list[Query]) -> None:
        self._server = server
        self._layout = laid_out
        self._queries = queries
        self._documents = len(queries[0].pairs)
        # Without a time-out of its own, since a thousand look-ups go out at once.
        self._client: redis.Redis = server.client(socket_timeout=60)
        self._bytes_per_pair = 0.0
        self._store_us = 0.0
        self._command_us: list[float] = []
        self._server_us: list[float] = []

    def store(self) -> None:
        """Store all queries but the first, which has made room for scripts and buffers before."""
        for script in self._layout.scripts:
            self._client.script_load(script)
        first, *rest = self._queries
        self._send([first])
        before, seconds = self._server.used_memory(), self._server_seconds()
        for start in range(0, len(rest), QUERIES_PER_PIPELINE):
            self._send(rest[start : start + QUERIES_PER_PIPELINE])
        self._store_us = 1e6 * (self._server_seconds() - seconds) / len(rest)
        self._bytes_per_pair = (self._server.used_memory() - before) / (len(rest) * self._documents)

    def _send(self, queries: list[Query]) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for query in queries:
                self._layout.store(pipeline, query)
            pipeline.execute()

    def look(self, lookups: int, drawn: random.Random) -> None:
        """Look pairs of random queries up and note the server's time; all of them must be found."""
        asked = min(ASKED, self._documents)
        with self._client.pipeline(transaction=False) as pipeline:
            for _ in range(lookups):
                query = drawn.choice(self._queries)
                self._layout.look(pipeline, query, drawn.sample(range(self._documents), asked))
            self._client.config_resetstat()
            seconds = self._server_seconds()
            answers = pipeline.execute()
        spent = self._server_seconds() - seconds
        for answer in answers:
            if self._layout.found(answer) != asked:
                raise SystemExit(f"{self._layout.name}: found {self._layout.found(answer)} of {asked} pairs")
        command = self._client.info("commandstats")[f"cmdstat_{self._layout.command}"]
        self._command_us.append(command["usec"] / command["calls"])
        self._server_us.append(1e6 * spent / lookups)

    def _server_seconds(self) -> float:
        cpu = self._client.info("cpu")
        return float(cpu["used_cpu_sys"] + cpu["used_cpu_user"])

    def figures(self) -> dict[str, object]:
        """Medians over the rounds."""
        return {
            "layout": self._layout.name,
            "documents_per_query": self._documents,
            "pairs_per_lookup": min(ASKED, self._documents),
            "bytes_per_pair": round(self._bytes_per_pair, 1),
            "lookup_command_us": round(statistics.median(self._command_us), 1),
            "lookup_server_us": round(statistics.median(self._server_us), 1),
            "store_server_us_per_query": round(self._store_us, 1),
        }


@contextlib.contextmanager
def trials(queries: int) -> Iterator[list[Trial]]:
    """Start a Redis for each layout and size, filled."""
    with contextlib.ExitStack() as stack:
        started = []
        for documents in (ASKED, *SIZES):
            drawn = make_queries(queries, documents)
            for laid_out in LAYOUTS if documents == ASKED else AT_OTHER_SIZES:
                started.append(Trial(stack.enter_context(RedisServer()), laid_out, drawn))
                started[-1].store()
        yield started


def table(rows: list[dict[str, Any]], title: str) -> str:
    """Write the figures as Markdown."""
    head = (
        "| layout | documents of a query | bytes/pair | look-up: command, whole server, µs | store a query, µs |",
        "|---|---|---|---|---|",
    )
    lines = [
        f"| {row['layout']} | {row['documents_per_query']} | {row['bytes_per_pair']:.0f} "
        f"| {row['lookup_command_us']:.0f}, {row['lookup_server_us']:.0f} | {row['store_server_us_per_query']:.0f} |"
        for row in rows
    ]
    return "\n".join((title, "", *head, *lines))


def run(queries: int, lookups: int, rounds: int) -> None:
    """Fill all, then look up in turn."""
    with RedisServer() as server, server.client() as client:
        name = f"Redis {client.info('server')['redis_version']} ({client.info('memory')['mem_allocator']})"
    with trials(queries) as started:
        for turn, trial in itertools.product(range(rounds), started):
            trial.look(lookups, random.Random(turn))
        rows = [trial.figures() for trial in started]
    for row in rows:
        print(json.dumps({"redis": name, "queries": queries, **row}), flush=True)
    print(table(rows, f"{name}, {queries} queries; a look-up asks for {ASKED} pairs, or for all where there are fewer."))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--lookups", type=int, default=1000, help="in each round and layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--redis-server", help="another redis-server than the tests': a path, or a name on PATH")
    options = parser.parse_args()
    if options.redis_server:
        os.environ["REDIS_SERVER"] = options.redis_server
    run(options.queries, options.lookups, options.rounds)


if __name__ == "__main__":
    main()
