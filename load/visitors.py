"""Many callers of a rerank endpoint in one asyncio process: a closed loop, an open loop, and callers who hang up.

An open loop's latencies count from when a request was due, so that a generator that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp

from loops import arrivals, percentile
from texts import Texts

TIMEOUT_SECONDS = 120.0
DOCUMENTS = 10  # of a small request
OK, TOO_MANY = 200, 429
FAILED, HUNG_UP = 0, -1  # in the place of a status


@dataclass(slots=True)
class Visit:
    """One request and what came of it. Times in seconds of the crowd's age; status: of HTTP, FAILED or HUNG_UP."""

    due: float
    pairs: int
    status: int = FAILED
    done: float = 0.0
    hits: int = 0
    retry_after: str | None = None
    code: str = ""

    @property
    def seconds(self) -> float:
        """From when it was due to its answer."""
        return self.done - self.due


@dataclass(frozen=True, slots=True)
class Body:
    """A request's bytes and how many pairs it asks for."""

    content: bytes
    pairs: int


def new_bodies(seed: int, documents: int) -> Callable[[], Body]:
    """Offer requests of new text, of so many documents each."""
    texts = Texts(seed)

    def make() -> Body:
        query, drawn = texts.request(documents)
        return Body(json.dumps({"query": query, "documents": drawn}).encode(), documents)

    return make


@dataclass
class Crowd:
    """Callers of one server; use it with `async with`.

    visits: all that have ended, in order of their ends · started: all, in order of their begins · stopping: no more begin in an open loop.
    """

    url: str
    path: str = "/v2/rerank"
    visits: list[Visit] = field(default_factory=list)
    started: list[Visit] = field(default_factory=list)
    stopping: bool = False
    begin: float = field(default_factory=time.monotonic)

    async def __aenter__(self) -> Self:
        """Open the connections' pool."""
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        await self._session.close()

    @property
    def age(self) -> float:
        """Seconds since its begin."""
        return time.monotonic() - self.begin

    async def visit(self, body: Body, due: float | None = None, *, patience: float | None = None) -> Visit:
        """Send a request. due: when it should have been sent · patience: seconds after which the caller hangs up."""
        visit = Visit(self.age if due is None else due, body.pairs)
        self.started.append(visit)
        try:
            async with asyncio.timeout(patience):
                await self._send(visit, body)
        except TimeoutError:
            visit.status = HUNG_UP if patience is not None else FAILED
        except (aiohttp.ClientError, OSError) as error:
            visit.status, visit.code = FAILED, type(error).__name__
        visit.done = self.age
        self.visits.append(visit)
        return visit

    async def _send(self, visit: Visit, body: Body) -> None:
        headers = {"content-type": "application/json"}
        async with self._session.post(self.url + self.path, data=body.content, headers=headers) as answer:
            content = await answer.read()
            visit.status, visit.retry_after = answer.status, answer.headers.get("retry-after")
            visit.hits = int(answer.headers.get("x-cache-hits", "0"))
            if answer.status != OK:
                visit.code = json.loads(content)["error"]["code"]

    async def closed_loop(
        self, make: Callable[[], Body], *, clients: int, seconds: float, patience: float = math.inf, seed: int = 0
    ) -> None:
        """Let each client send its next request when it has its answer, and after Retry-After, until `seconds` have passed.

        patience: each hangs up after a random time below, and sends its next request when it would have had an answer, after `patience`.
        """
        draw, end = random.Random(seed), self.age + seconds

        async def client() -> None:
            while self.age < end:
                if math.isinf(patience):
                    visit = await self.visit(make())
                    await asyncio.sleep(float(visit.retry_after or 0))
                else:
                    visit = await self.visit(make(), patience=draw.uniform(0, patience))
                    await asyncio.sleep(max(0.0, visit.due + patience - self.age))

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open_loop(self, make: Callable[[], Body], *, requests_per_second: float, seconds: float, seed: int) -> None:
        """Send requests when they are due, whatever has become of the earlier ones."""
        begin, visits = self.age, []
        for time_due in arrivals(round(requests_per_second * seconds), seconds, seed):
            due = begin + time_due
            await asyncio.sleep(max(0.0, due - self.age))
            if self.stopping:
                break
            visits.append(asyncio.create_task(self.visit(make(), due)))
        await asyncio.gather(*visits)


async def alone(url: str, seconds: float, seed: int) -> list[Visit]:
    """Let one client ask for new texts, one small request after the other."""
    async with Crowd(url) as crowd:
        await crowd.closed_loop(new_bodies(seed, DOCUMENTS), clients=1, seconds=seconds)
        return crowd.visits


def answered(visits: Iterable[Visit]) -> list[Visit]:
    """Those that got their scores."""
    return [visit for visit in visits if visit.status == OK]


def goodput(visits: Iterable[Visit], begin: float, end: float) -> float:
    """Pairs/s answered with 200 between two ages."""
    return sum(visit.pairs for visit in answered(visits) if begin <= visit.done < end) / (end - begin)


def latency(visits: Iterable[Visit], share: float) -> float:
    """Percentile of the answered ones' seconds."""
    return percentile([visit.seconds for visit in answered(visits)], share)
