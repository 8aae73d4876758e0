// The operators on a CPU: they choose outliers, scales and tasks, and call the kernels of the instruction set in use.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "parallel.h"

namespace llmint8 {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t DECODE_ROWS = 8;        // as in the reference
constexpr int64_t PREFILL_ROWS = 2048;    // quantized at a time: bounds the workspace
constexpr int64_t TASK_ROWS = 512;        // of a task: its sums stay in the second cache
constexpr int64_t TASK_BYTES = 64 << 10;  // of the weight in a decode task

const Kernels* kernels = available_kernels()[0];

std::optional<Dtype> dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::fp32;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::fp16;
    default:
      return std::nullopt;
  }
}

struct Settings {
  c10::string_view mode;
  double threshold;
  int64_t budget;
  bool relative, symmetric;
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
std::vector<float> outlier_scores(const Rows& x, bool relative, int threads) {
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
std::vector<int64_t> outlier_columns(const Rows& x, const OptionalTensor& given, const Settings& settings,
                                     int threads) {
  std::vector<int64_t> columns;
  if (settings.mode == "static") {
    const Tensor indices = given->to(at::kLong).contiguous();
    columns.assign(indices.const_data_ptr<int64_t>(), indices.const_data_ptr<int64_t>() + indices.numel());
    std::sort(columns.begin(), columns.end());
    columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
  } else if (settings.mode == "threshold") {
    const std::vector<float> scores = outlier_scores(x, settings.relative, threads);
    for (int64_t k = 0; k < x.k; ++k) {
      if (scores[k] >= static_cast<float>(settings.threshold)) columns.push_back(k);
    }
  } else if (settings.mode == "budget" && settings.budget > 0) {
    columns.resize(x.k);
    std::iota(columns.begin(), columns.end(), 0);
    if (settings.budget < x.k) {
      const std::vector<float> scores = outlier_scores(x, settings.relative, threads);
      const auto larger = [&](int64_t a, int64_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
      };
      std::partial_sort(columns.begin(), columns.begin() + settings.budget, columns.end(), larger);
      columns.resize(settings.budget);
      std::sort(columns.begin(), columns.end());
    }
  }
  return columns;
}

// ---- the two regimes ----

void decode(const Rows& x, const Weight& weight, const Output& y) {
  const int64_t plane = x.m * code_stride(x.k);
  const Tensor digits = at::empty({DIGITS * plane * kernels->code_bytes}, at::kByte);
  std::vector<float> scale(x.m), row(x.k);
  bool all_coarse = true;
  for (int64_t m = 0; m < x.m; ++m) {
    bool fine = x.dtype == Dtype::fp32;  // what comes in fp32 keeps the accuracy of fp32
    x.load(m, row.data());
    scale[m] = kernels->digitize(row.data(), x.k, plane,
                                 digits.data_ptr<uint8_t>() + m * code_stride(x.k) * kernels->code_bytes, &fine);
    all_coarse = all_coarse && !fine;
  }
  const Decode problem{digits.data_ptr(), scale.data(), all_coarse ? COARSE_DIGITS : DIGITS, x.m, weight, y};
  const int64_t panel = kernels->panel;
  const int64_t step = std::max<int64_t>(panel, TASK_BYTES / x.k / panel * panel);
  parallel((weight.n + step - 1) / step, threads_to_read(weight.n * weight.k), [&](int64_t task, int) {
    kernels->decode(problem, task * step, std::min(weight.n, (task + 1) * step));
  });
}

void prefill(const Rows& x, const Weight& weight, const Output& y, const OptionalTensor& given,
             const Settings& settings) {
  const int threads = at::get_num_threads();
  const std::vector<int64_t> columns = outlier_columns(x, given, settings, threads);
  const int64_t count = columns.size(), stride = code_stride(x.k) * kernels->code_bytes, panel = kernels->panel;
  const int64_t most = std::min(x.m, PREFILL_ROWS);
  const Tensor codes = at::empty({most * stride}, at::kByte);
  std::vector<RowScale> scales(most);
  std::vector<float> outliers(most * count), rows(threads * x.k);
  for (int64_t start = 0; start < x.m; start += PREFILL_ROWS) {
    const int64_t m = std::min(PREFILL_ROWS, x.m - start);
    constexpr int64_t BLOCK = 16;
    parallel((m + BLOCK - 1) / BLOCK, threads, [&](int64_t task, int thread) {
      float* row = rows.data() + thread * x.k;
      for (int64_t i = task * BLOCK; i < std::min(m, (task + 1) * BLOCK); ++i) {
        x.load(start + i, row);
        for (int64_t j = 0; j < count; ++j) {
          outliers[i * count + j] = row[columns[j]];
          row[columns[j]] = 0;
        }
        scales[i] = kernels->quantize(row, x.k, settings.symmetric, codes.data_ptr<uint8_t>() + i * stride);
      }
    });
    const Output block{static_cast<char*>(y.data) + start * weight.n * (y.dtype == Dtype::fp32 ? 4 : 2), y.dtype};
    const Prefill problem{codes.data_ptr(), scales.data(),   m,     columns.data(),
                          outliers.data(),  count, weight, block};
    const int64_t panels = (weight.n + panel - 1) / panel;
    // Enough tasks for the last ones to end together.
    int64_t task_rows = std::min(m, TASK_ROWS);
    while (task_rows > 128 && panels * ((m + task_rows - 1) / task_rows) < 8 * threads) task_rows /= 2;
    const int64_t blocks = (m + task_rows - 1) / task_rows;
    parallel(blocks * panels, threads, [&](int64_t task, int) {
      const int64_t m0 = task / panels * task_rows, n0 = task % panels * panel;
      kernels->prefill(problem, m0, std::min(m, m0 + task_rows), n0, std::min(weight.n, n0 + panel));
    });
  }
}

// ---- operators ----

const c10::OperatorHandle& find(const char* name) {
  static thread_local std::vector<std::pair<const char*, c10::OperatorHandle>> found;
  for (const auto& [known, handle] : found) {
    if (known == name) return handle;
  }
  found.emplace_back(name, c10::Dispatcher::singleton().findSchemaOrThrow(name, ""));
  return found.back().second;
}

using Int8Linear = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                          c10::string_view, double, int64_t, bool, bool);

// Whether the kernels below are for this input; if not, the reference computes it, or says what is wrong with it.
bool takes(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const OptionalTensor& bias,
           const OptionalTensor& columns, const Settings& settings) {
  if (!dtype_of(x) || weight.scalar_type() != at::kChar || weight_scale.scalar_type() != at::kFloat) return false;
  if (weight.dim() != 2 || x.dim() == 0 || x.numel() == 0 || weight.numel() == 0) return false;
  const int64_t n = weight.size(0), k = weight.size(1);
  if (weight_scale.dim() != 2 || weight_scale.size(0) != n || weight_scale.size(1) != 1) return false;
  if (x.size(-1) != k || k > MAX_K) return false;
  if (bias && (bias->dim() != 1 || bias->size(0) != n || !dtype_of(*bias))) return false;
  if (!weight.is_cpu() || !weight_scale.is_cpu() || (bias && !bias->is_cpu())) return false;
  if (settings.mode == "static" && x.numel() / k > DECODE_ROWS) {
    if (!columns || !columns->is_cpu() || columns->dim() != 1 || columns->scalar_type() != at::kLong) return false;
    const Tensor indices = columns->contiguous();
    const int64_t* index = indices.const_data_ptr<int64_t>();
    return std::all_of(index, index + indices.numel(), [&](int64_t i) { return 0 <= i && i < k; });
  }
  return settings.mode == "budget" || settings.mode == "threshold" || settings.mode == "none" ||
         settings.mode == "static";
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const OptionalTensor& bias,
                   const OptionalTensor& columns, c10::string_view mode, double threshold, int64_t budget,
                   bool relative, bool symmetric) {
  const Settings settings{mode, threshold, budget, relative, symmetric};
  if (!takes(x, weight, weight_scale, bias, columns, settings)) {
    static const auto reference = find("llmint8::int8_linear_reference").typed<Int8Linear>();
    return reference.call(x, weight, weight_scale, bias, columns, mode, threshold, budget, relative, symmetric);
  }
  const int64_t n = weight.size(0), k = weight.size(1);
  Tensor x_rows = x.is_contiguous() ? x : x.reshape({-1, k});
  if (!x.is_contiguous() && x_rows.stride(1) != 1 && k > 1) x_rows = x_rows.contiguous();
  const Tensor w = k == 1 || weight.stride(1) == 1 ? weight : weight.contiguous();
  const Tensor scale = weight_scale.contiguous();
  const Tensor b = bias ? bias->contiguous() : Tensor();
  c10::SmallVector<int64_t, 6> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = n;
  Tensor y = at::empty(shape, x.options());
  const int64_t row_stride = x.is_contiguous() ? k : x_rows.stride(0);
  const Rows rows{static_cast<const char*>(x_rows.const_data_ptr()), *dtype_of(x), x.numel() / k, k,
                  row_stride * static_cast<int64_t>(x.element_size())};
  const Weight problem{w.const_data_ptr<int8_t>(),
                       w.stride(0),
                       scale.const_data_ptr<float>(),
                       b.defined() ? b.const_data_ptr() : nullptr,
                       b.defined() ? *dtype_of(b) : Dtype::fp32,
                       n,
                       k};
  const Output output{y.mutable_data_ptr(), *dtype_of(x)};
  if (rows.m <= DECODE_ROWS) {
    decode(rows, problem, output);
  } else {
    prefill(rows, problem, output, columns, settings);
  }
  return y;
}

Tensor float_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const auto same = [&](const Tensor& other) {
    return other.scalar_type() == x.scalar_type() && other.is_cpu() && other.is_contiguous();
  };
  const bool streams = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat;
  if (!streams || x.dim() == 0 || weight.dim() != 2 || weight.numel() == 0 || x.numel() != weight.size(1) ||
      x.size(-1) != weight.size(1) || !same(weight) ||
      (bias && (bias->dim() != 1 || bias->size(0) != weight.size(0) || !same(*bias)))) {
    static const auto reference = find("llmint8::float_linear_reference")
                                      .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>();
    return reference.call(x, weight, bias);
  }
  const int64_t n = weight.size(0), k = weight.size(1), row_bytes = k * static_cast<int64_t>(x.element_size());
  const Tensor input = x.contiguous();
  c10::SmallVector<int64_t, 6> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = n;
  Tensor y = at::empty(shape, x.options());
  std::vector<float> row(k);
  kernels->load(input.const_data_ptr(), *dtype_of(x), k, row.data());
  const FloatLinear problem{row.data(), weight.const_data_ptr(), bias ? bias->const_data_ptr() : nullptr,
                            *dtype_of(x), n, k, y.mutable_data_ptr()};
  const int64_t step = std::max<int64_t>(16, TASK_BYTES / row_bytes / 16 * 16);
  parallel((n + step - 1) / step, threads_to_read(n * row_bytes), [&](int64_t task, int) {
    kernels->float_linear(problem, task * step, std::min(n, (task + 1) * step));
  });
  return y;
}

