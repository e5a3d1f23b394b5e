// Which of the compiled instruction sets this CPU can run.
#include <algorithm>

#include "model.hpp"

namespace paceline {

const Kernels& kernels_portable();
#if defined(PACELINE_X86)
const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
#endif

namespace {

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(PACELINE_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        found.push_back(&kernels_avx512());
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) found.push_back(&kernels_avx2());
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
