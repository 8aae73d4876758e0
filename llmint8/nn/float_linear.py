"""`FloatLinear`: an `nn.Linear` that stays floating point and is fast for a few rows on a CPU."""

import torch
from torch import Tensor, nn

from llmint8 import ops
from llmint8.kernels.cpu.limits import MAX_FLOAT_ROWS


class FloatLinear(nn.Linear):
    """A linear layer that is not quantized, such as the head of a language model.

    It is an `nn.Linear` in everything but the time that a few rows in bf16 or fp32 take on a CPU: PyTorch reads the
    weight at half the speed of memory, and of a small model's bytes the head has a third.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            input: Floating point [..., in_features].

        Returns:
            [..., out_features], dtype of the input.
        """
        weight, bias = self.weight, self.bias
        trained = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        if (
            input.device.type != "cpu"
            or not 0 < input.numel() <= MAX_FLOAT_ROWS * self.in_features
            or (torch.is_grad_enabled() and trained)
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        return ops.float_linear(input, weight, bias)
