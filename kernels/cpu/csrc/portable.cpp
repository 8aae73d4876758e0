// Any processor, in plain C++; a compiler makes what vector instructions it can of it.
#include "kernels.h"
#include "prelude.h"

namespace llmint8::portable {

struct Isa {
  static constexpr const char* NAME = "portable";
  typedef int32_t Vector __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
  using Code = int16_t;
  using Packed = int32_t;
  static constexpr int LANES = 4, DEPTH = 1, BIAS = 0, DOT_FEATURES = 1, DOT_CODES = 4, IN_PLACE_CODES = 4, STREAMED_ROWS = 1;
  static constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;

  static void prefetch(const void*) {}
  static Vector load(const void* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(void* p, Vector v) { std::memcpy(p, &v, sizeof v); }
  static Vector broadcast(const Code* code) { return Vector{*code, *code, *code, *code}; }
  static Vector multiply_add(Vector sum, Vector codes, Vector weights) { return sum + codes * weights; }
  static Vector column_sums(Vector sum, Vector weights) { return sum + weights; }
  static Floats load_floats(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store_floats(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
  static Floats multiply_add(Floats sum, float a, Floats b) { return sum + a * b; }
  static Floats multiply_add(Floats sum, Floats a, Floats b) { return sum + a * b; }
  static float sum(Floats v) { return (v[0] + v[1]) + (v[2] + v[3]); }
  static float largest(Floats v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  static Floats load_bf16(const uint16_t* p) {
    Floats v;
    for (int i = 0; i < LANES; ++i) v[i] = __builtin_bit_cast(float, uint32_t(p[i]) << 16);
    return v;
  }

  static void load_fp16(const uint16_t* x, float* out) {
    for (int i = 0; i < LANES; ++i) {
      const uint32_t sign = uint32_t(x[i] & 0x8000) << 16, bits = x[i] & 0x7fff;
      float value;
      if (bits >= 0x7c00) {
        value = __builtin_bit_cast(float, 0x7f800000 | (bits & 0x3ff) << 13);
      } else {
        // Moved to the exponent of fp32, 112 too low; the product is exact, for subnormal numbers, too.
        value = __builtin_bit_cast(float, bits << 13) * 0x1p112f;
      }
      out[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | sign);
    }
  }
  static void store_fp16(const float* x, uint16_t* out) {
    for (int i = 0; i < LANES; ++i) {
      const uint32_t all = __builtin_bit_cast(uint32_t, x[i]), sign = all >> 16 & 0x8000, bits = all & 0x7fffffff;
      uint32_t half;
      if (bits > 0x7f800000) {
        half = 0x7e00;  // NaN
      } else if (bits >= 0x477ff000) {
        half = 0x7c00;  // rounds to a value out of range
      } else if (bits >= 0x38800000) {
        half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
      } else {
        // Subnormal: adding 0.5 leaves a multiple of 2**-24, rounded half to even, in the lowest bits.
        half = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, bits) + 0.5f) - 0x3f000000;
      }
      out[i] = static_cast<uint16_t>(half | sign);
    }
  }

  // Transposes LANES rows of `depth` (at most 64) bytes and widens them: vector i, at out + i * stride, has element i of
  // each.
  static void pack(const int8_t* w, int64_t row_stride, int rows, int depth, Packed* out, int64_t stride, int64_t) {
    for (int i = 0; i < LANES; ++i) {
      for (int k = 0; k < depth; ++k) out[k * stride + i] = i < rows ? w[i * row_stride + k] : 0;
    }
  }

  // The products of FEATURES rows of the weight with COUNT rows of codes, totals[FEATURES, COUNT], and, if asked, after
  // them the sums of the rows of the weight.
  template <int FEATURES, int COUNT, bool COLUMN_SUMS>
  static void dot(const Code* codes, int64_t stride, const int8_t* w, int64_t row_stride, int64_t k, int64_t,
                  int32_t* totals) {
    for (int f = 0; f < FEATURES; ++f) {
      const int8_t* row = w + f * row_stride;
      for (int i = 0; i < COUNT; ++i) {
        const Code* x = codes + i * stride;
        int32_t sum = 0;
        for (int64_t j = 0; j < k; ++j) sum += int32_t(x[j]) * row[j];
        totals[f * COUNT + i] = sum;
      }
      if constexpr (COLUMN_SUMS) {
        int32_t sum = 0;
        for (int64_t j = 0; j < k; ++j) sum += row[j];
        totals[FEATURES * COUNT + f] = sum;
      }
    }
  }
};

#include "kernels.inl"

}  // namespace llmint8::portable
