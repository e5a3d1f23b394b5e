// A dense decoder with a paged key/value cache: what Python holds.
#pragma once
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pages.hpp"
#include "records.hpp"
#include "threads.hpp"

namespace paceline {

// Too many tokens for the cache.
struct CacheFull : std::runtime_error {
    using std::runtime_error::runtime_error;
};

const Kernels& choose_kernels(const std::string& wanted);    // "" picks the best; throws std::invalid_argument
std::vector<std::string> available_kernels();

size_t block_bytes(WeightType type, int columns);
Matrix describe(WeightType type, int rows, int columns, const uint8_t* data);

// Memory of zeros whose pages the system provides when they are first touched.
class LazyMemory {
  public:
    explicit LazyMemory(size_t bytes);
    ~LazyMemory();
    LazyMemory(const LazyMemory&) = delete;
    LazyMemory& operator=(const LazyMemory&) = delete;
    uint16_t* halves() const { return (uint16_t*)data_; }
    float* floats() const { return (float*)data_; }

  private:
    void* data_;
    size_t bytes_;
};

struct Sequence {
    int length = 0;                  // committed tokens
    std::vector<int32_t> pages;
};

// What the rows of a pass look like from outside; see paceline.core.Draft for the meaning.
struct PackedDraft {
    int rows, nodes, scored;
    const int32_t *slots, *offsets, *starts, *tokens, *parents, *positions, *scored_nodes;
    const float* features;           // [nodes][hidden], of a model that takes them, else null
    const float* pads;               // [any][hidden]: what tokens from the vocabulary's end on are embedded as, or null
};

// How a pass is made cheaper, for drafting: layers left out, and tokens of the cache that it does not look at.
struct Shortcut {
    std::vector<uint8_t> skipped;    // [layers]
    int sinks, recent;               // of each row's cache at least so many first and last tokens are seen
};

class Model {
  public:
    // `record` and what it points to must outlive the model.
    // Rotary frequencies [head_dim/2] of layers without a window, and of those with one.
    Model(const ModelRecord& record, std::vector<Layer> layers, std::vector<double> frequencies, std::vector<double> window_frequencies, int cache_pages,
          int max_positions, int threads, const std::string& isa);

    // Fills logits [scored][rows of the head], logits_stride apart, and tap_rows[t] [nodes][hidden]. Throws CacheFull before anything changed.
    // A pass with a shortcut cannot be committed.
    void forward(const PackedDraft& draft, float* logits, size_t logits_stride, const std::vector<int32_t>& tap_layers, const std::vector<float*>& tap_rows,
                 const Shortcut* shortcut = nullptr);

    // Keeps, for row r of the last forward, its first `known[r]` nodes and then the nodes kept[r], numbered within the
    // row, root first. Pages that held only others are free again.
    void commit(const std::vector<int>& known, const std::vector<std::vector<int>>& kept);

    void release(const std::vector<int>& slots);

    // Sharing pages; see paceline.core.PageSharing. They throw std::invalid_argument.
    std::vector<int32_t> pages(int slot) const;
    void adopt(int slot, const std::vector<int32_t>& pages);
    void hold(const std::vector<int32_t>& pages) { pages_.hold(pages); }
    void drop(const std::vector<int32_t>& pages) { pages_.drop(pages); }

    int free_pages() const { return pages_.free(); }
    int length(int slot) const;
    // Committed keys and values of one layer as float [length][kv_heads][head_dim]. For tests.
    void read_cache(int slot, int layer, float* keys, float* values) const;

    const Kernels& kernels() const { return kernels_; }
    const ModelRecord& record() const { return record_; }
    int threads() const { return pool_.size(); }
    std::vector<double> stage_seconds;     // empty = not measured, else one sum per Stage

  private:
    void reserve(Sequence& sequence, int tokens);
    void fill_rotations(int positions);
    void move(const Sequence& sequence, int from, int to);
    size_t page_at(const Sequence& sequence, int layer, int head, int slot) const;

    ModelRecord record_;
    std::vector<Layer> layers_;
    const Kernels& kernels_;
    std::shared_ptr<ThreadPool> shared_pool_;
    ThreadPool& pool_;
    std::vector<double> frequencies_[2];
    LazyMemory rotations_[2];        // cos, then sin
    int max_positions_, filled_positions_ = 0;
    size_t head_stride_;
    LazyMemory keys_, values_;
    std::map<int, Sequence> sequences_;
    Pages pages_;
    std::vector<int> last_slots_, last_starts_, last_sizes_;     // rows of the last forward, for commit
};

}  // namespace paceline
