"""`int8_linear` on a GPU: which kernels run for an input."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.int_mm_linear import can_int_mm, int_mm_linear
from llmint8.kernels.triton.mixed_linear import mixed_linear
from llmint8.kernels.triton.quantize_rows import quantize_rows
from llmint8.kernels.triton.weight_only_linear import weight_only_linear


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    outlier_columns: Tensor | None,
    mode: str,
    threshold: float,
    budget: int,
    relative: bool,
    symmetric: bool,
) -> Tensor:
    """Same as `llmint8.kernels.reference.int8_linear`, without ever waiting for the GPU."""
    x, weight = with_contiguous_rows(x), with_contiguous_rows(weight)
    weight_scale = weight_scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    m, k = x.shape
    with on_device(x):
        tables = tiles.tables(x.device)
        use_int_mm = tables.mixed_linear is None and can_int_mm(x, weight)
        if m <= tables.decode_rows or k > functional.INT32_K or not (tables.mixed_linear or use_int_mm):
            return weight_only_linear(x, weight, weight_scale, bias)
        if mode == "budget" and budget == 0:
            mode = "none"
        if mode == "static" and outlier_columns is None:
            functional.select_outliers(x, None, mode, threshold, budget, relative)  # raises an error
        outlier_columns = None if outlier_columns is None else outlier_columns.contiguous()
        ones_row = use_int_mm and not symmetric
        rows = quantize_rows(x, outlier_columns, mode, threshold, budget, relative, symmetric, ones_row)
        multiply = int_mm_linear if use_int_mm else mixed_linear
        return multiply(x, rows, weight, weight_scale, bias)


def with_contiguous_rows(x: Tensor) -> Tensor:
    """Returns a matrix whose rows are contiguous: itself, if they are, or a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of a tensor the one that kernels are launched on, if it is another one."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)
