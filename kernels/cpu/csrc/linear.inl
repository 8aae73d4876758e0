// Tasks of int8 layers: some output features of some rows, complete with scales, outliers, bias, activation and rounding.

void load_bias(const Weight& w, int64_t n0, int64_t count, float* out) {
  if (w.bias == nullptr) {
    std::memset(out, 0, count * sizeof(float));
  } else {
    const int64_t size = w.bias_dtype == Dtype::fp32 ? 4 : 2;
    load_row(static_cast<const char*>(w.bias) + n0 * size, w.bias_dtype, count, out);
  }
}

// Rows [m0, m0 + rows) times output features [n, n + features) of one weight: y[rows, PANEL].
void prefill_panel(const Prefill& p, const Weight& w, int64_t m0, int64_t rows, int64_t n, int features, float* y) {
  const int64_t stride = code_stride(w.k);
  const auto outliers = p.outlier_count <= FEW_OUTLIERS ? multiply_few_outliers : multiply_many_outliers;
  outliers(p, w, m0, rows, n, features, y);
  int32_t* sums = scratch<int32_t>(2, rows * PANEL);
  int32_t column_sums[PANEL];
  multiply(static_cast<const Code*>(p.codes) + m0 * stride, stride, rows, w.codes + n * w.row_stride, w.row_stride,
           features, w.k, sums, column_sums);
  float bias[PANEL] = {}, scale[PANEL] = {};
  load_bias(w, n, features, bias);
  std::memcpy(scale, w.scale + n, features * sizeof(float));
  for (int64_t i = 0; i < rows; ++i, sums += PANEL, y += PANEL) {
    const RowScale row = p.rows[m0 + i];
    for (int j = 0; j < PANEL; ++j) {
      y[j] = (float(sums[j] - row.zero * column_sums[j]) * row.scale + y[j]) * scale[j] + bias[j];
    }
  }
}

void prefill_task(const Prefill& p, const Product& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  const int64_t rows = m1 - m0;
  float* y = scratch<float>(3, rows * PANEL);
  float* gate = scratch<float>(4, product.gate.codes == nullptr ? 0 : rows * PANEL);
  for (int64_t n = n0; n < n1; n += PANEL) {
    const int features = static_cast<int>(n1 - n < PANEL ? n1 - n : PANEL);
    prefill_panel(p, product.weight, m0, rows, n, features, y);
    if (product.gate.codes != nullptr) {
      prefill_panel(p, product.gate, m0, rows, n, features, gate);
      for (int64_t i = 0; i < rows; ++i) apply_gate(gate + i * PANEL, product.activation, features, y + i * PANEL);
    }
    for (int64_t i = 0; i < rows; ++i) {
      store_row(y + i * PANEL, features, product.y.dtype, product.y.data, (m0 + i) * product.weight.n + n);
    }
  }
}

// Row m of y from the products of its digits, sums[d * digit_stride + j] for output feature n + j.
void finish_decode(const Decode& p, const Weight& w, int64_t m, const int32_t* sums, int64_t digit_stride,
                   const int32_t* column_sums, const float* bias, int64_t n, int features, float* y) {
  const double scale = double(p.scale[m]) * (int64_t(1) << (DIGIT_BITS * (DIGITS - p.count)));
  for (int j = 0; j < features; ++j) {
    const int32_t excess = column_sums[j] * Isa::BIAS;
    double total = sums[j] - excess;
    for (int d = 1; d < p.count; ++d) total = total * (1 << DIGIT_BITS) + (sums[d * digit_stride + j] - excess);
    y[j] = static_cast<float>(total * scale * w.scale[n + j] + bias[j]);
  }
}

// All rows times output features [n, n + features) of one weight: y[M, PANEL].
void decode_panel(const Decode& p, const Weight& w, int64_t n, int features, float* y) {
  const int64_t codes = p.m * p.count, stride = code_stride(w.k);
  int32_t* sums = scratch<int32_t>(2, codes * PANEL);
  int32_t column_sums[PANEL];
  float bias[PANEL];
  const auto product = codes <= Isa::IN_PLACE_CODES ? multiply_in_place : multiply;
  product(static_cast<const Code*>(p.digits), stride, codes, w.codes + n * w.row_stride, w.row_stride, features, w.k,
          sums, column_sums);
  load_bias(w, n, features, bias);
  for (int64_t m = 0; m < p.m; ++m) {
    finish_decode(p, w, m, sums + m * PANEL, p.m * PANEL, column_sums, bias, n, features, y + m * PANEL);
  }
}

void decode_task(const Decode& p, const Product& product, int64_t n0, int64_t n1) {
  float* y = scratch<float>(3, p.m * PANEL);
  float* gate = scratch<float>(4, product.gate.codes == nullptr ? 0 : p.m * PANEL);
  for (int64_t n = n0; n < n1; n += PANEL) {
    const int features = static_cast<int>(n1 - n < PANEL ? n1 - n : PANEL);
    decode_panel(p, product.weight, n, features, y);
    if (product.gate.codes != nullptr) {
      decode_panel(p, product.gate, n, features, gate);
      for (int64_t m = 0; m < p.m; ++m) apply_gate(gate + m * PANEL, product.activation, features, y + m * PANEL);
    }
    for (int64_t m = 0; m < p.m; ++m) {
      store_row(y + m * PANEL, features, product.y.dtype, product.y.data, m * product.weight.n + n);
    }
  }
}
