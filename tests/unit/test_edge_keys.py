"""The edge refuses by the headers alone, closes what would never end, and logs nothing of a caller's."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from bento_service.access import ApiKeys
from bento_service.edge import GET_ROUTES, OWNER, PAGES, POST_ROUTES, PROBES, Edge
from bento_service.exposition import totals
from bento_service.metrics import EntryMetrics

KEY = "planted-key"
CLOSED = sorted((GET_ROUTES | POST_ROUTES | {"/unknown", "/livez/x", "/Livez"}) - PROBES - PAGES)


class App:
    """Answers 200 and remembers what it saw; reads: the body, too."""

    def __init__(self, *, reads: bool = True) -> None:
        self.scopes: list[Scope] = []
        self._reads = reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self.scopes.append(scope)
        if self._reads:
            while (await receive()).get("more_body"):
                pass
        await PlainTextResponse("hello")(scope, receive, send)


def exchange(edge: Edge, path: str, method: str = "POST", client: Any = ("1.2.3.4", 5), **headers: str) -> tuple[int, Any, Any]:
    """Send one request; status, headers and body. No body is there unless somebody asks for it."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(edge({"type": "http", "method": method, "path": path, "headers": pairs, "client": client}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("path", CLOSED)
def test_what_is_closed_is_refused_before_the_app_sees_it(entry_metrics: EntryMetrics, path: str) -> None:
    """With the header that says how to come in, and counted."""
    app = App()
    edge = Edge(app, entry_metrics, keys=ApiKeys([KEY]))
    status, headers, body = exchange(edge, path, x_api_key="wrong")
    assert (status, headers[b"www-authenticate"], json.loads(body)["error"]["code"]) == (401, b"Bearer", "unauthorized")
    assert not app.scopes
    assert totals()["reranker_rejections_total", (("code", "unauthorized"),)] == 1
    assert exchange(edge, path, x_api_key=KEY)[0] == 200
    assert app.scopes[0][OWNER] == ApiKeys([KEY]).owner([KEY.encode()])


@pytest.mark.parametrize("path", sorted(PROBES | PAGES))
def test_probes_are_always_open_and_pages_unless_they_are_closed(entry_metrics: EntryMetrics, path: str) -> None:
    """RERANKER_OPEN_PAGES."""
    for open_pages in (True, False):
        edge = Edge(App(), entry_metrics, keys=ApiKeys([KEY]), open_pages=open_pages)
        assert exchange(edge, path, "GET")[0] == (200 if open_pages or path in PROBES else 401)


def test_without_keys_nobody_owns_a_request(entry_metrics: EntryMetrics) -> None:
    """Whatever is sent as one."""
    app = App()
    assert exchange(Edge(app, entry_metrics), "/rerank", x_api_key=KEY)[0] == 200
    assert app.scopes[0].get(OWNER) is None


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ({}, False),
        ({"content_length": "1000"}, False),
        ({"content_length": str(2**26)}, False),
        ({"content_length": str(2**26 + 1)}, True),
        ({"content_length": "9" * 5000}, True),
        ({"content_length": "many"}, True),
        ({"transfer_encoding": "chunked"}, True),
    ],
)
def test_an_answer_closes_a_connection_on_which_a_body_would_not_end(
    entry_metrics: EntryMetrics, headers: dict[str, str], closes: bool
) -> None:
    """Unless it was read to its end."""
    for app, keys, closed in ((App(reads=False), (), closes), (App(), [KEY], closes), (App(), (), False)):
        answer = exchange(Edge(app, entry_metrics, keys=ApiKeys(keys)), "/rerank", **headers)
        assert (answer[1].get(b"connection") == b"close") == closed


@pytest.mark.parametrize(
    ("client", "told"), [(("1.2.3.4", 5), "1.2.3.4"), (("::1%planted", 5), "::1"), (("planted", 5), "-"), (None, "-")]
)
def test_the_access_log_names_routes_and_addresses_and_nothing_of_the_caller_s(
    entry_metrics: EntryMetrics, caplog: pytest.LogCaptureFixture, client: Any, told: str
) -> None:
    """A path, a method and a forwarded address may be anything."""
    edge = Edge(App(), entry_metrics, access_log=True)
    with caplog.at_level(logging.INFO, logger="bentoml.reranker"):
        exchange(edge, "/planted", "PLANTED", client, x_forwarded_for="planted")
        exchange(edge, "/rerank", client=client)
        exchange(edge, "/livez", "GET", client)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" ms ")[1] for line in lines] == [told, told]
    assert lines[0].startswith("other other 200 ")
    assert lines[1].startswith("POST /rerank 200 ")
    assert "planted" not in caplog.text.lower()
