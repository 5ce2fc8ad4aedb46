// The table of functions that each instruction set exports. Included by kernel files: nothing of std:: here.
#pragma once

#include <cstdint>

namespace nca {

// Cells whose inputs one product reads: rows[i] points at `length` floats of cell i. Where stride is not 0,
// the rows are that many floats apart.
struct Segment {
    const float* const* rows;
    int length;
    int stride = 0;
};

// Weights of one product, packed: panels of up to Kernels::panel_vectors registers of outputs, one after the
// other. A panel is its biases, then for every input k its outputs' weights. Unused outputs are zero.
struct Panels {
    const float* data; // after Kernels::pack, where there is one
    int depth;         // inputs
    int outputs;       // outputs rounded up to whole registers: the stride of a result row
};

// What becomes of the sums of a product.
struct After {
    enum Kind { nothing, relu, gate } kind = nothing; // relu: negative ones become 0
    const float* gates = nullptr; // gate: where these, laid out as the result, are not above 0, it is 0
};

// Counter and key of one row of the fire mask (fire.hpp).
struct FireRow {
    uint32_t key[2];
    uint32_t y, z, word3;
    uint64_t threshold;
    uint32_t first = 0; // column, divided by four
};

struct Kernels {
    const char* name;
    int cells;         // cells in a tile
    int width;         // weights in a register
    int panel_vectors; // registers in a full panel

    // out[i][n] = bias[n] + sum over k of in[i][k] * weight[k][n], one chain of multiply-adds in ascending k
    // (in half precision: several, in a fixed order), for tiles * cells cells; out has out_stride floats a
    // cell, and room for whole registers.
    void (*product)(const Segment* segments, int segment_count, int tiles, const Panels& panels,
                    const After& after, float* out, int out_stride);

    // out[i * out_stride + c] = rows[i][c] for c < length.
    void (*gather)(const float* const* rows, int cells, int length, float* out, int out_stride);

    // rows[i][c] = in[i * in_stride + c] for c < length.
    void (*scatter)(float* const* rows, int cells, int length, const float* in, int in_stride);

    // out[i] = [derivative along y, derivative along x], Sobel/8, of cell i; rows[dy + 1].rows[i] points at
    // the channel vectors of three cells in row dy, the second above, at or below cell i.
    void (*sobel)(const Segment* rows, int cells, int channels, float* out, int out_stride);

    // The transpose of sobel: out[i] is what the nine neighbours of cell i, in reading order, get of the
    // gradients [along y, along x] at in[i].
    void (*spread_sobel)(const float* const* in, int cells, int channels, float* out, int out_stride);

    // to[i * rows + r][c] += from[i * stride + r * length + c] for first <= c < length, row by row and cell
    // by cell.
    void (*add)(float* const* to, int rows, const float* from, int stride, int first, int length, int cells);

    // out[m][n] += sum over cells k of a[k][m] * b[k][n], in ascending k, for m < rows and n < columns and
    // one cell or more; rows of out have room for whole registers.
    void (*outer)(const float* const* a, int rows, const float* const* b, int columns, int cells, float* out,
                  int out_stride);

    // out (m, n) += a (m, k) b (k, n), whole matrices; each output is a sum in ascending k, products rounded
    // before they are added: the same on every instruction set.
    void (*multiply)(const float* a, const float* b, int m, int k, int n, float* out);

    // 1 / (1 + e^-x) and ln(1 + e^x), to some units in the last place and the same on every instruction set,
    // where those of libraries depend on the CPU. NaN stays NaN.
    void (*sigmoid_and_softplus)(const double* x, int64_t count, double* sigmoid, double* softplus);

    // mask[x] = 1 where cell x, counted from the row's first, fires; writes whole blocks of kFireBlock cells.
    void (*fire)(const FireRow& row, int width, uint8_t* mask);

    // Writes the numbers of the cells of a row whose mask is not 0, and returns how many there are; `cells`
    // has room for width of them. Reads each mask once: others may be changing it.
    int (*list)(const uint8_t* mask, int width, int* cells);

    // Multiply-adds in registers alone, `rounds` times kBurst * width: what this CPU can do at most.
    void (*burst)(int rounds, float* out);

    // Half precision only, else null: makes `count` weights of panels, in place, what product reads.
    void (*pack)(float* weights, int64_t count);
};

constexpr int kBurst = 12; // chains of multiply-adds in a burst

constexpr int kFireBlock = 32;

static constexpr int round_up(int n, int step) { // static: a copy for each instruction set
    return (n + step - 1) / step * step;
}

// How many of `left` registers of outputs are in the next panel, of at most `most`: about as many in each,
// since a panel of few has few chains.
static constexpr int panel_registers(int left, int most) {
    const int panels = (left + most - 1) / most;
    return (left + panels - 1) / panels;
}

} // namespace nca
