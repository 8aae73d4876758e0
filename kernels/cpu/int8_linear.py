"""`int8_linear` on a CPU: int8 products by oneDNN (`torch._int_mm`) where the processor has VNNI."""

import functools

import torch
from llmint8.kernels.reference import int8_linear as reference
from torch import Tensor

from llmint8 import functional

DECODE_ROWS = reference.DECODE_ROWS
# The largest integer that three int8 digits of base 256 write with digits in [-128, 127] on either side of 0.
_DIGITS_MAX = (127 * 256 + 127) * 256 + 127


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
    """Same as `llmint8.kernels.reference.int8_linear`, faster on a processor with VNNI."""
    # With a single feature torch._int_mm returns what it finds in memory.
    if not int_mm_is_fast() or not 2 <= x.shape[1] <= functional.INT32_K:
        return reference.int8_linear(
            x, weight, weight_scale, bias, outlier_columns, mode, threshold, budget, relative, symmetric
        )
    if x.shape[0] <= DECODE_ROWS:
        return _weight_only(x, weight, weight_scale, bias)
    outliers = functional.select_outliers(x, outlier_columns, mode, threshold, budget, relative)
    # A CPU waits for nobody when it looks at data, so the 16-bit part reads only the outlier columns.
    columns = torch.empty(0, dtype=torch.long) if outliers is None else outliers.nonzero().flatten()
    weight_o = functional.dequantize(weight[:, columns], weight_scale).T
    y = x.new_empty(x.shape[0], weight.shape[0])
    for rows, out in zip(x.split(reference.BLOCK_ROWS), y.split(reference.BLOCK_ROWS), strict=True):
        result = _int8_part(rows, weight, weight_scale, outliers, symmetric)
        if columns.numel():
            result.addmm_(rows[:, columns].float(), weight_o)
        out.copy_(result if bias is None else result.add_(bias.float()))
    return y


@functools.cache
def int_mm_is_fast() -> bool:
    """Whether `torch._int_mm` has vector instructions for int8 here; without VNNI it is a scalar loop."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and has_vnni is not None and bool(has_vnni())


def _int8_part(x: Tensor, weight: Tensor, weight_scale: Tensor, outliers: Tensor | None, symmetric: bool) -> Tensor:
    """Quantized product of [M, K] rows without their outlier columns: fp32 [M, N]."""
    if symmetric:
        codes, scale = functional.quantize_rowwise(x, outliers)
        product = torch._int_mm(codes, weight.T)
    else:
        codes, scale, zero_point = functional.quantize_zeropoint(x, outliers)
        # One more row, of ones, gives the column sums of the weight for the correction in the same product.
        codes = torch.cat([codes, codes.new_ones(1, codes.shape[1])])
        product = torch._int_mm(codes, weight.T)
        product = product[:-1].addcmul_(zero_point, product[-1:], value=-1)
    return product.float().mul_(scale).mul_(weight_scale.T)


def _weight_only(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.weight_only_linear` by int8 products: each row is written in three int8 digits of base 256.

    The 24-bit fixed point is as exact as an fp32 sum, and integer sums make a row's result independent of its batch
    and of the number of threads.
    """
    absmax = x.float().abs().amax(dim=1, keepdim=True)
    scale = absmax / _DIGITS_MAX
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    steps = torch.round(x.float() / scale).nan_to_num(0).clamp(-_DIGITS_MAX, _DIGITS_MAX).to(torch.int32)
    low = (steps + 128) % 256 - 128
    steps = (steps - low) // 256
    middle = (steps + 128) % 256 - 128
    high = (steps - middle) // 256
    digits = [digit.to(torch.int8) for digit in (high, middle, low)]
    if x.shape[0] == 1:  # oneDNN streams the weight for one row, but repacks it for several
        products = [torch._int_mm(digit, weight.T) for digit in digits]
    else:
        products = list(torch._int_mm(torch.cat(digits), weight.T).split(x.shape[0]))
    y = ((products[0].float() * 256 + products[1]) * 256 + products[2]) * weight_scale.T * scale
    return (y if bias is None else y + bias.float()).to(x.dtype)
