// Products of codes with a weight that is packed, or met where it lies, and of outliers with their columns.

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

// sums[ROWS, PANEL] += x[ROWS, count] . panel[count, PANEL], the rows of the panel `panel_stride` floats apart.
template <int ROWS>
void float_tile(const float* x, int64_t stride, const float* panel, int64_t panel_stride, int64_t count, float* sums) {
  Isa::Floats sum[ROWS][Isa::TILE_VECTORS];
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) sum[i][v] = Isa::load_floats(sums + i * PANEL + v * Isa::LANES);
  }
  for (int64_t k = 0; k < count; ++k, panel += panel_stride) {
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

// y[rows, PANEL] = x[rows, O] . codes of w in few outlier columns
void multiply_few_outliers(const Prefill& p, const Weight& w, int64_t m0, int64_t rows, int64_t n0, int features,
                           float* y) {
  float panel[FEW_OUTLIERS * PANEL] = {};
  std::memset(y, 0, rows * PANEL * sizeof(float));
  for (int r = 0; r < features; ++r) {
    const int8_t* row = w.codes + (n0 + r) * w.row_stride;
    for (int64_t j = 0; j < p.outlier_count; ++j) panel[j * PANEL + r] = row[p.outlier_columns[j]];
  }
  const float* outliers = p.outliers + m0 * p.outlier_count;
  for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS) {
    with_count<Isa::TILE_ROWS>(rows - i, [&]<int ROWS>() {
      float_tile<ROWS>(outliers + i * p.outlier_count, p.outlier_count, panel, PANEL, p.outlier_count, y + i * PANEL);
    });
  }
}

// The same for any number of them, as digits.
void multiply_many_outliers(const Prefill& p, const Weight& w, int64_t m0, int64_t rows, int64_t n0, int features,
                            float* y) {
  Packed* panel = scratch<Packed>(0, BLOCK_DEPTH * PANEL);
  int8_t* gathered = scratch<int8_t>(1, PANEL * BLOCK_DEPTH);
  const int64_t plane = code_stride(p.outlier_count), stride = DIGITS * plane;
  const Code* digits = static_cast<const Code*>(p.outlier_digits) + m0 * stride;
  for (int64_t start = 0; start < p.outlier_count; start += BLOCK_DEPTH) {
    const int64_t depth = p.outlier_count - start < BLOCK_DEPTH ? p.outlier_count - start : BLOCK_DEPTH;
    for (int r = 0; r < features; ++r) {
      const int8_t* row = w.codes + (n0 + r) * w.row_stride;
      for (int64_t j = 0; j < depth; ++j) gathered[r * depth + j] = row[p.outlier_columns[start + j]];
    }
    int32_t column_sums[PANEL] = {};
    pack_panel(gathered, depth, features, depth, panel, column_sums, 0);
    for (int j = 0; j < PANEL; ++j) column_sums[j] *= Isa::BIAS;
    for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS) {
      with_count<Isa::TILE_ROWS>(rows - i, [&]<int ROWS>() {
        float base = float(1 << (DIGIT_BITS * (DIGITS - 1)));  // of the highest digit
        for (int d = 0; d < p.digit_count; ++d, base /= 1 << DIGIT_BITS) {
          int32_t sums[ROWS * PANEL] = {};
          tile<ROWS>(digits + i * stride + d * plane + start, stride, panel, depth, {gathered, 0}, sums);
          for (int r = 0; r < ROWS; ++r) {
            const float scale = p.outlier_scale[m0 + i + r] * base;
            float* out = y + (i + r) * PANEL;
            if (start == 0 && d == 0) {
              for (int j = 0; j < PANEL; ++j) out[j] = float(sums[r * PANEL + j] - column_sums[j]) * scale;
            } else {
              for (int j = 0; j < PANEL; ++j) out[j] += float(sums[r * PANEL + j] - column_sums[j]) * scale;
            }
          }
        }
      });
    }
  }
}

// The products of FEATURES rows of the weight with codes [c, c + COUNT) are added to sums[c + i, j], and, for the first
// codes, the sums of the rows to column_sums[j]. Those come from memory, and later ones from a cache.
template <int FEATURES, int COUNT>
inline void meet(const Code* codes, int64_t stride, int64_t c, const int8_t* w, int64_t row_stride, int64_t k,
                 int64_t ahead, int32_t* sums, int32_t* column_sums) {
  int32_t totals[FEATURES * (COUNT + 1)];
  if (c == 0) {
    Isa::template dot<FEATURES, COUNT, true>(codes, stride, w, row_stride, k, ahead, totals);
    for (int j = 0; j < FEATURES; ++j) column_sums[j] += totals[FEATURES * COUNT + j];
  } else {
    Isa::template dot<FEATURES, COUNT, false>(codes + c * stride, stride, w, row_stride, k, 0, totals);
  }
  for (int j = 0; j < FEATURES; ++j) {
    for (int i = 0; i < COUNT; ++i) sums[(c + i) * PANEL + j] += totals[j * COUNT + i];
  }
}

// As `multiply`, for few codes: they meet the weight where it lies.
void multiply_in_place(const Code* codes, int64_t stride, int64_t count, const int8_t* w, int64_t row_stride,
                       int features, int64_t k, int32_t* sums, int32_t* column_sums) {
  constexpr int ALONE = 4;  // up to so many codes, rows of the weight stream best one after the other
  constexpr int64_t AHEAD = 16 << 10;
  // The codes that are met at a time stay in the first cache, and what they meet in the second until the last have met it.
  constexpr int64_t FIT = (16 << 10) / (Isa::DOT_CODES * int64_t(sizeof(Code))) / 64 * 64;
  const int64_t block = count <= ALONE || k <= FIT ? k : FIT;
  std::memset(sums, 0, count * PANEL * sizeof(int32_t));
  std::memset(column_sums, 0, PANEL * sizeof(int32_t));
  const auto sweep = [&]<int ROWS, int COUNT>(const Code* x, int64_t c, const int8_t* rows, int64_t depth, int64_t ahead) {
    int j = 0;
    for (; j + ROWS <= features; j += ROWS) {
      meet<ROWS, COUNT>(x, stride, c, rows + j * row_stride, row_stride, depth, ahead, sums + j, column_sums + j);
    }
    for (; j < features; ++j) {
      meet<1, COUNT>(x, stride, c, rows + j * row_stride, row_stride, depth, ahead, sums + j, column_sums + j);
    }
  };
  for (int64_t start = 0; start < k; start += block) {
    const int64_t depth = k - start < block ? k - start : block;
    // Asked for early, into the second cache: the first can wait for too few lines at once.
    const int64_t ahead = count <= ALONE ? AHEAD : (AHEAD + depth - 1) / depth * row_stride;
    if (count <= ALONE) {
      with_count<ALONE>(count, [&]<int COUNT>() {
        sweep.template operator()<Isa::STREAMED_ROWS, COUNT>(codes + start, 0, w + start, depth, ahead);
      });
      continue;
    }
    for (int64_t c = 0; c < count; c += Isa::DOT_CODES) {
      with_count<Isa::DOT_CODES>(count - c, [&]<int COUNT>() {
        sweep.template operator()<Isa::DOT_FEATURES, COUNT>(codes + start, c, w + start, depth, ahead);
      });
    }
  }
}
