"""Registers the quantizer with transformers, without importing more of it than the program does."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register() -> None:
    """Makes `from_pretrained` know `Int8Config`, at once or as soon as transformers' modelling code is imported.

    The operators `torch.ops.llmint8.*`, which a compiled or exported model needs, are there as soon as torch is.
    """
    # Every model is loaded through the first module; importing it takes a second, so we wait until somebody does. Some
    # programs, lm-eval among them, read the settings of a checkpoint before they import it.
    for module, function in (
        ("torch", _register_operators),
        ("transformers.modeling_utils", _register_now),
        ("transformers.quantizers.auto", _register_config),
    ):
        if module in sys.modules:
            function()
        else:
            _forget_earlier(module)
            sys.meta_path.insert(0, _AfterImport(module, function))


def _forget_earlier(module: str) -> None:
    """Removes what waits for a module since this package was imported before: two would ask each other for ever."""
    for finder in list(sys.meta_path):
        if type(finder).__name__ == _AfterImport.__name__ and getattr(finder, "name", None) == module:
            sys.meta_path.remove(finder)


def _register_operators() -> None:
    from llmint8 import ops  # noqa: F401


def _register_config() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    from llmint8.config import Int8Config

    AUTO_QUANTIZATION_CONFIG_MAPPING[Int8Config.quant_method] = Int8Config


def _register_now() -> None:
    from transformers.generation import GenerationMixin
    from transformers.modeling_utils import AttentionInterface, PreTrainedModel
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from llmint8.config import Int8Config
    from llmint8.integrations.transformers.attention import faster
    from llmint8.integrations.transformers.generation import look_after_threads
    from llmint8.integrations.transformers.heads import layers_kept_in_16_bit
    from llmint8.integrations.transformers.quantizer import Int8HfQuantizer, detach, speed_up
    from llmint8.integrations.transformers.saving import make_saving_atomic
    from llmint8.quantize import after_dequantize, after_quantize, default_skips

    AUTO_QUANTIZER_MAPPING[Int8Config.quant_method] = Int8HfQuantizer
    if layers_kept_in_16_bit not in default_skips:
        default_skips.append(layers_kept_in_16_bit)
        after_quantize.append(speed_up)
        after_dequantize.append(detach)
        make_saving_atomic(PreTrainedModel)
        look_after_threads(GenerationMixin)
        AttentionInterface.register("sdpa", faster(AttentionInterface()["sdpa"]))


class _AfterImport(MetaPathFinder):
    """Calls a function once, right after a module has been imported."""

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self.name = name
        self.function = function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == self.name and self in sys.meta_path:  # until it has been imported without an error
                self.function()
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
