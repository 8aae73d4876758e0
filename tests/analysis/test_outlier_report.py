"""`outlier_report`: counts by hand, the criteria of the paper, and the same report for every form of a model."""

import copy
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

import llmint8
from llmint8 import Int8Config, quantize_
from llmint8.analysis import OutlierReport, outlier_report, text_windows

MakeModel = Callable[..., PreTrainedModel]
module = importlib.import_module("llmint8.analysis.outlier_report")  # the package's attribute is the function
ROWS, WIDTH = 200, 24


class Stack(nn.Module):
    """Layers that get what they are given: x [layers, rows, width] for those as wide, z for the wider ones."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        parts = {"q": WIDTH, "k": WIDTH, "down": 2 * WIDTH}
        self.h = nn.ModuleList(nn.ModuleDict({n: nn.Linear(w, 4) for n, w in parts.items()}) for _ in range(layers))

    def forward(self, x: Tensor, z: Tensor) -> None:
        for layer, rows, wide in zip(self.h, x, z, strict=True):
            layer["q"](rows)
            layer["k"](rows)
            layer["down"](wide)


@pytest.fixture
def planted() -> tuple[Stack, Tensor, Tensor]:
    """Eight layers of small values, with outliers in the columns 3, 5, 7 and 9 of the hidden states.

    Column 3: every layer, 20 of 200 rows: 10 % of the positions. Column 5: 2 of 8 layers, 60 rows: 25 % of the layers,
    7.5 % of the positions. Column 7: 1 of 8 layers, all rows: too few layers. Column 9: every layer, 10 rows: 5 %.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, ROWS, WIDTH, generator=generator) - 0.5
    x[:, :20, 3] = -6.0 - torch.arange(20.0)
    x[[1, 6], 100:160, 5] = 7.0
    x[6, 100, 5] = -8.0
    x[2, :, 7] = 50.0
    x[:, 20:30, 9] = 6.5
    z = torch.rand(8, ROWS, 2 * WIDTH, generator=generator) - 0.5
    z[:, :, 11] = 9.0
    return Stack(8), x, z


def test_features_by_the_criteria_of_the_paper(planted: tuple[Stack, Tensor, Tensor]) -> None:
    """Quartiles of 20 values -6, -7, ..., -25 are the 5th, 10th and 15th from below, as each layer has the same."""
    model, x, z = planted
    report = outlier_report(model, [(x[:, :90], z[:, :90]), (x[:, 90:], z[:, 90:])])
    assert report.tokens == ROWS
    assert report.hidden_size == WIDTH
    assert [f.column for f in report.features] == [3, 5]
    steady, rare = report.features
    assert (steady.layers, steady.positions) == (1.0, pytest.approx(0.10))
    assert (steady.quartiles, steady.one_sided, steady.largest) == ((-21.0, -16.0, -11.0), True, 25.0)
    assert (rare.layers, rare.positions) == (0.25, pytest.approx(0.075))
    assert (rare.quartiles, rare.one_sided, rare.largest) == ((7.0, 7.0, 7.0), False, 8.0)
    every = outlier_report(model, [(x, z)], min_layers=0, min_positions=0)
    assert [f.column for f in every.features] == [7, 3, 5, 9]
    assert [f.column for f in outlier_report(model, [(x, z)], min_layers=0.5, min_positions=0).features] == [3, 9]


def test_inputs_of_layers(planted: tuple[Stack, Tensor, Tensor]) -> None:
    model, x, z = planted
    report = outlier_report(model, [(x, z)])
    assert [i.names for i in report.inputs[:3]] == [("h.0.q", "h.0.k"), ("h.0.down",), ("h.1.q", "h.1.k")]
    third, wide = report.inputs[4], report.inputs[5]
    assert (third.block, third.kind, third.width, third.tokens) == ("h.2", "q/k", WIDTH, ROWS)
    assert [c.column for c in third.columns] == [7, 3, 9]
    assert third.positions == 1.0
    assert report.inputs[0].positions == pytest.approx(30 / ROWS)
    assert (wide.kind, wide.width, wide.is_hidden) == ("down", 2 * WIDTH, False)
    assert [(c.column, c.positions, c.quartiles) for c in wide.columns] == [(11, 1.0, (9.0, 9.0, 9.0))]
    others = outlier_report(model, [(x, z)], not_hidden=["h.2.q"], min_layers=0, min_positions=0)
    assert 7 not in [f.column for f in others.features]  # only there
    assert [len(i.columns) for i in others.inputs] == [len(i.columns) for i in report.inputs]


