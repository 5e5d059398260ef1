"""What the dialects' requests have in common, as JSON Schema: fields.py reads it, /docs.json shows it."""

from __future__ import annotations

from typing import Any

from bento_service.dialects.dialect import Limits

TEXT_KEYS = ("text", "content", "document", "body", "value", "snippet")
TEXT_KEYS_TOLD = ", ".join(TEXT_KEYS)
_SERVERS_OWN = 0  # stands where with_limits() puts what the server takes
# A character that str.strip() leaves: each engine's \S means something else.
_NOT_BLANK = r"[^\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"

TEXT: dict[str, Any] = {"type": "string", "maxLength": _SERVERS_OWN}
QUERY: dict[str, Any] = TEXT | {"pattern": _NOT_BLANK}
FLAG: dict[str, Any] = {
    "anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^([tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$"}]
}
_PARTS: dict[str, Any] = {
    "type": "array",
    "description": "Parts, joined by newlines.",
    "minItems": 1,
    "items": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
DOCUMENT: dict[str, Any] = {
    "anyOf": [
        TEXT,
        {
            "type": "object",
            "description": f"The first text under one of {TEXT_KEYS_TOLD}; or those that `rank_fields` names.",
            "properties": {"id": {"type": ["string", "number", "boolean", "null"], "description": "Comes back in the result."}},
            "anyOf": [{"properties": {key: {"anyOf": [TEXT, _PARTS]}}, "required": [key]} for key in TEXT_KEYS],
        },
    ]
}


def many(item: dict[str, Any]) -> dict[str, Any]:
    """Describe a list of as many as a server takes, of at least one."""
    return {"type": "array", "minItems": 1, "maxItems": _SERVERS_OWN, "items": item}


def one_or_many(item: dict[str, Any]) -> dict[str, Any]:
    """Describe a bare one, or a list of them."""
    return {"anyOf": [item, many(item)]}


def with_limits(shape: Any, limits: Limits) -> Any:
    """Fill in the limits of a server, however deep they stand, and name documents instead of describing each anew."""
    if shape == DOCUMENT:
        return {"$ref": "#/components/schemas/Document"}
    if isinstance(shape, list):
        return [with_limits(item, limits) for item in shape]
    if not isinstance(shape, dict):
        return shape
    own = {"maxItems": limits.documents, "maxLength": limits.document_characters}
    return {
        name: own[name] if name in own and item == _SERVERS_OWN else with_limits(item, limits) for name, item in shape.items()
    }


def document_shape(limits: Limits) -> dict[str, Any]:
    """Describe a document as a server with these limits takes it."""
    return {name: with_limits(item, limits) for name, item in DOCUMENT.items()}