std::tuple<Tensor, Tensor> quantize_weight(const Tensor& weight) {
  if (weight.dim() != 2 || !dtype_of(weight) || weight.numel() == 0) {
    static const auto reference =
        find("llmint8::quantize_weight_reference").typed<std::tuple<Tensor, Tensor>(const Tensor&)>();
    return reference.call(weight);
  }
  const Tensor w = weight.contiguous();
  const int64_t n = w.size(0), k = w.size(1), row_bytes = k * w.element_size();
  const Tensor codes = empty_weight(n, k);
  const Tensor scale = at::empty({n, 1}, w.options().dtype(at::kFloat));
  const char* data = static_cast<const char*>(w.const_data_ptr());
  int8_t* out = codes.data_ptr<int8_t>();
  float* scales = scale.data_ptr<float>();
  const int threads = threads_to_read(n * row_bytes);
  const int64_t step = std::max<int64_t>(1, TASK_BYTES / row_bytes);
  std::vector<float> rows(threads * k);
  parallel((n + step - 1) / step, threads, [&](int64_t task, int thread) {
    float* row = rows.data() + thread * k;
    for (int64_t i = task * step; i < std::min(n, (task + 1) * step); ++i) {
      kernels->load(data + i * row_bytes, *dtype_of(w), k, row);
      scales[i] = kernels->quantize_weight(row, k, out + i * k);
    }
  });
  return {codes, scale};
}

