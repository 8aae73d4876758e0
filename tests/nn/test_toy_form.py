"""A layer form that the package does not know goes through everything once it is registered; a recipe, too."""

from pathlib import Path
from typing import Any, Self

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import Parameter

import llmint8
from llmint8 import Int8Config, Int8Linear
from llmint8.estimation.weights import count_weights
from llmint8.nn import forms
from llmint8.nn.forms import int8_form, register_form
from llmint8.quantize import int8_layers

TOKENS = torch.randint(0, 160, (2, 20), generator=torch.Generator().manual_seed(1))


class ScaledLinear(nn.Linear):
    """A linear layer whose output is multiplied by a scalar parameter."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.gain = Parameter(torch.tensor(1.5))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


class Int8ScaledLinear(Int8Linear):
    """The int8 form of a `ScaledLinear`."""

    gain: Parameter

    @classmethod
    def empty_like(cls, layer: nn.Module, config: Int8Config | None = None) -> Self:
        made = super().empty_like(layer, config)
        made.gain = Parameter(torch.empty_like(layer.get_parameter("gain"), device="meta"))
        return made

    @classmethod
    def from_float(cls, layer: nn.Module, config: Int8Config | None = None) -> Self:
        made = super().from_float(layer, config)
        made.gain = layer.get_parameter("gain")
        return made

    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        plain = super().to_float(dtype)
        with torch.device("meta"):
            layer = ScaledLinear(self.in_features, self.out_features, self.bias is not None)
        layer.weight, layer.bias = plain.weight, plain.bias  # type: ignore[assignment]
        layer.gain = Parameter(self.gain.detach().to(layer.weight.dtype))
        return layer.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


class ScaledLlama(transformers.LlamaForCausalLM):
    """A Llama whose down projections are scaled."""

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            mlp: Any = layer.mlp
            mlp.down_proj = ScaledLinear(config.intermediate_size, config.hidden_size, bias=False)


@pytest.fixture(autouse=True)
def _form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the form, and forgets it again."""
    monkeypatch.setattr(forms, "_FORMS", dict(forms._FORMS))
    register_form(ScaledLinear, Int8ScaledLinear)


@pytest.fixture
def model() -> ScaledLlama:
    torch.manual_seed(0)
    sizes = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=128)
    made = ScaledLlama(config).eval()
    for i, layer in enumerate(made.model.layers):
        nn.init.constant_(layer.mlp.down_proj.gain, 0.5 + i)
    return made


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    result: Tensor = model(TOKENS).logits
    return result


def scaled(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: layer for name, layer in int8_layers(model) if name.endswith("down_proj")}


def test_is_quantized_calibrated_saved_loaded_and_dequantized(model: ScaledLlama, tmp_path: Path) -> None:
    gains = [layer.mlp.down_proj.gain.item() for layer in model.model.layers]
    llmint8.quantize_(model, Int8Config(budget=4))
    assert [type(layer) for layer in scaled(model).values()] == [Int8ScaledLinear] * 2
    llmint8.calibrate(model, [TOKENS], budget=3, threshold=0.0)
    assert all(layer.outlier_columns.numel() == 3 for layer in scaled(model).values())  # type: ignore[union-attr]
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = ScaledLlama.from_pretrained(tmp_path).eval()
    assert [type(layer) for layer in scaled(loaded).values()] == [Int8ScaledLinear] * 2
    assert torch.equal(logits(loaded), expected)
    llmint8.dequantize_(loaded)
    restored = [layer.mlp.down_proj for layer in loaded.model.layers]
    assert [type(layer) for layer in restored] == [ScaledLinear] * 2
    assert [layer.gain.item() for layer in restored] == gains
    assert not any(int8_layers(loaded))


def test_is_quantized_while_it_is_loaded(model: ScaledLlama, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = ScaledLlama.from_pretrained(tmp_path, quantization_config=Int8Config(budget=4)).eval()
    llmint8.quantize_(model, Int8Config(budget=4))
    assert len(scaled(loaded)) == 2
    assert torch.equal(logits(loaded), logits(model))


def test_its_weights_are_counted(model: ScaledLlama) -> None:
    llmint8.quantize_(model)
    weights = count_weights(model)
    assert weights.int8 == sum(layer.weight.nbytes for _, layer in int8_layers(model))
    assert sum(part.bytes for part in weights.kept if part.name.endswith("gain")) == 2 * 4


def test_a_subclass_is_not_meant() -> None:
    class Other(ScaledLinear):
        pass

    assert int8_form(ScaledLinear(4, 4)) is Int8ScaledLinear
    assert int8_form(Other(4, 4)) is None


def test_a_form_must_be_an_int8_layer() -> None:
    with pytest.raises(TypeError, match="subclass of Int8Linear, got ScaledLinear"):
        register_form(ScaledLinear, ScaledLinear)  # type: ignore[arg-type]
