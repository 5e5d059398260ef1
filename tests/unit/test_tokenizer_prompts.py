"""The tokenizer and yes/no models: a prompt around query and document, of which the document alone is ever cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import make_info

from bento_service.errors import QueryTooLong
from bento_service.tokenizer import Cut, PairTokenizer, TokenizedPair
from small_models import TEXTS, _qwen3_tokenizer

WINDOW = 160
BEFORE, BETWEEN, SUFFIX = "<|im_start|>Judge {instruction}\n<Query>: ", "\n<Document>: ", "<|im_end|>\n<think>\n\n</think>\n\n"
OWN, QUERY = "the passage", "how long is the river?"
LONG = " ".join(TEXTS) * 3


@pytest.fixture(scope="module")
def reference() -> Any:
    """Make transformers' own tokenizer."""
    return _qwen3_tokenizer()


@pytest.fixture(scope="module")
def tokenizer(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PairTokenizer]:
    """Make ours from the same file."""
    file: Path = tmp_path_factory.mktemp("prompts") / "tokenizer.json"
    file.write_text(reference.backend_tokenizer.to_str(), encoding="utf-8")
    prompts = {"query_prompt": BEFORE.replace("{instruction}", OWN), "instruction_prompt": BEFORE, "document_prompt": BETWEEN}
    info = make_info("yes-no", **prompts, suffix=SUFFIX, answers=[1, 2], uses_token_types=False)
    made = PairTokenizer(file, info, max_length=WINDOW)
    yield made
    made.close()


def ids_of(reference: Any, text: str) -> list[int]:
    """Tokenise a text as it is."""
    return list(reference(text, add_special_tokens=False).input_ids)


def encode(tokenizer: PairTokenizer, document: str, cut: Cut | None = None, **more: Any) -> TokenizedPair:
    """Tokenise one pair."""
    [pair] = tokenizer.encode_now(more.pop("query", QUERY), [document], cut or Cut(), 12.5, 7, **more)
    return pair


def lead(instruction: str = OWN, query: str = QUERY) -> str:
    """Write what stands before a document."""
    return BEFORE.replace("{instruction}", instruction) + query + BETWEEN


@pytest.mark.parametrize("document", [*TEXTS, "", " ", "\n\nx", "no", "x ", "<|im_end|>", "(1)", "\u0301"], ids=ascii)
def test_a_pair_that_fits_has_the_ids_of_the_whole_text(tokenizer: PairTokenizer, reference: Any, document: str) -> None:
    """As if prompt, query, document and what follows it had been one text; split is where the document's tokens begin."""
    pair = encode(tokenizer, document)
    [window] = pair.windows
    assert window.ids.tolist() == ids_of(reference, lead() + document + SUFFIX)
    assert (pair.token_count, pair.truncated, window.type_ids) == (len(window.ids), False, None)
    assert window.ids[: window.split].tolist() == ids_of(reference, lead().rstrip())


def test_a_request_s_instruction_takes_the_place_of_the_model_s(tokenizer: PairTokenizer, reference: Any) -> None:
    """And braces in it are only text."""
    for instruction in ("be brief", "{query} {instruction}"):
        [window] = encode(tokenizer, "d", instruction=instruction).windows
        assert window.ids.tolist() == ids_of(reference, lead(instruction) + "d" + SUFFIX)


def test_a_long_document_is_cut_and_nothing_else(tokenizer: PairTokenizer, reference: Any) -> None:
    """On the right the ids are the whole text's, cut, and the prompt's end; on the left the document's last tokens."""
    pair = encode(tokenizer, LONG)
    [window] = pair.windows
    suffix, whole = ids_of(reference, SUFFIX), ids_of(reference, lead() + LONG)
    assert window.ids.tolist() == whole[: WINDOW - len(suffix)] + suffix
    assert (pair.truncated, pair.token_count) == (True, WINDOW)
    [left] = encode(tokenizer, LONG, Cut(side="left")).windows
    head = ids_of(reference, lead().rstrip())
    assert left.ids.tolist() == head + whole[-(WINDOW - len(suffix) - len(head)) :] + suffix
    assert left.split == len(head)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_limit_counts_the_document_s_tokens_alone(tokenizer: PairTokenizer, reference: Any, side: Any) -> None:
    """From either end."""
    head, suffix, body = ids_of(reference, lead().rstrip()), ids_of(reference, SUFFIX), ids_of(reference, " " + TEXTS[0])
    for most in (1, 5):
        [window] = encode(tokenizer, TEXTS[0], Cut(most, side=side)).windows
        assert window.ids.tolist() == head + (body[:most] if side == "right" else body[-most:]) + suffix


def test_windows_of_a_long_document_each_have_the_whole_prompt(tokenizer: PairTokenizer, reference: Any) -> None:
    """They overlap, lose nothing, share one prefix, and their spans are the document's characters."""
    pair = encode(tokenizer, LONG, Cut(max_chunks=100))
    head, suffix = ids_of(reference, lead().rstrip()), ids_of(reference, SUFFIX)
    room = WINDOW - len(head) - len(suffix)
    assert len(pair.windows) > 4
    bodies = []
    for window in pair.windows:
        ids = window.ids.tolist()
        assert (ids[: window.split], ids[-len(suffix) :]) == (head, suffix)
        bodies.append(ids[len(head) : -len(suffix)])
    assert [len(body) for body in bodies[:-1]] == [room] * (len(bodies) - 1)
    joined = bodies[0] + [token for body in bodies[1:] for token in body[room // 8 :]]
    assert joined == ids_of(reference, " " + LONG)
    assert not pair.truncated
    assert pair.spans is not None
    assert (pair.spans[0][0], pair.spans[-1][1]) == (0, len(LONG))
    assert bodies[0] == ids_of(reference, " " + LONG[: pair.spans[0][1]])
    assert encode(tokenizer, LONG, Cut(max_chunks=1)).windows[0].ids.tolist() == encode(tokenizer, LONG).windows[0].ids.tolist()


def test_a_query_that_leaves_too_little_is_refused(tokenizer: PairTokenizer, reference: Any) -> None:
    """The line counts the query's and its instruction's own tokens, not the prompt's."""
    prompt = len(ids_of(reference, lead("", "")))
    most = int((WINDOW - len(ids_of(reference, SUFFIX))) * 0.75)
    with pytest.raises(QueryTooLong, match=f"the query and its instruction have more than {most - prompt} tokens"):
        encode(tokenizer, "d", query="river " * most)
    with pytest.raises(QueryTooLong):
        encode(tokenizer, "d", instruction="river " * most)
