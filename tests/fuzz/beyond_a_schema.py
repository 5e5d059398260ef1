"""What schemathesis cannot know: which requests are as the schema says and yet refused, and the count of all answers.

Loaded by schemathesis itself, in an environment that holds nothing of the service.
"""

from __future__ import annotations

import atexit
import collections
import json
import os
import re
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

ANSWERS: collections.Counter[tuple[str, int]] = collections.Counter()
# Tokens depend on the model, and joined texts are longer than each of them.
DOES_NOT_FIT = re.compile(r"does not fit the model's window|has more than \d+ tokens|this server takes at most \d+")


@schemathesis.check
def a_valid_request_is_answered(ctx: Any, response: Any, case: Any) -> bool | None:
    """Accept a refusal of what the schema allows only where one of the reasons below is told and true."""
    if response.status_code in {400, 422} and isinstance(case.body, dict):
        message = response.json().get("message") or response.json()["error"]
        if (
            DOES_NOT_FIT.search(message)
            or ("make no pairs" in message and _makes_no_pairs(case.body))
            or ("valid integer" in message and _has_whole_float(case.body))
        ):
            return None
    accepted: bool | None = positive_data_acceptance(ctx, response, case)
    return accepted


def _makes_no_pairs(body: dict[str, Any]) -> bool:
    queries, documents = (value if isinstance(value, list) else [value] for value in (body["queries"], body["documents"]))
    return len(queries) not in {1, len(documents)}


def _has_whole_float(body: dict[str, Any]) -> bool:
    """To a schema 1.0 is an integer; the service takes none that is written so."""
    return any(isinstance(value, float) and value.is_integer() for value in body.values())


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:  # noqa: ARG001  schemathesis looks at the names
    """Count the answer."""
    ANSWERS[f"{case.method.upper()} {case.path}", response.status_code] += 1


def _report() -> None:
    counts = [{"route": route, "status": status, "cases": count} for (route, status), count in sorted(ANSWERS.items())]
    Path(os.environ["ANSWERS"]).write_text(json.dumps(counts), encoding="utf-8")


atexit.register(_report)
