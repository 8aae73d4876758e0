// AVX-512 with VNNI: 16 sums of 4 products of an unsigned and a signed byte in one instruction, without saturation.
#include <immintrin.h>

#include "kernels.h"
#include "prelude.h"

namespace llmint8::avx512vnni {

struct Isa {
  static constexpr const char* NAME = "avx512vnni";
  using Vector = __m512i;
  using Floats = __m512;
  using Code = uint8_t;    // of x, in excess of BIAS
  using Packed = int8_t;   // of the weight
  static constexpr int LANES = 16, DEPTH = 4, BIAS = 128;
  static constexpr int TILE_ROWS = 6, TILE_VECTORS = 4;  // 24 of 32 registers hold sums
  static constexpr int DOT_FEATURES = 2, DOT_CODES = 8, IN_PLACE_CODES = 16, STREAMED_ROWS = 4;

  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, Vector v) { _mm512_storeu_si512(p, v); }
  static Vector broadcast(const Code* codes) { return _mm512_set1_epi32(*reinterpret_cast<const int*>(codes)); }
  static Vector multiply_add(Vector sum, Vector codes, Vector weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(weights));
    return sum;
  }
  static Vector column_sums(Vector sum, Vector weights) {
    return multiply_add(sum, _mm512_set1_epi8(1), weights);
  }
  static Floats zero_floats() { return _mm512_setzero_ps(); }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats multiply_add(Floats sum, float a, Floats b) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, sum); }
  static Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
  static float sum(Floats v) { return _mm512_reduce_add_ps(v); }
  static float largest(Floats v) { return _mm512_reduce_max_ps(v); }
  static Floats load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void load_fp16(const uint16_t* x, float* out) {
    _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
  }
  static void store_fp16(const float* x, uint16_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(_mm512_loadu_ps(x), 0));
  }

  // Transposes 16 rows of `depth` (at most 64) bytes: vector i, at out + i * stride, has bytes 4i to 4i + 3 of each row.
  static void pack(const int8_t* w, int64_t row_stride, int rows, int depth, Packed* out, int64_t stride,
                   int64_t ahead) {
    const __mmask64 mask = depth == 64 ? ~__mmask64(0) : (__mmask64(1) << depth) - 1;
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) {
      prefetch(w + i * row_stride + ahead);
      r[i] = i < rows ? _mm512_maskz_loadu_epi8(mask, w + i * row_stride) : _mm512_setzero_si512();
    }
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8) {
      for (int j = 0; j < 4; ++j) {
        t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
        t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
      }
    }
    for (int j = 0; j < 8; ++j) {
      if (4 * j < depth) store(out + j * stride, _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88));
      if (4 * (j + 8) < depth) store(out + (j + 8) * stride, _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd));
    }
  }

  // Sums of the 16 lanes of four vectors.
  static __m128i reduce(Vector a, Vector b, Vector c, Vector d) {
    const Vector ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const Vector cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const Vector abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }

  // Adds the products of ROWS rows of the weight with COUNT rows of codes to sum[ROWS][COUNT], and, if asked, the sums of
  // the rows to column_sum. Without lambdas, since the compiler copies registers where it has to look through them.
  template <int ROWS, int COUNT, bool COLUMN_SUMS>
  static void add_dots(const Code* codes, int64_t stride, const int8_t* w, int64_t row_stride, int64_t k, int64_t ahead,
                       Vector (&sum)[ROWS][COUNT], Vector (&column_sum)[ROWS]) {
    const int64_t whole = k / 64 * 64;
    if (whole < k) {
      const __mmask64 mask = (__mmask64(1) << (k - whole)) - 1;
      UNROLL
      for (int f = 0; f < ROWS; ++f) {
        const Vector weights = _mm512_maskz_loadu_epi8(mask, w + f * row_stride + whole);
        if constexpr (COLUMN_SUMS) column_sum[f] = column_sums(column_sum[f], weights);
        UNROLL
        for (int i = 0; i < COUNT; ++i) sum[f][i] = multiply_add(sum[f][i], load(codes + i * stride + whole), weights);
      }
    }
    for (int64_t j = 0; j < whole; j += 64) {
      Vector weights[ROWS];
      UNROLL
      for (int f = 0; f < ROWS; ++f) {
        weights[f] = load(w + f * row_stride + j);
        if constexpr (COLUMN_SUMS) {
          _mm_prefetch(reinterpret_cast<const char*>(w + f * row_stride + j + ahead), _MM_HINT_T1);
          column_sum[f] = column_sums(column_sum[f], weights[f]);
        }
      }
      UNROLL
      for (int i = 0; i < COUNT; ++i) {
        const Vector x = load(codes + i * stride + j);
        UNROLL
        for (int f = 0; f < ROWS; ++f) sum[f][i] = multiply_add(sum[f][i], x, weights[f]);
      }
    }
  }

  // The products of FEATURES rows of the weight with COUNT rows of codes, totals[FEATURES, COUNT], and, if asked, after
  // them the sums of the rows of the weight.
  template <int FEATURES, int COUNT, bool COLUMN_SUMS>
  static void dot(const Code* codes, int64_t stride, const int8_t* w, int64_t row_stride, int64_t k, int64_t ahead,
                  int32_t* totals) {
    constexpr int PRODUCTS = FEATURES * COUNT, ALL = PRODUCTS + (COLUMN_SUMS ? FEATURES : 0);
    constexpr int ROWS = FEATURES == STREAMED_ROWS ? 1 : FEATURES;  // row by row, but reduced together
    Vector all[ALL + 3];
    UNROLL
    for (int first = 0; first < FEATURES; first += ROWS) {
      Vector sum[ROWS][COUNT], column_sum[ROWS];
      UNROLL
      for (int f = 0; f < ROWS; ++f) {
        column_sum[f] = zero();
        UNROLL
        for (int i = 0; i < COUNT; ++i) sum[f][i] = zero();
      }
      add_dots<ROWS, COUNT, COLUMN_SUMS>(codes, stride, w + first * row_stride, row_stride, k, ahead, sum, column_sum);
      UNROLL
      for (int f = 0; f < ROWS; ++f) {
        UNROLL
        for (int i = 0; i < COUNT; ++i) all[(first + f) * COUNT + i] = sum[f][i];
        if constexpr (COLUMN_SUMS) all[PRODUCTS + first + f] = column_sum[f];
      }
    }
    UNROLL
    for (int i = ALL; i < ALL + 3; ++i) all[i] = zero();
    int32_t results[ALL + 3];
    UNROLL
    for (int i = 0; i < ALL; i += 4) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results + i), reduce(all[i], all[i + 1], all[i + 2], all[i + 3]));
    }
    for (int i = 0; i < ALL; ++i) totals[i] = results[i];
  }
};

#include "kernels.inl"

}  // namespace llmint8::avx512vnni
