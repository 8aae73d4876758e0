"""EleutherAI's evaluation harness scores our models as they score themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, PreTrainedModel

import llmint8

pytestmark = pytest.mark.slow

CONTEXT = "The Eiffel Tower is a landmark of France. It stands in its capital,"
CHOICES = [" Paris", " the old town of Lyon"]
CPU = {"device": "cpu"}  # for a folder, the harness assumes a GPU unless it is told otherwise


@pytest.fixture
def score(smollm2: Path) -> Callable[[Any], list[tuple[float, bool]]]:
    """Returns a function: model or folder -> log likelihood of each choice and whether it is the greedy one."""

    def run(pretrained: Any) -> list[tuple[float, bool]]:
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        harness = HFLM(pretrained=pretrained, tokenizer=tokenizer, batch_size=1, **CPU)
        requests = [Instance("loglikelihood", {}, (CONTEXT, choice), index) for index, choice in enumerate(CHOICES)]
        return harness.loglikelihood(requests, disable_tqdm=True)

    return run


def direct(model: PreTrainedModel, tokenizer: Any) -> list[tuple[float, bool]]:
    """The same from the model's logits: those of a position stand for the token after it."""
    context = tokenizer(CONTEXT, return_tensors="pt")["input_ids"]
    results = []
    for choice in CHOICES:
        tokens = torch.cat([context, tokenizer(choice, return_tensors="pt")["input_ids"]], dim=1)
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits[0, context.shape[1] - 1 :].double()
        targets = tokens[0, context.shape[1] :]
        log_probs = logits.log_softmax(-1).gather(1, targets[:, None])
        results.append((log_probs.sum().item(), torch.equal(logits.argmax(-1), targets)))
    return results


def test_the_harness_scores_what_the_model_says(smollm2: Path, score: Callable, tmp_path: Path) -> None:
    """Log likelihoods agree to the rounding of fp32.

    The harness gives the model the same tokens, so that the logits are the same; it takes their log softmax and sum in
    fp32. For each of at most 5 tokens, the sum over a vocabulary of 49152, in at least 8 partial sums, is wrong by a
    factor of less than 1 + 6144 * 2**-24, which makes 3.7e-4 in its logarithm; all other roundings, of magnitudes
    below 64, make less than 1e-4 together. Between int8 and fp32 the difference is larger.
    """
    model = llmint8.from_pretrained(smollm2, dtype=torch.float32)
    expected = direct(model, AutoTokenizer.from_pretrained(smollm2))
    assert [greedy for _, greedy in expected] == [True, False]
    scores = score(model)
    assert [greedy for _, greedy in scores] == [True, False]
    assert [value for value, _ in scores] == pytest.approx([value for value, _ in expected], rel=0, abs=2e-3)
    in_fp32 = score(llmint8.from_pretrained(smollm2, load_in_8bit=False, dtype=torch.float32))
    assert all(abs(ours[0] - theirs[0]) > 4e-3 for ours, theirs in zip(scores, in_fp32, strict=True))

    model.save_pretrained(tmp_path / "int8")  # by its folder, as the command line of the harness has it
    assert score(str(tmp_path / "int8")) == scores
