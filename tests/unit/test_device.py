"""Devices and precisions: what is chosen, what is refused, and that the reason is told."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from bento_service import hardware
from bento_service.errors import ModelError
from bento_service.scorer import device as room
from bento_service.scorer.device import choose_device, choose_precision, multiplies_bf16

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
MPS = torch.device("mps")
Saved = Literal["none", "fp16", "bf16", "int8", "nf4"]


def _machine(patch: pytest.MonkeyPatch, *, gpus: int = 0, mps: bool = False, flags: str = "", capability: int = 8) -> None:
    """Let torch and the processor say what another machine's would."""
    patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    patch.setattr(torch.cuda, "device_count", lambda: gpus)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    patch.setattr(torch.backends.mps, "is_available", lambda: mps)
    patch.setattr(hardware, "cpu_flags", lambda: frozenset(flags.split()))


@pytest.mark.parametrize(
    ("gpus", "mps", "expected"), [(0, False, CPU), (1, False, CUDA), (1, True, CUDA), (0, True, MPS)], ids=str
)
def test_auto_takes_cuda_then_mps_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, expected: torch.device
) -> None:
    """The best that is there."""
    _machine(monkeypatch, gpus=gpus, mps=mps)
    assert choose_device("auto", 0) == expected


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_a_device_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch, asked: Literal["cuda", "mps"]) -> None:
    """Asking for a GPU and silently getting the CPU would be found out in production."""
    _machine(monkeypatch)
    with pytest.raises(ModelError, match=f"RERANKER_DEVICE={asked}"):
        choose_device(asked, 0)


def test_the_cpu_can_be_asked_for_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting wins."""
    _machine(monkeypatch, gpus=2, mps=True)
    assert choose_device("cpu", 1) == CPU
    assert choose_device("mps", 1) == MPS


def test_model_workers_are_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """More workers than GPUs go round."""
    _machine(monkeypatch, gpus=2)
    assert [choose_device("auto", index).index for index in range(5)] == [0, 1, 0, 1, 0]
    assert [choose_device("cuda", index).index for index in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16", "svebf16"])
def test_auto_runs_bf16_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """Any of the four instruction sets."""
    _machine(monkeypatch, flags=f"fpu sse2 {flag} avx2")
    precision = choose_precision("auto", "bf16", CPU)
    assert (precision.effective, precision.dtype, precision.fell_back) == ("bf16", torch.bfloat16, False)


@pytest.mark.parametrize("flags", ["", "fpu sse2 avx512f avx512_vnni amx_int8", "not_bf16 bf16x"])
def test_auto_falls_back_to_fp32_on_a_cpu_that_only_emulates_bf16(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Emulated bf16 is slower than fp32; that another precision runs than is saved is told, though nobody asked for one."""
    _machine(monkeypatch, flags=flags)
    precision = choose_precision("auto", "bf16", CPU)
    assert (precision.effective, precision.dtype, precision.fell_back) == ("none", torch.float32, True)


