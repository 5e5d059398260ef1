"""The OpenAPI document: complete, closed in itself, and true to the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bento_service import __version__, errors
from bento_service.dialects.dialect import Limits
from bento_service.dialects.objects import NATIVE, V1, ObjectRequest
from bento_service.edge import GET_ROUTES, POST_ROUTES
from bento_service.openapi import ANSWER, document
from bento_service.ranking import Ranked
from bento_service.schemas import CacheCounts, RerankResult

BENTOML_S_OWN = {"/healthz", "/schema.json"}


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(child)


def _schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"][name]
    return found


def test_the_document_is_plain_json_of_this_version() -> None:
    """It is served as it stands."""
    assert json.loads(json.dumps(document(), allow_nan=False)) == document()
    assert document()["openapi"].startswith("3.1")
    assert document()["info"]["version"] == __version__


def test_every_route_we_serve_is_described() -> None:
    """Beside those that BentoML brings along."""
    assert set(document()["paths"]) == (POST_ROUTES | GET_ROUTES) - BENTOML_S_OWN
    assert all("post" in document()["paths"][path] for path in POST_ROUTES)


def test_every_reference_leads_somewhere() -> None:
    """Also those that pydantic wrote into the request schema."""
    references = [node["$ref"] for node in _nodes(document()) if "$ref" in node]
    assert references
    for reference in references:
        target: Any = document()
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert isinstance(target, dict)


def test_every_request_field_is_described_under_its_own_name() -> None:
    """And the required ones are marked."""
    request = _schema("RerankRequest")
    assert set(request["properties"]) == set(ObjectRequest.model_fields)
    assert set(request["required"]) == {"query", "documents"}
    assert all(field["description"] for field in request["properties"].values())
    assert request["properties"]["documents"]["minItems"] == 1


def test_every_error_a_route_can_answer_is_named_under_its_status() -> None:
    """An error class that is added appears here by itself."""
    described = document()["paths"]["/rerank"]["post"]["responses"]
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RequestError)]
    assert set(described) == {"200", "422", "424", *(str(each.status) for each in classes)}
    for each in classes:
        assert each.code in described[str(each.status)]["description"].split(", ")


def test_the_examples_are_valid_requests() -> None:
    """A reader may paste them."""
    examples = [node["example"] for node in _nodes(document()) if "example" in node]
    assert examples
    for example in [*examples, *_schema("RerankRequest")["examples"]]:
        assert NATIVE.read(example, Limits(documents=10, document_characters=1000, chunks=8))[0].query == example["query"]


def test_an_answer_has_just_the_fields_described() -> None:
    """In the answer, in each result, in usage and in meta."""
    queries = NATIVE.read(
        {"query": "q", "documents": [{"text": "a", "id": 1}]}, Limits(documents=1, document_characters=1000, chunks=8)
    )
    result = RerankResult("m", [Ranked(0, 0.5, 1)], 3, [], CacheCounts(0, 1, 0), spans={0: (0, 1)})
    answer = NATIVE.write(queries, [result], took_ms=1.0)
    assert set(V1.write(queries, [result], took_ms=1.0)) == set(ANSWER["properties"])
    assert set(answer) == set(ANSWER["required"])
    assert set(answer["results"][0]) == set(ANSWER["properties"]["results"]["items"]["properties"])
    for block in ("usage", "meta"):
        assert set(answer[block]) == set(ANSWER["properties"][block]["properties"])


def test_an_error_body_has_just_the_fields_described() -> None:
    """Outside and inside."""
    _, body = NATIVE.error(errors.InvalidRequest("m"))
    described = _schema("Error")["properties"]
    assert set(body) == set(described)
    assert set(body["error"]) == set(described["error"]["properties"])


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_a_state_that_can_be_bad_is_described_as_such(path: str) -> None:
    """503 is an answer there."""
    assert set(document()["paths"][path]["get"]["responses"]) == {"200", "503"}
