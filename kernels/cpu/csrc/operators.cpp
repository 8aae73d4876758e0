// The int8 operators on a CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "linear.h"
#include "parallel.h"
#include "tensors.h"

namespace llmint8 {
namespace {

using Int8Linear = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                          c10::string_view, double, int64_t, bool, bool);
using OptionalTensors = c10::List<OptionalTensor>;
using Int8Linears = std::vector<Tensor>(const Tensor&, at::TensorList, at::TensorList, const OptionalTensors&,
                                        const OptionalTensors&, c10::string_view, double, int64_t, bool, bool);
using GatedMlp = Tensor(const Tensor&, at::TensorList, at::TensorList, const OptionalTensors&, const OptionalTensors&,
                        c10::string_view, int64_t, c10::string_view, double, int64_t, bool, bool);

// Whether the kernels below are for this input; if not, the fallback computes it, or says what is wrong with it.
bool takes(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const OptionalTensor& bias,
           const OptionalTensor& columns, const OutlierRule& rule) {
  if (!dtype_of(x) || weight.scalar_type() != at::kChar || weight_scale.scalar_type() != at::kFloat) return false;
  if (weight.dim() != 2 || x.dim() == 0 || x.numel() == 0 || weight.numel() == 0) return false;
  const int64_t n = weight.size(0), k = weight.size(1);
  if (weight_scale.dim() != 2 || weight_scale.size(0) != n || weight_scale.size(1) != 1) return false;
  if (x.size(-1) != k || k > MAX_K) return false;
  if (bias && (bias->dim() != 1 || bias->size(0) != n || !dtype_of(*bias))) return false;
  if (!weight.is_cpu() || !weight_scale.is_cpu() || (bias && !bias->is_cpu())) return false;
  if (rule.mode == "static" && x.numel() / k > DECODE_ROWS) {
    if (!columns || !columns->is_cpu() || columns->dim() != 1 || columns->scalar_type() != at::kLong) return false;
    const Tensor indices = columns->contiguous();
    const int64_t* index = indices.const_data_ptr<int64_t>();
    return std::all_of(index, index + indices.numel(), [&](int64_t i) { return 0 <= i && i < k; });
  }
  return rule.mode == "budget" || rule.mode == "threshold" || rule.mode == "none" ||
         rule.mode == "static";
}

// The rows of an input, and the tensor that they lie in.
struct Input {
  Tensor tensor;
  Rows rows;

  explicit Input(const Tensor& x) : tensor(x) {
    const int64_t k = x.size(-1);
    int64_t stride = k;
    if (!x.is_contiguous()) {
      tensor = x.reshape({-1, k});
      if (tensor.stride(1) != 1 && k > 1) tensor = tensor.contiguous();
      stride = tensor.stride(0);
    }
    rows = {static_cast<const char*>(tensor.const_data_ptr()), *dtype_of(x), x.numel() / k, k,
            stride * static_cast<int64_t>(x.element_size())};
  }
};

Output output_of(Tensor& y) { return {y.mutable_data_ptr(), *dtype_of(y)}; }

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const OptionalTensor& bias,
                   const OptionalTensor& columns, c10::string_view mode, double threshold, int64_t budget,
                   bool relative, bool symmetric) {
  const OutlierRule rule{mode, threshold, budget, relative, symmetric};
  if (!takes(x, weight, weight_scale, bias, columns, rule)) {
    static const auto fallback = find("llmint8::int8_linear_fallback").typed<Int8Linear>();
    return fallback.call(x, weight, weight_scale, bias, columns, mode, threshold, budget, relative, symmetric);
  }
  const Input input(x);
  const Layer layer(weight, weight_scale, bias);
  Tensor y = at::empty(with_features(x, weight.size(0)), x.options());
  multiply(input.rows, {{layer.view(), {}, {}, output_of(y)}}, columns, rule);
  return y;
}

bool same_columns(const OptionalTensor& a, const OptionalTensor& b) {
  return a && b && (a->is_same(*b) || a->equal(*b));
}

// Whether layers [0, count) take the same input with the same outlier columns.
bool take_together(const Tensor& x, at::TensorList weights, at::TensorList scales, const OptionalTensors& biases,
                   const OptionalTensors& columns, size_t count, const OutlierRule& rule) {
  if (weights.size() < count || scales.size() < count || biases.size() < count || columns.size() < count) return false;
  const bool searched = rule.mode != "static" || x.numel() <= DECODE_ROWS * x.size(-1);
  for (size_t i = 0; i < count; ++i) {
    if (!takes(x, weights[i], scales[i], biases.get(i), columns.get(i), rule)) return false;
    if (!searched && !same_columns(columns.get(0), columns.get(i))) return false;
  }
  return true;
}

