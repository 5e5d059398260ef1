"""The mixed traffic of the rules' real run and of the dashboard's picture."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

from mixed_traffic import MixedTraffic


def test_the_same_seed_asks_the_same() -> None:
    """So that a run can be repeated."""
    first, second = (MixedTraffic(3, documents=5) for _ in range(2))
    assert [first.take() for _ in range(50)] == [second.take() for _ in range(50)]


def test_every_kind_of_request_comes() -> None:
    """Mistakes, new text and a few popular queries, each with a repeated document, some with one that is cut."""
    traffic = MixedTraffic(3, documents=5, new=0.2, mistakes=0.1)
    taken = [traffic.take()[1] for _ in range(2000)]
    bodies = Counter(taken)
    asked = {body: json.loads(body)["documents"] for body in bodies}
    (mistakes,) = (bodies[body] for body, documents in asked.items() if not documents)
    assert 150 < mistakes < 250
    assert 250 < sum(count == 1 for count in bodies.values()) < 400
    assert 60 < sum(first == second and bodies[first] == 2 for first, second in pairwise(taken)) < 130
    assert max(count for body, count in bodies.items() if asked[body]) > 150
    assert all(len(set(documents)) == len(documents) - 1 == 5 for documents in asked.values() if documents)
    assert any(len(document.split()) >= 600 for documents in asked.values() for document in documents)
