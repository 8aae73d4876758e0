"""Threads are looked after during a pass, and restored after it."""

import time

import pytest
import torch
from torch import Tensor, nn

from llmint8.kernels.cpu import native
from llmint8.runtime import threads as thread_count

if not native.load():
    pytest.skip("there is no compiler for the native kernels", allow_module_level=True)


class Model(nn.Module):
    def forward(self, input_ids: Tensor, change: int = 0) -> int:
        if change < 0:
            torch.set_num_threads(1)
            raise RuntimeError("failed") if change == -1 else KeyboardInterrupt
        if change:  # as the kernels do when they notice that threads wait in vain
            torch.set_num_threads(change)
        return torch.get_num_threads()


@pytest.fixture
def threads() -> int:
    time.sleep(0.33)  # what the kernels have noticed of a busy machine in tests before is forgotten by then
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_threads_are_restored(threads: int) -> None:
    model = Model()
    thread_count.manage(model)
    token = torch.zeros(1, 1, dtype=torch.long)
    assert model(token, change=1) == 1
    assert torch.get_num_threads() == threads
    assert model(input_ids=token) == threads
    with pytest.raises(RuntimeError, match="failed"):
        model(token, change=-1)
    assert torch.get_num_threads() == threads
    outer = nn.Sequential(model)
    thread_count.manage(outer)
    assert outer(token) == threads


def test_threads_are_restored_after_an_interrupted_pass_when_the_model_runs_again(threads: int) -> None:
    model = Model()
    thread_count.manage(model)
    token = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(KeyboardInterrupt):
        model(token, change=-2)
    assert model(token) == threads
    assert torch.get_num_threads() == threads


def test_a_pass_over_many_tokens_is_left_alone(threads: int) -> None:
    model = Model()
    thread_count.manage(model)
    assert model(torch.zeros(1, 100, dtype=torch.long), change=2) == 2
    assert torch.get_num_threads() == 2


def test_threads_are_restored_after_a_generation(threads: int) -> None:
    model = Model()
    thread_count.manage(model)
    token = torch.zeros(1, 1, dtype=torch.long)
    with thread_count.generation():
        assert model(token, change=1) == 1
        with thread_count.generation():  # of an assistant
            assert model(token) == threads
        assert model(torch.zeros(1, 100, dtype=torch.long)) == threads
    assert torch.get_num_threads() == threads
    with pytest.raises(KeyboardInterrupt), thread_count.generation():
        model(token, change=-2)
    assert torch.get_num_threads() == threads
    assert model(token) == threads
