"""Checkpoints of bitsandbytes' LLM.int8(): read and written without bitsandbytes.

A layer is stored as `weight` (int8 [N, K]), `SCB` (fp32 [N], the absmax of each row) and `weight_format` (uint8, 0 for
row by row); `config.json` says `quant_method: bitsandbytes, load_in_8bit: true`.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmint8.checkpoints.formats.base import Format

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from llmint8.config import Int8Config

QUANT_METHOD = "bitsandbytes"
OUR_SETTINGS = "llmint8"  # key of settings that bitsandbytes does not know


class BitsandbytesFormat(Format):
    """The format of bitsandbytes' LLM.int8()."""

    name = "bitsandbytes"
    quant_method = QUANT_METHOD
    scale_names = ("SCB", "weight_format")
    scale_is_column = False
    lists_float_layers = True

    def from_config(self, stored: Mapping[str, Any]) -> "Int8Config":
        """`config_from_bitsandbytes`."""
        return config_from_bitsandbytes(stored)

    def to_config(self, config: "Int8Config") -> dict[str, Any]:
        """`config_to_bitsandbytes`."""
        return config_to_bitsandbytes(config)

    def read_scale(self, tensors: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns absmax / 127.

        Raises:
            ValueError: The weight is not stored row by row but in one of the tiled formats of old versions.
        """
        layout = tensors.get("weight_format")
        if layout is not None and int(layout) != 0:
            raise ValueError(f"weight_format must be 0 (row), got {int(layout)}; save it again with bitsandbytes 0.45+")
        return tensors["SCB"].float()[:, None] / 127

    def write_scale(self, scale: "Tensor") -> dict[str, "Tensor"]:
        """Returns the row absmax and the code of the row layout."""
        import torch

        return {"SCB": _absmax(scale[:, 0]), "weight_format": torch.tensor(0, dtype=torch.uint8)}


def config_from_bitsandbytes(settings: Mapping[str, Any]) -> "Int8Config":
    """Returns the settings that compute what bitsandbytes computes: its threshold, symmetric activations.

    Args:
        settings: The `quantization_config` entry of a checkpoint that bitsandbytes saved, or
            `BitsAndBytesConfig.to_dict()`.

    Raises:
        ValueError: It is not an 8-bit one.
    """
    from llmint8.config import Int8Config

    if not settings.get("load_in_8bit"):
        raise ValueError(
            f"only 8-bit checkpoints of bitsandbytes can be loaded, got load_in_8bit={settings.get('load_in_8bit')} "
            f"and load_in_4bit={settings.get('load_in_4bit')}"
        )
    threshold = float(settings.get("llm_int8_threshold", 6.0))
    config = Int8Config(
        mode="threshold" if threshold > 0 else "none",
        threshold=threshold if threshold > 0 else None,
        symmetric=True,
        skip_modules=tuple(settings.get("llm_int8_skip_modules") or ()),
        checkpoint_format="bitsandbytes",
    )
    return config.replace(**settings.get(OUR_SETTINGS, {}))


def config_to_bitsandbytes(config: "Int8Config") -> dict[str, Any]:
    """Returns the `quantization_config` entry that makes bitsandbytes load a checkpoint of ours.

    Args:
        config: Settings; a budget or a relative score, which bitsandbytes does not know, becomes its default of 6.0.
            Such settings are kept beside, for us.
    """
    plain = config.mode == "threshold" and not config.relative
    entry = {
        "quant_method": QUANT_METHOD,
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": config.threshold if plain else 0.0 if config.mode == "none" else 6.0,
        "llm_int8_skip_modules": list(config.skip_modules) or None,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }
    overrides = [pair for pair in config.to_dict()["overrides"] if pair[1].get("mode") != "static"]
    ours = {**config.runtime_settings(), "overrides": overrides}
    restored = config_from_bitsandbytes(entry)
    if config.mode != "static" and restored.replace(**ours) != restored:  # static columns are not written
        entry[OUR_SETTINGS] = ours
    return entry


def save_bitsandbytes(model: "PreTrainedModel", save_directory: str | os.PathLike, **kwargs: Any) -> None:
    """Saves an int8 model as a checkpoint that transformers loads with bitsandbytes.

    Args:
        model: An int8 transformers model; its own settings and later saves are not changed.
        save_directory: Folder to write.
        **kwargs: As for `save_pretrained`.

    Raises:
        ValueError: The model has no int8 layers, or one with a `column_scale`.
    """
    from llmint8.integrations.transformers.saved_state import prepare_for_saving
    from llmint8.nn.forms import int8_form
    from llmint8.quantize import int8_layers

    layers = dict(int8_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no int8 layers; load it with load_in_8bit=True first")
    if scaled := [name for name, layer in layers.items() if layer.column_scale is not None]:
        raise ValueError(
            f"{scaled[0]} has a column_scale ({len(scaled)} layers do), which bitsandbytes does not know; load the "
            "16-bit checkpoint with quantization_config=Int8Config(checkpoint_format='bitsandbytes')"
        )
    prepare_for_saving(model, getattr(model, "hf_quantizer", None))
    quantizer, config = model.hf_quantizer, model.hf_quantizer.quantization_config
    # bitsandbytes decides by this list which layers are int8, with defaults of its own if it is empty.
    kept = [name for name, module in model.named_modules() if int8_form(module) is not None]
    changed = config.replace(checkpoint_format="bitsandbytes", skip_modules=kept, include_modules=())
    ignored = model._keys_to_ignore_on_save
    try:
        model._keys_to_ignore_on_save = {*(ignored or ()), *(f"{name}.outlier_columns" for name in layers)}
        quantizer.quantization_config = model.config.quantization_config = changed
        prepare_for_saving(model, quantizer)
        model.save_pretrained(save_directory, **kwargs)
    finally:
        model._keys_to_ignore_on_save = ignored
        quantizer.quantization_config = model.config.quantization_config = config
        prepare_for_saving(model, quantizer)


def _absmax(scale: "Tensor") -> "Tensor":
    """The row absmax that a scale was made from: `absmax / 127` is the scale again, bit for bit.

    An fp32 product can miss the absmax by its last bit. One of 16-bit weights has at most 11 significant bits, so
    where the product rounded to 12 bits gives the scale too, that is the one.
    """
    import torch

    absmax = scale.float() * 127
    short = ((absmax.view(torch.int32) + 0x800) & ~0xFFF).view(torch.float32)
    return torch.where(short / 127 == scale, short, absmax)
