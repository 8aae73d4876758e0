// Which kernels this processor can run.
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace llmint8 {

namespace portable {
extern const Kernels KERNELS;
}

#if defined(__x86_64__)

namespace avx512vnni {
extern const Kernels KERNELS;
}
namespace avxvnni {
extern const Kernels KERNELS;
}
namespace avx2 {
extern const Kernels KERNELS;
}

// Not among the names that __builtin_cpu_supports knows in every compiler.
static bool has_avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

static const Kernels* const* find() {
  static const Kernels* found[5] = {};
  int count = 0;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // all that do have F16C
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni")) {
    found[count++] = &avx512vnni::KERNELS;
  }
  if (has_avx2 && has_avxvnni()) found[count++] = &avxvnni::KERNELS;
  if (has_avx2) found[count++] = &avx2::KERNELS;
  found[count++] = &portable::KERNELS;
  return found;
}

#elif defined(__aarch64__)

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace neon_dotprod {
extern const Kernels KERNELS;
}

static const Kernels* const* find() {
  static const Kernels* found[3] = {};
  int count = 0;
#if defined(__linux__)
  const bool has_dotprod = getauxval(AT_HWCAP) & 1ul << 20;
#else
  const bool has_dotprod = true;  // every processor of Apple's
#endif
  if (has_dotprod) found[count++] = &neon_dotprod::KERNELS;
  found[count++] = &portable::KERNELS;
  return found;
}

#else

static const Kernels* const* find() {
  static const Kernels* found[2] = {&portable::KERNELS};
  return found;
}

#endif

const Kernels* const* available_kernels() {
  static const Kernels* const* const found = find();
  return found;
}

}  // namespace llmint8
