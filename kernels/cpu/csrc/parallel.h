// Work on PyTorch's threads, and not on those that another program keeps from running.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace llmint8 {

// The end of a parallel region waits for every thread. On a busy machine one of them may not be running, and a region
// of microseconds takes the milliseconds until it is its turn. So when a region waited in vain, short ones stay on the
// calling thread for a while, and longer each time that it happens again. During a forward pass of a model (`enter` to
// `leave`), so do those of PyTorch's own operators.
class ThreadLimit {
 public:
  using Clock = std::chrono::steady_clock;

  static bool noticed() { return Clock::now().time_since_epoch().count() < until().load(std::memory_order_relaxed); }

  // `waited` is how long a region took beyond the calling thread's own work, `task` how long its last task took.
  static void report(Clock::duration waited, Clock::duration task) {
    using std::chrono::microseconds;
    static std::atomic<int64_t> pause{SHORTEST};
    if (waited < microseconds(200) + 2 * task) {
      pause.store(SHORTEST, std::memory_order_relaxed);
      crowded().store(false, std::memory_order_relaxed);
      return;
    }
    crowded().store(true, std::memory_order_relaxed);
    const int64_t length = pause.load(std::memory_order_relaxed);
    pause.store(std::min(2 * length, LONGEST), std::memory_order_relaxed);
    until().store((Clock::now() + microseconds(length)).time_since_epoch().count(), std::memory_order_relaxed);
    if (pass().threads > 0) use_threads(1);
  }

  // Passes may lie within each other. Those over many tokens compute more than they wait, and keep their threads. An
  // interrupted pass never ends; its model is known by `id` when it comes again.
  static void enter(bool few_tokens, int64_t id) {
    Pass& now = pass();
    if (now.depth > 0 && now.id == id) {
      now.depth = 1;
      leave();
    }
    if (now.depth++ > 0) return;
    now.id = id;
    if (now.generation > 0) use_threads(now.generation);
    if (!few_tokens) return;
    now.threads = most_threads();
    if (noticed()) use_threads(1);
  }

  static void leave() {
    Pass& now = pass();
    if (now.depth == 0 || --now.depth > 0) return;
    if (now.threads > 0 && most_threads() != now.threads) use_threads(now.threads);
    now.threads = 0;
    if (now.generation > 0 && crowded().load(std::memory_order_relaxed)) use_threads(1);
  }

  // Passes of one generation, which may lie within another. Between them PyTorch's operators have one thread until a
  // region of ours has found that the others run again: it waits once, and they would wait at every operator.
  static void begin_generation() {
    Pass& now = pass();
    if (now.generations++ > 0) return;
    now.generation = most_threads();
    if (crowded().load(std::memory_order_relaxed)) use_threads(1);
  }

  static void end_generation() {
    Pass& now = pass();
    if (now.generations == 0 || --now.generations > 0) return;
    if (most_threads() != now.generation) use_threads(now.generation);
    now.generation = now.threads = now.depth = 0;  // a pass may have been interrupted
  }

 private:
  static constexpr int64_t SHORTEST = 10'000, LONGEST = 320'000;  // microseconds

  struct Pass {
    int depth = 0, threads = 0;  // threads: to restore at the end, or 0
    int64_t id = 0;              // of the outermost model
    int generations = 0, generation = 0;  // how many there are, and threads to restore at the end
  };

  static Pass& pass() {
    static thread_local Pass now;
    return now;
  }

  static int most_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return at::get_num_threads();
#endif
  }

  static void use_threads(int threads) {  // of the calling thread; at::set_num_threads is for the whole process
#if defined(_OPENMP)
    omp_set_num_threads(threads);
#else
    (void)threads;
#endif
  }

  // Whether the last region waited in vain.
  static std::atomic<bool>& crowded() {
    static std::atomic<bool> value{false};
    return value;
  }

  static std::atomic<int64_t>& until() {
    static std::atomic<int64_t> value{0};
    return value;
  }
};

// Tasks [0, tasks), dealt out to threads. Each takes its own from the first to the last, so that it goes through memory
// in one direction, and then what others have not come to yet.
class Deal {
 public:
  Deal(int64_t tasks, int threads) : tasks_(tasks), threads_(threads), next_(threads) {
    for (int i = 0; i < threads; ++i) next_[i].value.store(first(i), std::memory_order_relaxed);
  }

  // A task for a thread, or -1 if none is left.
  int64_t take(int thread) {
    for (int i = 0; i < threads_; ++i) {
      const int owner = (thread + i) % threads_;
      std::atomic<int64_t>& next = next_[owner].value;
      if (next.load(std::memory_order_relaxed) >= first(owner + 1)) continue;
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task < first(owner + 1)) return task;
    }
    return -1;
  }

 private:
  struct alignas(64) Next {
    std::atomic<int64_t> value;
  };

  int64_t first(int thread) const { return tasks_ * thread / threads_; }

  int64_t tasks_;
  int threads_;
  std::vector<Next> next_;
};

// Calls `run(task, thread)` for every task in [0, tasks), on at most `threads` threads.
template <typename Run>
void parallel(int64_t tasks, int threads, const Run& run) {
  threads = static_cast<int>(std::min<int64_t>(tasks, threads));
  if (threads <= 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < tasks; ++task) run(task, 0);
    return;
  }
  const auto start = ThreadLimit::Clock::now();
  const auto caller = std::this_thread::get_id();
  ThreadLimit::Clock::duration work{0}, last{0};
  Deal deal(tasks, threads);
  std::atomic<int> started{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const int thread = started.fetch_add(1, std::memory_order_relaxed);
    if (thread >= threads) return;
    const bool calling = std::this_thread::get_id() == caller;
    const auto begin = ThreadLimit::Clock::now();
    auto latest = begin;
    for (int64_t task; (task = deal.take(thread)) >= 0;) {
      if (calling) latest = ThreadLimit::Clock::now();
      run(task, thread);
    }
    if (calling) {
      const auto end = ThreadLimit::Clock::now();
      work = end - begin;
      last = end - latest;
    }
  });
  ThreadLimit::report(ThreadLimit::Clock::now() - start - work, last);
}

// How many threads are worth their start, and the wait for them, to read `bytes` of memory once.
inline int threads_to_read(int64_t bytes) {
  constexpr int64_t BYTES = 64 << 10;
  if (bytes < 2 * BYTES || ThreadLimit::noticed()) return 1;
  return static_cast<int>(std::min<int64_t>(at::get_num_threads(), bytes / BYTES));
}

}  // namespace llmint8
