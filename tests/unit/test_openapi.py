"""The OpenAPI document: complete, closed in itself, and true to the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bento_service import __version__, errors, openapi
from bento_service.answer_shapes import ANSWER
from bento_service.dialects.dialect import Dialect, Limits
from bento_service.dialects.objects import NATIVE, V1, ObjectRequest
from bento_service.dialects.score import SCORE
from bento_service.dialects.texts import TEI
from bento_service.edge import GET_ROUTES, POST_ROUTES
from bento_service.ranking import Ranked
from bento_service.schemas import CacheCounts, RerankResult

RANK_FIELDS = 100  # the same on every server
LIMITS = Limits(documents=10, document_characters=1000, chunks=8)


def document() -> dict[str, Any]:
    """Build the document of a server with small limits."""
    return openapi.document(LIMITS)


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
    """Those that BentoML brings along included."""
    assert set(document()["paths"]) == POST_ROUTES | GET_ROUTES
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
    assert request["properties"]["documents"]["items"] == {"$ref": "#/components/schemas/Document"}


def test_every_error_a_route_can_answer_is_named_under_its_status() -> None:
    """An error class that is added appears here by itself."""
    described = document()["paths"]["/rerank"]["post"]["responses"]
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RequestError)]
    assert set(described) == {"200", "422", "424", *(str(each.status) for each in classes)}
    for each in classes:
        assert each.code in described[str(each.status)]["description"].split(", ")


def _bodies(path: str, status: str) -> set[str]:
    answer = document()["paths"][path]["post"]["responses"][status]
    return {node["$ref"].rpartition("/")[2] for node in _nodes(answer) if "$ref" in node}


@pytest.mark.parametrize(
    ("status", "bodies"),
    [
        ("200", {"RerankAnswer", "TextsAnswer"}),
        ("400", {"Error", "TextsError"}),
        ("404", {"Error", "TextsError"}),
        ("413", {"Error"}),
        ("415", {"Error"}),
        ("422", {"TextsError"}),
        ("424", {"TextsError"}),
        ("429", {"Error", "TextsError"}),
        ("500", {"Error"}),
        ("503", {"Error", "TextsError"}),
        ("504", {"Error", "TextsError"}),
    ],
)
def test_each_status_has_the_bodies_of_those_who_answer_with_it(status: str, bodies: set[str]) -> None:
    """On /rerank, which speaks two dialects; what fails before the body is understood is told in one. On /score only that one."""
    assert _bodies("/rerank", status) == bodies
    if status not in {"200", "422", "424"}:
        assert _bodies("/score", status) == {"Error"}


def test_every_code_stands_under_its_status() -> None:
    """Those that are given where an error is raised included."""
    described = {status: answer["description"] for status, answer in document()["paths"]["/rerank"]["post"]["responses"].items()}
    for code in ("invalid_json", "invalid_request", "documents_empty", "documents_too_many", "document_too_large"):
        assert code in described["400"].split(", ")
    assert "invalid_json" not in described["422"]
    assert described["424"] == "internal_error, scoring_failed"


@pytest.mark.parametrize(("schema", "dialect"), [("RerankRequest", NATIVE), ("TextsRequest", TEI), ("ScoreRequest", SCORE)])
def test_the_examples_are_valid_requests(schema: str, dialect: Dialect) -> None:
    """A reader may paste them."""
    [example] = _schema(schema)["examples"]
    [query] = dialect.read(example, LIMITS)
    assert query.query == "what is a reranker?"


@pytest.mark.parametrize("schema", ["RerankRequest", "TextsRequest", "ScoreRequest"])
def test_the_limits_of_the_server_stand_in_every_request(schema: str) -> None:
    """For each list that counts and each text, and none is left open."""
    nodes = list(_nodes([_schema(schema), _schema("Document")]))
    assert {node["maxItems"] for node in nodes if "maxItems" in node} - {RANK_FIELDS} == {10}
    assert {node["maxLength"] for node in nodes if "maxLength" in node} == {1000}
    other = openapi.document(Limits(documents=3, document_characters=7, chunks=8))["components"]["schemas"]
    assert {node["maxItems"] for node in _nodes(other[schema]) if "maxItems" in node} - {RANK_FIELDS} == {3}
    assert {node["maxLength"] for node in _nodes(other["Document"]) if "maxLength" in node} == {7}


@pytest.mark.parametrize("blank", [chr(code) for code in range(0x110000) if chr(code).isspace()], ids=lambda each: hex(ord(each)))
def test_a_blank_query_is_no_query_to_the_schema_either(blank: str) -> None:
    """Each engine has its own idea of white space; the schema has the service's."""
    pattern = re.compile(_schema("RerankRequest")["properties"]["query"]["pattern"])
    assert not pattern.search(f"{blank} {blank}")
    assert pattern.search(f"{blank}q{blank}")
    with pytest.raises(errors.InvalidRequest, match="blank"):
        NATIVE.read({"query": blank, "documents": ["d"]}, LIMITS)


def test_an_answer_has_just_the_fields_described() -> None:
    """In the answer, in each result, in usage and in meta."""
    queries = NATIVE.read({"query": "q", "documents": [{"text": "a", "id": 1}]}, LIMITS)
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
    assert set(document()["paths"][path]["get"]["responses"]) - {"401"} == {"200", "503"}
