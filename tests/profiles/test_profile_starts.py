"""`make test-profiles`: a server starts with each of deploy/profiles and answers; on a machine without a GPU, the GPU's on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from background_service import BackgroundService
from bento_service.hardware import gpu_count
from redis_servers import RedisServer
from servers import REPOSITORY

PROFILES = sorted(path.stem for path in (REPOSITORY / "deploy" / "profiles").glob("*.env"))


@pytest.fixture
def service(builtin_tag: str, tmp_path: Path) -> Iterator[BackgroundService]:
    """A port on which nothing runs yet, and nothing will when the test is over."""
    assert builtin_tag
    background = BackgroundService(Path(os.environ["BENTOML_HOME"]), tmp_path)
    yield background
    background.call("stop", "--stop-seconds", "5")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_starts_and_answers(service: BackgroundService, profile: str) -> None:
    """With what must be said for this machine: where Redis is, and that there is no GPU."""
    with RedisServer() as redis:
        own = {"REDIS_URL": redis.url} | ({} if gpu_count() else {"RERANKER_DEVICE": "cpu"})
        started = service.make("start", f"PROFILE={profile}", **own)
        assert started.returncode == 0, started.stderr
        assert service.rerank().json()["results"][0]["index"] == 1
        assert service.health()["status"] == "ok"
        assert service.make("stop").returncode == 0


def test_a_gpus_profile_without_a_gpu_says_so(service: BackgroundService) -> None:
    """One line, and the start has failed."""
    started = service.make("start", "PROFILE=high-throughput", CUDA_VISIBLE_DEVICES="")
    assert started.returncode != 0
    assert "torch sees no CUDA device" in started.stderr
