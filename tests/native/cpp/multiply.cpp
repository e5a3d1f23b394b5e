// Products and draws for a test on another machine: reads cases from standard input and writes results to standard
// output, for the instruction set named first. See ../test_neon.py.
#include <cstdio>
#include <cstring>
#include <vector>

#include "model.hpp"

using namespace paceline;

namespace {
template <typename T>
bool read(T* to, size_t count) { return fread(to, sizeof(T), count, stdin) == count; }
template <typename T>
void write(const T* from, size_t count) { fwrite(from, sizeof(T), count, stdout); }

struct Case {
    char type[8];               // a weight type, or "draw"
    int32_t rows, columns, n;   // n rows of activations; for a draw the vocabulary is `columns`
};

void multiply(const Kernels& kernels, const Case& c, WeightType type) {
    const int blocks = (c.rows + kLanes - 1) / kLanes, groups = c.columns / kGroup;
    std::vector<uint8_t> packed(block_bytes(type, c.columns) * blocks);
    std::vector<float> x((size_t)c.n * c.columns), out((size_t)c.n * blocks * kLanes);
    if (!read(packed.data(), packed.size()) || !read(x.data(), x.size())) return;
    const size_t padded = (size_t)padded_rows(c.n) * groups;
    std::vector<int8_t> numbers(padded * kGroup);
    std::vector<float> scales(padded), scaled_sums(padded), values(padded * kGroup);
    std::vector<int32_t> sums(padded), half_sums(padded);
    const Quantised room{numbers.data(), scales.data(), sums.data(), scaled_sums.data(), half_sums.data(), values.data(), groups, 1};
    kernels.matmul(describe(type, c.rows, c.columns, packed.data()), x.data(), c.n, room, out.data(), (size_t)blocks * kLanes);
    write(out.data(), out.size());
}

void draw(const Kernels& kernels, const Case& c) {
    std::vector<float> logits(c.columns);
    std::vector<Candidate> room(c.columns);
    DrawOptions options;
    if (!read(&options, 1) || !read(logits.data(), logits.size())) return;
    const int32_t token = kernels.draw(logits.data(), c.columns, options, room.data());
    write(&token, 1);
}
}  // namespace

int main(int, char** arguments) {
    const Kernels& kernels = choose_kernels(arguments[1]);
    for (Case c; read(&c, 1);) {
        if (!strcmp(c.type, "draw")) draw(kernels, c);
        for (int type = 0; type < (int)WeightType::kCount; type++)
            if (!strcmp(c.type, kFormats[type].name)) multiply(kernels, c, (WeightType)type);
    }
}