def test_a_threshold_relative_to_the_row(planted: tuple[Stack, Tensor, Tensor]) -> None:
    model, x, z = planted
    scale = torch.logspace(-3, 3, ROWS)[:, None]
    expected = outlier_report(model, [(x, z)], 3.0, relative=True)
    scaled = outlier_report(model, [(x * scale, z * scale)], 3.0, relative=True)
    assert [f.column for f in scaled.features] == [f.column for f in expected.features] != []
    row = x[2, 50]  # of column 7 alone
    column = next(c for c in expected.inputs[4].columns if c.column == 7)
    assert column.largest >= (row[7] / row.square().mean().sqrt()).item() > 3


def test_nan_and_inf_are_no_outliers(planted: tuple[Stack, Tensor, Tensor]) -> None:
    model, x, z = planted
    expected = outlier_report(model, [(x, z)])
    x[:, 190, 0], x[:, 191, 1] = torch.nan, torch.inf
    assert outlier_report(model, [(x, z)]) == expected
    json.dumps(outlier_report(model, [(x, z)], 3.0, relative=True).to_dict(), allow_nan=False)


def test_a_sample_of_many_values_is_bounded_and_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100000 values between 10 and 20, 2000 are kept, 1000 of each column.

    By the inequality of Dvoretzky, Kiefer and Wolfowitz, the distribution of 1000 samples is off by more than 0.06
    with a probability of at most 2 exp(-2 * 1000 * 0.06 ** 2) = 0.0015; and the values rise from batch to batch, so
    that the first ones or the last ones would be far off.
    """
    monkeypatch.setattr(module, "_KEPT_OF_INPUT", 2000)
    model = nn.Sequential(nn.Linear(8, 4))
    x = torch.zeros(100, 500, 8)
    x[:, :, 1] = torch.linspace(10, 20, 50000).view(100, 500)
    x[:, :, 6] = -x[:, :, 1]
    sizes = []
    thin_out = module._Statistics._thin_out

    def watched(statistics: object) -> None:
        sizes.append(len(statistics._values))
        thin_out(statistics)
        assert len(statistics._values) == 2000

    monkeypatch.setattr(module._Statistics, "_thin_out", watched)
    (layer,) = outlier_report(model, x).inputs
    assert max(sizes) <= 2 * 2000 + 1000  # and what one batch brings
    assert [c.positions for c in layer.columns] == [1.0, 1.0]
    assert layer.columns[0].quartiles == pytest.approx((12.5, 15.0, 17.5), abs=0.6)
    assert layer.columns[1].quartiles == pytest.approx((-17.5, -15.0, -12.5), abs=0.6)


def test_quartiles_weigh_inputs_by_their_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer has 3000 outliers of 10, another 1000 of 20 of which as many are kept: the third quartile is 10."""
    monkeypatch.setattr(module, "_KEPT_OF_COLUMN", 500)
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model.forward = lambda x: [layer(rows) for layer, rows in zip(model, x, strict=True)]
    x = torch.zeros(2, 3000, 4)
    x[0, :, 2] = 10.0
    x[1, :1000, 2] = 20.0
    (feature,) = outlier_report(model, [x]).features
    assert feature.quartiles == (10.0, 10.0, 10.0)
    x[1, :1200, 2] = 20.0
    assert outlier_report(model, [x]).features[0].quartiles == (10.0, 10.0, 20.0)


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("llama", ["self_attn.q_proj/k_proj/v_proj", "self_attn.o_proj", "mlp.gate_proj/up_proj", "mlp.down_proj"]),
        ("gpt2", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        ("opt", ["self_attn.q_proj/k_proj/v_proj", "self_attn.out_proj", "fc1", "fc2"]),
        ("bert", ["attention.self.query/key/value", "attention.output.dense", "intermediate.dense", "output.dense"]),
    ],
)
def test_architectures(architecture: str, kinds: list[str], make_model: MakeModel) -> None:
    """Both layers of each, float and int8, without the head; in int8 a value may cross a threshold, a count may not."""
    batches = [torch.randint(0, 160, (2, 20), generator=torch.Generator().manual_seed(0))]
    model = make_model(architecture)
    report = outlier_report(model, batches, threshold=0.5)
    per_layer = [(i.kind, i.width, i.tokens, i.is_hidden) for i in report.inputs if ".0." in i.names[0]]
    assert sorted(kind for kind, *_ in per_layer) == sorted(kinds)
    assert all(tokens == 40 and is_hidden == (width == 64) for _, width, tokens, is_hidden in per_layer)
    assert not any("head" in name or "classifier" in name for i in report.inputs for name in i.names)
    int8 = outlier_report(quantize_(copy.deepcopy(model), Int8Config(mode="none")), batches, threshold=0.5)
    assert [i.names for i in int8.inputs] == [i.names for i in report.inputs]
    for ours, theirs in zip(int8.inputs, report.inputs, strict=True):
        assert len(ours.columns) == pytest.approx(len(theirs.columns), abs=3)


