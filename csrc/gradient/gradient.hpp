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

// What the cells that fired perceived in each step, for rules that learn to: to compute it again costs more
// than to remember it. There is room for all cells, but what no cell needs is never touched.
class Perceived {
  public:
    Perceived() = default;
    Perceived(const RuleWeights& weights, size_t count, int height, int width, int steps);

    // Where a member's cells of a step begin; null if nothing is remembered.
    float* at(int step, size_t member) const {
        return steps_.empty() ? nullptr : steps_[step].get() + member * member_floats_;
    }

  private:
    std::vector<std::unique_ptr<float[]>> steps_;
    size_t member_floats_ = 0;
};

// Runs `steps` steps and keeps every state: states is (steps + 1, count, height, width, channels), the first
// given. The same bits as run.
void rollout(const RuleWeights& weights, float* states, const Perceived& perceived, size_t count, int height,
             int width, int steps, const Fire& fire, int threads);

// Turns the gradient of a loss with respect to the last state into that with respect to the first, in place,
// and writes the gradient of the weights. `states` and `perceived` are those of rollout, `fire` the same.
// Only cells that fired are visited; their hidden layer is computed again. The result does not depend on the
// number of threads: members of the batch are summed in a fixed number of slots.
void backward(const RuleWeights& weights, const float* states, const Perceived& perceived, float* gradient,
              size_t count, int height, int width, int steps, const Fire& fire, int threads,
              const WeightGradients& out);

} // namespace nca
