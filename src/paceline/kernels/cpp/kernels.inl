// The kernels, written once over the sixteen lanes of a simd_*.hpp header. Every function handles one row (or several
// independently) and adds in an order that depends on nothing but that row: this is what makes a row's bits
// independent of its neighbours, of their number, and of the threads.
#include <cmath>

#include "records.hpp"

namespace {
using namespace paceline;

inline int least(int a, int b) { return a < b ? a : b; }
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// exp for every lane, after Cephes' expf; arguments below -87 give exp(-87), above 88 exp(88).
inline F32 exp(F32 x) {
    x = max(min(x, splat(88.0f)), splat(-87.0f));
    const I32 n = round_to_int(x * splat(1.44269504f));
    const F32 f = to_float(n);
    const F32 r = fma(f, splat(2.12194440e-4f), fma(f, splat(-0.693359375f), x));
    F32 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    return scale_by_power(fma(p, r * r, r) + splat(1.0f), n);
}

// ---------------------------------------------------------------------------------- 8-bit activations

inline void quantise_group(F32 a, F32 b, const Quantised& out, int row, int group) {
    const size_t at = (size_t)row * out.stride + group;
    const float largest = max_lanes(max(abs(a), abs(b)));
    const float scale = largest / 127.0f, inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    const I32 low = round_to_int(a * splat(inverse)), high = round_to_int(b * splat(inverse));
    store_bytes(out.numbers + at * kGroup, low);
    store_bytes(out.numbers + at * kGroup + kLanes, high);
    const int32_t sum = sum_lanes(add_int(low, high));
    out.scales[at] = scale;
    out.sums[at] = sum;
    out.scaled_sums[at] = scale * (float)sum;
}

void quantise(const float* x, int columns, const Quantised& out, int row) {
    for (int g = 0; g < columns / kGroup; g++) quantise_group(load(x + g * kGroup), load(x + g * kGroup + kLanes), out, row, g);
}

// Root mean square norm (Zhang & Sennrich, 2019), then 8-bit numbers.
void norm_and_quantise(const float* x, const float* weight, int columns, float eps, const Quantised& out, int row) {
    F32 squares = splat(0.0f);
    for (int i = 0; i < columns; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    const F32 scale = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / (float)columns + eps));
    for (int g = 0; g < columns / kGroup; g++) {
        const int i = g * kGroup;
        quantise_group(load(x + i) * scale * load(weight + i), load(x + i + kLanes) * scale * load(weight + i + kLanes), out, row, g);
    }
}

// ---------------------------------------------------------------------------------- matrix product

// One block of 16 outputs for M rows: integer products inside a group, groups added in order.
template <WeightType type, int M>
inline void multiply_block(const Matrix& w, const uint8_t* block, const Quantised& x, int row, float* out, size_t out_stride) {
    const int groups = w.columns / kGroup;
    constexpr int kLoads = type == WeightType::Q8_0 ? 8 : 4;
    const int8_t* numbers[M];
    size_t at[M];
    F32 total[M];
    for (int m = 0; m < M; m++) {
        at[m] = (size_t)(row + m) * x.stride;
        numbers[m] = x.numbers + at[m] * kGroup;
        total[m] = splat(0.0f);
    }
    for (int g = 0; g < groups; g++) {
        const uint8_t* stored = block + w.numbers_at + (size_t)g * kLoads * 64;
        I32 sum[M];
        for (int m = 0; m < M; m++) {
            if constexpr (type == WeightType::Q8_0) sum[m] = start_signed(x.sums[at[m] + g]);
            if constexpr (type == WeightType::Q4_0) sum[m] = splat_int(-8 * x.sums[at[m] + g]);
            if constexpr (type == WeightType::Q4_1) sum[m] = splat_int(0);
        }
        for (int i = 0; i < kLoads; i++) {
            const U8 bytes = load_bytes(stored + i * 64);
            prefetch(stored + i * 64 + 3072);
            if constexpr (type == WeightType::Q8_0) {
                for (int m = 0; m < M; m++) sum[m] = dot_signed(sum[m], bytes, numbers[m] + g * kGroup + i * 4);
            } else {
                const U8 low = low_halves(bytes), high = high_halves(bytes);
                for (int m = 0; m < M; m++) sum[m] = dot(sum[m], low, numbers[m] + g * kGroup + i * 8);
                for (int m = 0; m < M; m++) sum[m] = dot(sum[m], high, numbers[m] + g * kGroup + i * 8 + 4);
            }
        }
        const F32 scale = load_half((const uint16_t*)block + g * kLanes);
        for (int m = 0; m < M; m++) total[m] = fma(to_float(sum[m]), scale * splat(x.scales[at[m] + g]), total[m]);
        if constexpr (type == WeightType::Q4_1) {
            const F32 minimum = load_half((const uint16_t*)(block + w.minima_at) + g * kLanes);
            for (int m = 0; m < M; m++) total[m] = fma(minimum, splat(x.scaled_sums[at[m] + g]), total[m]);
        }
    }
    for (int m = 0; m < M; m++) store(out + m * out_stride, total[m]);
}

