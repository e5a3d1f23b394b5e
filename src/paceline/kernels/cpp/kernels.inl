// The kernels, written once over the sixteen lanes of a simd_*.hpp header. Every function handles one row (or several
// independently) and adds in an order that depends on nothing but that row: this is what makes a row's bits
// independent of its neighbours, of their number, and of the threads.
#include <cmath>

#include "records.hpp"

namespace {
using namespace paceline;

constexpr int kPrefetchAhead = 8192;     // bytes of weights; measured
constexpr int kFetchBefore = 8192;       // bytes of weights asked for before a stage

// Loops over rows or queries held in registers must be unrolled whole, or their sums go through memory.
#define PACELINE_UNROLL _Pragma("GCC unroll 16")

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
    const size_t at = out.at(row, group);
    const float largest = max_lanes(max(abs(a), abs(b)));
    const float scale = largest * (1.0f / 127.0f), inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    const I32 low = round_to_int(a * splat(inverse)), high = round_to_int(b * splat(inverse));
    store_bytes(out.numbers + at * kGroup, low);
    store_bytes(out.numbers + at * kGroup + kLanes, high);
    const int32_t sum = sum_lanes(add_int(low, high));
    out.scales[at] = scale;
    out.sums[at] = sum;
    out.scaled_sums[at] = scale * (float)sum;
    if (out.half_sums) out.half_sums[at] = sum_lanes(low);
    if (out.values) {
        store(out.values + at * kGroup, a);
        store(out.values + at * kGroup + kLanes, b);
    }
}

// What a root mean square norm (Zhang & Sennrich, 2019) multiplies by, beside its weights.
inline F32 norm_scale(const float* x, int columns, float eps) {
    F32 squares = splat(0.0f);
    for (int i = 0; i < columns; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    return splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / (float)columns + eps));
}

// Such a norm if there are weights for one, then 8-bit numbers from the group `first` of the row on.
void norm_and_quantise(const float* x, const float* weight, int columns, float eps, const Quantised& out, int row, int first = 0) {
    const F32 scale = weight ? norm_scale(x, columns, eps) : splat(1.0f);
    for (int g = 0; g < columns / kGroup; g++) {
        const int i = g * kGroup;
        if (weight) quantise_group(load(x + i) * scale * load(weight + i), load(x + i + kLanes) * scale * load(weight + i + kLanes), out, row, first + g);
        else quantise_group(load(x + i), load(x + i + kLanes), out, row, first + g);
    }
}

#include "products.inl"

// Reads memory as the products do and adds it up: how fast weights can arrive at best.
uint64_t read_memory(const uint8_t* data, size_t bytes) {
    I32 sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    for (size_t at = 0; at + 256 <= bytes; at += 256)
        for (int i = 0; i < 4; i++) {
            I32 part;
            __builtin_memcpy(&part, data + at + i * 64, 64);
            prefetch(data + at + i * 64 + kPrefetchAhead);
            sums[i] = add_int(sums[i], part);
        }
    return (uint32_t)sum_lanes(add_int(add_int(sums[0], sums[1]), add_int(sums[2], sums[3])));
}

// ---------------------------------------------------------------------------------- attention

// Where the keys or values of one row and one head lie: pages of 16 positions, `dim` halves each.
struct Pages {
    const uint16_t* base;
    const int32_t* numbers;
    int dim;
    const uint16_t* page(int i) const { return base + (size_t)numbers[i] * dim * kLanes; }
};

// Scores of Q queries, float [dim][Q], against the keys of the P pages from `first` on, half [dim][16] each. With few
// queries several pages are needed to keep the multipliers busy.
template <int Q, int P>
inline void score_pages(const Pages& keys, int first, int last, const float* query, float* out, size_t stride) {
    const uint16_t *key[P], *next[P];
    F32 total[P][Q];
    PACELINE_UNROLL
    for (int p = 0; p < P; p++) {
        key[p] = keys.page(first + p), next[p] = keys.page(least(first + P + p, last));
        PACELINE_UNROLL
        for (int i = 0; i < Q; i++) total[p][i] = splat(0.0f);
    }
    for (int d = 0; d < keys.dim; d++) {
        PACELINE_UNROLL
        for (int p = 0; p < P; p++) {
            const F32 k = load_half(key[p] + d * kLanes);
            prefetch(next[p] + d * kLanes);
            PACELINE_UNROLL
            for (int i = 0; i < Q; i++) total[p][i] = fma(splat(query[d * Q + i]), k, total[p][i]);
        }
    }
    PACELINE_UNROLL
    for (int p = 0; p < P; p++)
        PACELINE_UNROLL
        for (int i = 0; i < Q; i++) store(out + i * stride + (first + p) * kLanes, total[p][i]);
}

