// The gradient of a run: back-propagation through time of the step in sweep.cpp.
#pragma once

#include <memory>
#include <vector>

#include "../nca.hpp"

namespace nca {

// Gradients of the weights, in RuleWeights' shapes; p0 and p1 for conv only.
struct WeightGradients {
    float *p0_weight, *p0_bias, *p1_weight, *p1_bias;
    float *fc0_weight, *fc0_bias;
    float* fc1_weight;
};

// Fire masks (steps, count, height, width) without the cells whose change reaches no cell that is wanted of
// the last state; wanted is (count, height, width). What is wanted, and its gradient, does not depend on
// them.
void reaching_masks(uint8_t* masks, const uint8_t* wanted, const RuleWeights& weights, size_t count,
                    int height, int width, int steps, const Fire& fire);

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

// Runs `steps` steps in place and records them. The same bits as run.
void rollout(const RuleWeights& weights, float* state, Record& record, size_t count, int height, int width,
             int steps, const Fire& fire, int threads);

// Turns the gradient of a loss with respect to the last state into that with respect to the first, in place,
// and writes the gradient of the weights. `state` is what rollout left, `record` and `fire` are the same.
// Only cells that fired are visited; their hidden layer is computed again. The result does not depend on the
// number of threads: members of the batch are summed in a fixed number of slots.
void backward(const RuleWeights& weights, const float* state, const Record& record, float* gradient,
              size_t count, int height, int width, int steps, const Fire& fire, int threads,
              const WeightGradients& out);

} // namespace nca
