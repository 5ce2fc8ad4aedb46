// The table of functions that each instruction set exports. Included by kernel files: nothing of std:: here.
#pragma once

#include <cstdint>

namespace nca {

// Cells whose inputs one product reads: rows[tile * Kernels::cells + i] points at `length` floats of cell i.
struct Segment {
    const float* const* rows;
    int length;
};

// Weights of one product, packed: panels of up to Kernels::panel_vectors registers of outputs, one after the
// other. A panel is its biases, then for every input k its outputs' weights. Unused outputs are zero.
struct Panels {
    const float* data;
    int depth;   // inputs
    int outputs; // outputs rounded up to whole registers: the stride of a result row
};

// Counter and key of one row of the fire mask (fire.hpp).
struct FireRow {
    uint32_t key[2];
    uint32_t y, z, word3;
    uint64_t threshold;
};

struct Kernels {
    const char* name;
    int cells;         // cells in a tile
    int width;         // floats in a register
    int panel_vectors; // registers in a full panel

    // out[i][n] = bias[n] + sum over k of in[i][k] * weight[k][n], one chain of multiply-adds in ascending k,
    // for tiles * cells cells; out has Panels::outputs floats a cell. With relu, negative results become 0.
    void (*product)(const Segment* segments, int segment_count, int tiles, const Panels& panels, bool relu,
                    float* out);

    // out[i] = [derivative along y, derivative along x], Sobel/8, of cell i; neighbours[tap * stride + i] is
    // the channel vector of tap (dy + 1) * 3 + (dx + 1).
    void (*sobel)(const float* const* neighbours, int stride, int cells, int channels, float* out,
                  int out_stride);

    // state[c] += delta[c] for first <= c < channels.
    void (*add)(float* state, const float* delta, int first, int channels);

    // out[m][n] += sum over cells k of a[k][m] * b[k][n], in ascending k, for m < rows and n < columns
    // rounded up to whole registers: out and b have room for them.
    void (*outer)(const float* a, int a_stride, int rows, const float* b, int b_stride, int columns,
                  int cells, float* out, int out_stride);

    // mask[x] = 1 where cell x fires; writes whole blocks of kFireBlock cells.
    void (*fire)(const FireRow& row, int width, uint8_t* mask);

    // Multiply-adds in registers alone, `rounds` times kBurst * width: what this CPU can do at most.
    void (*burst)(int rounds, float* out);
};

constexpr int kBurst = 12; // chains of multiply-adds in a burst

constexpr int kFireBlock = 32;

static constexpr int round_up(int n, int step) { // static: a copy for each instruction set
    return (n + step - 1) / step * step;
}

} // namespace nca
