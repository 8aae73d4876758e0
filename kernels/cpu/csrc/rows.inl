// Rows of x and of weights: conversion, outlier scores, codes, digits.

inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

void load_row(const void* x, Dtype dtype, int64_t k, float* out) {
  if (dtype == Dtype::fp32) {
    std::memcpy(out, x, k * sizeof(float));
  } else if (dtype == Dtype::bf16) {
    const uint16_t* in = static_cast<const uint16_t*>(x);
    for (int64_t i = 0; i < k; ++i) out[i] = from_bits(uint32_t(in[i]) << 16);
  } else {
    const uint16_t* in = static_cast<const uint16_t*>(x);
    int64_t i = 0;
    for (; i + Isa::LANES <= k; i += Isa::LANES) Isa::load_fp16(in + i, out + i);
    if (i < k) {
      uint16_t tail[Isa::LANES] = {};
      float wide[Isa::LANES];
      std::memcpy(tail, in + i, (k - i) * sizeof(uint16_t));
      Isa::load_fp16(tail, wide);
      std::memcpy(out + i, wide, (k - i) * sizeof(float));
    }
  }
}

// Rounds to the dtype, half to even.
void store_row(const float* row, int64_t count, Dtype dtype, void* y, int64_t offset) {
  if (dtype == Dtype::fp32) {
    std::memcpy(static_cast<float*>(y) + offset, row, count * sizeof(float));
  } else if (dtype == Dtype::bf16) {
    uint16_t* out = static_cast<uint16_t*>(y) + offset;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, row[i]);
      const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      out[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
  } else {
    uint16_t* out = static_cast<uint16_t*>(y) + offset;
    int64_t i = 0;
    for (; i + Isa::LANES <= count; i += Isa::LANES) Isa::store_fp16(row + i, out + i);
    if (i < count) {
      float tail[Isa::LANES] = {};
      uint16_t narrow[Isa::LANES];
      std::memcpy(tail, row + i, (count - i) * sizeof(float));
      Isa::store_fp16(tail, narrow);
      std::memcpy(out + i, narrow, (count - i) * sizeof(uint16_t));
    }
  }
}

// Applies `lane(j, x)` to every element, with j < 16 the same for elements 16 apart: a reduction without an order that
// the compiler would have to keep.
template <typename Lane>
inline void each_lane(const float* row, int64_t k, Lane lane) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    for (int j = 0; j < 16; ++j) lane(j, row[i + j]);
  }
  for (int j = 0; i + j < k; ++j) lane(j, row[i + j]);
}

struct Range {
  float low, high;
  bool finite;
};

Range range(const float* row, int64_t k) {
  float low[16] = {}, high[16] = {};
  int32_t bad[16] = {};
  each_lane(row, k, [&](int j, float v) {
    low[j] = v < low[j] ? v : low[j];
    high[j] = v > high[j] ? v : high[j];
    bad[j] |= (__builtin_bit_cast(int32_t, v) & 0x7f800000) == 0x7f800000;
  });
  Range r{0, 0, true};
  for (int j = 0; j < 16; ++j) {
    r.low = low[j] < r.low ? low[j] : r.low;
    r.high = high[j] > r.high ? high[j] : r.high;
    r.finite = r.finite && !bad[j];
  }
  return r;
}

// x / divisor, rounded as a division rounds: one step of Newton's method on x times the reciprocal (Markstein 1990).
struct Divider {
  float divisor, reciprocal;
#if defined(__FMA__) || defined(__aarch64__)
  float operator()(float x) const {
    const float quotient = x * reciprocal;
    return __builtin_fmaf(__builtin_fmaf(-quotient, divisor, x), reciprocal, quotient);
  }
  explicit Divider(float d) : divisor(d), reciprocal(1 / d) {}
  bool exact() const { return divisor > 1e-30f && divisor < 1e30f; }  // neither step under- nor overflows
#else
  float operator()(float x) const { return x / divisor; }
  explicit Divider(float d) : divisor(d), reciprocal(0) {}
  bool exact() const { return true; }
#endif
};

// Calls `use(i, row[i] / divisor)` for every element.
template <typename Use>
inline void divide(const float* row, int64_t k, float divisor, Use use) {
  const Divider divider(divisor);
  if (divider.exact()) {
    for (int64_t i = 0; i < k; ++i) use(i, divider(row[i]));
  } else {
    for (int64_t i = 0; i < k; ++i) use(i, row[i] / divisor);
  }
}

inline int32_t round_to_int(float v) { return static_cast<int32_t>(__builtin_rintf(v)); }

