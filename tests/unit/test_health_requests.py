"""What /health counts of requests."""

from __future__ import annotations

import pytest

from bento_service.health import _requests


@pytest.mark.parametrize(
    ("status", "failed"),
    [("400", False), ("422", False), ("499", False), ("424", True), ("429", True), ("500", True), ("503", True), ("504", True)],
)
def test_a_caller_s_own_mistake_is_no_failure_of_the_service(status: str, failed: bool) -> None:
    """Being turned away and a failed score, which is 424 for TEI's clients, are; other routes do not count."""
    counts = {("/rerank", "200"): 6.0, ("/rerank", status): 3.0, ("/v2/rerank", "200"): 1.0, ("/health", "503"): 90.0}
    samples = {
        ("reranker_requests_total", (("route", route), ("status", code))): value for (route, code), value in counts.items()
    }
    told = _requests(samples)
    assert (told["total"], told["success_rate"]) == (10, 0.7 if failed else 1.0)
