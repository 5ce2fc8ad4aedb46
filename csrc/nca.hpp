// The core's whole public face. Knows nothing of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "dispatch.hpp"
#include "fire.hpp"
#include "interrupt.hpp"

namespace nca {

enum class Perception { sobel, conv };
enum class Padding { zero, reflect };

// Beyond these numbers in the core no longer fit into their types.
constexpr int kMaxSide = 1 << 30; // rows or columns of a state
constexpr int kMaxChannels = 1 << 15;
constexpr int kMaxHidden = 1 << 20;
constexpr int kMaxKernel = 15;
constexpr int kMaxThreads = 1 << 10;

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

// Throws std::invalid_argument where a size or an option is out of range.
void check(const RuleWeights& weights);

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
// Philox. A cell fires where its mask is not 0. Whatever masks hold, and however others change them during a
// run, nothing but the state is written.
struct Fire {
    const uint8_t* masks;
    uint64_t seed;
    int level;
    const uint32_t* samples; // one a batch member
    const uint32_t* slices;  // z, one a batch member
};

// Runs `steps` steps in place on state, float32 (count, height, width, channels). The result does not depend
// on the number of threads. Throws std::invalid_argument (an image that is too large, or smaller than a
// kernel with reflect padding reaches) and std::bad_alloc, both before the first step; a run that has started
// cannot fail. Returns false, and leaves anything in the state, where it was interrupted.
bool run(const Rule& rule, float* state, size_t count, int height, int width, int steps, const Fire& fire,
         int threads, const Interrupt& interrupt = {});

// The masks that Philox gives, uint8 (steps, count, height, width). Returns false where it was interrupted.
bool fire_masks(uint8_t* masks, size_t count, int height, int width, int steps, double fire_rate,
                const Fire& fire, const Interrupt& interrupt = {});

} // namespace nca
