// Looking up where a text may go on: what paceline/lookups/reference.py does, number for number.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace paceline {

constexpr int32_t kBoundary = -1;       // follows nothing, as all negative tokens

struct Match {
    int agreed;
    int32_t place;
};

// A text that can be asked where the last tokens of another one stood, newest first.
class Source {
  public:
    virtual ~Source() = default;
    virtual std::vector<Match> matches(const std::vector<int32_t>& ending, int64_t most) const = 0;
    int32_t at(int64_t place) const { return place >= 0 && place < size_ ? tokens_[place] : kBoundary; }

  protected:
    const int32_t* tokens_ = nullptr;
    int64_t size_ = 0;
};

class Text : public Source {
  public:
    void extend(const std::vector<int32_t>& tokens);
    std::vector<Match> matches(const std::vector<int32_t>& ending, int64_t most) const override;
    const std::vector<int32_t>& tokens() const { return text_; }

  private:
    std::vector<int32_t> text_;
    std::unordered_map<int32_t, std::vector<int32_t>> followers_;
};

// Arrays of somebody else, who keeps them.
class Index : public Source {
  public:
    Index(const int32_t* tokens, int64_t size, const int32_t* order, int64_t places, const int32_t* starts, int64_t vocabulary);
    std::vector<Match> matches(const std::vector<int32_t>& ending, int64_t most) const override;

  private:
    std::vector<std::pair<int64_t, int64_t>> ranges(const std::vector<int32_t>& ending) const;
    const int32_t* order_;
    const int32_t* starts_;
    int64_t places_, vocabulary_;
};

struct Grown {
    std::vector<int32_t> tokens, parents;
    std::vector<double> confidences;
};

class Continuations {
  public:
    explicit Continuations(std::vector<int32_t> ending);
    void look_in(const Source& source, int64_t most, double weight);
    void add(const Source& source, int64_t place, int agreed, double weight);
    std::vector<std::pair<int32_t, double>> first() const;
    Grown tree(int nodes, int depth, double min_probability, const std::vector<double>& scales) const;
    int longest() const { return longest_; }

  private:
    struct Place {
        double weight;
        const Source* source;
        int64_t place;
    };
    // A candidate, and where the places behind it lie in `pool`.
    struct Follower {
        int32_t token;
        double weight;
        size_t first, count;
    };
    static double following(std::vector<Place>& pool, size_t first, size_t count, int agreed, std::vector<Follower>& followers);
    std::vector<Place> relative() const;

    std::vector<int32_t> ending_;
    std::vector<Place> places_;
    int longest_ = 0;
};

}  // namespace paceline
