// Matrix products. Weights are read once for all rows of a tile; every row's sums are its own.

#include "formats.inl"

// Rows multiplied at once, so that all tiles are about equally full.
inline int tile_of(int rows) { return ceil_div(rows, ceil_div(rows, kRowBlock)); }

inline Quantised tiled(Quantised x, int rows) {
    x.tile = rows > 0 ? tile_of(rows) : 1;
    return x;
}

template <int T>
inline void store_rows(const F32 (&total)[T], int rows, float* out, size_t out_stride) {
    PACELINE_UNROLL
    for (int m = 0; m < T; m++)
        if (m < rows) store(out + m * out_stride, total[m]);
}

// One block of 16 outputs for T rows of a tile of `stride`: integer products inside a group of 32, or of 16 where scales
// are that dense, groups added in order.
template <WeightType type, int T>
inline void multiply_integers(const Matrix& w, const uint8_t* block, const Quantised& x, size_t at, int stride, int rows, float* out, size_t out_stride) {
    constexpr Format format = format_of(type);
    constexpr int kLoads = format.bits == 8 ? 8 : 4, kParts = format.part == 16 ? 2 : 1;
    const int8_t* numbers = x.numbers + at * kGroup;
    const float* scales = x.scales + at;
    const int32_t* sums = x.sums + at;
    const int32_t* half_sums = kParts == 1 ? nullptr : x.half_sums + at;
    const float* scaled_sums = x.scaled_sums + at;
    const uint8_t* stored = block + w.numbers_at;
    F32 total[T];
    PACELINE_UNROLL
    for (int m = 0; m < T; m++) total[m] = splat(0.0f);
    for (int g = 0; g < x.groups; g++) {
        const auto add_part = [&](int part) __attribute__((always_inline)) {
            I32 sum[T];
            PACELINE_UNROLL
            for (int m = 0; m < T; m++) {
                const int32_t of_numbers = kParts == 1 ? sums[m] : part == 0 ? half_sums[m] : sums[m] - half_sums[m];
                if constexpr (format.bits == 8) sum[m] = start_signed(of_numbers);
                else sum[m] = splat_int(-format.offset * of_numbers);
            }
            const auto add = [&](int i) __attribute__((always_inline)) {
                if constexpr (format.bits == 8) {
                    const U8 bytes = load_bytes(stored + i * 64);
                    prefetch(stored + i * 64 + kPrefetchAhead);
                    PACELINE_UNROLL
                    for (int m = 0; m < T; m++) sum[m] = dot_signed(sum[m], bytes, numbers + m * kGroup + i * 4);
                } else {
                    U8 even, odd;
                    unpack<format.bits>(stored, i, even, odd);
                    prefetch(stored + i * 64 + kPrefetchAhead);
                    PACELINE_UNROLL
                    for (int m = 0; m < T; m++) sum[m] = dot(sum[m], even, numbers + m * kGroup + i * 8);
                    PACELINE_UNROLL
                    for (int m = 0; m < T; m++) sum[m] = dot(sum[m], odd, numbers + m * kGroup + i * 8 + 4);
                }
            };
            if constexpr (format.bits == 4 || format.bits == 8) {
                for (int i = 0; i < kLoads; i++) add(i);
            } else if constexpr (kParts == 1) {
                add(0), add(1), add(2), add(3);         // shifts by constants
            } else {
                if (part == 0) add(0), add(1);
                else add(2), add(3);
            }
            const F32 scale = scales_of<type>(w, block, g * kParts + part);
            PACELINE_UNROLL
            for (int m = 0; m < T; m++) total[m] = fma(to_float(sum[m]), scale * splat(scales[m]), total[m]);
        };
        add_part(0);
        if constexpr (kParts > 1) add_part(1);
        if constexpr (format.minima) {
            const F32 minimum = minima_of<type>(w, block, g);
            PACELINE_UNROLL
            for (int m = 0; m < T; m++) total[m] = fma(minimum, splat(scaled_sums[m]), total[m]);
        }
        numbers += stride * kGroup, scales += stride, sums += stride, scaled_sums += stride;
        if constexpr (kParts > 1) half_sums += stride;
        stored += format.bits * 64;
    }
    store_rows(total, rows, out, out_stride);
}