template <WeightType type, int M>
inline void multiply_rows(const Matrix& w, const uint8_t* block, const Quantised& x, int row, int rows, float* out, size_t out_stride) {
    if (rows == M) return multiply_block<type, M>(w, block, x, row, out, out_stride);
    if constexpr (M > 1) multiply_rows<type, M - 1>(w, block, x, row, rows, out, out_stride);
}

// out[m * out_stride + i] = row m times output 16 * block + i.
void multiply(const Matrix& w, int block, const Quantised& x, int rows, float* out, size_t out_stride) {
    const uint8_t* data = w.data + (size_t)block * w.block_bytes;
    const int tiles = ceil_div(rows, kRowBlock), tile = ceil_div(rows, tiles);
    for (int row = 0; row < rows; row += tile) {
        const int count = least(tile, rows - row);
        float* to = out + (size_t)row * out_stride;
        switch (w.type) {
            case WeightType::Q8_0: multiply_rows<WeightType::Q8_0, kRowBlock>(w, data, x, row, count, to, out_stride); break;
            case WeightType::Q4_0: multiply_rows<WeightType::Q4_0, kRowBlock>(w, data, x, row, count, to, out_stride); break;
            case WeightType::Q4_1: multiply_rows<WeightType::Q4_1, kRowBlock>(w, data, x, row, count, to, out_stride); break;
        }
    }
}

void matmul(const Matrix& w, int begin, int end, const Quantised& x, int rows, float* out, size_t out_stride) {
    for (int block = begin; block < end; block++) multiply(w, block, x, rows, out + block * kLanes, out_stride);
}

// ---------------------------------------------------------------------------------- attention

// Scores of Q queries against the sixteen keys of a page; `keys` is half [dim][16].
template <int Q>
inline void score_page(const uint16_t* keys, int dim, const float* const* query, float* out, size_t stride) {
    F32 total[Q];
    for (int i = 0; i < Q; i++) total[i] = splat(0.0f);
    for (int d = 0; d < dim; d++) {
        const F32 key = load_half(keys + d * kLanes);
        for (int i = 0; i < Q; i++) total[i] = fma(splat(query[i][d]), key, total[i]);
    }
    for (int i = 0; i < Q; i++) store(out + i * stride, total[i]);
}

template <int Q>
inline void score_queries(int count, const uint16_t* keys, int dim, const float* const* query, float* out, size_t stride) {
    if (count == Q) return score_page<Q>(keys, dim, query, out, stride);
    if constexpr (Q > 1) score_queries<Q - 1>(count, keys, dim, query, out, stride);
}

// Turns scores [0, length) into weights exp(score - largest); returns their sum. Lane i adds the positions i, i+16, ...
inline float soften(float* scores, int length) {
    const int padded = ceil_div(length, kLanes) * kLanes;
    for (int p = length; p < padded; p++) scores[p] = -1e30f;
    F32 largest = load(scores);
    for (int p = kLanes; p < padded; p += kLanes) largest = max(largest, load(scores + p));
    const F32 shift = splat(max_lanes(largest));
    F32 sum = splat(0.0f);
    for (int p = 0; p < padded; p += kLanes) {
        const F32 weight = exp(load(scores + p) - shift);
        store(scores + p, weight);
        sum = sum + weight;
    }
    return sum_lanes(sum);
}

// Where the values of one row and one head lie: half [16][dim] per page.
struct Values {
    const uint16_t* base;
    size_t page_stride;
    const int32_t* pages;
    int dim;
    const uint16_t* at(int slot) const {
        return base + (size_t)pages[slot / kLanes] * page_stride + (size_t)(slot % kLanes) * dim;
    }
};

