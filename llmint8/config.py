"""What is quantized and how: the settings of LLM.int8(), validated, and the JSON that a checkpoint keeps of them."""

import dataclasses
import json
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

OutlierMode = Literal["threshold", "budget", "static", "none"]
CheckpointFormat = Literal["llmint8", "bitsandbytes"]
DEFAULT_THRESHOLD = 6.0  # section 3.2 of the paper
DEFAULT_BUDGET = 32
_LARGEST = 1 << 62  # what an operator can take


@dataclass(frozen=True)
class Int8Config:
    """Settings of an int8 model (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339).

    The runtime settings may be changed on a checkpoint that is already int8; `skip_modules` and `include_modules`
    act when the weights are quantized.

    Attributes:
        mode: How the outlier columns of an input are chosen. `"threshold"`: every column with a score of at least
            `threshold` (section 3 of the paper). `"budget"`: the `budget` columns with the largest score, a fixed
            shape. `"static"`: `budget` columns that `llmint8.calibrate` found once, nothing to search at run time.
            `"none"`: no column, plain vector-wise int8. Default: what the next two say, else `"budget"`. Runtime, but
            only a calibrated checkpoint can be static.
        threshold: Smallest score of an outlier column, only in mode `"threshold"`. Default 6.0, the paper's, which
            is a magnitude (`relative=False`). Runtime.
        budget: Number of outlier columns, only in modes `"budget"` and `"static"`; all columns of a layer that has
            fewer. Default 32. Runtime, but fixed by calibration in mode `"static"`.
        relative: Scores a feature by its magnitude over the root mean square of its row (token), which does not
            depend on the scale of the layer's input, or by the magnitude itself. Default: True where there is a
            budget, else False. Runtime.
        symmetric: Quantizes activations by absmax; otherwise with a zero point over the full range. Runtime.
        skip_modules: Modules to keep in 16 bit besides the default ones: full names, or trailing or leading parts
            of names (`"lm_head"`, `"mlp.down_proj"`, `"model.layers.0"`).
        include_modules: Modules to quantize although the default keeps them in 16 bit (output heads, modules that
            the model wants in fp32): names as in `skip_modules`. A tied head is untied and quantized.
        checkpoint_format: Tensor names and `config.json` entry of the checkpoint: our own or those of bitsandbytes.
    """

    mode: OutlierMode | None = None
    threshold: float | None = None
    budget: int | None = None
    relative: bool | None = None
    symmetric: bool = False
    skip_modules: tuple[str, ...] = ()
    include_modules: tuple[str, ...] = ()
    checkpoint_format: CheckpointFormat = "llmint8"

    quant_method: ClassVar[str] = "llmint8"
    RUNTIME_SETTINGS: ClassVar[tuple[str, ...]] = ("mode", "threshold", "budget", "relative", "symmetric")

    def __post_init__(self) -> None:
        """Checks every value and fills in the defaults that depend on the mode.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range, or two contradict each other.
        """
        self._fill("mode", "budget" if self.threshold is None else "threshold")
        _check_choice("mode", self.mode, get_args(OutlierMode))
        _check_choice("checkpoint_format", self.checkpoint_format, get_args(CheckpointFormat))
        for name, value, modes in (
            ("threshold", self.threshold, ("threshold",)),
            ("budget", self.budget, ("budget", "static")),
        ):
            if value is not None and self.mode not in modes:
                raise ValueError(f"{name}={value!r} contradicts mode={self.mode!r}; give only one of them")
        if self.mode == "threshold":
            self._fill("threshold", DEFAULT_THRESHOLD)
            object.__setattr__(self, "threshold", _checked_threshold(self.threshold))
        elif self.mode != "none":
            self._fill("budget", DEFAULT_BUDGET)
            object.__setattr__(self, "budget", _checked_budget(self.budget))
        self._fill("relative", self.budget is not None)
        for name in ("relative", "symmetric"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("skip_modules", "include_modules"):
            object.__setattr__(self, name, _module_names(name, getattr(self, name)))
        if both := sorted(set(self.skip_modules) & set(self.include_modules)):
            raise ValueError(f"skip_modules and include_modules both name {both}; remove them from one")

    def _fill(self, name: str, default: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some settings changed.

        A changed `threshold` or `budget` brings its mode with it, and a changed mode its own defaults.

        Args:
            **changes: Fields of this class and their new values.

        Raises:
            TypeError: A name is not a field, or a value has the wrong type.
            ValueError: A value is out of range, or two contradict each other.
        """
        mode = changes.get("mode")
        if mode is None and changes.get("threshold") is not None:
            mode = "threshold"
        elif mode is None and changes.get("budget") not in (None, self.budget):
            mode = "budget"
        if mode is not None and mode != self.mode:
            changes = {**dict.fromkeys(("threshold", "budget", "relative")), **changes, "mode": mode}
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """Reads the `quantization_config` entry of a `config.json`.

        Args:
            settings: The entry, as written by `to_dict`.
            return_unused_kwargs: Also returns an empty dict, as transformers' own classes do.
            **changes: Fields to change.

        Returns:
            The configuration, or a pair of it and `{}`.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A key is unknown, `quant_method` is another one, or a value is out of range.
        """
        settings = dict(settings)
        method = settings.pop("quant_method", cls.quant_method)
        if method != cls.quant_method:
            raise ValueError(f"quant_method must be {cls.quant_method!r}, got {method!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"unknown settings {unknown} (of a newer llmint8?); known are {sorted(known)}")
        config = cls(**settings, **changes)
        return (config, {}) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON values, for the `quantization_config` entry of a `config.json`."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["skip_modules"] = list(self.skip_modules)
        settings["include_modules"] = list(self.include_modules)
        return {"quant_method": self.quant_method, **settings}

    def to_diff_dict(self) -> dict[str, Any]:
        """Same as `to_dict`: every setting is written, so that new defaults do not change old checkpoints."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns `to_dict` as indented JSON; `use_diff` is there for transformers and changes nothing."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def _checked_threshold(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"threshold must be a number, got {value!r}")
    if not 0 < value < _LARGEST:  # type: ignore[operator]
        raise ValueError(f"threshold must be finite and greater than 0, got {value}; mode='none' keeps no outliers")
    return float(value)


def _checked_budget(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"budget must be an int (a number of columns), got {value!r}")
    if not 0 <= int(value) < _LARGEST:
        raise ValueError(f"budget must be 0 or more columns, got {value}")
    return int(value)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _module_names(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        raise TypeError(f"{name} must be a list of module names, got {value!r}")
    if wrong := [item for item in value if not isinstance(item, str) or not item]:
        raise TypeError(f"{name} must hold module names, got {wrong[0]!r}")
    return tuple(sorted(value)) if isinstance(value, set | frozenset) else tuple(value)
