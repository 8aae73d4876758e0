import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmint8 import Int8Config


def test_default_is_a_relative_budget() -> None:
    config = Int8Config()
    assert (config.mode, config.budget, config.relative, config.symmetric) == ("budget", 1 / 8, True, False)
    assert config.threshold == 5.0
    assert Int8Config(mode="budget", relative=False).threshold == 0
    assert Int8Config.from_dict({"mode": "budget", "budget": 32, "threshold": None}).threshold == 0


def test_a_budget_is_a_number_or_a_share_of_the_columns() -> None:
    assert [Int8Config(budget=32).columns(k) for k in (8, 64)] == [8, 32]
    assert [Int8Config(budget=0.1).columns(k) for k in (8, 64)] == [1, 6]
    assert Int8Config(threshold=6.0).columns(64) == 0


def test_overrides_are_for_the_layers_that_they_name() -> None:
    config = Int8Config(
        symmetric=True,
        overrides={"mlp.down_proj": {"budget": 0.25}, "model.layers.[01].*": {"threshold": 3.0}, "h": {"mode": "none"}},
    )
    assert config.for_layer("model.layers.2.mlp.up_proj") == Int8Config(symmetric=True)
    assert config.for_layer("model.layers.2.mlp.down_proj") == Int8Config(symmetric=True, budget=0.25)
    assert config.for_layer("model.layers.1.mlp.down_proj") == Int8Config(symmetric=True, threshold=3.0)
    assert config.for_layer("h.0.mlp").mode == "none"
    assert hash(config) == hash(Int8Config.from_dict(json.loads(config.to_json_string())))


def test_a_threshold_alone_is_the_mode_of_the_paper() -> None:
    assert Int8Config(threshold=6.0) == Int8Config(mode="threshold")
    assert Int8Config(threshold=6.0).relative is False


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"threshold": -1.0}, ValueError, "greater than 0, got -1.0"),
        ({"threshold": 0.0}, ValueError, "mode='none'"),
        ({"threshold": float("nan")}, ValueError, "got nan"),
        ({"threshold": float("inf")}, ValueError, "finite"),
        ({"threshold": 10**400}, ValueError, "finite"),
        ({"budget": 2**70}, ValueError, "0 or more"),
        ({"threshold": "6"}, TypeError, "got '6'"),
        ({"threshold": True}, TypeError, "got True"),
        ({"budget": -3}, ValueError, "got -3"),
        ({"budget": 1.5}, ValueError, "share from 0 to below 1 of them, got 1.5"),
        ({"budget": "half"}, TypeError, "got 'half'"),
        ({"budget": float("nan")}, ValueError, "got nan"),
        ({"mode": "median"}, ValueError, "got 'median'"),
        ({"mode": "threshold", "budget": 8}, ValueError, "contradicts mode='threshold'"),
        ({"mode": "none", "budget": 8}, ValueError, "contradicts"),
        ({"mode": "none", "threshold": 6.0}, ValueError, "contradicts"),
        ({"mode": "budget", "threshold": -1.0}, ValueError, "0 or more, got -1.0"),
        ({"overrides": {"a": {"budget": -1}}}, ValueError, r"overrides\['a'\]: budget must be 0 or more"),
        ({"overrides": {"a": {"skip_modules": ["b"]}}}, ValueError, "'skip_modules'"),
        ({"overrides": {"a": {"mode": "none", "budget": 1}}}, ValueError, "contradicts"),
        ({"overrides": ["a"]}, TypeError, "must map patterns"),
        ({"overrides": {"a": 6.0}}, TypeError, "must map settings to values, got 6.0"),
        ({"mode": "static", "budget": -1}, ValueError, "got -1"),
        ({"symmetric": 1}, TypeError, "got 1"),
        ({"relative": "yes"}, TypeError, "got 'yes'"),
        ({"skip_modules": "lm_head"}, TypeError, "list of module names"),
        ({"include_modules": [3]}, TypeError, "got 3"),
        ({"skip_modules": ["a", "b"], "include_modules": ["b"]}, ValueError, r"\['b'\]"),
        ({"checkpoint_format": "gguf"}, ValueError, "got 'gguf'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Int8Config(**settings)


configs = st.builds(
    lambda kwargs, **common: Int8Config(**kwargs, **common),
    st.one_of(
        st.builds(lambda t: {"threshold": t}, st.floats(1e-6, 1e6)),
        st.builds(lambda b: {"budget": b}, st.integers(0, 10**6) | st.floats(0, 0.99)),
        st.builds(lambda b, t: {"budget": b, "threshold": t}, st.integers(0, 10**6), st.floats(0, 10)),
        st.just({"mode": "none"}),
        st.builds(lambda b: {"mode": "static", "budget": b}, st.integers(0, 10**6)),
    ),
    relative=st.sampled_from([None, True, False]),
    symmetric=st.booleans(),
    skip_modules=st.lists(st.sampled_from(["lm_head", "q_proj"])),
    overrides=st.dictionaries(st.sampled_from(["a", "b.*"]), st.sampled_from([{"budget": 3}, {"symmetric": True}])),
    checkpoint_format=st.sampled_from(["llmint8", "bitsandbytes"]),
)


@given(configs)
def test_json_pickle_and_copy_round_trips(config: Int8Config) -> None:
    assert Int8Config.from_dict(json.loads(config.to_json_string())) == config
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert Int8Config.from_dict(config.to_dict(), return_unused_kwargs=True) == (config, {})


def test_json_has_none_of_the_keys_that_transformers_takes_for_bitsandbytes() -> None:
    assert not {"load_in_8bit", "load_in_4bit"} & Int8Config().to_dict().keys()


def test_unknown_and_foreign_settings_are_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        Int8Config.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="'gptq'"):
        Int8Config.from_dict({"quant_method": "gptq"})


def test_replace_brings_the_mode_along() -> None:
    config = Int8Config(budget=64, symmetric=True)
    assert config.replace(threshold=3.0) == Int8Config(threshold=3.0, symmetric=True)
    assert config.replace(mode="threshold") == Int8Config(threshold=6.0, symmetric=True)
    assert config.replace(budget=8) == Int8Config(budget=8, symmetric=True)
    assert config.replace(budget=8, threshold=3.0) == Int8Config(budget=8, threshold=3.0, symmetric=True)
    assert config.replace(mode="budget", threshold=3.0).budget == 64
    assert Int8Config(threshold=6.0).replace(budget=8) == Int8Config(budget=8)
    assert config.replace(symmetric=False) == Int8Config(budget=64)
    assert Int8Config(threshold=6.0).replace(threshold=6.0) == Int8Config(threshold=6.0)
    with pytest.raises(ValueError, match="contradicts"):
        config.replace(mode="threshold", budget=8)


def test_replace_keeps_what_does_not_depend_on_the_change() -> None:
    assert Int8Config(threshold=3.0, relative=True).replace(threshold=4.0) == Int8Config(threshold=4.0, relative=True)
    assert Int8Config(budget=8, relative=False).replace(budget=16) == Int8Config(budget=16, relative=False)
    assert Int8Config(budget=8).replace(mode="budget") == Int8Config(budget=8)
    assert Int8Config(mode="static").replace(budget=8) == Int8Config(budget=8)
    assert Int8Config(budget=8, relative=False).replace(threshold=2.0, relative=True).relative


def test_numbers_of_numpy() -> None:
    config = Int8Config(threshold=np.float32(3.0))
    assert type(config.threshold) is float
    assert type(Int8Config(budget=np.int64(8)).budget) is int
    json.dumps(Int8Config(overrides={"a": {"budget": np.int64(8)}}).to_dict())
