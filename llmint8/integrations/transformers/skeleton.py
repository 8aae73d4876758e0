"""Models on the meta device, as they would be once loaded: shapes and dtypes, no data."""

import copy
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter
from transformers.core_model_loading import build_glob_alternation
from transformers.initialization import no_tie_weights
from transformers.modeling_utils import PreTrainedModel

from llmint8.integrations.transformers.fused import fuse
from llmint8.integrations.transformers.quantizer import Int8HfQuantizer
from llmint8.integrations.transformers.tied_heads import quantize_tied_heads
from llmint8.loading import model_class_of

if TYPE_CHECKING:  # at run time it would import this module again
    from llmint8.checkpoints.source import Source


def skeleton(
    source: "Source", quantize: bool, auto_class: type | str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Builds a model as `from_pretrained` would, without its weights.

    Args:
        source: The model.
        quantize: Whether it is loaded in 8 bit.
        auto_class: As in `from_pretrained`.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        The model in evaluation mode, on the meta device, with the shapes and dtypes that its tensors will have.

    Raises:
        ValueError: No class is known for the model, or there is nothing to quantize.
    """
    quantizer = Int8HfQuantizer(source.settings, pre_quantized=source.is_int8) if quantize else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experts, which are listed among what stays as it is
        model = empty_model(source, quantizer, auto_class, trust_remote_code)
    model.tie_weights(recompute_mapping=False)
    if quantize:
        if not source.is_int8:
            settings = source.settings
            quantize_tied_heads(
                model, settings, lambda name, layer, form: form.empty_like(layer, settings.for_layer(name))
            )
        fuse(model)
    return model.eval()


def empty_model(
    source: "Source",
    quantizer: Int8HfQuantizer | None,
    auto_class: type | str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Builds a model as it is right before `from_pretrained` reads its weights, which are not tied yet.

    Args:
        source: The model.
        quantizer: Puts int8 layers where loading would, by the same code; None for a model that is not quantized.
        auto_class: As in `from_pretrained`.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        The model on the meta device.

    Raises:
        ValueError: No class is known for the model, or there is nothing to quantize.
    """
    model_class = model_class_of(auto_class, source.config)
    config = copy.deepcopy(source.config)
    mapping = getattr(model_class, "_model_mapping", None)
    remote = trust_remote_code and model_class.__name__ in (getattr(config, "auto_map", None) or {})
    if mapping is not None and type(config) not in mapping and not remote:
        raise ValueError(f"{model_class.__name__} knows no model of type {config.model_type!r}")
    with ExitStack() as stack:
        stack.enter_context(no_tie_weights())  # as when it is loaded, where every tensor is still to be seen
        stack.enter_context(torch.device("meta"))
        if issubclass(model_class, PreTrainedModel):
            model = model_class._from_config(config, dtype=source.dtype)
        else:
            model = model_class.from_config(config, dtype=source.dtype, trust_remote_code=trust_remote_code)
        if quantizer is not None:
            files = list(map(str, source.files))
            quantizer.preprocess_model(model=model, dtype=source.dtype, checkpoint_files=files)
    _cast_what_stays_in_fp32(model, source.dtype)
    return model


def _cast_what_stays_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives the tensors that the model wants in fp32 that dtype, by the rules of transformers' loading."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    pattern, names, _ = build_glob_alternation(list(plan))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point() or not (match := pattern.search(name)):
            continue
        owner_name, _, leaf = name.rpartition(".")
        owner, cast = model.get_submodule(owner_name), tensor.detach().to(plan[names[match.lastgroup]])
        if isinstance(tensor, Parameter):
            setattr(owner, leaf, Parameter(cast, requires_grad=tensor.requires_grad))
        else:
            owner.register_buffer(leaf, cast)
