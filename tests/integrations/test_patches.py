"""Every change to other people's code can be made twice, undone, and made again."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

import llmint8
from llmint8.generation import ragged_batch
from llmint8.integrations import patches
from llmint8.integrations.patches import PATCHES, Patch, Replacement, install_all, remove_all
from llmint8.quantize import int8_layers

by_name = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)


def places() -> list[Any]:
    """What stands in all places that are changed."""
    return [
        AUTO_QUANTIZATION_CONFIG_MAPPING.get("llmint8"),
        AUTO_QUANTIZER_MAPPING.get("llmint8"),
        PreTrainedModel.save_pretrained,
        GenerationMixin.generate,
        AttentionInterface()["sdpa"],
        *sys.meta_path,
    ]


@pytest.fixture(autouse=True)
def _all_again() -> Iterator[None]:
    """Leaves the process as it was: other tests need the patches."""
    ragged = patches.RAGGED_ATTENTION._ours is not None
    yield
    remove_all()
    install_all()
    if ragged:
        ragged_batch.enable()


def works(model: PreTrainedModel, tmp_path: Path) -> bool:
    """Whether a model is saved, loaded again in 8 bit, and generates."""
    with torch.no_grad():
        llmint8.quantize_(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = loaded.generate(torch.ones(1, 4, dtype=torch.int64), max_new_tokens=2, do_sample=False)
    return any(int8_layers(loaded)) and tokens.shape == (1, 6)


@by_name
def test_is_installed_and_removed(
    patch: Patch, make_checkpoint: Callable[..., Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    remove_all()
    original = places()
    patch.install()
    changed = places()
    patch.install()
    assert all(new is old for new, old in zip(places(), changed, strict=True))
    assert sum(new is not old for new, old in zip(changed, original, strict=True)) == isinstance(patch, Replacement)
    for _ in range(2):
        patch.remove()
        assert all(new is old for new, old in zip(places(), original, strict=True))
    install_all()
    assert works(AutoModelForCausalLM.from_pretrained(make_checkpoint("llama")), tmp_path)
    assert not [w for w in recwarn if "stays" in str(w.message)]


@by_name
def test_says_what_it_is_for(patch: Patch) -> None:
    assert patch.why.endswith(".")
    assert sum(other.name == patch.name for other in PATCHES) == 1


def test_what_others_put_on_top_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    remove_all()
    (patch,) = (patch for patch in PATCHES if patch.name.endswith("generate"))
    original = GenerationMixin.generate
    patch.install()
    ours = GenerationMixin.generate

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    GenerationMixin.generate = theirs
    with pytest.warns(RuntimeWarning, match=r"generate' of llmint8 stays: .*theirs"):
        patch.remove()
    assert GenerationMixin.generate is theirs
    GenerationMixin.generate = ours
    patch.remove()
    assert GenerationMixin.generate is original


def test_the_attention_of_ragged_batches_lies_on_the_one_of_all_models() -> None:
    remove_all()
    install_all()
    plain = AttentionInterface()["sdpa"]
    ragged_batch.enable()
    ragged = AttentionInterface()["sdpa"]
    assert ragged is not plain
    install_all()  # the lower one is there, under the upper one
    assert AttentionInterface()["sdpa"] is ragged
    patches.RAGGED_ATTENTION.remove()
    assert AttentionInterface()["sdpa"] is plain


def test_a_patch_is_removed_with_one_that_lies_on_it() -> None:
    remove_all()
    original = AttentionInterface()["sdpa"]
    (plain,) = (patch for patch in PATCHES if patch.name == "transformers.AttentionInterface['sdpa']")
    plain.install()
    ragged_batch.enable()
    plain.remove()
    assert AttentionInterface()["sdpa"] is original
    assert patches.RAGGED_ATTENTION._ours is None


def test_finders_wait_until_they_are_removed() -> None:
    code = """
import sys, llmint8
from llmint8.integrations import patches
def waited_for():
    return sorted(f.name for f in sys.meta_path if type(f).__module__.startswith("llmint8"))
assert waited_for() == ["torch", "transformers.modeling_utils", "transformers.quantizers.auto"]
finders_patch = patches.PATCHES[0]
finders_patch.remove()
assert waited_for() == ["torch", "transformers.modeling_utils"]  # for our own operators and lists
import transformers.modeling_utils as u
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m
assert "llmint8" not in m and u.PreTrainedModel.save_pretrained.__code__.co_filename == u.__file__
finders_patch.install()
assert "llmint8" in m and u.PreTrainedModel.save_pretrained.__code__.co_filename != u.__file__
import torch
assert torch.ops.llmint8.rotate.default and len(llmint8.quantize.default_skips) == 1
patches.remove_all()
assert "llmint8" not in m and u.PreTrainedModel.save_pretrained.__code__.co_filename == u.__file__
print("done")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "done", run.stderr
