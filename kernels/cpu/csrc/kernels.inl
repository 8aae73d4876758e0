// The kernels, in terms of `Isa`. Included once for each instruction set, inside its namespace.
//
// Plain loops over arrays are written so that a compiler turns them into vector instructions; only the inner loops of
// the products use `Isa`. Inline functions of the standard library are avoided: the linker keeps one copy of each for
// the whole library, which must not be one with instructions that the processor may lack.

constexpr int PANEL = Isa::LANES * Isa::TILE_VECTORS;
static_assert(PANEL <= KEY_PANEL, "Python estimates the workspace of attention by KEY_PANEL");
constexpr int64_t BLOCK_DEPTH = 640;  // at most, of a packed panel, which stays in the first cache with what it meets

using Code = Isa::Code;
using Packed = Isa::Packed;

// Memory of a thread, kept for its next task.
template <typename T>
T* scratch(int slot, int64_t count) {
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[6];
  Buffer& buffer = buffers[slot];
  const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    buffer.data = std::aligned_alloc(4096, bytes);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = bytes;
  }
  return static_cast<T*>(buffer.data);
}

#include "rows.inl"
#include "elementwise.inl"
#include "products.inl"
#include "linear.inl"
#include "float_linear.inl"
#include "attention.inl"

extern const Kernels KERNELS;
const Kernels KERNELS = {
    Isa::NAME,
    sizeof(Code),
    PANEL,
    load_row,
    store_row,
    score_row,
    quantize_row,
    digitize_row,
    decode_task,
    prefill_task,
    quantize_weight_row,
    float_linear,
    attention_workspace,
    attention_pack,
    attention_prefill,
    attention_part,
    attention_decode,
    attention_join,
    rms_norm_row,
    rotate_heads,
};
