"""One decoding step of several sequences of different lengths, each with a cache of its own; or a piece of a prompt.

The rows of a batch share everything but attention: a layer adds each row's key and value to that row's cache, and each
row attends to its own tokens. Nothing is padded, and a sequence can come and go between any two steps.

A piece of a prompt is such a batch of one row with several tokens, each of which sees those before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from llmint8 import ops
from llmint8.integrations.patches import RAGGED_ATTENTION
from llmint8.integrations.transformers import attention as native_attention
from llmint8.integrations.transformers import kv_cache


class RaggedCache(Cache):
    """The caches of a batch's sequences, as the cache of the batch.

    `update` returns lists, [1, heads, S, depth] of each sequence, which the attention that `enable` registers takes.
    """

    def __init__(self, caches: Sequence[DynamicCache]) -> None:
        """Shows caches of one sequence each as one.

        Args:
            caches: The cache of each row; all have a token already, and get others only from here as long as this is
                used.
        """
        super().__init__(layers=[])
        self.caches = caches
        self._rooms: dict[int, list[kv_cache.Room]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Adds a token to each sequence, or several to a single one.

        Args:
            key_states: [B, heads, 1, depth], or [1, heads, M, depth].
            value_states: As `key_states`.
            layer_idx: Number of the layer.
            *args: Passed on.
            **kwargs: Passed on.

        Returns:
            The keys and the values of each sequence, [1, heads, S, depth].
        """
        if key_states.shape[2] > 1:
            (cache,) = self.caches
            all_keys, all_values = kv_cache.update(cache, key_states, value_states, layer_idx, kwargs)
            return [all_keys], [all_values]
        rooms = self._rooms_of(layer_idx, key_states)
        if rooms is None:  # a layer that does not keep all tokens
            rows = zip(self.caches, key_states.split(1), value_states.split(1), strict=True)
            found = [cache.update(key, value, layer_idx) for cache, key, value in rows]
            return [keys for keys, _ in found], [values for _, values in found]
        new, places, keys, values = (*key_states.split(1), *value_states.split(1)), [], [], []
        for cache, room in zip(self.caches, rooms, strict=True):
            places.append(room.keys.narrow(2, room.used, 1))
            layer = cache.layers[layer_idx]
            room.show_one_more(layer)
            keys.append(layer.keys)
            values.append(layer.values)
        places += [room.values.narrow(2, room.used - 1, 1) for room in rooms]
        torch._foreach_copy_(places, new)  # one call: each takes as long as the attention of a row
        return keys, values

    def _rooms_of(self, index: int, like: Tensor) -> list[kv_cache.Room] | None:
        """The buffers of a layer, with room for a token; looked for once and when one is full."""
        rooms = self._rooms.get(index)
        if rooms is None or any(room.used == room.keys.shape[2] for room in rooms):
            found = [kv_cache.room_for_one(cache, index, like[:1]) for cache in self.caches]
            rooms = [room for room in found if room is not None]
            if len(rooms) != len(found):
                return None
            self._rooms[index] = rooms
        return rooms

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the length of the longest sequence; rows have positions of their own."""
        return max(cache.get_seq_length(layer_idx) for cache in self.caches)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns sizes with which no mask is made: attention knows what a row of these caches sees."""
        return query_length, 0


def save(cache: DynamicCache) -> list[dict[str, Any] | None]:
    """Returns what `restore` needs of the layers that do not keep all tokens.

    Args:
        cache: The cache of one sequence.
    """
    return [None if type(layer) is DynamicLayer else dict(vars(layer)) for layer in cache.layers]


def restore(cache: DynamicCache, saved: list[dict[str, Any] | None], length: int) -> None:
    """Takes back what a step has done before it failed.

    Args:
        cache: The cache of one sequence.
        saved: What `save` returned before the step.
        length: Tokens that there were.
    """
    for layer, state in zip(cache.layers, saved, strict=True):
        if state is not None:
            vars(layer).clear()
            vars(layer).update(state)
        else:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def enable() -> None:
    """Has transformers' SDPA attention take the lists of a `RaggedCache`; all else reaches it as before."""
    RAGGED_ATTENTION.install()


def taking_lists(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an attention so that it takes the lists of a `RaggedCache`, too.

    Args:
        attention: What transformers calls for SDPA.
    """

    def sdpa(
        module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(key, list):
            return attention(module, query, key, value, attention_mask, *args, **kwargs)
        rows = zip(query.split(1), key, value, strict=True)
        scale, pieces = kwargs.get("scaling"), query.shape[2] > 1
        if pieces and attention_mask is not None:
            raise ValueError("the model has a mask of its own, which pieces of a prompt would not heed")
        if scale is None or args or not _is_native(module, query, key[0], value[0], kwargs):
            mask = ops.causal_mask(query, key[0].shape[2]) if pieces else None
            return torch.cat([attention(module, *row, mask, *args, **kwargs)[0] for row in rows]), None
        return torch.cat([ops.attention(*row, scale, pieces) for row in rows]), None

    sdpa.uses_native_kernel = getattr(attention, "uses_native_kernel", False)  # type: ignore[attr-defined]
    return sdpa


def _is_native(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
    """Whether our kernel would be chosen for each of the rows: asked once, and not for each."""
    return (
        ops.is_on_cpu(query)
        and not options.get("dropout")
        and native_attention.has_int8_projection(module)
        and not native_attention.needs_more(query, key, value, options)
    )


def can_batch(model: nn.Module) -> bool:
    """Whether sequences of a model might be decoded together: it attends with SDPA to a cache of keys and values.

    What a model does with its cache besides, only trying it tells: `probe.find_fault`.

    Args:
        model: A transformers model.
    """
    config: Any = model.config
    if config._attn_implementation != "sdpa" or getattr(model, "_is_stateful", False):
        return False
    if any("dynamic" in kind or kind == "longrope" for kind in _rope_types(model)):
        return False  # their frequencies are those of the longest sequence, for all of a batch
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if "chunked_attention" in kinds if kinds else getattr(text, "attention_chunk_size", None) is not None:
        return False  # such a mask begins anew in the middle of a sequence, and here is none
    return _has_layers(text, DynamicLayer, DynamicSlidingWindowLayer)


def _rope_types(model: nn.Module) -> set[str]:
    """The kinds of rotary embeddings in a model; some have one for each kind of layer."""
    found = [getattr(module, "rope_type", None) for module in model.modules()]
    return {kind for each in found for kind in (each.values() if isinstance(each, dict) else [each]) if kind}


def can_read_pieces(model: nn.Module) -> bool:
    """Whether prompts of a model that can be batched might be read in pieces: all its layers keep all tokens.

    Args:
        model: A transformers model.
    """
    config: Any = model.config
    return _has_layers(config.get_text_config(decoder=True), DynamicLayer)


def _has_layers(config: Any, *kinds: type) -> bool:
    return all(type(layer) in kinds for layer in DynamicCache(config=config).layers)
