"""The gradient to the input of an int8 layer on a GPU, by the dequantized weight."""

from torch import Tensor

from llmint8.kernels.triton.dequantize_weight import dequantize_weight


def int8_linear_grad_input(grad: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """Returns `functional.weight_only_grad_input`; its many small blocks would each be several launches here.

    Args:
        grad: fp16, bf16 or fp32 [M, N]; others are not taken.
        weight: int8 [N, K], N and K at least 1; others are not taken.
        weight_scale: fp32 [N, 1].

    Returns:
        [M, K], dtype of `grad`.
    """
    dequantized = dequantize_weight(weight, weight_scale, grad.dtype)
    return NotImplemented if dequantized is NotImplemented else grad @ dequantized
