"""A real run behind the rules and the dashboard: bentoml serve, Redis and Prometheus. `make test-rules` runs this; `make test` does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_run import real_run

from prometheus_server import PrometheusServer


@pytest.fixture(scope="session")
def prometheus(builtin_tag: str) -> Iterator[PrometheusServer]:
    """Return a Prometheus that has scraped the real run, and still does."""
    assert builtin_tag
    with real_run(Path(os.environ["BENTOML_HOME"])) as running:
        yield running
