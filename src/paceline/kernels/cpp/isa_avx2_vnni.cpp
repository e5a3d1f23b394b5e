#define PACELINE_AVX_VNNI
#include "simd_avx2.hpp"

#include "kernels.inl"

namespace paceline {
const Kernels& kernels_avx2_vnni() {
    static const Kernels kernels{kIsaName, run, draw, matmul, read_memory};
    return kernels;
}
}  // namespace paceline
