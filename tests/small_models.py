"""Small models of every architecture we serve, made in code: random weights from a seed, a tokenizer trained on TEXTS.

A cross-encoder's head is scaled until its logits spread, so that a comparison of scores can fail.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from bento_service.model_info import ModelInfo
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.loading import TOKENIZER_FILE, load_scorer
from bento_service.settings import Quantization, Settings
from bento_service.tokenizer import Cut, PairTokenizer
from model_store_scripts.save_model import save_model

WINDOW = 96
_EMBEDDINGS = 768
_HIDDEN = 32
_SPREAD = 2.0  # standard deviation of the logits that the head is scaled to

TEXTS = (
    "A reranker sorts retrieved documents by how well they answer the query.",
    "Bread is baked from flour, water, salt and yeast; the dough rests for an hour.",
    "The river rises in the mountains, crosses the plain and reaches the sea after nine hundred kilometres.",
    "Paris a une superficie de 105 km² et compte 2,1 millions d'habitants.",
    "Die Größe der Stadt überraschte die Gäste aus Österreich: 415 km².",
    "東京は日本の首都で、世界最大級の都市です。",
    "Москва — столица России, крупнейший город страны.",
    "القاهرة هي عاصمة مصر وأكبر مدنها.",
    "Cafe\u0301 con leche \U0001f600 \U0001f469\u200d\U0001f4bb ... ¿qué tal?",
    "def rank(scores):\n\treturn sorted(range(len(scores)), key=lambda index: -scores[index])  # 1e-3",
    "It was the 3rd of May, 1998; nobody had expected 42 guests, $17.50 each.",
    "Neural networks learn weights by gradient descent over many small batches.",
)
QUERIES = (
    "what does a reranker do?",
    "how long is the river",
    "Größe von Paris in km²",
    "東京の人口は?",
    "bread",
    "столица России \U0001f600",
)
DOCUMENTS = (
    *TEXTS,
    "",
    " ",
    "no",
    "two\n\nparagraphs,\twith\u00a0odd   spaces ",
    "Special tokens as text: [SEP] </s> [CLS] <s> [PAD] <pad> and on.",
    " ".join(TEXTS),
    TEXTS[2] * 60,
    "".join(TEXTS[5:8]) * 40,
    " " * 9000 + TEXTS[0],
    "x" * 4000 + " and the words behind it, which only a whole reading finds",
)
PAIRS = tuple((query, document) for query in QUERIES[:4] for document in DOCUMENTS)


def _wordpiece() -> dict[str, int]:
    """Cut the words of TEXTS into pieces, BERT's special tokens first (the library's own trainer gives another vocabulary at each run)."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = {word for text in TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    starts = {word[:4] for word in words} | {character for word in words for character in word}
    continuations = {word[4:] for word in words if len(word) > len("bake")} | {
        character for word in words for character in word[1:]
    }
    pieces = sorted(starts) + sorted(f"##{piece}" for piece in continuations)
    return {piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])}


