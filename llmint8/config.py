"""What is quantized and how: the settings of LLM.int8(), validated, and the JSON that a checkpoint keeps of them."""

import dataclasses
import fnmatch
import json
import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

if TYPE_CHECKING:
    from llmint8.checkpoints.formats import Format

from llmint8.outliers import OutlierMode, OutlierRule

# Settings of some layers, as a frozen mapping of mappings: (pattern, ((setting, value), ...)).
Overrides = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
PAPER_THRESHOLD = 6.0  # section 3.2 of the paper
# Measured on several architectures: benchmarks/README.md.
DEFAULT_BUDGET = 1 / 8
DEFAULT_RELATIVE_THRESHOLD = 5.0
# Lower, for a column that comes close in one text is often an outlier in another.
DEFAULT_STATIC_THRESHOLD = 3.5
_LARGEST = 1 << 62  # what an operator can take


@dataclass(frozen=True)
class Int8Config:
    """Settings of an int8 model (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339).

    The runtime settings may be changed on a checkpoint that is already int8; `skip_modules` and `include_modules`
    act when the weights are quantized.

    Attributes:
        mode: How the outlier columns of an input are chosen. `"threshold"`: every column with a score of at least
            `threshold` (section 3 of the paper). `"budget"`: those of them with the largest scores, at most `budget`:
            bounded cost, fixed shapes. `"static"`: columns that `llmint8.calibrate` found once, nothing to search at
            run time. `"none"`: no column, plain vector-wise int8. Default: `"threshold"` if that is given alone, else
            `"budget"`. Runtime, but only a calibrated checkpoint can be static.
        threshold: Smallest score of an outlier column. Default in mode `"threshold"`: 6.0, the paper's, which is a
            magnitude (`relative=False`); else, if `relative`, 5.0 (3.5 in mode `"static"`), or 0, which lets the
            budget alone decide. Runtime, but in mode `"static"` only a record of the calibration.
        budget: Largest number of outlier columns, only in modes `"budget"` and `"static"`: an int, or a float below
            1, a share of the layer's columns. Default 1/8. Runtime, with the same exception.
        relative: Scores a feature by its magnitude over the root mean square of its row (token), which does not
            depend on the scale of the layer's input, or by the magnitude itself. Default: True where there is a
            budget, else False. Runtime.
        symmetric: Quantizes activations by absmax; otherwise with a zero point over the full range. Runtime.
        overrides: Runtime settings of some layers, by patterns as in `skip_modules`: `{"mlp.down_proj": {"budget":
            0.25}, "model.layers.0": {"mode": "budget", "threshold": 3.0}}`, with the effect of `replace`: a threshold
            alone is the mode of that name. Of several patterns that fit a layer all count, one after the other. Given
            as a mapping (in JSON a list of pairs), kept as tuples. Runtime.
        skip_modules: Modules to keep in 16 bit besides the default ones: full names, trailing or leading parts of
            names (`"lm_head"`, `"mlp.down_proj"`, `"model.layers.0"`), or shell patterns of full names
            (`"model.layers.[0-3].*"`).
        include_modules: Modules to quantize although the default keeps them in 16 bit (output heads, modules that
            the model wants in fp32): names as in `skip_modules`. A tied head is untied and quantized.
        checkpoint_format: Tensor names and `config.json` entry of the checkpoint: our own (`"llmint8"`) or those
            of another format in `llmint8.checkpoints.formats` (`"bitsandbytes"`).
    """

    mode: OutlierMode | None = None
    threshold: float | None = None
    budget: int | float | None = None
    relative: bool | None = None
    symmetric: bool = False
    overrides: Overrides = ()
    skip_modules: tuple[str, ...] = ()
    include_modules: tuple[str, ...] = ()
    checkpoint_format: str = "llmint8"

    quant_method: ClassVar[str] = "llmint8"
    RUNTIME_SETTINGS: ClassVar[tuple[str, ...]] = ("mode", "threshold", "budget", "relative", "symmetric")

    def __post_init__(self) -> None:
        """Checks every value and fills in the defaults that depend on the mode.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range, or two contradict each other.
        """
        self._fill("mode", "threshold" if self.budget is None and self.threshold is not None else "budget")
        _check_choice("mode", self.mode, get_args(OutlierMode))
        if self.checkpoint_format != self.quant_method:
            self._format()  # raises if there is none of that name
        for name, value, modes in (
            ("threshold", self.threshold, ("threshold", "budget", "static")),
            ("budget", self.budget, ("budget", "static")),
        ):
            if value is not None and self.mode not in modes:
                raise ValueError(f"{name}={value!r} contradicts mode={self.mode!r}; give only one of them")
        has_budget = self.mode in ("budget", "static")
        self._fill("relative", has_budget)
        for name in ("relative", "symmetric"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if has_budget:
            self._fill("budget", DEFAULT_BUDGET)
            relative = DEFAULT_STATIC_THRESHOLD if self.mode == "static" else DEFAULT_RELATIVE_THRESHOLD
            self._fill("threshold", relative if self.relative else 0.0)
            object.__setattr__(self, "budget", _checked_budget(self.budget))
        self._fill("threshold", PAPER_THRESHOLD if self.mode == "threshold" else None)
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _checked_threshold(self.threshold, may_be_0=has_budget))
        for name in ("skip_modules", "include_modules"):
            object.__setattr__(self, name, _module_names(name, getattr(self, name)))
        if both := sorted(set(self.skip_modules) & set(self.include_modules)):
            raise ValueError(f"skip_modules and include_modules both name {both}; remove them from one")
        object.__setattr__(self, "overrides", _frozen_overrides(self.overrides))
        for pattern, settings in self.overrides:
            try:
                self._with_settings(dict(settings))
            except (TypeError, ValueError) as error:
                raise type(error)(f"overrides[{pattern!r}]: {error}") from error

    def _fill(self, name: str, default: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some settings changed.

        A changed `threshold` or `budget` brings its mode with it, as when a configuration is made, and a changed mode
        its own defaults.

        Args:
            **changes: Fields of this class and their new values.

        Raises:
            TypeError: A name is not a field, or a value has the wrong type.
            ValueError: A value is out of range, or two contradict each other.
        """
        mode, budget, threshold = (changes.get(name) for name in ("mode", "budget", "threshold"))
        if mode is None and budget is not None and (budget != self.budget or threshold is not None):
            mode = "budget"
        elif mode is None and threshold is not None:
            mode = "threshold"
        if mode is not None and mode != self.mode:
            changes = {**dict.fromkeys(("threshold", "budget", "relative")), **changes, "mode": mode}
        return dataclasses.replace(self, **changes)

    def for_layer(self, name: str) -> Self:
        """Returns the settings of one layer, without overrides.

        Args:
            name: The layer's name in its model.
        """
        if not self.overrides:
            return self
        config = dataclasses.replace(self, overrides=())
        for pattern, settings in self.overrides:
            if matches(name, [pattern]):
                config = config.replace(**dict(settings))
        return config

    def runtime_settings(self) -> dict[str, Any]:
        """Returns the runtime settings of a layer: values by name."""
        return {name: getattr(self, name) for name in self.RUNTIME_SETTINGS}

    def columns(self, in_features: int) -> int:
        """Returns how many columns the budget is for a layer, 0 in a mode without one.

        Args:
            in_features: K.
        """
        if isinstance(self.budget, float):
            return max(int(self.budget > 0), int(self.budget * in_features))
        return min(self.budget or 0, in_features)

    def rule(self, in_features: int) -> OutlierRule:
        """Returns the runtime settings as the operators take them.

        Args:
            in_features: K of the layer.
        """
        return OutlierRule(
            self.mode or "budget",
            self.threshold or 0.0,
            self.columns(in_features),
            bool(self.relative),
            self.symmetric,
        )

    @property
    def has_column_scale(self) -> bool:
        """Whether the checkpoint format can store a `column_scale`."""
        return self._format().has_column_scale

    def _format(self) -> "Format":
        from llmint8.checkpoints.formats import format_named  # which imports this module

        return format_named(self.checkpoint_format)

    def _with_settings(self, settings: dict[str, Any]) -> Self:
        if unknown := sorted(set(settings) - set(self.RUNTIME_SETTINGS)):
            raise ValueError(f"{unknown} cannot be set for some layers; known are {sorted(self.RUNTIME_SETTINGS)}")
        return dataclasses.replace(self, overrides=()).replace(**settings)

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
        if settings.get("mode") == "budget" and settings.get("threshold", 0.0) is None:
            settings["threshold"] = 0.0  # as it was before there was a floor
        config = cls(**{**settings, **changes})
        return (config, {}) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON values, for the `quantization_config` entry of a `config.json`."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["skip_modules"] = list(self.skip_modules)
        settings["include_modules"] = list(self.include_modules)
        # A list, because whoever writes JSON with sorted keys would lose their order.
        settings["overrides"] = [[pattern, dict(override)] for pattern, override in self.overrides]
        return {"quant_method": self.quant_method, **settings}

    def to_diff_dict(self) -> dict[str, Any]:
        """Same as `to_dict`: every setting is written, so that new defaults do not change old checkpoints."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns `to_dict` as indented JSON; `use_diff` is there for transformers and changes nothing."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module name is one of some names, lies below it or ends with it, at the dots, or fits a shell pattern.

    Args:
        name: Full name of a module.
        patterns: Names, or patterns with `*`, `?` or `[...]`.
    """
    return any(
        fnmatch.fnmatchcase(name, p)
        if set(p) & set("*?[")
        else re.search(rf"(^|\.){re.escape(p)}$|^{re.escape(p)}\.", name)
        for p in patterns
    )


def _checked_threshold(value: object, may_be_0: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"threshold must be a number, got {value!r}")
    if not (0 < value < _LARGEST or (may_be_0 and value == 0)):  # type: ignore[operator]
        least = "0 or more" if may_be_0 else "greater than 0"
        raise ValueError(f"threshold must be finite and {least}, got {value}; mode='none' keeps no outliers")
    return float(value)


def _checked_budget(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"budget must be an int (a number of columns) or a float (a share of them), got {value!r}")
    if isinstance(value, numbers.Integral):
        if not 0 <= int(value) < _LARGEST:
            raise ValueError(f"budget must be 0 or more columns, got {value}")
        return int(value)
    if not 0 <= float(value) < 1:
        raise ValueError(f"budget must be a number of columns or a share from 0 to below 1 of them, got {value}")
    return float(value)


def _frozen_overrides(value: object) -> Overrides:
    items = list(value.items()) if isinstance(value, Mapping) else value
    pairs = isinstance(items, list | tuple) and all(isinstance(i, list | tuple) and len(i) == 2 for i in items)
    if not pairs:
        raise TypeError(f"overrides must map patterns of module names to settings, got {value!r}")
    frozen = []
    for pattern, settings in items:  # type: ignore[attr-defined]
        _module_names("overrides", [pattern])
        if not isinstance(settings, Mapping | tuple):
            raise TypeError(f"overrides[{pattern!r}] must map settings to values, got {settings!r}")
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in dict(settings).items()}
        frozen.append((pattern, tuple(sorted(plain.items()))))
    return tuple(frozen)


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
