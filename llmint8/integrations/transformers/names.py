"""Names of tensors: in a checkpoint, and in the model that is loaded from it."""

from collections.abc import Iterable

from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import PreTrainedModel


def names_in_model(model: PreTrainedModel, tensors: Iterable[str]) -> dict[str, list[str]]:
    """Returns, for each tensor of a checkpoint, the parameters of the model that are made from it.

    Args:
        model: The model, also on the meta device.
        tensors: Names in the checkpoint.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    expected = model.state_dict()
    names = {}
    for key in tensors:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
        made = [name]
        if pattern is not None:
            patterns = next(c.target_patterns for c in converters if pattern in c.source_patterns)
            made = [name.replace(patterns[0], target) for target in patterns]
        names[key] = [name for name in made if name in expected]
    return names