// Weighted sums of 16*C value columns for Q queries, position by position. The first `shared` positions lie at the
// slot of the same number for all of them; the rest is found through each query's node.
template <int Q, int C>
inline void gather_values(const Values& values, int column, const Node* const* node, int start, int shared, const float* const* weights,
                          const float* inverse, float* const* out) {
    F32 total[Q][C];
    for (int i = 0; i < Q; i++)
        for (int c = 0; c < C; c++) total[i][c] = splat(0.0f);
    for (int p = 0; p < shared;) {
        const uint16_t* value = values.at(p) + column;
        for (const int end = least(shared, p + kLanes); p < end; p++, value += values.dim) {
            F32 v[C];
            for (int c = 0; c < C; c++) v[c] = load_half(value + c * kLanes);
            for (int i = 0; i < Q; i++)
                for (int c = 0; c < C; c++) total[i][c] = fma(splat(weights[i][p]), v[c], total[i][c]);
        }
    }
    for (int i = 0; i < Q; i++) {
        const Node& n = *node[i];
        for (int p = shared; p < start + n.length; p++) {
            const int j = p - start;
            const uint16_t* value = values.at(j < n.linear ? p : start + n.path[j - n.linear]) + column;
            for (int c = 0; c < C; c++) total[i][c] = fma(splat(weights[i][p]), load_half(value + c * kLanes), total[i][c]);
        }
        for (int c = 0; c < C; c++) store(out[i] + column + c * kLanes, total[i][c] * splat(inverse[i]));
    }
}

template <int Q>
inline void gather_queries(int count, const Values& values, const Node* const* node, int start, int shared, const float* const* weights,
                           const float* inverse, float* const* out) {
    if (count == Q) {
        int column = 0;
        for (; column + 4 * kLanes <= values.dim; column += 4 * kLanes) gather_values<Q, 4>(values, column, node, start, shared, weights, inverse, out);
        for (; column < values.dim; column += kLanes) gather_values<Q, 1>(values, column, node, start, shared, weights, inverse, out);
    } else if constexpr (Q > 1) {
        gather_queries<Q - 1>(count, values, node, start, shared, weights, inverse, out);
    }
}

// Attention of one unit for all query heads that share its key/value head (Ainslie et al., 2023, grouped queries).
void attend(const Pass& pass, int layer, const AttentionUnit& unit, float* scratch) {
    const ModelRecord& model = *pass.model;
    const int dim = model.head_dim, group = model.heads / model.kv_heads, queries = unit.nodes * group;
    const Row& row = pass.row[unit.row];
    const size_t page_stride = (size_t)model.kv_heads * dim * kLanes;
    const size_t head_offset = layer * pass.layer_stride + (size_t)unit.kv_head * dim * kLanes;
    const uint16_t* keys = pass.keys + head_offset;
    const Values values{pass.values + head_offset, page_stride, row.pages, dim};
    const size_t stride = pass.score_stride;
    float* result = scratch + (size_t)queries * stride;     // [queries][dim]

    // Scores against every slot that any node of the unit may see.
    const int slots = row.start + unit.first + unit.nodes - row.first;
    for (int begin = 0; begin < queries; begin += kRowBlock) {
        const int count = least(kRowBlock, queries - begin);
        const float* query[kRowBlock];
        for (int i = 0; i < count; i++) {
            const int node = unit.first + (begin + i) / group, head = unit.kv_head * group + (begin + i) % group;
            query[i] = pass.q + ((size_t)node * model.heads + head) * dim;
        }
        for (int page = 0; page < ceil_div(slots, kLanes); page++)
            score_queries<kRowBlock>(count, keys + (size_t)row.pages[page] * page_stride, dim, query, scratch + begin * stride + page * kLanes, stride);
    }

    for (int begin = 0; begin < queries; begin += kQueryBlock) {
        const int count = least(kQueryBlock, queries - begin);
        const Node* node[kQueryBlock];
        const float* weights[kQueryBlock];
        float inverse[kQueryBlock];
        float* out[kQueryBlock];
        int shared = 1 << 30;
        for (int i = 0; i < count; i++) {
            const Node& n = pass.node[unit.first + (begin + i) / group];
            float* scores = scratch + (begin + i) * stride;
            // Slots to positions: ancestors ascend and never lie before their own place, so this can be done in place.
            for (int j = n.linear; j < n.length; j++) scores[row.start + j] = scores[row.start + n.path[j - n.linear]];
            inverse[i] = 1.0f / soften(scores, row.start + n.length);
            node[i] = &n;
            weights[i] = scores;
            out[i] = result + (size_t)(begin + i) * dim;
            shared = least(shared, row.start + n.linear);
        }
        gather_queries<kQueryBlock>(count, values, node, row.start, shared, weights, inverse, out);
    }

    const int first_group = unit.kv_head * group * dim / kGroup;
    for (int n = 0; n < unit.nodes; n++)
        for (int g = 0; g < group * dim / kGroup; g++) {
            const float* at = result + (size_t)n * group * dim + g * kGroup;
            quantise_group(load(at), load(at + kLanes), pass.attended, unit.first + n, first_group + g);
        }
}

