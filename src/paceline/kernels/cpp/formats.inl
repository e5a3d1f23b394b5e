// Weights as the kernels meet them: numbers out of their bits, scales, and single rows. See records.hpp for the layout.

// Bits 4 and above of quad q's numbers, put over the low four.
template <int bits>
inline U8 add_high_bits(U8 low, const uint8_t* group, int q) {
    constexpr int extra = bits - 4;
    return merge_bits(low, load_bytes(group + 256 + q * extra / 8 * 64), q * extra % 8 - 4, ((1 << extra) - 1) << 4);
}

// The numbers of the quads 2i and 2i + 1 of a group: 16 rows of 4 each.
template <int bits>
inline void unpack(const uint8_t* group, int i, U8& even, U8& odd) {
    const U8 bytes = load_bytes(group + i * 64);
    even = low_halves(bytes), odd = high_halves(bytes);
    if constexpr (bits > 4) even = add_high_bits<bits>(even, group, 2 * i), odd = add_high_bits<bits>(odd, group, 2 * i + 1);
}

// The scales of sixteen outputs. `part` counts groups of 32, or of 16 where parts are that small. Products of a half and
// an 8-bit part have no rounding.
template <WeightType type>
inline F32 scales_of(const Matrix& w, const uint8_t* block, int part) {
    constexpr Format format = format_of(type);
    const uint16_t* scales = (const uint16_t*)block;
    if constexpr (format.part == 0) return load_half(scales + part * kLanes);
    else return load_half(scales + part * format.part / format.span * kLanes) * load_int8((const int8_t*)block + w.parts_at + part * kLanes);
}

template <WeightType type>
inline F32 minima_of(const Matrix& w, const uint8_t* block, int part) {
    constexpr Format format = format_of(type);
    const uint16_t* minima = (const uint16_t*)(block + w.minima_at);
    if constexpr (format.part == 0) return load_half(minima + part * kLanes);
    else return load_half(minima + part * format.part / format.span * kLanes) * load_int8((const int8_t*)block + w.part_minima_at + part * kLanes);
}

// One column of a matrix of floats.
template <WeightType type>
inline F32 load_column(const uint8_t* at) {
    if constexpr (type == WeightType::F16) return load_half((const uint16_t*)at);
    else if constexpr (type == WeightType::BF16) return load_bfloat((const uint16_t*)at);
    else return load((const float*)at);
}

// A single row, as the embedding needs it.
template <WeightType type>
inline void read_row_of(const Matrix& w, int row, float* out) {
    constexpr Format format = format_of(type);
    const uint8_t* block = w.data + (size_t)(row / kLanes) * w.block_bytes;
    const uint8_t* numbers = block + w.numbers_at;
    const int lane = row % kLanes;
    if constexpr (holds_floats(type)) {
        float column[kLanes];
        for (int i = 0; i < w.columns; i++) {
            store(column, load_column<type>(numbers + (size_t)i * kLanes * format.bits / 8));
            out[i] = column[lane];
        }
    } else {
        constexpr int columns = format.part ? format.part : kGroup;      // that share a scale
        for (int i = 0; i < w.columns; i += columns) {
            float scale[kLanes], minimum[kLanes] = {};
            store(scale, scales_of<type>(w, block, i / columns));
            if constexpr (format.minima) store(minimum, minima_of<type>(w, block, i / columns));
            for (int c = i; c < i + columns; c++) {
                const uint8_t* group = numbers + (size_t)(c / kGroup) * format.bits * 64 + lane * 4 + c % 4;
                const int q = c % kGroup / 4;
                int number;
                if constexpr (format.bits == 8) {
                    number = group[q * 64];
                } else {
                    constexpr int extra = format.bits - 4;
                    number = group[q / 2 * 64] >> q % 2 * 4 & 15;
                    if constexpr (extra > 0) number |= (group[256 + q * extra / 8 * 64] >> q * extra % 8 & ((1 << extra) - 1)) << 4;
                }
                out[c] = scale[lane] * (float)(number - format.offset) + minimum[lane];
            }
        }
    }
}

// Calls work.operator()<type>() for the type of a matrix.
template <typename Work>
inline void with_type(WeightType type, Work work) {
    switch (type) {
        case WeightType::Q8_0: return work.template operator()<WeightType::Q8_0>();
        case WeightType::Q4_0: return work.template operator()<WeightType::Q4_0>();
        case WeightType::Q4_1: return work.template operator()<WeightType::Q4_1>();
        case WeightType::Q5_0: return work.template operator()<WeightType::Q5_0>();
        case WeightType::Q5_1: return work.template operator()<WeightType::Q5_1>();
        case WeightType::Q4_K: return work.template operator()<WeightType::Q4_K>();
        case WeightType::Q5_K: return work.template operator()<WeightType::Q5_K>();
        case WeightType::Q6_K: return work.template operator()<WeightType::Q6_K>();
        case WeightType::F16: return work.template operator()<WeightType::F16>();
        case WeightType::BF16: return work.template operator()<WeightType::BF16>();
        case WeightType::F32: return work.template operator()<WeightType::F32>();
        case WeightType::kCount: return;
    }
}

void read_row(const Matrix& w, int row, float* out) {
    with_type(w.type, [&]<WeightType type>() { read_row_of<type>(w, row, out); });
}
