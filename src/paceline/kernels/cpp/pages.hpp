// The books of a paged cache: which pages are free, and who has the others. See paceline.core.PageSharing.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace paceline {

class Pages {
  public:
    explicit Pages(int count) : uses_(count), held_(count) {
        for (int page = count; page-- > 0;) free_.push_back(page);
    }

    int free() const { return (int)free_.size(); }

    // A free page; there must be one.
    int32_t take() {
        const int32_t page = free_.back();
        free_.pop_back();
        uses_[page] = 1;
        return page;
    }
    void give_back(int32_t page) {
        if (--uses_[page] == 0) free_.push_back(page);
    }

    // One more sequence has each of these.
    void share(const std::vector<int32_t>& pages) {
        check(pages);
        for (const int32_t page : pages) uses_[page]++;
    }
    void hold(const std::vector<int32_t>& pages) {
        share(pages);
        for (const int32_t page : pages) held_[page]++;
    }
    void drop(const std::vector<int32_t>& pages) {
        for (const int32_t page : pages) {
            if (page < 0 || page >= (int32_t)held_.size() || !held_[page]) throw std::invalid_argument("page " + std::to_string(page) + " is not held");
            held_[page]--;
            give_back(page);
        }
    }

  private:
    void check(const std::vector<int32_t>& pages) const {
        for (const int32_t page : pages)
            if (page < 0 || page >= (int32_t)uses_.size() || !uses_[page]) throw std::invalid_argument("page " + std::to_string(page) + " is free");
    }

    std::vector<int32_t> free_, uses_, held_;    // uses: sequences that have the page, and holders
};

}  // namespace paceline
