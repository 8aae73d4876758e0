// VNNI on 256-bit vectors, as in processors without AVX-512.
#include "kernels.h"
#include "prelude.h"
#include "x86_256.h"

namespace llmint8::avxvnni {

struct Isa : X86With256Bits {
  static constexpr const char* NAME = "avxvnni";
  using Code = uint8_t;   // of x, in excess of BIAS
  using Packed = int8_t;  // of the weight
  static constexpr int DEPTH = 4, BIAS = 128, DOT_FEATURES = 2, DOT_CODES = 4, IN_PLACE_CODES = 4, STREAMED_ROWS = 1;

  using X86With256Bits::multiply_add;
  static Vector multiply_add(Vector sum, Vector codes, Vector weights) {
    return _mm256_dpbusd_avx_epi32(sum, codes, weights);
  }
  static Vector column_sums(Vector sum, Vector weights) {
    return _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi8(1), weights);
  }

  // Transposes LANES rows of `depth` (at most 64) bytes: vector i, at out + i * stride, has bytes 4i to 4i + 3 of each.
  static void pack(const int8_t* w, int64_t row_stride, int rows, int depth, Packed* out, int64_t stride,
                   int64_t ahead) {
    for (int i = 0; i < rows; ++i) prefetch(w + i * row_stride + ahead);
    transpose(w, row_stride, rows, depth, [&](int i, Vector v) { store(out + i * stride, v); });
  }

  // The products of FEATURES rows of the weight with COUNT rows of codes, totals[FEATURES, COUNT], and, if asked, after
  // them the sums of the rows of the weight.
  template <int FEATURES, int COUNT, bool COLUMN_SUMS>
  static void dot(const Code* codes, int64_t stride, const int8_t* w, int64_t row_stride, int64_t k, int64_t ahead,
                  int32_t* totals) {
    constexpr int ALL = FEATURES * (COUNT + COLUMN_SUMS);
    Vector sum[ALL];
    UNROLL
    for (int i = 0; i < ALL; ++i) sum[i] = zero();
    for (int64_t j = 0; j < k; j += 32) {
      UNROLL
      for (int f = 0; f < FEATURES; ++f) {
        const int8_t* row = w + f * row_stride + j;
        if constexpr (COLUMN_SUMS) __builtin_prefetch(row + ahead);
        const Vector weights = load_bytes(row, k - j);
        if constexpr (COLUMN_SUMS) {
          sum[FEATURES * COUNT + f] = column_sums(sum[FEATURES * COUNT + f], weights);
        }
        UNROLL
        for (int i = 0; i < COUNT; ++i) {
          const Code* x = codes + i * stride + j;
          sum[f * COUNT + i] = multiply_add(sum[f * COUNT + i], load(x), weights);
        }
      }
    }
    for (int i = 0; i < ALL; ++i) totals[i] = reduce(sum[i]);
  }
};

#include "kernels.inl"

}  // namespace llmint8::avxvnni
