"""Yes/no rerankers score as their model card's own code does: prompts, instructions, cuts, shared prefixes, precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder

from bento_service.pairs import TokenPair
from bento_service.ranking import activate
from bento_service.scorer import yes_no
from bento_service.scorer.device import choose_precision, multiplies_bf16
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.prefixes import Prefixes
from bento_service.scorer.weights import load_encoder
from bento_service.scorer.yes_no import _SHARING, YesNo
from bento_service.tokenizer import Cut
from model_store_scripts.templates import _QWEN3
from small_models import DOCUMENTS, PROMPT_WINDOW, QUERIES, ServedModel, make_yes_no, raw_scores, serve

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-4
INVARIANCE = 1e-5
CPU = torch.device("cpu")
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"
OTHER_TASK = "Find the passage that contradicts the query"
PAIRS = [(query, document) for query in QUERIES[:3] for document in DOCUMENTS]
Ids = list[list[int]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ServedModel]]:
    """Return a function that makes a small model of an architecture and takes it through the store, once."""
    known: dict[str, tuple[Path, ServedModel]] = {}
    options = {"causal": {}, "causal-untied": {"tied": False}, "classifier": {"classifier": True}}

    def get(architecture: str) -> tuple[Path, ServedModel]:
        if architecture not in known:
            folder = make_yes_no(tmp_path_factory.mktemp("yes-no") / architecture, **options[architecture])
            known[architecture] = folder, serve(folder, template="qwen3")
        return known[architecture]

    return get


ARCHITECTURES = ["causal", "causal-untied", "classifier"]


def card_ids(folder: Path, pairs: Sequence[tuple[str, str]], task: str, max_length: int = PROMPT_WINDOW) -> Ids:
    """Tokenise as Qwen3-Reranker's card does: prefix and suffix apart, what is between them as one text, cut to what is left."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    prefix, suffix = (tokenizer.encode(text, add_special_tokens=False) for text in (PREFIX, SUFFIX))
    texts = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    room = max_length - len(prefix) - len(suffix)
    between = tokenizer(texts, padding=False, truncation="longest_first", return_attention_mask=False, max_length=room)
    return [prefix + ids + suffix for ids in between["input_ids"]]


def card_scores(folder: Path, pairs: Sequence[tuple[str, str]], task: str = TASK) -> np.ndarray:
    """Score as the card does, in batches padded on the left: the softmax over the logits of no and yes at the last place."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    sequences = card_ids(folder, pairs, task)
    scores = []
    with torch.inference_mode():
        for start in range(0, len(pairs), 16):
            inputs = tokenizer.pad({"input_ids": sequences[start : start + 16]}, padding=True, return_tensors="pt")
            logits = model(**inputs).logits
            if kind.endswith("ForSequenceClassification"):
                scores.append(torch.sigmoid(logits[:, 0]))
                continue
            last = logits[:, -1, [tokenizer.convert_tokens_to_ids(token) for token in ("no", "yes")]]
            scores.append(torch.log_softmax(last, dim=1)[:, 1].exp())
    return torch.cat(scores).numpy()


def probabilities(raw: Sequence[float] | np.ndarray) -> np.ndarray:
    """Apply the activation."""
    return np.array([activate(float(score), "sigmoid") for score in raw])


def tokens(model: ServedModel, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> list[TokenPair]:
    """Tokenise pairs as the entry does."""
    encode = model.tokenizer.encode_now
    return [encode(query, [text], Cut(), np.inf, 0, instruction=instruction)[0].windows[0] for query, text in pairs]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_the_card_s_own_code(made: Callable[[str], tuple[Path, ServedModel]], architecture: str) -> None:
    """Several queries in one batch, documents of every length and script, cut and whole."""
    folder, model = made(architecture)
    reference = card_scores(folder, PAIRS)
    assert reference.std() > 0.1
    assert np.abs(probabilities(model.raw(PAIRS)) - reference).max() < TOLERANCE


@pytest.mark.parametrize("architecture", ["causal", "classifier"])
def test_a_request_s_instruction_stands_in_the_prompt(made: Callable[[str], tuple[Path, ServedModel]], architecture: str) -> None:
    """In the place of the model's own, and it changes the scores."""
    folder, model = made(architecture)
    reference = card_scores(folder, PAIRS[:30], OTHER_TASK)
    ours = probabilities(raw_scores(model.engine, tokens(model, PAIRS[:30], OTHER_TASK)))
    assert np.abs(ours - reference).max() < TOLERANCE
    assert np.abs(ours - probabilities(model.raw(PAIRS[:30]))).max() > 100 * TOLERANCE


