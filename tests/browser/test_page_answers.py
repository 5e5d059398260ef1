"""What a person sees: the ranking, where it came from, and what went wrong."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from visits import Visit

from bento_service.page import page_response
from servers import Server

LONG = "bread " * 600


def test_one_click_ranks_the_examples(visit: Visit, server: Server) -> None:
    """As the server ranks them, with its scores as numbers and bars, timings and the model's name."""
    places = visit.rank()
    expected = server.post(**visit.body).json()
    assert len(expected["results"]) == 6
    assert places.locator(".text").all_inner_texts() == [item["document"]["text"] for item in expected["results"]]
    assert places.locator(".score").all_inner_texts() == [f"{item['score']:.4f}" for item in expected["results"]]
    assert places.locator(".rank").all_inner_texts() == [f"{rank}." for rank in range(1, 7)]
    assert places.locator(".name").all_inner_texts() == [f"index {item['index']}" for item in expected["results"]]
    widths = places.locator(".bar").evaluate_all("all => all.map(bar => bar.firstChild.offsetWidth / bar.offsetWidth)")
    assert widths == pytest.approx([item["score"] for item in expected["results"]], abs=0.01)
    facts = visit.facts()
    assert facts["Model"] == expected["model"]
    assert facts["Tokens"] == str(expected["usage"]["total_tokens"])
    assert {"In all", "Waiting", "Tokenising", "In the model"} <= {name for name, value in facts.items() if value.endswith(" ms")}
    assert "6 documents ranked for “How do I keep bread fresh?”" in visit.page.get_by_role("status").inner_text()


def test_the_second_click_is_answered_from_the_cache(visit: Visit) -> None:
    """And says so; a checkbox has the scores computed anew."""
    visit.fill("asked twice", "first\nsecond\nthird")
    shown = []
    for ignoring in (False, False, True):
        visit.page.get_by_label("Ignore the cache").set_checked(ignoring)
        visit.rank()
        facts = visit.facts()
        shown.append((facts["From a cache"], facts["Computed now"], facts["Shared with others"]))
    assert shown == [("0", "3", "0"), ("3", "0", "0"), ("0", "3", "0")]
    assert [request.headers.get("cache-control") for request in visit.asked] == [None, None, "no-store"]


@pytest.mark.parametrize(
    ("separator", "written", "documents"),
    [
        ("line", "one\n\n two \nthree\n", ["one", "two", "three"]),
        ("blank", "one\nmore of one\n \n\ntwo\n", ["one\nmore of one", "two"]),
        ("dashes", "one\n\nmore of one\n---\ntwo - or --- not\n-----\n", ["one\n\nmore of one", "two - or --- not"]),
        ("json", '["one\\n\\n---\\n", {"text": "two", "id": "b"}]', ["one\n\n---\n", {"text": "two", "id": "b"}]),
    ],
)
def test_documents_are_read_as_a_person_separates_them(visit: Visit, separator: str, written: str, documents: list[Any]) -> None:
    """Each way but the first leaves room for texts of several lines; they are counted while one types."""
    visit.fill("q", written, separator)
    expect(visit.page.locator("#count")).to_contain_text(f"{len(documents)} documents.")
    places = visit.rank()
    assert visit.body["documents"] == documents
    texts = [document["text"] if isinstance(document, dict) else document for document in documents]
    assert sorted(places.locator(".text").evaluate_all("all => all.map(each => each.textContent)")) == sorted(texts)


def test_ids_are_shown(visit: Visit) -> None:
    """Beside the index, where a document has one."""
    visit.fill("q", '[{"text": "one", "id": "a"}, {"text": "two", "id": null}, {"content": "three", "id": 7}]', "json")
    assert sorted(visit.rank().locator(".name").all_inner_texts()) == ["index 0 · id a", "index 1", "index 2 · id 7"]


def test_only_the_best_are_shown_when_asked(visit: Visit) -> None:
    """The field is empty at first, which means all."""
    visit.page.get_by_label("Show the best").fill("2")
    assert visit.rank().count() == 2
    assert visit.body["top_n"] == 2
    assert "the best 2 are shown" in visit.page.get_by_role("status").inner_text()


def test_a_cut_document_is_marked(visit: Visit) -> None:
    """Beside it and in the list of facts; its text scrolls within its place, also for the keyboard."""
    visit.fill("fresh bread", f"short\n{LONG}")
    places = visit.rank()
    assert places.filter(has_text="index 1").locator(".cut").count() == 1
    assert places.filter(has_text="index 0").locator(".cut").count() == 0
    assert visit.facts()["Cut documents"] == "index 1"
    assert visit.page.get_by_label("Text of the document with index 1").get_attribute("tabindex") == "0"


def test_long_documents_can_be_refused(visit: Visit) -> None:
    """In the server's words, which name the document."""
    visit.fill("fresh bread", f"short\n{LONG}")
    visit.page.get_by_label("Long documents").select_option("refuse")
    visit.page.get_by_role("button").click()
    assert visit.error().startswith("400: document 1 does not fit")
    assert visit.body["truncation"] is False


