// The interface between the operators (operators.cpp) and the kernels, which are compiled once for each instruction
// set. Nothing here knows of PyTorch.
#pragma once

#include <cstdint>

#include "limits.h"

namespace llmint8 {

enum class Dtype : int { fp32, bf16, fp16 };

struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t row_stride;  // in elements; the elements of a row are adjacent
};

struct Weight {
  const int8_t* codes;  // [N, K]
  int64_t row_stride;
  const float* scale;  // [N]
  const void* bias;    // [N] or null
  Dtype bias_dtype;
  int64_t n, k;
};

struct Output {
  void* data;  // [M, N], rows adjacent
  Dtype dtype;
};

// Fewer digits, where 16 bits are enough for every row, and the bits of one.
constexpr int COARSE_DIGITS = 2, DIGIT_BITS = 8;

// A row as codes: x is about scale * (code - zero).
struct RowScale {
  float scale;
  int32_t zero;
};

// Few rows, written as fixed point: x is about scale * sum_d base^d digit_d.
struct Decode {
  const void* digits;  // [D, M, code_stride(K)], the highest digit first
  const float* scale;  // [M]
  int count;           // D, DIGITS or COARSE_DIGITS
  int64_t m;
};

struct Prefill {
  const void* codes;  // [M, code_stride(K)]
  const RowScale* rows;
  int64_t m;
  const int64_t* outlier_columns;  // [O], ascending
  int64_t outlier_count;
  const float* outliers;       // x in those columns, [M, O], if they are few; or
  const void* outlier_digits;  // [M, DIGITS, code_stride(O)], the highest digit first
  const float* outlier_scale;  // [M]
  int digit_count;             // that are not 0, DIGITS or COARSE_DIGITS
};

enum class Activation : int { silu, gelu_tanh };

// What is made of the rows: y = x . weight, or y = activation(x . gate) * (x . weight).
struct Product {
  Weight weight;
  Weight gate;  // of the same shape, or with null codes
  Activation activation;
  Output y;
};

// Heads of queries, keys or values, [batch, heads, rows, depth], strides in elements, the elements of a row adjacent.
struct Heads {
  const void* data;
  int64_t batch_stride, head_stride, row_stride;
};

// Every key head serves heads / key_heads heads of queries, one after the other.
struct Attention {
  Heads q, k, v;
  Dtype dtype;
  int64_t batch, heads, key_heads, queries, keys, depth;
  float scale;
  bool causal;  // query i sees keys 0 to keys - queries + i
  void* y;      // [batch, queries, heads, depth]
};

// A float weight, bf16 or fp32, that is read once, for 1 to MAX_FLOAT_ROWS rows.
struct FloatLinear {
  const float* x;      // [M, K]
  const void* weight;  // [N, K]
  const void* bias;    // [N] or null
  Dtype dtype;         // of the weight, the bias and y
  int64_t m, n, k;
  void* y;  // [M, N]
};

// The kernels of one instruction set. Each works on its own rows of the output and writes nothing else, so tasks run
// in any order on any threads; integer sums make the results independent of both.
struct Kernels {
  const char* name;
  int code_bytes;  // bytes of a code
  int panel;       // output features a GEMM task takes at least
  // Widens k elements to fp32.
  void (*load)(const void* x, Dtype dtype, int64_t k, float* out);
  // Rounds a row to a dtype, into y from element `offset` on.
  void (*store)(const float* row, int64_t k, Dtype dtype, void* y, int64_t offset);
  // scores[k] = max(scores[k], |row[k]|), relative to the row's root mean square if asked. NaN and Inf do not count.
  void (*score)(const float* row, int64_t k, bool relative, float* scores);
  // Quantizes a row (its outliers are zero already) and pads it.
  RowScale (*quantize)(const float* row, int64_t k, bool symmetric, void* codes);
  // Writes a row as fixed point, its digits `plane` codes apart, and returns its scale. It has 24 bits if *fine says so,
  // or else 16, unless it is spiky: then *fine is set.
  float (*digitize)(const float* row, int64_t k, int64_t plane, void* digits, bool* fine);
  // Output features [n0, n1) of all rows, for few rows.
  void (*decode)(const Decode& rows, const Product& product, int64_t n0, int64_t n1);
  // Output features [n0, n1) of rows [m0, m1).
  void (*prefill)(const Prefill& rows, const Product& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1);
  // Quantizes one row of a weight; returns its scale.
  float (*quantize_weight)(const float* row, int64_t k, int8_t* codes);
  // Output features [n0, n1) of a float layer.
  void (*float_linear)(const FloatLinear& problem, int64_t n0, int64_t n1);
  // Floats that attention of many queries needs, filled for a panel of the keys of one head, and used for queries [q0, q1)
  // of it.
  int64_t (*attention_workspace)(const Attention& problem);
  void (*attention_pack)(const Attention& problem, int64_t b, int64_t key_head, int64_t block, float* workspace);
  void (*attention_prefill)(const Attention& problem, int64_t b, int64_t key_head, int64_t q0, int64_t q1,
                            const float* workspace);
  // Few queries of one key head: floats of a part, which is made of keys [j0, j1), and what all its parts come to.
  int64_t (*attention_part)(const Attention& problem);
  void (*attention_decode)(const Attention& problem, int64_t b, int64_t key_head, int64_t j0, int64_t j1, float* part);
  void (*attention_join)(const Attention& problem, int64_t b, int64_t key_head, float* parts, int64_t count);
  // Normalizes a row, which is overwritten, into y from element `offset` on.
  void (*rms_norm)(float* row, const float* weight, int64_t k, float eps, const Output& y, int64_t offset);
  // Rotary embedding of some adjacent heads of one row, in place.
  void (*rotate)(void* row, Dtype dtype, int64_t heads, int64_t depth, const float* cosine, const float* sine);
};

// The instruction sets compiled in that this processor has, best first; the last one is always there.
// Ends with a null pointer.
const Kernels* const* available_kernels();

// Codes from one row to the next: whole vectors, in a number that keeps rows from competing for the same places of a cache
// with 64 sets of lines: any odd one for short rows. Of long ones a part at a time is in the cache, and an odd multiple of
// 8 spreads these parts over all sets.
constexpr int64_t code_stride(int64_t k) {
  const int64_t lines = (k + ALIGNMENT - 1) / ALIGNMENT;
  return (lines <= 32 ? lines | 1 : lines + (24 - lines % 16) % 16) * ALIGNMENT;
}

}  // namespace llmint8
