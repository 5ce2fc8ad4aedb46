// What a run leaves for its gradient.
#pragma once

#include <memory>
#include <vector>

#include "../nca.hpp"

namespace nca {

// The memory of a record that is gone may be kept for the next one: to get a page from the system costs more
// than to fill it. It is kept between a call with true and one with false, in any number and order.
void reuse_memory(bool more);

struct KeepSpare {
    size_t floats = 0;
    void operator()(float* p) const;
};

// What each step found where cells fired: their state, so that a step can be undone, and for rules that learn
// to perceive what they perceived: to compute it again costs more than to remember it.
class Record {
  public:
    Record() = default;
    Record(const RuleWeights& weights, size_t count, int steps);

    int length() const { return length_; } // floats of a cell
    // How many cells of a member fire in a step: to be said of all before there is room for any.
    void expect(int step, size_t member, size_t cells) { ends_[step * count_ + member + 1] = cells; }
    void make_room();
    // Where they are, in the order in which they are visited.
    float* at(int step, size_t member) const {
        return cells_.get() + ends_[step * count_ + member] * length_;
    }

  private:
    size_t count_ = 0;
    int length_ = 0;
    std::vector<size_t> ends_; // after a 0, in cells
    std::unique_ptr<float[], KeepSpare> cells_;
};

} // namespace nca
