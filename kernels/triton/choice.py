"""Which product `int8_linear` runs on a GPU: a decision by sizes alone, which needs no Triton and no GPU."""

from typing import Literal

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.kernels.triton import tiles

Product = Literal["weight_only_linear", "dequantized_linear", "int_mm_linear", "mixed_linear"]

# What torch._int_mm asks of the number of rows; of the sizes it asks a multiple of 8, we of contiguous codes.
LEAST_INT_MM_ROWS = 17
# Outlier columns that `mixed_linear` multiplies in a turn of its loop; a few, it reads where they are.
COLUMNS_OF_A_TURN = {torch.float32: 16, torch.float16: 32, torch.bfloat16: 32}


def choose_product(x: Tensor, weight: Tensor, tables: tiles.Tables) -> Product:
    """Returns the name of the product that `int8_linear` runs.

    Args:
        x: fp16, bf16 or fp32 [M, K], also on the meta device.
        weight: int8 [N, K].
        tables: Those of the GPU.
    """
    m, k = x.shape
    if m <= tables.decode_rows:
        return "weight_only_linear"
    use_int_mm = tables.int_mm and _can_int_mm(m, weight)
    in_float = k > functional.INT32_K or not (tables.mixed_linear or use_int_mm)
    if x.dtype != torch.float32 and (in_float or tables.dequantize):
        return "dequantized_linear"
    if in_float:
        return "weight_only_linear"
    return "int_mm_linear" if use_int_mm else "mixed_linear"


def is_gathered(most: int, k: int, dtype: torch.dtype) -> bool:
    """Whether `mixed_linear` copies the outlier columns side by side before it multiplies.

    A few columns are read where they are; very many, as only a threshold finds them, would be copies of everything.

    Args:
        most: How many outlier columns there may be.
        k: K.
        dtype: That of the input.
    """
    return COLUMNS_OF_A_TURN[dtype] < most <= k // 4


def _can_int_mm(m: int, weight: Tensor) -> bool:
    n, k = weight.shape
    return m >= LEAST_INT_MM_ROWS and k % tiles.ALIGNMENT == 0 and n % tiles.ALIGNMENT == 0 and weight.stride(0) == k
