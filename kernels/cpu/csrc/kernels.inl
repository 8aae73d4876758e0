// The kernels, in terms of `Isa`. Included once for each instruction set, inside its namespace.
//
// Plain loops over arrays are written so that a compiler turns them into vector instructions; only the inner loops of
// the products use `Isa`. Inline functions of the standard library are avoided: the linker keeps one copy of each for
// the whole library, which must not be one with instructions that the processor may lack.

constexpr int PANEL = Isa::LANES * Isa::TILE_VECTORS;
constexpr int64_t BLOCK_DEPTH = 640;  // at most, of a packed panel, which stays in the first cache with what it meets
constexpr int64_t BLOCK_OUTLIERS = 64;

using Code = Isa::Code;
using Packed = Isa::Packed;

// Memory of a thread, kept for its next task.
template <typename T>
T* scratch(int slot, int64_t count) {
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[6];
  Buffer& buffer = buffers[slot];
  const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    buffer.data = std::aligned_alloc(4096, bytes);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = bytes;
  }
  return static_cast<T*>(buffer.data);
}

// ---- rows of x ----

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

// ---- products ----

// Packs `rows` (at most PANEL) rows of the weight, k in [k0, k0 + depth), as [depth / DEPTH][PANEL][DEPTH], zeros where
// there is nothing, and adds up its column sums.
void pack_panel(const int8_t* w, int64_t row_stride, int rows, int64_t depth, Packed* out, int32_t* column_sums,
                int64_t ahead) {
  constexpr int64_t STEP = 64;  // bytes of a row at a time
  for (int first = 0; first < PANEL; first += Isa::LANES) {
    const int count = rows - first < 0 ? 0 : rows - first > Isa::LANES ? Isa::LANES : rows - first;
    for (int64_t k = 0; k < depth; k += STEP) {
      const int width = static_cast<int>(depth - k < STEP ? depth - k : STEP);
      Isa::pack(w + first * row_stride + k, row_stride, count, width,
                out + (k / Isa::DEPTH * PANEL + first) * Isa::DEPTH, PANEL * Isa::DEPTH, ahead);
    }
  }
  Isa::Vector sum[Isa::TILE_VECTORS];
  UNROLL
  for (int v = 0; v < Isa::TILE_VECTORS; ++v) sum[v] = Isa::load(column_sums + v * Isa::LANES);
  for (int64_t k = 0; k < depth; k += Isa::DEPTH, out += PANEL * Isa::DEPTH) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) {
      sum[v] = Isa::column_sums(sum[v], Isa::load(out + v * Isa::LANES * Isa::DEPTH));
    }
  }
  UNROLL
  for (int v = 0; v < Isa::TILE_VECTORS; ++v) Isa::store(column_sums + v * Isa::LANES, sum[v]);
}

// Memory that a tile asks for while it computes: lines of 64 bytes, LINES of a row, rows `stride` bytes apart.
struct Ahead {
  static constexpr int LINES = 8;
  const int8_t* data;
  int64_t stride;
};

// sums[ROWS, PANEL] += codes[ROWS, depth] . panel
template <int ROWS>
void tile(const Code* codes, int64_t stride, const Packed* panel, int64_t depth, Ahead ahead, int32_t* sums) {
  Isa::Vector sum[ROWS][Isa::TILE_VECTORS];
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) sum[i][v] = Isa::load(sums + i * PANEL + v * Isa::LANES);
  }
  for (int64_t k = 0; k < depth; ahead.data += ahead.stride) {
    const int8_t* line = ahead.data;
    const int64_t end = k + Ahead::LINES * Isa::DEPTH < depth ? k + Ahead::LINES * Isa::DEPTH : depth;
    for (; k < end; k += Isa::DEPTH, line += 64, panel += PANEL * Isa::DEPTH) {
      Isa::prefetch(line);
      Isa::Vector weights[Isa::TILE_VECTORS];
      UNROLL
      for (int v = 0; v < Isa::TILE_VECTORS; ++v) weights[v] = Isa::load(panel + v * Isa::LANES * Isa::DEPTH);
      UNROLL
      for (int i = 0; i < ROWS; ++i) {
        const Isa::Vector x = Isa::broadcast(codes + i * stride + k);
        UNROLL
        for (int v = 0; v < Isa::TILE_VECTORS; ++v) sum[i][v] = Isa::multiply_add(sum[i][v], x, weights[v]);
      }
    }
  }
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) Isa::store(sums + i * PANEL + v * Isa::LANES, sum[i][v]);
  }
}

