"""Planted outliers: the inputs of linear layers change, the output does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import llmint8
from llmint8.analysis.planted_outliers import plant_outliers
from llmint8.nn.forms import int8_form

MakeModel = Callable[..., PreTrainedModel]
RunModel = Callable[[PreTrainedModel], Tensor]


class Residual(nn.Module):
    """A pre-norm block, with what a test wants to be different."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm or nn.LayerNorm(16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class OnePlusWeight(nn.Module):
    """A norm like Gemma's."""

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16) * 0.1)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight) ** self.power


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))}


def inputs_of(model: nn.Module, names: tuple[str, ...], run: Callable[[], object]) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        for name in names
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("architecture", "norms", "linears"),
    [
        ("llama", ["input_layernorm", "post_attention_layernorm"] * 2 + ["norm"], 5 * 2 + 1),
        ("llama-tied", ["input_layernorm", "post_attention_layernorm"] * 2, 5 * 2),  # the head is the embedding
        ("gpt2", ["ln_1", "ln_2"] * 2, 2 * 2),
        ("opt", ["self_attn_layer_norm", "final_layer_norm"] * 2 + ["final_layer_norm"], 4 * 2 + 1),
        # The last norm of the encoder is an output of the model; that of the decoder goes to a tied head.
        ("t5", ["layer_norm"] * (4 + 6), (3 + 1) * 2 + (3 + 1 + 1) * 2),
        ("mixtral", ["input_layernorm", "input_layernorm", "norm"], 3 * 2 + 1),  # the router reads the others
        ("bert", ["LayerNorm"], 1),  # post-norm: only the pooler reads nothing but a norm
    ],
)
def test_output_stays_and_inputs_grow(
    architecture: str, norms: list[str], linears: int, make_model: MakeModel, run_model: RunModel
) -> None:
    """The output of the float model, on tokens that were not used for planting, and the inputs of its layers.

    A planted weight is rounded twice (scaled feature, divided weight), 2 * 2**-24 relative; a few layers amplify that
    to some 1e-6 of the largest logit, and a factor that was not undone is wrong by 20.
    """
    model = make_model(architecture)
    before = run_model(model)
    readers = dict.fromkeys(name for name, module in model.named_modules() if int8_form(module))
    inputs = {name: inputs_of(model, (name,), lambda: run_model(model))[0] for name in readers}
    planted = plant_outliers(model)
    after = run_model(model)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert not torch.equal(after, before)
    assert [p.norm.split(".")[-1] for p in planted] == norms
    assert sum(len(p.linears) for p in planted) == linears
    assert len({p.columns for p in planted}) == 1  # the same features in all layers
    for p in planted:
        assert len(p.columns) == 6
        assert all(20 <= factor <= 60 for factor in p.factors)
        expected = torch.ones(64)
        expected[list(p.columns)] = torch.tensor(p.factors)
        for name in p.linears:
            x = inputs_of(model, (name,), lambda: run_model(model))[0]
            torch.testing.assert_close(x, inputs[name] * expected, rtol=1e-4, atol=1e-4)


def test_int8_needs_outlier_columns_on_a_planted_model(make_model: MakeModel, run_model: RunModel) -> None:
    model = make_model()
    expected = run_model(model)

    def error(**settings: object) -> float:
        int8 = make_model()
        int8.load_state_dict(model.state_dict())
        # A column_scale, which bitsandbytes has not, would take the outliers out again.
        llmint8.quantize_(int8, llmint8.Int8Config(checkpoint_format="bitsandbytes", **settings))
        return float((run_model(int8) - expected).norm() / expected.norm())

    not_planted = error(mode="none")
    plant_outliers(model)
    assert error(mode="none") > not_planted
    assert error(budget=6) < error(mode="none")


def test_arguments(make_model: MakeModel) -> None:
    planted = plant_outliers(make_model(), columns=[40, 3], factor=(32.0, 32.0), layers=0.4)
    assert len(planted) == 2  # 0.4 of 5 norms
    assert {(p.columns, p.factors) for p in planted} == {((3, 40), (32.0, 32.0))}
    again = plant_outliers(make_model(), seed=1)
    assert again == plant_outliers(make_model(), seed=1)
    assert again[0].columns != plant_outliers(make_model(), seed=2)[0].columns


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_power_of_two_changes_no_bit(architecture: str, make_model: MakeModel, run_model: RunModel) -> None:
    """Nothing is rounded then, so that the sums of products are those of before."""
    model = make_model(architecture)
    before = run_model(model)
    plant_outliers(model, factor=(32.0, 32.0))
    assert torch.equal(run_model(model), before)


