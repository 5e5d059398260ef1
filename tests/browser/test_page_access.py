"""Who can use the page: with the keyboard alone, on a narrow screen, in the dark, with a screen reader."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect
from visits import Visit

from servers import Server

# The contrast of every text with what lies behind it, as WCAG 2 computes it; below 4.5 it is hard to read.
FAINT_TEXTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => channels(color).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
  };
  const texts = [...document.body.querySelectorAll("*")].filter((node) => node.checkVisibility()
    && (node.matches("input, select, textarea") || [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())));
  const faint = texts.map((node) => {
    const [low, high] = [getComputedStyle(node).color, behind(node)].map(luminance).sort((a, b) => a - b);
    return [node.tagName + "#" + node.id + "." + node.className, (high + 0.05) / (low + 0.05)];
  }).filter(([, contrast]) => contrast < 4.5);
  return [texts.length, faint];
}"""


def focused(page: Page) -> str:
    """Name the element that has the focus."""
    found: str = page.evaluate("document.activeElement.id || document.activeElement.textContent")
    return found


def test_the_keyboard_is_enough(visit: Visit) -> None:
    """Everything is reached with Tab, in the order of reading, and a query is ranked with Enter."""
    page = visit.page
    reached = []
    while not reached or reached[-1] != "rank":
        page.keyboard.press("Tab")
        reached.append(focused(page))
        assert len(reached) < 20
    links, fields = reached[:3], reached[3:]
    assert links == ["API (OpenAPI)", "Health", "Metrics"]
    assert fields == ["query", "separator", "documents", "long", "top-n", "key", "no-store", "rank"]
    page.keyboard.press("Enter")
    expect(page.locator("#ranking > li")).to_have_count(6)
    assert focused(page) == "rank"
    for _ in fields[1:]:
        page.keyboard.press("Shift+Tab")
    page.keyboard.type("how are loaves kept?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("how are loaves kept?")
    assert focused(page) == "query"


def test_ctrl_enter_ranks_from_the_documents(visit: Visit) -> None:
    """Where Enter is a new line."""
    visit.page.get_by_label("Documents", exact=True).fill("one")
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.type("two")
    visit.page.keyboard.press("Control+Enter")
    expect(visit.page.locator("#ranking > li")).to_have_count(2)
    assert visit.body["documents"] == ["one", "two"]


def test_every_field_has_a_name(visit: Visit) -> None:
    """Screen readers say it; results and errors are announced."""
    tree = visit.page.locator("body").aria_snapshot()
    for named in (
        'textbox "Query"',
        'textbox "Documents"',
        'combobox "How the documents are separated"',
        'combobox "Long documents"',
        'spinbutton "Show the best"',
        'textbox "API key"',
        'checkbox "Ignore the cache"',
        'button "Rank"',
        'region "Result"',
    ):
        assert f"- {named}" in tree, tree
    assert visit.page.get_by_role("status").count() == 1
    assert visit.page.locator("[role=alert]").count() == 1
    visit.rank()
    assert visit.page.get_by_role("list").get_by_role("listitem").count() == 6


def test_nothing_is_wider_than_a_narrow_screen(visit: Visit) -> None:
    """360 pixels, with words that have no end."""
    visit.page.set_viewport_size({"width": 360, "height": 640})
    endless = "x" * 500
    visit.fill(endless, f'["{endless}", {{"text": "y", "id": "{endless}"}}]', "json")
    visit.rank()
    assert visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    expect(visit.page.locator("#status")).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(visit: Visit, scheme: str) -> None:
    """At least 4.5 to 1, errors and marks included."""
    page = visit.page
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.locator("#error").evaluate("each => { each.textContent = 'error' }")
    visit.fill("fresh bread", "bread " * 600)
    page.get_by_role("button").click()
    page.locator("#answer").wait_for()
    page.evaluate("""() => {
      document.getElementById('error').textContent = 'error';
      const add = (parent, tag) => parent.appendChild(Object.assign(document.createElement(tag), { textContent: 'added' }));
      add(document.getElementById('warnings'), 'li');
      add(document.querySelector('.text'), 'mark');
    }""")
    texts, faint = page.evaluate(FAINT_TEXTS)
    assert texts > 40
    assert faint == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert dark is (scheme == "dark")


def test_the_links_lead_to_what_they_name(visit: Visit, server: Server) -> None:
    """The OpenAPI document, the state and the metrics."""
    targets = visit.page.locator("nav a").evaluate_all("all => all.map(each => each.href)")
    assert targets == [server.url + path for path in ("/docs.json", "/health", "/metrics")]
    assert [httpx.get(target).status_code for target in targets] == [200, 200, 200]
