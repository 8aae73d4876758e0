// A whole decoder layer of a Llama for the next token of a few sequences, on plain memory: of a small model, making tensors
// and calling operators takes as long as the products.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstring>
#include <utility>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "tensors.h"

namespace llmint8 {
namespace {

using OptionalTensors = c10::List<OptionalTensor>;
enum LayerName { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN, LAYERS };

struct Sizes {
  int64_t batch, features, heads, key_heads, depth, hidden, position;
};

struct Norm {
  std::vector<float> weight;
  float eps;

  Norm(const Tensor& tensor, double epsilon, bool add_one) : weight(tensor.numel()), eps(static_cast<float>(epsilon)) {
    kernels->load(tensor.const_data_ptr(), *dtype_of(tensor), tensor.numel(), weight.data());
    for (float& factor : weight) factor += add_one ? 1.0f : 0.0f;
  }
};

bool is_vector(const Tensor& tensor, int64_t size, at::ScalarType dtype) {
  return tensor.dim() == 1 && tensor.size(0) == size && tensor.scalar_type() == dtype && tensor.is_contiguous() &&
         tensor.is_cpu();
}

bool is_layer(const Tensor& weight, const Tensor& scale, const OptionalTensor& bias, int64_t n, int64_t k) {
  return weight.is_cpu() && weight.scalar_type() == at::kChar && weight.dim() == 2 && weight.size(0) == n &&
         weight.size(1) == k && weight.is_contiguous() && scale.is_cpu() && scale.scalar_type() == at::kFloat &&
         scale.dim() == 2 && scale.size(0) == n && scale.size(1) == 1 && scale.is_contiguous() && k <= MAX_K && k > 0 &&
         n > 0 && (!bias || (dtype_of(*bias) && is_vector(*bias, n, bias->scalar_type())));
}

// [1 or batch, 1, depth]
bool are_angles(const Tensor& angles, const Sizes& s, at::ScalarType dtype) {
  return angles.is_cpu() && angles.dim() == 3 && (angles.size(0) == 1 || angles.size(0) == s.batch) &&
         angles.size(1) == 1 && angles.size(2) == s.depth && angles.is_contiguous() && angles.scalar_type() == dtype;
}

class DecoderLayer {
 public:
  DecoderLayer(Dtype dtype, const Sizes& sizes) : s_(sizes), dtype_(dtype), size_(dtype == Dtype::fp32 ? 4 : 2) {}

  // Rows of `count` elements that stay until the layer is done.
  char* rows(int64_t count) {
    buffers_.emplace_back(s_.batch * count * size_);
    return buffers_.back().data();
  }

  void normalize(const char* x, const Norm& norm, int64_t rows, char* y) {
    const int64_t k = norm.weight.size();
    row_.resize(k);
    const Output output{y, dtype_};
    for (int64_t i = 0; i < rows; ++i) {
      kernels->load(x + i * k * size_, dtype_, k, row_.data());
      kernels->rms_norm(row_.data(), norm.weight.data(), k, norm.eps, output, i * k);
    }
  }

  void rotate(char* x, int64_t heads, const std::vector<float>& cosine, const std::vector<float>& sine) {
    for (int64_t b = 0; b < s_.batch; ++b) {
      const int64_t angle = cosine.size() == size_t(s_.depth) ? 0 : b * s_.depth;
      kernels->rotate(x + b * heads * s_.depth * size_, dtype_, heads, s_.depth, cosine.data() + angle,
                      sine.data() + angle);
    }
  }

  // Writes [batch, key_heads, depth] to a place of the cache.
  void keep(const char* x, Tensor& cache) {
    char* base = static_cast<char*>(cache.mutable_data_ptr()) + s_.position * cache.stride(2) * size_;
    for (int64_t b = 0; b < s_.batch; ++b) {
      for (int64_t head = 0; head < s_.key_heads; ++head, x += s_.depth * size_) {
        std::memcpy(base + (b * cache.stride(0) + head * cache.stride(1)) * size_, x, s_.depth * size_);
      }
    }
  }

