"""What the load tests ask: repeats, popularity, and requests from files."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from text_files import TextFileError, read_texts
from workload import BLOCK, Request, Workload, WorkloadSpec

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file; its path."""

    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return written


def take(count: int, **spec: object) -> list[Request]:
    """Take so many requests of a stream."""
    workload = Workload(WorkloadSpec(**spec))
    return [workload.take() for _ in range(count)]


def test_the_share_of_repeats_is_exact() -> None:
    """In each block, also where the block is no multiple of it; a repeat is a request that came before, documents and all."""
    requests = take(20 * BLOCK, repeats=0.4, documents=3)
    assert sum(request.repeated for request in requests) == 0.4 * len(requests)
    seen: set[bytes] = set()
    for request in requests:
        assert (request.body() in seen) == request.repeated
        seen.add(request.body())
    assert sum(request.repeated for request in take(500, repeats=0.005)) == 2
    assert sum(request.repeated for request in take(3 * BLOCK, repeats=1.0)) == 3 * BLOCK - 1


def test_no_repeats_means_all_new() -> None:
    """And another seed asks for other texts, the same seed for the same ones."""
    bodies = [request.body() for request in take(300)]
    assert len(set(bodies)) == 300
    assert [request.body() for request in take(300)] == bodies
    assert not {request.query for request in take(300)} & {request.query for request in take(300, seed=2)}


def test_repeats_follow_zipfs_law() -> None:
    """The frequency of the n-th most popular query falls as n to the minus slope; with slope 0 all are alike."""

    def slope(zipf: float) -> float:
        repeated = Counter(request.query for request in take(12_000, repeats=0.95, zipf=zipf, documents=1) if request.repeated)
        counts = [count for _, count in repeated.most_common(101)]
        return math.log(counts[0] / counts[100]) / math.log(101)

    assert 0.6 < slope(1.0) < 1.4
    assert slope(0.0) < 0.4 < slope(0.7) < slope(1.3)


def test_a_repeat_is_not_older_than_asked() -> None:
    """Among the last so many different queries."""
    different: dict[str, int] = {}
    for request in take(2_000, repeats=0.5, repeat_within=20, documents=1):
        if request.repeated:
            assert len(different) - different[request.query] <= 20
        else:
            different[request.query] = len(different)


def test_a_file_of_queries_is_asked_in_its_order_again_and_again(write: Write) -> None:
    """Its own repeats are kept, and a query that comes again brings the same documents, all of them different."""
    path = write("queries.txt", "one\n\ntwo\n one \nthree\n")
    corpus = write("documents.tsv", "".join(f"{number}\ttext {number}\n" for number in range(30)))
    requests = take(6, queries=path, corpus=corpus, documents=5)
    assert [(request.query, request.repeated) for request in requests] == [
        ("one", False),
        ("two", False),
        ("one", True),
        ("three", False),
        ("one", True),
        ("two", True),
    ]
    assert requests[0].documents == requests[2].documents != requests[1].documents
    assert all(len(set(request.documents)) == 5 for request in requests)
    assert set(itertools.chain.from_iterable(request.documents for request in requests)) <= {f"text {n}" for n in range(30)}
    assert [request.query for request in take(3, queries=path, limit=2)] == ["one", "two", "one"]


def test_a_small_corpus_serves_big_requests(write: Write) -> None:
    """Its documents come more than once."""
    assert len(take(1, corpus=write("few.txt", "a\nb\n"), documents=5)[0].documents) == 5


def test_json_lines_are_strings_or_objects(write: Write) -> None:
    """With the field that says what it is."""
    path = write(
        "mixed.jsonl", '"plain"\n' + json.dumps({"id": 1, "text": "a text"}) + "\n" + json.dumps({"query": "q", "text": "t"})
    )
    assert read_texts(Path(path), "query") == ["plain", "a text", "q"]
    assert read_texts(Path(path), "document") == ["plain", "a text", "t"]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", '"fine"\nnot json\n', "line 2: no query there"),
        ("a.jsonl", '{"name": "x"}\n', "line 1: no query there"),
        ("a.jsonl", '{"query": 3}\n', "line 1: no query there"),
        ("a.tsv", "1\tfine\nno tab\n", "line 2: no query there"),
        ("a.tsv", "1\t \n", "line 1: no query there"),
        ("a.txt", "\n \n", "holds no query"),
    ],
)
def test_a_wrong_file_says_what_is_expected(write: Write, name: str, text: str, complaint: str) -> None:
    """With the line that is wrong."""
    path = write(name, text)
    with pytest.raises(TextFileError, match=complaint) as caught:
        read_texts(Path(path), "query")
    assert "one query a line" in str(caught.value)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Missing, or of another encoding."""
    with pytest.raises(TextFileError, match="No such file"):
        read_texts(tmp_path / "none.txt", "document")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(TextFileError, match="not UTF-8"):
        read_texts(tmp_path / "latin.txt", "document")
