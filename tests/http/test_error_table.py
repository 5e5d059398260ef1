"""Every row of the error table in every dialect: status, headers and body, to the letter."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from bento_service.admission import Admission
from bento_service.drain import Drain
from bento_service.pairs import Outcome
from bento_service.pipeline import Pipeline
from bento_service.scorer_link import ScorerLink
from fake_scorer import FakeScorer

SECRET = "planted-marker-3e9b"
LONG = f"{SECRET} many words " * 100
JSON = "application/json"
BENTOML_S_OWN = {"content-length", "server"}  # the last one on /rerank alone
QUEUE_PAIRS = 20_000  # the default, and the fake Scorer does 100 a second


@dataclass(frozen=True)
class Format:
    """A dialect as its clients see it: the route, and what it calls the query and the documents."""

    route: str
    query: str = "query"
    documents: str = "documents"


FORMATS = {
    "native": Format("/rerank"),
    "tei": Format("/rerank", documents="texts"),
    "v1": Format("/v1/rerank"),
    "v2": Format("/v2/rerank"),
    "score": Format("/score", query="queries"),
}
RERANKING = ("native", "tei", "v1", "v2")


@dataclass(frozen=True)
class Service:
    """What a test may disturb, and sets right again."""

    client: TestClient
    scorer: FakeScorer
    pipeline: Pipeline
    admission: Admission
    link: ScorerLink
    drain: Drain


@pytest.fixture
def service(client: TestClient, scorer: FakeScorer) -> Service:
    """Look into the service behind `client`."""
    from bento_service.service.reranker import _CURRENT

    routes = _CURRENT["routes"]
    admission = routes._pipeline._admission
    return Service(client, scorer, routes._pipeline, admission, admission._links[0], routes._drain)


Disturbance = Callable[[Service], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def undisturbed(_: Service) -> Iterator[None]:
    """Change nothing."""
    yield


@contextlib.contextmanager
def strict_model(service: Service) -> Iterator[None]:
    """Serve as with RERANKER_STRICT_MODEL=true."""
    service.pipeline._strict_model = True
    try:
        yield
    finally:
        service.pipeline._strict_model = False


@contextlib.contextmanager
def full_queue(service: Service) -> Iterator[None]:
    """Take every place in the queue."""
    with service.admission.place_for(QUEUE_PAIRS):
        yield


@contextlib.contextmanager
def slow_queue(service: Service) -> Iterator[None]:
    """Let another request wait, and nobody for as long as it takes."""
    bounds = service.admission._bounds
    service.admission._bounds = replace(bounds, wait_seconds=0.01)
    try:
        with service.admission.place_for(32):
            yield
    finally:
        service.admission._bounds = bounds


def outcome(of_all: Outcome) -> Disturbance:
    """Let every pair end so."""

    @contextlib.contextmanager
    def disturbed(service: Service) -> Iterator[None]:
        service.scorer.outcome = of_all
        try:
            yield
        finally:
            service.scorer.outcome = Outcome.SCORED

    return disturbed


@contextlib.contextmanager
def broken_scorer(service: Service) -> Iterator[None]:
    """Let every call fail, with words that may hold text."""
    service.scorer.error = ValueError(SECRET)
    try:
        yield
    finally:
        service.scorer.error = None


@contextlib.contextmanager
def scorer_down(service: Service) -> Iterator[None]:
    """Silence the Scorer; wait until it is up again afterwards."""
    service.scorer.up = False
    service.client.portal.call(service.link._go_down, "a test silenced it")
    try:
        yield
    finally:
        service.scorer.up = True
        while not service.client.get("/readyz").is_success:
            service.client.portal.call(asyncio.sleep, 0.02)


@contextlib.contextmanager
def drained(service: Service) -> Iterator[None]:
    """Be after the drain period."""
    service.drain.closed = True
    try:
        yield
    finally:
        service.drain.closed = False


@contextlib.contextmanager
def out_of_time(service: Service) -> Iterator[None]:
    """Be at the end of the time for answers to what was taken."""
    service.drain._over = True
    try:
        yield
    finally:
        service.drain._over = False


@dataclass(frozen=True)
class Row:
    """One row: what is sent, and what comes back.

    query, documents: of the request, None to leave them out · more: its other fields · body: sent instead of all that ·
    message: {query} and {documents} stand for the dialect's names of them · tei: status and error_type there, None where a body
    cannot be known to be TEI's and so is answered in the object dialect.
    """

    name: str
    status: int
    code: str
    message: str
    param: str | None = None
    kind: str = "invalid_request_error"
    tei: tuple[int, str] | None = (422, "Validation")
    query: Any = "asked"
    documents: Any = field(default_factory=lambda: ["one", "two"])
    more: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = JSON
    retry_after: str | None = None
    formats: tuple[str, ...] = tuple(FORMATS)
    disturbance: Disturbance = undisturbed
    other_messages: dict[str, str] = field(default_factory=dict)


FAILED = "a document could not be scored: the model gave no finite number, or ran out of memory"
NO_TEXT = "give a string, or an object with one of text, content, document, body, value, snippet"
SHUTTING_DOWN = "this server is shutting down: try again after Retry-After seconds, at another one"
ROWS = [
    Row(
        "malformed JSON",
        *(400, "invalid_json", "the body is not JSON: Expecting value at character 10"),
        tei=None,
        body=b'{"query": ',
    ),
    Row("no JSON object", 400, "invalid_json", "the body must be a JSON object", tei=None, body=b"[]"),
    Row(
        "neither documents nor texts", 400, "invalid_request", "documents: Field required", "documents", tei=None, documents=None
    ),
    Row("no query", 400, "invalid_request", "{query}: Field required", "{query}", query=None),
    Row(
        "a query of another type",
        *(400, "invalid_request", "{query}: Input should be a valid string", "{query}"),
        query=5,
        other_messages={"score": "queries: Input should be a valid list"},
    ),
    Row(
        "a blank query",
        *(400, "invalid_request", "query is blank: give the text to rank the documents for", "{query}"),
        query=" \n",
        other_messages={"score": "queries: query is blank: give the text to rank the documents for"},
    ),
    Row(
        "documents of another type",
        *(400, "invalid_request", "documents must be a list of strings or objects", "{documents}"),
        documents=5,
        other_messages={"tei": "texts: Input should be a valid list"},
    ),
    Row(
        "a document of another type",
        *(400, "invalid_request", "documents: document 1 is neither a string nor an object", "{documents}"),
        documents=["one", 5],
        other_messages={"tei": "texts[1]: Input should be a valid string"},
    ),
    Row(
        "a document without text",
        *(400, "invalid_request", f"documents: document 1 has no text: {NO_TEXT}", "{documents}"),
        documents=["one", {SECRET: SECRET}],
        other_messages={"tei": "texts[1]: Input should be a valid string"},
    ),
    Row(
        "no documents",
        *(400, "documents_empty", "{documents} is empty: give at least one", "{documents}"),
        documents=[],
        tei=(400, "Empty"),
    ),
    Row(
        "too many documents",
        *(400, "documents_too_many", "1001 {documents} are too many: this server takes at most 1000 in one request"),
        param="{documents}",
        documents=[SECRET] * 1001,
    ),
    Row(
        "a document that is too large",
        *(400, "document_too_large"),
        "document 1 has 1000001 characters: this server takes at most 1000000 in one, so send it in parts",
        param="{documents}",
        documents=["one", "x" * 1_000_001],
    ),
    Row(
        "a negative top_n",
        *(400, "invalid_request", "top_n: Input should be greater than or equal to 0", "top_n"),
        more={"top_n": -1},
        formats=RERANKING,
    ),
    Row(
        "a top_n that is no integer",
        *(400, "invalid_request", "top_n: Input should be a valid integer", "top_n"),
        more={"top_n": 1.5},
        formats=RERANKING,
    ),
    Row(
        "a query that fills the window",
        *(
            400,
            "query_too_long",
            "the query has more than 254 tokens, the most that this model takes beside a document: shorten it",
        ),
        param="query",
        query=LONG,
    ),
    Row(
        "too long with truncation off",
        *(400, "document_too_long"),
        "document 1 does not fit the model's window and truncation is off: shorten it, or allow truncation",
        param="documents",
        documents=["one", LONG],
        more={"truncate": False},
        formats=RERANKING,
    ),
    Row(
        "a body over the limit",
        *(413, "body_too_large", "the body is over the limit of 8388608 bytes: send fewer or shorter documents"),
        tei=None,
        documents=[SECRET + "x" * 16_777_216],
    ),
    Row(
        "another content type",
        *(415, "unsupported_media_type", "only application/json is read: set the content-type header"),
        tei=None,
        content_type="application/vnd.bentoml+pickle",
    ),
    Row(
        "an unknown model in strict mode",
        *(404, "model_not_found", "this server serves {model}: ask for that, or leave `model` out", "model"),
        tei=(404, "Validation"),
        more={"model": SECRET},
        disturbance=strict_model,
    ),
    Row(
        "queue full",
        *(429, "queue_full", "too many documents wait to be scored: try again after Retry-After seconds"),
        kind="overloaded_error",
        tei=(429, "Overloaded"),
        retry_after="1",
        disturbance=full_queue,
    ),
    Row(
        "queue too long",
        *(429, "queue_timeout", "the queue takes longer than RERANKER_QUEUE_TIMEOUT: try again after Retry-After seconds"),
        kind="overloaded_error",
        tei=(429, "Overloaded"),
        retry_after="1",
        disturbance=slow_queue,
    ),
    Row(
        "model worker down",
        *(503, "scorer_down", "the model is not being served at the moment: try again after Retry-After seconds"),
        kind="overloaded_error",
        tei=(503, "Unhealthy"),
        retry_after="5",
        disturbance=scorer_down,
    ),
    Row(
        "after the drain period",
        *(503, "shutting_down", SHUTTING_DOWN),
        kind="overloaded_error",
        tei=None,
        retry_after="1",
        disturbance=drained,
    ),
    Row(
        "not answered when the server has to end",
        *(503, "shutting_down", SHUTTING_DOWN),
        kind="overloaded_error",
        tei=(503, "Unhealthy"),
        retry_after="1",
        disturbance=out_of_time,
    ),
    Row(
        "deadline passed",
        *(504, "deadline_passed"),
        "the request's time ran out: send fewer documents at once, or raise RERANKER_REQUEST_TIMEOUT",
        kind="timeout_error",
        tei=(504, "Backend"),
        disturbance=outcome(Outcome.LATE),
    ),
    Row(
        "no finite score",
        *(500, "scoring_failed", FAILED),
        kind="server_error",
        tei=(424, "Backend"),
        disturbance=outcome(Outcome.FAILED),
    ),
    Row(
        "an exception in the model worker",
        *(500, "scoring_failed", "the model could not score this request; the server's log says why"),
        kind="server_error",
        tei=(424, "Backend"),
        disturbance=broken_scorer,
    ),
]
CASES = [pytest.param(row, name, id=f"{row.name}, {name}") for row in ROWS for name in row.formats]


def _request(row: Row, name: str) -> bytes:
    if row.body is not None:
        return row.body
    # Never asked before, so that no cache knows it.
    query = f"{row.name} {name}" if row.query == "asked" else row.query
    fields = {FORMATS[name].query: query, FORMATS[name].documents: row.documents}
    return json.dumps({key: value for key, value in fields.items() if value is not None} | row.more).encode()


def _expected(row: Row, name: str, model: str) -> tuple[int, dict[str, Any]]:
    names = {"query": FORMATS[name].query, "documents": FORMATS[name].documents, "model": model}
    if row.tei is None:
        names |= {"documents": "documents"}
    message = row.other_messages.get(name, row.message).format(**names)
    if name == "tei" and row.tei:
        return row.tei[0], {"error": message, "error_type": row.tei[1]}
    error = {"message": message, "type": row.kind, "param": row.param and row.param.format(**names), "code": row.code}
    return row.status, {"message": message, "detail": message, "error": error}


@pytest.mark.parametrize(("row", "name"), CASES)
def test_each_failure_is_answered_as_the_dialect_says_it(service: Service, builtin_tag: str, row: Row, name: str) -> None:
    """The same words in every dialect, nothing of the caller's text among them, and Retry-After only where it helps."""
    with row.disturbance(service):
        sent = {"content-type": row.content_type, "x-request-id": "mine"}
        answer = service.client.post(FORMATS[name].route, content=_request(row, name), headers=sent)
    assert (answer.status_code, answer.json()) == _expected(row, name, builtin_tag)
    headers = {key: value for key, value in answer.headers.items() if key not in BENTOML_S_OWN}
    assert headers == {"content-type": JSON, "x-request-id": "mine"} | (
        {"retry-after": row.retry_after} if row.retry_after else {}
    )
    assert SECRET not in answer.text


@pytest.mark.parametrize("name", FORMATS)
def test_a_refused_request_leaves_nothing_behind(service: Service, name: str) -> None:
    """The same request is answered once what was wrong is over."""
    row = next(each for each in ROWS if each.name == "queue full")
    body = _request(row, name)
    with full_queue(service):
        assert service.client.post(FORMATS[name].route, content=body, headers={"content-type": JSON}).status_code == 429
    assert service.client.post(FORMATS[name].route, content=body, headers={"content-type": JSON}).status_code == 200