@pytest.mark.parametrize(("capability", "effective"), [(7, "fp16"), (8, "bf16"), (9, "bf16")])
def test_bf16_on_cuda_goes_by_its_generation(monkeypatch: pytest.MonkeyPatch, capability: int, effective: str) -> None:
    """It runs from 8.0 on, and as fp16 before."""
    _machine(monkeypatch, gpus=1, capability=capability)
    assert choose_precision("auto", "bf16", CUDA).effective == effective


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_what_is_saved_in_full_precision_is_served_so(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """It may be saved so because 16 bits lose too much of it."""
    _machine(monkeypatch, gpus=1, flags="avx512_bf16")
    assert choose_precision("auto", "none", device).effective == "none"


@pytest.mark.parametrize(
    ("asked", "device", "flags", "effective"),
    [
        ("none", CPU, "avx512_bf16", "none"),
        ("bf16", CPU, "avx512_bf16", "bf16"),
        ("bf16", CPU, "avx2", "none"),
        ("fp16", CPU, "avx512_bf16", "none"),
        ("fp16", CUDA, "", "fp16"),
        ("bf16", CUDA, "", "fp16"),
        ("none", CUDA, "", "none"),
    ],
    ids=str,
)
def test_what_is_only_emulated_falls_back(
    monkeypatch: pytest.MonkeyPatch, asked: Saved, device: torch.device, flags: str, effective: str
) -> None:
    """And the reason names what was asked for."""
    _machine(monkeypatch, gpus=1, capability=7, flags=flags)
    precision = choose_precision(asked, asked, device)
    assert (precision.asked, precision.effective) == (asked, effective)
    assert precision.reason == "as asked" if asked == effective else asked in precision.reason


def test_every_precision_tells_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """/health shows it."""
    _machine(monkeypatch, gpus=1, mps=True, flags="avx2")
    for asked in ("auto", "none", "fp16", "bf16"):
        for each in (CPU, CUDA, MPS):
            assert choose_precision(asked, "none" if asked == "auto" else asked, each).reason


def test_mps_is_not_taken_for_a_bf16_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's flags say nothing about it."""
    _machine(monkeypatch, mps=True, flags="bf16")
    assert not multiplies_bf16(MPS)


def test_this_machine_can_say_what_it_multiplies() -> None:
    """Without a fake: the flags are those of /proc/cpuinfo, or none at all."""
    flags = hardware.cpu_flags()
    assert multiplies_bf16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
    assert all(flag and " " not in flag for flag in flags)


def test_int8_that_nobody_asked_for_is_unpacked_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Bento packed on a machine without a GPU holds int8, which on one would only cost speed; asked for by name it runs."""
    _machine(monkeypatch, gpus=1)
    by_itself = choose_precision("auto", "int8", CUDA)
    assert (by_itself.effective, by_itself.kernel, by_itself.fell_back) == ("bf16", "torch", False)
    assert "unpacked" in by_itself.reason
    monkeypatch.setattr(room, "has_bitsandbytes", lambda: True)
    asked = choose_precision("int8", "int8", CUDA)
    assert (asked.effective, asked.kernel) == ("int8", "bitsandbytes")


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_nf4_runs_as_it_was_saved(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Who saved it wanted its memory; without its library it is unpacked, and that is told."""
    _machine(monkeypatch, gpus=1)
    monkeypatch.setattr(room, "has_bitsandbytes", lambda: True)
    assert choose_precision("auto", "nf4", device).effective == "nf4"
    monkeypatch.setattr(room, "has_bitsandbytes", lambda: False)
    assert choose_precision("auto", "nf4", device).fell_back


def test_int8_without_instructions_for_it_is_unpacked_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for or not."""
    _machine(monkeypatch, flags="avx2")
    for asked in ("auto", "int8"):
        assert choose_precision(asked, "int8", CPU).fell_back


@pytest.mark.parametrize(("visible", "asked"), [(None, 0), ("3,1", 3), ("GPU-7", "GPU-7"), (" 2", 2)])
def test_the_gpu_that_is_asked_is_the_first_visible_one(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: int | str
) -> None:
    """By number or by UUID; the driver counts those that are hidden too."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(hardware.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(hardware.pynvml, "nvmlShutdown", lambda: None)
    for name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID"):
        monkeypatch.setattr(hardware.pynvml, name, lambda which: which)
    generations = {asked: (8, 0)}
    monkeypatch.setattr(hardware.pynvml, "nvmlDeviceGetCudaComputeCapability", lambda handle: generations.get(handle, (7, 0)))
    assert hardware.gpu_multiplies_bf16()


@pytest.mark.parametrize(("torch_version", "count"), [("2.13.0", 2), ("2.13.0+cu130", 2), ("2.13.0+cpu", 0)])
def test_gpus_count_where_torch_can_use_them(monkeypatch: pytest.MonkeyPatch, torch_version: str, count: int) -> None:
    """A torch for CPUs beside a GPU runs on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(hardware, "version", lambda _: torch_version)
    assert hardware.gpu_count() == count


def test_onednn_is_not_quietly_another_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on CPUs alone."""
    _machine(monkeypatch, gpus=1)
    precision = choose_precision("int8", "int8", CUDA, int8_kernel="onednn")
    assert precision.fell_back
    assert "oneDNN" in precision.reason


@pytest.mark.parametrize(
    ("device", "gpus", "flags", "fast"),
    [
        ("cpu", 0, "avx512_vnni avx512_bf16", ["int8", "bf16", "none"]),
        ("auto", 0, "avx_vnni", ["int8", "none"]),
        ("auto", 0, "amx_bf16", ["bf16", "none"]),
        ("auto", 0, "avx2", ["none"]),
        ("cpu", 1, "avx2", ["none"]),
        ("auto", 1, "avx512_vnni", ["bf16", "fp16", "none"]),
    ],
)
def test_the_fast_precisions_are_those_of_the_hardware(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, flags: str, fast: list[str]
) -> None:
    """The fastest first; a GPU is never given int8 or nf4 unasked."""
    _machine(monkeypatch, gpus=gpus, flags=flags)
    monkeypatch.setattr(hardware, "gpu_count", lambda: gpus)
    monkeypatch.setattr(hardware, "gpu_multiplies_bf16", lambda: True)
    assert hardware.fast_precisions(device) == fast


def test_an_older_gpu_is_given_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 is emulated there."""
    monkeypatch.setattr(hardware, "gpu_count", lambda: 1)
    monkeypatch.setattr(hardware, "gpu_multiplies_bf16", lambda: False)
    assert hardware.fast_precisions("auto") == ["fp16", "none"]
