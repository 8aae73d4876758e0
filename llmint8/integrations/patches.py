"""Every change that this package makes to other people's code, in one list.

`PATCHES` are the changes to what a whole process shares. `import llmint8` installs them (`install_all`), each as soon
as the program has imported what it changes; `remove_all` undoes them, and each has `install` and `remove` of its own.

Three more changes are made to single models, and last no longer than they:

- The parts of a model that have a fused form get a subclass of their own class as `__class__`. `fused.fuse` does it
  once the model has int8 layers, `fused.unfuse` undoes it, and so does `dequantize_`.
- The head of a language model that stays in 16 bit becomes a `FloatLinear` by its `__class__`; `dequantize_` undoes it.
- Forward hooks of the model tell the threads of the CPU operators when a forward pass begins and ends. They change
  nothing once the model is float.
"""

import sys
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, Protocol

from llmint8.integrations.after_import import after_import, stop_waiting

# Every model is loaded through this module. Importing it takes a second, so we wait until somebody does.
MODELING = "transformers.modeling_utils"
_ABSENT = object()


class Patch(Protocol):
    """One change to somebody else's code."""

    @property
    def name(self) -> str:
        """What is changed."""

    @property
    def why(self) -> str:
        """What for, in a sentence."""

    def install(self) -> None:
        """Makes the change; a second time does nothing."""

    def remove(self) -> None:
        """Undoes the change; does nothing if it was not made."""


