#include "model.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>

namespace paceline {
namespace {

thread_local std::chrono::steady_clock::time_point last_mark;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Arrays of one pass, cut from one allocation, each at a multiple of 64 bytes.
class Arena {
  public:
    template <typename T>
    void plan(T*& pointer, size_t count) {
        wanted_.push_back({(void**)&pointer, bytes_});
        bytes_ += round_up(count * sizeof(T), 64);
    }
    void allocate() {
        thread_local std::vector<char> memory;
        if (memory.size() < bytes_ + 64) memory.resize(bytes_ + bytes_ / 4 + 64);
        char* base = (char*)round_up((size_t)memory.data(), 64);
        for (auto& [pointer, at] : wanted_) *pointer = base + at;
    }

  private:
    size_t bytes_ = 0;
    std::vector<std::pair<void**, size_t>> wanted_;
};

// What the activations must hold beside their 8-bit numbers, for the matrices that read them.
struct Readers {
    bool floats = false, halves = false;
    void add(const Matrix& matrix) {
        floats |= holds_floats(matrix.type);
        halves |= format_of(matrix.type).part == kLanes;
    }
};

void plan(Arena& arena, Quantised& q, int rows, int columns, const Readers& readers) {
    q.groups = columns / kGroup;
    const size_t padded = padded_rows(rows);
    arena.plan(q.numbers, padded * columns);
    arena.plan(q.scales, padded * q.groups);
    arena.plan(q.sums, padded * q.groups);
    arena.plan(q.scaled_sums, padded * q.groups);
    q.half_sums = nullptr, q.values = nullptr;
    if (readers.halves) arena.plan(q.half_sums, padded * q.groups);
    if (readers.floats) arena.plan(q.values, padded * columns);
}

float half_to_float(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                            : exponent     ? std::ldexp((float)(mantissa + 1024), exponent - 25)
                                           : std::ldexp((float)mantissa, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

}  // namespace

void mark(const Pass& pass, Stage stage) {
    const auto now = std::chrono::steady_clock::now();
    pass.stage_seconds[stage] += std::chrono::duration<double>(now - last_mark).count();
    last_mark = now;
}

size_t block_bytes(WeightType type, int columns) { return describe(type, kLanes, columns, nullptr).block_bytes; }

Matrix describe(WeightType type, int rows, int columns, const uint8_t* data) {
    const Format& format = format_of(type);
    Matrix m{type, rows, columns, data, 0, 0, 0, 0, 0};
    const auto grow = [&m](size_t bytes) { m.block_bytes = round_up(m.block_bytes + bytes, 64); };
    const size_t halves = format.span ? (size_t)columns / format.span * kLanes * 2 : 0, parts = format.part ? (size_t)columns / format.part * kLanes : 0;
    grow(halves);
    m.minima_at = m.block_bytes;
    if (format.minima) grow(halves);
    m.parts_at = m.block_bytes;
    grow(parts);
    m.part_minima_at = m.block_bytes;
    if (format.minima) grow(parts);
    m.numbers_at = m.block_bytes;
    grow((size_t)columns * kLanes * format.bits / 8);
    return m;
}

LazyMemory::LazyMemory(size_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
}
LazyMemory::~LazyMemory() { munmap(data_, bytes_); }

Model::Model(const ModelRecord& record, std::vector<Layer> layers, std::vector<double> frequencies, std::vector<double> window_frequencies,
             int cache_pages, int max_positions, int threads, const std::string& isa)
    : record_(record),
      layers_(std::move(layers)),
      kernels_(choose_kernels(isa)),
      shared_pool_(ThreadPool::shared(threads)),
      pool_(*shared_pool_),
      frequencies_{std::move(frequencies), std::move(window_frequencies)},
      rotations_{LazyMemory(2 * sizeof(float) * max_positions * record.head_dim), LazyMemory(2 * sizeof(float) * max_positions * record.head_dim)},
      max_positions_(max_positions),
      head_stride_((size_t)record.head_dim * kLanes * cache_pages),
      keys_(head_stride_ * record.kv_heads * record.layers * sizeof(uint16_t)),
      values_(head_stride_ * record.kv_heads * record.layers * sizeof(uint16_t)),
      pages_(cache_pages) {
    for (Layer& layer : layers_) {
        const float* cos = rotations_[layer.window < kNoWindow].floats();
        layer.rotation = {cos, cos + (size_t)max_positions * record.head_dim};
    }
    record_.layer = layers_.data();
}

void Model::fill_rotations(int positions) {
    for (int position = filled_positions_; position < std::min(positions, max_positions_); position++)
        for (int kind = 0; kind < 2; kind++) {
            if (std::none_of(layers_.begin(), layers_.end(), [&](const Layer& l) { return (l.window < kNoWindow) == (kind == 1); })) continue;
            float* cos = rotations_[kind].floats() + (size_t)position * record_.head_dim;
            float* sin = cos + (size_t)max_positions_ * record_.head_dim;
            for (int d = 0; d < record_.head_dim; d += 2) {
                const double angle = position * frequencies_[kind][d / 2];
                cos[d] = cos[d + 1] = (float)std::cos(angle);
                sin[d + 1] = (float)std::sin(angle);
                sin[d] = -sin[d + 1];
            }
        }
    filled_positions_ = std::max(filled_positions_, positions);
}

void Model::reserve(Sequence& sequence, int tokens) {
    while ((int)sequence.pages.size() * kLanes < tokens) sequence.pages.push_back(pages_.take());
}

void Model::forward(const PackedDraft& draft, float* logits, size_t logits_stride, const std::vector<int32_t>& tap_layers, const std::vector<float*>& tap_rows,
                    const Shortcut* shortcut) {
    // Room first: nothing changes when there is none.
    int missing = 0, longest = 0;
    for (int r = 0; r < draft.rows; r++) {
        const int end = draft.starts[r] + draft.offsets[r + 1] - draft.offsets[r];
        const auto found = sequences_.find(draft.slots[r]);
        const int length = found == sequences_.end() ? 0 : found->second.length;
        if (length != draft.starts[r])
            throw std::invalid_argument("slot " + std::to_string(draft.slots[r]) + " holds " + std::to_string(length) +
                                        " tokens, the draft starts at " + std::to_string(draft.starts[r]));
        const int pages = found == sequences_.end() ? 0 : (int)found->second.pages.size();
        missing += std::max(0, (end + kLanes - 1) / kLanes - pages);
        longest = std::max(longest, end);
    }
    if (missing > pages_.free())
        throw CacheFull("the cache has " + std::to_string(pages_.free() * kLanes) + " tokens free, this pass needs " + std::to_string(missing * kLanes) + " more");

    fill_rotations(longest);
    const int group = record_.heads / record_.kv_heads, threads = pool_.size();
    std::vector<Row> rows(draft.rows);
    std::vector<int32_t> row_of(draft.nodes);
    std::vector<Node> nodes(draft.nodes);
    std::vector<AttentionUnit> units;
    std::vector<std::vector<int32_t>> paths;     // of nodes that do not follow all earlier nodes of their row
    paths.reserve(draft.nodes);
    std::vector<std::vector<int32_t>> seen;      // pages of rows that do not see all of theirs
    seen.reserve(draft.rows);
    last_slots_.assign(draft.slots, draft.slots + draft.rows);
    last_starts_.assign(draft.starts, draft.starts + draft.rows);
    last_sizes_.clear();
    for (int r = 0; r < draft.rows; r++) {
        const int first = draft.offsets[r], count = draft.offsets[r + 1] - first;
        last_sizes_.push_back(count);
        Sequence& sequence = sequences_[draft.slots[r]];
        reserve(sequence, draft.starts[r] + count);
        rows[r] = {first, count, draft.starts[r], sequence.pages.data()};
        if (shortcut) {
            // Keys hold their rotation already, so that pages can be left out and the others moved together.
            const int from = std::min((shortcut->sinks + kLanes - 1) / kLanes, rows[r].start / kLanes);
            const int to = std::max(from, (rows[r].start - shortcut->recent) / kLanes);
            seen.push_back(sequence.pages);
            seen.back().erase(seen.back().begin() + from, seen.back().begin() + to);
            rows[r].start -= (to - from) * kLanes, rows[r].pages = seen.back().data();
        }
        for (int i = 0; i < count; i++) {
            const int n = first + i, parent = draft.parents[n];
            row_of[n] = r;
            if (i == 0) {
                nodes[n] = {1, 1, nullptr};
            } else if (nodes[parent].linear == nodes[parent].length && parent == n - 1) {
                nodes[n] = {nodes[parent].length + 1, nodes[parent].length + 1, nullptr};
            } else {
                const Node& above = nodes[parent];
                std::vector<int32_t> path(above.path, above.path + (above.length - above.linear));
                path.push_back(i);
                paths.push_back(std::move(path));
                nodes[n] = {above.length + 1, above.linear, paths.back().data()};
            }
        }
    }

    // Larger units share more of their keys and values, but every thread needs about as many as the next one.
    int unit_nodes = kUnitNodes;
    const auto count_units = [&] {
        int count = 0;
        for (const Row& row : rows) count += (row.nodes + unit_nodes - 1) / unit_nodes * record_.kv_heads;
        return count;
    };
    while (unit_nodes > 1 && count_units() < 4 * threads && count_units() % threads) unit_nodes /= 2;
    // Head by head, and to each thread a run of them: so few keys and values are read by two threads.
    std::vector<double> cost{0.0};
    for (int r = 0; r < draft.rows; r++)
        for (int head = 0; head < record_.kv_heads; head++)
            for (int begin = 0; begin < rows[r].nodes; begin += unit_nodes) {
                const int count = std::min(unit_nodes, rows[r].nodes - begin);
                units.push_back({r, rows[r].first + begin, count, head});
                cost.push_back(cost.back() + (double)(rows[r].start + begin + count) * (count + 1));
            }
    std::vector<int32_t> unit_share(threads + 1, (int32_t)units.size());
    for (int t = 0, u = 0; t < threads; t++) {
        while (u < (int)units.size() && cost[u] + (cost[u + 1] - cost[u]) / 2 < cost.back() * t / threads) u++;
        unit_share[t] = u;
    }

    Pass pass{};
    pass.model = &record_;
    pass.nodes = draft.nodes, pass.rows = draft.rows, pass.scored = draft.scored;
    pass.tokens = draft.tokens, pass.features = draft.features, pass.pads = draft.pads, pass.positions = draft.positions, pass.scored_nodes = draft.scored_nodes;
    pass.skipped = shortcut ? shortcut->skipped.data() : nullptr;
    pass.row_of = row_of.data(), pass.row = rows.data(), pass.node = nodes.data(), pass.unit = units.data(), pass.unit_share = unit_share.data();
    pass.keys = keys_.halves(), pass.values = values_.halves(), pass.head_stride = head_stride_;
    pass.logits = logits, pass.logits_stride = logits_stride;
    pass.taps = (int)tap_layers.size(), pass.tap_layers = tap_layers.data(), pass.tap_rows = const_cast<float**>(tap_rows.data());
    pass.barrier = &pool_.barrier;
    pass.stage_seconds = stage_seconds.empty() ? nullptr : stage_seconds.data();
    pass.score_stride = round_up(longest, kLanes);

    std::vector<float*> scratch(threads);
    const int queries = kUnitNodes * group;
    const size_t scratch_floats = std::max<size_t>((size_t)queries * (pass.score_stride + record_.head_dim),
                                                   (size_t)draft.nodes * std::max(2 * kBlocksAtOnce * kLanes, record_.head_dim));
    Arena arena;
    arena.plan(pass.x, (size_t)draft.nodes * record_.hidden);
    if (record_.takes_features) arena.plan(pass.embedded, (size_t)draft.nodes * record_.hidden);
    if (std::any_of(layers_.begin(), layers_.end(), [](const Layer& l) { return l.attention_post_norm || l.ffn_post_norm; }))
        arena.plan(pass.branch, (size_t)draft.nodes * record_.hidden);
    arena.plan(pass.q, (size_t)draft.nodes * record_.heads * record_.head_dim);
    Readers of_normed, of_attended, of_gated;
    of_normed.add(record_.head);
    for (const Layer& layer : layers_) {
        for (const Matrix* matrix : {&layer.q.weights, &layer.k.weights, &layer.v.weights, &layer.gate, &layer.up}) of_normed.add(*matrix);
        of_attended.add(layer.o);
        of_gated.add(layer.down);
    }
    int widest = record_.hidden;
    for (const Layer& layer : layers_) widest = std::max(widest, layer.q.weights.columns);
    plan(arena, pass.normed, draft.nodes, widest, of_normed);
    pass.normed.groups = record_.hidden / kGroup;
    plan(arena, pass.attended, draft.nodes, record_.heads * record_.head_dim, of_attended);
    plan(arena, pass.gated, draft.nodes, record_.ffn, of_gated);
    for (int t = 0; t < threads; t++) arena.plan(scratch[t], scratch_floats);
    arena.allocate();
    if (!record_.takes_features) pass.embedded = pass.x;
    pass.scratch = scratch.data();

    last_mark = std::chrono::steady_clock::now();
    pool_.run([&](int thread) { kernels_.run(pass, thread, threads); });
    if (shortcut) last_slots_.clear();
}

size_t Model::page_at(const Sequence& sequence, int layer, int head, int slot) const {
    return ((size_t)layer * record_.kv_heads + head) * head_stride_ + (size_t)sequence.pages[slot / kLanes] * record_.head_dim * kLanes;
}

void Model::move(const Sequence& sequence, int from, int to) {
    const int dim = record_.head_dim;
    for (int layer = 0; layer < record_.layers; layer++)
        for (int head = 0; head < record_.kv_heads; head++) {
            const auto at = [&](int slot) { return page_at(sequence, layer, head, slot); };
            uint16_t* keys = keys_.halves();
            uint16_t* values = values_.halves();
            for (int d = 0; d < dim; d++) keys[at(to) + (size_t)d * kLanes + to % kLanes] = keys[at(from) + (size_t)d * kLanes + from % kLanes];
            memcpy(values + at(to) + (size_t)(to % kLanes) * dim, values + at(from) + (size_t)(from % kLanes) * dim, dim * 2);
        }
}

void Model::commit(const std::vector<int>& known, const std::vector<std::vector<int>>& kept) {
    if (known.size() != last_slots_.size() || kept.size() != last_slots_.size())
        throw std::invalid_argument("commit has " + std::to_string(known.size()) + " rows, the last forward had " + std::to_string(last_slots_.size()));
    for (size_t r = 0; r < known.size(); r++) {
        int previous = known[r] - 1;
        for (const int node : kept[r]) {
            if (node <= previous || node >= last_sizes_[r]) throw std::invalid_argument("commit: node " + std::to_string(node) + " of row " + std::to_string(r) + " is not below the one before it");
            previous = node;
        }
        if (known[r] < 1 || known[r] > last_sizes_[r]) throw std::invalid_argument("commit: row " + std::to_string(r) + " has no " + std::to_string(known[r]) + " known nodes");
    }
    for (size_t r = 0; r < known.size(); r++) {
        Sequence& sequence = sequences_.at(last_slots_[r]);
        int to = last_starts_[r] + known[r];
        for (const int node : kept[r]) {
            const int from = last_starts_[r] + node;
            if (from != to) move(sequence, from, to);
            to++;
        }
        sequence.length = to;
        for (; (int)sequence.pages.size() * kLanes >= to + kLanes; sequence.pages.pop_back()) pages_.give_back(sequence.pages.back());
    }
    last_slots_.clear();
}

void Model::release(const std::vector<int>& slots) {
    for (const int slot : slots)
        if (const auto found = sequences_.find(slot); found != sequences_.end()) {
            for (auto page = found->second.pages.rbegin(); page != found->second.pages.rend(); page++) pages_.give_back(*page);
            sequences_.erase(found);
        }
}

std::vector<int32_t> Model::pages(int slot) const {
    const auto found = sequences_.find(slot);
    if (found == sequences_.end()) return {};
    return {found->second.pages.begin(), found->second.pages.begin() + found->second.length / kLanes};
}

void Model::adopt(int slot, const std::vector<int32_t>& pages) {
    if (sequences_.count(slot)) throw std::invalid_argument("slot " + std::to_string(slot) + " is in use and cannot adopt pages");
    pages_.share(pages);
    sequences_[slot] = {(int)pages.size() * kLanes, pages};
}

int Model::length(int slot) const {
    const auto found = sequences_.find(slot);
    return found == sequences_.end() ? 0 : found->second.length;
}

void Model::read_cache(int slot, int layer, float* keys, float* values) const {
    const Sequence& sequence = sequences_.at(slot);
    const int dim = record_.head_dim, heads = record_.kv_heads;
    for (int p = 0; p < sequence.length; p++)
        for (int head = 0; head < heads; head++) {
            const size_t at = page_at(sequence, layer, head, p);
            for (int d = 0; d < dim; d++) {
                keys[((size_t)p * heads + head) * dim + d] = half_to_float(keys_.halves()[at + (size_t)d * kLanes + p % kLanes]);
                values[((size_t)p * heads + head) * dim + d] = half_to_float(values_.halves()[at + (size_t)(p % kLanes) * dim + d]);
            }
        }
}

}  // namespace paceline
