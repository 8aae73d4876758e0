// Work on several threads, without waiting for a thread that another program keeps from running.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace llmint8 {

// Calls `run(task, thread)` for every task in [0, tasks), on at most `threads` threads of PyTorch's. Threads take tasks
// one after the other as they come to them.
template <typename Run>
void parallel(int64_t tasks, int threads, const Run& run) {
  threads = static_cast<int>(std::min<int64_t>(tasks, threads));
  if (threads <= 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < tasks; ++task) run(task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    (void)last;
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      run(task, static_cast<int>(first));
    }
  });
}

// How many threads pay for `bytes` of memory to read, with what it costs to start one.
inline int useful_threads(int64_t bytes) {
  constexpr int64_t BYTES = 64 << 10;
  return static_cast<int>(std::min<int64_t>(at::get_num_threads(), 1 + bytes / BYTES));
}

}  // namespace llmint8
