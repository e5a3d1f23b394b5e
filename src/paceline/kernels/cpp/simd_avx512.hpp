// Sixteen lanes on AVX-512 with VNNI.
#pragma once
#include <immintrin.h>
#include <cstdint>

namespace {
#ifdef PACELINE_AMX
constexpr const char* kIsaName = "amx";
constexpr int kRowBlock = 16;        // rows of activations multiplied at once
#else
constexpr const char* kIsaName = "avx512-vnni";
constexpr int kRowBlock = 12;
#endif
constexpr int kKeyBlock = 12;        // queries scored at once
constexpr int kQueryBlock = 6;       // queries whose weighted values are summed at once

struct F32 { __m512 v; };
struct I32 { __m512i v; };
struct U8 { __m512i v; };            // 16 lanes of 4 bytes

inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline F32 splat(float a) { return {_mm512_set1_ps(a)}; }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline F32 load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline F32 load_bfloat(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline F32 load_int8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
inline void store_half(uint16_t* p, F32 a) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F32 swap_pairs(F32 a) { return {_mm512_permute_ps(a.v, 0xB1)}; }
inline F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32 round_to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline I32 splat_int(int32_t a) { return {_mm512_set1_epi32(a)}; }
inline I32 add_int(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
// a * 2^n for n in [-126, 127].
inline F32 scale_by_power(F32 a, I32 n) { return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(n.v, 23)))}; }
inline void store_bytes(int8_t* p, I32 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
inline float sum_lanes(F32 a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float max_lanes(F32 a) { return _mm512_reduce_max_ps(a.v); }
inline int32_t sum_lanes(I32 a) { return _mm512_reduce_add_epi32(a.v); }
inline uint32_t mask_greater_equal(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

inline U8 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline U8 low_halves(U8 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline U8 high_halves(U8 a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
// low | (planes >> right & mask); a negative `right` shifts to the left. The mask takes no bits from neighbouring bytes.
inline U8 merge_bits(U8 low, U8 planes, int right, int mask) {
    const __m512i shifted = right > 0 ? _mm512_srli_epi16(planes.v, right) : _mm512_slli_epi16(planes.v, -right);
    return {_mm512_ternarylogic_epi32(shifted, _mm512_set1_epi8((char)mask), low.v, 0xEA)};
}
// acc + the dot product of each lane's four unsigned numbers with the same four activations. Written out, because GCC
// would load the activations into a register first: twice the instructions.
inline I32 dot(I32 acc, U8 w, const int8_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(*(const int32_t*)x));
    return acc;
}
// Numbers stored with 128 added: start from minus 128 times the group's sum.
inline I32 start_signed(int32_t sum) { return {_mm512_set1_epi32(-128 * sum)}; }
inline I32 dot_signed(I32 acc, U8 w, const int8_t* x) { return dot(acc, w, x); }
[[gnu::always_inline]] inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
}  // namespace