template <int Q = kKeyBlock>
inline void score_queries(int queries, const Pages& keys, int page, int end, const float* query, float* out, size_t stride) {
    if (queries == Q) {
        constexpr int P = kKeyBlock / Q < 4 ? kKeyBlock / Q : 4;
        for (; page + P <= end; page += P) score_pages<Q, P>(keys, page, end - 1, query, out, stride);
        for (; page < end; page++) score_pages<Q, 1>(keys, page, end - 1, query, out, stride);
    } else if constexpr (Q > 1) {
        score_queries<Q - 1>(queries, keys, page, end, query, out, stride);
    }
}

// Turns scores [begin, end) into weights exp(score - largest); returns their sum. Lane i adds the positions i, i+16, ...
inline float soften(float* scores, int begin, int end) {
    const int first = begin / kLanes * kLanes, padded = ceil_div(end, kLanes) * kLanes;
    for (int p = first; p < begin; p++) scores[p] = -1e30f;
    for (int p = end; p < padded; p++) scores[p] = -1e30f;
    F32 largest = load(scores + first);
    for (int p = first + kLanes; p < padded; p += kLanes) largest = max(largest, load(scores + p));
    const F32 shift = splat(max_lanes(largest));
    F32 sum = splat(0.0f);
    for (int p = first; p < padded; p += kLanes) {
        const F32 weight = exp(load(scores + p) - shift);
        store(scores + p, weight);
        sum = sum + weight;
    }
    return sum_lanes(sum);
}

// Weighted sums of 16*C value columns for Q queries, position by position from `begin` on. The positions below `shared`
// lie at the slot of the same number for all of them; the rest is found through each query's node.
template <int Q, int C>
inline void gather_values(const Pages& values, int column, const Node* const* node, int start, int begin, int shared, const float* weights,
                          size_t stride, const float* inverse, float* out) {
    F32 total[Q][C];
    PACELINE_UNROLL
    for (int i = 0; i < Q; i++)
        PACELINE_UNROLL
        for (int c = 0; c < C; c++) total[i][c] = splat(0.0f);
    for (int p = begin; p < shared;) {
        const size_t at = (size_t)(p % kLanes) * values.dim + column;
        const uint16_t *value = values.page(p / kLanes) + at, *next = values.page(least(p + kLanes, shared - 1) / kLanes) + at;
        for (const int end = least(shared, p / kLanes * kLanes + kLanes); p < end; p++, value += values.dim, next += values.dim) {
            F32 v[C];
            for (int c = 0; c < C; c += 2) prefetch(next + c * kLanes);
            PACELINE_UNROLL
            for (int c = 0; c < C; c++) v[c] = load_half(value + c * kLanes);
            PACELINE_UNROLL
            for (int i = 0; i < Q; i++)
                PACELINE_UNROLL
                for (int c = 0; c < C; c++) total[i][c] = fma(splat(weights[i * stride + p]), v[c], total[i][c]);
        }
    }
    PACELINE_UNROLL
    for (int i = 0; i < Q; i++) {
        const Node& n = *node[i];
        for (int p = shared > begin ? shared : begin; p < start + n.length; p++) {
            const int j = p - start, slot = j < n.linear ? p : start + n.path[j - n.linear];
            const uint16_t* value = values.page(slot / kLanes) + slot % kLanes * values.dim + column;
            PACELINE_UNROLL
            for (int c = 0; c < C; c++) total[i][c] = fma(splat(weights[i * stride + p]), load_half(value + c * kLanes), total[i][c]);
        }
        PACELINE_UNROLL
        for (int c = 0; c < C; c++) store(out + i * values.dim + column + c * kLanes, total[i][c] * splat(inverse[i]));
    }
}

