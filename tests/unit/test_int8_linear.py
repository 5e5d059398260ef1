"""int8 layers: as near to the full product as their levels allow, whatever the batch, and outliers kept full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bento_service.scorer.int8_linear import Int8FeedForward, Int8Linear
from bento_service.scorer.linear import Int8Weights, joined
from bento_service.scorer.quantised import Parts, flat, read_parts, unpacked
from model_store_scripts.int8 import quantise

ROWS = 200


class _Config:
    model_type = "unknown"


class _Model(torch.nn.Module):
    """One layer with an up- and a down-projection, as transformers name them."""

    def __init__(self, n_in: int = 64, between: int = 256) -> None:
        super().__init__()
        self.config = _Config()
        torch.manual_seed(3)
        layer = torch.nn.ModuleDict({"up": torch.nn.Linear(n_in, between), "down": torch.nn.Linear(between, n_in)})
        self.layer = torch.nn.ModuleList([layer])
        self.head = torch.nn.Linear(n_in, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Up, GELU, down."""
        layer = self.layer[0]
        return layer["down"](torch.nn.functional.gelu(layer["up"](x)))


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """Rows with a channel that is twenty times as large as the others."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(ROWS, 64, generator=generator)
    x[:, 5] *= 20
    return x


@pytest.fixture(scope="module")
def model() -> _Model:
    """The model in float32, with one unit between the layers that is far larger than all others."""
    made = _Model()
    with torch.no_grad():
        made.layer[0]["up"].weight[7] *= 40
        made.layer[0]["down"].weight[:, 7] /= 40
    return made


@pytest.fixture(scope="module")
def parts(model: _Model, inputs: torch.Tensor) -> dict[str, Parts]:
    """Its int8 parts."""

    def run() -> None:
        with torch.inference_mode():
            model(inputs)

    return quantise(model, run)


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root of the mean square, relative."""
    return float((found.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def test_only_layers_are_quantised(parts: dict[str, Parts]) -> None:
    """The head stays as it is."""
    assert sorted(parts) == ["layer.0.down", "layer.0.up"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_near_the_full_one(
    model: _Model, inputs: torch.Tensor, parts: dict[str, Parts], dtype: torch.dtype
) -> None:
    """Within 2 percent, though one channel of the inputs is an outlier."""
    with torch.inference_mode():
        full = model.layer[0]["up"](inputs)
        assert 1e-4 < _error(Int8Linear(parts["layer.0.up"])(inputs.to(dtype)), full) < 0.02


def test_two_layers_with_gelu_between_are_near_too(model: _Model, inputs: torch.Tensor, parts: dict[str, Parts]) -> None:
    """What goes between them is uint8, but for the unit that is an outlier; one by one they give nearly the same."""
    with torch.inference_mode():
        full = model(inputs)
        together = Int8FeedForward(parts["layer.0.up"], parts["layer.0.down"], torch.float32)(inputs, "none")
        apart = Int8Linear(parts["layer.0.down"])(Int8Linear(parts["layer.0.up"])(inputs, "none"))
    assert 1e-4 < _error(together, full) < 0.03
    assert _error(together, apart) < 0.02


def test_without_the_kept_unit_the_levels_would_be_too_wide(inputs: torch.Tensor, parts: dict[str, Parts]) -> None:
    """It is kept because of its size."""
    assert 7 in parts["layer.0.down"]["kept"].tolist()
    assert not parts["layer.0.down"]["weight"][:, 7].any()
    with torch.inference_mode():
        between = Int8Linear(parts["layer.0.up"])(inputs, "none")
    assert float(between[:, 7].max()) > 4 * float(between[:, torch.arange(256) != 7].max())


def test_a_row_does_not_depend_on_the_others(inputs: torch.Tensor, parts: dict[str, Parts]) -> None:
    """Its range was measured before: an outlier beside it changes not one bit."""
    layer = Int8Linear(parts["layer.0.up"])
    wild = inputs.clone()
    wild[1:] *= 50
    with torch.inference_mode():
        assert torch.equal(layer(inputs)[0], layer(wild)[0])


def test_layers_side_by_side_are_the_layers_alone(inputs: torch.Tensor, parts: dict[str, Parts]) -> None:
    """As query, key and value are multiplied at once."""
    one = parts["layer.0.up"]
    with torch.inference_mode():
        both = joined([Int8Weights(one), Int8Weights(one)], torch.float32)(inputs)
        alone = Int8Linear(one)(inputs)
    assert torch.equal(both, torch.cat([alone, alone], 1))


def test_the_parts_of_a_file_unpack_to_the_weights(model: _Model, parts: dict[str, Parts], tmp_path: Path) -> None:
    """For devices that cannot multiply int8: kept columns come back as they were."""
    path = tmp_path / "parts.safetensors"
    save_file(flat(parts), path)
    read = read_parts(path)
    for name, linear in (("layer.0.up", model.layer[0]["up"]), ("layer.0.down", model.layer[0]["down"])):
        weight, bias = unpacked(read[name])
        assert bias is not None
        assert torch.equal(bias, linear.bias.detach())
        assert _error(weight, linear.weight.detach()) < 0.03


def test_a_model_without_outliers_has_no_trouble(inputs: torch.Tensor) -> None:
    """Plain inputs are the easy case."""
    made = _Model()

    def run() -> None:
        with torch.inference_mode():
            made(inputs)

    plain = quantise(made, run)
    with torch.inference_mode():
        found = Int8FeedForward(plain["layer.0.up"], plain["layer.0.down"], torch.float32)(inputs, "none")
        assert _error(found, made(inputs)) < 0.03
