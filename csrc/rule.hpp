// Weights, packed once for the kernels.
#pragma once

#include <algorithm>
#include <vector>

#include "nca.hpp"

namespace nca {

// Floats that start at a cache line.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t size);
    float* data() const { return data_.get(); }

  private:
    struct Free {
        void operator()(float* p) const;
    };
    std::unique_ptr<float, Free> data_;
};

// One product's weights in panels, and what holds them.
class Matrix {
  public:
    Matrix() = default;
    // weight(n, k) of output n and input k; bias may be null.
    template <class Weight>
    Matrix(const Kernels& kernels, int outputs, int depth, const float* bias, const Weight& weight);

    const Panels& panels() const { return panels_; }

  private:
    Buffer data_;
    Panels panels_{};
};

template <class Weight>
Matrix::Matrix(const Kernels& kernels, int outputs, int depth, const float* bias, const Weight& weight)
    : data_(static_cast<size_t>(depth + 1) * round_up(outputs, kernels.width)),
      panels_{data_.data(), depth, round_up(outputs, kernels.width)} {
    float* to = data_.data();
    for (int first = 0; first < panels_.outputs;) {
        const int left = (panels_.outputs - first) / kernels.width;
        const int size = panel_registers(left, kernels.panel_vectors) * kernels.width;
        const int used = std::min(outputs - first, size);
        for (int n = 0; bias && n < used; ++n)
            to[n] = bias[first + n];
        to += size;
        for (int k = 0; k < depth; ++k, to += size)
            for (int n = 0; n < used; ++n)
                to[n] = weight(first + n, k);
        first += size;
    }
    if (kernels.pack)
        kernels.pack(data_.data(), to - data_.data());
}

struct Rule::Packed {
    const Kernels* kernels;
    Perception perception;
    Padding padding;
    int channels, input_channels, hidden, radius;
    uint64_t fire_threshold;
    Matrix perceive; // conv: both kernels as one product, outputs [p0, p1]
    Matrix fc0, fc1;
};

// round(fire_rate * 2^32): what the words of the fire mask are compared with.
uint64_t fire_threshold(double fire_rate);

} // namespace nca
