// Sixteen lanes as four registers of NEON, with the dot products of ARMv8.2.
#pragma once
#include <arm_neon.h>
#include <cstdint>

namespace {
constexpr const char* kIsaName = "neon-dotprod";
constexpr int kRowBlock = 3;
constexpr int kKeyBlock = 3;
constexpr int kQueryBlock = 1;

struct F32 { float32x4_t v[4]; };
struct I32 { int32x4_t v[4]; };
struct U8 { uint8x16_t v[4]; };

#define PACELINE_EACH _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
inline F32 load(const float* p) { F32 r; PACELINE_EACH r.v[i] = vld1q_f32(p + 4 * i); return r; }
inline void store(float* p, F32 a) { PACELINE_EACH vst1q_f32(p + 4 * i, a.v[i]); }
inline F32 splat(float a) { F32 r; PACELINE_EACH r.v[i] = vdupq_n_f32(a); return r; }
inline F32 operator+(F32 a, F32 b) { PACELINE_EACH a.v[i] = vaddq_f32(a.v[i], b.v[i]); return a; }
inline F32 operator-(F32 a, F32 b) { PACELINE_EACH a.v[i] = vsubq_f32(a.v[i], b.v[i]); return a; }
inline F32 operator*(F32 a, F32 b) { PACELINE_EACH a.v[i] = vmulq_f32(a.v[i], b.v[i]); return a; }
inline F32 operator/(F32 a, F32 b) { PACELINE_EACH a.v[i] = vdivq_f32(a.v[i], b.v[i]); return a; }
inline F32 fma(F32 a, F32 b, F32 c) { PACELINE_EACH c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return c; }
inline F32 max(F32 a, F32 b) { PACELINE_EACH a.v[i] = vmaxq_f32(a.v[i], b.v[i]); return a; }
inline F32 min(F32 a, F32 b) { PACELINE_EACH a.v[i] = vminq_f32(a.v[i], b.v[i]); return a; }
inline F32 abs(F32 a) { PACELINE_EACH a.v[i] = vabsq_f32(a.v[i]); return a; }
inline F32 load_half(const uint16_t* p) { F32 r; PACELINE_EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); return r; }
inline F32 load_bfloat(const uint16_t* p) { F32 r; PACELINE_EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); return r; }
inline F32 load_int8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
inline void store_half(uint16_t* p, F32 a) { PACELINE_EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i]))); }
inline F32 swap_pairs(F32 a) { PACELINE_EACH a.v[i] = vrev64q_f32(a.v[i]); return a; }
inline F32 to_float(I32 a) { F32 r; PACELINE_EACH r.v[i] = vcvtq_f32_s32(a.v[i]); return r; }
inline I32 round_to_int(F32 a) { I32 r; PACELINE_EACH r.v[i] = vcvtnq_s32_f32(a.v[i]); return r; }
inline I32 splat_int(int32_t a) { I32 r; PACELINE_EACH r.v[i] = vdupq_n_s32(a); return r; }
inline I32 add_int(I32 a, I32 b) { PACELINE_EACH a.v[i] = vaddq_s32(a.v[i], b.v[i]); return a; }
inline F32 scale_by_power(F32 a, I32 n) {
    PACELINE_EACH a.v[i] = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.v[i]), vshlq_n_s32(n.v[i], 23)));
    return a;
}
inline void store_bytes(int8_t* p, I32 a) {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1])), high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
// In the order of the other instruction sets: halves onto each other.
inline float sum_lanes(F32 a) {
    const float32x4_t b = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
    return vget_lane_f32(c, 0) + vget_lane_f32(c, 1);
}
inline float max_lanes(F32 a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
inline int32_t sum_lanes(I32 a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
inline uint32_t mask_greater_equal(F32 a, F32 b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    uint32_t mask = 0;
    PACELINE_EACH mask |= vaddvq_u32(vandq_u32(vcgeq_f32(a.v[i], b.v[i]), bits)) << 4 * i;
    return mask;
}

inline U8 load_bytes(const uint8_t* p) { U8 r; PACELINE_EACH r.v[i] = vld1q_u8(p + 16 * i); return r; }
inline U8 low_halves(U8 a) { PACELINE_EACH a.v[i] = vandq_u8(a.v[i], vdupq_n_u8(15)); return a; }
inline U8 high_halves(U8 a) { PACELINE_EACH a.v[i] = vshrq_n_u8(a.v[i], 4); return a; }
// low | (planes >> right & mask); a negative `right` shifts to the left.
inline U8 merge_bits(U8 low, U8 planes, int right, int mask) {
    const int8x16_t left = vdupq_n_s8((int8_t)-right);
    PACELINE_EACH low.v[i] = vorrq_u8(low.v[i], vandq_u8(vshlq_u8(planes.v[i], left), vdupq_n_u8((uint8_t)mask)));
    return low;
}
// Numbers of up to six bits have the same value signed.
inline I32 dot(I32 acc, U8 w, const int8_t* p) {
    const int8x16_t x = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)p));
    PACELINE_EACH acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), x);
    return acc;
}
inline I32 start_signed(int32_t) { return splat_int(0); }
inline I32 dot_signed(I32 acc, U8 stored, const int8_t* p) {
    PACELINE_EACH stored.v[i] = veorq_u8(stored.v[i], vdupq_n_u8(0x80));
    return dot(acc, stored, p);
}
[[gnu::always_inline]] inline void prefetch(const void* p) { __builtin_prefetch(p); }
#undef PACELINE_EACH
}  // namespace
