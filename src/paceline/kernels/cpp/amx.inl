// Many rows at once on AMX: the tile unit multiplies the integers of a group, the vector units add up the float sums
// exactly as the AVX-512 kernel does. Integer sums have no rounding, so both give the same bits, and a pass may use
// one kernel for few rows and the other for many.

constexpr int kLeastTileRows = 12;   // below, the AVX-512 kernel is as fast; measured
constexpr int kRing = 8;             // groups under way
constexpr int kUnpackLead = 2;       // groups between unpacking weights and multiplying them
constexpr int kProductLead = 4;      // groups between multiplying and adding up

// GCC's tile instructions do not say what memory they read: stores to it must be kept, and stay before them.
inline void finish_stores(const void* read) { asm volatile("" : : "r"(read) : "memory"); }

// Tiles 0-3 hold sums of `rows` rows, 4-5 activations, 6-7 weights of one group.
inline void begin_tiles(int rows) {
    if (rows < kLeastTileRows) return;
    struct alignas(64) {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.rows[i] = (uint8_t)(i < 6 ? rows : kGroup / 4);
        config.bytes[i] = i == 4 || i == 5 ? kGroup : 64;
    }
    finish_stores(&config);
    _tile_loadconfig(&config);
}
inline void end_tiles() { _tile_release(); }

// A place in the sequence of all groups of some blocks, block by block.
struct GroupCursor {
    const Matrix* matrix;
    const uint8_t* block;
    int groups, group;
    void next() {
        if (++group == groups) group = 0, block += matrix->block_bytes;
    }
};

template <WeightType type>
inline const uint8_t* numbers_of(const GroupCursor& at) {
    return at.block + at.matrix->numbers_at + (size_t)at.group * format_of(type).bits * 64;
}

// A tile product sums over a whole group of 32.
constexpr bool runs_on_tiles(WeightType type) { return !holds_floats(type) && format_of(type).part != 16; }

// The T rows of a tile times the blocks [first, last). A software pipeline: while the vector units add up one group, the
// tile unit works on a later one, whose weights were unpacked before.
template <WeightType type, int T>
inline void multiply_blocks_amx(const Matrix& w, int first, int last, const Quantised& x, int tile, int rows, float* out, size_t out_stride) {
    constexpr Format format = format_of(type);
    alignas(64) int32_t products[kRing][T * kLanes];
    alignas(64) uint8_t unpacked[kRing][512];
    const size_t start = (size_t)tile * x.groups * T;
    const int steps = (last - first) * x.groups;
    GroupCursor unpacking{&w, w.data + (size_t)first * w.block_bytes, x.groups, 0}, multiply = unpacking, add = unpacking;
    F32 total[T];
    PACELINE_UNROLL
    for (int m = 0; m < T; m++) total[m] = splat(0.0f);
    for (int step = 0; step < steps + kUnpackLead + kProductLead; step++) {
        if (format.bits < 8 && step < steps) {
            const uint8_t* stored = numbers_of<type>(unpacking);
            uint8_t* to = unpacked[step % kRing];
            const auto unpack_quads = [&](int i) __attribute__((always_inline)) {
                U8 even, odd;
                unpack<format.bits>(stored, i, even, odd);
                prefetch(stored + i * 64 + kPrefetchAhead);
                _mm512_store_si512(to + i * 128, even.v);
                _mm512_store_si512(to + i * 128 + 64, odd.v);
            };
            if constexpr (format.bits == 4) {
                for (int i = 0; i < 4; i++) unpack_quads(i);
            } else if constexpr (format.bits < 8) {
                unpack_quads(0), unpack_quads(1), unpack_quads(2), unpack_quads(3);
            }
            unpacking.next();
        }
        const int product = step - kUnpackLead;
        if (product >= 0 && product < steps) {
            const uint8_t* weights = unpacked[product % kRing];
            if constexpr (format.bits == 8) {
                weights = numbers_of<type>(multiply);
                for (int i = 0; i < 8; i++) prefetch(weights + i * 64 + kPrefetchAhead);
            }
            const int8_t* numbers = x.numbers + (start + (size_t)multiply.group * T) * kGroup;
            int32_t* to = products[product % kRing];
            finish_stores(weights);
#define PACELINE_PRODUCT(sums, rows, outputs)   \
    _tile_zero(sums);                           \
    _tile_loadd(rows, numbers, kGroup);         \
    _tile_loadd(outputs, weights, 64);          \
    _tile_dpbsud(sums, rows, outputs);          \
    _tile_stored(sums, to, 64)
            switch (product % 4) {
                case 0: PACELINE_PRODUCT(0, 4, 6); break;
                case 1: PACELINE_PRODUCT(1, 5, 7); break;
                case 2: PACELINE_PRODUCT(2, 4, 6); break;
                default: PACELINE_PRODUCT(3, 5, 7);
            }
#undef PACELINE_PRODUCT
            multiply.next();
        }
        if (product < kProductLead) continue;
        const int32_t* from = products[(product - kProductLead) % kRing];
        const size_t at = start + (size_t)add.group * T;
        const F32 scale = scales_of<type>(w, add.block, add.group);
        F32 minimum = scale;
        if constexpr (format.minima) minimum = minima_of<type>(w, add.block, add.group);
        PACELINE_UNROLL
        for (int m = 0; m < T; m++) {
            I32 sum{_mm512_load_si512(from + m * kLanes)};
            if constexpr (format.offset != 0) sum = add_int(sum, splat_int(-format.offset * x.sums[at + m]));
            total[m] = fma(to_float(sum), scale * splat(x.scales[at + m]), total[m]);
            if constexpr (format.minima) total[m] = fma(minimum, splat(x.scaled_sums[at + m]), total[m]);
        }
        if (add.group == x.groups - 1) {
            PACELINE_UNROLL
            for (int m = 0; m < T; m++) {
                if (m < rows) store(out + m * out_stride, total[m]);
                total[m] = splat(0.0f);
            }
            out += kLanes;
        }
        add.next();
    }
}