  void attend_to(const char* query, const Tensor& keys, const Tensor& values, double scale, char* y) {
    const auto heads_of = [](const Tensor& t) { return Heads{t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; };
    const Heads queries{query, s_.heads * s_.depth, s_.depth, s_.depth};
    attend({queries, heads_of(keys), heads_of(values), dtype_, s_.batch, s_.heads, s_.key_heads, 1, s_.position + 1,
            s_.depth, static_cast<float>(scale), false, y});
  }

  void multiply(const char* x, int64_t k, const std::vector<Product>& products) const {
    decode({x, dtype_, s_.batch, k, k * size_}, products);
  }

  // y = a + b, rows of features
  void add(const char* a, const char* b, char* y) {
    const int64_t count = s_.batch * s_.features;
    row_.resize(2 * count);
    kernels->load(a, dtype_, count, row_.data());
    kernels->load(b, dtype_, count, row_.data() + count);
    for (int64_t i = 0; i < count; ++i) row_[i] += row_[count + i];
    kernels->store(row_.data(), count, dtype_, y, 0);
  }

  Output output(char* y) const { return {y, dtype_}; }

 private:
  Sizes s_;
  Dtype dtype_;
  int64_t size_;
  std::vector<std::vector<char>> buffers_;
  std::vector<float> row_;
};

// keys and values, [batch, key_heads, capacity, depth], get the new ones at `position`.
Tensor decoder_layer(const Tensor& x, const Tensor& cosine, const Tensor& sine, Tensor& keys, Tensor& values,
                     int64_t position, at::TensorList norms, at::TensorList head_norms, double eps, bool add_one,
                     at::TensorList weights, at::TensorList scales, const OptionalTensors& biases, double scale,
                     c10::string_view activation_name) {
  const std::optional<Activation> activation = activation_of(activation_name);
  Sizes s{};
  const auto takes = [&] {
    if (!activation || norms.size() != 2 || (!head_norms.empty() && head_norms.size() != 2)) return false;
    if (weights.size() != LAYERS || scales.size() != LAYERS || biases.size() != LAYERS || x.dim() != 3) return false;
    if (x.size(1) != 1 || x.size(0) > DECODE_ROWS || x.numel() == 0 || !x.is_contiguous() || !dtype_of(x)) return false;
    if (keys.dim() != 4 || keys.sizes() != values.sizes() || keys.size(0) != x.size(0) || keys.numel() == 0) return false;
    const at::ScalarType dtype = x.scalar_type();
    for (const Tensor* cache : {&keys, &values}) {
      if (!cache->is_cpu() || cache->scalar_type() != dtype || cache->stride(3) != 1) return false;
    }
    const int64_t depth = keys.size(3);
    s = {x.size(0), x.size(2), weights[QUERY].size(0) / depth, keys.size(1), depth, weights[UP].size(0), position};
    const int64_t wide = s.heads * depth, narrow = s.key_heads * depth;
    const std::pair<int64_t, int64_t> shapes[] = {{wide, s.features},     {narrow, s.features},   {narrow, s.features},
                                                  {s.features, wide},     {s.hidden, s.features}, {s.hidden, s.features},
                                                  {s.features, s.hidden}};
    for (int i = 0; i < LAYERS; ++i) {
      if (!is_layer(weights[i], scales[i], biases.get(i), shapes[i].first, shapes[i].second)) return false;
    }
    if (s.heads % s.key_heads != 0 || depth % 2 != 0) return false;
    for (const Tensor& norm : norms) {
      if (!is_vector(norm, s.features, dtype)) return false;
    }
    for (const Tensor& norm : head_norms) {
      if (!is_vector(norm, depth, dtype)) return false;
    }
    return are_angles(cosine, s, dtype) && are_angles(sine, s, dtype) && cosine.sizes() == sine.sizes() &&
           position >= 0 && position < keys.size(2);
  };
  if (!takes()) {
    static const auto fallback = find("llmint8::decoder_layer_fallback").typed<decltype(decoder_layer)>();
    return fallback.call(x, cosine, sine, keys, values, position, norms, head_norms, eps, add_one, weights, scales,
                          biases, scale, activation_name);
  }
  const Dtype dtype = *dtype_of(x);
  DecoderLayer layer(dtype, s);
  std::vector<Layer> layers;
  layers.reserve(LAYERS);
  for (int i = 0; i < LAYERS; ++i) layers.emplace_back(weights[i], scales[i], biases.get(i));
  const auto product = [&](int i, char* y) { return Product{layers[i].view(), {}, {}, layer.output(y)}; };
  const int64_t wide = s.heads * s.depth, narrow = s.key_heads * s.depth;
  const char* input = static_cast<const char*>(x.const_data_ptr());
  Tensor result = at::empty_like(x);
  char* normed = layer.rows(s.features);
  char *query = layer.rows(wide), *key = layer.rows(narrow), *value = layer.rows(narrow);
  layer.normalize(input, Norm(norms[0], eps, add_one), s.batch, normed);
  layer.multiply(normed, s.features, {product(QUERY, query), product(KEY, key), product(VALUE, value)});
  if (!head_norms.empty()) {
    layer.normalize(query, Norm(head_norms[0], eps, add_one), s.batch * s.heads, query);
    layer.normalize(key, Norm(head_norms[1], eps, add_one), s.batch * s.key_heads, key);
  }
  std::vector<float> cosines(cosine.numel()), sines(sine.numel());
  kernels->load(cosine.const_data_ptr(), dtype, cosine.numel(), cosines.data());
  kernels->load(sine.const_data_ptr(), dtype, sine.numel(), sines.data());
  layer.rotate(query, s.heads, cosines, sines);
  layer.rotate(key, s.key_heads, cosines, sines);
  layer.keep(key, keys);
  layer.keep(value, values);
  char *attended = layer.rows(wide), *out = layer.rows(s.features), *middle = layer.rows(s.features);
  layer.attend_to(query, keys, values, scale, attended);
  layer.multiply(attended, wide, {product(OUT, out)});
  layer.add(input, out, middle);
  layer.normalize(middle, Norm(norms[1], eps, add_one), s.batch, normed);
  char* hidden = layer.rows(s.hidden);
  layer.multiply(normed, s.features, {{layers[UP].view(), layers[GATE].view(), *activation, layer.output(hidden)}});
  layer.multiply(hidden, s.hidden, {product(DOWN, out)});
  layer.add(middle, out, static_cast<char*>(result.mutable_data_ptr()));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(llmint8, CPU, library) { library.impl("decoder_layer", decoder_layer); }

}  // namespace llmint8
