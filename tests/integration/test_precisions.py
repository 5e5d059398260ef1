"""Every precision that the store offers: what is saved, what runs, how near it is, and what happens where it cannot run."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from importlib import import_module
from pathlib import Path

import bentoml
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bento_service import hardware
from bento_service.errors import ModelError
from bento_service.model_info import QUANTISED_FILE, ModelInfo
from bento_service.scorer import device as device_room
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.loading import GOLDEN_TOLERANCE, LoadedScorer, load_scorer
from bento_service.settings import Quantization, Settings
from bento_service.tally import Tally
from model_store_scripts.precision import kendall_tau
from model_store_scripts.save_model import save_fastest
from model_store_scripts.verify_model import verify_model
from servers import Server
from small_models import DOCUMENTS, QUERIES, ServedModel, make_cross_encoder, raw_scores, serve

pytestmark = pytest.mark.usefixtures("one_thread")
needs_int8 = pytest.mark.skipif(not hardware.cpu_multiplies_int8(), reason="this CPU does not multiply int8")
CPU = torch.device("cpu")
PAIRS = [(query, document) for query in QUERIES[:3] for document in DOCUMENTS[:12]]
# Bytes of weights beside full precision, embeddings counted, and how far a score, 0..1, of the built-in may stray.
BOUNDS: dict[Quantization, tuple[float, float]] = {
    "bf16": (0.52, 0.01),
    "fp16": (0.52, 0.002),
    "int8": (0.40, 0.05),
    "nf4": (0.36, 0.1),
}


@pytest.fixture(scope="module")
def full() -> ServedModel:
    """The built-in in full precision."""
    return serve("builtin")


def loaded(model: ServedModel, **settings: object) -> LoadedScorer:
    """Load a saved model once more, with other settings."""
    return load_scorer(model.folder, model.info, Settings(**{"RERANKER_DEVICE": "cpu", **settings}))


def scores(engine: ScoringEngine, model: ServedModel) -> np.ndarray:
    """Scores of PAIRS on the 0..1 scale of a bi-encoder."""
    return (1 + raw_scores(engine, model.tokens(PAIRS))) / 2


@pytest.mark.parametrize("quantization", ["bf16", pytest.param("int8", marks=needs_int8), "nf4"])
def test_the_built_in_is_smaller_and_strays_little(full: ServedModel, quantization: Quantization) -> None:
    """The weights are held as they were saved, and the scores are those of full precision within the bound, but not the same."""
    model = serve("builtin", quantization=quantization)
    share, bound = BOUNDS[quantization]
    assert model.engine._encoder.weight_bytes <= share * full.engine._encoder.weight_bytes
    off = np.abs(scores(model.engine, model) - scores(full.engine, full))
    assert 1e-5 < float(off.max()) < bound
    assert 0 < (model.info.drift or 0) < bound
    assert 0.9 < (model.info.order or 0) < 1
    assert model.info.quantization == quantization
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in model.folder.iterdir())
    assert quantization in verify_model(model.tag) or not hardware.cpu_multiplies_bf16()


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_entry_holds_no_full_layer(quantization: Quantization) -> None:
    """Only embeddings, norms and the like are in the model's own file, in bf16."""
    model = serve("builtin", quantization=quantization)
    rest = load_file(model.folder / "model.safetensors")
    assert {tensor.dtype for tensor in rest.values()} == {torch.bfloat16}
    assert not any(".layer." in name and name.endswith("dense.weight") for name in rest)
    parts = load_file(model.folder / QUANTISED_FILE)
    assert len({name.partition("|")[0] for name in parts}) == 36


