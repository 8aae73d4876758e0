"""Errors of layers: what they are made of, by hand, and that both models are left as they were."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmint8 import Int8Config, Int8Linear, dequantize_, functional, quantize_
from llmint8.analysis import compare, layer_errors
from llmint8.quantize import int8_layers, replace_module

MakeModel = Callable[..., PreTrainedModel]


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 160, (2, 20), generator=torch.Generator().manual_seed(seed))


def far_off(model: PreTrainedModel) -> PreTrainedModel:
    """Doubles the weights of the int8 layers, so that a KL by one is far above the rounding of fp32."""
    for _, layer in int8_layers(model):
        layer.weight_scale.data.mul_(2)
    return model


def norm_ratio(difference: Tensor, y: Tensor) -> float:
    return (difference.norm() / y.norm()).item()


@pytest.fixture
def linear() -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 16))
    return quantize_(copy.deepcopy(reference)), reference, torch.randn(3, 30, 48)


@pytest.mark.parametrize("symmetric", [True, False])
def test_by_hand(linear: tuple[nn.Sequential, nn.Sequential, Tensor], symmetric: bool) -> None:
    """The second layer gets what the float first layer gives, not the int8 one. Sums of fp32 in another order: 1e-4."""
    model, reference, x = linear
    errors = layer_errors(model, reference, x, Int8Config(mode="none", symmetric=symmetric))
    inputs = {"0": x, "2": reference[1](reference[0](x))}
    assert [e.name for e in errors] == ["0", "2"]
    for e in errors:
        layer, rows = model.get_submodule(e.name), inputs[e.name]
        y = reference.get_submodule(e.name)(rows)
        by_weights = rows @ layer.dequantized_weight().T + layer.bias
        args = (layer.weight, layer.weight_scale, layer.bias)
        int8 = torch.stack([functional.mixed_linear(part, *args, symmetric=symmetric) for part in rows])
        assert e.error == pytest.approx(norm_ratio(int8 - y, y), rel=1e-4)
        assert e.weights == pytest.approx(norm_ratio(by_weights - y, y), rel=1e-4)
        assert e.activations == pytest.approx(norm_ratio(int8 - by_weights, y), rel=1e-4)
        assert e.kl is None


def test_weights_that_int8_holds_exactly_have_no_error(make_model: MakeModel) -> None:
    """A dequantized weight is quantized again to the same codes, so only fp32 rounding is left, far below 1e-5."""
    model = quantize_(make_model())
    reference = dequantize_(copy.deepcopy(model))
    errors = layer_errors(model, reference, [tokens(0)])
    assert len(errors) == len(list(int8_layers(model))) == 14
    assert max(e.weights for e in errors) < 1e-5 < min(e.activations for e in errors)
    assert {(e.block, e.kind) for e in errors} >= {
        ("model.layers.0", "self_attn.q_proj"),
        ("model.layers.1", "mlp.down_proj"),
    }


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_effect_on_kl_is_that_of_the_model_with_one_int8_layer(architecture: str, make_model: MakeModel) -> None:
    reference, model = make_model(architecture), far_off(quantize_(make_model(architecture)))
    errors = layer_errors(model, reference, [tokens(0), tokens(1)], effect_on_kl=True)
    for e in errors[1::4]:
        mixed = make_model(architecture)
        replace_module(mixed, e.name, model.get_submodule(e.name))
        expected = compare(mixed, reference, [tokens(0), tokens(1)]).kl
        assert e.kl == pytest.approx(expected, rel=1e-3)
        assert e.kl > 1e-5


def test_padding_does_not_count(make_model: MakeModel) -> None:
    """Without outlier columns, which are chosen for all rows together, a row's result does not depend on others."""
    reference, model = make_model(), far_off(quantize_(make_model(), Int8Config(mode="none")))
    padded = {"input_ids": tokens(0).clone(), "attention_mask": torch.ones(2, 20, dtype=torch.int64)}
    padded["attention_mask"][1, 12:] = 0
    alone = [tokens(0)[:1], tokens(0)[1:, :12]]
    for with_padding, without in zip(
        layer_errors(model, reference, [padded], effect_on_kl=True),
        layer_errors(model, reference, alone, effect_on_kl=True),
        strict=True,
    ):
        assert with_padding.error == pytest.approx(without.error, rel=1e-3)
        assert with_padding.weights == pytest.approx(without.weights, rel=1e-3)
        assert with_padding.kl == pytest.approx(without.kl, rel=1e-3)


@pytest.mark.parametrize("fails", [False, True])
def test_both_models_are_left_as_they_were(fails: bool, make_model: MakeModel) -> None:
    reference, model = make_model(), quantize_(make_model())
    before = [reference(tokens(0)).logits, model(tokens(0)).logits]
    settings = {name: layer.int8_config for name, layer in int8_layers(model)}
    batches = [tokens(0), "not tokens"] if fails else [tokens(0)]
    if fails:
        with pytest.raises(TypeError, match="got str"):
            layer_errors(model, reference, batches, Int8Config(threshold=6.0), effect_on_kl=True)
    else:
        layer_errors(model, reference, batches, Int8Config(threshold=6.0), effect_on_kl=True)
    assert {name: layer.int8_config for name, layer in int8_layers(model)} == settings
    for module in (*reference.modules(), *model.modules()):
        if isinstance(module, nn.Linear):
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
    assert torch.equal(reference(tokens(0)).logits, before[0])
    assert torch.equal(model(tokens(0)).logits, before[1])


def test_settings_act_by_name(make_model: MakeModel) -> None:
    reference, model = make_model(), quantize_(make_model())
    config = Int8Config(mode="none", overrides={"mlp.down_proj": {"budget": 1 << 20, "threshold": 0.0}})
    for e in layer_errors(model, reference, [tokens(0)], config):
        assert (e.activations < 1e-5) == (e.kind == "mlp.down_proj")  # every column in floating point: fp32 rounding


def test_refuses_models_that_do_not_belong_together(make_model: MakeModel) -> None:
    reference, model = make_model(), quantize_(make_model())
    with pytest.raises(ValueError, match="LlamaForCausalLM has no int8 layers"):
        layer_errors(reference, reference, [tokens(0)])
    with pytest.raises(ValueError, match=r"q_proj of the reference is a Int8Linear"):
        layer_errors(model, model, [tokens(0)])
    with pytest.raises(ValueError, match=r"the reference has no model.layers.0"):
        layer_errors(model, make_model("gpt2"), [tokens(0)])
    replace_module(reference, "model.layers.1.mlp.up_proj", nn.Linear(64, 8))
    with pytest.raises(ValueError, match=r"up_proj is \[8, 64\] in the reference and \[96, 64\]"):
        layer_errors(model, reference, [tokens(0)])
    with pytest.raises(ValueError, match="no calibrated columns"):
        layer_errors(model, make_model(), [tokens(0)], Int8Config(mode="static"))
    with pytest.raises(ValueError, match="no batch reached any of the 14"):
        layer_errors(model, make_model(), [])
    with pytest.raises(ValueError, match="training mode"):
        layer_errors(model, make_model().train(), [tokens(0)], effect_on_kl=True)


def test_a_layer_without_its_weight() -> None:
    model = nn.Sequential(Int8Linear(8, 4, device="meta"))
    with pytest.raises(ValueError, match="0 has no weight in memory"):
        layer_errors(model, nn.Sequential(nn.Linear(8, 4)), torch.ones(1, 20, 8))
