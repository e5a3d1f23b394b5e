#include "lookups.hpp"

#include <algorithm>
#include <cmath>
#include <queue>
#include <stdexcept>

namespace paceline {
namespace {

constexpr size_t kLongest = 16;         // tokens in front of a place that count in an index
constexpr double kUnseenWeight = 0.1;

}  // namespace

void Text::extend(const std::vector<int32_t>& tokens) {
    for (const int32_t token : tokens) {
        if (!text_.empty()) followers_[text_.back()].push_back((int32_t)text_.size());
        text_.push_back(token);
    }
    tokens_ = text_.data(), size_ = (int64_t)text_.size();
}

std::vector<Match> Text::matches(const std::vector<int32_t>& ending, int64_t most) const {
    std::vector<Match> found;
    const auto behind = followers_.find(ending[0]);
    if (behind == followers_.end()) return found;
    const std::vector<int32_t>& places = behind->second;
    for (size_t i = places.size(); i-- > 0 && (int64_t)found.size() < most;) {
        int agreed = 1;
        for (int64_t before = places[i] - 2; agreed < (int)ending.size() && before >= 0 && text_[before] == ending[agreed]; before--) agreed++;
        found.push_back({agreed, places[i]});
    }
    return found;
}

Index::Index(const int32_t* tokens, int64_t size, const int32_t* order, int64_t places, const int32_t* starts, int64_t vocabulary)
    : order_(order), starts_(starts), places_(places), vocabulary_(vocabulary) {
    tokens_ = tokens, size_ = size;
}

std::vector<std::pair<int64_t, int64_t>> Index::ranges(const std::vector<int32_t>& ending) const {
    std::vector<std::pair<int64_t, int64_t>> found;
    if (ending[0] < 0 || ending[0] >= vocabulary_) return found;
    int64_t low = std::max(0, starts_[ending[0]]), high = std::min<int64_t>(starts_[ending[0] + 1], places_);
    while (low < high) {
        found.push_back({low, high});
        const size_t length = found.size();
        if (length == std::min(ending.size(), kLongest)) break;
        const auto before = [&](int32_t place) { return at((int64_t)place - 1 - (int64_t)length); };
        const int32_t wanted = ending[length];
        const int32_t* begin = std::lower_bound(order_ + low, order_ + high, wanted, [&](int32_t place, int32_t token) { return before(place) < token; });
        const int32_t* end = std::upper_bound(begin, order_ + high, wanted, [&](int32_t token, int32_t place) { return token < before(place); });
        low = begin - order_, high = end - order_;
    }
    return found;
}

std::vector<Match> Index::matches(const std::vector<int32_t>& ending, int64_t most) const {
    std::vector<Match> found;
    const auto levels = ranges(ending);
    const auto take = [&](int agreed, int64_t first, int64_t last) {
        const int64_t left = most - (int64_t)found.size(), wanted = std::max<int64_t>(1, left);
        const int64_t step = std::max<int64_t>(1, (last - first + wanted - 1) / wanted);
        for (int64_t i = first; i < last && (int64_t)found.size() < most; i += step) found.push_back({agreed, order_[i]});
    };
    std::pair<int64_t, int64_t> inner{0, 0};
    for (size_t agreed = levels.size(); agreed > 0; agreed--) {
        const auto& [low, high] = levels[agreed - 1];
        if (inner.second) {             // those of the narrower range have been taken
            take((int)agreed, low, inner.first);
            take((int)agreed, inner.second, high);
        } else {
            take((int)agreed, low, high);
        }
        inner = levels[agreed - 1];
    }
    return found;
}

Continuations::Continuations(std::vector<int32_t> ending) : ending_(std::move(ending)) {
    if (ending_.empty()) throw std::invalid_argument("a text that goes on has a last token");
}

void Continuations::look_in(const Source& source, int64_t most, double weight) {
    for (const Match& match : source.matches(ending_, most)) add(source, match.place, match.agreed, weight * std::ldexp(1.0, match.agreed));
}

void Continuations::add(const Source& source, int64_t place, int agreed, double weight) {
    longest_ = std::max(longest_, agreed);
    places_.push_back({weight, &source, place});
}

std::vector<Continuations::Place> Continuations::relative() const {
    double heaviest = places_.empty() ? 1.0 : places_[0].weight;
    for (const Place& place : places_) heaviest = std::max(heaviest, place.weight);
    std::vector<Place> places = places_;
    for (Place& place : places) place.weight /= heaviest;
    return places;
}

// Fills `followers`, and behind the pool's end the places behind them, for the places pool[first : first + count];
// returns what the followers' weights are to be multiplied with.
double Continuations::following(std::vector<Place>& pool, size_t first, size_t count, int agreed, std::vector<Follower>& followers) {
    followers.clear();
    thread_local std::vector<int32_t> follower_of;      // of each place, -1: none
    follower_of.assign(count, -1);
    double total = kUnseenWeight;
    for (size_t i = 0; i < count; i++) {
        const Place& place = pool[first + i];
        const int32_t token = place.source->at(place.place);
        if (token < 0) continue;
        total += place.weight;
        size_t f = 0;
        while (f < followers.size() && followers[f].token != token) f++;
        if (f == followers.size()) followers.push_back({token, 0.0, 0, 0});
        followers[f].weight += place.weight, followers[f].count++;
        follower_of[i] = (int32_t)f;
    }
    size_t end = pool.size();
    for (Follower& follower : followers) follower.first = end, end += follower.count, follower.count = 0;
    pool.resize(end);
    for (size_t i = 0; i < count; i++)
        if (follower_of[i] >= 0) {
            Follower& follower = followers[follower_of[i]];
            const Place& place = pool[first + i];
            pool[follower.first + follower.count++] = {place.weight, place.source, place.place + 1};
        }
    return (1 - 1.5 / (agreed + 2)) / total;
}

std::vector<std::pair<int32_t, double>> Continuations::first() const {
    std::vector<Place> pool = relative();
    std::vector<Follower> followers;
    const double share = following(pool, 0, pool.size(), longest_, followers);
    std::vector<std::pair<int32_t, double>> tokens;
    for (const Follower& follower : followers) tokens.push_back({follower.token, share * follower.weight});
    return tokens;
}

Grown Continuations::tree(int nodes, int depth, double min_probability, const std::vector<double>& scales) const {
    struct Candidate {
        double reached;
        int order, parent, level;
        double confidence;
        Follower follower;
        bool operator<(const Candidate& other) const { return reached < other.reached || (reached == other.reached && order > other.order); }
    };
    Grown grown;
    std::vector<Place> pool = relative();
    std::vector<Follower> followers;
    std::priority_queue<Candidate> heap;
    size_t first = 0, count = pool.size();
    int order = 0, parent = -1, level = 0;
    double probability = 1.0;
    while (true) {
        if (level < depth) {
            const int agreed = longest_ + level;
            const double scale = scales.empty() ? 1.0 : scales[std::min((size_t)agreed, scales.size() - 1)];
            const double share = following(pool, first, count, agreed, followers);
            for (const Follower& follower : followers) {
                const double confidence = scale * (share * follower.weight);
                heap.push({probability * confidence, ++order, parent, level + 1, confidence, follower});
            }
        }
        if (heap.empty() || (int)grown.tokens.size() == nodes) break;
        const Candidate next = heap.top();
        heap.pop();
        if (next.reached < min_probability * (double)(grown.tokens.size() + 1)) break;
        probability = next.reached, parent = (int)grown.tokens.size(), level = next.level;
        first = next.follower.first, count = next.follower.count;
        grown.tokens.push_back(next.follower.token);
        grown.parents.push_back(next.parent);
        grown.confidences.push_back(next.confidence);
    }
    return grown;
}

}  // namespace paceline
