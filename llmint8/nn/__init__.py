"""int8 forms of float layers, one class a file."""

from llmint8.nn.conv1d import Int8Conv1D
from llmint8.nn.linear import Int8Linear

__all__ = ["Int8Conv1D", "Int8Linear"]
