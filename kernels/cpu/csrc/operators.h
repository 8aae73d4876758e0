// The operators as functions, for those that are made of others.
#pragma once

#include <string>
#include <vector>

#include "tensors.h"

namespace llmint8 {

using OptionalTensors = c10::List<OptionalTensor>;

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const OptionalTensor& bias,
                   const OptionalTensor& columns, c10::string_view mode, double threshold, int64_t budget,
                   bool relative, bool symmetric);
std::vector<Tensor> int8_linears(const Tensor& x, at::TensorList weights, at::TensorList scales,
                                 const OptionalTensors& biases, const OptionalTensors& columns, c10::string_view mode,
                                 double threshold, int64_t budget, bool relative, bool symmetric);
Tensor gated_mlp(const Tensor& x, at::TensorList weights, at::TensorList scales, const OptionalTensors& biases,
                 const OptionalTensors& columns, c10::string_view activation, c10::string_view mode, double threshold,
                 int64_t budget, bool relative, bool symmetric);
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, bool add_one);
void rotate(Tensor& q, Tensor& k, const Tensor& cosine, const Tensor& sine);
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal);

}  // namespace llmint8