// Calls `use` with the template argument min(count, MAX), for a count of at least 1.
template <int MAX, typename Use>
inline void with_count(int64_t count, Use use) {
  if constexpr (MAX > 1) {
    if (count < MAX) return with_count<MAX - 1>(count, use);
  }
  use.template operator()<MAX>();
}

// sums[rows, PANEL] = codes[rows, k] . w[0 : features, k].T, and the column sums of w.
void multiply(const Code* codes, int64_t stride, int64_t rows, const int8_t* w, int64_t row_stride, int features,
              int64_t k, int32_t* sums, int32_t* column_sums) {
  Packed* panel = scratch<Packed>(0, BLOCK_DEPTH * PANEL);
  std::memset(sums, 0, rows * PANEL * sizeof(int32_t));
  std::memset(column_sums, 0, PANEL * sizeof(int32_t));
  const int64_t blocks = (k + BLOCK_DEPTH - 1) / BLOCK_DEPTH;
  const int64_t block = ((k + blocks - 1) / blocks + 63) / 64 * 64;
  for (int64_t start = 0; start < k; start += block) {
    const int64_t depth = k - start < block ? k - start : block;
    // What is packed next, the rest of these rows or the start of the following ones, comes into the cache meanwhile.
    const int8_t* next = start + depth < k ? w + start + depth : w + PANEL * row_stride;
    pack_panel(w + start, row_stride, features, depth, panel, column_sums, next - (w + start));
    constexpr int AHEAD_ROWS = BLOCK_DEPTH / (Ahead::LINES * Isa::DEPTH);  // that a tile asks for
    int64_t asked = 0;
    for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS, asked += AHEAD_ROWS) {
      const Ahead ahead = asked < PANEL ? Ahead{next + asked * row_stride, row_stride} : Ahead{next, 0};
      with_count<Isa::TILE_ROWS>(rows - i, [&]<int ROWS>() {
        tile<ROWS>(codes + i * stride + start, stride, panel, depth, ahead, sums + i * PANEL);
      });
    }
  }
}

// sums[ROWS, PANEL] += x[ROWS, count] . panel[count, PANEL]
template <int ROWS>
void outlier_tile(const float* x, int64_t stride, const float* panel, int64_t count, float* sums) {
  Isa::Floats sum[ROWS][Isa::TILE_VECTORS];
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) sum[i][v] = Isa::load_floats(sums + i * PANEL + v * Isa::LANES);
  }
  for (int64_t k = 0; k < count; ++k, panel += PANEL) {
    Isa::Floats weights[Isa::TILE_VECTORS];
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) weights[v] = Isa::load_floats(panel + v * Isa::LANES);
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
      UNROLL
      for (int v = 0; v < Isa::TILE_VECTORS; ++v) {
        sum[i][v] = Isa::multiply_add(sum[i][v], x[i * stride + k], weights[v]);
      }
    }
  }
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) Isa::store_floats(sums + i * PANEL + v * Isa::LANES, sum[i][v]);
  }
}

