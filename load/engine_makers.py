"""The engines that `make engines` compares: each function takes a float32 model and returns a callable of its own.

Linear layers of the encoder are quantised; embeddings, pooler and classifier stay as they are. NNCF's static way takes attention's products too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.ao import quantization
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from micro_batches import Engine, MicroBatch

THREADS = 2
NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, slots=True)
class Model:
    """A float32 module that takes NAMES in order. calibration: what static quantisation learns ranges from · scratch: a folder."""

    module: torch.nn.Module
    calibration: Sequence[MicroBatch]
    scratch: Path


class CrossEncoder(torch.nn.Module):
    """A pair is a row: logits, shape (n_rows, 1)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits.float()


class BiEncoder(torch.nn.Module):
    """A text is a row: mean of its tokens, of length 1, shape (n_rows, hidden size)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        mask = attention_mask[:, :, None].float()
        pooled = (output.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1)


def encoder_of(module: torch.nn.Module) -> torch.nn.Module:
    """Return the stack of layers, without embeddings, pooler and head."""
    return next(part for name, part in module.named_modules() if name.endswith("encoder"))


def _eager(module: torch.nn.Module) -> Engine:
    def run(batch: MicroBatch) -> torch.Tensor:
        with torch.inference_mode():
            return module(*(batch[name] for name in NAMES))

    return run


def torch_eager(model: Model, dtype: torch.dtype) -> Engine:
    """Transformers' own module as it is."""
    return _eager(copy.deepcopy(model.module).to(dtype))


def torch_dynamic(model: Model, backend: str, *, per_channel: bool) -> Engine:
    """Dynamic int8 of torch.ao: activations per tensor, so that their range is that of the whole micro-batch."""
    module = copy.deepcopy(model.module)
    torch.backends.quantized.engine = backend  # what packs the weights also runs them
    how = quantization.per_channel_dynamic_qconfig if per_channel else quantization.default_dynamic_qconfig
    quantization.quantize_dynamic(encoder_of(module), {torch.nn.Linear: how}, dtype=torch.qint8, inplace=True)
    return _eager(module)


def torchao_dynamic(model: Model, *, compiled: bool) -> Engine:
    """Dynamic int8 of torchao: activations per token, weights per channel."""
    module = copy.deepcopy(model.module)
    quantize_(encoder_of(module), Int8DynamicActivationInt8WeightConfig())
    if compiled:
        torch._inductor.config.freezing = True  # noqa: SLF001  the setting has no public name; without it nothing is fused on CPU
        module = torch.compile(module, dynamic=True)
    return _eager(module)


def onnx_file(model: Model) -> Path:
    """Export once."""
    path = model.scratch / "model.onnx"
    if not path.exists():
        batch = model.calibration[0]
        sizes = {0: torch.export.Dim("rows", min=1, max=512), 1: torch.export.Dim("tokens", min=2, max=512)}
        torch.onnx.export(
            model.module,
            tuple(batch[name] for name in NAMES),
            path,
            input_names=list(NAMES),
            output_names=["scores"],
            dynamic_shapes=dict.fromkeys(NAMES, sizes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def onnx_runtime(model: Model, *, int8: bool) -> Engine:
    """ONNX Runtime's CPU provider; int8: its dynamic quantisation, weights per channel, activations per tensor."""
    path = onnx_file(model)
    if int8:
        path = model.scratch / "int8.onnx"
        # The head is a Gemm, the encoder's layers are MatMuls.
        exported = onnx.load(onnx_file(model))
        del exported.graph.value_info[:]  # the exporter's shapes of weights that the quantiser transposes: they would clash
        quantize_dynamic(exported, path, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = [entry.name for entry in session.get_inputs()]

    def run(batch: MicroBatch) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: batch[name].numpy() for name in taken})[0])

    return run


def openvino_engine(model: Model, how: str) -> Engine:
    """OpenVINO's CPU plugin; how: fp32, bf16, int8-static (NNCF, ranges learnt) or int8-dynamic (NNCF weights, ranges per group)."""
    network = openvino.Core().read_model(onnx_file(model))
    # Pooler and classifier are the Gemms, of which OpenVINO makes several operations each; embeddings are Gathers.
    head = {node.name for node in onnx.load(onnx_file(model)).graph.node if node.op_type == "Gemm"}
    names = [name for name in (op.get_friendly_name() for op in network.get_ops()) if name.split("/")[0] in head]
    ignored = nncf.IgnoredScope(names=names, types=["Gather"], validate=False)
    taken = [entry.get_any_name() for entry in network.inputs]
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if how == "bf16":
        settings["INFERENCE_PRECISION_HINT"] = "bf16"
    elif how == "int8-static":
        ranges = nncf.Dataset(model.calibration, lambda batch: {name: batch[name].numpy() for name in taken})
        network = nncf.quantize(
            network, ranges, model_type=nncf.ModelType.TRANSFORMER, ignored_scope=ignored, subset_size=len(model.calibration)
        )
    elif how == "int8-dynamic":
        network = nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "384"
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()

    def run(batch: MicroBatch) -> torch.Tensor:
        outputs = request.infer({name: batch[name].numpy() for name in taken})
        return torch.from_numpy(np.array(outputs[0], dtype=np.float32))

    return run


_partial = functools.partial
MAKERS: dict[str, Callable[[Model], Engine]] = {
    "torch fp32": _partial(torch_eager, dtype=torch.float32),
    "torch bf16": _partial(torch_eager, dtype=torch.bfloat16),
    "torch int8 x86 per tensor": _partial(torch_dynamic, backend="x86", per_channel=False),
    "torch int8 x86 per channel": _partial(torch_dynamic, backend="x86", per_channel=True),
    "torch int8 onednn per tensor": _partial(torch_dynamic, backend="onednn", per_channel=False),
    "torch int8 onednn per channel": _partial(torch_dynamic, backend="onednn", per_channel=True),
    "torchao int8 eager": _partial(torchao_dynamic, compiled=False),
    "torchao int8 compiled": _partial(torchao_dynamic, compiled=True),
    "onnxruntime fp32": _partial(onnx_runtime, int8=False),
    "onnxruntime int8": _partial(onnx_runtime, int8=True),
    "openvino fp32": _partial(openvino_engine, how="fp32"),
    "openvino bf16": _partial(openvino_engine, how="bf16"),
    "openvino int8 static": _partial(openvino_engine, how="int8-static"),
    "openvino int8 dynamic": _partial(openvino_engine, how="int8-dynamic"),
}
