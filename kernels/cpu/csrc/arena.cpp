#include "arena.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <memory>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace llmint8 {

#if defined(__linux__)

namespace {

constexpr int64_t HUGE_PAGE = 2 << 20, PAGE = 4 << 10, LINE = 64, SMALL = 64 << 10;

// A range of addresses that weights are cut from; memory is taken as it is written to.
class Arena {
 public:
  static constexpr int64_t BYTES = int64_t(1) << 30;

  explicit Arena(int64_t bytes) : bytes_(bytes + HUGE_PAGE) {
    base_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) return;
    const int64_t address = reinterpret_cast<int64_t>(base_);
    next_ = (address + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    ::madvise(reinterpret_cast<void*>(next_), bytes, MADV_HUGEPAGE);
  }
  ~Arena() {
    if (base_ != MAP_FAILED) ::munmap(base_, bytes_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Null if there is no room.
  void* take(int64_t bytes) {
    if (base_ == MAP_FAILED || next_ + bytes > reinterpret_cast<int64_t>(base_) + bytes_) return nullptr;
    void* result = reinterpret_cast<void*>(next_);
    next_ += (bytes + LINE - 1) / LINE * LINE;
    return result;
  }

  // Gives back the pages that nothing else is on.
  static void release(void* data, int64_t bytes) {
    const int64_t address = reinterpret_cast<int64_t>(data);
    const int64_t first = (address + PAGE - 1) / PAGE * PAGE, last = (address + bytes) / PAGE * PAGE;
    if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }

 private:
  void* base_;
  int64_t bytes_, next_ = 0;
};

std::mutex mutex;
std::shared_ptr<Arena> current;  // lives on with the last of its weights

}  // namespace

at::Tensor empty_weight(int64_t n, int64_t k) {
  const int64_t bytes = n * k;
  if (bytes < SMALL) return at::empty({n, k}, at::kChar);  // its pages could not be given back alone
  std::shared_ptr<Arena> arena;
  void* data = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (current) data = current->take(bytes);
    if (data == nullptr) {
      current = std::make_shared<Arena>(std::max(Arena::BYTES, bytes));
      data = current->take(bytes);
    }
    arena = current;
  }
  if (data == nullptr) return at::empty({n, k}, at::kChar);
  return at::from_blob(
      data, {n, k}, [arena, bytes](void* pointer) { Arena::release(pointer, bytes); }, at::kChar);
}

#else

at::Tensor empty_weight(int64_t n, int64_t k) { return at::empty({n, k}, at::kChar); }

#endif

}  // namespace llmint8
