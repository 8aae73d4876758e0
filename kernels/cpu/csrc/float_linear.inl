// A float weight times a few rows, at the speed of memory; PyTorch reaches half of it. Sums are fp32.

// y[m] = x[m] . w for COUNT rows of x and one row of a weight, whose element i `element` widens, and LANES of them
// `vector`. A row has the same sum in any company.
template <int COUNT, typename Vector, typename Element>
inline void float_dots(const float* x, int64_t k, Vector vector, Element element, float* y) {
  constexpr int UNITS = 2;
  Isa::Floats sums[COUNT][UNITS];
  UNROLL
  for (int m = 0; m < COUNT; ++m) {
    UNROLL
    for (int u = 0; u < UNITS; ++u) sums[m][u] = Isa::Floats{};
  }
  int64_t i = 0;
  for (; i + Isa::LANES * UNITS <= k; i += Isa::LANES * UNITS) {
    UNROLL
    for (int u = 0; u < UNITS; ++u) {
      const Isa::Floats w = vector(i + u * Isa::LANES);
      UNROLL
      for (int m = 0; m < COUNT; ++m) {
        sums[m][u] = Isa::multiply_add(sums[m][u], Isa::load_floats(x + m * k + i + u * Isa::LANES), w);
      }
    }
  }
  UNROLL
  for (int m = 0; m < COUNT; ++m) {
    y[m] = Isa::sum(sums[m][0] + sums[m][1]);
    for (int64_t j = i; j < k; ++j) y[m] += x[m * k + j] * element(j);
  }
}

void float_linear(const FloatLinear& p, int64_t n0, int64_t n1) {
  constexpr int64_t BLOCK = 64, AHEAD = 8 << 10;
  const int64_t k = p.k, size = p.dtype == Dtype::fp32 ? 4 : 2;
  for (int64_t n = n0; n < n1; n += BLOCK) {
    const int64_t features = n1 - n < BLOCK ? n1 - n : BLOCK;
    float bias[BLOCK] = {}, y[MAX_FLOAT_ROWS][BLOCK], sums[MAX_FLOAT_ROWS];
    if (p.bias != nullptr) load_row(static_cast<const char*>(p.bias) + n * size, p.dtype, features, bias);
    for (int64_t j = 0; j < features; ++j) {
      const char* row = static_cast<const char*>(p.weight) + (n + j) * k * size;
      for (int64_t line = 0; line < k * size; line += 64) Isa::prefetch(row + AHEAD + line);
      with_count<MAX_FLOAT_ROWS>(p.m, [&]<int COUNT>() {
        if (p.dtype == Dtype::fp32) {
          const float* w = reinterpret_cast<const float*>(row);
          float_dots<COUNT>(
              p.x, k, [w](int64_t i) { return Isa::load_floats(w + i); }, [w](int64_t i) { return w[i]; }, sums);
        } else {
          const uint16_t* w = reinterpret_cast<const uint16_t*>(row);
          float_dots<COUNT>(
              p.x, k, [w](int64_t i) { return Isa::load_bf16(w + i); },
              [w](int64_t i) { return from_bits(uint32_t(w[i]) << 16); }, sums);
        }
      });
      for (int64_t m = 0; m < p.m; ++m) y[m][j] = sums[m] + bias[j];
    }
    for (int64_t m = 0; m < p.m; ++m) store_row(y[m], features, p.dtype, p.y, m * p.n + n);
  }
}
