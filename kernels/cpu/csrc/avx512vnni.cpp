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
    return _mm512_dpbusd_epi32(sum, codes, weights);
  }
  static Vector column_sums(Vector sum, Vector weights) {
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), weights);
  }
  static Floats zero_floats() { return _mm512_setzero_ps(); }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats multiply_add(Floats sum, float a, Floats b) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, sum); }
  static Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
  static float sum(Floats v) { return _mm512_reduce_add_ps(v); }
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

  // The products of FEATURES rows of the weight with COUNT rows of codes, totals[FEATURES, COUNT], and, if asked, after
  // them the sums of the rows of the weight.
  template <int FEATURES, int COUNT, bool COLUMN_SUMS>
  static void dot(const Code* codes, int64_t stride, const int8_t* w, int64_t row_stride, int64_t k, int64_t ahead,
                  int32_t* totals) {
    constexpr int ALL = FEATURES * (COUNT + COLUMN_SUMS);
    Vector sum[ALL + 3];
    UNROLL
    for (int i = 0; i < ALL + 3; ++i) sum[i] = zero();
    const auto step = [&]<int FIRST, int ROWS>(const auto& weights_of, int64_t j) {
      Vector weights[ROWS];
      UNROLL
      for (int f = 0; f < ROWS; ++f) {
        weights[f] = weights_of(FIRST + f);
        if constexpr (COLUMN_SUMS) {
          Vector& total = sum[FEATURES * COUNT + FIRST + f];
          total = column_sums(total, weights[f]);
        }
      }
      UNROLL
      for (int i = 0; i < COUNT; ++i) {
        const Vector x = load(codes + i * stride + j);
        UNROLL
        for (int f = 0; f < ROWS; ++f) {
          Vector& total = sum[(FIRST + f) * COUNT + i];
          total = multiply_add(total, x, weights[f]);
        }
      }
    };
    const auto pass = [&]<int FIRST, int ROWS>() {
      int64_t j = 0;
      for (; j + 64 <= k; j += 64) {
        if constexpr (COLUMN_SUMS) {
          UNROLL
          for (int f = FIRST; f < FIRST + ROWS; ++f) {
            _mm_prefetch(reinterpret_cast<const char*>(w + f * row_stride + j + ahead), _MM_HINT_T0);
          }
        }
        step.template operator()<FIRST, ROWS>([&](int f) { return load(w + f * row_stride + j); }, j);
      }
      if (j < k) {
        const __mmask64 mask = (__mmask64(1) << (k - j)) - 1;
        step.template operator()<FIRST, ROWS>(
            [&](int f) { return _mm512_maskz_loadu_epi8(mask, w + f * row_stride + j); }, j);
      }
    };
    if constexpr (FEATURES == STREAMED_ROWS) {  // row by row, but their sums are reduced together
      pass.template operator()<0, 1>();
      pass.template operator()<1, 1>();
      pass.template operator()<2, 1>();
      pass.template operator()<3, 1>();
    } else {
      pass.template operator()<0, FEATURES>();
    }
    int32_t all[ALL + 3];
    UNROLL
    for (int i = 0; i < ALL; i += 4) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(all + i), reduce(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
    }
    for (int i = 0; i < ALL; ++i) totals[i] = all[i];
  }
};

#include "kernels.inl"

}  // namespace llmint8::avx512vnni
