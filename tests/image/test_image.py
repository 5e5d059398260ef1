"""The image of `make containerize`, started as it is deployed: `make test-image`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import yaml
from containers import Container, eventually, find_engine, image_facts, make_container

from servers import REPOSITORY, free_port

IMAGE = os.environ.get("IMAGE", "reranker:latest")
# Order and scores of the built-in model in fp32; the others keep the order, and come as near as their bounds promise.
QUESTION = {"query": "capital of France", "documents": ["Rome", "Paris is the capital of France", "bread"]}
ORDER = [1, 0, 2]
SCORES = [0.9483, 0.6507, 0.5692]
BOUND = 0.05
COMPOSE = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())
_MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def engine() -> str:
    """Find what runs containers here."""
    return find_engine()


@pytest.fixture(scope="module")
def container(engine: str) -> Iterator[Container]:
    """Start one that the tests share."""
    image_facts(engine, IMAGE)
    with make_container(engine, IMAGE, RERANKER_DRAIN_SECONDS=0) as started:
        yield started


def test_it_answers_the_golden_request(container: Container) -> None:
    """In the right order and within the bound of the precision packed into it."""
    results = container.rerank(**QUESTION)["results"]
    assert [result["index"] for result in results] == ORDER
    assert [result["score"] for result in results] == pytest.approx(SCORES, abs=BOUND)
    print(f"\nready {container.start_seconds:.1f} s after its start")


def test_health_says_what_is_served(container: Container) -> None:
    """The packed model, with its Scorer up."""
    health = container.get("/health")
    assert health["status"] == "ok"
    assert health["model"]["tag"].startswith("all-minilm-l6-v2")
    assert health["model"]["device"] == "cpu"
    assert container.status("/livez") == container.status("/readyz") == 200


def test_compose_s_health_check_knows_a_ready_server(container: Container) -> None:
    """It passes there, and fails where nobody listens."""
    container.run_inside(*health_check(container, container.port))
    with pytest.raises(AssertionError):
        container.run_inside(*health_check(container, free_port()))


def test_its_processes_are_not_root_s(container: Container) -> None:
    """They are those of the user bentoml."""
    assert container.run_inside("id", "-u") == "1034"


def test_nothing_is_written_outside_tmp(container: Container) -> None:
    """So that the rest can be read-only: with an engine it is, without one no file is newer than the container."""
    assert container.written() == []


def test_it_holds_neither_compilers_nor_cuda_nor_secrets(engine: str, container: Container) -> None:
    """Nor anything else that only building needs."""
    missing = "import shutil, sys; print([tool for tool in sys.argv[1:] if shutil.which(tool)])"
    assert container.run_inside("python", "-c", missing, "gcc", "cc", "make", "git") == "[]"
    packages = container.run_inside(
        "python", "-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    ).split()
    assert [name for name in packages if name.startswith(("nvidia-cu", "nvidia-nccl", "pytest", "triton"))] == []
    user, environment, size = image_facts(engine, IMAGE)
    assert user == "bentoml"
    names = [each.split("=")[0] for each in environment]
    assert [name for name in names if any(word in name for word in ("KEY", "TOKEN", "PASSWORD", "SECRET"))] == []
    print(f"\n{IMAGE} takes {size / _MEGABYTE:,.0f} MB, its base included")


def test_a_dead_scorer_ends_it_and_the_restart_policy_brings_it_back(engine: str) -> None:
    """With a code other than 0; then it answers again."""
    with make_container(engine, IMAGE, RERANKER_DRAIN_SECONDS=0) as started:
        started.signal_scorer(signal.SIGKILL)
        eventually(started.restarted, 60, "a restart")
        started.wait_ready()
        assert [result["index"] for result in started.rerank(**QUESTION)["results"]] == ORDER


def test_a_hung_scorer_is_ended_by_compose_s_health_check_and_its_restart_policy_brings_it_back(engine: str) -> None:
    """Once /livez fails; then it answers again."""
    settings = {"RERANKER_DRAIN_SECONDS": 0, "RERANKER_SCORER_SILENCE_SECONDS": 2, "RERANKER_LIVENESS_SECONDS": 2}
    restart = COMPOSE["services"]["reranker"]["restart"]
    with make_container(engine, IMAGE, restart=restart, RERANKER_SHUTDOWN_SECONDS=10, **settings) as started:
        started.signal_scorer(signal.SIGSTOP)
        eventually(lambda: started.status("/livez") == 503, 30, "/livez")
        with pytest.raises(AssertionError):
            started.run_inside(*health_check(started, started.port))
        eventually(started.restarted, 60, "a restart")
        started.wait_ready()
        assert [result["index"] for result in started.rerank(**QUESTION)["results"]] == ORDER


def test_sigterm_ends_it_with_exit_0(engine: str) -> None:
    """After a drain period in which it still answers."""
    with make_container(engine, IMAGE, RERANKER_DRAIN_SECONDS=1) as started:
        assert started.stop() == 0


def health_check(container: Container, port: int) -> list[str]:
    """Return compose's command for that container's first process and port."""
    [_, *command, program] = COMPOSE["services"]["reranker"]["healthcheck"]["test"]
    assert ":3000/" in program
    assert "os.kill(1," in program
    return [*command, program.replace(":3000/", f":{port}/").replace("os.kill(1,", f"os.kill({container.first_process()},")]
