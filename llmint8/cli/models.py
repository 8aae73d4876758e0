"""What the commands that run a model have in common: loading it, and a text to run it on."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from llmint8.config import Int8Config


def quiet() -> None:
    """Keeps transformers from talking while a command runs."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def is_int8(name: str, trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint is int8 already.

    Args:
        name: A folder, or a name on the hub.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        OSError: There is no such model.
        ValueError: It is quantized by another method.
    """
    from llmint8.checkpoints.settings import int8_settings
    from llmint8.checkpoints.source import locate, read_config, stored_quantization

    config = read_config(locate(name, may_be_file=True), {"trust_remote_code": trust_remote_code})
    stored = stored_quantization(config)
    return stored is not None and int8_settings(stored, name) is not None


def load(
    name: str,
    int8: bool,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    config: "Int8Config | None" = None,
    causal: bool = True,
) -> "PreTrainedModel":
    """Loads a model, on the GPU if there is one.

    Args:
        name: A folder, or a name on the hub.
        int8: Whether in 8 bit.
        dtype: Dtype of what is not int8; that of the checkpoint if None.
        trust_remote_code: Whether code that comes with the model may run.
        config: How it is quantized, if it is not already.
        causal: Whether it must be one that says what the next token is.

    Raises:
        OSError: There is no such model.
        ValueError: It is of another kind.
    """
    import torch

    from llmint8.loading import from_pretrained

    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if torch.cuda.is_available():
        options["device_map"] = "auto"
    if config is not None:
        options["quantization_config"] = config
    model = from_pretrained(name, load_in_8bit=int8, trust_remote_code=trust_remote_code, **options)
    if causal and (not model.can_generate() or model.config.is_encoder_decoder):
        raise ValueError(f"{name} is a {type(model).__name__}, which does not predict the next token of a text")
    return model


def windows_of(
    model: str, text: str | None, window: int, tokens: int, trust_remote_code: bool = False
) -> "list[Tensor]":
    """Returns the text that a model is run on, as tokens.

    Args:
        model: A folder or a name on the hub, whose tokenizer is used.
        text: Path of a file in UTF-8; Python's language reference, which comes with Python, if None.
        window: Tokens of a window.
        tokens: Tokens of all windows together.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The text is too short, or not UTF-8.
    """
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    from llmint8.analysis import text_windows

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    content = "\n".join(topics[name] for name in sorted(topics)) if text is None else Path(text).expanduser()
    try:
        return text_windows(tokenizer, content, window=window, tokens=tokens)
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not a text in UTF-8: {error}") from error


def require(module: str, extra: str, option: str) -> None:
    """Checks that an optional library is there.

    Args:
        module: Its name.
        extra: The extra of this package that it belongs to.
        option: What needs it.

    Raises:
        ImportError: It is not.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{option} needs {module}: pip install llmint8[{extra}]")
