// Sixteen lanes as two registers of AVX2, with FMA and F16C, and with AVX-VNNI where it is built for that.
#pragma once
#include <immintrin.h>
#include <cstdint>

namespace {
#ifdef PACELINE_AVX_VNNI
constexpr const char* kIsaName = "avx2-vnni";
#else
constexpr const char* kIsaName = "avx2";
#endif
constexpr int kRowBlock = 3;
constexpr int kKeyBlock = 3;
constexpr int kQueryBlock = 1;

struct F32 { __m256 a, b; };
struct I32 { __m256i a, b; };
struct U8 { __m256i a, b; };

inline F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline F32 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32 operator+(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F32 operator-(F32 x, F32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F32 operator*(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F32 operator/(F32 x, F32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F32 fma(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F32 max(F32 x, F32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32 min(F32 x, F32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F32 abs(F32 x) {
    const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
inline F32 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline __m256 load_bfloat_half(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline F32 load_bfloat(const uint16_t* p) { return {load_bfloat_half(p), load_bfloat_half(p + 8)}; }
inline F32 load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline void store_half(uint16_t* p, F32 x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline F32 swap_pairs(F32 x) { return {_mm256_permute_ps(x.a, 0xB1), _mm256_permute_ps(x.b, 0xB1)}; }
inline F32 to_float(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I32 round_to_int(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline I32 splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32 add_int(I32 x, I32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline __m256 scale_by_power(__m256 x, __m256i n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
}
inline F32 scale_by_power(F32 x, I32 n) { return {scale_by_power(x.a, n.a), scale_by_power(x.b, n.b)}; }
inline void store_bytes(int8_t* p, I32 x) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline float sum_lanes(F32 x) {
    __m256 b = _mm256_add_ps(x.a, x.b);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float max_lanes(F32 x) {
    __m256 b = _mm256_max_ps(x.a, x.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
inline int32_t sum_lanes(I32 x) {
    __m256i b = _mm256_add_epi32(x.a, x.b);
    __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xB1)));
}
inline uint32_t mask_greater_equal(F32 x, F32 y) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)) << 8;
}

inline U8 load_bytes(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline U8 low_halves(U8 x) {
    const __m256i m = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
inline U8 high_halves(U8 x) {
    const __m256i m = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), m), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), m)};
}
// low | (planes >> right & mask); a negative `right` shifts to the left. The mask takes no bits from neighbouring bytes.
inline __m256i merge_bits(__m256i low, __m256i planes, int right, int mask) {
    const __m256i shifted = right > 0 ? _mm256_srli_epi16(planes, right) : _mm256_slli_epi16(planes, -right);
    return _mm256_or_si256(low, _mm256_and_si256(shifted, _mm256_set1_epi8((char)mask)));
}
inline U8 merge_bits(U8 low, U8 planes, int right, int mask) {
    return {merge_bits(low.a, planes.a, right, mask), merge_bits(low.b, planes.b, right, mask)};
}
#ifdef PACELINE_AVX_VNNI
inline __m256i dot(__m256i acc, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
// Numbers stored with 128 added: start from minus 128 times the group's sum.
inline I32 start_signed(int32_t sum) { return splat_int(-128 * sum); }
inline __m256i dot_signed(__m256i acc, __m256i stored, __m256i x) { return dot(acc, stored, x); }
#else
// Pairs of products are added in 16 bits: exact here, because 2*63*127 and 2*128*127 stay below 2^15.
inline __m256i dot(__m256i acc, __m256i w, __m256i x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
inline I32 start_signed(int32_t) { return splat_int(0); }
inline __m256i dot_signed(__m256i acc, __m256i stored, __m256i x) {
    const __m256i w = _mm256_xor_si256(stored, _mm256_set1_epi8((char)0x80));
    return dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
#endif
inline I32 dot(I32 acc, U8 w, const int8_t* p) {
    const __m256i x = _mm256_set1_epi32(*(const int32_t*)p);
    return {dot(acc.a, w.a, x), dot(acc.b, w.b, x)};
}
inline I32 dot_signed(I32 acc, U8 w, const int8_t* p) {
    const __m256i x = _mm256_set1_epi32(*(const int32_t*)p);
    return {dot_signed(acc.a, w.a, x), dot_signed(acc.b, w.b, x)};
}
[[gnu::always_inline]] inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
}  // namespace
