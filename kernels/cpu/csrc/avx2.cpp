// AVX2 without VNNI. Its product of bytes saturates, so codes and weights are widened to 16 bits, whose products do not.
#include "kernels.h"
#include "prelude.h"
#include "x86_256.h"

namespace llmint8::avx2 {

struct Isa : X86With256Bits {
  static constexpr const char* NAME = "avx2";
  using Code = int16_t;
  using Packed = int16_t;
  static constexpr int DEPTH = 2, BIAS = 0, DOT_FEATURES = 2, DOT_CODES = 4, IN_PLACE_CODES = 4, STREAMED_ROWS = 1;

  using X86With256Bits::multiply_add;
  static Vector multiply_add(Vector sum, Vector codes, Vector weights) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(codes, weights));
  }
  static Vector column_sums(Vector sum, Vector weights) { return multiply_add(sum, _mm256_set1_epi16(1), weights); }

  // Transposes LANES rows of `depth` (at most 64) bytes and widens them: vector i, at out + i * stride, has elements 2i
  // and 2i + 1 of each.
  static void pack(const int8_t* w, int64_t row_stride, int rows, int depth, Packed* out, int64_t stride,
                   int64_t ahead) {
    for (int i = 0; i < rows; ++i) prefetch(w + i * row_stride + ahead);
    // Within each half of a vector: bytes 0 and 1 of its four elements, then bytes 2 and 3.
    const Vector pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    transpose(w, row_stride, rows, depth, [&](int i, Vector v) {
      v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, pairs), 0xd8);
      store(out + 2 * i * stride, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)));
      if (4 * i + 2 < depth) store(out + (2 * i + 1) * stride, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)));
    });
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
        const Vector bytes = load_bytes(row, k - j);
        const Vector low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
        const Vector high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
        if constexpr (COLUMN_SUMS) {
          sum[FEATURES * COUNT + f] = column_sums(column_sums(sum[FEATURES * COUNT + f], low), high);
        }
        UNROLL
        for (int i = 0; i < COUNT; ++i) {
          const Code* x = codes + i * stride + j;
          sum[f * COUNT + i] = multiply_add(multiply_add(sum[f * COUNT + i], load(x), low), load(x + 16), high);
        }
      }
    }
    for (int i = 0; i < ALL; ++i) totals[i] = reduce(sum[i]);
  }
};

#include "kernels.inl"

}  // namespace llmint8::avx2