// sums[rows, PANEL] = x[rows, O] . codes of w in the outlier columns
void multiply_outliers(const Prefill& p, int64_t m0, int64_t rows, int64_t n0, int features, float* sums) {
  float* panel = scratch<float>(1, BLOCK_OUTLIERS * PANEL);
  std::memset(sums, 0, rows * PANEL * sizeof(float));
  for (int64_t start = 0; start < p.outlier_count; start += BLOCK_OUTLIERS) {
    const int64_t count = p.outlier_count - start < BLOCK_OUTLIERS ? p.outlier_count - start : BLOCK_OUTLIERS;
    std::memset(panel, 0, count * PANEL * sizeof(float));
    for (int r = 0; r < features; ++r) {
      const int8_t* row = p.weight.codes + (n0 + r) * p.weight.row_stride;
      for (int64_t j = 0; j < count; ++j) panel[j * PANEL + r] = row[p.outlier_columns[start + j]];
    }
    for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS) {
      with_count<Isa::TILE_ROWS>(rows - i, [&]<int ROWS>() {
        outlier_tile<ROWS>(p.outliers + (m0 + i) * p.outlier_count + start, p.outlier_count, panel, count,
                           sums + i * PANEL);
      });
    }
  }
}

void load_bias(const Weight& w, int64_t n0, int64_t count, float* out) {
  if (w.bias == nullptr) {
    std::memset(out, 0, count * sizeof(float));
  } else {
    const int64_t size = w.bias_dtype == Dtype::fp32 ? 4 : 2;
    load_row(static_cast<const char*>(w.bias) + n0 * size, w.bias_dtype, count, out);
  }
}

// ---- tasks ----

void prefill_task(const Prefill& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  const Weight& w = p.weight;
  const int64_t rows = m1 - m0, stride = code_stride(w.k);
  int32_t* sums = scratch<int32_t>(2, rows * PANEL);
  float* outliers = scratch<float>(3, rows * PANEL);
  const Code* codes = static_cast<const Code*>(p.codes) + m0 * stride;
  for (int64_t n = n0; n < n1; n += PANEL) {
    const int features = static_cast<int>(n1 - n < PANEL ? n1 - n : PANEL);
    int32_t column_sums[PANEL];
    multiply(codes, stride, rows, w.codes + n * w.row_stride, w.row_stride, features, w.k, sums, column_sums);
    multiply_outliers(p, m0, rows, n, features, outliers);
    float bias[PANEL] = {}, scale[PANEL] = {}, y[PANEL];
    load_bias(w, n, features, bias);
    std::memcpy(scale, w.scale + n, features * sizeof(float));
    for (int64_t i = 0; i < rows; ++i) {
      const RowScale row = p.rows[m0 + i];
      const int32_t* sum = sums + i * PANEL;
      const float* outlier = outliers + i * PANEL;
      for (int j = 0; j < PANEL; ++j) {
        y[j] = (float(sum[j] - row.zero * column_sums[j]) * row.scale + outlier[j]) * scale[j] + bias[j];
      }
      store_row(y, features, p.y.dtype, p.y.data, (m0 + i) * w.n + n);
    }
  }
}

// Row m of y from the products of its digits, sums[d * digit_stride + j] for output feature n + j.
void finish_decode(const Decode& p, int64_t m, const int32_t* sums, int64_t digit_stride, const int32_t* column_sums,
                   int64_t n, int features) {
  const Weight& w = p.weight;
  float bias[PANEL], y[PANEL];
  load_bias(w, n, features, bias);
  const double scale = double(p.scale[m]) * (int64_t(1) << (DIGIT_BITS * (DIGITS - p.count)));
  for (int j = 0; j < features; ++j) {
    const int32_t excess = column_sums[j] * Isa::BIAS;
    double total = sums[j] - excess;
    for (int d = 1; d < p.count; ++d) total = total * (1 << DIGIT_BITS) + (sums[d * digit_stride + j] - excess);
    y[j] = static_cast<float>(total * scale * w.scale[n + j] + bias[j]);
  }
  store_row(y, features, p.y.dtype, p.y.data, m * w.n + n);
}

