// A whole decoder layer of a Llama for the next token, made of the other operators: so nothing but they takes time.
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <torch/library.h>

#include <vector>

#include "operators.h"
#include "tensors.h"

namespace llmint8 {
namespace {

enum Layer { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN };

// keys and values, [batch, key_heads, capacity, depth], get the new ones at `position`.
Tensor decoder_layer(const Tensor& x, const Tensor& cosine, const Tensor& sine, Tensor& keys, Tensor& values,
                     int64_t position, at::TensorList norms, at::TensorList head_norms, double eps,
                     bool add_one, at::TensorList weights, at::TensorList scales, const OptionalTensors& biases, double scale,
                     c10::string_view activation) {
  TORCH_CHECK_VALUE(norms.size() == 2 && (head_norms.empty() || head_norms.size() == 2), "there are 2 norms of a kind");
  TORCH_CHECK_VALUE(weights.size() == 7 && scales.size() == 7 && biases.size() == 7, "a layer has 7 weights");
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(1) == 1 && keys.dim() == 4 && keys.sizes() == values.sizes() &&
                        keys.size(0) == x.size(0) && position >= 0 && position < keys.size(2),
                    "x must be [batch, 1, features], the cache [batch, heads, capacity, depth] with room for it");
  const int64_t batch = x.size(0), depth = keys.size(3);
  const OptionalTensors no_columns(std::vector<OptionalTensor>(3));
  const auto biases_of = [&](int first) {
    return OptionalTensors(std::vector<OptionalTensor>{biases.get(first), biases.get(first + 1), biases.get(first + 2)});
  };
  // Few rows: no outliers are searched for, whatever the settings.
  const auto project = [&](const Tensor& input) {
    return int8_linears(input, weights.slice(QUERY, 3), scales.slice(QUERY, 3), biases_of(QUERY), no_columns, "none", 0,
                        0, false, false);
  };
  std::vector<Tensor> heads = project(rms_norm(x, norms[0], eps, add_one));
  for (Tensor& head : heads) head = head.view({batch, 1, -1, depth});
  if (!head_norms.empty()) {
    heads[QUERY] = rms_norm(heads[QUERY], head_norms[0], eps, add_one);
    heads[KEY] = rms_norm(heads[KEY], head_norms[1], eps, add_one);
  }
  for (Tensor& head : heads) head = head.transpose(1, 2);
  rotate(heads[QUERY], heads[KEY], cosine, sine);
  keys.narrow(2, position, 1).copy_(heads[KEY]);
  values.narrow(2, position, 1).copy_(heads[VALUE]);
  const Tensor seen_keys = keys.narrow(2, 0, position + 1), seen_values = values.narrow(2, 0, position + 1);
  const Tensor attended = attention(heads[QUERY], seen_keys, seen_values, scale, false);
  const Tensor out = int8_linear(attended.view({batch, 1, -1}), weights[OUT], scales[OUT], biases.get(OUT), std::nullopt,
                                 "none", 0, 0, false, false);
  const Tensor middle = at::add(x, out);
  const Tensor normed = rms_norm(middle, norms[1], eps, add_one);
  return at::add(middle, gated_mlp(normed, weights.slice(GATE, 3), scales.slice(GATE, 3), biases_of(GATE), no_columns,
                                   activation, "none", 0, 0, false, false));
}

}  // namespace

TORCH_LIBRARY_IMPL(llmint8, CPU, library) { library.impl("decoder_layer", decoder_layer); }

}  // namespace llmint8
