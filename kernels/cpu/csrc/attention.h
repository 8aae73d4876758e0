// Attention of few queries, without a mask.
#pragma once

#include <vector>

#include "kernels.h"
#include "linear.h"
#include "parallel.h"

namespace llmint8 {

// In parts of the keys, equal ones, so that few heads keep many threads busy; as many on any number of threads.
inline void attend(const Attention& p) {
  constexpr int64_t KEYS = 256;
  const int64_t parts = (p.keys + KEYS - 1) / KEYS, heads = p.batch * p.key_heads, floats = kernels->attention_part(p);
  const int64_t bytes = 2 * heads * p.keys * p.depth * (p.dtype == Dtype::fp32 ? 4 : 2);
  std::vector<float> sums(heads * parts * floats);
  parallel(heads * parts, threads_to_read(bytes), [&](int64_t task, int) {
    const int64_t head = task / parts, part = task % parts;
    kernels->attention_decode(p, head / p.key_heads, head % p.key_heads, part * p.keys / parts,
                              (part + 1) * p.keys / parts, sums.data() + task * floats);
  });
  for (int64_t head = 0; head < heads; ++head) {
    kernels->attention_join(p, head / p.key_heads, head % p.key_heads, sums.data() + head * parts * floats, parts);
  }
}

}  // namespace llmint8
