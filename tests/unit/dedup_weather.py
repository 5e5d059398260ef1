"""What is random in test_dedup_property.py: clients, Scorers and a Redis that is broken in every way, and a judge of the answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dedup_parts import LONG, WINDOW, PairLink, raw_score

from bento_service.errors import ScorerDown, ScorerFailed
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.ranking import activate, rank
from bento_service.schemas import CacheUse, RerankResult
from bento_service.tokenizer import Cut, PairTokenizer, TokenizedPair
from redis_servers import RedisServer

QUERIES = ["what is a sea", "river", "", "\N{SNOWMAN} snow"]
TEXTS = [LONG, "long " * 99, "", "\x00"]
SECONDS = 8.0  # that a client gives a request, unless he is hasty
_UNLIKELY, _RARE, _OFTEN = 0.02, 0.05, 0.2

# A pair: the query, the document, max_tokens_per_doc and max_chunks.
Key = tuple[str, str, int | None, int | None]


@dataclass(frozen=True)
class Asked:
    """A request. fields: of its RerankQuery · leaves_after: seconds; None for a client who stays."""

    query: str
    texts: list[str]
    use: CacheUse
    seconds: float
    leaves_after: float | None
    fields: dict[str, Any]

    def keys(self) -> set[Key]:
        """Name its pairs; a limit of the window is none."""
        limit, chunks = self.fields["max_tokens_per_doc"], self.fields["max_chunks"]
        return {(self.query, text, None if limit == WINDOW else limit, chunks) for text in self.texts}


class Judge:
    """Knows what each answer must be, without any cache."""

    def __init__(self, tokenizer: PairTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pairs: dict[Key, TokenizedPair] = {}

    def pair(self, key: Key) -> TokenizedPair:
        """Tokenise a pair, once."""
        query, text, limit, chunks = key
        if key not in self._pairs:
            self._pairs[key] = self._tokenizer.encode_now(query, [text], Cut(limit, max_chunks=chunks), 0.0, 0)[0]
        return self._pairs[key]

    def sequences(self, requests: list[Asked]) -> Counter[bytes]:
        """Say how often each sequence is to be scored if each pair of the requests is scored once."""
        keys = set[Key]().union(*(asked.keys() for asked in requests))
        return Counter(window.ids.tobytes() for key in keys for window in self.pair(key).windows)

    def check(self, asked: Asked, result: RerankResult) -> None:
        """See that an answer is right, to the bit."""
        fields = asked.fields
        pairs = [self.pair((asked.query, text, fields["max_tokens_per_doc"], fields["max_chunks"])) for text in asked.texts]
        windows = [[raw_score(window) for window in pair.windows] for pair in pairs]
        scores = [max(each) for each in windows]
        spans = {place: pair.spans[windows[place].index(scores[place])] for place, pair in enumerate(pairs) if pair.spans}
        scores = scores if fields["raw_scores"] else [activate(score, "sigmoid") for score in scores]
        ranked = rank(scores, top_n=fields["top_n"], score_threshold=fields["score_threshold"])
        truncated = [place for place, pair in enumerate(pairs) if pair.truncated]
        cached = result.cache.hits + result.cache.misses + result.cache.shared
        assert (result.ranked, result.truncated, result.spans) == (ranked, truncated, spans), (asked, result, ranked)
        assert (result.token_count, cached) == (sum(pair.token_count for pair in pairs), len(pairs)), (asked, result)
        assert fields["truncation"] or not truncated, (asked, result)


class Weather:
    """Decides on everything that is random. faults: of Scorers, of Redis and of hasty clients · leaving: clients who do not wait."""

    def __init__(self, seed: int, *, faults: bool, leaving: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311  no secret
        self.faults, self.leaving = faults, leaving

    def chance(self, share: float) -> bool:
        """Tell whether something happens that only faults bring."""
        return self.faults and self.random.random() < share

    async def a_moment(self, most_seconds: float) -> None:
        """Let some time pass."""
        await asyncio.sleep(self.random.uniform(0, most_seconds))

    def request(self, number: int) -> Asked:
        """Make a request; those of like numbers have documents in common."""
        draw = self.random
        raw = draw.random() < 0.5
        texts = [*TEXTS, *(f"document {each}" for each in range(2 * number, 2 * number + 16))]
        return Asked(
            draw.choice(QUERIES),
            draw.choices(texts, k=draw.randint(1, 12)),
            draw.choice([CacheUse.REFRESH, CacheUse.NONE]) if self.chance(_OFTEN) else CacheUse.FULL,
            draw.uniform(0, 0.1) if self.chance(_RARE) else SECONDS,
            draw.uniform(0, 0.05) if self.leaving and draw.random() < 0.3 else None,
            {
                "raw_scores": raw,
                "truncation": draw.random() < 0.9,
                "top_n": draw.choice([None, None, 1, 5]),
                "score_threshold": draw.choice([None, None, 1.0 if raw else 0.5]),
                "max_tokens_per_doc": draw.choice([None, None, 2, WINDOW]),
                # Of a pair that was given up between two of its windows, the first is scored again: their count would not be exact.
                "max_chunks": None if self.leaving and not self.faults else draw.choice([None, None, 1, 4]),
            },
        )


class FickleLink(PairLink):
    """A Scorer that takes its time and, when there are faults, fails in every way. scored: how often each sequence was."""

    def __init__(self, tokenizer: PairTokenizer, weather: Weather) -> None:
        super().__init__(tokenizer, 8)
        self._weather = weather
        self.scored: Counter[bytes] = Counter()

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Score, or not."""
        weather = self._weather
        pairs = [TokenPair.unpack(blob) for blob in blobs]
        self.scored.update(pair.ids.tobytes() for pair in pairs)
        await weather.a_moment(2.0 if weather.chance(_UNLIKELY) else 0.03)
        if weather.chance(_UNLIKELY):
            raise weather.random.choice([ScorerDown("gone"), ScorerFailed("broken")])
        fingerprint = bytes([9] * 32) if weather.chance(_RARE) else self.fingerprint
        return [PairScore(*self._outcome(pair), fingerprint) for pair in pairs]

    def _outcome(self, pair: TokenPair) -> tuple[float, Outcome]:
        if self._weather.chance(_UNLIKELY):
            return float("nan"), self._weather.random.choice([Outcome.FAILED, Outcome.LATE])
        return raw_score(pair), Outcome.SCORED


