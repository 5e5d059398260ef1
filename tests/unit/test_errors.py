"""The exception tree: as drawn, with stable codes and statuses."""

from __future__ import annotations

import inspect
import re

import pytest

from bento_service import errors
from bento_service.errors import QueueFull, RequestError, RerankerError

STATUS_AND_KIND = {
    "invalid_request": (400, "invalid_request_error"),
    "query_too_long": (400, "invalid_request_error"),
    "document_too_long": (400, "invalid_request_error"),
    "unauthorized": (401, "authentication_error"),
    "body_timeout": (408, "timeout_error"),
    "bodies_full": (429, "overloaded_error"),
    "key_busy": (429, "overloaded_error"),
    "model_not_found": (404, "invalid_request_error"),
    "body_too_large": (413, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "queue_full": (429, "overloaded_error"),
    "queue_timeout": (429, "overloaded_error"),
    "scoring_failed": (500, "server_error"),
    "scorer_down": (503, "overloaded_error"),
    "shutting_down": (503, "overloaded_error"),
    "deadline_passed": (504, "timeout_error"),
    "internal_error": (500, "server_error"),
}


def _classes() -> dict[str, type[RerankerError]]:
    return {
        name: each
        for name, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, RerankerError) and each.__module__ == errors.__name__
    }


def test_the_drawing_shows_every_class_with_its_status() -> None:
    """A class that is added must be drawn, one that goes must be rubbed out."""
    drawn = dict(re.findall(r"── (\w+)(?: +(\d{3}))?", errors.__doc__ or ""))
    classes = {name: each for name, each in _classes().items() if each is not RerankerError}
    assert set(drawn) == set(classes)
    for name, status in drawn.items():
        if status:
            assert getattr(classes[name], "status", None) == int(status)


def test_the_drawing_shows_who_descends_from_whom() -> None:
    """Four characters of indent are one generation."""
    parents = {0: "RerankerError"}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"( +(?:│   |    )*)[├└]── (\w+)", line):
            depth = len(match.group(1)) // 4
            assert _classes()[match.group(2)].__base__ is _classes()[parents[depth - 1]]
            parents[depth] = match.group(2)
    assert set(parents) == {0, 1, 2, 3}


def test_codes_statuses_and_types_stay_as_they_are() -> None:
    """Programs of callers compare them."""
    found = {each.code: (each.status, each.kind) for each in _classes().values() if issubclass(each, RequestError)}
    assert found == STATUS_AND_KIND


def test_only_what_may_be_tried_again_soon_is_drawn_with_retry_after() -> None:
    """429 and 503 carry Retry-After; 500 and 504 do not invite a storm."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if "Retry-After" in line]
    assert [re.findall(r"\d{3}", line) for line in lines] == [["429"]] * 4 + [["503"]] * 2


def test_an_error_carries_what_its_answer_needs() -> None:
    """Message, code, field at fault and time to come back."""
    error = QueueFull("full", retry_after_seconds=3)
    assert (str(error), error.message, error.code, error.param, error.retry_after_seconds) == (
        "full",
        "full",
        "queue_full",
        None,
        3,
    )


def test_one_error_may_have_a_finer_code_without_changing_its_class() -> None:
    """`documents_empty` is an InvalidRequest of its own code."""
    error = errors.InvalidRequest("none", code="documents_empty", param="documents")
    assert (error.code, error.param, errors.InvalidRequest.code) == ("documents_empty", "documents", "invalid_request")


@pytest.mark.parametrize("name", ["SettingsError", "ModelError"])
def test_what_stops_the_start_is_never_answered_to_a_caller(name: str) -> None:
    """An operator's error has no HTTP status."""
    assert not issubclass(_classes()[name], RequestError)
