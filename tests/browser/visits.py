"""A visit to the page: what a person does there, and what the browser does meanwhile."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, Request


class Visit:
    """One visit to the page, and everything that the browser asked for and complained of meanwhile."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda told: self.complaints.append(told.text) if told.type in ("error", "warning") else None)

    def _note(self, request: Request) -> None:
        self.requests.append(request)

    @property
    def asked(self) -> list[Request]:
        """The requests to rank."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def body(self) -> dict[str, Any]:
        """The body of the last request to rank."""
        found: dict[str, Any] = self.asked[-1].post_data_json
        return found

    def fill(self, query: str, documents: str, separator: str = "line") -> None:
        """Replace the examples."""
        self.page.get_by_label("Query").fill(query)
        self.page.get_by_label("How the documents are separated").select_option(separator)
        self.page.get_by_label("Documents", exact=True).fill(documents)

    def rank(self) -> Locator:
        """Click, and wait for the answer; its places, best first."""
        self.page.get_by_role("button").click()
        self.page.locator("#result[aria-busy=false] #answer").wait_for()
        return self.page.locator("#ranking > li")

    def error(self) -> str:
        """Wait for the error and return what it says."""
        self.page.locator("#result[aria-busy=false] #error:not(:empty)").wait_for()
        return self.page.get_by_role("alert").inner_text()

    def facts(self) -> dict[str, str]:
        """What stands below the ranking."""
        return dict(
            self.page.locator("#facts > div").evaluate_all("all => all.map(each => [...each.children].map(c => c.textContent))")
        )
