// PyTorch's tensors and operators, for ours.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"

namespace llmint8 {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline std::optional<Dtype> dtype_of(const Tensor& tensor) {
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

// The operator of a name: each has a fallback, `..._fallback`, for what its kernels do not take.
inline const c10::OperatorHandle& find(const char* name) {
  static thread_local std::vector<std::pair<const char*, c10::OperatorHandle>> found;
  for (const auto& [known, handle] : found) {
    if (known == name) return handle;
  }
  found.emplace_back(name, c10::Dispatcher::singleton().findSchemaOrThrow(name, ""));
  return found.back().second;
}

inline std::optional<Activation> activation_of(c10::string_view name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  return std::nullopt;
}

// The shape of x with another last dimension.
inline c10::SmallVector<int64_t, 6> with_features(const Tensor& x, int64_t features) {
  c10::SmallVector<int64_t, 6> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = features;
  return shape;
}

}  // namespace llmint8
