"""deploy/profiles: what stands in them is known to the service, and what it refuses does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_service.settings import REFUSED, Settings, known_variables, load_settings

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "profiles"
PROFILES = {path.stem: path for path in FOLDER.glob("*.env")}


def values(path: Path) -> dict[str, str]:
    """Read an env file as systemd, Docker and make do: a name and a value a line, # begins a comment."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings of a profile."""
    for variable, value in values(PROFILES[name]).items():
        monkeypatch.setenv(variable, value)
    return load_settings()


def test_all_profiles_are_there() -> None:
    """By use and by size."""
    assert sorted(PROFILES) == ["cpu", "high-throughput", "large", "medium", "memory-constrained", "small"]


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_holds_settings_that_the_service_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every line the name is known, and none is said twice; a value that is refused would raise here."""
    lines = [line for line in PROFILES[name].read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(values(PROFILES[name]))
    assert set(values(PROFILES[name])) <= set(known_variables())
    assert not set(values(PROFILES[name])) & set(REFUSED)
    loaded(name, monkeypatch)


def test_what_tells_the_profiles_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one's point."""
    expected = {
        "cpu": lambda s: s.device == "cpu" and s.max_parallel == 4,
        "high-throughput": lambda s: s.device == "cuda" and s.max_queue_requests == 100 and s.workers > 1,
        "memory-constrained": lambda s: s.local_cache_entries == 0 and s.max_parallel == 2 and s.asked_quantization == "int8",
        "small": lambda s: s.asked_quantization == "bf16" and not s.redis_enabled,
        "medium": lambda s: s.asked_quantization == "bf16" and s.redis_enabled,
        "large": lambda s: s.redis_enabled and s.redis_ttl_seconds == 600 and s.max_parallel_requests == 8,
    }
    for name, holds in expected.items():
        with monkeypatch.context() as patch:
            assert holds(loaded(name, patch)), name
