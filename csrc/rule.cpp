#include "rule.hpp"

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>
#include <string>

namespace nca {

namespace {
constexpr std::align_val_t kCacheLine{64};
}

Buffer::Buffer(size_t size) {
    if (size > static_cast<size_t>(-1) / sizeof(float))
        throw std::bad_alloc();
    data_.reset(static_cast<float*>(::operator new(size * sizeof(float), kCacheLine)));
    std::fill_n(data_.get(), size, 0.0f);
}

void Buffer::Free::operator()(float* p) const {
    ::operator delete(p, kCacheLine);
}

uint64_t fire_threshold(double fire_rate) {
    return static_cast<uint64_t>(std::nearbyint(fire_rate * 4294967296.0));
}

void check(const RuleWeights& w) {
    const auto within = [](const char* name, int value, int low, int high) {
        if (value < low || value > high)
            throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                        "; it must be between " + std::to_string(low) + " and " +
                                        std::to_string(high));
    };
    within("channels", w.channels, 1, kMaxChannels);
    within("input_channels", w.input_channels, 0, w.channels - 1);
    within("hidden", w.hidden, 1, kMaxHidden);
    within("kernel_size", w.kernel_size, 1, kMaxKernel);
    if (w.kernel_size % 2 == 0 || (w.perception == Perception::sobel && w.kernel_size != 3))
        throw std::invalid_argument("kernel_size must be odd, and 3 for Sobel");
    if (!(w.fire_rate >= 0.0 && w.fire_rate <= 1.0))
        throw std::invalid_argument("fire_rate must be a probability between 0 and 1");
}

Rule::Rule(const RuleWeights& w) : packed_(std::make_unique<Packed>()) {
    check(w);
    Packed& p = *packed_;
    const Kernels& kernels = active_kernels();
    const int c = w.channels, size = w.kernel_size;
    p.kernels = &kernels;
    p.perception = w.perception;
    p.padding = w.padding;
    p.channels = c;
    p.input_channels = w.input_channels;
    p.hidden = w.hidden;
    p.radius = size / 2;
    p.fire_threshold = fire_threshold(w.fire_rate);
    if (w.perception == Perception::conv) {
        std::vector<float> bias(w.p0_bias, w.p0_bias + c);
        bias.insert(bias.end(), w.p1_bias, w.p1_bias + c);
        const int taps = size * size;
        // inputs in the order in which they are summed: tap, then channel
        p.perceive = Matrix(kernels, 2 * c, taps * c, bias.data(), [&](int n, int k) {
            const float* kernel = n < c ? w.p0_weight : w.p1_weight;
            const size_t out = n < c ? n : n - c, in = k % c, tap = k / c;
            return kernel[(out * c + in) * taps + tap];
        });
    }
    p.fc0 = Matrix(kernels, w.hidden, 3 * c, w.fc0_bias,
                   [&](int n, int k) { return w.fc0_weight[static_cast<size_t>(n) * 3 * c + k]; });
    p.fc1 = Matrix(kernels, c, w.hidden, nullptr,
                   [&](int n, int k) { return w.fc1_weight[static_cast<size_t>(n) * w.hidden + k]; });
}

Rule::~Rule() = default;
Rule::Rule(Rule&&) noexcept = default;

} // namespace nca
