// The two regimes of int8 layers: they choose outliers, scales and tasks, and call the kernels of the instruction set in use.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "tensors.h"

namespace llmint8 {

constexpr int64_t TASK_ROWS = 512;        // of a task: its sums stay in the second cache
constexpr int64_t TASK_BYTES = 64 << 10;  // of the weight in a decode task

inline const Kernels* kernels = available_kernels()[0];

// `llmint8.outliers.OutlierRule`.
struct OutlierRule {
  c10::string_view mode;
  double threshold;
  int64_t budget;
  bool relative, symmetric;
};

// A layer as the kernels see it. Its tensors are kept, since some may be copies.
struct Layer {
  Tensor weight, scale, bias;

  Layer(const Tensor& w, const Tensor& s, const OptionalTensor& b)
      : weight(w.size(1) == 1 || w.stride(1) == 1 ? w : w.contiguous()), scale(s.contiguous()) {
    if (b) bias = b->contiguous();
  }

  Weight view() const {
    return {weight.const_data_ptr<int8_t>(),
            weight.stride(0),
            scale.const_data_ptr<float>(),
            bias.defined() ? bias.const_data_ptr() : nullptr,
            bias.defined() ? *dtype_of(bias) : Dtype::fp32,
            weight.size(0),
            weight.size(1)};
  }
};

// The rows of x, [M, K].
struct Rows {
  const char* data;
  Dtype dtype;
  int64_t m, k, row_bytes;

  void load(int64_t row, float* out) const { kernels->load(data + row * row_bytes, dtype, k, out); }
};

// ---- outlier columns ----

// max_m |x[m, k]|, relative to the root mean square of the row if asked.
inline std::vector<float> outlier_scores(const Rows& x, bool relative, int threads) {
  constexpr int64_t BLOCK = 16;
  std::vector<float> scores(threads * x.k, 0.f), rows(threads * x.k);
  parallel((x.m + BLOCK - 1) / BLOCK, threads, [&](int64_t task, int thread) {
    float* row = rows.data() + thread * x.k;
    for (int64_t i = task * BLOCK; i < std::min(x.m, (task + 1) * BLOCK); ++i) {
      x.load(i, row);
      kernels->score(row, x.k, relative, scores.data() + thread * x.k);
    }
  });
  for (int thread = 1; thread < threads; ++thread) {
    const float* other = scores.data() + thread * x.k;
    for (int64_t k = 0; k < x.k; ++k) scores[k] = std::max(scores[k], other[k]);
  }
  scores.resize(x.k);
  return scores;
}

// In ascending order.
inline std::vector<int64_t> outlier_columns(const Rows& x, const std::optional<at::Tensor>& given,
                                            const OutlierRule& rule, int threads) {
  std::vector<int64_t> columns;
  if (rule.mode == "static") {
    const at::Tensor indices = given->to(at::kLong).contiguous();
    columns.assign(indices.const_data_ptr<int64_t>(), indices.const_data_ptr<int64_t>() + indices.numel());
    std::sort(columns.begin(), columns.end());
    columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
  } else if (rule.mode == "threshold") {
    const std::vector<float> scores = outlier_scores(x, rule.relative, threads);
    for (int64_t k = 0; k < x.k; ++k) {
      if (scores[k] >= static_cast<float>(rule.threshold)) columns.push_back(k);
    }
  } else if (rule.mode == "budget" && rule.budget > 0) {
    if (rule.threshold <= 0 && rule.budget >= x.k) {
      columns.resize(x.k);
      std::iota(columns.begin(), columns.end(), 0);
      return columns;
    }
    const std::vector<float> scores = outlier_scores(x, rule.relative, threads);
    for (int64_t k = 0; k < x.k; ++k) {
      if (scores[k] >= static_cast<float>(rule.threshold)) columns.push_back(k);
    }
    if (rule.budget < static_cast<int64_t>(columns.size())) {
      const auto larger = [&](int64_t a, int64_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
      };
      std::nth_element(columns.begin(), columns.begin() + rule.budget, columns.end(), larger);
      columns.resize(rule.budget);
      std::sort(columns.begin(), columns.end());
    }
  }
  return columns;
}

// ---- the two regimes ----

// Output features in tasks of at least `least`, those of several products one after the other.
struct Tasks {
  std::vector<int64_t> ends;  // of each product

  Tasks(const std::vector<Product>& products, int64_t least, int64_t step_bytes) {
    int64_t end = 0;
    for (const Product& product : products) {
      const int64_t bytes = product.weight.k * (product.gate.codes == nullptr ? 1 : 2);
      steps.push_back(std::max<int64_t>(least, step_bytes / bytes / least * least));
      ends.push_back(end += (product.weight.n + steps.back() - 1) / steps.back());
    }
  }

  int64_t count() const { return ends.back(); }

  // Calls `run(product, n0, n1)`.
  template <typename Run>
  void operator()(int64_t task, const std::vector<Product>& products, const Run& run) const {
    const size_t which = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
    const int64_t n0 = (task - (which == 0 ? 0 : ends[which - 1])) * steps[which];
    run(products[which], n0, std::min(products[which].weight.n, n0 + steps[which]));
  }