def test_a_pair_in_int8_does_not_depend_on_its_batch() -> None:
    """Nor on its order, nor on what is computed beside it."""
    model = serve("builtin", quantization="int8")
    tokens = model.tokens([(query, " ".join([document] * 4)) for query, document in PAIRS])
    together = raw_scores(model.engine, tokens)
    alone = np.concatenate([raw_scores(model.engine, [pair]) for pair in tokens])
    turned = raw_scores(model.engine, tokens[::-1])[::-1]
    # The layers are multiplied in uint8 and int32; what stands between them is bf16, whose products some processors round by their shape.
    assert float(np.abs(together - alone).max()) < 1e-3
    assert float(np.abs(together - turned).max()) < 1e-3
    lanes, tally = Lanes(2), Tally()
    try:
        aside = ScoringEngine(model.engine._encoder, device=CPU, lanes=lanes).raw_scores(tokens, tally)
    finally:
        lanes.close()
    assert tally.forwards >= 2
    assert float(np.abs(aside - alone).max()) < 1e-3


@pytest.mark.parametrize("architecture", ["roberta", "deberta-v2", "modernbert"])
def test_other_architectures_can_be_quantised_too(tmp_path: Path, architecture: str) -> None:
    """Packed or padded; the head stays in full precision, and the scores rank as those of full precision do."""
    folder = make_cross_encoder(tmp_path / architecture, architecture)
    full, model = (serve(folder, name=f"{architecture}-small", quantization=each) for each in ("none", "int8"))
    before, after = full.raw(PAIRS), model.raw(PAIRS)
    assert np.corrcoef(before, after)[0, 1] > 0.98
    assert float(np.abs(before - after).max()) > 1e-5
    head = {
        name: tensor for name, tensor in load_file(model.folder / "model.safetensors").items() if name.startswith("classifier")
    }
    assert head
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}


def test_layers_that_nf4_does_not_fit_stay_as_they_are(tmp_path: Path) -> None:
    """Its blocks of 64 inputs are longer than most rows of so small a model."""
    folder = make_cross_encoder(tmp_path / "narrow")
    full, model = (serve(folder, name="narrow", quantization=each) for each in ("none", "nf4"))
    packed = {name.partition("|")[0] for name in load_file(model.folder / QUANTISED_FILE)}
    assert packed == {f"bert.encoder.layer.{number}.output.dense" for number in (0, 1)}
    assert np.corrcoef(full.raw(PAIRS), model.raw(PAIRS))[0, 1] > 0.95


def test_bitsandbytes_scores_int8_on_a_cpu(full: ServedModel) -> None:
    """The same entry, multiplied by the other library."""
    model = serve("builtin", quantization="int8")
    other = loaded(model, QUANTIZATION="int8", RERANKER_INT8_KERNEL="bitsandbytes")
    assert (other.precision.effective, other.precision.kernel) == ("int8", "bitsandbytes")
    assert other.fingerprint != loaded(model, QUANTIZATION="int8").fingerprint
    assert float(np.abs(scores(other.engine, model) - scores(full.engine, full)).max()) < 0.05


def _without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_room, "cpu_multiplies_int8", lambda: False)


