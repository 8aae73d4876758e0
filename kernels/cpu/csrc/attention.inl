// Attention of few queries over the keys as they lie, and of many over keys packed once. In terms of `Isa` and of the
// tiles in kernels.inl; sums are fp32, and the softmax is the online one of FlashAttention (Dao et al. 2022, section 3).

inline const char* at(const Heads& heads, Dtype dtype, int64_t b, int64_t head, int64_t row) {
  const int64_t size = dtype == Dtype::fp32 ? 4 : 2;
  return static_cast<const char*>(heads.data) +
         (b * heads.batch_stride + head * heads.head_stride + row * heads.row_stride) * size;
}

// The workspace of one key head: for each PANEL of keys, the keys as [depth, PANEL], then the values as
// [depth / PANEL, PANEL, PANEL], zeros where there is nothing.
int64_t value_panels(int64_t depth) { return (depth + PANEL - 1) / PANEL; }
int64_t block_floats(int64_t depth) { return PANEL * (depth + value_panels(depth) * PANEL); }

int64_t attention_workspace(const Attention& p) {
  return p.batch * p.key_heads * ((p.keys + PANEL - 1) / PANEL) * block_floats(p.depth);
}

void attention_pack(const Attention& p, int64_t b, int64_t head, int64_t block, float* workspace) {
  const int64_t blocks = (p.keys + PANEL - 1) / PANEL, floats = block_floats(p.depth);
  float* row = scratch<float>(0, p.depth);
  float* keys = workspace + ((b * p.key_heads + head) * blocks + block) * floats;
  float* values = keys + p.depth * PANEL;
  std::memset(keys, 0, floats * sizeof(float));
  for (int64_t j = 0; j < PANEL && block * PANEL + j < p.keys; ++j) {
    load_row(at(p.k, p.dtype, b, head, block * PANEL + j), p.dtype, p.depth, row);
    for (int64_t d = 0; d < p.depth; ++d) keys[d * PANEL + j] = row[d];
    load_row(at(p.v, p.dtype, b, head, block * PANEL + j), p.dtype, p.depth, row);
    for (int64_t d = 0; d < p.depth; d += PANEL) {
      const int64_t width = p.depth - d < PANEL ? p.depth - d : PANEL;
      std::memcpy(values + (d / PANEL * PANEL + j) * PANEL, row + d, width * sizeof(float));
    }
  }
}

// Turns scores into weights: probabilities relative to the largest score so far, *largest, and adds them to *sum.
// Returns what earlier weights have to be multiplied by.
inline float soften(float* scores, int64_t count, float* largest, float* sum) {
  float high[Isa::LANES], sums[Isa::LANES] = {};
  for (int j = 0; j < Isa::LANES; ++j) high[j] = *largest;
  int64_t i = 0;
  for (; i + Isa::LANES <= count; i += Isa::LANES) {
    for (int j = 0; j < Isa::LANES; ++j) high[j] = scores[i + j] > high[j] ? scores[i + j] : high[j];
  }
  float most = Isa::largest(Isa::load_floats(high)), total = 0;
  for (int64_t j = i; j < count; ++j) most = scores[j] > most ? scores[j] : most;
  for (i = 0; i + Isa::LANES <= count; i += Isa::LANES) {
    for (int j = 0; j < Isa::LANES; ++j) {
      const float weight = exponential(scores[i + j] - most);
      scores[i + j] = weight;
      sums[j] += weight;
    }
  }
  for (; i < count; ++i) total += scores[i] = exponential(scores[i] - most);
  const float earlier = exponential(*largest - most);
  *sum = *sum * earlier + (total + Isa::sum(Isa::load_floats(sums)));
  *largest = most;
  return earlier;
}

// Lower than every score, and finite, so that differences are.
constexpr float NOTHING = -3.0e38f;

void attention_store(const Attention& p, int64_t b, int64_t head, int64_t query, float* row) {
  store_row(row, p.depth, p.dtype, p.y, ((b * p.queries + query) * p.heads + head) * p.depth);
}

