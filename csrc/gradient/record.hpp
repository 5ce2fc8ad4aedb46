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

    // How many cells of a member fire in a step: to be said of all before there is room for any.
    void expect(int step, size_t member, size_t cells) { ends_[step * count_ + member + 1] = cells; }
    void make_room();
    // Where their states are, in the order in which they are visited, and what they perceived: null where
    // that is not remembered.
    float* states(int step, size_t member) const { return states_ + first(step, member) * channels_; }
    float* perceived(int step, size_t member) const {
        return perceived_ ? perceived_ + first(step, member) * 2 * channels_ : nullptr;
    }

  private:
    size_t first(int step, size_t member) const { return ends_[step * count_ + member]; }

    size_t count_ = 0;
    int channels_ = 0;
    bool remembers_perceived_ = false;
    std::vector<size_t> ends_; // after a 0, in cells
    std::unique_ptr<float[], KeepSpare> memory_;
    float *states_ = nullptr, *perceived_ = nullptr; // on cache lines of their own
};

} // namespace nca
