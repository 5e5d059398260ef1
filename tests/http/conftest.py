"""The entry service through BentoML's own to_asgi(), with a fake Scorer behind it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from fake_scorer import FakeScorer


@pytest.fixture(scope="session")
def scorer() -> FakeScorer:
    """Return the Scorer behind `client`."""
    return FakeScorer()


@pytest.fixture(scope="session")
def frozen() -> list[int]:
    """How many objects Python's search for garbage left out when `client` had started; other tests of this process change it."""
    return []


@pytest.fixture(scope="session")
def client(builtin_tag: str, scorer: FakeScorer, frozen: list[int]) -> Iterator[TestClient]:
    """Start the entry service in process and wait until it is ready."""
    assert builtin_tag
    from bento_service import service

    service.Reranker.inner.scorer_0._resolved = scorer
    gc.unfreeze()
    with TestClient(service.Reranker.to_asgi()) as started:
        for _ in range(100):
            if started.get("/readyz").is_success:
                break
            started.portal.call(asyncio.sleep, 0.02)
        assert started.get("/readyz").is_success
        frozen.append(gc.get_freeze_count())
        yield started
