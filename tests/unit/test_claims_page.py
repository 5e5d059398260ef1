"""docs/claims.md: every row is answered, and what it points to is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from claims_page import SENTENCES, filled, marks

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "claims.md").read_text()
ROWS = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| claim |")]


def test_every_claim_has_an_answer_and_a_place_to_check_it() -> None:
    """Measured, with a command or a report; or not claimed, because of something."""
    assert len(ROWS) > 35
    assert not re.search(r"@[A-Z]+@|SCENARIO|TODO", PAGE)
    for row in ROWS:
        assert len(row) == 3, row
        assert all(cell.strip() for cell in row), row
        if "not claimed" in row[1].lower() or "not measured" in row[1].lower():
            assert re.search(r"Not claimed\*\*[^.]*(:|because|since)", row[1], re.IGNORECASE), row


def test_what_the_page_points_to_is_there() -> None:
    """Reports, pages, tests, and make's targets."""
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target
    for target in re.findall(r"`make ([a-z-]+)", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"`((?:tests|deploy)/[^`]+)`", PAGE):
        assert (REPOSITORY / path).exists() or path == "deploy/prometheus", path


def test_the_figures_are_those_of_the_last_run() -> None:
    """`make claims` has written both; each figure stands once."""
    result = json.loads((REPOSITORY / "load" / "reports" / "claims.json").read_text())
    assert filled(PAGE, result) == PAGE
    assert sorted(marks(PAGE)) == sorted(SENTENCES)
