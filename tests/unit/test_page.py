"""The page: one document that holds all it needs, and headers that let it have nothing else."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

import pytest

from bento_service.page import page_response

RESPONSE = page_response()
TEXT = bytes(RESPONSE.body).decode()
POLICY = dict(directive.strip().split(" ", 1) for directive in RESPONSE.headers["content-security-policy"].split(";"))


class _Reader(HTMLParser):
    """Collects the elements with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(TEXT)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))


PAGE = _Reader()


@pytest.mark.parametrize(("tag", "directive"), [("style", "style-src"), ("script", "script-src")])
def test_the_policy_names_the_one_style_and_the_one_script(tag: str, directive: str) -> None:
    """By their hashes: anything else of that kind is not run."""
    assert [name for name, _ in PAGE.elements].count(tag) == 1
    text = TEXT.partition(f"<{tag}")[2].partition(">")[2].partition(f"</{tag}>")[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert POLICY[directive] == f"'sha256-{digest}'"
    assert len(text) > 1000


def test_the_policy_begins_with_nothing() -> None:
    """And allows the server itself, and the icon within the page."""
    assert POLICY["default-src"] == "'none'"
    allowed = {name for name, sources in POLICY.items() if sources not in ("'none'", "'script'")}
    assert allowed == {"script-src", "style-src", "connect-src", "img-src"}
    assert POLICY["connect-src"] == "'self'"
    assert POLICY["img-src"] == "data:"


def test_nothing_stands_inline_that_the_policy_would_stop() -> None:
    """No event handlers, no style attributes, nothing that is loaded from elsewhere."""
    for tag, attributes in PAGE.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset", "action")], tag
    links = [(tag, attributes["href"]) for tag, attributes in PAGE.elements if "href" in attributes]
    assert [href for tag, href in links if tag == "a"] == ["docs.json", "health", "metrics"]
    assert all(href.startswith("data:image/") for tag, href in links if tag != "a")


def test_every_field_has_a_label() -> None:
    """Its own, or a name for screen readers."""
    labelled = {attributes["for"] for tag, attributes in PAGE.elements if tag == "label"}
    fields = [attributes for tag, attributes in PAGE.elements if tag in ("input", "select", "textarea")]
    assert len(fields) == 7
    assert [field["id"] for field in fields if field["id"] not in labelled and "aria-label" not in field] == []
