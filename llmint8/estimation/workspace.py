"""What operators take while they run, on the device that the meta device stands for: the backends know it of theirs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmint8.kernels import backend


@dataclass(frozen=True)
class Device:
    """A device that a model is estimated for.

    Attributes:
        type: `"cpu"` or `"cuda"`.
        architecture: The compute capability of a GPU (80 for 8.0) or AMD's name; None for a CPU.
    """

    type: str
    architecture: int | str | None = None


def workspace(name: str, args: tuple[Any, ...], device: Device) -> int:
    """Returns the most that an operator takes besides its arguments and results, in bytes.

    Args:
        name: The operator with its namespace: `"llmint8::int8_linear"`. Others than ours take nothing.
        args: Its positional arguments.
        device: Where it is to run.
    """
    namespace, _, operator = name.partition("::")
    if namespace != "llmint8":
        return 0
    kernels = next(found for found in backend.BACKENDS if found.device_type == device.type)
    return kernels.workspace(operator, args, device.architecture)


def attention_workspace(query: Tensor, key: Tensor, value: Tensor, device: Device) -> int:
    """Returns what PyTorch's attention takes besides its result: the log of the sum of each query's weights, fp32.

    On a CPU, values of another depth than keys leave it two matrices of scores.

    Args:
        query: [batch, heads, M, depth].
        key: [batch, key_heads, S, depth].
        value: [batch, key_heads, S, value_depth].
        device: Where it is to run.
    """
    rows = query.numel() // max(1, query.shape[-1])
    scores = 2 * rows * key.shape[-2] * query.element_size()
    return 4 * rows + (scores if device.type == "cpu" and query.shape[-1] != value.shape[-1] else 0)
