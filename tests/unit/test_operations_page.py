"""docs/operations.md: what it names is there, its capacity table is its formula, and alerts find their heading."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bento_service.settings import REFUSED, known_variables

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "operations.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
SYMPTOMS = (
    "Queue is full",
    "Requests wait too long",
    "Memory is high",
    "Errors",
    "Low cache hit ratio",
    "The model worker is down",
    "Precision fell back",
    "Redis is away",
    "Slow start",
    "Slow responses",
    "Tokenisation errors",
)
_PAIR_TOKENS, _DOCUMENTS, _SHARE = 107, 20, 0.75


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_each_symptom_says_what_is_seen_why_and_what_to_do(symptom: str) -> None:
    """Under the heading to which the alerts point."""
    section = re.search(rf"^## {symptom}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section
    parts = re.findall(r"\*\*(You see|Why and what to do|Why|What to do)", section.group(1))
    assert parts in (["You see", "Why", "What to do"], ["You see", "Why and what to do"])


def test_every_metric_named_is_counted() -> None:
    """By metrics.py; histograms by their parts too."""
    counted = set(
        re.findall(r'"(reranker_[a-z_]+)"', "".join(p.read_text() for p in (REPOSITORY / "bento_service").glob("*.py")))
    )
    parts = {name + part for name in counted for part in ("_sum", "_count", "_")}
    named = set(re.findall(r"\breranker_[a-z_]+", PAGE))
    assert named
    assert named - counted - parts == set()


def test_every_variable_named_is_one() -> None:
    """A setting, or a variable of make; and every target is one of make's."""
    named = set(re.findall(r"\b(?:RERANKER|MICRO|ENABLE|CACHE|REDIS|MAX|TOKENIZER|START|STOP)_[A-Z_]+\b", PAGE))
    assert {name for name in named - set(known_variables()) - set(REFUSED) if f"$({name})" not in MAKEFILE} == set()
    targets = set(re.findall(r"(?:`|^|and )make (?:-C \S+ )?([a-z][a-z-]+)", PAGE, re.MULTILINE))
    assert {"start", "stop", "restart", "status", "logs", "replay"} <= targets
    assert {target for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)} == set()


def test_every_link_leads_somewhere() -> None:
    """To a file, or to a heading of the page."""
    headings = {
        re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, heading = target.partition("#")
        assert (REPOSITORY / "docs" / path).exists(), target
        assert path or heading in headings, target


def test_the_profiles_are_told() -> None:
    """All of them, and no other."""
    there = {path.stem for path in (REPOSITORY / "deploy" / "profiles").glob("*.env")}
    section = PAGE.partition("## Deployment profiles")[2].partition("## Capacity")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == there


def test_the_capacity_table_is_its_formula() -> None:
    """From the tokens/s that the page gives, which are those of load/reports/bench.md."""
    speeds = [
        int(cell.replace(",", "")) for cell in re.search(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE).groups()
    ]  # type: ignore[union-attr]
    bench = (REPOSITORY / "load" / "reports" / "bench.md").read_text()
    row = re.search(r"^\| HTTP, 8 clients x 20 documents \|(.*)$", bench, re.MULTILINE)
    assert row
    assert [int(tokens.replace(",", "")) for tokens in re.findall(r"\(([\d,]+)\)", row.group(1))] == speeds
    rows = re.findall(r"^\| (\d+) \| (\d+) % \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8
    for rate, known, *servers in rows:
        tokens = int(rate) * _DOCUMENTS * _PAIR_TOKENS * (1 - int(known) / 100)
        assert [math.ceil(tokens / (speed * _SHARE)) for speed in speeds] == [int(count) for count in servers], (rate, known)