def spoil(redis: RedisServer, draw: random.Random) -> None:
    """Write rubbish under our keys."""
    client, far = redis.client(), b"99999999999999"
    for key in client.scan_iter("reranker:*"):
        fields = client.hgetall(key) if client.type(key) == b"hash" else {}
        match draw.randrange(6):
            case 0:
                client.set(key, "rubbish", keepttl=True)
            case 1:
                client.delete(key)
            case _:
                owner = bytes(12)
                claims = [owner + b"1:" + far, owner + far + b":" + far, owner + far + b":1", owner]
                rubbish = [draw.randbytes(13), draw.randbytes(40), b"", *claims, *fields.values()]
                changed = {name: draw.choice(rubbish) for name in fields if draw.random() < 0.5}
                if changed:
                    client.hset(key, mapping=changed)


async def break_redis(redis: RedisServer, weather: Weather) -> None:
    """Do one thing to it after another, until cancelled; it is whole again in the end."""
    client = redis.client()
    try:
        while True:
            await weather.a_moment(0.15)
            match weather.random.randrange(7):
                case 0:
                    redis.pause()
                    await weather.a_moment(0.2)
                    redis.resume()
                case 1:
                    redis.kill()
                    await weather.a_moment(0.2)
                    redis.restart()
                case 2:
                    client.replicaof("127.0.0.1", "9")
                    await weather.a_moment(0.2)
                    client.replicaof("NO", "ONE")
                case 3:
                    client.flushall()
                case 4:
                    client.script_flush()
                case 5:
                    client.client_kill_filter(_type="normal", skipme=True)
                case _:
                    spoil(redis, weather.random)
    finally:
        redis.resume()
        if redis.process.poll() is not None:
            redis.restart()
        client.replicaof("NO", "ONE")
