// The counter-based noise of paceline.noise.
#pragma once
#include <cmath>
#include <cstdint>

namespace paceline {

inline uint64_t noise_bits(uint64_t key, int64_t id) {
    uint64_t z = key + (uint64_t)(id + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

inline double gumbel(uint64_t bits) {
    const double u = ((double)(bits >> 12) + 0.5) * 2.220446049250313e-16;      // 2^-52
    return -std::log(-std::log(u));
}

}  // namespace paceline