 private:
  std::vector<int64_t> steps;
};

inline int64_t weight_bytes(const std::vector<Product>& products) {
  int64_t bytes = 0;
  for (const Product& p : products) bytes += p.weight.n * p.weight.k * (p.gate.codes == nullptr ? 1 : 2);
  return bytes;
}

inline void decode(const Rows& x, const std::vector<Product>& products) {
  const int64_t plane = x.m * code_stride(x.k);
  const at::Tensor digits = at::empty({DIGITS * plane * kernels->code_bytes}, at::kByte);
  std::vector<float> scale(x.m), row(x.k);
  bool all_coarse = true;
  for (int64_t m = 0; m < x.m; ++m) {
    bool fine = x.dtype == Dtype::fp32;  // what comes in fp32 keeps the accuracy of fp32
    x.load(m, row.data());
    scale[m] = kernels->digitize(row.data(), x.k, plane,
                                 digits.data_ptr<uint8_t>() + m * code_stride(x.k) * kernels->code_bytes, &fine);
    all_coarse = all_coarse && !fine;
  }
  const Decode problem{digits.data_ptr(), scale.data(), all_coarse ? COARSE_DIGITS : DIGITS, x.m};
  // Small weights in small tasks, so that the last ones end together; the kernels pack whole panels for many rows.
  const int64_t bytes = weight_bytes(products);
  const int threads = threads_to_read(bytes);
  const Tasks tasks(products, x.m == 1 ? 16 : kernels->panel, std::min(TASK_BYTES, bytes / (8 * threads)));
  parallel(tasks.count(), threads, [&](int64_t task, int) {
    tasks(task, products,
          [&](const Product& product, int64_t n0, int64_t n1) { kernels->decode(problem, product, n0, n1); });
  });
}

inline void prefill(const Rows& x, const std::vector<Product>& products, const std::optional<at::Tensor>& given,
                    const OutlierRule& rule) {
  const int threads = at::get_num_threads();
  const std::vector<int64_t> columns = outlier_columns(x, given, rule, threads);
  const int64_t count = columns.size(), stride = code_stride(x.k) * kernels->code_bytes;
  const int64_t most = std::min(x.m, PREFILL_ROWS);
  const at::Tensor codes = at::empty({most * stride}, at::kByte);
  std::vector<RowScale> scales(most);
  const bool few = count <= FEW_OUTLIERS;
  const int64_t plane = code_stride(count), outlier_stride = DIGITS * plane * kernels->code_bytes;
  const at::Tensor digits = at::empty({few ? 0 : most * outlier_stride}, at::kByte);
  std::vector<float> outlier_scale(few ? 0 : most), rows(threads * x.k), outliers((few ? most : threads) * count);
  const Tasks tasks(products, kernels->panel, 0);
  for (int64_t start = 0; start < x.m; start += PREFILL_ROWS) {
    const int64_t m = std::min(PREFILL_ROWS, x.m - start);
    constexpr int64_t BLOCK = 16;
    std::atomic<bool> all_coarse{true};
    parallel((m + BLOCK - 1) / BLOCK, threads, [&](int64_t task, int thread) {
      float* row = rows.data() + thread * x.k;
      for (int64_t i = task * BLOCK; i < std::min(m, (task + 1) * BLOCK); ++i) {
        float* outlier = outliers.data() + (few ? i : thread) * count;
        x.load(start + i, row);
        for (int64_t j = 0; j < count; ++j) {
          outlier[j] = row[columns[j]];
          row[columns[j]] = 0;
        }
        if (!few) {
          bool fine = x.dtype == Dtype::fp32;
          outlier_scale[i] =
              kernels->digitize(outlier, count, plane, digits.data_ptr<uint8_t>() + i * outlier_stride, &fine);
          if (fine) all_coarse = false;
        }
        scales[i] = kernels->quantize(row, x.k, rule.symmetric, codes.data_ptr<uint8_t>() + i * stride);
      }
    });
    const Prefill problem{codes.data_ptr(), scales.data(), m, columns.data(), count, outliers.data(),
                          digits.data_ptr(), outlier_scale.data(), all_coarse ? COARSE_DIGITS : DIGITS};
    std::vector<Product> block = products;
    for (Product& product : block) {
      product.y.data = static_cast<char*>(product.y.data) +
                       start * product.weight.n * (product.y.dtype == Dtype::fp32 ? 4 : 2);
    }
    // Enough tasks for the last ones to end together.
    int64_t task_rows = std::min(m, TASK_ROWS);
    while (task_rows > 128 && tasks.count() * ((m + task_rows - 1) / task_rows) < 8 * threads) task_rows /= 2;
    const int64_t blocks = (m + task_rows - 1) / task_rows;
    parallel(blocks * tasks.count(), threads, [&](int64_t task, int) {
      const int64_t m0 = task / tasks.count() * task_rows;
      tasks(task % tasks.count(), block, [&](const Product& product, int64_t n0, int64_t n1) {
        kernels->prefill(problem, product, m0, std::min(m, m0 + task_rows), n0, n1);
      });
    });
  }
}

inline void multiply(const Rows& x, const std::vector<Product>& products, const std::optional<at::Tensor>& columns,
                     const OutlierRule& rule) {
  if (x.m <= DECODE_ROWS) {
    decode(x, products);
  } else {
    prefill(x, products, columns, rule);
  }
}

}  // namespace llmint8
