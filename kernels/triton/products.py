"""What the kernels that multiply share: tiles, 16-bit products with int8 weights, scales and bias."""

import triton
import triton.language as tl


@triton.jit
def tile_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The tile of this program: GROUP_M tiles below each other first, whose weight is then in the second cache."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0) // per_group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    place = tl.program_id(0) % per_group
    return first + place % height, place // height


@triton.jit
def operand_masks(inside_m, inside_n, inside_k, EVEN_K: tl.constexpr):
    """The masks of the operands [BLOCK_M, BLOCK_K] and [BLOCK_K, BLOCK_N] of a product."""
    mask_a = inside_m[:, None]
    mask_b = inside_n[None, :]
    if not EVEN_K:
        mask_a = mask_a & inside_k[None, :]
        mask_b = mask_b & inside_k[:, None]
    return mask_a, mask_b


@triton.jit
def upper_half(x):
    """The part of fp32 numbers that is a bf16 number: the rest has 8 significant bits less."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def add_product(x, weight, result):
    """Returns `result + x . weight`, the codes of `weight` as they are, for x [M, K] in any of the three dtypes.

    Every int8 is exact in fp16 and in bf16. An fp32 number is the exact sum of three bf16 numbers.
    """
    if x.dtype == tl.float32:
        w = weight.to(tl.bfloat16)
        high = upper_half(x)
        rest = x - high
        middle = upper_half(rest)
        result = tl.dot((rest - middle).to(tl.bfloat16), w, result)
        result = tl.dot(middle.to(tl.bfloat16), w, result)
        return tl.dot(high.to(tl.bfloat16), w, result)
    else:
        return tl.dot(x, weight.to(x.dtype), result)


@triton.jit
def add_outliers(
    x,
    weight,
    columns,
    count,
    result,
    inside_m,
    inside_n,
    stride_xm,
    stride_weight,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GATHERED: tl.constexpr,
):
    """Returns `result` plus the product of the outlier columns of a tile, as many as the device has counted.

    `x` and `weight` point to the first row of the tile; gathered, they have the outlier columns only.
    """
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    o = tl.arange(0, BLOCK_O)
    n_columns = tl.load(count)
    if GATHERED:
        x_rows = x + (m[:, None] * stride_xm + o[None, :])
        weight_rows = weight + (n[None, :] * stride_weight + o[:, None])
        for _ in tl.range(0, n_columns, BLOCK_O, num_stages=3):
            xo = tl.load(x_rows, mask=inside_m[:, None], other=0.0)
            result = add_product(xo, tl.load(weight_rows, mask=inside_n[None, :], other=0), result)
            x_rows += BLOCK_O
            weight_rows += BLOCK_O
        return result
    else:
        for start in tl.range(0, n_columns, BLOCK_O, num_stages=1):
            inside_o = o < n_columns - start
            column = tl.load(columns + start + o, mask=inside_o, other=0)
            xo = x + (m[:, None] * stride_xm + column[None, :])
            wo = weight + (n[None, :] * stride_weight + column[:, None])
            result = add_product(
                tl.load(xo, mask=inside_m[:, None] & inside_o[None, :], other=0.0),
                tl.load(wo, mask=inside_n[None, :] & inside_o[:, None], other=0),
                result,
            )
        return result


@triton.jit
def scale_and_add_bias(result, weight_scale, bias, n, inside_n):
    """Returns `result * weight_scale + bias` of a tile with the output features `n`."""
    result *= tl.load(weight_scale + n, mask=inside_n, other=0.0)[None, :]
    if bias is not None:
        result += tl.load(bias + n, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    return result
