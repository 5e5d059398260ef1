"""The page in a real headless Chromium, before a real server. `make test-browser` runs this; `make test` does not."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from visits import Visit

from servers import Server

WAIT_MS = 20_000  # for anything the page is to show


@pytest.fixture(scope="session")
def server(builtin_tag: str) -> Iterator[Server]:
    """Serve the built-in model."""
    assert builtin_tag
    with Server(Path(os.environ["BENTOML_HOME"])) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the Chromium that is installed."""
    program = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert program, "no chromium: apt-get install chromium"
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a window that nothing is remembered in."""
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def visit(page: Page, server: Server) -> Iterator[Visit]:
    """Visit the page; in the end, nothing was asked of anybody else, and the browser has complained of nothing but error statuses."""
    visit = Visit(page)
    page.goto(server.url)
    yield visit
    assert [request.url for request in visit.requests if not request.url.startswith(server.url + "/")] == []
    assert [text for text in visit.complaints if not re.match(r"Failed to load resource: .* status of \d{3}", text)] == []
