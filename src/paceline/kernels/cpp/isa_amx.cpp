#define PACELINE_AMX
#include "simd_avx512.hpp"

#include "kernels.inl"

namespace paceline {
const Kernels& kernels_amx() {
    static const Kernels kernels{kIsaName, run, draw, matmul, read_memory};
    return kernels;
}
}  // namespace paceline