// Whether the kernels below are for this attention.
bool takes(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  if (!dtype_of(q) || k.scalar_type() != q.scalar_type() || v.scalar_type() != q.scalar_type()) return false;
  if (q.dim() != 4 || k.dim() != 4 || v.sizes() != k.sizes() || q.numel() == 0 || k.numel() == 0) return false;
  if (k.size(0) != q.size(0) || k.size(3) != q.size(3) || q.size(1) % k.size(1) != 0) return false;
  if (q.stride(3) != 1 || k.stride(3) != 1 || v.stride(3) != 1) return false;
  return !causal || q.size(2) == k.size(2);
}

Heads heads_of(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal) {
  if (!takes(q, k, v, causal)) {
    static const auto reference = find("llmint8::attention_reference")
                                      .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, double, bool)>();
    return reference.call(q, k, v, scale, causal);
  }
  constexpr int64_t FEW_QUERIES = 4, QUERIES = 64;  // of a decode; of a task
  const int64_t batch = q.size(0), heads = q.size(1), key_heads = k.size(1), queries = q.size(2), depth = q.size(3);
  Tensor y = at::empty({batch, queries, heads, depth}, q.options());
  const Attention problem{heads_of(q), heads_of(k), heads_of(v), *dtype_of(q), batch,
                          heads,       key_heads,   queries,     k.size(2),    depth,
                          static_cast<float>(scale), causal, y.mutable_data_ptr()};
  if (queries <= FEW_QUERIES && !(causal && queries > 1)) {
    const int64_t bytes = 2 * k.numel() * k.element_size();
    parallel(batch * key_heads, threads_to_read(bytes), [&](int64_t task, int) {
      kernels->attention_decode(problem, task / key_heads, task % key_heads);
    });
    return y;
  }
  const int threads = at::get_num_threads();
  const Tensor workspace = at::empty({kernels->attention_workspace(problem)}, at::kFloat);
  float* packed = workspace.data_ptr<float>();
  parallel(batch * key_heads, threads, [&](int64_t task, int) {
    kernels->attention_pack(problem, task / key_heads, task % key_heads, packed);
  });
  const int64_t blocks = (queries + QUERIES - 1) / QUERIES;
  parallel(batch * key_heads * blocks, threads, [&](int64_t task, int) {
    const int64_t head = task % (batch * key_heads);
    const int64_t q0 = (blocks - 1 - task / (batch * key_heads)) * QUERIES;  // the longest first
    kernels->attention_prefill(problem, head / key_heads, head % key_heads, q0, std::min(queries, q0 + QUERIES),
                               packed);
  });
  return y;
}

