"""`compare` by hand on made-up predictions, and on the real model."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

import llmint8
from llmint8 import Int8Config
from llmint8.analysis import Comparison, compare, comparison, text_windows
from llmint8.quantize import int8_layers


class Predicts(nn.Module):
    """A language model whose prediction depends on nothing but the token: a row of a table of probabilities."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(probabilities).log())
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


REFERENCE = Predicts([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
MODEL = Predicts([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.1, 0.6, 0.3]])
KL_OF_0 = 0.5 * math.log(2) + 0.25 * math.log(0.5)
KL_OF_2 = 0.8 * math.log(0.8 / 0.6) + 0.1 * math.log(0.1 / 0.3)


def test_by_hand() -> None:
    """Windows 0 1 2 and 2 0 predict from 0, 1 and 2; in only one row of the tables the first choices differ."""
    result = compare(MODEL, REFERENCE, [torch.tensor([0, 1, 2]), torch.tensor([2, 0])])
    assert result.tokens == 3
    assert result.perplexity == pytest.approx((0.5 * 0.6 * 0.1) ** (-1 / 3))
    assert result.reference_perplexity == pytest.approx((0.25 * 0.6 * 0.1) ** (-1 / 3))
    mean = (KL_OF_0 + KL_OF_2) / 3
    assert result.kl == pytest.approx(mean)
    assert result.kl_standard_error == pytest.approx(
        math.sqrt(2 * ((KL_OF_0 - 2 * mean) ** 2 + (KL_OF_2 - mean) ** 2)) / 3
    )
    assert result.top1_agreement == pytest.approx(2 / 3)


def test_a_model_beside_itself() -> None:
    result = compare(MODEL, MODEL, [torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0]])])
    assert (result.tokens, result.kl, result.top1_agreement) == (6, 0.0, 1.0)
    assert result.perplexity == result.reference_perplexity
    assert math.isnan(result.kl_standard_error)  # one batch says nothing of how they differ


def test_padding_does_not_count() -> None:
    padded = {"input_ids": torch.tensor([[0, 1, 2], [2, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    left = {"input_ids": torch.tensor([[0, 1, 2], [1, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
    expected = compare(MODEL, REFERENCE, [torch.tensor([0, 1, 2]), torch.tensor([2, 0])])
    for batch in (padded, left):
        result = compare(MODEL, REFERENCE, [batch])
        assert (result.tokens, result.top1_agreement) == (3, expected.top1_agreement)
        assert (result.kl, result.perplexity) == pytest.approx((expected.kl, expected.perplexity))


def test_a_large_vocabulary_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [torch.randint(0, 3, (2, 40), generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    whole = compare(MODEL, REFERENCE, tokens)
    monkeypatch.setattr(comparison, "_CHUNK", 7 * 3)
    parts = compare(MODEL, REFERENCE, tokens)
    assert parts.top1_agreement == whole.top1_agreement
    assert (parts.kl, parts.perplexity) == pytest.approx((whole.kl, whole.perplexity))


def test_a_token_that_is_ruled_out() -> None:
    never = Predicts([[0.5, 0.5, 0.0]] * 3)
    assert compare(never, never, [torch.tensor([0, 1, 0])]).kl == 0
    both = Predicts([[0.25, 0.5, 0.25]] * 3)
    assert compare(both, never, [torch.tensor([0, 1, 0])]).kl == pytest.approx(0.5 * math.log(2))
    assert compare(never, both, [torch.tensor([0, 1, 0])]).kl == math.inf


def test_refuses_what_cannot_be_compared() -> None:
    tokens = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="vocabulary of 3 tokens and the reference one of 4"):
        compare(MODEL, Predicts([[0.25] * 4] * 3), [tokens])
    with pytest.raises(ValueError, match="no batches"):
        compare(MODEL, REFERENCE, [])
    with pytest.raises(ValueError, match=r"\[1, 1\] has no token that follows"):
        compare(MODEL, REFERENCE, [tokens[:1]])
    with pytest.raises(TypeError, match=r"float32 \[3\]"):
        compare(MODEL, REFERENCE, [tokens.float()])
    with pytest.raises(TypeError, match="got str"):
        compare(MODEL, REFERENCE, ["a text"])  # the batch, not a list of them
    trained = Predicts([[0.25] * 3] * 3).train()
    with pytest.raises(ValueError, match="the reference is in training mode"):
        compare(MODEL, trained, [tokens])


@pytest.mark.slow
def test_outlier_columns_bring_the_model_closer(smollm2: Path) -> None:
    """The README has a KL of 0.028 without outlier columns and 0.005 with them: half is far from either."""
    text = Path(comparison.__file__)
    windows = text_windows(AutoTokenizer.from_pretrained(smollm2), text, window=128, tokens=256)
    reference = llmint8.from_pretrained(smollm2, load_in_8bit=False, dtype=torch.float32)
    model = llmint8.from_pretrained(smollm2, dtype=torch.float32)
    with_outliers = compare(model, reference, windows)
    for _, layer in int8_layers(model):
        layer.int8_config = Int8Config(mode="none")
    without = compare(model, reference, windows)
    assert 0 < with_outliers.kl < without.kl / 2
    assert with_outliers.reference_perplexity == without.reference_perplexity


def test_a_progress_bar_changes_nothing(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model()
    tokens = [torch.randint(0, 160, (1, 20), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    results: list[Comparison] = [compare(model, model, tokens, progress=progress) for progress in (False, True)]
    assert results[0] == results[1]


class Words:
    """A tokenizer that makes one token of each word."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def test_windows_hold_the_text_in_order(tmp_path: Path) -> None:
    text = " ".join("a" * n for n in range(1, 24))
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    windows = text_windows(Words(), text, window=5)
    assert [tuple(w.shape) for w in windows] == [(1, 5)] * 4 + [(1, 3)]
    assert torch.cat(windows, dim=1).tolist() == [list(range(1, 24))]
    assert all(torch.equal(a, b) for a, b in zip(windows, text_windows(Words(), file, window=5), strict=True))
    assert [tuple(w.shape) for w in text_windows(Words(), text, window=5, tokens=11)] == [(1, 5)] * 2  # 1 is too few
    assert windows[0].dtype == torch.int64


def test_windows_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the text .* has 0 tokens, but 2 are needed"):
        text_windows(Words(), "")
    with pytest.raises(ValueError, match="has 3 tokens, but 10 are needed"):
        text_windows(Words(), "one two three", tokens=10)
    with pytest.raises(ValueError, match="window must be at least 2 tokens, .* got 1"):
        text_windows(Words(), "one two three", window=1)
    with pytest.raises(FileNotFoundError):
        text_windows(Words(), tmp_path / "absent.txt")


def test_heavy_libraries_are_not_imported_before_they_are_used() -> None:
    from subprocess import run

    code = (
        "import sys, llmint8; assert 'llmint8.analysis' not in sys.modules; import llmint8.analysis;"
        "print([m for m in ('matplotlib', 'rich', 'pyplot', 'lm_eval') if m in sys.modules])"
    )
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