def _byte_level_bpe(specials: list[str], *, size: int = 400, texts: Sequence[str] = TEXTS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(specials: list[str], unknown: str) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token=unknown, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"][len(specials) :]
    # The trainer's scores differ from run to run, its pieces do not; with these scores the fewest pieces win.
    return [(piece, 0.0) for piece in specials] + [
        (piece, -3.0 - 1.0 / len(piece)) for piece in sorted(piece for piece, _ in learned)
    ]


def bert_tokenizer() -> Any:
    """Make a tokenizer as BERT's, of some words."""
    return transformers.BertTokenizer(vocab=_wordpiece(), model_max_length=WINDOW)


def _distilbert_tokenizer() -> Any:
    return transformers.DistilBertTokenizer(vocab=_wordpiece(), model_max_length=WINDOW)


def _roberta_tokenizer() -> Any:
    bpe = json.loads(_byte_level_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
    merges = [tuple(merge) for merge in bpe["merges"]]
    return transformers.RobertaTokenizer(vocab=bpe["vocab"], merges=merges, model_max_length=WINDOW)


def _xlm_roberta_tokenizer() -> Any:
    vocab = _unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<unk>")
    return transformers.XLMRobertaTokenizer(vocab=vocab, model_max_length=WINDOW)


def _deberta_tokenizer() -> Any:
    vocab = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[UNK]")
    return transformers.DebertaV2Tokenizer(vocab=vocab, model_max_length=WINDOW)


def _modernbert_tokenizer() -> Any:
    tokenizer = _byte_level_bpe(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:0 [SEP]:0",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=WINDOW, model_input_names=["input_ids", "attention_mask"], **specials
    )


_SHAPE = {
    "vocab_size": _EMBEDDINGS,
    "hidden_size": _HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * _HIDDEN,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.2,  # ten times the usual, or a model this small would hardly look at its input
}
_OFFSET_SHAPE = _SHAPE | {
    "max_position_embeddings": WINDOW + 2,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def _bert_config(**more: Any) -> Any:
    return transformers.BertConfig(**_SHAPE, **more)


def _roberta_config(**more: Any) -> Any:
    return transformers.RobertaConfig(**_OFFSET_SHAPE, **more)


def _xlm_roberta_config(**more: Any) -> Any:
    return transformers.XLMRobertaConfig(**_OFFSET_SHAPE, **more)


def _distilbert_config(**more: Any) -> Any:
    return transformers.DistilBertConfig(
        vocab_size=_EMBEDDINGS,
        dim=_HIDDEN,
        n_layers=2,
        n_heads=4,
        hidden_dim=2 * _HIDDEN,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        **more,
    )


def _electra_config(**more: Any) -> Any:
    return transformers.ElectraConfig(**_SHAPE, embedding_size=16, **more)


def _deberta_config(**more: Any) -> Any:
    """Describe a model as DeBERTa-v3 is: relative positions in buckets, no absolute ones, no token types."""
    return transformers.DebertaV2Config(
        **_SHAPE,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pooler_hidden_size=_HIDDEN,
        **more,
    )


def _modernbert_config(**more: Any) -> Any:
    """Describe a model as gte-reranker-modernbert is: mean pooling, local attention narrower than the window."""
    return transformers.ModernBertConfig(
        **_SHAPE,
        local_attention=16,
        global_attn_every_n_layers=2,
        classifier_pooling="mean",
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        **more,
    )


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is made. head: where its last layer lies in the model."""

    config: Callable[..., Any]
    tokenizer: Callable[[], Any]
    head: str


ARCHITECTURES = {
    "bert": Architecture(_bert_config, bert_tokenizer, "classifier"),
    "roberta": Architecture(_roberta_config, _roberta_tokenizer, "classifier.out_proj"),
    "xlm-roberta": Architecture(_xlm_roberta_config, _xlm_roberta_tokenizer, "classifier.out_proj"),
    "distilbert": Architecture(_distilbert_config, _distilbert_tokenizer, "classifier"),
    "electra": Architecture(_electra_config, bert_tokenizer, "classifier.out_proj"),
    "deberta-v2": Architecture(_deberta_config, _deberta_tokenizer, "classifier"),
    "modernbert": Architecture(_modernbert_config, _modernbert_tokenizer, "classifier"),
}


def make_cross_encoder(folder: Path, architecture: str = "bert", *, labels: int = 1, **config: Any) -> Path:
    """Write a cross-encoder as transformers does: config, safetensors, tokenizer; `config` goes into its config.json."""
    made = ARCHITECTURES[architecture]
    tokenizer = made.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = transformers.AutoModelForSequenceClassification.from_config(made.config(num_labels=labels, **config)).eval()
    _spread_logits(model, tokenizer, made.head)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PROMPT_WINDOW = 512  # a yes/no model's, whose prompt alone takes some 140 of these small tokens


def _qwen3_tokenizer() -> Any:
    """Make a tokenizer as Qwen3's, in which `yes` and `no` are tokens, with merges learnt from its prompt too."""
    from model_store_scripts.templates import _QWEN3

    learnt = _byte_level_bpe(["<|endoftext|>"], size=650, texts=[*TEXTS, *[_QWEN3] * 3])
    bpe = json.loads(learnt.to_str())["model"]
    answers = [("y", "e"), ("ye", "s"), ("n", "o")]  # first, so that no other merge takes their letters
    merges = answers + [tuple(merge) for merge in bpe["merges"] if tuple(merge) not in answers]
    vocab = dict(bpe["vocab"])
    for left, right in answers:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=PROMPT_WINDOW)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def make_yes_no(folder: Path, *, classifier: bool = False, tied: bool = True, chat_template: str | None = None) -> Path:
    """Write a Qwen3 language model, or a Qwen3 with a head of one label, and a tokenizer; no template unless given."""
    config = transformers.Qwen3Config(
        **_SHAPE | {"max_position_embeddings": PROMPT_WINDOW},
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        pad_token_id=0,
        num_labels=1,
    )
    kind = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(22)
        model = kind.from_config(config).eval()
    with torch.no_grad():
        model.base_model.norm.weight *= 4  # spreads the raw scores
    tokenizer = _qwen3_tokenizer()
    tokenizer.chat_template = chat_template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_bi_encoder(folder: Path, *, pooling: str = "mean", prompts: dict[str, str] | None = None) -> Path:
    """Write a bi-encoder as sentence-transformers does, with BERT inside."""
    from sentence_transformers import SentenceTransformer  # late: it takes seconds, and few callers need it
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with torch.random.fork_rng():
        torch.manual_seed(21)
        model = transformers.BertModel(_bert_config())
    inner = folder / "inner"
    model.save_pretrained(inner)
    bert_tokenizer().save_pretrained(inner)
    transformer = Transformer(str(inner), max_seq_length=WINDOW // 2)
    SentenceTransformer(modules=[transformer, Pooling(_HIDDEN, pooling)], prompts=prompts, device="cpu").save_pretrained(
        str(folder / "whole")
    )
    return folder / "whole"


def _spread_logits(model: Any, tokenizer: Any, head: str) -> None:
    """Scale the last layer until the logits of PAIRS have a standard deviation of _SPREAD."""

    def spread() -> float:
        with torch.inference_mode():
            queries, documents = zip(*PAIRS, strict=True)
            inputs = tokenizer(
                list(queries), list(documents), truncation=True, max_length=WINDOW, padding=True, return_tensors="pt"
            )
            return float(model(**inputs).logits[:, 0].std())

    layer = model.get_submodule(head)
    with torch.no_grad():
        scale = _SPREAD / spread()
        layer.weight *= scale
        layer.bias *= scale
    assert spread() >= 1.0, "the logits hardly differ, so comparing scores would prove nothing"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model out of the store, loaded as a Scorer loads it."""

    tag: str
    folder: Path
    info: ModelInfo
    tokenizer: PairTokenizer
    engine: ScoringEngine

    def tokens(self, pairs: Sequence[tuple[str, str]], *, request: int = 0) -> list[TokenPair]:
        """Tokenise each pair on its own."""
        deadline = time.monotonic() + 3600
        return [self.tokenizer.encode_now(query, [document], Cut(), deadline, request)[0].windows[0] for query, document in pairs]

    def raw(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Score texts all together, through the packed form of the hop."""
        return raw_scores(self.engine, self.tokens(pairs))


def raw_scores(engine: ScoringEngine, tokens: Sequence[TokenPair]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Score tokenised pairs in one call, as the Scorer's API does; every pair must come out scored."""
    blobs, _ = engine.score([pair.pack() for pair in tokens])
    scores = [PairScore.unpack(blob) for blob in blobs]
    assert len(scores) == len(tokens)
    assert all(score.outcome is Outcome.SCORED for score in scores)
    return np.array([score.raw for score in scores], np.float32)


def serve(
    source: Path | str, *, name: str | None = None, quantization: Quantization = "none", template: str | None = None
) -> ServedModel:
    """Save a model into the store and load it from there on the CPU."""
    tag = save_model(str(source), name=name, quantization=quantization, template=template)
    stored = bentoml.models.get(tag)
    folder = Path(stored.path)
    info = ModelInfo.from_metadata(stored.info.metadata, tag)
    scorer = load_scorer(folder, info, Settings(RERANKER_DEVICE="cpu", QUANTIZATION=quantization))
    tokenizer = PairTokenizer(folder / TOKENIZER_FILE, info, max_length=scorer.max_length)
    return ServedModel(tag, folder, info, tokenizer, scorer.engine)