def test_padding_does_not_count(make_model: MakeModel) -> None:
    model = make_model()
    tokens = torch.randint(0, 160, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, 12:] = 0
    padded = outlier_report(model, [{"input_ids": tokens, "attention_mask": mask}], threshold=1.0)
    alone = outlier_report(model, [tokens[:1], tokens[1:, :12]], threshold=1.0)
    assert padded.tokens == alone.tokens == 32
    assert [[c.column for c in i.columns] for i in padded.inputs] == [
        [c.column for c in i.columns] for i in alone.inputs
    ]
    assert padded != outlier_report(model, [tokens], threshold=1.0)
    encoder_decoder = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": tokens}
    with pytest.raises(ValueError, match="padded batches of an encoder-decoder"):
        outlier_report(make_model("t5"), [encoder_decoder])
    with pytest.raises(ValueError, match=r"must be \[batch, tokens\], got \[2, 1, 20, 20\]"):
        outlier_report(model, [{"input_ids": tokens, "attention_mask": torch.ones(2, 1, 20, 20).tril()}])


def test_hooks_are_removed(planted: tuple[Stack, Tensor, Tensor]) -> None:
    model, x, z = planted
    outlier_report(model, [(x, z)])
    with pytest.raises(ValueError, match="zip"):
        outlier_report(model, [(x, z), (x, z[:3])])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_refuses_what_cannot_be_reported(planted: tuple[Stack, Tensor, Tensor]) -> None:
    model, x, z = planted
    for threshold in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold must be finite and greater than 0"):
            outlier_report(model, [(x, z)], threshold)
    with pytest.raises(ValueError, match="min_positions must be a share between 0 and 1, got 6"):
        outlier_report(model, [(x, z)], min_positions=6)
    with pytest.raises(ValueError, match="no batch reached any of the 24"):
        outlier_report(model, [])
    with pytest.raises(ValueError, match="ReLU has no linear layers"):
        outlier_report(nn.ReLU(), [x])


def test_json_and_tables(planted: tuple[Stack, Tensor, Tensor]) -> None:
    model, x, z = planted
    report = outlier_report(model, [(x, z)])
    again = json.loads(json.dumps(report.to_dict()))
    assert again["features"][0]["column"] == 3
    assert again["inputs"][4]["columns"][0] == {
        "column": 7, "layers": 1.0, "positions": 1.0, "quartiles": [50.0] * 3, "one_sided": True, "largest": 50.0
    }  # fmt: skip
    text = rendered(report)
    for cells in (("3", "100%", "10%", "-21.0, -16.0, -11.0", "25.0", "yes"), ("q/k", "24", "2 (3)", "50.0")):
        assert any(all(cell in line for cell in cells) for line in text.splitlines()), cells
    assert rendered(outlier_report(model, [(x, z)], threshold=100.0)).count("-") >= 2  # nothing is the largest


def rendered(report: OutlierReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(report)
    return console.file.getvalue()


def test_smollm2_has_the_outlier_feature_of_a_small_model(smollm2: Path) -> None:
    """Models of 117M to 345M parameters have one or two by the criteria of the paper (Table 4)."""
    model = llmint8.from_pretrained(smollm2, load_in_8bit=False, dtype=torch.float32)
    text = "\n".join(topics[name] for name in sorted(topics))  # Python's language reference
    windows = text_windows(AutoTokenizer.from_pretrained(smollm2), text, tokens=512)
    report = outlier_report(model, windows, not_hidden=["o_proj"])
    assert len(report.inputs) == 4 * 30
    assert 1 <= len(report.features) <= 2
    assert report.features[0].one_sided
