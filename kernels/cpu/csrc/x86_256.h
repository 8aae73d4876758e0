// What the instruction sets with 256-bit vectors have in common.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace llmint8 {
namespace {

struct X86With256Bits {
  using Vector = __m256i;
  using Floats = __m256;
  static constexpr int LANES = 8;
  static constexpr int TILE_ROWS = 6, TILE_VECTORS = 2;  // 12 of 16 registers hold sums

  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static Vector broadcast(const void* codes) {
    int32_t bits;
    std::memcpy(&bits, codes, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  static Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static void store_floats(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static Floats multiply_add(Floats sum, float a, Floats b) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, sum); }
  static Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
  static float sum(Floats v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float largest(Floats v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static Floats load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static void load_fp16(const uint16_t* x, float* out) {
    _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
  }
  static void store_fp16(const float* x, uint16_t* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(_mm256_loadu_ps(x), 0));
  }

  static int32_t reduce(Vector v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }

  // The first `count` (at most 32) of 32 bytes, then zeros.
  static Vector load_bytes(const int8_t* p, int64_t count) {
    if (count >= 32) return load(p);
    int8_t bytes[32] = {};
    if (count > 0) std::memcpy(bytes, p, count);
    return load(bytes);
  }

  // Calls `use(i, v)` with vectors v of bytes 4i to 4i + 3 of each of 8 rows of `depth` bytes.
  template <typename Use>
  static void transpose(const int8_t* w, int64_t row_stride, int rows, int depth, Use use) {
    for (int start = 0; start < depth; start += 32) {
      __m256i r[8], t[8];
      for (int i = 0; i < 8; ++i) r[i] = i < rows ? load_bytes(w + i * row_stride + start, depth - start) : zero();
      for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
      }
      for (int j = 0; j < 4; ++j) {
        const int low = start / 4 + j, high = low + 4;
        if (4 * low < depth) use(low, _mm256_permute2x128_si256(r[j], r[j + 4], 0x20));
        if (4 * high < depth) use(high, _mm256_permute2x128_si256(r[j], r[j + 4], 0x31));
      }
    }
  }
};

}  // namespace
}  // namespace llmint8
