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

// The following return false where they were interrupted, and leave anything in what they write.

// Fire masks (steps, count, height, width), 0 or 1, without the cells whose change reaches no cell that is
// wanted, not 0, of the last state; wanted is (count, height, width). What is wanted, and its gradient, does
// not depend on them.
bool reaching_masks(uint8_t* masks, const uint8_t* wanted, const RuleWeights& weights, size_t count,
                    int height, int width, int steps, const Fire& fire, const Interrupt& interrupt = {});

// What a run starts from: a state (count, height / scale, width / scale, channels), whose cells are repeated
// scale x scale times, and an image (count, height, width) that then becomes channel 0; or null.
struct Start {
    const float* state;
    int scale;
    const float* image;
};

// Runs `steps` steps from there, leaves the last state and records the way. The same bits as run. Nobody may
// change fire's masks, samples and slices from here to the end of backward: the record has room for what they
// are now.
bool rollout(const RuleWeights& weights, const Start& start, float* state, Record& record, size_t count,
             int height, int width, int steps, const Fire& fire, int threads,
             const Interrupt& interrupt = {});

// Writes the gradients of a loss with respect to the state that a run started from and to the weights, given
// that with respect to the last state. `state` is what rollout left, `scale`, `has_image`, `record` and
// `fire` are the same. Only cells that fired are visited; their hidden layer is computed again. The result
// does not depend on the number of threads: members of the batch are summed in a fixed number of slots.
// Gradients below the smallest normal number, 1.2e-38, are zero.
bool backward(const RuleWeights& weights, int scale, bool has_image, const float* state, const Record& record,
              const float* gradient, size_t count, int height, int width, int steps, const Fire& fire,
              int threads, float* of_start, const WeightGradients& of_weights,
              const Interrupt& interrupt = {});

} // namespace nca
