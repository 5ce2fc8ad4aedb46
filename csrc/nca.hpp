// The core's whole public face. Knows nothing of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "dispatch.hpp"
#include "fire.hpp"

namespace nca {

enum class Perception { sobel, conv };
enum class Padding { zero, reflect };

// One update: perception, fc0, fc1, fire rate, padding. Weights are read once and packed for the kernels that
// are active then.
struct RuleWeights {
    Perception perception;
    Padding padding;
    int channels, input_channels, hidden, kernel_size;
    double fire_rate;
    // conv only: kernels (C, C, k, k) in the state's axes, biases (C)
    const float *p0_weight, *p0_bias, *p1_weight, *p1_bias;
    const float *fc0_weight, *fc0_bias; // (hidden, 3C), (hidden)
    const float* fc1_weight;            // (C, hidden)
};

class Rule {
  public:
    explicit Rule(const RuleWeights& weights);
    ~Rule();
    Rule(Rule&&) noexcept;

    struct Packed;
    const Packed& packed() const { return *packed_; }

  private:
    std::unique_ptr<Packed> packed_;
};

// Where the fire masks come from: `masks`, uint8 (steps, count, height, width), or, where that is null,
// Philox.
struct Fire {
    const uint8_t* masks;
    uint64_t seed;
    int level;
    const uint32_t* samples; // one a batch member
    const uint32_t* slices;  // z, one a batch member
};

// Runs `steps` steps in place on state, float32 (count, height, width, channels). The result does not depend
// on the number of threads. Throws std::invalid_argument (reflect padding on an image smaller than the kernel
// reaches) and std::bad_alloc, both before the first step; a run that has started cannot fail.
void run(const Rule& rule, float* state, size_t count, int height, int width, int steps, const Fire& fire,
         int threads);

// The masks that Philox gives, uint8 (steps, count, height, width).
void fire_masks(uint8_t* masks, size_t count, int height, int width, int steps, double fire_rate,
                const Fire& fire);

} // namespace nca
