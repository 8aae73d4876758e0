"""Heads that share their weight with an embedding, and get an int8 weight of their own where one is asked for."""

from collections.abc import Callable, Iterator

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from llmint8.config import Int8Config, matches
from llmint8.nn import Int8Linear
from llmint8.nn.forms import int8_form, is_int8
from llmint8.quantize import replace_module


def quantize_tied_heads(
    model: PreTrainedModel, config: Int8Config, make: Callable[[str, nn.Module, type[Int8Linear]], Int8Linear]
) -> None:
    """Replaces the layers in `include_modules` that are tied to an embedding by int8 ones, in place.

    Args:
        model: With its weights tied.
        config: Settings.
        make: Returns the int8 layer, given the name, the float layer and the class of its int8 form. What it needs of
            the model it finds as it was before that layer was replaced.
    """
    for name, layer in tied_layers(model):
        if (form := int8_form(layer)) is not None and matches(name, config.include_modules):
            replace_module(model, name, make(name, layer, form))


def untie_int8_heads(model: PreTrainedModel) -> None:
    """Forgets that a head was tied to an embedding once it has an int8 weight of its own.

    `config.tie_word_embeddings` stays, since other weights may be tied by it; when the checkpoint is loaded again, the
    scale in it tells that the head has its own weight.
    """
    for name, layer in tied_layers(model):
        if is_int8(layer):
            del model.all_tied_weights_keys[f"{name}.weight"]


def tied_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yields the layers whose weight is that of another, with their names."""
    for key in list(getattr(model, "all_tied_weights_keys", None) or {}):
        name, _, leaf = key.rpartition(".")
        if leaf == "weight":
            yield name, model.get_submodule(name)
