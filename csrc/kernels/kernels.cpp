// All kernels, compiled once per instruction set into a namespace of its own (NCA_ISA, CMakeLists.txt).
//
// A result does not depend on the instruction set as long as it has fused multiply-add: every output of a
// product is one chain in ascending k, and everything else is elementwise with a fixed order of operations.
// This file includes intrinsics and <cstdint> only, and exports nothing but its table.

#include "kernels.hpp"
#include "../fire.hpp"
#include "vector.hpp"

namespace nca::NCA_ISA {
namespace {

constexpr int kCells = 6;
// Registers in a panel: with six cells twelve chains of sums, or twenty-four where there are 32 registers of
// 16 floats. More chains than latency times throughput leave room for loads.
#if defined(NCA_ISA_AVX512)
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelVectors = 2;
#endif

// Adds in[i][k..k+length) * weights to the sums of one tile and returns where the next weights stand.
template <int V>
inline const float* accumulate(Vector (&sums)[kCells][V], const float* const* rows, int length,
                               const float* weights) {
    const float* in[kCells];
    for (int i = 0; i < kCells; ++i)
        in[i] = rows[i];
    int k = 0;
#if defined(NCA_ISA_NEON)
    // Four inputs of a cell in one register, multiplied by lane: twice the speed of broadcasting each scalar.
    for (; k + 4 <= length; k += 4) {
        float32x4_t four[kCells];
        for (int i = 0; i < kCells; ++i)
            four[i] = vld1q_f32(in[i] + k);
#define NCA_LANE(lane)                                                                                       \
    for (int v = 0; v < V; ++v) {                                                                            \
        const Vector w = load<Vector>(weights + (lane * V + v) * kWidth);                                    \
        for (int i = 0; i < kCells; ++i)                                                                     \
            sums[i][v] = vfmaq_laneq_f32(sums[i][v], w, four[i], lane);                                      \
    }
        NCA_LANE(0)
        NCA_LANE(1)
        NCA_LANE(2)
        NCA_LANE(3)
#undef NCA_LANE
        weights += 4 * V * kWidth;
    }
#endif
    for (; k < length; ++k) {
        Vector w[V];
        for (int v = 0; v < V; ++v)
            w[v] = load<Vector>(weights + v * kWidth);
        for (int i = 0; i < kCells; ++i) {
            const Vector x = broadcast(in[i][k]);
            for (int v = 0; v < V; ++v)
                sums[i][v] = multiply_add(x, w[v], sums[i][v]);
        }
        weights += V * kWidth;
    }
    return weights;
}

// One panel of V registers for all tiles.
template <int V>
void panel_product(const Segment* segments, int segment_count, int tiles, const float* panel, bool relu,
                   float* out, int stride) {
    for (int tile = 0; tile < tiles; ++tile) {
        Vector sums[kCells][V];
        for (int v = 0; v < V; ++v) {
            const Vector bias = load<Vector>(panel + v * kWidth);
            for (int i = 0; i < kCells; ++i)
                sums[i][v] = bias;
        }
        const float* weights = panel + V * kWidth;
        for (int s = 0; s < segment_count; ++s)
            weights = accumulate<V>(sums, segments[s].rows + tile * kCells, segments[s].length, weights);
        for (int i = 0; i < kCells; ++i)
            for (int v = 0; v < V; ++v) {
                const Vector sum = sums[i][v];
                // keeps NaN, on every instruction set alike
                store(out + (tile * kCells + i) * stride + v * kWidth,
                      relu ? (sum < 0.0f ? Vector{} : sum) : sum);
            }
    }
}

void product(const Segment* segments, int segment_count, int tiles, const Panels& panels, bool relu,
             float* out) {
    const float* panel = panels.data;
    for (int n = 0; n < panels.outputs;) {
        const int left = (panels.outputs - n) / kWidth;
        const int vectors = left < kPanelVectors ? left : kPanelVectors;
        auto run = panel_product<1>;
        if (vectors == 2)
            run = panel_product<2>;
#if defined(NCA_ISA_AVX512)
        if (vectors == 3)
            run = panel_product<3>;
        if (vectors == 4)
            run = panel_product<4>;
#endif
        run(segments, segment_count, tiles, panel, relu, out + n, panels.outputs);
        panel += (panels.depth + 1) * vectors * kWidth;
        n += vectors * kWidth;
    }
}

// Both derivatives of channels c.. of one cell; p holds the nine neighbours in reading order.
template <class T> inline void sobel_part(const float* const (&p)[9], int c, int channels, float* out) {
    const T p0 = load<T>(p[0] + c), p1 = load<T>(p[1] + c), p2 = load<T>(p[2] + c);
    const T p3 = load<T>(p[3] + c), p5 = load<T>(p[5] + c);
    const T p6 = load<T>(p[6] + c), p7 = load<T>(p[7] + c), p8 = load<T>(p[8] + c);
    const T down = p7 - p1, right = p5 - p3;
    store<T>(out + c, (((p6 - p0) + (p8 - p2)) + (down + down)) * 0.125f);
    store<T>(out + channels + c, (((p2 - p0) + (p8 - p6)) + (right + right)) * 0.125f);
}

void sobel(const float* const* neighbours, int stride, int cells, int channels, float* out, int out_stride) {
    for (int i = 0; i < cells; ++i, out += out_stride) {
        const float* p[9];
        for (int tap = 0; tap < 9; ++tap)
            p[tap] = neighbours[tap * stride + i];
        int c = 0;
        for (; c + kWidth <= channels; c += kWidth)
            sobel_part<Vector>(p, c, channels, out);
        for (; c + 4 <= channels; c += 4)
            sobel_part<Quad>(p, c, channels, out);
        for (; c < channels; ++c)
            sobel_part<float>(p, c, channels, out);
    }
}

template <class T> inline void add_part(float* state, const float* delta) {
    store<T>(state, load<T>(state) + load<T>(delta));
}

void add(float* state, const float* delta, int first, int channels) {
    int c = first;
    for (; c + kWidth <= channels; c += kWidth)
        add_part<Vector>(state + c, delta + c);
    for (; c + 4 <= channels; c += 4)
        add_part<Quad>(state + c, delta + c);
    for (; c < channels; ++c)
        add_part<float>(state + c, delta + c);
}

// R rows and V registers of columns of an outer product.
template <int R, int V>
void outer_tile(const float* a, int a_stride, const float* b, int b_stride, int cells, float* out,
                int out_stride) {
    Vector sums[R][V];
    for (int m = 0; m < R; ++m)
        for (int v = 0; v < V; ++v)
            sums[m][v] = load<Vector>(out + m * out_stride + v * kWidth);
    for (int k = 0; k < cells; ++k, a += a_stride, b += b_stride) {
        Vector w[V];
        for (int v = 0; v < V; ++v)
            w[v] = load<Vector>(b + v * kWidth);
        for (int m = 0; m < R; ++m) {
            const Vector x = broadcast(a[m]);
            for (int v = 0; v < V; ++v)
                sums[m][v] = multiply_add(x, w[v], sums[m][v]);
        }
    }
    for (int m = 0; m < R; ++m)
        for (int v = 0; v < V; ++v)
            store(out + m * out_stride + v * kWidth, sums[m][v]);
}

template <int V>
void outer_columns(const float* a, int a_stride, int rows, const float* b, int b_stride, int cells,
                   float* out, int out_stride) {
    int m = 0;
    for (; m + kCells <= rows; m += kCells)
        outer_tile<kCells, V>(a + m, a_stride, b, b_stride, cells, out + m * out_stride, out_stride);
    for (; m + 2 <= rows; m += 2)
        outer_tile<2, V>(a + m, a_stride, b, b_stride, cells, out + m * out_stride, out_stride);
    for (; m < rows; ++m)
        outer_tile<1, V>(a + m, a_stride, b, b_stride, cells, out + m * out_stride, out_stride);
}

void outer(const float* a, int a_stride, int rows, const float* b, int b_stride, int columns, int cells,
           float* out, int out_stride) {
    for (int n = 0; n < columns;) {
        const int left = (columns - n + kWidth - 1) / kWidth;
        const int vectors = left < kPanelVectors ? left : kPanelVectors;
        auto run = outer_columns<1>;
        if (vectors == 2)
            run = outer_columns<2>;
#if defined(NCA_ISA_AVX512)
        if (vectors == 3)
            run = outer_columns<3>;
        if (vectors == 4)
            run = outer_columns<4>;
#endif
        run(a, a_stride, rows, b + n, b_stride, cells, out + n, out_stride);
        n += vectors * kWidth;
    }
}

// Philox4x32-10, kWidth / 2 blocks of four cells at a time. Words stand in 64-bit lanes whose upper halves
// hold leftovers of products: only the lower halves count until the end.
void fire(const FireRow& row, int width, uint8_t* mask) {
    constexpr int kLanes = kWidth / 2;
    Words block = {};
    for (int lane = 0; lane < kLanes; ++lane)
        block[lane] = (uint64_t)lane;
    const int blocks = round_up(width, kFireBlock) / 4;
    for (int first = 0; first < blocks; first += kLanes, block += (uint64_t)kLanes) {
        Words c0 = block, c1 = Words{} + row.y, c2 = Words{} + row.z, c3 = Words{} + row.word3;
        uint32_t k0 = row.key[0], k1 = row.key[1];
        for (int round = 0; round < philox::kRounds; ++round) {
            const Words p0 = multiply_wide(c0, philox::kMultiplier0);
            const Words p1 = multiply_wide(c2, philox::kMultiplier1);
            c0 = (p1 >> 32) ^ c1 ^ k0;
            c1 = p1;
            c2 = (p0 >> 32) ^ c3 ^ k1;
            c3 = p0;
            k0 += philox::kWeyl0;
            k1 += philox::kWeyl1;
        }
        const auto fires = [&](Words word, int shift) {
            return (Words)((word & 0xffffffffu) < row.threshold) & (uint64_t{1} << shift);
        };
        const Words bytes = fires(c0, 0) | fires(c1, 8) | fires(c2, 16) | fires(c3, 24);
        for (int lane = 0; lane < kLanes; ++lane) {
            const uint64_t four = bytes[lane];
            for (int i = 0; i < 4; ++i)
                *mask++ = (uint8_t)(four >> (8 * i));
        }
    }
}

void burst(int rounds, float* out) {
    const Vector factor = broadcast(out[0]), term = broadcast(out[1]);
    Vector chains[kBurst];
    for (int i = 0; i < kBurst; ++i)
        chains[i] = broadcast(out[2]);
    for (int round = 0; round < rounds; ++round)
        for (int i = 0; i < kBurst; ++i)
            chains[i] = multiply_add(chains[i], factor, term);
    for (int i = 1; i < kBurst; ++i)
        chains[0] += chains[i];
    out[0] = chains[0][0];
}

#define NCA_STRING2(x) #x
#define NCA_STRING(x) NCA_STRING2(x)

} // namespace

extern const Kernels kernels;
const Kernels kernels = {
    NCA_STRING(NCA_ISA), kCells, kWidth, kPanelVectors, product, sobel, add, outer, fire, burst};

} // namespace nca::NCA_ISA
