// A float weight times one row, at the speed of memory; PyTorch reaches half of it. Sums are fp32.

// The product of k elements, widened by `load`, with x.
template <typename Load>
inline float float_dot(const float* x, int64_t k, Load load) {
  constexpr int LANES = 16, UNITS = 4;
  float sums[UNITS][LANES] = {};
  int64_t i = 0;
  for (; i + LANES * UNITS <= k; i += LANES * UNITS) {
    for (int u = 0; u < UNITS; ++u) {
      for (int l = 0; l < LANES; ++l) sums[u][l] += load(i + u * LANES + l) * x[i + u * LANES + l];
    }
  }
  float tail = 0;
  for (; i < k; ++i) tail += load(i) * x[i];
  for (int l = 0; l < LANES; ++l) sums[0][l] += (sums[1][l] + sums[2][l]) + sums[3][l];
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) sums[0][l] += sums[0][l + half];
  }
  return sums[0][0] + tail;
}

void float_linear(const FloatLinear& p, int64_t n0, int64_t n1) {
  constexpr int64_t BLOCK = 64;
  for (int64_t n = n0; n < n1; n += BLOCK) {
    const int64_t features = n1 - n < BLOCK ? n1 - n : BLOCK;
    float bias[BLOCK] = {}, y[BLOCK];
    if (p.bias != nullptr) {
      load_row(static_cast<const char*>(p.bias) + n * (p.dtype == Dtype::fp32 ? 4 : 2), p.dtype, features, bias);
    }
    for (int64_t j = 0; j < features; ++j) {
      if (p.dtype == Dtype::fp32) {
        const float* w = static_cast<const float*>(p.weight) + (n + j) * p.k;
        y[j] = float_dot(p.x, p.k, [w](int64_t i) { return w[i]; }) + bias[j];
      } else {
        const uint16_t* w = static_cast<const uint16_t*>(p.weight) + (n + j) * p.k;
        y[j] = float_dot(p.x, p.k, [w](int64_t i) { return from_bits(uint32_t(w[i]) << 16); }) + bias[j];
      }
    }
    store_row(y, features, p.dtype, p.y, n);
  }
}