std::vector<Tensor> int8_linears(const Tensor& x, at::TensorList weights, at::TensorList scales,
                                 const OptionalTensors& biases, const OptionalTensors& columns, c10::string_view mode,
                                 double threshold, int64_t budget, bool relative, bool symmetric) {
  const OutlierRule rule{mode, threshold, budget, relative, symmetric};
  if (weights.empty() || x.dim() == 0 ||
      !take_together(x, weights, scales, biases, columns, weights.size(), rule)) {
    static const auto fallback = find("llmint8::int8_linears_fallback").typed<Int8Linears>();
    return fallback.call(x, weights, scales, biases, columns, mode, threshold, budget, relative, symmetric);
  }
  const Input input(x);
  std::vector<Layer> layers;
  std::vector<Product> products;
  std::vector<Tensor> results;
  for (size_t i = 0; i < weights.size(); ++i) {
    layers.emplace_back(weights[i], scales[i], biases.get(i));
    results.push_back(at::empty(with_features(x, weights[i].size(0)), x.options()));
    products.push_back({layers[i].view(), {}, {}, output_of(results[i])});
  }
  multiply(input.rows, products, columns.get(0), rule);
  return results;
}

// The weights are those of gate, up and down, which has a budget of its own.
Tensor gated_mlp(const Tensor& x, at::TensorList weights, at::TensorList scales, const OptionalTensors& biases,
                 const OptionalTensors& columns, c10::string_view activation, int64_t down_budget,
                 c10::string_view mode, double threshold, int64_t budget, bool relative, bool symmetric) {
  const OutlierRule rule{mode, threshold, budget, relative, symmetric};
  const std::optional<Activation> kind = activation_of(activation);
  if (!kind || weights.size() != 3 || scales.size() != 3 || biases.size() != 3 || columns.size() != 3 || x.dim() == 0 ||
      !take_together(x, weights, scales, biases, columns, 2, rule) || weights[0].size(0) != weights[1].size(0)) {
    static const auto fallback = find("llmint8::gated_mlp_fallback").typed<GatedMlp>();
    return fallback.call(x, weights, scales, biases, columns, activation, down_budget, mode, threshold, budget,
                          relative, symmetric);
  }
  const Input input(x);
  const Layer gate(weights[0], scales[0], biases.get(0)), up(weights[1], scales[1], biases.get(1));
  Tensor hidden = at::empty(with_features(x, weights[1].size(0)), x.options());
  multiply(input.rows, {{up.view(), gate.view(), *kind, output_of(hidden)}}, columns.get(0), rule);
  return int8_linear(hidden, weights[2], scales[2], biases.get(2), columns.get(2), mode, threshold, down_budget,
                     relative, symmetric);
}

std::tuple<Tensor, Tensor> quantize_weight(const Tensor& weight) {
  if (weight.dim() != 2 || !dtype_of(weight) || weight.numel() == 0) {
    static const auto fallback =
        find("llmint8::quantize_weight_fallback").typed<std::tuple<Tensor, Tensor>(const Tensor&)>();
    return fallback.call(weight);
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

// ---- gradients ----

// The gradient is declared once, in Python. This is the way there, and past it where nobody asks for one: autograd in
// Python would cost each call of a small model more than its product.
Tensor int8_linear_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                            const Tensor& weight_scale, const OptionalTensor& bias, const OptionalTensor& columns,
                            c10::string_view mode, double threshold, int64_t budget, bool relative, bool symmetric) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || (bias && bias->requires_grad()))) {
    static const auto with_gradient = find("llmint8::int8_linear_with_gradient").typed<Int8Linear>();
    return with_gradient.call(x, weight, weight_scale, bias, columns, mode, threshold, budget, relative, symmetric);
  }
  static const auto plain = find("llmint8::int8_linear").typed<Int8Linear>();
  return plain.redispatch(keys & c10::after_autograd_keyset, x, weight, weight_scale, bias, columns, mode, threshold,
                          budget, relative, symmetric);
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
  library.def("enter_forward(bool few_tokens, int model) -> ()", ThreadLimit::enter);
  library.def("leave_forward() -> ()", ThreadLimit::leave);
  library.def("begin_generation() -> ()", ThreadLimit::begin_generation);
  library.def("end_generation() -> ()", ThreadLimit::end_generation);
}

TORCH_LIBRARY_IMPL(llmint8, CPU, library) {
  library.impl("int8_linear", int8_linear);
  library.impl("int8_linears", int8_linears);
  library.impl("gated_mlp", gated_mlp);
  library.impl("quantize_weight", quantize_weight);
}

TORCH_LIBRARY_IMPL(llmint8, AutogradCPU, library) { library.impl("int8_linear", int8_linear_autograd); }

}  // namespace llmint8
