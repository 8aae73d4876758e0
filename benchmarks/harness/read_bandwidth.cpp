// The fastest plain loops that read memory once, the yardstick for decode kernels.
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

template <int AHEAD>
static uint64_t read(const uint64_t* data, int64_t count) {
  uint64_t sums[32] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32) {
    if (AHEAD > 0) {
      for (int line = 0; line < 4; ++line) __builtin_prefetch(data + i + AHEAD / 8 + 8 * line);
    }
    for (int j = 0; j < 32; ++j) sums[j] += data[i + j];
  }
  uint64_t sum = 0;
  for (uint64_t s : sums) sum += s;
  return sum;
}

// Returns the seconds that `threads` threads take to read `bytes` bytes, with loop 0, 1 or 2.
extern "C" double read_seconds(const void* data, int64_t bytes, int threads, int loop) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<uint64_t> sums(threads * 8);
  std::vector<std::thread> others;
  const auto run = [&](int thread) {
    const int64_t count = bytes / 8 / threads;
    const uint64_t* first = static_cast<const uint64_t*>(data) + thread * count;
    sums[thread * 8] = loop == 0 ? read<0>(first, count) : loop == 1 ? read<2048>(first, count) : read<8192>(first, count);
  };
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  volatile uint64_t keep = sums[0];
  (void)keep;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
