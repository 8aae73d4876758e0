"""transformers' model manager for one model, which is loaded in 8 bit when the server starts and stays."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.cli.serving.model_manager import ModelManager

import llmint8
from llmint8.checkpoints.source import locate
from llmint8.nn import Int8Linear
from llmint8.nn.forms import is_int8
from llmint8.serving.errors import APIError


class Int8ModelManager(ModelManager):
    """Loads through `llmint8.from_pretrained`, so that a 16-bit checkpoint is quantized and layers are fused."""

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str | None = "auto",
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        """Loads the model.

        Args:
            model: A folder, or a name on the Hugging Face hub.
            name: That clients call it by; that of its folder, or on the hub, if None.
            device: auto, cpu, cuda, cuda:1, 1, ...
            dtype: Dtype of what is not int8, as torch names it; auto for the checkpoint's.
            trust_remote_code: Run code that comes with the model.
            **settings: Of `llmint8.Int8Config`.

        Raises:
            ValueError: A setting is wrong, the device is not there, or the model has no fast tokenizer.
            OSError: The model is not there, or is damaged.
        """
        _check_device(device)
        self.path, self.settings = locate(model), settings
        folder = Path(self.path)
        self.name = name or (folder.resolve().name if folder.is_dir() else model)
        super().__init__(device=device, dtype=dtype, trust_remote_code=trust_remote_code, model_timeout=-1)
        self.model, self.tokenizer = self.load_model_and_processor(self.path)
        if not hasattr(self.tokenizer, "_tokenizer"):
            raise ValueError(f"{model} has no fast tokenizer, which streaming needs")
        if not self.model.can_generate() or self.model.config.is_encoder_decoder:
            raise ValueError(f"{model} is a {type(self.model).__name__}, which does not continue a text")
        self.force_model = self.name

    def _load_processor(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
        return AutoTokenizer.from_pretrained(model_id_and_revision, trust_remote_code=self.trust_remote_code)

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        return llmint8.from_pretrained(
            model_id_and_revision,
            dtype=self.dtype,
            device_map=self.device,
            trust_remote_code=self.trust_remote_code,
            **self.settings,
        )

    def is_called(self, name: str) -> bool:
        """Whether a client's name for the model is one of its names.

        Args:
            name: The field `model` of a request.
        """
        return name in (self.name, self.path)

    def check_name(self, name: str) -> None:
        """Checks that a client means this model.

        Args:
            name: The client's for the model.

        Raises:
            APIError: 404; it is none of its names.
        """
        if not self.is_called(name):
            message = f"there is no model {name[:200]!r} here; it is {self.name!r}"
            raise APIError(404, message, param="model", code="model_not_found")

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """Returns the model, as `/v1/models` shows it.

        Args:
            cache_dir: Not looked into.
        """
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": "llmint8"}]

    def weights(self) -> tuple[int, int]:
        """Returns the bytes of the weights in 8 bit, and of the same weights unquantized."""
        tensors = {tensor.data_ptr() or id(tensor): tensor for tensor in self.model.parameters()}
        int8 = sum(tensor.nbytes for tensor in tensors.values())
        saved = sum(_saved(m, self.model.dtype) for m in self.model.modules() if is_int8(m))
        return int8, int8 + saved


def _check_device(device: str) -> None:
    """Checks that something can be put on a device; PyTorch fails in many ways, after the weights have been read."""
    if device in ("auto", "balanced", "balanced_low_0", "sequential"):
        return
    try:
        where = torch.device("cuda", int(device)) if device.isdigit() else torch.device(device)
        torch.empty(1, device=where).tolist()
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"there is no device {device!r} here ({why}); cpu and auto always are") from error


def _saved(layer: Int8Linear, dtype: torch.dtype) -> int:
    """The bytes that a layer is smaller for being int8."""
    weight: torch.Tensor = layer.weight
    added = sum(p.nbytes for name, p in layer.named_parameters(recurse=False) if name in layer.scale_names)
    return weight.numel() * dtype.itemsize - weight.nbytes - added
