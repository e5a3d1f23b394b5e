#include "simd_portable.hpp"

#include "kernels.inl"

namespace paceline {
const Kernels& kernels_portable() {
    static const Kernels kernels{kIsaName, run, draw, matmul, read_memory};
    return kernels;
}
}  // namespace paceline
