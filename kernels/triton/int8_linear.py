"""`int8_linear` on a GPU: which kernels run for an input."""

from typing import Literal

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.dequantized_linear import dequantized_linear
from llmint8.kernels.triton.int_mm_linear import can_int_mm, int_mm_linear
from llmint8.kernels.triton.launch import on_device, with_contiguous_rows
from llmint8.kernels.triton.mixed_linear import mixed_linear
from llmint8.kernels.triton.quantize_rows import MODES, quantize_rows
from llmint8.kernels.triton.weight_only_linear import weight_only_linear

Product = Literal["weight_only_linear", "dequantized_linear", "int_mm_linear", "mixed_linear"]


def choose_product(x: Tensor, weight: Tensor, tables: tiles.Tables) -> Product:
    """Returns the name of the product that `int8_linear` runs.

    Args:
        x: fp16, bf16 or fp32 [M, K].
        weight: int8 [N, K].
        tables: Of their GPU.
    """
    m, k = x.shape
    if m <= tables.decode_rows:
        return "weight_only_linear"
    use_int_mm = tables.mixed_linear is None and can_int_mm(x, weight)
    in_float = k > functional.INT32_K or not (tables.mixed_linear or use_int_mm)
    if x.dtype != torch.float32 and (in_float or tables.dequantize):
        return "dequantized_linear"
    if in_float:
        return "weight_only_linear"
    return "int_mm_linear" if use_int_mm else "mixed_linear"


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
    """Applies an int8 weight as `llmint8.kernels.reference.int8_linear` does, without ever waiting for the GPU.

    More rows than there stay unquantized, as many as `tiles.Tables.decode_rows`; and all of them on a GPU whose int8
    is not worth it, or with K above 65536: then the weight is dequantized for the call.

    Args:
        x: fp16, bf16 or fp32 [M, K], M and K at least 1, any strides.
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: Floating point [N], or None.
        outlier_columns: int64, indices in [0, K), in mode `"static"`; others are never met.
        mode: As in `llmint8.Int8Config`, like the rest.
        threshold: In the modes `"threshold"` and `"budget"`.
        budget: In mode `"budget"`.
        relative: Scores relative to the row.
        symmetric: Activations without zero point.

    Returns:
        [M, N], dtype of `x`.

    Raises:
        RuntimeError: The outlier columns are on another device.
        TypeError: They are not integers.
        ValueError: The mode is unknown, or static without columns.
    """
    x, weight = with_contiguous_rows(x), with_contiguous_rows(weight)
    weight_scale = weight_scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    tables = tiles.tables(x.device)
    decode = x.shape[0] <= tables.decode_rows
    if mode not in MODES or (mode == "static" and outlier_columns is None and not decode):
        functional.select_outliers(x, None, mode, threshold, budget, relative)  # raises the error
    with on_device(x):
        product = choose_product(x, weight, tables)
        if product == "dequantized_linear":
            return dequantized_linear(x, weight, weight_scale, bias)
        if product == "weight_only_linear":
            if not decode and not tiles.is_aligned(x):
                x = x.clone(memory_format=torch.contiguous_format)
            return weight_only_linear(x, weight, weight_scale, bias)
        if mode == "budget" and budget == 0:
            mode = "none"
        columns = _static_columns(x, outlier_columns) if mode == "static" else None
        ones_row = product == "int_mm_linear" and not symmetric
        rows = quantize_rows(x, columns, mode, threshold, budget, relative, symmetric, ones_row)
        multiply = int_mm_linear if product == "int_mm_linear" else mixed_linear
        return multiply(x, rows, weight, weight_scale, bias)


def _static_columns(x: Tensor, columns: Tensor | None) -> Tensor:
    assert columns is not None
    if columns.device != x.device:
        raise RuntimeError(f"all tensors must be on one device, got {x.device} and {columns.device}")
    if columns.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"outlier_columns must be int64, got {columns.dtype}")
    return columns.contiguous()
