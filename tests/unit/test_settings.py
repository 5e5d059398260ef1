"""Settings: what is read, what is refused, and that a refusal names its variable."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bento_service.errors import SettingsError
from bento_service.settings import (
    REFUSED,
    Settings,
    known_variables,
    load_settings,
    names_model,
    run_directory,
    visible_gpus,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset every variable that the service knows or refuses."""
    for name in [*known_variables(), *REFUSED, "PROMETHEUS_MULTIPROC_DIR", "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    """Nothing has to be set to serve the built-in model."""
    settings = load_settings()
    assert settings.model == "all-minilm-l6-v2"
    assert settings.asked_quantization == "auto"
    assert settings.request_timeout_seconds == 50.0
    assert settings.max_documents == 1000
    assert settings.micro_batch_enabled is True


def test_variables_reach_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text from the environment becomes numbers, flags and names."""
    monkeypatch.setenv("RERANKER_MODEL", "mine:v1")
    monkeypatch.setenv("RERANKER_WORKERS", "4")
    monkeypatch.setenv("MICRO_BATCH_ENABLED", "false")
    monkeypatch.setenv("RERANKER_REQUEST_TIMEOUT", "2.5")
    monkeypatch.setenv("RERANKER_MAX_LENGTH", "128")
    settings = load_settings()
    assert (settings.model, settings.workers, settings.micro_batch_enabled) == ("mine:v1", 4, False)
    assert (settings.request_timeout_seconds, settings.max_length) == (2.5, 128)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RERANKER_WORKERS", "0"),
        ("RERANKER_WORKERS", "-1"),
        ("RERANKER_WORKERS", "two"),
        ("RERANKER_WORKERS", "1.5"),
        ("RERANKER_WORKERS", "257"),
        ("RERANKER_SCORER_WORKERS", "0"),
        ("RERANKER_TORCH_THREADS", "0"),
        ("RERANKER_MAX_LENGTH", "15"),
        ("RERANKER_DEVICE", "tpu"),
        ("QUANTIZATION", "int4"),
        ("ENABLE_MIXED_PRECISION", "perhaps"),
        ("MICRO_BATCH_ENABLED", "perhaps"),
        ("MICRO_BATCH_MAX_SIZE", "1"),
        ("TOKENIZER_WORKERS", "65"),
        ("RERANKER_MAX_BATCH_TOKENS", "63"),
        ("RERANKER_REQUEST_TIMEOUT", "0"),
        ("RERANKER_REQUEST_TIMEOUT", "nan"),
        ("RERANKER_REQUEST_TIMEOUT", "inf"),
        ("RERANKER_SCORER_SILENCE_SECONDS", "-1"),
        ("RERANKER_SCORER_SILENCE_SECONDS", "nan"),
        ("RERANKER_LIVENESS_SECONDS", "nan"),
        ("RERANKER_MAX_QUEUE_PAIRS", "0"),
        ("RERANKER_MAX_DOCUMENTS", "0"),
        ("RERANKER_MAX_BODY_BYTES", "16MB"),
        ("RERANKER_STRICT_MODEL", "2"),
    ],
)
def test_a_bad_value_names_its_variable_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The start stops with a line that an operator can act on."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["int4", "INT8", "fp8"])
def test_a_quantization_that_is_not_offered_says_what_is(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The line names the values that can be taken instead."""
    monkeypatch.setenv("QUANTIZATION", value)
    with pytest.raises(SettingsError, match=r"QUANTIZATION.*'auto', 'none', 'fp16', 'bf16', 'int8' or 'nf4'"):
        load_settings()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_seed_variable_without_effect_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Silence would look like obedience."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_no_variable_is_both_honoured_and_refused() -> None:
    """A variable that gets its work done leaves the list of refusals."""
    assert not set(known_variables()) & set(REFUSED)


def test_a_misspelt_variable_is_answered_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """RERANKER_ belongs to this service, so anything unknown under it is a mistake."""
    monkeypatch.setenv("RERANKER_WORKER", "4")
    with pytest.raises(SettingsError, match=r"RERANKER_WORKER is not a setting.*did you mean RERANKER_WORKERS"):
        load_settings()


def test_a_variable_like_no_other_points_to_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint is better than a wrong one."""
    monkeypatch.setenv("RERANKER_ZZZZZZZZZZZZ", "4")
    with pytest.raises(SettingsError, match="README"):
        load_settings()


@pytest.mark.parametrize(
    "name",
    [
        "RERANKER_SERVICE_HOST",
        "RERANKER_SERVICE_PORT",
        "RERANKER_SERVICE_PORT_HTTP",
        "RERANKER_PORT",
        "RERANKER_PORT_3000_TCP",
        "RERANKER_PORT_3000_TCP_ADDR",
    ],
)
def test_what_kubernetes_sets_for_a_service_called_reranker_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every pod in the namespace gets it, and nobody there can unset it."""
    monkeypatch.setenv(name, "tcp://10.0.0.1:3000")
    assert load_settings() == Settings()


@pytest.mark.parametrize("name", ["RERANKER_PORTS", "RERANKER_SERVICE", "RERANKER_SERVICE_NAME", "RERANKER_MY_PORT"])
def test_what_only_looks_like_kubernetes_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The exception is as narrow as its reason."""
    monkeypatch.setenv(name, "3000")
    with pytest.raises(SettingsError, match=f"^{name} is not a setting"):
        load_settings()


@pytest.mark.parametrize("name", ["RERANKER_WORKERS", "RERANKER_NONSENSE", "REDIS_URL"])
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compose files pass empty strings for what nobody set."""
    monkeypatch.setenv(name, "")
    assert load_settings().workers == 1


@pytest.mark.parametrize(("quantization", "asked"), [("", "bf16"), ("auto", "bf16"), ("none", "bf16"), ("bf16", "bf16")])
def test_mixed_precision_is_bf16(monkeypatch: pytest.MonkeyPatch, quantization: str, asked: str) -> None:
    """ENABLE_MIXED_PRECISION=true is another spelling of QUANTIZATION=bf16."""
    monkeypatch.setenv("ENABLE_MIXED_PRECISION", "true")
    monkeypatch.setenv("QUANTIZATION", quantization)
    assert load_settings().asked_quantization == asked


@pytest.mark.parametrize("quantization", ["fp16", "int8", "nf4"])
def test_mixed_precision_beside_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    """Neither of two contradicting variables wins silently."""
    monkeypatch.setenv("ENABLE_MIXED_PRECISION", "true")
    monkeypatch.setenv("QUANTIZATION", quantization)
    with pytest.raises(SettingsError, match=rf"^ENABLE_MIXED_PRECISION.*QUANTIZATION={quantization}"):
        load_settings()


def test_settings_cannot_be_changed_once_read() -> None:
    """Every worker sees what was checked at the start."""
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.workers = 2  # type: ignore[misc]


def test_every_setting_is_described_and_has_a_variable() -> None:
    """The README's table is made of these."""
    for field in Settings.model_fields.values():
        assert str(field.validation_alias).isupper()
        assert field.description
        assert len(field.description) > 20


def test_the_queue_is_shared_out_and_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """RERANKER_MAX_QUEUE_PAIRS is per server, so a worker has its share, at least one pair."""
    monkeypatch.setenv("RERANKER_MAX_QUEUE_PAIRS", "100")
    monkeypatch.setenv("RERANKER_WORKERS", "8")
    assert load_settings().queue_pairs_per_worker == 12
    monkeypatch.setenv("RERANKER_MAX_QUEUE_PAIRS", "3")
    assert load_settings().queue_pairs_per_worker == 1


def test_our_deadline_comes_before_bentoml_s() -> None:
    """BentoML's own time-out would answer with a body of its own."""
    settings = load_settings()
    assert settings.service_timeout_seconds > settings.request_timeout_seconds


def test_an_empty_model_name_does_not_win_over_the_packed_model() -> None:
    """Only a name decides."""
    assert names_model({"RERANKER_MODEL": "x"})
    assert not names_model({"RERANKER_MODEL": ""})
    assert not names_model({})


@pytest.mark.parametrize(
    ("value", "expected"), [("", []), ("-1", []), ("0", ["0"]), ("0,3", ["0", "3"]), ("GPU-a,MIG-b", ["GPU-a", "MIG-b"])]
)
def test_visible_gpus_are_counted_as_cuda_counts_them(monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]) -> None:
    """Empty and -1 hide all GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == expected


def test_what_nobody_set_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """None means that the environment does not say."""
    assert visible_gpus() is None
    assert run_directory() is None
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/run/here")
    assert run_directory() == "/run/here"
