#include "simd_avx512.hpp"

#include "kernels.inl"

namespace paceline {
const Kernels& kernels_avx512() {
    static const Kernels kernels{kIsaName, run, draw, matmul, read_memory};
    return kernels;
}
}  // namespace paceline
