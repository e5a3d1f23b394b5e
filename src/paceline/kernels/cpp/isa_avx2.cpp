#include "simd_avx2.hpp"

#include "kernels.inl"

namespace paceline {
const Kernels& kernels_avx2() {
    static const Kernels kernels{kIsaName, run, draw, matmul, read_memory};
    return kernels;
}
}  // namespace paceline
