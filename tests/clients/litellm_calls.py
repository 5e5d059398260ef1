"""LiteLLM, as a client of vLLM and of TEI."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm

from scenario import Call, Example, example, play, ranked


def _told(answer: litellm.RerankResponse) -> list[dict[str, Any]]:
    return ranked((item["index"], item["relevance_score"], item["document"]["text"]) for item in answer.results)


def _rank(name: str) -> Call:
    return lambda url: _told(Example(name, url).names["answer"])


def _objects(url: str) -> list[dict[str, Any]]:
    names = Example("litellm hosted_vllm", url).names
    documents = [{"text": text} for text in names["documents"]]
    return _told(litellm.rerank("hosted_vllm/any", names["query"], documents, api_base=url, top_n=2, return_documents=True))


def _async(url: str) -> list[dict[str, Any]]:
    names = Example("litellm hosted_vllm", url).names
    call = litellm.arerank("hosted_vllm/any", names["query"], names["documents"], api_base=url, top_n=2)
    return _told(asyncio.run(call))


def _bad(model: str, query: str, documents: list[str]) -> Call:
    return lambda url: litellm.rerank(model, query, documents, api_base=url)


_VLLM, _TEI = "litellm hosted_vllm", "litellm huggingface"
_EXAMPLES = [_VLLM, _TEI, "litellm.Router"]
_LONG = ["short", "long " * 2000]
play(
    _EXAMPLES,
    {
        "vllm": _rank(_VLLM),
        "vllm, objects": _objects,
        "vllm, async": _async,
        "tei": _rank(_TEI),
        "vllm blank": _bad("hosted_vllm/any", " ", ["Rome"]),
        "tei blank": _bad("huggingface/any", " ", ["Rome"]),
        "tei too long": _bad("huggingface/any", "capital of Italy", _LONG),
        "vllm long": lambda url: _told(
            litellm.rerank("hosted_vllm/any", "capital of Italy", _LONG, api_base=url, return_documents=True)
        ),
    },
    overloaded={name: example(name) for name in _EXAMPLES}
    | {"num_retries": lambda url: litellm.rerank("hosted_vllm/any", "q", ["Rome"], api_base=url, num_retries=2)},
)