// Queries [q0, q1) of the heads that share a key head.
void attention_prefill(const Attention& p, int64_t b, int64_t key_head, int64_t q0, int64_t q1,
                       const float* workspace) {
  const int64_t group = p.heads / p.key_heads, count = q1 - q0, rows = group * count, depth = p.depth;
  const int64_t panels = value_panels(depth), blocks = (p.keys + PANEL - 1) / PANEL;
  const int64_t earlier_keys = p.keys - p.queries;  // than the first query, where each sees those before it
  float* queries = scratch<float>(1, rows * depth);
  float* sums = scratch<float>(2, panels * rows * PANEL);  // [panels, rows, PANEL]
  float* largest = scratch<float>(3, 2 * rows);
  float* total = largest + rows;
  std::memset(sums, 0, panels * rows * PANEL * sizeof(float));
  for (int64_t i = 0; i < rows; ++i) {  // rows of a query head follow each other
    float* row = queries + i * depth;
    load_row(at(p.q, p.dtype, b, key_head * group + i / count, q0 + i % count), p.dtype, depth, row);
    for (int64_t d = 0; d < depth; ++d) row[d] *= p.scale;
    largest[i] = NOTHING;
    total[i] = 0;
  }
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * PANEL;
    if (p.causal && first >= earlier_keys + q1) break;
    const float* keys = workspace + ((b * p.key_heads + key_head) * blocks + block) * block_floats(depth);
    const float* values = keys + depth * PANEL;
    for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS) {
      const int64_t tile_rows = rows - i < Isa::TILE_ROWS ? rows - i : Isa::TILE_ROWS;
      float scores[Isa::TILE_ROWS * PANEL] = {};
      with_count<Isa::TILE_ROWS>(tile_rows, [&]<int ROWS>() {
        float_tile<ROWS>(queries + i * depth, depth, keys, PANEL, depth, scores);
      });
      for (int64_t r = 0; r < tile_rows; ++r) {
        const int64_t last = p.causal ? earlier_keys + q0 + (i + r) % count + 1 : p.keys;
        const int64_t valid = last - first < 0 ? 0 : last - first < PANEL ? last - first : PANEL;
        float* score = scores + r * PANEL;
        const float earlier = soften(score, valid, largest + i + r, total + i + r);
        for (int64_t j = valid; j < PANEL; ++j) score[j] = 0;
        if (earlier == 1) continue;
        for (int64_t v = 0; v < panels; ++v) {
          float* sum = sums + (v * rows + i + r) * PANEL;
          for (int64_t d = 0; d < PANEL; ++d) sum[d] *= earlier;
        }
      }
      for (int64_t v = 0; v < panels; ++v) {
        with_count<Isa::TILE_ROWS>(tile_rows, [&]<int ROWS>() {
          float_tile<ROWS>(scores, PANEL, values + v * PANEL * PANEL, PANEL, PANEL, sums + (v * rows + i) * PANEL);
        });
      }
    }
  }
  float* row = scratch<float>(0, panels * PANEL);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t v = 0; v < panels; ++v) {
      for (int64_t d = 0; d < PANEL; ++d) row[v * PANEL + d] = sums[(v * rows + i) * PANEL + d] / total[i];
    }
    attention_store(p, b, key_head * group + i / count, q0 + i % count, row);
  }
}

// Rows [first, first + count) of keys or values as fp32, [count, stride]; what is beyond `depth` is 0.
void load_block(const Attention& p, const Heads& heads, int64_t b, int64_t head, int64_t first, int64_t count,
                int64_t stride, float* out) {
  if (stride == p.depth && heads.row_stride == p.depth) {
    load_row(at(heads, p.dtype, b, head, first), p.dtype, count * p.depth, out);
    return;
  }
  for (int64_t j = 0; j < count; ++j, out += stride) {
    load_row(at(heads, p.dtype, b, head, first + j), p.dtype, p.depth, out);
    std::memset(out + p.depth, 0, (stride - p.depth) * sizeof(float));
  }
}

// The panels that rows of `depth` floats take, padded with zeros.
int64_t padded_depth(const Attention& p) { return value_panels(p.depth) * PANEL; }

// The product of two rows of `count` floats, a multiple of PANEL.
inline float padded_dot(const float* a, const float* b, int64_t count) {
  Isa::Floats sums[Isa::TILE_VECTORS];
  UNROLL
  for (int v = 0; v < Isa::TILE_VECTORS; ++v) sums[v] = Isa::Floats{};
  for (int64_t d = 0; d < count; d += PANEL) {
    UNROLL
    for (int v = 0; v < Isa::TILE_VECTORS; ++v) {
      sums[v] = Isa::multiply_add(sums[v], Isa::load_floats(a + d + v * Isa::LANES),
                                  Isa::load_floats(b + d + v * Isa::LANES));
    }
  }
  UNROLL
  for (int v = 1; v < Isa::TILE_VECTORS; ++v) sums[0] = sums[0] + sums[v];
  return Isa::sum(sums[0]);
}

