#include "simd_neon.hpp"

#include "kernels.inl"

namespace paceline {
const Kernels& kernels_neon() {
    static const Kernels kernels{kIsaName, run, draw, matmul, read_memory};
    return kernels;
}
}  // namespace paceline
