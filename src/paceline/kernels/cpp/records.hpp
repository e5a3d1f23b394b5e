// Plain records shared by the model and the kernels of every instruction set. No templates of the standard
// library here: these headers are compiled with different machine flags, and shared inline code would mix them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace paceline {

constexpr int kLanes = 16;   // outputs of one weight block, positions of one cache page
constexpr int kGroup = 32;   // weights and activations that share a scale

enum class WeightType : int { Q8_0, Q4_0, Q4_1 };

// A weight matrix, packed in blocks of 16 output rows. One block of a matrix with `groups` groups of 32 columns:
//   scales  half [groups][16]   d
//   minima  half [groups][16]   m, Q4_1 only
//   numbers Q8_0: uint8 [groups][8][16][4], the number plus 128; column g*32 + i*4 + j is at [g][i][row][j]
//           4-bit: uint8 [groups][4][16][4], column g*32 + i*8 + j in the low half of a byte at [g][i][row][j],
//           column g*32 + i*8 + 4 + j in its high half
// Every part starts at a multiple of 64 bytes.
struct Matrix {
    WeightType type;
    int rows, columns;         // of the matrix itself; the last block is padded with rows of zeros
    const uint8_t* data;
    size_t block_bytes, minima_at, numbers_at;   // size of a block and offsets inside it
};

struct Layer {
    const float* attention_norm;
    Matrix q, k, v, o;
    const float* ffn_norm;
    Matrix gate, up, down;
};

struct ModelRecord {
    int hidden, layers, heads, kv_heads, head_dim, ffn, vocab;
    float norm_eps;
    const Layer* layer;
    const float* output_norm;
    Matrix embedding, head;
    const float* rope_cos;      // [max_positions][head_dim], each value twice, for pairs (2i, 2i+1)
    const float* rope_sin;      // the same, the first of each pair negated
};

// Activations as 8-bit numbers with one scale per group of 32. Rows lie in tiles of as many as a kernel multiplies at
// once, and inside a tile group by group, so that a kernel finds all its rows at constant offsets from one pointer.
struct Quantised {
    int8_t* numbers;            // [tiles][groups][tile][32]
    float* scales;              // [tiles][groups][tile]
    int32_t* sums;              // [tiles][groups][tile]: sum of the group's numbers
    float* scaled_sums;         // [tiles][groups][tile]: scale times sum
    int groups, tile;
    size_t at(int row, int group) const { return ((size_t)(row / tile) * groups + group) * tile + row % tile; }
};

// Rows of memory that hold `rows` rows in tiles of any size up to 16: the last tile may be partly unused.
inline int padded_rows(int rows) { return rows + (rows < 16 ? rows : rows / 2) + 16; }

// One sequence's part of a pass.
struct Row {
    int first, nodes;           // its nodes are [first, first + nodes)
    int start;                  // tokens in the cache before this pass
    const int32_t* pages;       // the pages of this sequence, in order of position
};

// One node of a pass. Its keys are the positions [0, start + length): the cache, then its ancestors and itself.
// The cache slot of position start + j is start + j for j < linear, and start + path[j - linear] after that.
struct Node {
    int length, linear;
    const int32_t* path;
};

constexpr int kUnitNodes = 4;           // most nodes of one attention unit
constexpr int kBlocksAtOnce = 4;        // most blocks multiplied before their results are used

// Attention work: the nodes [first, first + nodes) of a row, for one key/value head.
struct AttentionUnit {
    int row, first, nodes, kv_head;
};

struct Barrier;

// Everything a thread needs for one pass.
struct Pass {
    const ModelRecord* model;
    int nodes, rows, scored;
    const int32_t* tokens;      // [nodes]
    const int32_t* positions;   // [nodes]
    const int32_t* row_of;      // [nodes]
    const Row* row;             // [rows]
    const Node* node;           // [nodes]
    const AttentionUnit* unit;  // thread t attends to the units [unit_share[t], unit_share[t + 1])
    const int32_t* unit_share;
    const int32_t* scored_nodes;// [scored]
    uint16_t* keys;             // half [layers][kv_heads][pages][head_dim][16]
    uint16_t* values;           // half [layers][kv_heads][pages][16][head_dim]
    size_t head_stride;         // elements of one head's keys, and of its values
    float* x;                   // [nodes][hidden]: the residual stream
    float* q;                   // [nodes][heads*head_dim]
    Quantised normed;           // [nodes], hidden columns; the kernels choose the tiles of all three
    Quantised attended;         // [nodes], heads*head_dim columns
    Quantised gated;            // [nodes], ffn columns
    float** scratch;            // one per thread: see scratch_floats
    size_t score_stride;        // floats between the attention scores of two queries
    float* logits;              // [scored][logits_stride]
    size_t logits_stride;
    int taps;
    const int32_t* tap_layers;  // [taps]: k = after k layers; 0 = the embeddings
    float** tap_rows;           // [taps] -> [nodes][hidden]
    Barrier* barrier;
    double* stage_seconds;      // [kStages] or null: filled by thread 0
};

enum Stage { kEmbed, kQkv, kAttention, kOutput, kGateUp, kDown, kHead, kStages };

struct DrawOptions {
    double temperature, top_p, min_p;
    int top_k;
    uint64_t key;
};

// Room for a draw's candidates: at least `vocab` of these.
struct Candidate {
    float logit;
    int id;
};

// The functions that exist once per instruction set.
struct Kernels {
    const char* name;
    void (*run)(const Pass& pass, int thread, int threads);
    int (*draw)(const float* logits, int vocab, const DrawOptions& options, Candidate* workspace);
    void (*matmul)(const Matrix& matrix, const float* x, int rows, Quantised room, float* out, size_t out_stride);
    uint64_t (*read_memory)(const uint8_t* data, size_t bytes);
};

void wait(Barrier& barrier);
void mark(const Pass& pass, Stage stage);       // adds the time since the last mark to a stage

}  // namespace paceline
