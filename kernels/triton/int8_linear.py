"""`int8_linear` on a GPU: which kernels run for an input."""

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.choice import choose_product
from llmint8.kernels.triton.dequantized_linear import dequantized_linear
from llmint8.kernels.triton.int_mm_linear import int_mm_linear
from llmint8.kernels.triton.launch import on_device, with_contiguous_rows
from llmint8.kernels.triton.mixed_linear import mixed_linear
from llmint8.kernels.triton.quantize_rows import MODES, quantize_rows
from llmint8.kernels.triton.weight_only_linear import weight_only_linear
from llmint8.outliers import OutlierRule


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    outlier_columns: Tensor | None,
    rule: OutlierRule,
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
        rule: The treatment of outlier columns.

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
    if rule.mode not in MODES or (rule.mode == "static" and outlier_columns is None and not decode):
        functional.select_outliers(x, None, rule)  # raises the error
    with on_device(x):
        product = choose_product(x, weight, tables)
        if product == "dequantized_linear":
            return dequantized_linear(x, weight, weight_scale, bias)
        if product == "weight_only_linear":
            if not decode and not tiles.is_aligned(x):
                x = x.clone(memory_format=torch.contiguous_format)
            return weight_only_linear(x, weight, weight_scale, bias)
        if rule.mode == "budget" and rule.budget == 0:
            rule = rule._replace(mode="none")
        columns = _static_columns(x, outlier_columns) if rule.mode == "static" else None
        rows = quantize_rows(x, columns, rule, ones_row=product == "int_mm_linear" and not rule.symmetric)
        multiply = int_mm_linear if product == "int_mm_linear" else mixed_linear
        return multiply(x, rows, weight, weight_scale, bias)


def _static_columns(x: Tensor, columns: Tensor | None) -> Tensor:
    assert columns is not None
    if columns.device != x.device:
        raise RuntimeError(f"all tensors must be on one device, got {x.device} and {columns.device}")
    if columns.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"outlier_columns must be int64, got {columns.dtype}")
    return columns.contiguous()