// All queries of the heads that share a key head, and keys [j0, j1), read as they lie. For each query: the weighted sum of
// the values, [padded_depth], the largest score, and the sum of the weights, which are relative to it.
void attention_decode(const Attention& p, int64_t b, int64_t key_head, int64_t j0, int64_t j1, float* part) {
  constexpr int64_t KEYS = 64;  // at a time: they stay in the first cache
  const int64_t group = p.heads / p.key_heads, rows = group * p.queries, depth = p.depth, keys = j1 - j0;
  const int64_t padded = padded_depth(p), panels = padded / PANEL;
  float* queries = scratch<float>(1, rows * padded);
  float* scores = scratch<float>(2, rows * keys);
  float* block = scratch<float>(3, KEYS * padded);
  float* sums = scratch<float>(4, rows * PANEL);
  std::memset(queries, 0, rows * padded * sizeof(float));
  for (int64_t i = 0; i < rows; ++i) {
    float* query = queries + i * padded;
    load_row(at(p.q, p.dtype, b, key_head * group + i / p.queries, i % p.queries), p.dtype, depth, query);
    for (int64_t d = 0; d < depth; ++d) query[d] *= p.scale;
  }
  for (int64_t first = 0; first < keys; first += KEYS) {
    const int64_t count = keys - first < KEYS ? keys - first : KEYS;
    load_block(p, p.k, b, key_head, j0 + first, count, padded, block);
    for (int64_t i = 0; i < rows; ++i) {
      const float* query = queries + i * padded;
      for (int64_t j = 0; j < count; ++j) {
        scores[i * keys + first + j] = padded_dot(query, block + j * padded, padded);
      }
    }
  }
  float* largest = part + rows * padded;
  float* total = largest + rows;
  for (int64_t i = 0; i < rows; ++i) {
    largest[i] = NOTHING;
    total[i] = 0;
    soften(scores + i * keys, keys, largest + i, total + i);
  }
  std::memset(part, 0, rows * padded * sizeof(float));
  for (int64_t first = 0; first < keys; first += KEYS) {
    const int64_t count = keys - first < KEYS ? keys - first : KEYS;
    load_block(p, p.v, b, key_head, j0 + first, count, padded, block);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(sums + i * PANEL, part + i * padded + panel * PANEL, PANEL * sizeof(float));
      }
      for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS) {
        with_count<Isa::TILE_ROWS>(rows - i, [&]<int ROWS>() {
          float_tile<ROWS>(scores + i * keys + first, keys, block + panel * PANEL, padded, count, sums + i * PANEL);
        });
      }
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(part + i * padded + panel * PANEL, sums + i * PANEL, PANEL * sizeof(float));
      }
    }
  }
}

// Floats of such a part.
int64_t attention_part(const Attention& p) { return p.heads / p.key_heads * p.queries * (padded_depth(p) + 2); }

// Puts the parts of a key head together, in their order.
void attention_join(const Attention& p, int64_t b, int64_t key_head, float* parts, int64_t count) {
  const int64_t group = p.heads / p.key_heads, rows = group * p.queries, padded = padded_depth(p);
  const int64_t floats = attention_part(p);
  for (int64_t i = 0; i < rows; ++i) {
    float largest = NOTHING, total = 0;
    for (int64_t c = 0; c < count; ++c) {
      const float high = parts[c * floats + rows * padded + i];
      largest = high > largest ? high : largest;
    }
    float* y = parts + i * padded;
    for (int64_t c = 0; c < count; ++c) {
      const float* part = parts + c * floats;
      const float weight = exponential(part[rows * padded + i] - largest);
      total += weight * part[rows * padded + rows + i];
      for (int64_t d = 0; d < p.depth; ++d) y[d] = (c == 0 ? 0 : y[d]) + weight * part[i * padded + d];
    }
    for (int64_t d = 0; d < p.depth; ++d) y[d] /= total;
    attention_store(p, b, key_head * group + i / p.queries, i % p.queries, y);
  }
}