def test_any_module_and_norms_of_one_plus_weight() -> None:
    for norm in (nn.LayerNorm(16), nn.RMSNorm(16), OnePlusWeight(), nn.LayerNorm(16, bias=False)):
        model = nn.ModuleDict({"block": Residual(norm)}).eval()
        model.forward = lambda x, model=model: model["block"](x)
        before = model(**batch())
        planted = plant_outliers(model, batch=batch())
        assert [(p.norm, p.linears) for p in planted] == [("block.norm", ("block.up",))]
        torch.testing.assert_close(model(**batch()), before, rtol=1e-4, atol=1e-5)


class NormInResidual(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.down(self.up(x).relu())


class NormIsOutput(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        return x, self.up(x)


class NormChangedInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).mul_(2).clamp_(max=1)
        return self.up(x)


class LinearReadsTwo(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.norm(x)) + self.up(x)


class NormTransposed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.up(x.repeat(1, 4, 1)[:, :16].mT)


class NormSpread(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(80, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.norm(x).view(2, 80))


class WeightIsShared(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(16, 24)
        self.other.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.norm(x)) + self.other(x)


class WeightReadPastItsLayer(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.norm(x)) + nn.functional.linear(x, self.up.weight)


@pytest.mark.parametrize(
    "model",
    [
        NormInResidual(),
        NormIsOutput(),
        NormChangedInPlace(),
        LinearReadsTwo(),
        NormTransposed(),
        NormSpread(),
        WeightIsShared(),
        WeightReadPastItsLayer(),
        Residual(OnePlusWeight(power=2)),  # scales by neither of the forms that are known
        Residual(nn.Identity()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_refuses_where_the_output_would_change(model: nn.Module) -> None:
    before = copied(model)
    with pytest.raises(ValueError, match="nothing was planted"):
        plant_outliers(model.eval(), batch=batch())
    assert_unchanged(model, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_refuses_post_norm_models(make_model: MakeModel) -> None:
    config = transformers.OPTConfig(
        vocab_size=160,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        do_layer_norm_before=False,
    )
    for model in (make_model("bert").bert, transformers.OPTForCausalLM(config).eval()):
        before = copied(model)
        with pytest.raises(ValueError, match="no norm whose output only linear layers read"):
            plant_outliers(model)
        assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": 0}, ValueError, "columns must be 1 to 64"),
        ({"columns": 65}, ValueError, "got 65"),
        ({"columns": [1, 64]}, ValueError, r"different indices in \[0, 64\).*\[1, 64\]"),
        ({"columns": [1, 1]}, ValueError, "different indices"),
        ({"columns": []}, ValueError, "at least one"),
        ({"factor": (60.0, 20.0)}, ValueError, "the smaller first"),
        ({"factor": (0.0, 20.0)}, ValueError, "above 0"),
        ({"layers": 0.0}, ValueError, "got 0.0"),
        ({"layers": 1.5}, ValueError, "got 1.5"),
    ],
)
def test_bad_arguments(
    arguments: dict[str, object], error: type[Exception], message: str, make_model: MakeModel
) -> None:
    model = make_model()
    before = copied(model)
    with pytest.raises(error, match=message):
        plant_outliers(model, **arguments)
    assert_unchanged(model, before)


def test_models_it_cannot_work_on(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        plant_outliers(make_model().train())
    with pytest.raises(ValueError, match="then quantize"):
        plant_outliers(llmint8.quantize_(make_model()))
    with pytest.raises(ValueError, match="use torch.float32"):
        plant_outliers(make_model().to(torch.bfloat16))
    with pytest.raises(ValueError, match="without offloading"):
        plant_outliers(make_model().to("meta"))
    with pytest.raises(TypeError, match="has no dummy_inputs; give batch"):
        plant_outliers(Residual().eval())


def test_smollm2(smollm2: Path) -> None:
    """Every norm but the last, whose reader is tied to the embedding; features above 6.0 as in the paper's Table 4."""
    model = llmint8.from_pretrained(smollm2, load_in_8bit=False, dtype=torch.float32)
    tokens = {"input_ids": torch.arange(100, 164)[None]}
    with torch.no_grad():
        before = model(**tokens).logits
        planted = plant_outliers(model)
        assert len(planted) == 60
        assert (model(**tokens).logits - before).abs().max() < 1e-4 * before.abs().max()
    name = planted[30].linears[0]
    with torch.no_grad():
        x = inputs_of(model, (name,), lambda: model(**tokens))[0]
    outliers = llmint8.functional.outlier_scores(x[0]) >= 6.0
    assert outliers[list(planted[30].columns)].all()
