"""Saving yes/no models: where their prompt comes from, and what is refused because it would be scored wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bentoml
import pytest

from bento_service.errors import ModelError
from bento_service.model_info import ModelInfo
from model_store_scripts.inspection import Findings, inspect
from model_store_scripts.save_model import save_model
from model_store_scripts.templates import _QWEN3
from model_store_scripts.verify_model import verify_model
from small_models import make_bi_encoder, make_yes_no

ROLES = (
    '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}',
    '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}',
)
SYSTEM = '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("find it") }}'
QUERY, DOCUMENT = ROLES
GOOD = f"<|im_start|>{SYSTEM}\nQ: {QUERY}\nD: {DOCUMENT}<|im_end|>yes or no?"
RUN: dict[str, Any] = {"dtype": "none", "device": "cpu", "max_length": 256}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a language model without a template."""
    return make_yes_no(tmp_path_factory.mktemp("save-yes-no") / "plain-llm")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a conversion of one, without a template."""
    return make_yes_no(tmp_path_factory.mktemp("save-yes-no") / "plain-classifier", classifier=True)


def look(folder: Path, **options: Any) -> Findings:
    """Inspect a folder with default options."""
    return inspect(
        folder, **{"kind": None, "max_length": None, "activation": None, "trust_remote_code": False, "origin": "m", **options}
    )


def with_template(folder: Path, copy: Path, template: str, **files: Any) -> Path:
    """Copy a model and give it a chat template, and JSON files beside."""
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text(template)
    for name, content in files.items():
        (copy / f"{name}.json").write_text(json.dumps(content))
    return copy


def stored(tag: str) -> ModelInfo:
    """Read what the store knows of a model."""
    return ModelInfo.from_metadata(bentoml.models.get(tag).info.metadata, tag)


@pytest.mark.parametrize("model", ["causal", "classifier"])
def test_a_model_without_a_template_is_refused(model: str, request: pytest.FixtureRequest) -> None:
    """With a line that says what to pass, and nothing is left in the store."""
    with pytest.raises(ModelError, match=r"pass --template qwen3 \(make: TEMPLATE=qwen3\).*or --template FILE"):
        save_model(str(request.getfixturevalue(model)), name="no-template")
    assert not [model for model in bentoml.models.list() if model.tag.name == "no-template"]


def test_a_template_by_name_is_saved_and_verified(causal: Path, classifier: Path) -> None:
    """For either architecture; the language model's answers are the tokens of yes and no."""
    for folder, answers in ((causal, 2), (classifier, None)):
        tag = save_model(str(folder), template="qwen3", max_length=256)
        info = stored(tag)
        assert (info.kind, info.activation, info.max_length, info.answers and len(info.answers)) == (
            "yes-no",
            "sigmoid",
            256,
            answers,
        )
        assert info.prompt_for(None).endswith(
            "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: "
        )
        assert info.prompt_for("be brief").endswith("<Instruct>: be brief\n<Query>: ")
        assert (info.document_prompt, info.suffix) == (
            "\n<Document>: ",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        )
        assert "golden scores within" in verify_model(tag)


def test_a_template_file_is_another_version_and_another_fingerprint(causal: Path, tmp_path: Path) -> None:
    """The prompt decides on every score."""
    file = tmp_path / "prompt.jinja"
    file.write_text(GOOD)
    tags = [save_model(str(causal), template=template, max_length=256) for template in (str(file), "qwen3")]
    infos = [stored(tag) for tag in tags]
    assert infos[0].instruction_prompt == "<|im_start|>{instruction}\nQ: "
    assert (infos[0].query_prompt, infos[0].suffix) == ("<|im_start|>find it\nQ: ", "<|im_end|>yes or no?")
    assert tags[0] != tags[1]
    assert infos[0].fingerprint(**RUN) != infos[1].fingerprint(**RUN)
    for change in ({"suffix": "<|im_end|>"}, {"answers": [1, 2]}, {"instruction_prompt": None}, {"document_prompt": "D:"}):
        assert infos[0].model_copy(update=change).fingerprint(**RUN) != infos[0].fingerprint(**RUN)


