import copy

import pytest
import torch
from torch import nn

from llmint8 import Int8Config, Int8Linear, dequantize_, quantize_
from llmint8.quantize import int8_layers, matches


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 48)
        self.blocks = nn.ModuleDict(
            {"a": nn.Sequential(nn.Linear(48, 48, bias=False), nn.GELU()), "b": nn.Linear(48, 8)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks["b"](self.blocks["a"](self.first(x)))


class MyLinear(nn.Linear):
    """A subclass, whose meaning is its own."""


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in int8_layers(model)]


def test_every_linear_of_any_module_in_place() -> None:
    torch.manual_seed(0)
    model = Block().eval()
    reference = copy.deepcopy(model)
    assert quantize_(model) is model
    assert names(model) == ["first", "blocks.a.0", "blocks.b"]
    assert not model.first.training
    x = torch.randn(5, 7, 32)
    error = (model(x) - reference(x)).norm() / reference(x).norm()
    assert error < 0.02


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Int8Config(skip_modules=["first"]), ["blocks.a.0", "blocks.b"]),
        (Int8Config(skip_modules=["blocks"]), ["first"]),
        (Int8Config(skip_modules=["a.0", "b"]), ["first"]),
    ],
)
def test_skip_modules(config: Int8Config, expected: list[str]) -> None:
    assert names(quantize_(Block(), config)) == expected


def test_names_match_at_dots() -> None:
    assert matches("model.lm_head", ["lm_head"])
    assert matches("model.layers.1.mlp.up", ["model.layers.1"])
    assert not matches("model.layers.10.mlp.up", ["model.layers.1"])
    assert not matches("my_lm_head", ["lm_head"])
    assert not matches("modelXlayers", ["model.layers"])


def test_subclasses_of_linear_stay() -> None:
    model = nn.Sequential(MyLinear(4, 4), nn.Linear(4, 4))
    assert names(quantize_(model)) == ["1"]


def test_tied_weights_stay_unless_included() -> None:
    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "body": nn.Linear(8, 8), "head": nn.Linear(8, 20)})
        model["head"].weight = model["embed"].weight
        return model

    assert names(quantize_(tied())) == ["body"]
    model = quantize_(tied(), Int8Config(include_modules=["head"]))
    assert names(model) == ["body", "head"]
    assert model["embed"].weight.dtype == torch.float32


def test_a_layer_in_two_places_stays_one_layer() -> None:
    layer = nn.Linear(4, 4)
    model = quantize_(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], Int8Linear)
    dequantize_(model)
    assert model["a"] is model["b"][0]
    assert type(model["a"]) is nn.Linear


def test_dequantize_restores_classes_and_values() -> None:
    model = quantize_(Block())
    expected = model.first.dequantized_weight()
    assert dequantize_(model) is model
    assert names(model) == []
    assert torch.equal(model.first.weight, expected)
    assert dequantize_(quantize_(Block()), torch.bfloat16).blocks["b"].weight.dtype == torch.bfloat16


def test_hooks_of_accelerate_move_to_the_new_layer() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    calls = []

    class Counter(ModelHook):
        def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple:
            calls.append(type(module).__name__)
            return args, kwargs

    model = Block()
    add_hook_to_module(model.first, Counter())
    quantize_(model)(torch.randn(2, 32))
    dequantize_(model)(torch.randn(2, 32))
    assert calls == ["Int8Linear", "Linear"]


@pytest.mark.parametrize("rows", [2, 40])
def test_fused_transformer_layers_do_not_bypass_int8(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, rows, 32), torch.zeros(2, rows, dtype=torch.bool)
    padding[1, rows // 2 :] = True
    with torch.inference_mode():
        expected = model(x, src_key_padding_mask=padding)
        y = quantize_(model)(x, src_key_padding_mask=padding)
    kept = ~padding
    assert len(names(model)) == 4  # linear1 and linear2; attention reads its weights itself
    assert (y - expected)[kept].norm() / expected[kept].norm() < 0.03


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), Int8Linear(2, 2)], ids=["float", "int8"])
def test_a_layer_alone_cannot_be_replaced_in_place(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match="cannot be replaced in place"):
        (dequantize_ if isinstance(layer, Int8Linear) else quantize_)(layer)


def test_errors_before_anything_changes() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Linear"):
        quantize_(nn.Sequential(nn.GELU()))
    model = Block()
    with pytest.raises(ValueError, match="'lm_head'"):
        quantize_(model, Int8Config(include_modules=["lm_head"]))
    assert names(model) == []
    meta = quantize_(Block()).to("meta")
    with pytest.raises(ValueError, match="first has no weight in memory"):
        dequantize_(meta)