@pytest.mark.parametrize("task", [TASK, OTHER_TASK])
def test_token_ids_are_the_card_s(made: Callable[[str], tuple[Path, ServedModel]], task: str) -> None:
    """Every one of them, also where a document is cut, and they are counted."""
    folder, model = made("causal")
    ours = [model.tokenizer.encode_now(query, [text], Cut(), np.inf, 0, instruction=task)[0] for query, text in PAIRS]
    expected = card_ids(folder, PAIRS, task)
    assert [pair.windows[0].ids.tolist() for pair in ours] == expected
    assert [pair.token_count for pair in ours] == [len(ids) for ids in expected]
    cut = [pair for pair in ours if pair.truncated]
    assert 5 < len(cut) < len(ours)
    assert {pair.token_count for pair in cut} == {PROMPT_WINDOW}


def test_scores_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """A CrossEncoder with a chat template of its own, saved by the library, cuts and scores as the model in our store does."""
    folder = tmp_path / "st-saved"
    made = CrossEncoder(str(make_yes_no(tmp_path / "inner", chat_template=_QWEN3)), device="cpu", local_files_only=True)
    made.save_pretrained(str(folder))
    assert (folder / "1_LogitScore" / "config.json").is_file()
    model = serve(folder)
    reference = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    assert np.abs(probabilities(model.raw(PAIRS)) - reference.predict(list(PAIRS))).max() < TOLERANCE
    asked = reference.predict(list(PAIRS[:20]), prompt=OTHER_TASK)
    ours = raw_scores(model.engine, tokens(model, PAIRS[:20], OTHER_TASK))
    assert np.abs(probabilities(ours) - asked).max() < TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "max_batch_tokens", "most_keys"),
    [("causal", None, 16384), ("causal", 1, 16384), ("causal", None, 500), ("classifier", 700, 16384)],
)
def test_a_pair_s_score_does_not_depend_on_its_companions(
    made: Callable[[str], tuple[Path, ServedModel]],
    architecture: str,
    max_batch_tokens: int | None,
    most_keys: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone in a fresh engine, or with others that share its prefix, in any order and micro-batch, in one pass or in pieces of it."""
    monkeypatch.setattr(yes_no, "_MOST_KEYS", most_keys)
    _, model = made(architecture)
    pairs = model.tokens(PAIRS[:40])
    alone = np.concatenate([raw_scores(engine(model), [pair]) for pair in pairs])
    order = np.random.default_rng(3).permutation(len(pairs))
    together = raw_scores(engine(model, max_batch_tokens=max_batch_tokens), [pairs[place] for place in order])
    assert np.abs(together - alone[order]).max() < INVARIANCE
    warm = engine(model)
    one_by_one = np.concatenate([raw_scores(warm, [pair]) for pair in pairs])
    assert np.abs(one_by_one - alone).max() < INVARIANCE


@pytest.mark.parametrize("model_type", sorted(_SHARING))
def test_every_family_that_shares_prefixes_scores_as_without(model_type: str) -> None:
    """Of the pairs of two queries, with prefixes of unlike lengths, in one batch."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    config = transformers.AutoConfig.for_model(model_type, vocab_size=300, initializer_range=0.3, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, head = transformers.AutoModel.from_config(config).eval(), torch.randn(32)
    drawn = np.random.default_rng(5)
    prefixes = [drawn.integers(1, 300, size).astype(np.uint32) for size in (20, 33)]
    pairs = [
        TokenPair(np.append(prefix, drawn.integers(1, 300, size).astype(np.uint32)), None, len(prefix), np.inf, 0)
        for size in (1, 7, 7, 30)
        for prefix in prefixes
    ]
    shared = YesNo(model, head, device=CPU, prefixes=Prefixes(max_tokens=100, pass_tokens=0))
    assert all(row.prefix for row in shared.rows(pairs)[0])
    scores, whole = (
        raw_scores(ScoringEngine(it, device=CPU), pairs) for it in (shared, YesNo(model, head, device=CPU, prefixes=None))
    )
    assert whole.std() > 1
    assert np.abs(scores - whole).max() < INVARIANCE * whole.std()


def engine(model: ServedModel, *, max_batch_tokens: int | None = None, pass_tokens: int = 0) -> ScoringEngine:
    """Build an engine around the same weights that remembers nothing yet, and shares wherever it saves a token."""
    known = model.engine._encoder
    prefixes = Prefixes(max_tokens=2048, pass_tokens=pass_tokens)
    encoder = YesNo(known._model, known._head, device=CPU, prefixes=prefixes)
    return ScoringEngine(encoder, device=CPU, max_batch_tokens=max_batch_tokens)


def test_a_query_s_prefix_is_computed_once(made: Callable[[str], tuple[Path, ServedModel]]) -> None:
    """Rows behind it are only what differs; a batch of two queries computes two prefixes, and the next one none."""
    _, model = made("causal")
    pairs = model.tokens(PAIRS[: 2 * len(DOCUMENTS)])
    shared = engine(model)
    encoder = shared._encoder
    passes: list[tuple[int, ...]] = []
    hook = encoder._model.register_forward_pre_hook(
        lambda _module, _args, inputs: passes.append((*inputs["input_ids"].shape, inputs["use_cache"])), with_kwargs=True
    )
    try:
        raw_scores(shared, pairs)
        assert [shape[0] for shape in passes if shape[2]] == [2]
        passes.clear()
        raw_scores(shared, pairs)
        assert not [shape for shape in passes if shape[2]]
    finally:
        hook.remove()
    rows, _ = encoder.rows(pairs)
    assert [len(row.ids) for row in rows] == [len(pair.ids) - pair.split for pair in pairs]
    assert len({id(row.prefix) for row in rows}) == 2


def test_prefixes_left_out_or_mixed_up_would_be_noticed(made: Callable[[str], tuple[Path, ServedModel]]) -> None:
    """The comparison bites: another query's prefix gives other scores."""
    _, model = made("causal")
    pairs = model.tokens(PAIRS[: 2 * len(DOCUMENTS)])
    encoder = engine(model)._encoder
    rows, _ = encoder.rows(pairs)
    with torch.inference_mode():
        right = encoder.forward(rows)
        first, second = rows[0].prefix, rows[-1].prefix
        first.layers, second.layers = second.layers, first.layers
        first.ids, second.ids = second.ids, first.ids
        assert float((encoder.forward(rows) - right).abs().max()) > 100 * TOLERANCE


@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this CPU only emulates bf16")
@pytest.mark.parametrize("architecture", ["causal", "classifier"])
def test_bf16_ranks_as_fp32_does(made: Callable[[str], tuple[Path, ServedModel]], architecture: str) -> None:
    """And is not fp32 in disguise; yes and no are told apart in float32."""
    _, model = made(architecture)
    half = load_encoder(model.folder, model.info, precision=choose_precision("bf16", "bf16", CPU), device=CPU)
    scores, full = raw_scores(ScoringEngine(half, device=CPU), model.tokens(PAIRS)), model.raw(PAIRS)
    assert half._head.dtype == torch.float32
    assert np.corrcoef(scores, full)[0, 1] > 0.995
    assert 1e-4 < np.abs(probabilities(scores) - probabilities(full)).max() < 0.1