template <int Q = kQueryBlock>
inline void gather_queries(int queries, const Pages& values, const Node* const* node, int start, int begin, int shared, const float* weights,
                           size_t stride, const float* inverse, float* out) {
    if (queries == Q) {
        int column = 0;
        for (; column + 4 * kLanes <= values.dim; column += 4 * kLanes)
            gather_values<Q, 4>(values, column, node, start, begin, shared, weights, stride, inverse, out);
        for (; column < values.dim; column += kLanes) gather_values<Q, 1>(values, column, node, start, begin, shared, weights, stride, inverse, out);
    } else if constexpr (Q > 1) {
        gather_queries<Q - 1>(queries, values, node, start, begin, shared, weights, stride, inverse, out);
    }
}

// Attention of one unit for all query heads that share its key/value head (Ainslie et al., 2023, grouped queries).
void attend(const Pass& pass, int layer, const AttentionUnit& unit, const Quantised& out, float* scratch) {
    const ModelRecord& model = *pass.model;
    const int dim = model.head_dim, group = model.heads / model.kv_heads, queries = unit.nodes * group;
    const Row& row = pass.row[unit.row];
    const size_t head_offset = ((size_t)layer * model.kv_heads + unit.kv_head) * pass.head_stride;
    const Pages keys{pass.keys + head_offset, row.pages, dim}, values{pass.values + head_offset, row.pages, dim};
    const size_t stride = pass.score_stride;
    float* result = scratch + (size_t)queries * stride;     // [queries][dim]
    const int window = model.layer[layer].window;
    const auto first_seen = [&](const Node& n) { return row.start + n.length > window ? row.start + n.length - window : 0; };

    // Scores against every slot that any node of the unit may see.
    const int slots = row.start + unit.first + unit.nodes - row.first;
    int first_slot = slots;
    for (int n = 0; n < unit.nodes; n++) first_slot = least(first_slot, first_seen(pass.node[unit.first + n]));
    for (int begin = 0; begin < queries; begin += kKeyBlock) {
        const int count = least(kKeyBlock, queries - begin);
        float* packed = result;                             // [dim][count], overwritten by the result later
        for (int i = 0; i < count; i++) {
            const int node = unit.first + (begin + i) / group, head = unit.kv_head * group + (begin + i) % group;
            const float* query = pass.q + ((size_t)node * model.heads + head) * dim;
            for (int d = 0; d < dim; d++) packed[d * count + i] = query[d];
        }
        score_queries(count, keys, first_slot / kLanes, ceil_div(slots, kLanes), packed, scratch + begin * stride, stride);
    }

    for (int begin = 0; begin < queries; begin += kQueryBlock) {
        const int count = least(kQueryBlock, queries - begin);
        const Node* node[kQueryBlock];
        float inverse[kQueryBlock];
        int shared = 1 << 30;
        for (int i = 0; i < count; i++) {
            const Node& n = pass.node[unit.first + (begin + i) / group];
            float* scores = scratch + (begin + i) * stride;
            // Slots to positions: ancestors ascend and never lie before their own place, so this can be done in place.
            for (int j = n.linear; j < n.length; j++) scores[row.start + j] = scores[row.start + n.path[j - n.linear]];
            const int seen = first_seen(n);
            inverse[i] = 1.0f / soften(scores, seen, row.start + n.length);
            for (int p = first_slot; p < seen; p++) scores[p] = 0.0f;       // what other queries of the unit see
            node[i] = &n;
            shared = least(shared, row.start + n.linear);
        }
        gather_queries(count, values, node, row.start, first_slot, shared, scratch + begin * stride, stride, inverse, result + (size_t)begin * dim);
    }

    const int first_group = unit.kv_head * group * dim / kGroup;
    for (int n = 0; n < unit.nodes; n++)
        for (int g = 0; g < group * dim / kGroup; g++) {
            const float* at = result + (size_t)n * group * dim + g * kGroup;
            quantise_group(load(at), load(at + kLanes), out, unit.first + n, first_group + g);
        }
}

// ---------------------------------------------------------------------------------- one pass

// Rotary positions (Su et al., 2021) on pairs of neighbours.
inline F32 rotate(F32 x, const Rotation& rotation, size_t at) {
    return fma(swap_pairs(x), load(rotation.sin + at), x * load(rotation.cos + at));
}

