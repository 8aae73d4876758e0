// What a model does between its int8 layers, on a CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "parallel.h"
#include "tensors.h"

namespace llmint8 {
namespace {

Tensor float_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const auto same = [&](const Tensor& other) {
    return other.scalar_type() == x.scalar_type() && other.is_cpu() && other.is_contiguous();
  };
  const bool streams = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat;
  if (!streams || x.dim() == 0 || x.numel() == 0 || weight.dim() != 2 || weight.numel() == 0 ||
      x.size(-1) != weight.size(1) || x.numel() > MAX_FLOAT_ROWS * x.size(-1) || !same(weight) ||
      (bias && (bias->dim() != 1 || bias->size(0) != weight.size(0) || !same(*bias)))) {
    static const auto fallback = find("llmint8::float_linear_fallback")
                                      .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>();
    return fallback.call(x, weight, bias);
  }
  const int64_t n = weight.size(0), k = weight.size(1), row_bytes = k * static_cast<int64_t>(x.element_size());
  const Tensor input = x.contiguous();
  Tensor y = at::empty(with_features(x, n), x.options());
  std::vector<float> rows(x.numel());
  kernels->load(input.const_data_ptr(), *dtype_of(x), x.numel(), rows.data());
  const FloatLinear problem{rows.data(), weight.const_data_ptr(), bias ? bias->const_data_ptr() : nullptr,
                            *dtype_of(x), x.numel() / k, n, k, y.mutable_data_ptr()};
  const int64_t step = std::max<int64_t>(16, TASK_BYTES / row_bytes / 16 * 16);
  parallel((n + step - 1) / step, threads_to_read(n * row_bytes), [&](int64_t task, int) {
    kernels->float_linear(problem, task * step, std::min(n, (task + 1) * step));
  });
  return y;
}

// Whether the kernels below are for this attention.
bool takes(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  if (!dtype_of(q) || k.scalar_type() != q.scalar_type() || v.scalar_type() != q.scalar_type()) return false;
  if (q.dim() != 4 || k.dim() != 4 || v.sizes() != k.sizes() || q.numel() == 0 || k.numel() == 0) return false;
  if (k.size(0) != q.size(0) || k.size(3) != q.size(3) || q.size(1) % k.size(1) != 0) return false;
  if (q.stride(3) != 1 || k.stride(3) != 1 || v.stride(3) != 1) return false;
  return !causal || q.size(2) <= k.size(2);
}

Heads heads_of(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal) {
  if (!takes(q, k, v, causal)) {
    static const auto fallback = find("llmint8::attention_fallback")
                                      .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, double, bool)>();
    return fallback.call(q, k, v, scale, causal);
  }
  constexpr int64_t QUERIES = 64;  // of a task of a prefill
  const int64_t batch = q.size(0), heads = q.size(1), key_heads = k.size(1), queries = q.size(2), depth = q.size(3);
  Tensor y = at::empty({batch, queries, heads, depth}, q.options());
  const Attention problem{heads_of(q), heads_of(k), heads_of(v), *dtype_of(q), batch,
                          heads,       key_heads,   queries,     k.size(2),    depth,
                          static_cast<float>(scale), causal, y.mutable_data_ptr()};
  if (queries <= FEW_QUERIES && !(causal && queries > 1)) {
    attend(problem);
    return y;
  }
  const int threads = at::get_num_threads();
  const Tensor workspace = at::empty({kernels->attention_workspace(problem)}, at::kFloat);
  float* packed = workspace.data_ptr<float>();
  const int64_t panels = (problem.keys + kernels->panel - 1) / kernels->panel;
  parallel(batch * key_heads * panels, threads, [&](int64_t task, int) {
    const int64_t head = task / panels;
    kernels->attention_pack(problem, head / key_heads, head % key_heads, task % panels, packed);
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

// The fp32 values of a vector.
std::vector<float> floats_of(const Tensor& vector) {
  std::vector<float> values(vector.numel());
  kernels->load(vector.const_data_ptr(), *dtype_of(vector), vector.numel(), values.data());
  return values;
}

// How many threads elementwise work on so many elements is worth.
int threads_for(int64_t elements) {
  constexpr int64_t ELEMENTS = 32 << 10;
  return elements < 2 * ELEMENTS ? 1 : at::get_num_threads();
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, bool add_one) {
  const bool takes = dtype_of(x) && x.scalar_type() == weight.scalar_type() && x.dim() > 0 && x.numel() > 0 &&
                     weight.is_cpu() && weight.dim() == 1 && weight.is_contiguous() && weight.size(0) == x.size(-1);
  if (!takes) {
    static const auto fallback =
        find("llmint8::rms_norm_fallback").typed<Tensor(const Tensor&, const Tensor&, double, bool)>();
    return fallback.call(x, weight, eps, add_one);
  }
  constexpr int64_t BLOCK = 8;
  const Tensor input = x.contiguous();
  const int64_t k = x.size(-1), rows = x.numel() / k, row_bytes = k * x.element_size();
  std::vector<float> factors = floats_of(weight);
  if (add_one) {
    for (float& factor : factors) factor += 1;
  }
  Tensor y = at::empty(x.sizes(), x.options());
  const Output output{y.mutable_data_ptr(), *dtype_of(y)};
  const char* data = static_cast<const char*>(input.const_data_ptr());
  const int threads = threads_for(x.numel());
  std::vector<float> buffers(threads * k);
  parallel((rows + BLOCK - 1) / BLOCK, threads, [&](int64_t task, int thread) {
    float* row = buffers.data() + thread * k;
    for (int64_t i = task * BLOCK; i < std::min(rows, (task + 1) * BLOCK); ++i) {
      kernels->load(data + i * row_bytes, output.dtype, k, row);
      kernels->rms_norm(row, factors.data(), k, static_cast<float>(eps), output, i * k);
    }
  });
  return y;
}

// Whether the kernel below rotates this x by these angles.
bool takes_rotation(const Tensor& x, const Tensor& angles) {
  return dtype_of(x) && dtype_of(angles) && x.dim() == 4 && angles.dim() == 3 && angles.is_cpu() && x.numel() > 0 &&
         x.stride(3) == 1 && angles.stride(2) == 1 && x.size(3) % 2 == 0 && angles.size(2) == x.size(3) &&
         angles.size(1) == x.size(2) && (angles.size(0) == x.size(0) || angles.size(0) == 1);
}

// q and k, [batch, heads, rows, depth], in place; cosine and sine are [batch or 1, rows, depth].
void rotate(Tensor& q, Tensor& k, const Tensor& cosine, const Tensor& sine) {
  if (!takes_rotation(q, cosine) || !takes_rotation(k, cosine) || sine.sizes() != cosine.sizes() ||
      sine.strides() != cosine.strides() || sine.scalar_type() != cosine.scalar_type() ||
      k.scalar_type() != q.scalar_type() || k.size(0) != q.size(0)) {
    static const auto fallback =
        find("llmint8::rotate_fallback").typed<void(Tensor&, Tensor&, const Tensor&, const Tensor&)>();
    fallback.call(q, k, cosine, sine);
    return;
  }
  const Dtype dtype = *dtype_of(q), angle_dtype = *dtype_of(cosine);
  const int64_t batch = q.size(0), rows = q.size(2), depth = q.size(3), size = q.element_size();
  const int threads = threads_for(q.numel() + k.numel());
  std::vector<float> angles(threads * 2 * depth);
  parallel(batch * rows, threads, [&](int64_t task, int thread) {
    const int64_t b = task / rows, row = task % rows;
    const int64_t offset = (cosine.size(0) == 1 ? 0 : b * cosine.stride(0)) + row * cosine.stride(1);
    float* c = angles.data() + thread * 2 * depth;
    for (const auto& [tensor, out] : {std::pair{&cosine, c}, std::pair{&sine, c + depth}}) {
      kernels->load(static_cast<const char*>(tensor->const_data_ptr()) + offset * tensor->element_size(), angle_dtype,
                    depth, out);
    }
    for (const Tensor* x : {&q, &k}) {
      char* data = static_cast<char*>(x->mutable_data_ptr()) + (b * x->stride(0) + row * x->stride(2)) * size;
      const bool adjacent = x->stride(1) == depth;
      for (int64_t head = 0; head < x->size(1); head += adjacent ? x->size(1) : 1) {
        kernels->rotate(data + head * x->stride(1) * size, dtype, adjacent ? x->size(1) : 1, depth, c, c + depth);
      }
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(llmint8, CPU, library) {
  library.impl("attention", attention);
  library.impl("float_linear", float_linear);
  library.impl("rms_norm", rms_norm);
  library.impl("rotate", rotate);
}

}  // namespace llmint8
