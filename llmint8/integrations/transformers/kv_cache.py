"""A cache of keys and values that grows in place.

transformers copies the whole cache at every token. Here it lies in a buffer with room for more, and only what is new is
copied. The tensors that a cache shows are views of the beginning of the buffer; nothing that any such view can see is
overwritten when tokens are added, so copies of a cache and caches that were cut shorter go their own ways.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


@dataclass
class Room:
    """The buffer of a layer's keys and values, [batch, heads, capacity, depth], of which `used` tokens are written."""

    keys: Tensor
    values: Tensor
    used: int
    owner: int  # the identity of the layer: a copy of it makes a buffer of its own

    def show_one_more(self, layer: Any) -> None:
        """Counts a token that was written behind the others, and shows it in the layer."""
        self.used += 1
        layer.keys, layer.values = self.keys[:, :, : self.used], self.values[:, :, : self.used]


def room_for_one(cache: Any, index: int, like: Tensor) -> Room | None:
    """Returns the buffer of a layer, with room for one more token; None if the cache is of another kind, or empty.

    Args:
        cache: A cache of transformers.
        index: Number of the layer.
        like: [batch, ...], whose batch and dtype the cache must have.
    """
    layer = _plain_layer(cache, index)
    if layer is None or layer.keys.dim() != 4 or layer.keys.dtype != like.dtype or layer.keys.shape[0] != like.shape[0]:
        return None
    return _room(layer, 1)


def update(cache: Any, keys: Tensor, values: Tensor, index: int, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Adds the keys and values of new tokens to a cache, as `cache.update` does.

    Args:
        cache: A cache of transformers.
        keys: [batch, heads, M, depth].
        values: As `keys`.
        index: Number of the layer.
        kwargs: For `cache.update`, which adds to caches of other kinds.

    Returns:
        All keys and values of the layer, [batch, heads, S, depth].
    """
    layer = _plain_layer(cache, index)
    if layer is not None and _fits(layer.keys, keys):
        return _append(layer, keys, values)
    return cache.update(keys, values, index, kwargs=kwargs)


def _plain_layer(cache: Any, index: int) -> Any | None:
    """A layer of a cache that keeps all tokens, and has some."""
    if type(cache) is not DynamicCache or cache.offloading or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    return layer if type(layer) is DynamicLayer and layer.is_initialized else None


def _fits(old: Tensor, new: Tensor) -> bool:
    return (
        old.dim() == 4
        and old.dtype == new.dtype
        and old.device == new.device
        and old.shape[:2] == new.shape[:2]
        and old.shape[3] == new.shape[3]
    )


def _append(layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    room = _room(layer, keys.shape[2])
    after = room.used + keys.shape[2]
    room.keys[:, :, room.used : after] = keys
    room.values[:, :, room.used : after] = values
    room.used = after
    layer.keys, layer.values = room.keys[:, :, :after], room.values[:, :, :after]
    return layer.keys, layer.values


def _room(layer: Any, more: int) -> Room:
    """The buffer that a layer's tokens lie in, with room for more; a new one if there is none."""
    before = layer.keys.shape[2]
    room: Room | None = layer.__dict__.get("_llmint8_room")
    if (
        room is None
        or room.owner != id(layer)
        or room.used != before  # the cache was cut
        or room.keys.shape[2] < before + more
        or not _begins(room.keys, layer.keys)
        or not _begins(room.values, layer.values)
        or (room.keys.is_inference() and not torch.is_inference_mode_enabled())  # such a tensor cannot be changed
    ):
        keys, values = (_with_room(tensor, before + more) for tensor in (layer.keys, layer.values))
        room = layer._llmint8_room = Room(keys, values, before, id(layer))
    return room


def _begins(buffer: Tensor, view: Tensor) -> bool:
    """Whether a view is of the first tokens of a buffer, in all of its sequences and heads."""
    return (
        buffer.data_ptr() == view.data_ptr() and buffer.shape[:2] == view.shape[:2] and buffer.stride() == view.stride()
    )


def _with_room(old: Tensor, length: int) -> Tensor:
    """A copy with room for half as many more tokens, and 128 at least."""
    batch, heads, before, depth = old.shape
    buffer = torch.empty(batch, heads, length + max(128, length // 2), depth, dtype=old.dtype, device=old.device)
    buffer[:, :, :before] = old
    return buffer