def test_the_model_s_own_chat_template_is_taken(causal: Path, classifier: Path, tmp_path: Path) -> None:
    """As sentence-transformers 5.4 and later save it, with a default prompt and what its template is rendered with."""
    found = look(with_template(classifier, tmp_path / "classifier", GOOD))
    assert (found.kind, found.query_prompt, found.document_prompt) == ("yes-no", "<|im_start|>find it\nQ: ", "\nD: ")
    template = GOOD + "{% if add_generation_prompt %} say{% endif %}"
    settings = {"prompts": {"web": "search the web"}, "default_prompt_name": "web"}
    sentence = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True, "restore_suffix": False}}}
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.LogitScore", "path": "1_LogitScore"}]
    folder = with_template(
        causal,
        tmp_path / "st",
        template,
        config_sentence_transformers=settings,
        sentence_bert_config=sentence,
        modules=modules,
    )
    (folder / "1_LogitScore").mkdir()
    (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 7, "false_token_id": null}')
    found = look(folder)
    assert (found.kind, found.query_prompt, found.suffix) == (
        "yes-no",
        "<|im_start|>search the web\nQ: ",
        "<|im_end|>yes or no? say",
    )
    assert (found.instruction_prompt, found.answers) == ("<|im_start|>{instruction}\nQ: ", [7])


def test_a_qwen3_reranker_is_known_by_its_name(causal: Path, classifier: Path, tmp_path: Path) -> None:
    """Its repositories had a chat template for chatting; what was asked for comes before."""
    chat = "{% for message in messages if message.role == 'user' %}{{ message.content }}{% endfor %}"
    for number, folder in enumerate((causal, classifier)):
        copy = with_template(folder, tmp_path / str(number), chat)
        found = look(copy, origin="tomaarsen/Qwen3-Reranker-0.6B-seq-cls")
        assert found.document_prompt == "\n<Document>: "
        with pytest.raises(ModelError, match="--template qwen3"):
            look(copy, origin="me/my-model")


def test_a_template_without_an_instruction_takes_none(causal: Path, tmp_path: Path) -> None:
    """A request's is then ignored, with a warning."""
    file = tmp_path / "prompt.jinja"
    file.write_text(GOOD.replace(SYSTEM, "judge"))
    assert look(causal, template=str(file)).instruction_prompt is None


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (f"{DOCUMENT}{QUERY}", "does not give the query and then the document"),
        (f"{QUERY}", "does not give the query and then the document"),
        (f"{QUERY}{DOCUMENT[:-3]} | trim }}}}", "each once and unchanged"),
        (f"{QUERY} {DOCUMENT} is that an answer?", "without a special token"),
        ("{{ messages", "cannot be rendered"),
        ("{{ raise_exception('no such role') }}", "cannot be rendered .*no such role"),
    ],
)
def test_a_template_that_would_be_followed_wrongly_is_refused(causal: Path, tmp_path: Path, template: str, line: str) -> None:
    """Each with what is wrong with it."""
    file = tmp_path / "prompt.jinja"
    file.write_text(template)
    with pytest.raises(ModelError, match=line):
        look(causal, template=str(file))


def test_what_does_not_belong_together_is_refused(causal: Path, classifier: Path, tmp_path: Path) -> None:
    """A missing file, a template for another kind, a window that the prompt alone fills, answers that are no tokens."""
    with pytest.raises(ModelError, match="neither a file nor one of qwen3"):
        look(causal, template="qwen4")
    with pytest.raises(ModelError, match="--template is for yes/no models, and this is a bi-encoder"):
        look(make_bi_encoder(tmp_path), template="qwen3")
    with pytest.raises(ModelError, match=r"a window of 90 tokens is too little.*--max-length 1\d\d or more"):
        look(causal, template="qwen3", max_length=90)
    bare = shutil.copytree(causal, tmp_path / "no-yes")
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["yes"]
    tokenizer["model"]["merges"] = [merge for merge in tokenizer["model"]["merges"] if "".join(merge) != "yes"]
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="no token `yes`"):
        look(bare, template="qwen3")
    assert look(classifier, kind="cross-encoder").kind == "cross-encoder"


def test_an_embedding_model_of_the_same_family_stays_a_bi_encoder(causal: Path, tmp_path: Path) -> None:
    """Its repository names a pooling and no reader of answers."""
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    folder = with_template(causal, tmp_path / "embedding", _QWEN3.replace("document", "text"), modules=modules)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert look(folder).kind == "bi-encoder"