// ---------------------------------------------------------------------------------- one pass

// Rotary positions (Su et al., 2021) on pairs of neighbours.
inline F32 rotate(F32 x, const ModelRecord& model, int position, int dim) {
    const size_t at = (size_t)position * model.head_dim + dim;
    return fma(swap_pairs(x), load(model.rope_sin + at), x * load(model.rope_cos + at));
}

void embed(const Pass& pass, int node) {
    const Matrix& w = pass.model->embedding;
    const int token = pass.tokens[node], lane = token % kLanes;
    const uint8_t* block = w.data + (size_t)(token / kLanes) * w.block_bytes;
    float* x = pass.x + (size_t)node * pass.model->hidden;
    for (int g = 0; g < w.columns / kGroup; g++) {
        float scale[kLanes], minimum[kLanes];
        store(scale, load_half((const uint16_t*)block + g * kLanes));
        if (w.type == WeightType::Q4_1) store(minimum, load_half((const uint16_t*)(block + w.minima_at) + g * kLanes));
        for (int i = 0; i < kGroup; i++) {
            const uint8_t* numbers = block + w.numbers_at;
            if (w.type == WeightType::Q8_0) {
                x[g * kGroup + i] = scale[lane] * (float)(numbers[(size_t)g * 512 + i / 4 * 64 + lane * 4 + i % 4] - 128);
            } else {
                const uint8_t byte = numbers[(size_t)g * 256 + i / 8 * 64 + lane * 4 + i % 4];
                const int number = i % 8 < 4 ? byte & 15 : byte >> 4;
                x[g * kGroup + i] = w.type == WeightType::Q4_0 ? scale[lane] * (float)(number - 8) : scale[lane] * (float)number + minimum[lane];
            }
        }
    }
}

void project_qkv(const Pass& pass, int layer, int block, const Quantised& normed, float* out) {
    const ModelRecord& model = *pass.model;
    const Layer& l = model.layer[layer];
    const int dim = model.head_dim, q_blocks = model.heads * dim / kLanes, k_blocks = model.kv_heads * dim / kLanes;
    const bool is_q = block < q_blocks, is_k = !is_q && block < q_blocks + k_blocks;
    const Matrix& w = is_q ? l.q : is_k ? l.k : l.v;
    if (!is_q) block -= is_k ? q_blocks : q_blocks + k_blocks;
    multiply(w, block, normed, pass.nodes, out, kLanes);

    const int head = block * kLanes / dim, d = block * kLanes % dim;
    const F32 query_scale = splat(1.0f / __builtin_sqrtf((float)dim));
    for (int n = 0; n < pass.nodes; n++) {
        F32 x = load(out + n * kLanes);
        if (is_q) {
            store(pass.q + ((size_t)n * model.heads + head) * dim + d, rotate(x, model, pass.positions[n], d) * query_scale);
            continue;
        }
        const Row& row = pass.row[pass.row_of[n]];
        const int slot = row.start + n - row.first, lane = slot % kLanes;
        const size_t page = layer * pass.layer_stride + ((size_t)row.pages[slot / kLanes] * model.kv_heads + head) * dim * kLanes;
        if (is_k) {
            uint16_t halves[kLanes];
            store_half(halves, rotate(x, model, pass.positions[n], d));
            for (int i = 0; i < kLanes; i++) pass.keys[page + (size_t)(d + i) * kLanes + lane] = halves[i];
        } else {
            store_half(pass.values + page + (size_t)lane * dim + d, x);
        }
    }
}

void add_projection(const Pass& pass, const Matrix& w, int block, const Quantised& in, float* out) {
    multiply(w, block, in, pass.nodes, out, kLanes);
    for (int n = 0; n < pass.nodes; n++) {
        float* x = pass.x + (size_t)n * pass.model->hidden + block * kLanes;
        store(x, load(x) + load(out + n * kLanes));
    }
}

