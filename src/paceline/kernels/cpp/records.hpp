// Plain records shared by the model and the kernels of every instruction set. No templates of the standard
// library here: these headers are compiled with different machine flags, and shared inline code would mix them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace paceline {

constexpr int kLanes = 16;   // outputs of one weight block, positions of one cache page
constexpr int kGroup = 32;   // weights and activations that share a scale

enum class WeightType : int { Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, F16, BF16, F32, kCount };

// What the kernels must know of a weight type. A weight is scale * (number - offset) + minimum, where scales and minima
// are halves, each times an 8-bit part in the types that have parts; or it is a float, and `bits` is its width.
struct Format {
    const char* name;
    int bits;                   // of a number: 4, 5, 6 or 8; of a float: 16 or 32
    int offset;
    bool minima;
    int span;                   // columns that share a half
    int part;                   // columns that share a part; 0: no parts
};

constexpr Format kFormats[] = {
    {"Q8_0", 8, 128, false, 32, 0}, {"Q4_0", 4, 8, false, 32, 0},   {"Q4_1", 4, 0, true, 32, 0},    {"Q5_0", 5, 16, false, 32, 0},
    {"Q5_1", 5, 0, true, 32, 0},    {"Q4_K", 4, 0, true, 256, 32},  {"Q5_K", 5, 0, true, 256, 32},  {"Q6_K", 6, 32, false, 256, 16},
    {"F16", 16, 0, false, 0, 0},    {"BF16", 16, 0, false, 0, 0},   {"F32", 32, 0, false, 0, 0},
};
static_assert(sizeof(kFormats) / sizeof(kFormats[0]) == (size_t)WeightType::kCount, "every type has its line");

constexpr const Format& format_of(WeightType type) { return kFormats[(int)type]; }
constexpr bool holds_floats(WeightType type) { return format_of(type).span == 0; }

// A weight matrix, packed in blocks of 16 output rows. One block holds, each starting at a multiple of 64 bytes:
//   scales        half [columns/span][16]
//   minima        half [columns/span][16]; of types with parts the file's number with its sign turned
//   part scales   int8 [columns/part][16]
//   part minima   int8 [columns/part][16]
//   numbers       8 bits: uint8 [groups][8][16][4], column g*32 + q*4 + j of a row at [g][q][row][j]
//                 4 to 6 bits: per group of 32 columns
//                     uint8 [4][16][4], the low four bits: column q*4 + j at [q/2][row][j], in the low half of the byte for
//                         even q, in the high half for odd q
//                     uint8 [bits - 4][16][4], the others: column q*4 + j at [q*(bits-4)/8][row][j], from bit q*(bits-4)%8 on
//                 floats: [columns][16]
// What a type does not have takes no room.
struct Matrix {
    WeightType type;
    int rows, columns;         // of the matrix itself; the last block is padded with rows of zeros
    const uint8_t* data;
    size_t block_bytes;        // size of a block, and offsets inside it
    size_t minima_at, parts_at, part_minima_at, numbers_at;
};

// A projection of queries, keys or values, and what happens to its outputs.
struct Projection {
    Matrix weights;
    const float* bias;          // [heads*head_dim]; null: none
    const float* norm;          // [head_dim]: RMS norm of each head; null: none
};

// Rotary factors by position, for pairs (2i, 2i+1). They are filled as far as sequences have grown.
struct Rotation {
    const float* cos;           // [max_positions][head_dim], each value twice
    const float* sin;           // the same, the first of each pair negated
};

struct Layer {
    const float* attention_norm;        // null: the residual stream is read as it is
    const float* token_norm;            // of the tokens' embeddings, which q, k and v read in front of the residual stream,
                                        // in columns of their own; null: they do not read them
    Projection q, k, v;
    Matrix o;
    const float* attention_post_norm;   // of what attention adds to the residual stream; null: none
    const float* ffn_norm;
    Matrix gate, up, down;
    const float* ffn_post_norm;         // of what the feed-forward part adds; null: none
    int window;                 // positions that a node sees, its own included
    Rotation rotation;
};

constexpr int kNoWindow = 1 << 30;      // more than there can be

struct ModelRecord {
    int hidden, layers, heads, kv_heads, head_dim, ffn, vocab;
    float norm_eps, embedding_scale, query_scale;
    bool gelu;                  // the gate's activation: GELU in its tanh form, or SiLU
    const Layer* layer;
    bool takes_features;        // the residual stream starts as features that the caller gives, not as embeddings
    const float* feature_norm;  // RMS norm of those features; null: none
    const float* output_norm;
    Matrix embedding, head;
};

// Activations as 8-bit numbers with one scale per group of 32. Rows lie in tiles of as many as a kernel multiplies at
// once, and inside a tile group by group, so that a kernel finds all its rows at constant offsets from one pointer.
struct Quantised {
    int8_t* numbers;            // [tiles][groups][tile][32]
    float* scales;              // [tiles][groups][tile]
    int32_t* sums;              // [tiles][groups][tile]: sum of the group's numbers
    float* scaled_sums;         // [tiles][groups][tile]: scale times sum
    int32_t* half_sums;         // [tiles][groups][tile]: sum of the group's first 16 numbers; null if no matrix has parts of 16
    float* values;              // [tiles][groups][tile][32]: the activations themselves; null if no matrix holds floats
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
    const float* features;      // [nodes][hidden]: what the residual stream starts as; null: the embeddings
    const float* pads;          // [any][hidden]: what tokens from the vocabulary's end on are embedded as
    const int32_t* positions;   // [nodes]
    const int32_t* row_of;      // [nodes]
    const Row* row;             // [rows]
    const Node* node;           // [nodes]
    const AttentionUnit* unit;  // thread t attends to the units [unit_share[t], unit_share[t + 1])
    const int32_t* unit_share;
    const int32_t* scored_nodes;// [scored]
    const uint8_t* skipped;     // [layers]: whether a layer is left out; null: none is
    uint16_t* keys;             // half [layers][kv_heads][pages][head_dim][16]
    uint16_t* values;           // half [layers][kv_heads][pages][16][head_dim]
    size_t head_stride;         // elements of one head's keys, and of its values
    float* x;                   // [nodes][hidden]: the residual stream
    float* embedded;            // [nodes][hidden]: the tokens' embeddings where features are given, else x
    float* branch;              // [nodes][hidden]: what is added to it after a norm; null if no layer has such a norm
    float* q;                   // [nodes][heads*head_dim]
    Quantised normed;           // [nodes], hidden columns, twice as many where a layer reads embeddings; the kernels
                                // choose the tiles of all three
    Quantised attended;         // [nodes], heads*head_dim columns
    Quantised gated;            // [nodes], ffn columns
    float** scratch;            // one per thread: see scratch_floats
    size_t score_stride;        // floats between the attention scores of two queries
    float* logits;              // [scored][logits_stride]
    size_t logits_stride;
    int taps;
    const int32_t* tap_layers;  // [taps]: k = after k layers; 0 = the embeddings, layers + 1 = behind the last norm
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
