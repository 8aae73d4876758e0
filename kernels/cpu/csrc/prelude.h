// What kernels.inl and the instruction sets need, outside any namespace.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Sums stay in registers only where the loops over them are unrolled before the compiler takes arrays apart.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
