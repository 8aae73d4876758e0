"""Layers: int8 forms of float ones, and what stays float, one class a file."""

from llmint8.nn.conv1d import Int8Conv1D
from llmint8.nn.float_linear import FloatLinear
from llmint8.nn.linear import Int8Linear

__all__ = ["FloatLinear", "Int8Conv1D", "Int8Linear"]