// Two blocks of silu(gate) * up (Shazeer, 2020), which make one group of 8-bit numbers.
void gate_and_up(const Pass& pass, const Layer& layer, int group, const Quantised& normed, float* out) {
    const size_t part = (size_t)pass.nodes * kLanes;
    for (int half = 0; half < 2; half++) {
        multiply(layer.gate, 2 * group + half, normed, pass.nodes, out + 2 * half * part, kLanes);
        multiply(layer.up, 2 * group + half, normed, pass.nodes, out + (2 * half + 1) * part, kLanes);
    }
    for (int n = 0; n < pass.nodes; n++) {
        F32 gated[2];
        for (int half = 0; half < 2; half++) {
            const F32 gate = load(out + 2 * half * part + n * kLanes), up = load(out + (2 * half + 1) * part + n * kLanes);
            gated[half] = gate / (splat(1.0f) + exp(splat(0.0f) - gate)) * up;
        }
        quantise_group(gated[0], gated[1], pass.gated, n, group);
    }
}

void copy_taps(const Pass& pass, int layers_done, int thread, int threads) {
    for (int t = 0; t < pass.taps; t++)
        if (pass.tap_layers[t] == layers_done)
            for (size_t n = thread; n < (size_t)pass.nodes; n += threads)
                __builtin_memcpy(pass.tap_rows[t] + n * pass.model->hidden, pass.x + n * pass.model->hidden, sizeof(float) * pass.model->hidden);
}

void score_tokens(const Pass& pass, int block, const Quantised& normed, float* out) {
    const Matrix& w = pass.model->head;
    if ((block + 1) * kLanes <= w.rows) return multiply(w, block, normed, pass.scored, pass.logits + block * kLanes, w.rows);
    multiply(w, block, normed, pass.scored, out, kLanes);
    for (int s = 0; s < pass.scored; s++)
        __builtin_memcpy(pass.logits + (size_t)s * w.rows + block * kLanes, out + s * kLanes, sizeof(float) * (w.rows - block * kLanes));
}

// The whole forward pass, as one thread of `threads` sees it. Work is shared out by outputs, never by terms of a sum.
void run(const Pass& pass, int thread, int threads) {
    const ModelRecord& model = *pass.model;
    const Quantised& normed = pass.normed[thread];
    float* scratch = pass.scratch[thread];
    const auto each = [&](int count, auto work) {
        for (int i = (int)((int64_t)count * thread / threads), end = (int)((int64_t)count * (thread + 1) / threads); i < end; i++) work(i);
    };
    const auto finish = [&](Stage stage) {
        wait(*pass.barrier);
        if (pass.stage_seconds && thread == 0) mark(pass, stage);
    };
    // Every thread norms all rows for itself: cheaper than one more barrier.
    const auto norm = [&](const float* weight, int rows, const int32_t* chosen) {
        for (int r = 0; r < rows; r++)
            norm_and_quantise(pass.x + (size_t)(chosen ? chosen[r] : r) * model.hidden, weight, model.hidden, model.norm_eps, normed, r);
    };

    each(pass.nodes, [&](int node) { embed(pass, node); });
    finish(kEmbed);
    copy_taps(pass, 0, thread, threads);
    for (int i = 0; i < model.layers; i++) {
        const Layer& layer = model.layer[i];
        norm(layer.attention_norm, pass.nodes, nullptr);
        each((model.heads + 2 * model.kv_heads) * model.head_dim / kLanes, [&](int block) { project_qkv(pass, i, block, normed, scratch); });
        finish(kQkv);
        for (int u = thread; u < pass.units; u += threads) attend(pass, i, pass.unit[u], scratch);
        finish(kAttention);
        each(model.hidden / kLanes, [&](int block) { add_projection(pass, layer.o, block, pass.attended, scratch); });
        finish(kOutput);
        norm(layer.ffn_norm, pass.nodes, nullptr);
        each(model.ffn / kGroup, [&](int group) { gate_and_up(pass, layer, group, normed, scratch); });
        finish(kGateUp);
        each(model.hidden / kLanes, [&](int block) { add_projection(pass, layer.down, block, pass.gated, scratch); });
        finish(kDown);
        copy_taps(pass, i + 1, thread, threads);
    }
    norm(model.output_norm, pass.scored, pass.scored_nodes);
    if (pass.scored) each(ceil_div(model.vocab, kLanes), [&](int block) { score_tokens(pass, block, normed, scratch); });
    finish(kHead);
}
}  // namespace

#include "draw.inl"
