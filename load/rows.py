"""One row for each request of a run: when it was due, sent and answered, and what came of it."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ANSWERED, REJECTED = 200, 429
UNKNOWN = -1  # the answer does not say


class Row(NamedTuple):
    """due, sent, done: seconds since the begin · status: 0 is no HTTP answer · hits, misses, shared: documents, -1 where the answer does not say."""

    due: float
    sent: float
    done: float
    status: int
    documents: int
    hits: int
    misses: int
    shared: int
    repeated: int
    error: str

    @property
    def latency(self) -> float:
        """Seconds from when it was due, so that what waits behind a slow answer counts as slow, too."""
        return self.done - self.due


def write_row(row: Row) -> list[str]:
    """Spell a row, times in tenths of a millisecond."""
    return [*(f"{value:.4f}" for value in row[:3]), *map(str, row[3:])]


def read_rows(path: Path) -> list[Row]:
    """Read what a driver wrote, in the order in which the requests were due."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [Row(*map(float, cells[:3]), *map(int, cells[3:9]), cells[9]) for cells in csv.reader(file)]
    return sorted(rows)


def write_archive(path: Path, phases: Mapping[str, Iterable[Row]]) -> None:
    """Keep the rows of all phases in one gzipped CSV, the same bytes for the same rows."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["phase", *Row._fields])
    table.writerows([name, *write_row(row)] for name, rows in phases.items() for row in rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