void embed(const Pass& pass, int node) {
    const ModelRecord& model = *pass.model;
    const size_t at = (size_t)node * model.hidden;
    float* embedded = pass.embedded + at;
    if (const int pad = pass.tokens[node] - model.vocab; pad >= 0) {
        __builtin_memcpy(embedded, pass.pads + (size_t)pad * model.hidden, sizeof(float) * model.hidden);
        return;
    }
    read_row(model.embedding, pass.tokens[node], embedded);
    if (model.embedding_scale != 1.0f)
        for (int i = 0; i < model.hidden; i += kLanes) store(embedded + i, load(embedded + i) * splat(model.embedding_scale));
    if (!pass.features) return;
    const float* feature = pass.features + at;
    if (!model.feature_norm) {
        __builtin_memcpy(pass.x + at, feature, sizeof(float) * model.hidden);
        return;
    }
    const F32 scale = norm_scale(feature, model.hidden, model.norm_eps);
    for (int i = 0; i < model.hidden; i += kLanes) store(pass.x + at + i, load(feature + i) * scale * load(model.feature_norm + i));
}

// One row of the blocks [first, last) of a projection: its bias, and the norm of each head, of which it then has all blocks.
void add_bias_and_norm(const Projection& projection, const ModelRecord& model, int first, int last, float* x) {
    const int width = (last - first) * kLanes, dim = model.head_dim;
    if (projection.bias)
        for (int i = 0; i < width; i += kLanes) store(x + i, load(x + i) + load(projection.bias + first * kLanes + i));
    if (projection.norm)
        for (float* head = x; head < x + width; head += dim) {
            const F32 scale = norm_scale(head, dim, model.norm_eps);
            for (int i = 0; i < dim; i += kLanes) store(head + i, load(head + i) * scale * load(projection.norm + i));
        }
}

// The blocks [first, last) of one projection: rotated queries for this pass, rotated keys and values into the cache.
void project_qkv(const Pass& pass, int layer, const Projection& projection, int first, int last, const Quantised& normed, float* out) {
    const ModelRecord& model = *pass.model;
    const Layer& l = model.layer[layer];
    const int dim = model.head_dim, blocks = last - first;
    multiply(projection.weights, first, last, normed, pass.nodes, out, (size_t)blocks * kLanes);
    const F32 query_scale = splat(model.query_scale);
    for (int n = 0; n < pass.nodes; n++) {
        if (projection.bias || projection.norm) add_bias_and_norm(projection, model, first, last, out + (size_t)n * blocks * kLanes);
        const Row& row = pass.row[pass.row_of[n]];
        const int slot = row.start + n - row.first, lane = slot % kLanes;
        const size_t turn = (size_t)pass.positions[n] * dim;
        for (int b = 0; b < blocks; b++) {
            const int head = (first + b) * kLanes / dim, d = (first + b) * kLanes % dim;
            const F32 x = load(out + ((size_t)n * blocks + b) * kLanes);
            const size_t page = ((size_t)layer * model.kv_heads + head) * pass.head_stride + (size_t)row.pages[slot / kLanes] * dim * kLanes;
            if (&projection == &l.q) {
                store(pass.q + ((size_t)n * model.heads + head) * dim + d, rotate(x, l.rotation, turn + d) * query_scale);
            } else if (&projection == &l.k) {
                uint16_t halves[kLanes];
                store_half(halves, rotate(x, l.rotation, turn + d));
                for (int i = 0; i < kLanes; i++) pass.keys[page + (size_t)(d + i) * kLanes + lane] = halves[i];
            } else {
                store_half(pass.values + page + (size_t)lane * dim + d, x);
            }
        }
    }
}

// Adds to the residual stream, or fills `branch` where a norm comes before.
void add_projection(const Pass& pass, const Matrix& w, const float* post_norm, int first, int last, const Quantised& in, float* out) {
    if (post_norm) return multiply(w, first, last, in, pass.nodes, pass.branch + first * kLanes, pass.model->hidden);
    const size_t width = (size_t)(last - first) * kLanes;
    multiply(w, first, last, in, pass.nodes, out, width);
    for (int n = 0; n < pass.nodes; n++) {
        float* x = pass.x + (size_t)n * pass.model->hidden + first * kLanes;
        for (size_t i = 0; i < width; i += kLanes) store(x + i, load(x + i) + load(out + n * width + i));
    }
}

// x * sigmoid(x), or x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), the tanh form of GELU (Hendrycks & Gimpel, 2016).
inline F32 activate(F32 x, bool gelu) {
    const F32 z = gelu ? x * fma(x * x, splat(0.0713548163f), splat(1.59576912f)) : x;
    return x / (splat(1.0f) + exp(splat(0.0f) - z));
}

