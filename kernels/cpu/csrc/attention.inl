// Attention of few queries over the keys as they lie, and of many over keys packed once. In terms of `Isa` and of the
// tiles in kernels.inl; sums are fp32, and the softmax is the online one of FlashAttention (Dao et al. 2022, section 3).

// e**x for x <= 0, within 2 units in the last place; 0 below -87.
inline float exponential(float x) {
  const float clamped = x > -87.0f ? x : -87.0f;
  const float steps = __builtin_rintf(clamped * 1.44269504f);
  float r = clamped - steps * 0.693359375f;  // ln 2 in two parts
  r -= steps * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const float scale = __builtin_bit_cast(float, (static_cast<int32_t>(steps) + 127) << 23);
  return x > -87.0f ? y * scale : x <= -87.0f ? 0.0f : x;  // NaN stays NaN
}

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

void attention_pack(const Attention& p, int64_t b, int64_t head, float* workspace) {
  const int64_t blocks = (p.keys + PANEL - 1) / PANEL, floats = block_floats(p.depth);
  float* row = scratch<float>(0, p.depth);
  for (int64_t block = 0; block < blocks; ++block) {
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
}

// Turns scores into weights: probabilities relative to the largest score so far, *largest, and adds them to *sum.
// Returns what earlier weights have to be multiplied by.
inline float soften(float* scores, int64_t count, float* largest, float* sum) {
  float high[16];
  for (int j = 0; j < 16; ++j) high[j] = *largest;
  each_lane(scores, count, [&](int j, float v) { high[j] = v > high[j] ? v : high[j]; });
  float most = *largest;
  for (float h : high) most = h > most ? h : most;
  float sums[16] = {};
  for (int64_t j = 0; j < count; ++j) scores[j] = exponential(scores[j] - most);
  each_lane(scores, count, [&](int j, float v) { sums[j] += v; });
  const float earlier = exponential(*largest - most);
  float total = 0;
  for (float s : sums) total += s;
  *sum = *sum * earlier + total;
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
    if (p.causal && first >= q1) break;
    const float* keys = workspace + ((b * p.key_heads + key_head) * blocks + block) * block_floats(depth);
    const float* values = keys + depth * PANEL;
    for (int64_t i = 0; i < rows; i += Isa::TILE_ROWS) {
      const int64_t tile_rows = rows - i < Isa::TILE_ROWS ? rows - i : Isa::TILE_ROWS;
      float scores[Isa::TILE_ROWS * PANEL] = {};
      with_count<Isa::TILE_ROWS>(tile_rows, [&]<int ROWS>() {
        outlier_tile<ROWS>(queries + i * depth, depth, keys, depth, scores);
      });
      for (int64_t r = 0; r < tile_rows; ++r) {
        const int64_t last = p.causal ? q0 + (i + r) % count + 1 : p.keys;
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
          outlier_tile<ROWS>(scores, PANEL, values + v * PANEL * PANEL, PANEL, sums + (v * rows + i) * PANEL);
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

// All queries of the heads that share a key head, the keys read as they lie.
void attention_decode(const Attention& p, int64_t b, int64_t key_head) {
  const int64_t group = p.heads / p.key_heads, rows = group * p.queries, depth = p.depth, keys = p.keys;
  float* queries = scratch<float>(1, rows * depth);
  float* scores = scratch<float>(2, rows * keys);
  float* sums = scratch<float>(3, rows * depth);
  float* row = scratch<float>(0, depth);
  for (int64_t i = 0; i < rows; ++i) {
    load_row(at(p.q, p.dtype, b, key_head * group + i / p.queries, i % p.queries), p.dtype, depth, queries + i * depth);
    for (int64_t d = 0; d < depth; ++d) queries[i * depth + d] *= p.scale;
  }
  for (int64_t j = 0; j < keys; ++j) {
    load_row(at(p.k, p.dtype, b, key_head, j), p.dtype, depth, row);
    for (int64_t i = 0; i < rows; ++i) {
      const float* query = queries + i * depth;
      float lanes[16] = {};
      int64_t d = 0;
      for (; d + 16 <= depth; d += 16) {
        for (int l = 0; l < 16; ++l) lanes[l] += query[d + l] * row[d + l];
      }
      for (int l = 0; d + l < depth; ++l) lanes[l] += query[d + l] * row[d + l];
      for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
      }
      scores[i * keys + j] = lanes[0];
    }
  }
  std::memset(sums, 0, rows * depth * sizeof(float));
  float* total = scratch<float>(4, rows);
  for (int64_t i = 0; i < rows; ++i) {
    float largest = NOTHING;
    total[i] = 0;
    soften(scores + i * keys, keys, &largest, total + i);
  }
  for (int64_t j = 0; j < keys; ++j) {
    load_row(at(p.v, p.dtype, b, key_head, j), p.dtype, depth, row);
    for (int64_t i = 0; i < rows; ++i) {
      const float weight = scores[i * keys + j];
      for (int64_t d = 0; d < depth; ++d) sums[i * depth + d] += weight * row[d];
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < depth; ++d) sums[i * depth + d] /= total[i];
    attention_store(p, b, key_head * group + i / p.queries, i % p.queries, sums + i * depth);
  }
}
