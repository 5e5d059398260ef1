"""What the page does not do: run what it is given, load anything, keep a key."""

from __future__ import annotations

import contextlib
import json

import pytest
from playwright.sync_api import Error, Route
from visits import Visit

PLANTED = "<img src=x onerror=\"window.planted='{place}'\"><script>window.planted='{place}'</script>"


def planted(place: str) -> str:
    """Write markup that would leave a mark if it were run."""
    return PLANTED.replace("{place}", place)


def test_markup_is_shown_as_text(visit: Visit) -> None:
    """In documents, ids, the query, warnings, the model's name."""

    def with_more(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        answer["model"] = planted("model")
        answer["meta"]["warnings"] = [planted("warning")]
        route.fulfill(response=response, json=answer)

    visit.page.route("**/rerank", with_more)
    visit.fill(planted("query"), json.dumps([planted("document"), {"text": "other", "id": planted("id")}]), "json")
    places = visit.rank()
    assert planted("document") in places.locator(".text").all_inner_texts()
    assert any(name.endswith(planted("id")) for name in places.locator(".name").all_inner_texts())
    assert planted("query") in visit.page.get_by_role("status").inner_text()
    assert visit.page.locator("#warnings > li").all_inner_texts() == [planted("warning")]
    assert visit.facts()["Model"] == planted("model")
    assert visit.page.locator("img, main script").count() == 0
    assert visit.page.evaluate("window.planted") is None


def test_markup_in_an_error_is_shown_as_text(visit: Visit) -> None:
    """Whoever words it."""
    visit.page.route("**/rerank", lambda route: route.fulfill(status=400, json={"message": planted("error")}))
    visit.page.get_by_role("button").click()
    assert visit.error() == f"400: {planted('error')}"
    assert visit.page.locator("img, main script").count() == 0
    assert visit.page.evaluate("window.planted") is None


@pytest.mark.parametrize(
    ("attempt", "stopped_by"),
    [
        ("document.body.append(Object.assign(document.createElement('img'), {src: '/health'}))", "img-src"),
        ("document.body.insertAdjacentHTML('beforeend', '<b>bold</b>')", "TrustedHTML"),
        ("document.body.append(Object.assign(document.createElement('script'), {text: 'window.planted = 1'}))", "TrustedScript"),
        ("location.href = 'javascript:window.planted = 1'", "script-src"),
        ("fetch('http://127.0.0.1:9/')", "connect-src"),
    ],
)
def test_the_browser_holds_the_page_to_its_policy(visit: Visit, attempt: str, stopped_by: str) -> None:
    """Were markup or code ever let in, it could run nothing, load nothing and tell nobody."""
    with visit.page.expect_console_message(lambda told: stopped_by in told.text), contextlib.suppress(Error):
        visit.page.evaluate(attempt)
    assert visit.page.evaluate("window.planted") is None
    assert visit.page.locator("b").count() == 0
    visit.complaints.clear()
    visit.requests.clear()


def test_a_key_is_sent_and_not_kept(visit: Visit) -> None:
    """As a bearer token, and only if there is one; after a reload it is gone."""
    visit.rank()
    visit.page.get_by_label("API key").fill(" sesame ")
    visit.rank()
    assert [request.headers.get("authorization") for request in visit.asked] == [None, "Bearer sesame"]
    assert visit.page.get_by_label("API key").get_attribute("type") == "password"
    assert visit.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    visit.page.reload()
    assert visit.page.get_by_label("API key").input_value() == ""


def test_nothing_but_the_page_is_loaded(visit: Visit) -> None:
    """One GET, and one POST for each click."""
    visit.rank()
    assert [(request.method, request.url.removeprefix(visit.page.url)) for request in visit.requests] == [
        ("GET", ""),
        ("POST", "rerank"),
    ]