// activation(gate) * up (Shazeer, 2020) for the groups [first, last) of 32 outputs, as 8-bit numbers.
void gate_and_up(const Pass& pass, const Layer& layer, int first, int last, const Quantised& normed, const Quantised& gated, float* out) {
    const size_t width = (size_t)(last - first) * kGroup;
    float* gates = out;
    float* ups = out + pass.nodes * width;
    multiply(layer.gate, 2 * first, 2 * last, normed, pass.nodes, gates, width);
    multiply(layer.up, 2 * first, 2 * last, normed, pass.nodes, ups, width);
    for (int n = 0; n < pass.nodes; n++)
        for (int g = first; g < last; g++) {
            F32 product[2];
            for (int half = 0; half < 2; half++) {
                const size_t at = n * width + (g - first) * kGroup + half * kLanes;
                product[half] = activate(load(gates + at), pass.model->gelu) * load(ups + at);
            }
            quantise_group(product[0], product[1], gated, n, g);
        }
}

// What is left to do to the residual stream of a node behind an attention or feed-forward part.
void settle(const Pass& pass, int node, const float* post_norm) {
    if (!post_norm) return;
    const int hidden = pass.model->hidden;
    const float* branch = pass.branch + (size_t)node * hidden;
    float* x = pass.x + (size_t)node * hidden;
    const F32 scale = norm_scale(branch, hidden, pass.model->norm_eps);
    for (int i = 0; i < hidden; i += kLanes) store(x + i, load(x + i) + load(branch + i) * scale * load(post_norm + i));
}

void copy_taps(const Pass& pass, int node, int layers_done) {
    const size_t at = (size_t)node * pass.model->hidden;
    for (int t = 0; t < pass.taps; t++)
        if (pass.tap_layers[t] == layers_done) __builtin_memcpy(pass.tap_rows[t] + at, pass.x + at, sizeof(float) * pass.model->hidden);
}

// The tap behind the last layer's is what the head reads.
void copy_last(const Pass& pass, int node) {
    const ModelRecord& model = *pass.model;
    const float* x = pass.x + (size_t)node * model.hidden;
    for (int t = 0; t < pass.taps; t++) {
        if (pass.tap_layers[t] != model.layers + 1) continue;
        float* out = pass.tap_rows[t] + (size_t)node * model.hidden;
        const F32 scale = norm_scale(x, model.hidden, model.norm_eps);
        for (int i = 0; i < model.hidden; i += kLanes) store(out + i, load(x + i) * scale * load(model.output_norm + i));
    }
}

void score_tokens(const Pass& pass, int first, int last, const Quantised& normed, float* out) {
    const Matrix& w = pass.model->head;
    if (last * kLanes <= w.rows) return multiply(w, first, last, normed, pass.scored, pass.logits + first * kLanes, pass.logits_stride);
    const size_t width = (size_t)(last - first) * kLanes;
    multiply(w, first, last, normed, pass.scored, out, width);
    for (int s = 0; s < pass.scored; s++)
        __builtin_memcpy(pass.logits + s * pass.logits_stride + first * kLanes, out + s * width, sizeof(float) * (w.rows - first * kLanes));
}