def test_the_window_that_counted_is_marked(visit: Visit) -> None:
    """By code points, as the server counts: an emoji before it is two units of JavaScript's strings."""
    answer = "A reranker sorts documents by relevance to a query. "
    document = "🍞🥖 " * 50 + "Bread is baked from flour and water. " * 60 + answer * 30
    visit.fill("what is a reranker?", document)
    visit.page.get_by_label("Long documents").select_option("chunk")
    places = visit.rank()
    assert visit.body["long_documents"] == "chunk"
    [marked] = places.locator("mark").all_inner_texts()
    assert marked.count(answer.strip()) > 3
    assert (marked in document, "🍞" in marked) == (True, False)
    expect(places.locator(".place")).to_contain_text("marked: the part that counted")
    assert places.locator(".text").inner_text().strip() == document.strip()


def test_scores_beyond_0_and_1_have_bars_too(visit: Visit) -> None:
    """Models without an activation answer with logits: the bars then reach from the lowest to the highest."""

    def with_logits(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        for item, score in zip(answer["results"], (6.0, 1.0, -4.0), strict=True):
            item["score"] = score
        route.fulfill(response=response, json=answer)

    visit.page.route("**/rerank", with_logits)
    visit.fill("q", "a\nb\nc")
    places = visit.rank()
    assert places.locator(".score").all_inner_texts() == ["6.0000", "1.0000", "-4.0000"]
    widths = places.locator(".bar > div").evaluate_all("all => all.map(each => each.style.width)")
    assert widths == ["100%", "50%", "0%"]


def test_a_wrong_request_is_told_in_the_server_s_words(visit: Visit) -> None:
    """With the status; the old answer goes, and the next click works."""
    visit.rank()
    visit.page.get_by_label("Query").fill("  ")
    visit.page.get_by_role("button").click()
    assert visit.error() == "400: query is blank: give the text to rank the documents for"
    expect(visit.page.locator("#answer")).to_be_hidden()
    visit.page.get_by_label("Query").fill("not blank")
    visit.rank()
    expect(visit.page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("Documents", "[1", "The documents are not JSON: "),
        ("Documents", '{"text": "one"}', "The documents are JSON, but no list"),
        ("API key", "kéy", "The API key holds characters that no key has"),
    ],
)
def test_what_cannot_be_sent_is_told_at_once(visit: Visit, field: str, value: str, message: str) -> None:
    """Nothing is asked of the server."""
    visit.fill("q", '["one"]', "json")
    visit.page.get_by_label(field, exact=True).fill(value)
    visit.page.get_by_role("button").click()
    assert visit.error().startswith(message)
    assert visit.asked == []


def test_a_number_that_is_none_is_told_at_once(visit: Visit) -> None:
    """A browser gives such a field's value as if it were empty, which would mean all."""
    visit.page.get_by_label("Show the best").press_sequentially("1e")
    visit.page.get_by_role("button").click()
    assert visit.error().startswith("How many to show is not a number")
    assert visit.asked == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 429, "headers": {"retry-after": "7"}, "json": {"message": "busy"}}, "429: busy (Try again in 7 s.)"),
        ({"status": 502, "body": "<h1>Bad Gateway</h1>"}, "502: that is no answer of this service. Bad Gateway"),
        ({"status": 200, "body": "[]"}, "200: that is no answer of this service. OK"),
    ],
)
def test_other_failures_are_told_with_their_status(visit: Visit, answer: dict[str, Any], message: str) -> None:
    """Also what a proxy before the server answers."""
    visit.page.route("**/rerank", lambda route: route.fulfill(**answer))
    visit.page.get_by_role("button").click()
    assert visit.error() == message


class _PageAlone(BaseHTTPRequestHandler):
    """Sends the page, and hangs up on everything else."""

    def do_GET(self) -> None:
        """Send the page as the service does."""
        page = page_response()
        self.send_response(page.status_code)
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page.body)

    def do_POST(self) -> None:
        """Say nothing."""

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.mark.parametrize("stopped", [True, False])
def test_a_server_that_is_gone_is_told(page: Page, stopped: bool) -> None:
    """It refuses the connection, or hangs up before it has answered: told in words, not in the browser's."""
    visit = Visit(page)
    with ThreadingHTTPServer(("127.0.0.1", 0), _PageAlone) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        page.goto(f"http://127.0.0.1:{server.server_port}")
        if stopped:
            server.shutdown()
            server.server_close()
        page.get_by_role("button").click()
        assert visit.error() == "The server cannot be reached: it has stopped, or the connection to it is broken."
        server.shutdown()
        thread.join()
    assert page.get_by_role("button").inner_text() == "Rank"


def test_the_wait_is_bounded(visit: Visit) -> None:
    """After 60 seconds without an answer the page gives up and says so; until then it is busy and asks no second time."""
    visit.page.clock.install()
    visit.page.route("**/rerank", lambda _: None)
    button = visit.page.get_by_role("button")
    button.click()
    expect(button).to_have_text("Ranking …")
    expect(button).to_have_attribute("aria-disabled", "true")
    visit.page.keyboard.press("Enter")
    visit.page.clock.fast_forward(59_000)
    expect(button).to_have_text("Ranking …")
    visit.page.clock.fast_forward(2_000)
    assert visit.error() == "The server did not answer within 60 seconds."
    expect(button).to_have_text("Rank")
    assert len(visit.asked) == 1
