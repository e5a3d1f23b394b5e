// Sixteen lanes as plain arrays: any CPU. Multiplies and adds are rounded separately, so the last bits differ from
// the instruction sets that have fused ones.
#pragma once
#include <cstdint>
#include <cstring>

namespace {
constexpr const char* kIsaName = "portable";
constexpr int kRowBlock = 4;
constexpr int kKeyBlock = 4;
constexpr int kQueryBlock = 1;

#define PACELINE_EACH for (int i = 0; i < 16; i++)
struct F32 { float v[16]; };
struct I32 { int32_t v[16]; };
struct U8 { uint8_t v[64]; };

inline F32 load(const float* p) { F32 r; PACELINE_EACH r.v[i] = p[i]; return r; }
inline void store(float* p, F32 a) { PACELINE_EACH p[i] = a.v[i]; }
inline F32 splat(float a) { F32 r; PACELINE_EACH r.v[i] = a; return r; }
inline F32 operator+(F32 a, F32 b) { PACELINE_EACH a.v[i] += b.v[i]; return a; }
inline F32 operator-(F32 a, F32 b) { PACELINE_EACH a.v[i] -= b.v[i]; return a; }
inline F32 operator*(F32 a, F32 b) { PACELINE_EACH a.v[i] *= b.v[i]; return a; }
inline F32 operator/(F32 a, F32 b) { PACELINE_EACH a.v[i] /= b.v[i]; return a; }
inline F32 fma(F32 a, F32 b, F32 c) { PACELINE_EACH c.v[i] += a.v[i] * b.v[i]; return c; }
inline F32 max(F32 a, F32 b) { PACELINE_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F32 min(F32 a, F32 b) { PACELINE_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F32 abs(F32 a) { PACELINE_EACH a.v[i] = __builtin_fabsf(a.v[i]); return a; }

inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {                                        // zero or subnormal: mantissa * 2^-24
        float f = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    float f; memcpy(&f, &bits, 4); return f;
}
inline uint16_t float_to_half(float f) {          // rounds to nearest, ties to even
    uint32_t bits; memcpy(&bits, &f, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x47800000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {                 // subnormal: adding 0.5 aligns the mantissa at 2^-24
        float m; memcpy(&m, &magnitude, 4); m += 0.5f;
        uint32_t b; memcpy(&b, &m, 4);
        return (uint16_t)(sign | (b - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}
inline F32 load_half(const uint16_t* p) { F32 r; PACELINE_EACH r.v[i] = half_to_float(p[i]); return r; }
inline F32 load_bfloat(const uint16_t* p) {
    F32 r;
    PACELINE_EACH { const uint32_t bits = (uint32_t)p[i] << 16; memcpy(&r.v[i], &bits, 4); }
    return r;
}
inline F32 load_int8(const int8_t* p) { F32 r; PACELINE_EACH r.v[i] = p[i]; return r; }
inline void store_half(uint16_t* p, F32 a) { PACELINE_EACH p[i] = float_to_half(a.v[i]); }
inline F32 swap_pairs(F32 a) { F32 r; PACELINE_EACH r.v[i] = a.v[i ^ 1]; return r; }
inline F32 to_float(I32 a) { F32 r; PACELINE_EACH r.v[i] = (float)a.v[i]; return r; }
inline I32 round_to_int(F32 a) { I32 r; PACELINE_EACH r.v[i] = (int32_t)__builtin_rintf(a.v[i]); return r; }
inline I32 splat_int(int32_t a) { I32 r; PACELINE_EACH r.v[i] = a; return r; }
inline I32 add_int(I32 a, I32 b) { PACELINE_EACH a.v[i] += b.v[i]; return a; }
inline F32 scale_by_power(F32 a, I32 n) {
    PACELINE_EACH { uint32_t b; memcpy(&b, &a.v[i], 4); b += (uint32_t)n.v[i] << 23; memcpy(&a.v[i], &b, 4); }
    return a;
}
inline void store_bytes(int8_t* p, I32 a) { PACELINE_EACH p[i] = (int8_t)a.v[i]; }
inline float sum_lanes(F32 a) {
    for (int width = 8; width; width /= 2) for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
    return a.v[0];
}
inline float max_lanes(F32 a) { float m = a.v[0]; PACELINE_EACH m = a.v[i] > m ? a.v[i] : m; return m; }
inline int32_t sum_lanes(I32 a) { int32_t s = 0; PACELINE_EACH s += a.v[i]; return s; }
inline uint32_t mask_greater_equal(F32 a, F32 b) { uint32_t m = 0; PACELINE_EACH m |= (uint32_t)(a.v[i] >= b.v[i]) << i; return m; }

inline U8 load_bytes(const uint8_t* p) { U8 r; memcpy(r.v, p, 64); return r; }
inline U8 low_halves(U8 a) { for (int i = 0; i < 64; i++) a.v[i] &= 15; return a; }
inline U8 high_halves(U8 a) { for (int i = 0; i < 64; i++) a.v[i] >>= 4; return a; }
// low | (planes >> right & mask); a negative `right` shifts to the left.
inline U8 merge_bits(U8 low, const U8& planes, int right, int mask) {
    for (int i = 0; i < 64; i++) low.v[i] |= (right > 0 ? planes.v[i] >> right : planes.v[i] << -right) & mask;
    return low;
}
inline I32 dot(I32 acc, const U8& w, const int8_t* x) {
    PACELINE_EACH acc.v[i] += w.v[4 * i] * x[0] + w.v[4 * i + 1] * x[1] + w.v[4 * i + 2] * x[2] + w.v[4 * i + 3] * x[3];
    return acc;
}
inline I32 start_signed(int32_t sum) { return splat_int(-128 * sum); }
inline I32 dot_signed(I32 acc, const U8& w, const int8_t* x) { return dot(acc, w, x); }
[[gnu::always_inline]] inline void prefetch(const void* p) { __builtin_prefetch(p); }
#undef PACELINE_EACH
}  // namespace