// The whole forward pass, as one thread of `threads` sees it. Work is shared out by outputs, never by terms of a sum.
void run(const Pass& pass, int thread, int threads) {
    const ModelRecord& model = *pass.model;
    const Quantised normed = tiled(pass.normed, pass.nodes), attended = tiled(pass.attended, pass.nodes), gated = tiled(pass.gated, pass.nodes);
    float* scratch = pass.scratch[thread];
    // This thread's share of `count` pieces of work, at most `step` of them at a time.
    const auto share_begins = [&](int count) { return (int)((int64_t)count * thread / threads); };
    const auto share_ends = [&](int count) { return (int)((int64_t)count * (thread + 1) / threads); };
    const auto each = [&](int count, int step, auto work) {
        for (int i = share_begins(count); i < share_ends(count); i += step) work(i, least(i + step, share_ends(count)));
    };
    // The first weights of the next stage, asked for while the others finish this one.
    const auto fetch = [&](const Matrix& w, int block) {
        const uint8_t* at = w.data + (size_t)block * w.block_bytes;
        for (size_t i = 0; i < kFetchBefore && i < w.block_bytes; i += 64) prefetch(at + i);
    };
    const auto finish = [&](Stage stage) {
        wait(*pass.barrier);
        if (pass.stage_seconds && thread == 0) mark(pass, stage);
    };
    const auto norm = [&](const float* weight, int node, const Quantised& out, int row, int group = 0) {
        norm_and_quantise(pass.x + (size_t)node * model.hidden, weight, model.hidden, model.norm_eps, out, row, group);
    };

    begin_tiles(normed.tile);
    each(pass.nodes, 1, [&](int node, int) { embed(pass, node); });
    finish(kEmbed);
    const float* unsettled = nullptr;       // the norm of what the layer before adds
    for (int i = 0; i < model.layers; i++) {
        if (pass.skipped && pass.skipped[i]) continue;
        const Layer& layer = model.layer[i];
        Quantised read = normed;                // what q, k and v read
        read.groups = layer.q.weights.columns / kGroup;
        each(pass.nodes, 1, [&](int node, int) {
            settle(pass, node, unsettled);
            copy_taps(pass, node, i);
            if (layer.token_norm) norm_and_quantise(pass.embedded + (size_t)node * model.hidden, layer.token_norm, model.hidden, model.norm_eps, read, node);
            norm(layer.attention_norm, node, read, node, layer.token_norm ? model.hidden / kGroup : 0);
        });
        unsettled = layer.ffn_post_norm;
        wait(*pass.barrier);
        // To each thread a part of all three: stores of keys miss the cache, and should not be one thread's alone.
        const Projection* const projections[] = {&layer.q, &layer.k, &layer.v};
        for (const Projection* projection : projections) {
            // A head that is normed must be in one hand.
            const int together = projection->norm ? model.head_dim / kLanes : 1, blocks = projection->weights.rows / kLanes;
            each(blocks / together, together > 1 ? 1 : kBlocksAtOnce, [&](int first, int last) {
                project_qkv(pass, i, *projection, first * together, last * together, read, scratch);
            });
        }
        finish(kQkv);
        if (i + 1 == model.layers && !pass.scored && !pass.taps) {          // only its keys and values were wanted
            unsettled = nullptr;
            break;
        }
        for (int u = pass.unit_share[thread]; u < pass.unit_share[thread + 1]; u++) attend(pass, i, pass.unit[u], attended, scratch);
        fetch(layer.o, share_begins(model.hidden / kLanes));
        finish(kAttention);
        each(model.hidden / kLanes, kBlocksAtOnce, [&](int first, int last) { add_projection(pass, layer.o, layer.attention_post_norm, first, last, attended, scratch); });
        fetch(layer.gate, 2 * share_begins(model.ffn / kGroup));
        fetch(layer.up, 2 * share_begins(model.ffn / kGroup));
        finish(kOutput);
        each(pass.nodes, 1, [&](int node, int) {
            settle(pass, node, layer.attention_post_norm);
            norm(layer.ffn_norm, node, normed, node);
        });
        wait(*pass.barrier);
        each(model.ffn / kGroup, kBlocksAtOnce / 2, [&](int first, int last) { gate_and_up(pass, layer, first, last, normed, gated, scratch); });
        fetch(layer.down, share_begins(model.hidden / kLanes));
        finish(kGateUp);
        each(model.hidden / kLanes, kBlocksAtOnce, [&](int first, int last) { add_projection(pass, layer.down, layer.ffn_post_norm, first, last, gated, scratch); });
        if (i + 1 < model.layers) fetch(model.layer[i + 1].q.weights, share_begins(model.heads * model.head_dim / kLanes));
        else fetch(model.head, share_begins(ceil_div(model.head.rows, kLanes)));
        finish(kDown);
    }
    each(pass.nodes, 1, [&](int node, int) {
        settle(pass, node, unsettled);
        copy_taps(pass, node, model.layers);
        copy_last(pass, node);
    });
    if (unsettled) wait(*pass.barrier);
    const Quantised scored = tiled(pass.normed, pass.scored);
    begin_tiles(scored.tile);
    each(pass.scored, 1, [&](int row, int) { norm(model.output_norm, pass.scored_nodes[row], scored, row); });
    wait(*pass.barrier);
    if (pass.scored) each(ceil_div(model.head.rows, kLanes), kBlocksAtOnce, [&](int first, int last) { score_tokens(pass, first, last, scored, scratch); });
    end_tiles();
    finish(kHead);
}
}  // namespace

#include "draw.inl"