// The same for weights that are floats: activations as they are, even and odd columns added in order, then both sums. One
// sum alone would wait for itself at every column.
template <WeightType type, int T>
inline void multiply_floats(const Matrix& w, const uint8_t* block, const Quantised& x, size_t at, int stride, int rows, float* out, size_t out_stride) {
    constexpr int kBytes = format_of(type).bits / 8 * kLanes;
    const float* values = x.values + at * kGroup;
    const uint8_t* stored = block + w.numbers_at;
    F32 total[T], odd[T];
    PACELINE_UNROLL
    for (int m = 0; m < T; m++) total[m] = odd[m] = splat(0.0f);
    for (int g = 0; g < x.groups; g++) {
        for (int c = 0; c < kGroup; c += 2) {
            for (int i = 0; i < 2 * kBytes; i += 64) prefetch(stored + c * kBytes + i + kPrefetchAhead);
            const F32 first = load_column<type>(stored + c * kBytes), second = load_column<type>(stored + (c + 1) * kBytes);
            PACELINE_UNROLL
            for (int m = 0; m < T; m++) total[m] = fma(first, splat(values[m * kGroup + c]), total[m]);
            PACELINE_UNROLL
            for (int m = 0; m < T; m++) odd[m] = fma(second, splat(values[m * kGroup + c + 1]), odd[m]);
        }
        values += stride * kGroup, stored += kGroup * kBytes;
    }
    PACELINE_UNROLL
    for (int m = 0; m < T; m++) total[m] = total[m] + odd[m];
    store_rows(total, rows, out, out_stride);
}

template <WeightType type, int T>
inline void multiply_rows(const Matrix& w, const uint8_t* block, const Quantised& x, size_t at, int stride, int rows, float* out, size_t out_stride) {
    if constexpr (holds_floats(type)) multiply_floats<type, T>(w, block, x, at, stride, rows, out, out_stride);
    else multiply_integers<type, T>(w, block, x, at, stride, rows, out, out_stride);
}

template <WeightType type, int T>
inline void multiply_tile(const Matrix& w, const uint8_t* block, const Quantised& x, int tile, int rows, float* out, size_t out_stride) {
    const size_t at = (size_t)tile * x.groups * T;
    if constexpr (T > 12) {                             // two sums per row: more do not fit into 32 registers
        constexpr int kFirst = T / 2;
        multiply_rows<type, kFirst>(w, block, x, at, T, rows, out, out_stride);
        multiply_rows<type, T - kFirst>(w, block, x, at + kFirst, T, rows - kFirst, out + kFirst * out_stride, out_stride);
    } else {
        multiply_rows<type, T>(w, block, x, at, T, rows, out, out_stride);
    }
}

#ifdef PACELINE_AMX
#include "amx.inl"
#else
constexpr int kLeastTileRows = kRowBlock + 1;       // never
constexpr bool runs_on_tiles(WeightType) { return false; }
template <WeightType, int>
inline void multiply_blocks_amx(const Matrix&, int, int, const Quantised&, int, int, float*, size_t) {}
inline void begin_tiles(int) {}
inline void end_tiles() {}
#endif

template <WeightType type, int T = kRowBlock>
inline void multiply_tiles(const Matrix& w, int first, int last, const Quantised& x, int rows, float* out, size_t out_stride) {
    if (x.tile == T) {
        if constexpr (T >= kLeastTileRows && runs_on_tiles(type)) {
            for (int tile = 0; tile * T < rows; tile++)
                multiply_blocks_amx<type, T>(w, first, last, x, tile, rows - tile * T, out + (size_t)tile * T * out_stride, out_stride);
        } else {
            for (int block = first; block < last; block++)
                for (int tile = 0; tile * T < rows; tile++)
                    multiply_tile<type, T>(w, w.data + (size_t)block * w.block_bytes, x, tile, rows - tile * T,
                                           out + (size_t)tile * T * out_stride + (block - first) * kLanes, out_stride);
        }
    } else if constexpr (T > 1) {
        multiply_tiles<type, T - 1>(w, first, last, x, rows, out, out_stride);
    }
}

// out[m * out_stride + i] = row m times output 16 * first + i, up to the end of block last - 1.
void multiply(const Matrix& w, int first, int last, const Quantised& x, int rows, float* out, size_t out_stride) {
    with_type(w.type, [&]<WeightType type>() { multiply_tiles<type>(w, first, last, x, rows, out, out_stride); });
}

void matmul(const Matrix& w, const float* x, int rows, Quantised room, float* out, size_t out_stride) {
    const Quantised q = tiled(room, rows);
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < q.groups; g++) {
            const float* at = x + (size_t)r * w.columns + g * kGroup;
            quantise_group(load(at), load(at + kLanes), q, r, g);
        }
    begin_tiles(q.tile);
    multiply(w, 0, ceil_div(w.rows, kLanes), q, rows, out, out_stride);
    end_tiles();
}