void score_row(const float* row, int64_t k, bool relative, float* scores) {
  float inverse = 1;
  if (relative) {
    double sums[16] = {};
    each_lane(row, k, [&](int j, float v) { sums[j] += double(v) * v; });
    double sum = 0;
    for (double s : sums) sum += s;
    inverse = float(1 / __builtin_sqrt(sum / double(k)));
  }
  for (int64_t i = 0; i < k; ++i) {
    const float score = __builtin_fabsf(row[i]) * inverse;
    const float counted = score < __builtin_inff() ? score : 0;  // a NaN or Inf spoils its own row and no other
    scores[i] = counted > scores[i] ? counted : scores[i];
  }
}

RowScale quantize_row(const float* row, int64_t k, bool symmetric, void* out) {
  Code* codes = static_cast<Code*>(out);
  const Range r = range(row, k);
  const int64_t width = code_stride(k);
  std::memset(codes + k, 0, (width - k) * sizeof(Code));
  if (!r.finite) {
    std::memset(codes, 0, k * sizeof(Code));
    return {__builtin_nanf(""), 0};
  }
  int32_t zero = Isa::BIAS;
  float scale;
  if (symmetric) {
    scale = (-r.low > r.high ? -r.low : r.high) / 127;
  } else {
    scale = r.high / 255 - r.low / 255;
  }
  if (scale == 0) scale = 1;
  if (!symmetric) {
    const int32_t point = round_to_int(-128 - r.low / scale);
    zero += point < -128 ? -128 : point > 127 ? 127 : point;
  }
  const int32_t low = Isa::BIAS - (symmetric ? 127 : 128), high = Isa::BIAS + 127;
  divide(row, k, scale, [&](int64_t i, float steps) {
    const int32_t code = round_to_int(steps) + zero;
    codes[i] = static_cast<Code>(code < low ? low : code > high ? high : code);
  });
  return {scale, zero};
}

// A row of 16-bit numbers whose largest is many times their mean magnitude needs 24 bits for the rest of it; otherwise
// the error of 16 bits is far below that of the int8 weight (one part in 1700 of the mean magnitude, against one in 100).
constexpr float SPIKY = 64;

float digitize_row(const float* row, int64_t k, int64_t plane, void* out, bool* fine) {
  Code* digits = static_cast<Code*>(out);
  const int64_t width = code_stride(k);
  for (int d = 0; d < DIGITS; ++d) std::memset(digits + d * plane + k, 0, (width - k) * sizeof(Code));
  const Range r = range(row, k);
  if (!r.finite) {
    for (int d = 0; d < DIGITS; ++d) std::memset(digits + d * plane, 0, k * sizeof(Code));
    return __builtin_nanf("");
  }
  float sums[16] = {}, sum = 0;
  each_lane(row, k, [&](int j, float v) { sums[j] += __builtin_fabsf(v); });
  for (float s : sums) sum += s;
  const float largest = -r.low > r.high ? -r.low : r.high;
  *fine = *fine || largest > SPIKY / k * sum;
  // In 24 bits a row has room for the rounding of its largest value; 16 bits are a multiple of 256 of those steps.
  const int shift = *fine ? 0 : 8;
  float scale = largest / (127 << 16);
  scale = scale < FLT_MIN ? FLT_MIN : scale;
  // Half a base added to each digit makes the digits of the sum those of a signed representation, in excess.
  constexpr int BITS = DIGIT_BITS, LAST = DIGITS - 1;
  constexpr int32_t HALF = 1 << (BITS - 1), MASK = (1 << BITS) - 1;
  int32_t halves = 0;
  for (int d = 0; d < DIGITS; ++d) halves += HALF << (d * BITS);
  divide(row, k, scale * (1 << shift), [&](int64_t i, float steps) {
    const int32_t excess = (round_to_int(steps) << shift) + halves;
    digits[i] = static_cast<Code>((excess >> (LAST * BITS)) + (Isa::BIAS - HALF));
    for (int d = 1; d <= LAST; ++d) {
      digits[d * plane + i] = static_cast<Code>(((excess >> ((LAST - d) * BITS)) & MASK) + (Isa::BIAS - HALF));
    }
  });
  return scale;
}

float quantize_weight_row(const float* row, int64_t k, int8_t* codes) {
  const Range r = range(row, k);
  if (!r.finite) {
    std::memset(codes, 0, k);
    return __builtin_nanf("");
  }
  float scale = (-r.low > r.high ? -r.low : r.high) / 127;
  if (scale == 0) scale = 1;
  divide(row, k, scale, [&](int64_t i, float steps) {
    const int32_t code = round_to_int(steps);
    codes[i] = static_cast<int8_t>(code < -127 ? -127 : code > 127 ? 127 : code);
  });
  return scale;
}
