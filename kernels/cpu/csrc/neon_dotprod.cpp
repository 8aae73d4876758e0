// ARM with the dot product instructions (ARMv8.2): 4 sums of 4 products of signed bytes.
#include <arm_neon.h>

#include "kernels.h"
#include "prelude.h"

namespace llmint8::neon_dotprod {

struct Isa {
  static constexpr const char* NAME = "neon_dotprod";
  using Vector = int32x4_t;
  using Floats = float32x4_t;
  using Code = int8_t;
  using Packed = int8_t;
  static constexpr int LANES = 4, DEPTH = 4, BIAS = 0, DOT_FEATURES = 3, DOT_CODES = 8, IN_PLACE_CODES = 8, STREAMED_ROWS = 1;
  static constexpr int TILE_ROWS = 6, TILE_VECTORS = 4;  // 24 of 32 registers hold sums

  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
  static Vector zero() { return vdupq_n_s32(0); }
  static Vector load(const void* p) { return vreinterpretq_s32_s8(vld1q_s8(static_cast<const int8_t*>(p))); }
  static void store(void* p, Vector v) { vst1q_s8(static_cast<int8_t*>(p), vreinterpretq_s8_s32(v)); }
  static Vector broadcast(const Code* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    return vdupq_n_s32(four);
  }
  static Vector multiply_add(Vector sum, Vector codes, Vector weights) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(weights));
  }
  static Vector column_sums(Vector sum, Vector weights) {
    return vdotq_s32(sum, vdupq_n_s8(1), vreinterpretq_s8_s32(weights));
  }
  static Floats load_floats(const float* p) { return vld1q_f32(p); }
  static void store_floats(float* p, Floats v) { vst1q_f32(p, v); }
  static Floats multiply_add(Floats sum, float a, Floats b) { return vfmaq_n_f32(sum, b, a); }
  static Floats multiply_add(Floats sum, Floats a, Floats b) { return vfmaq_f32(sum, a, b); }
  static float sum(Floats v) { return vaddvq_f32(v); }
  static float largest(Floats v) { return vmaxvq_f32(v); }
  static Floats load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static void load_fp16(const uint16_t* x, float* out) {
    vst1q_f32(out, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))));
  }
  static void store_fp16(const float* x, uint16_t* out) {
    vst1_u16(out, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x))));
  }

  // The first `count` (at most 16) of 16 bytes, then zeros.
  static int8x16_t load_bytes(const int8_t* p, int64_t count) {
    if (count >= 16) return vld1q_s8(p);
    int8_t bytes[16] = {};
    if (count > 0) std::memcpy(bytes, p, count);
    return vld1q_s8(bytes);
  }

  // Transposes LANES rows of `depth` (at most 64) bytes: vector i, at out + i * stride, has bytes 4i to 4i + 3 of each.
  static void pack(const int8_t* w, int64_t row_stride, int rows, int depth, Packed* out, int64_t stride,
                   int64_t ahead) {
    for (int i = 0; i < rows; ++i) prefetch(w + i * row_stride + ahead);
    for (int start = 0; start < depth; start += 16) {
      int64x2_t low[2], high[2];
      for (int i = 0; i < 4; i += 2) {
        const auto row = [&](int r) {
          return vreinterpretq_s32_s8(r < rows ? load_bytes(w + r * row_stride + start, depth - start) : vdupq_n_s8(0));
        };
        const int32x4x2_t pair = vtrnq_s32(row(i), row(i + 1));
        low[i / 2] = vreinterpretq_s64_s32(pair.val[0]);
        high[i / 2] = vreinterpretq_s64_s32(pair.val[1]);
      }
      const int64x2_t columns[4] = {vtrn1q_s64(low[0], low[1]), vtrn1q_s64(high[0], high[1]),
                                    vtrn2q_s64(low[0], low[1]), vtrn2q_s64(high[0], high[1])};
      for (int i = 0; i < 4 && start + 4 * i < depth; ++i) {
        store(out + (start / 4 + i) * stride, vreinterpretq_s32_s64(columns[i]));
      }
    }
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
    for (int64_t j = 0; j < k; j += 16) {
      UNROLL
      for (int f = 0; f < FEATURES; ++f) {
        const int8_t* row = w + f * row_stride + j;
        if constexpr (COLUMN_SUMS) __builtin_prefetch(row + ahead);
        const Vector weights = vreinterpretq_s32_s8(load_bytes(row, k - j));
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
    for (int i = 0; i < ALL; ++i) totals[i] = vaddvq_s32(sum[i]);
  }
};

#include "kernels.inl"

}  // namespace llmint8::neon_dotprod
