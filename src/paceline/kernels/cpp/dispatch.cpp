// Which of the compiled instruction sets this CPU can run.
#if defined(PACELINE_X86)
#include <cpuid.h>
#endif
#if defined(PACELINE_AMX_BUILT) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(PACELINE_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "model.hpp"

namespace paceline {

const Kernels& kernels_portable();
#if defined(PACELINE_AMX_BUILT)
const Kernels& kernels_amx();
#endif
#if defined(PACELINE_X86)
const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
#endif
#if defined(PACELINE_AVX_VNNI_BUILT)
const Kernels& kernels_avx2_vnni();
#endif
#if defined(PACELINE_NEON)
const Kernels& kernels_neon();
#endif

namespace {

#if defined(PACELINE_AMX_BUILT)
// AMX with 8-bit integers: the CPU has it, and the system lets this process use its registers.
bool may_use_amx() {
    unsigned a, b, c, d;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) return false;
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;      // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

#if defined(PACELINE_AVX_VNNI_BUILT)
// Asked for itself, for compilers that build for it need not know its name in __builtin_cpu_supports.
bool has_avx_vnni() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
#endif

#if defined(PACELINE_NEON)
bool has_dot_products() {
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1ul << 20;       // HWCAP_ASIMDDP
    return getauxval(AT_HWCAP) & kDotProducts;
#else
    return true;                                            // every Apple processor that runs this
#endif
}
#endif

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(PACELINE_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
#if defined(PACELINE_AMX_BUILT)
        static const bool amx = may_use_amx();
        if (amx) found.push_back(&kernels_amx());
#endif
        found.push_back(&kernels_avx512());
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
#if defined(PACELINE_AVX_VNNI_BUILT)
        static const bool avx_vnni = has_avx_vnni();         // asking takes long inside a virtual machine
        if (avx_vnni) found.push_back(&kernels_avx2_vnni());
#endif
        found.push_back(&kernels_avx2());
    }
#endif
#if defined(PACELINE_NEON)
    if (has_dot_products()) found.push_back(&kernels_neon());
#endif
    found.push_back(&kernels_portable());
    return found;
}

}  // namespace

std::vector<std::string> available_kernels() {
    std::vector<std::string> names;
    for (const Kernels* kernels : usable()) names.push_back(kernels->name);
    return names;
}

const Kernels& choose_kernels(const std::string& wanted) {
    const auto all = usable();
    if (wanted.empty()) return *all.front();
    std::string names;
    for (const Kernels* kernels : all) {
        if (kernels->name == wanted) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("instruction set '" + wanted + "' is not available here; available: " + names);
}

}  // namespace paceline
