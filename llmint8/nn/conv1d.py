"""`Int8Conv1D`: the int8 form of GPT-2's `Conv1D`, a linear layer that keeps its weight transposed."""

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from llmint8.nn.linear import Int8Linear


class Int8Conv1D(Int8Linear):
    """An `Int8Linear` in the place of a `transformers.pytorch_utils.Conv1D`.

    The int8 weight is [out_features, in_features] as in any other layer; only the float form is transposed.
    """

    @property
    def nf(self) -> int:
        """Number of output features, as `Conv1D` calls it."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Number of input features, as `Conv1D` calls it."""
        return self.in_features

    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Dequantizes into a `Conv1D`.

        Args:
            dtype: Dtype of the weight and bias; that of the bias if None.
        """
        from transformers.pytorch_utils import Conv1D

        dtype = dtype or self._float_dtype()
        with torch.device("meta"):
            layer = Conv1D(self.out_features, self.in_features)
        layer.weight = Parameter(self.dequantized_weight(dtype).T.contiguous())
        layer.bias = Parameter(self.bias.detach().to(dtype))
        return layer.train(self.training)

    @staticmethod
    def as_rows(weight: Tensor) -> Tensor:
        """Views the weight of a `Conv1D` as [out_features, in_features].

        Args:
            weight: [in_features, out_features].
        """
        return weight.T
