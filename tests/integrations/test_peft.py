"""LoRA adapters on an int8 model: its layers pass gradients to what comes before and beside them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import llmint8

pytestmark = pytest.mark.slow


def test_an_adapter_learns(make_checkpoint: Callable[..., Path]) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        llmint8.from_pretrained(make_checkpoint()), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    )
    tokens = torch.randint(0, 160, (4, 20))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert model.base_model.hf_quantizer.is_trainable
