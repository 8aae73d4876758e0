// Numbers that Python needs, too: `kernels/cpu/limits.py` reads them from here. One a line, written as a plain number.
#pragma once

#include <cstdint>

namespace llmint8 {

// Up to this many rows the weight's bytes, not the arithmetic, set the time, so the input is left unquantized.
constexpr int64_t DECODE_ROWS = 8;
// Rows that are quantized at a time: bounds the workspace.
constexpr int64_t PREFILL_ROWS = 2048;
// The largest K whose sums of products stay in int32: a code of 0 to 255 times a weight of -127 to 127.
constexpr int64_t MAX_K = 65536;
// Rows of codes are padded to a multiple of this many bytes, so that a kernel may read whole vectors.
constexpr int64_t ALIGNMENT = 64;
// In decode an element of x is so many digits of base 256, or fewer if 16 bits are enough for every row.
constexpr int DIGITS = 3;
// More outlier columns than this are fixed point, as in decode: two or three int8 products are faster than one in fp32.
constexpr int64_t FEW_OUTLIERS = 32;
// Up to this many rows a float weight is read at the speed of memory.
constexpr int MAX_FLOAT_ROWS = 8;
// Up to this many queries attention reads keys and values where they lie; for more it packs them.
constexpr int64_t FEW_QUERIES = 4;
// Keys that attention packs together, at most.
constexpr int64_t KEY_PANEL = 64;

}  // namespace llmint8
