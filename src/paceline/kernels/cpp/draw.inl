// Drawing one token: temperature, top-k, top-p and min-p, then the Gumbel-max trick with counter-based noise.
// The slow reference is paceline.sampling; this finds the same token without sorting the vocabulary.
#include <algorithm>

#include "noise.hpp"

namespace {

constexpr double kMassError = 1e-6;      // of exp and of sums over sixteen lanes in float

struct Largest {            // descending by logit, ascending by id
    bool operator()(const Candidate& a, const Candidate& b) const { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }
};

struct Winner {
    double score;
    int id;
    void offer(float logit, int candidate, const DrawOptions& o) {
        const double value = (double)logit / o.temperature + gumbel(noise_bits(o.key, candidate));
        if (value > score || (value == score && candidate < id)) *this = {value, candidate};
    }
};

int find_largest(const float* logits, int vocab) {
    float best = logits[0];
    int i = 0;
    if (vocab >= kLanes) {
        F32 running = load(logits);
        for (i = kLanes; i + kLanes <= vocab; i += kLanes) running = max(running, load(logits + i));
        best = max_lanes(running);
    }
    for (; i < vocab; i++) best = logits[i] > best ? logits[i] : best;
    const F32 target = splat(best);
    for (i = 0; i + kLanes <= vocab; i += kLanes)
        if (const uint32_t mask = mask_greater_equal(load(logits + i), target)) return i + __builtin_ctz(mask);
    for (; i < vocab; i++)
        if (logits[i] >= best) return i;
    return 0;                                                           // every logit is NaN
}

// All tokens with a logit of at least `floor`, in ascending order of id.
int collect(const float* logits, int vocab, float floor, Candidate* out) {
    int count = 0, i = 0;
    const F32 least_logit = splat(floor);
    for (; i + kLanes <= vocab; i += kLanes)
        for (uint32_t mask = mask_greater_equal(load(logits + i), least_logit); mask; mask &= mask - 1) {
            const int id = i + __builtin_ctz(mask);
            out[count++] = {logits[id], id};
        }
    for (; i < vocab; i++)
        if (logits[i] >= floor) out[count++] = {logits[i], i};
    return count;
}

// The k largest, unordered. The k-th largest of the blocks' maxima bounds the k-th largest of all from below.
int keep_top_k(const float* logits, int vocab, int k, Candidate* out) {
    const int blocks = vocab / kLanes;
    float floor = -INFINITY;
    if (k <= blocks) {
        for (int b = 0; b < blocks; b++) out[b] = {max_lanes(load(logits + b * kLanes)), b};
        std::nth_element(out, out + k - 1, out + blocks, Largest());
        floor = out[k - 1].logit;
    }
    const int count = collect(logits, vocab, floor, out);
    if (count > k) std::nth_element(out, out + k - 1, out + count, Largest());
    return least(count, k);
}

// Cuts candidates to the shortest prefix, in descending order, whose mass reaches top_p of `mass`; -1 if that depends on
// the last `slack` of the mass. Sorts only as far as needed.
int keep_top_p(Candidate* candidates, int count, float largest, double top_p, double temperature, double mass, double slack) {
    double reached = 0.0;
    for (int sorted = 0, chunk = 128; sorted < count; chunk *= 2) {
        const int end = least(count, sorted + chunk);
        if (end < count) std::nth_element(candidates + sorted, candidates + end, candidates + count, Largest());
        std::sort(candidates + sorted, candidates + end, Largest());
        for (; sorted < end; sorted++) {
            reached += std::exp((double)candidates[sorted].logit / temperature - (double)largest / temperature);
            if (reached >= top_p * mass * (1.0 - slack)) return reached < top_p * mass * (1.0 + slack) ? -1 : sorted + 1;
        }
    }
    return count;
}

// The mass of all candidates, added up from the largest to the smallest.
double exact_mass(Candidate* candidates, int count, float largest, double temperature) {
    double mass = 0.0;
    std::sort(candidates, candidates + count, Largest());
    for (int i = 0; i < count; i++) mass += std::exp((double)candidates[i].logit / temperature - (double)largest / temperature);
    return mass;
}

// The mass of the whole vocabulary, to kMassError of itself.
double rough_mass(const float* logits, int vocab, float largest, double temperature) {
    const F32 shift = splat(largest), inverse = splat((float)(1.0 / temperature));
    double mass = 0.0;
    int i = 0;
    for (; i + kLanes <= vocab; i += kLanes) mass += sum_lanes(exp((load(logits + i) - shift) * inverse));
    for (; i < vocab; i++) mass += std::exp(((double)logits[i] - largest) / temperature);
    return mass;
}

// The race over the whole vocabulary. A token can only win if its exponential -log(u) is below exp(its score - the best so
// far); as 1 - u is smaller still, comparing 24 bits of it leaves a handful of tokens to be computed exactly.
int race_all(const float* logits, int vocab, int largest, const DrawOptions& o) {
    Winner winner{-INFINITY, vocab};
    winner.offer(logits[largest], largest, o);
    const F32 inverse = splat((float)(1.0 / o.temperature));
    int i = 0;
    for (; i + kLanes <= vocab; i += kLanes) {
        int32_t complement[kLanes];
        for (int lane = 0; lane < kLanes; lane++) complement[lane] = (int32_t)(~noise_bits(o.key, i + lane) >> 40);
        I32 bits;
        __builtin_memcpy(&bits, complement, sizeof bits);
        const F32 bound = exp(fma(load(logits + i), inverse, splat(-(float)winner.score))) * splat(1.01f);
        for (uint32_t mask = mask_greater_equal(bound, to_float(bits) * splat(5.9604644775390625e-8f)); mask; mask &= mask - 1) {
            const int id = i + __builtin_ctz(mask);
            winner.offer(logits[id], id, o);
        }
    }
    for (; i < vocab; i++) winner.offer(logits[i], i, o);
    return winner.id;
}

int draw(const float* logits, int vocab, const DrawOptions& o, Candidate* candidates) {
    const int largest = find_largest(logits, vocab);
    if (o.temperature <= 0.0) return largest;
    const bool top_k = o.top_k > 0 && o.top_k < vocab;
    if (!top_k && o.top_p >= 1.0 && o.min_p <= 0.0) return race_all(logits, vocab, largest, o);

    const float top = logits[largest];
    int count;
    if (top_k) {
        count = keep_top_k(logits, vocab, o.top_k, candidates);
        if (o.top_p < 1.0) count = keep_top_p(candidates, count, top, o.top_p, o.temperature, exact_mass(candidates, count, top, o.temperature), 0.0);
    } else {
        // Tokens below (1 - top_p) / vocab hold less than 1 - top_p together: none of them is in the nucleus.
        double least_weight = o.min_p, mass = 0.0;
        if (o.top_p < 1.0) {
            mass = rough_mass(logits, vocab, top, o.temperature);
            const double outside = (1.0 - o.top_p) * mass / vocab;
            least_weight = outside > least_weight ? outside : least_weight;
        }
        count = collect(logits, vocab, (float)(top + o.temperature * std::log(least_weight * 0.999)), candidates);
        if (o.top_p < 1.0) count = keep_top_p(candidates, count, top, o.top_p, o.temperature, mass, kMassError);
        if (count < 0) {
            count = collect(logits, vocab, -INFINITY, candidates);
            mass = exact_mass(candidates, count, top, o.temperature);
            count = keep_top_p(candidates, count, top, o.top_p, o.temperature, mass, 0.0);
        }
    }
    Winner winner{-INFINITY, vocab};
    for (int i = 0; i < count; i++)
        if (o.min_p <= 0.0 || std::exp((double)candidates[i].logit / o.temperature - (double)top / o.temperature) >= o.min_p)
            winner.offer(candidates[i].logit, candidates[i].id, o);
    return winner.id;
}

}  // namespace