class Replacement:
    """A `Patch` that puts an object of ours in the place of another, which is often called by ours.

    Attributes:
        name: The place.
        why: What for, in a sentence.
        after: The module whose import `install_all` waits for; None if the change is made by the part of this package
            that needs it.
        get: Returns the object that stands in the place now.
        put: Puts an object there.
        make: Returns ours, given the object that stands there.
    """

    def __init__(
        self,
        name: str,
        why: str,
        after: str | None,
        get: Callable[[], Any],
        put: Callable[[Any], None],
        make: Callable[[Any], Any],
    ) -> None:
        self.name, self.why, self.after = name, why, after
        self.get, self.put, self.make = get, put, make
        self._ours: Any = None
        self._original: Any = None

    def install(self) -> None:
        """Puts ours in the place, unless it is there already or called by what others have put there since."""
        current = self.get()
        if self._ours is not None and self._ours in _called_by(current):
            return
        ours = self.make(current)
        if isinstance(ours, FunctionType):
            ours.__wrapped__ = current  # type: ignore[attr-defined]
        self._original, self._ours = current, ours
        self.put(ours)

    def install_after_import(self) -> None:
        """Installs as soon as the module that `after` names is imported, at once if it is."""
        if self.after is not None:
            after_import(self.after, self.install)

    def stop_waiting(self) -> bool:
        """Forgets about the import of the module that `after` names; returns whether it was waited for."""
        return self.after is not None and stop_waiting(self.after, self.install)

    def remove(self) -> None:
        """Puts back what stood there before.

        If others have changed the place since, it is left as it is with a warning: theirs may call ours.
        """
        if self._ours is None:
            return
        for patch in PATCHES:  # one that has been put on top of this one
            if isinstance(patch, Replacement) and patch._original is self._ours:
                patch.remove()
        current = self.get()
        if current is not self._ours:
            warnings.warn(
                f"the patch {self.name!r} of llmint8 stays: {current!r} has been put in its place since, and may call "
                "it; remove that first",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self.put(self._original)
        self._ours = self._original = None


class ImportFinders:
    """The `Patch` of `sys.meta_path`: the other patches wait there for modules that are not imported yet."""

    name = "sys.meta_path"
    why = (
        "The other patches change modules that take a second to import, so finders wait until the program imports "
        "them itself."
    )

    def __init__(self) -> None:
        self._stopped: list[Replacement] = []

    def install(self) -> None:
        """Has those patches wait again that waited at `remove`; they change at once what has been imported since."""
        while self._stopped:
            self._stopped.pop().install_after_import()

    def remove(self) -> None:
        """Stops waiting: what is imported from now on stays as it is."""
        self._stopped += [patch for patch in PATCHES if isinstance(patch, Replacement) and patch.stop_waiting()]


def _called_by(function: Any) -> list[Any]:
    """A function and those that it wraps, as `functools.wraps` tells it."""
    chain = [function]
    while (function := getattr(function, "__wrapped__", None)) is not None:
        chain.append(function)
    return chain


def _entry(module: str, mapping: str, key: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """How to get and put an entry of a dictionary in a module; `_ABSENT` stands for no entry."""

    def put(value: Any) -> None:
        entries = getattr(sys.modules[module], mapping)
        if value is _ABSENT:
            entries.pop(key, None)
        else:
            entries[key] = value

    return lambda: getattr(sys.modules[module], mapping).get(key, _ABSENT), put


def _config_class(_: Any) -> Any:
    from llmint8.config import Int8Config

    return Int8Config


def _quantizer_class(_: Any) -> Any:
    from llmint8.integrations.transformers.quantizer import Int8HfQuantizer

    return Int8HfQuantizer


def _get_save_pretrained() -> Any:
    from transformers.modeling_utils import PreTrainedModel

    return PreTrainedModel.save_pretrained


def _put_save_pretrained(function: Any) -> None:
    from transformers.modeling_utils import PreTrainedModel

    PreTrainedModel.save_pretrained = function


def _atomic_save_pretrained(original: Any) -> Any:
    from llmint8.integrations.transformers.saving import atomic

    return atomic(original)


def _get_generate() -> Any:
    from transformers.generation import GenerationMixin

    return GenerationMixin.generate


def _put_generate(function: Any) -> None:
    from transformers.generation import GenerationMixin

    GenerationMixin.generate = function


def _thread_managing_generate(original: Any) -> Any:
    from llmint8.integrations.transformers.generation import managing_threads

    return managing_threads(original)


def _get_sdpa() -> Any:
    from transformers.modeling_utils import AttentionInterface

    return AttentionInterface()["sdpa"]


def _put_sdpa(function: Any) -> None:
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("sdpa", function)


def _native_sdpa(original: Any) -> Any:
    from llmint8.integrations.transformers.attention import with_native_kernel

    return with_native_kernel(original)


def _ragged_sdpa(original: Any) -> Any:
    from llmint8.generation.ragged_batch import taking_lists

    return taking_lists(original)


RAGGED_ATTENTION = Replacement(
    "transformers.AttentionInterface['sdpa'], for ragged batches",
    "A batch of sequences of different lengths hands lists of keys and values to attention, which transformers' own "
    "would not take.",
    None,
    _get_sdpa,
    _put_sdpa,
    _ragged_sdpa,
)

PATCHES: tuple[Patch, ...] = (
    ImportFinders(),
    Replacement(
        "transformers.quantizers.auto.AUTO_QUANTIZATION_CONFIG_MAPPING['llmint8']",
        "A `config.json` with our settings becomes an `Int8Config`; some programs, lm-eval among them, read it before "
        "they import the modelling code.",
        "transformers.quantizers.auto",
        *_entry("transformers.quantizers.auto", "AUTO_QUANTIZATION_CONFIG_MAPPING", "llmint8"),
        _config_class,
    ),
    Replacement(
        "transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING['llmint8']",
        "`from_pretrained` asks our quantizer which layers are int8 and how their weights are read.",
        MODELING,
        *_entry("transformers.quantizers.auto", "AUTO_QUANTIZER_MAPPING", "llmint8"),
        _quantizer_class,
    ),
    Replacement(
        "transformers.PreTrainedModel.save_pretrained",
        "An int8 model is saved with the settings that its layers have now, and never leaves a mixture of two "
        "checkpoints that loads.",
        MODELING,
        _get_save_pretrained,
        _put_save_pretrained,
        _atomic_save_pretrained,
    ),
    Replacement(
        "transformers.GenerationMixin.generate",
        "The threads of the CPU operators need to know when generation begins and ends.",
        MODELING,
        _get_generate,
        _put_generate,
        _thread_managing_generate,
    ),
    Replacement(
        "transformers.AttentionInterface['sdpa']",
        "PyTorch's attention of one token in 16 bit takes longer on a CPU than all int8 layers of a small model.",
        MODELING,
        _get_sdpa,
        _put_sdpa,
        _native_sdpa,
    ),
    RAGGED_ATTENTION,
)


def install_all() -> None:
    """Makes every change that all programs need, each at once or as soon as what it changes is imported."""
    for patch in PATCHES:
        if isinstance(patch, Replacement):
            patch.install_after_import()
        else:
            patch.install()


def remove_all() -> None:
    """Undoes every change, the last one first."""
    for patch in reversed(PATCHES):
        patch.remove()
