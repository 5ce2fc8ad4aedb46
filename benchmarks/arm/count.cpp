// A run of one rule through the core, and nothing else: what benchmarks/arm/instructions.py counts under
// emulation. usage: count sobel|conv CHANNELS HIDDEN SIDE STEPS  runs; says nothing
//        count cells SIDE FIRST LAST                  prints how many cells fire in steps FIRST .. LAST - 1
//        count compiler                               prints what it was compiled with
// Weights are small and of both signs, so that states stay finite and half of the hidden layer is cut off.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "nca.hpp"

namespace {

constexpr double kFireRate = 0.5;
constexpr uint32_t kZero = 0; // sample and slice
constexpr nca::Fire kFire{nullptr, 1, 0, &kZero, &kZero};

// Numbers between -scale and scale, the same everywhere.
std::vector<float> numbers(size_t count, float scale) {
    static uint32_t word = 1;
    std::vector<float> values(count);
    for (float& value : values) {
        word = word * 1664525u + 1013904223u;
        value = (static_cast<float>(word >> 8) / 8388608.0f - 1.0f) * scale;
    }
    return values;
}

long cells(int side, int first, int last) {
    std::vector<uint8_t> masks(static_cast<size_t>(last) * side * side);
    nca::fire_masks(masks.data(), 1, side, side, last, kFireRate, kFire);
    long count = 0;
    for (size_t i = static_cast<size_t>(first) * side * side; i < masks.size(); ++i)
        count += masks[i];
    return count;
}

bool run(nca::Perception perception, int channels, int hidden, int side, int steps) {
    const size_t c = channels;
    const auto p0 = numbers(c * c * 9, 0.05f), p1 = numbers(c * c * 9, 0.05f), p_bias = numbers(c, 0.05f);
    const auto fc0 = numbers(hidden * 3 * c, 0.1f), fc0_bias = numbers(hidden, 0.1f);
    const auto fc1 = numbers(c * hidden, 0.02f);
    const nca::Rule rule({perception, nca::Padding::zero, channels, 1, hidden, 3, kFireRate, p0.data(),
                          p_bias.data(), p1.data(), p_bias.data(), fc0.data(), fc0_bias.data(), fc1.data()});
    auto state = numbers(c * side * side, 1.0f);
    nca::run(rule, state.data(), 1, side, side, steps, kFire, 1);
    for (float value : state)
        if (!std::isfinite(value))
            return false;
    return true;
}

} // namespace

int main(int argc, char** argv) {
    const auto number = [&](int i) { return std::atoi(argv[i]); };
    if (argc == 5 && !std::strcmp(argv[1], "cells")) {
        std::printf("%ld\n", cells(number(2), number(3), number(4)));
        return 0;
    }
    if (argc == 2 && !std::strcmp(argv[1], "compiler")) {
#if defined(__clang__)
        std::printf("Clang %d\n", __clang_major__);
#else
        std::printf("GCC %d\n", __GNUC__);
#endif
        return 0;
    }
    const bool sobel = argc == 6 && !std::strcmp(argv[1], "sobel");
    if (!sobel && !(argc == 6 && !std::strcmp(argv[1], "conv"))) {
        std::fputs("usage: count sobel|conv CHANNELS HIDDEN SIDE STEPS\n       count cells SIDE FIRST LAST\n"
                   "       count compiler\n",
                   stderr);
        return 2;
    }
    if (run(sobel ? nca::Perception::sobel : nca::Perception::conv, number(2), number(3), number(4),
            number(5)))
        return 0;
    std::fputs("the state is not finite: its instructions mean nothing\n", stderr);
    return 1;
}
