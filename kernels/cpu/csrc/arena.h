// Memory for weights in huge pages, where the system has them: a weight is read once for every token, and looking up
// 4 KiB pages takes a quarter of the time that reading them does.
#pragma once

#include <ATen/core/Tensor.h>

namespace llmint8 {

// Returns an uninitialized contiguous int8 tensor. Weights made one after the other lie one after the other.
at::Tensor empty_weight(int64_t n, int64_t k);

}  // namespace llmint8