def test_int8_on_a_processor_without_it_falls_back_loudly(
    full: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights are unpacked, and the log and the precision say so."""
    model = serve("builtin", quantization="int8")
    _without_vnni(monkeypatch)
    with caplog.at_level(logging.WARNING, "bentoml.reranker"):
        other = loaded(model, QUANTIZATION="int8")
    assert other.precision.fell_back
    assert other.precision.effective in ("bf16", "none")
    assert "int8 was asked for, but this CPU has no instructions for int8" in caplog.text
    assert float(np.abs(scores(other.engine, model) - scores(full.engine, full)).max()) < 0.05


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_what_needs_bitsandbytes_falls_back_without_it(
    full: ServedModel, monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    """nf4 is unpacked too."""
    model = serve("builtin", quantization=quantization)
    monkeypatch.setattr(device_room, "has_bitsandbytes", lambda: False)
    other = loaded(model, QUANTIZATION=quantization, RERANKER_INT8_KERNEL="bitsandbytes")
    assert other.precision.fell_back
    assert "bitsandbytes is not installed" in other.precision.reason
    assert float(np.abs(scores(other.engine, model) - scores(full.engine, full)).max()) < BOUNDS[quantization][1]


def test_strict_quantization_stops_instead_of_falling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line that names both variables."""
    model = serve("builtin", quantization="int8")
    _without_vnni(monkeypatch)
    with pytest.raises(ModelError, match=r"int8 was asked for.*RERANKER_STRICT_QUANTIZATION=true"):
        loaded(model, QUANTIZATION="int8", RERANKER_STRICT_QUANTIZATION="true")


@needs_int8
def test_the_fastest_precision_within_its_bound_is_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """int8 where the processor multiplies it; one that strays too far is passed over, and said."""
    monkeypatch.setattr(
        "model_store_scripts.save_model.fast_precisions",
        lambda device: ["none"] if device == "mps" else ["int8", "bf16", "none"],
    )
    assert save_fastest("builtin").partition(":")[0] == "all-minilm-l6-v2-int8"
    assert save_fastest("builtin", device="mps").partition(":")[0] == "all-minilm-l6-v2"
    monkeypatch.setattr("bento_service.model_info.DRIFT_BOUND", {"int8": 0.0001, "bf16": 0.02})
    assert save_fastest("builtin").partition(":")[0] == "all-minilm-l6-v2-bf16"
    assert "beyond int8's bounds" in capsys.readouterr().err


@needs_int8
def test_a_precision_that_keeps_the_scores_but_not_the_order_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A classifier whose logits are all far from the middle: its scores stand still in any precision, while documents change places."""
    folder = make_cross_encoder(tmp_path / "saturated")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 15
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("model_store_scripts.save_model.fast_precisions", lambda _: ["int8", "none"])
    tag = save_fastest(str(folder))
    info = ModelInfo.from_metadata(bentoml.models.get(tag).info.metadata, tag)
    assert info.quantization == "int8"
    assert info.drift is not None
    assert info.order is not None
    assert info.drift < 1e-6
    assert info.order < 1
    monkeypatch.setattr("bento_service.model_info.ORDER_BOUND", info.order + 0.001)
    assert not info.keeps_bound
    assert save_fastest(str(folder)).partition(":")[0] == tag.partition("-int8:")[0]
    assert "keeps its order to 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scores", "tau"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1.0),
        ([0.4, 0.3, 0.2, 0.1], -1.0),
        ([0.1, 0.2, 0.4, 0.3], 4 / 6),  # one of six couples turned round
        ([0.1, 0.2, 0.3, 0.3], 5 / 6),  # one that cannot be told apart any more
        ([0.5, 0.5, 0.5, 0.5], 0.0),
        ([0.1, 0.2, 0.3, float("nan")], 3 / 6),
    ],
)
def test_kendall_tau(scores: list[float], tau: float) -> None:
    """Couples in order, less those turned round, of all couples."""
    assert kendall_tau(scores, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(tau)


def test_kendall_tau_leaves_out_couples_that_the_reference_does_not_order() -> None:
    """Any order of those is as good as another."""
    assert kendall_tau([3.0, 1.0, 4.0], [1.0, 1.0, 2.0]) == 1


@needs_int8
def test_auto_serves_the_fastest_saved_variant_and_says_why(tmp_path: Path) -> None:
    """Of those that share the newest version."""
    tag = serve("builtin", quantization="int8").tag
    version = tag.partition(":")[2]
    serve("builtin")
    shutil.copytree(Path(os.environ["BENTOML_HOME"], "models"), tmp_path / "models")
    for name in ("all-minilm-l6-v2-nf4", "all-minilm-l6-v2-bf16"):
        shutil.rmtree(tmp_path / "models" / name, ignore_errors=True)
    with Server(tmp_path, QUANTIZATION="auto", GOMP_SPINCOUNT="77") as server:
        model = server.get("/health").json()["model"]
        assert model["tag"] == f"all-minilm-l6-v2-int8:{version}"
        assert (model["quantization_asked"], model["quantization"]) == ("auto", "int8")
        assert "natively" in model["precision_reason"]
        assert 0 < model["weight_bytes"] < 40_000_000
        metrics = server.get("/metrics").text
        assert 'reranker_model_workers{asked="auto",device="cpu",dtype="bfloat16",quantization="int8"} 1.0' in metrics
        assert "reranker_quantization_fallbacks 0.0" in metrics
        assert server.post(query="q", documents=["a", "b"]).status_code == 200
        environment = server.workers("Scorer")[0].environ()
        assert environment["GOMP_SPINCOUNT"] == "77"  # the operator's wins over ours
        assert environment["MALLOC_TRIM_THRESHOLD_"] == "134217728"


@needs_int8
def test_what_was_never_measured_is_not_served_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """int8 that was saved on a processor without its instructions, say; the note tells why another precision is saved."""
    _without_vnni(monkeypatch)
    info = _saved_by_itself(make_cross_encoder(tmp_path / "unmeasured"), monkeypatch)
    assert info.quantization == "bf16"
    assert "was saved where int8 cannot run, so that nobody knows" in capsys.readouterr().err


def test_16_bits_are_measured_where_they_are_only_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processor that saves may not be the one that serves."""
    monkeypatch.setattr(hardware, "cpu_flags", frozenset[str])
    folder = make_cross_encoder(tmp_path / "emulated")
    for quantization in ("bf16", "fp16"):
        info = serve(folder, quantization=quantization).info
        assert info.drift is not None
        assert info.drift < 0.02
        assert info.keeps_bound


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_no_full_layer_is_made_up_while_a_quantised_model_loads(
    monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    """Transformers would fill what the file lacks with random numbers, in the memory that quantising saves."""
    model = serve("builtin", quantization=quantization)
    filled: list[torch.Tensor] = []
    for module in (torch.nn.init, import_module("transformers.initialization")):
        monkeypatch.setattr(module, "normal_", lambda tensor, *_args, **_more: filled.append(tensor))
    loaded(model, QUANTIZATION=quantization)
    # Nothing is written on `meta`, nor over what has come from the file.
    assert not [tensor.shape for tensor in filled if tensor.device.type != "meta" and not hasattr(tensor, "_is_hf_initialized")]


def _saved_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> ModelInfo:
    """Save in the precision that is fastest on a machine with everything."""
    monkeypatch.setattr("model_store_scripts.save_model.fast_precisions", lambda _: ["int8", "bf16", "none"])
    tag = save_fastest(str(folder), **options)
    return ModelInfo.from_metadata(bentoml.models.get(tag).info.metadata, tag)


def test_a_model_that_int8_cannot_hold_is_saved_in_the_next_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose layers are no linear ones, as GPT-2's; the note says why."""
    monkeypatch.setattr("model_store_scripts.precision.quantise", lambda *_: {})
    assert _saved_by_itself(make_cross_encoder(tmp_path / "other-layers"), monkeypatch).quantization == "bf16"
    assert "no linear layers that int8 could hold" in capsys.readouterr().err


def test_a_model_that_breaks_in_int8_is_saved_in_the_next_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However far its scores stray."""
    monkeypatch.setitem(GOLDEN_TOLERANCE, "int8", 1e-9)
    assert _saved_by_itself(make_cross_encoder(tmp_path / "sensitive"), monkeypatch).quantization == "bf16"
    assert "in int8 the model's scores stray by" in capsys.readouterr().err


def test_a_name_that_ends_in_a_precision_is_no_variant_of_another(tmp_path: Path) -> None:
    """What is there under that name stays, and the line says what to do."""
    folder = make_cross_encoder(tmp_path / "mine-int8")
    serve(folder)
    with pytest.raises(ModelError, match=r"taken by a variant in another precision.*NAME"):
        serve(folder, quantization="int8")


def test_a_packed_model_keeps_no_second_copy_of_its_layers(tmp_path: Path) -> None:
    """Nothing of the loaded model's layers is alive beside what was taken from them."""

    def layers() -> int:
        gc.collect()
        return sum(type(each).__name__ == "BertLayer" for each in gc.get_objects())

    before = layers()
    model = serve(make_cross_encoder(tmp_path / "once"))
    assert model.engine._encoder.packs
    assert layers() == before