// As `multiply`, for few codes: they meet the weight where it lies. Its rows come from memory for the first codes, and
// from the first cache for the others.
template <int FEATURES, int COUNT>
inline void meet(const Code* codes, int64_t stride, int64_t count, const int8_t* w, int64_t row_stride, int64_t k,
                 int32_t* sums, int32_t* column_sums) {
  constexpr int64_t AHEAD = 8 << 10;  // bytes to ask for early: at the end of a page the processor looks no further
  for (int64_t c = 0; c < count; c += COUNT) {
    with_count<COUNT>(count - c, [&]<int NOW>() {
      int32_t totals[FEATURES * (NOW + 1)];
      if (c == 0) {
        Isa::template dot<FEATURES, NOW, true>(codes, stride, w, row_stride, k, AHEAD, totals);
      } else {
        Isa::template dot<FEATURES, NOW, false>(codes + c * stride, stride, w, row_stride, k, 0, totals);
      }
      for (int j = 0; j < FEATURES; ++j) {
        for (int i = 0; i < NOW; ++i) sums[(c + i) * PANEL + j] += totals[j * NOW + i];
        if (c == 0) column_sums[j] += totals[FEATURES * NOW + j];
      }
    });
  }
}

void multiply_in_place(const Code* codes, int64_t stride, int64_t count, const int8_t* w, int64_t row_stride,
                       int features, int64_t k, int32_t* sums, int32_t* column_sums) {
  constexpr int ALONE = 4;  // up to so many codes, a single row of the weight at a time streams best
  // The codes that a block meets stay in the first cache.
  const int64_t fit = (32 << 10) / (count * int64_t(sizeof(Code))) / 64 * 64;
  const int64_t block = count <= DIGITS || k <= fit ? k : fit;
  std::memset(sums, 0, count * PANEL * sizeof(int32_t));
  std::memset(column_sums, 0, PANEL * sizeof(int32_t));
  for (int64_t start = 0; start < k; start += block, codes += block, w += block) {
    const int64_t depth = k - start < block ? k - start : block;
    for (int j = 0; j < features;) {
      const int8_t* row = w + j * row_stride;
      if (count <= ALONE) {
        meet<1, ALONE>(codes, stride, count, row, row_stride, depth, sums + j, column_sums + j);
        j += 1;
      } else if (features - j < Isa::DOT_FEATURES) {
        meet<1, Isa::DOT_CODES>(codes, stride, count, row, row_stride, depth, sums + j, column_sums + j);
        j += 1;
      } else {
        meet<Isa::DOT_FEATURES, Isa::DOT_CODES>(codes, stride, count, row, row_stride, depth, sums + j,
                                                column_sums + j);
        j += Isa::DOT_FEATURES;
      }
    }
  }
}

void decode_task(const Decode& p, int64_t n0, int64_t n1) {
  const Weight& w = p.weight;
  const Code* digits = static_cast<const Code*>(p.digits);
  const int64_t codes = p.m * p.count, stride = code_stride(w.k);
  int32_t* sums = scratch<int32_t>(2, codes * PANEL);
  for (int64_t n = n0; n < n1; n += PANEL) {
    const int features = static_cast<int>(n1 - n < PANEL ? n1 - n : PANEL);
    const int8_t* rows = w.codes + n * w.row_stride;
    int32_t column_sums[PANEL];
    const auto product = codes <= Isa::IN_PLACE_CODES ? multiply_in_place : multiply;
    product(digits, stride, codes, rows, w.row_stride, features, w.k, sums, column_sums);
    for (int64_t m = 0; m < p.m; ++m) finish_decode(p, m, sums + m * PANEL, p.m * PANEL, column_sums, n, features);
  }
}

#include "attention.inl"
#include "float_linear.inl"

extern const Kernels KERNELS;
const Kernels KERNELS = {
    Isa::NAME,    sizeof(Code),        PANEL,        load_row,            score_row,      quantize_row,
    digitize_row, decode_task,         prefill_task, quantize_weight_row, float_linear,   attention_workspace,
    attention_pack, attention_prefill, attention_decode,
};
