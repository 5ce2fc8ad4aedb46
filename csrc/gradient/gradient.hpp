// The gradient of a run: back-propagation through time of the step in sweep.cpp.
#pragma once

#include "../nca.hpp"
#include "record.hpp"

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

// Runs `steps` steps in place and records them. The same bits as run.
void rollout(const RuleWeights& weights, float* state, Record& record, size_t count, int height, int width,
             int steps, const Fire& fire, int threads);

// Turns the gradient of a loss with respect to the last state into that with respect to the first, in place,
// and writes the gradient of the weights. `state` is what rollout left, `record` and `fire` are the same.
// Only cells that fired are visited; their hidden layer is computed again. The result does not depend on the
// number of threads: members of the batch are summed in a fixed number of slots. Gradients below the smallest
// normal number, 1.2e-38, are zero.
void backward(const RuleWeights& weights, const float* state, const Record& record, float* gradient,
              size_t count, int height, int width, int steps, const Fire& fire, int threads,
              const WeightGradients& out);

} // namespace nca
