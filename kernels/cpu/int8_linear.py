"""`int8_linear` on a CPU: int8 products by oneDNN (`torch._int_mm`) where the processor has VNNI."""

import functools

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.kernels.cpu.limits import DECODE_ROWS
from llmint8.kernels.reference import int8_linear as reference
from llmint8.outliers import OutlierRule

# Steps of a row's fixed point: three int8 digits of base 256, with room for the rounding of the largest value.
_STEPS = 127 << 16


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    outlier_columns: Tensor | None,
    rule: OutlierRule,
) -> Tensor:
    """Same as `llmint8.kernels.reference.int8_linear`, faster on a processor with VNNI."""
    # With a single feature torch._int_mm returns what it finds in memory.
    if not int_mm_is_fast() or not 2 <= x.shape[1] <= functional.INT32_K:
        return reference.int8_linear(x, weight, weight_scale, bias, outlier_columns, rule)
    if x.shape[0] <= DECODE_ROWS:
        return _weight_only(x, weight, weight_scale, bias)
    outliers = functional.select_outliers(x, outlier_columns, rule)
    # A CPU waits for nobody when it looks at data, so the 16-bit part reads only the outlier columns.
    columns = torch.empty(0, dtype=torch.long) if outliers is None else outliers.nonzero().flatten()
    weight_o = functional.dequantize(weight[:, columns], weight_scale).T
    y = x.new_empty(x.shape[0], weight.shape[0])
    for rows, out in zip(x.split(reference.BLOCK_ROWS), y.split(reference.BLOCK_ROWS), strict=True):
        result = _int8_part(rows, weight, weight_scale, outliers, rule.symmetric)
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
    absmax = x.abs().amax(dim=1, keepdim=True).float()
    scale = (absmax / _STEPS).clamp_(min=torch.finfo(torch.float32).tiny)
    # Whatever integer a NaN becomes, the scale of its row is not finite.
    steps = (x / scale).round_().to(torch.int32, memory_format=torch.contiguous_format)
    # Adding 128 to each digit makes the bytes of the sum the digits in excess of 128; the highest byte is left over.
    bytes_of_steps = (steps + 0x808080).view(torch.int8).bitwise_xor_(-128).view(*x.shape, 4)
    low, middle, high = bytes_of_steps.permute(2, 0, 1)[:3].contiguous()
    if x.shape[0] == 1:  # oneDNN streams the weight for one row, but repacks it for several
        products = [torch._int_mm(digit, weight.T) for digit in (high, middle, low)]
    else:
        products = list(torch._int_mm(torch.cat([high, middle, low]), weight.T).split(x.shape[0]))
    y = products[0].float().mul_(256).add_(products[1]).mul_(256).add_(products[2])
    y = y.mul_(weight_scale.T).mul_(scale)
    return (y if bias is None else y.add_(bias)).to(x.dtype)