// ---- gradients ----

const auto& int8_linear_operator() {
  static const auto handle = find("llmint8::int8_linear").typed<Int8Linear>();
  return handle;
}

struct Gradient : torch::autograd::Function<Gradient> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& weight_scale, const OptionalTensor& bias, const OptionalTensor& columns,
                        const std::string& mode, double threshold, int64_t budget, bool relative, bool symmetric) {
    context->save_for_backward({weight, weight_scale});
    context->saved_data["bias_dtype"] = bias ? c10::IValue(static_cast<int64_t>(bias->scalar_type())) : c10::IValue();
    at::AutoDispatchBelowADInplaceOrView below;
    return int8_linear_operator().call(x, weight, weight_scale, bias, columns, mode, threshold, budget, relative,
                                       symmetric);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    static const auto grad_input = find("llmint8::int8_linear_grad_input")
                                       .typed<Tensor(const Tensor&, const Tensor&, const Tensor&)>();
    const auto saved = context->get_saved_variables();
    const Tensor& gradient = gradients[0];
    torch::autograd::variable_list result(10);
    if (context->needs_input_grad(0)) result[0] = grad_input.call(gradient, saved[0], saved[1]);
    const c10::IValue& bias_dtype = context->saved_data["bias_dtype"];
    if (!bias_dtype.isNone() && context->needs_input_grad(3)) {
      result[3] = gradient.reshape({-1, gradient.size(-1)})
                      .to(at::kFloat)
                      .sum(0)
                      .to(static_cast<at::ScalarType>(bias_dtype.toInt()));
    }
    return result;
  }
};

Tensor int8_linear_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                            const Tensor& weight_scale, const OptionalTensor& bias, const OptionalTensor& columns,
                            c10::string_view mode, double threshold, int64_t budget, bool relative, bool symmetric) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || (bias && bias->requires_grad()))) {
    return Gradient::apply(x, weight, weight_scale, bias, columns, std::string(mode), threshold, budget, relative,
                           symmetric);
  }
  return int8_linear_operator().redispatch(keys & c10::after_autograd_keyset, x, weight, weight_scale, bias, columns,
                                           mode, threshold, budget, relative, symmetric);
}

// ---- choice of the instruction set ----

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* const* found = available_kernels(); *found != nullptr; ++found) names.emplace_back((*found)->name);
  return names;
}

void use_instruction_set(c10::string_view name) {
  for (const Kernels* const* found = available_kernels(); *found != nullptr; ++found) {
    if (name == (*found)->name) {
      kernels = *found;
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "this processor has no instruction set ", name);
}

}  // namespace

TORCH_LIBRARY(llmint8_cpu, library) {
  library.def("instruction_sets() -> str[]", instruction_sets);
  library.def("use_instruction_set(str name) -> ()", use_instruction_set);
  library.def("enter_forward(bool few_tokens, int model) -> ()", Crowd::enter);
  library.def("leave_forward() -> ()", Crowd::leave);
}

TORCH_LIBRARY_IMPL(llmint8, CPU, library) {
  library.impl("int8_linear", int8_linear);
  library.impl("quantize_weight", quantize_weight);
  library.impl("attention", attention);
  library.impl("float_linear", float_linear);
}

TORCH_LIBRARY_IMPL(llmint8, AutogradCPU, library) { library.impl("int8_linear", int8_linear_autograd); }

}  // namespace llmint8
