"""A cache that grows in place shows what one that is copied at every token shows, whatever is done to it."""

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache

from llmint8.integrations.transformers import kv_cache

SHAPE = (2, 3, 1, 4)


def tokens(seed: int, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, count, 4)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def pair() -> tuple[DynamicCache, DynamicCache]:
    """Ours and transformers', with the same prompt."""
    caches = DynamicCache(), DynamicCache()
    for cache in caches:
        cache.update(*tokens(0, 5), 0)
    return caches


def add(caches: tuple[DynamicCache, DynamicCache], seed: int, count: int = 1) -> None:
    ours, theirs = caches
    results = kv_cache.update(ours, *tokens(seed, count), 0, {}), theirs.update(*tokens(seed, count), 0)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert ours.get_seq_length() == theirs.get_seq_length()


def test_it_grows_without_moving_and_moves_when_it_is_full() -> None:
    caches = pair()
    add(caches, 1)
    first = caches[0].layers[0].keys.data_ptr()
    addresses = set()
    for seed in range(2, 400):
        add(caches, seed, 1 + seed % 3)
        addresses.add(caches[0].layers[0].keys.data_ptr())
    assert first in addresses
    assert 1 < len(addresses) < 8


def test_the_first_tokens_are_left_to_transformers() -> None:
    cache = DynamicCache()
    keys, _ = kv_cache.update(cache, *tokens(0, 5), 1, {})
    assert torch.equal(keys, tokens(0, 5)[0])
    assert len(cache.layers) == 2


def test_a_cache_that_was_cut_overwrites_nothing() -> None:
    caches = pair()
    for seed in (1, 2, 3):
        add(caches, seed)
    before, kept = caches[0].layers[0].keys, caches[0].layers[0].keys.clone()
    for cache in caches:
        cache.crop(-2)
    for seed in (4, 5, 6):
        add(caches, seed)
    assert torch.equal(before, kept)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_copies_go_their_own_ways(how: object) -> None:
    caches = pair()
    add(caches, 1)
    branches = pair()
    for branch, cache in zip(branches, caches, strict=True):
        branch.layers = [how(layer) for layer in cache.layers]  # type: ignore[operator]
    for seed in (2, 3):
        add(caches, seed)
        add(branches, 10 + seed)
        add(caches, 20 + seed)
    assert torch.equal(caches[0].layers[0].values, caches[1].layers[0].values)


def test_caches_made_of_the_same_tensors_go_their_own_ways() -> None:
    caches = pair()
    add(caches, 1)
    branches = []
    for _ in range(2):
        ours, theirs = DynamicCache(), DynamicCache()
        for branch, cache in ((ours, caches[0]), (theirs, caches[1])):
            branch.update(cache.layers[0].keys, cache.layers[0].values, 0)
            branch.layers[0].keys, branch.layers[0].values = cache.layers[0].keys, cache.layers[0].values
        branches.append((ours, theirs))
    for seed in (2, 3, 4):
        for i, branch in enumerate((*branches, caches)):
            add(branch, 10 * i + seed)


def test_beams_may_be_reordered_repeated_and_selected() -> None:
    caches = pair()
    add(caches, 1)
    for seed, change in enumerate(
        (
            lambda c: c.reorder_cache(torch.tensor([1, 0])),
            lambda c: c.reorder_cache(torch.tensor([1, 1])),
            lambda c: c.batch_select_indices(torch.tensor([0, 1])),
            lambda c: c.reset() or c.update(*tokens(9, 4), 0),
        )
    ):
        for cache in caches:
            change(cache)
        add(caches, 30 + seed)
        add(caches, 40 + seed)


def test_a_cache_may_be_narrowed_and_expanded() -> None:
    for change in (lambda t: t[:1], lambda t: t[:1].expand(2, -1, -1, -1)):
        caches = pair()
        add(caches, 1)
        for cache in caches:
            layer = cache.layers[0]
            layer.keys, layer.values = change(layer.keys), change(layer.values)
        batch = caches[0].layers[0].keys.shape[0]
        for seed in (2, 3):
            keys, values = (t[:batch] for t in tokens(seed))
            results = kv_cache.update(caches[0], keys, values, 0, {}), caches[1].update(keys, values, 0)
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b)


def test_a_cache_made_in_inference_mode_is_continued_outside() -> None:
    with torch.inference_mode():
        caches = pair()
        add(caches, 1)
    with torch.no_grad():
        add(caches, 2)
        add(caches, 3)


def test_what_is_no_plain_cache_is_updated_by_transformers() -> None:
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=3, hidden_size=12)
    static = StaticCache(config, max_cache_len=8)
    kv_cache.update(static, *tokens(0, 5), 0, {})
    keys, _ = kv_cache.update(static, *tokens(1), 0, {})
    assert keys.shape[2] == 8
    assert kv_cache.room_for_one(static, 0, keys) is None
    assert kv_cache.room_for_one(DynamicCache(), 0, keys) is None
    sliding = DynamicCache(config=LlamaConfig(num_hidden_layers=1, sliding_window=4, layer_types=["sliding_attention"]))
    for seed in range(6):
        keys, _ = kv_cache.update(sliding, *tokens(seed), 0, {})
    assert keys.shape[2] == 4


def test_room_is_for_the_dtype_and_batch_of_the_cache() -> None:
    ours, _ = pair()
    assert kv_cache.room_for_one(ours, 0, torch.zeros(2, 1, 8)) is not None
    assert kv_cache.room_for_one(ours, 0, torch.zeros(3, 1, 8)) is None
    assert kv_cache.room_for_one(ours, 0, torch.zeros(2, 1, 8).half()) is None
