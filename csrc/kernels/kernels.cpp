// All kernels, compiled once per instruction set into a namespace of its own (NCA_ISA, CMakeLists.txt).
//
// A result does not depend on the instruction set as long as it has fused multiply-add: every output of a
// product is one chain in ascending k, and everything else is elementwise with a fixed order of operations.
// neon_half is the exception, for those who ask for it: its products are in half precision.
// This file includes intrinsics and <cstdint> only, and exports nothing but its table.

#include "kernels.hpp"
#include "../fire.hpp"
#include "vector.hpp"

namespace nca::NCA_ISA {
namespace {

constexpr int kCells = 6; // in a tile
// Tiles of sums: cells times registers of outputs. Twelve chains are more than latency times throughput;
// where there are 32 registers of 16 floats, twenty-four leave room for loads.
#if defined(NCA_ISA_AVX512)
constexpr int kPanelVectors = 4;
constexpr int kOuterRows = 8, kOuterVectors = 3;
#elif defined(NCA_ISA_NEON_HALF)
constexpr int kPanelVectors = 4; // inputs are narrowed once a panel
constexpr int kOuterRows = 4, kOuterVectors = 3;
#else
constexpr int kPanelVectors = 2;
constexpr int kOuterRows = 4, kOuterVectors = 3;
#endif

// Unrolled, so that an array of sums lives in registers from its first value to its last
#define NCA_UNROLL _Pragma("GCC unroll 16")
#define NCA_INLINE __attribute__((always_inline)) inline

// Where the inputs of R cells are: anywhere, or at even distances, which takes fewer registers to say.
template <int R> struct Scattered {
    const float* in[R];

    NCA_INLINE explicit Scattered(const float* const* rows) {
        NCA_UNROLL for (int i = 0; i < R; ++i) in[i] = rows[i];
    }
    NCA_INLINE const float* at(int i, int k) const { return in[i] + k; }
    NCA_INLINE void refresh() {}
};

template <int R> struct Even {
    const float* in[(R + 2) / 3];
    int64_t stride;

    NCA_INLINE Even(const float* first, int64_t distance) : stride(distance) {
        NCA_UNROLL for (int i = 0; i < R; i += 3) in[i / 3] = first + i * stride;
    }
    NCA_INLINE const float* at(int i, int k) const { return in[i / 3] + i % 3 * stride + k; }
    // Hides that the stride stays the same, so that it is added in each load and no sum of it is kept in a
    // register.
    NCA_INLINE void refresh() { __asm__("" : "+r"(stride)); }
};

#if defined(NCA_ISA_NEON_HALF)

// Inputs whose products are summed in half precision. Each such sum is added to one in float32, so that
// rounding errors do not grow with the number of inputs.
constexpr int kChain = 64;

// Adds `length` inputs times weights to the sums of R cells and returns where the next weights stand.
template <int R, int V, class In>
NCA_INLINE const Weight* accumulate(Vector (&sums)[R][V * kParts], In in, int length, const Weight* weights) {
    for (int k = 0; k < length;) {
        const int end = length - k < kChain ? length : k + kChain;
        Weights chains[R][V];
        NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < V; ++v) chains[i][v] =
            spread(0.0f);
        for (; k + 8 <= end; k += 8, weights += 8 * V * kOutputs) {
            in.refresh();
            Weights eight[R];
            NCA_UNROLL for (int i = 0; i < R; ++i) eight[i] =
                narrow(load<Vector>(in.at(i, k)), load<Vector>(in.at(i, k + 4)));
#define NCA_LANE(lane)                                                                                       \
    NCA_UNROLL for (int v = 0; v < V; ++v) {                                                                 \
        const Weights w = vld1q_f16(weights + (lane * V + v) * kOutputs);                                    \
        NCA_UNROLL for (int i = 0; i < R; ++i) chains[i][v] =                                                \
            multiply_add_lane<lane>(w, eight[i], chains[i][v]);                                              \
    }
            NCA_LANE(0)
            NCA_LANE(1)
            NCA_LANE(2)
            NCA_LANE(3)
            NCA_LANE(4)
            NCA_LANE(5)
            NCA_LANE(6)
            NCA_LANE(7)
#undef NCA_LANE
        }
        for (; k < end; ++k, weights += V * kOutputs)
            NCA_UNROLL for (int i = 0; i < R; ++i) {
                const Weights x = spread(*in.at(i, k));
                NCA_UNROLL for (int v = 0; v < V; ++v) chains[i][v] =
                    multiply_add(x, vld1q_f16(weights + v * kOutputs), chains[i][v]);
            }
        NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < V; ++v) {
            sums[i][2 * v] += vcvt_f32_f16(vget_low_f16(chains[i][v]));
            sums[i][2 * v + 1] += vcvt_high_f32_f16(chains[i][v]);
        }
    }
    return weights;
}

#else

// Adds in(i)[k] * weights for one k to the sums.
template <int R, int V, class In>
NCA_INLINE void multiply(Vector (&sums)[R][V], const In& in, int k, const float* weights) {
    Vector w[V];
    NCA_UNROLL for (int v = 0; v < V; ++v) w[v] = load<Vector>(weights + v * kWidth);
    NCA_UNROLL for (int i = 0; i < R; ++i) {
        const Vector x = broadcast(*in.at(i, k));
        NCA_UNROLL for (int v = 0; v < V; ++v) sums[i][v] = multiply_add(x, w[v], sums[i][v]);
    }
}

// Adds `length` inputs times weights to the sums of R cells and returns where the next weights stand.
template <int R, int V, class In>
NCA_INLINE const float* accumulate(Vector (&sums)[R][V], In in, int length, const float* weights) {
    int k = 0;
    for (; k + 4 <= length; k += 4, weights += 4 * V * kWidth) {
        in.refresh();
#if defined(NCA_ISA_NEON)
        // Four inputs of a cell in one register, multiplied by lane: twice the speed of broadcasting each
        // scalar.
        float32x4_t four[R];
        NCA_UNROLL for (int i = 0; i < R; ++i) four[i] = vld1q_f32(in.at(i, k));
#define NCA_LANE(lane)                                                                                       \
    NCA_UNROLL for (int v = 0; v < V; ++v) {                                                                 \
        const Vector w = load<Vector>(weights + (lane * V + v) * kWidth);                                    \
        NCA_UNROLL for (int i = 0; i < R; ++i) sums[i][v] = vfmaq_laneq_f32(sums[i][v], w, four[i], lane);   \
    }
        NCA_LANE(0)
        NCA_LANE(1)
        NCA_LANE(2)
        NCA_LANE(3)
#undef NCA_LANE
#else
        NCA_UNROLL for (int j = 0; j < 4; ++j) multiply<R, V>(sums, in, k + j, weights + j * V * kWidth);
#endif
    }
    for (; k < length; ++k, weights += V * kWidth)
        multiply<R, V>(sums, in, k, weights);
    return weights;
}

#endif

// What the ReLU makes of what is below 0. In half precision a sum may have passed the least finite number on
// its way, and be above 0 in truth: minus infinity becomes NaN, so that it shows.
NCA_INLINE Vector below_zero([[maybe_unused]] Vector sum) {
#if defined(NCA_ISA_NEON_HALF)
    return sum * 0.0f;
#else
    return Vector{};
#endif
}

// One panel of V registers of weights for R cells, the first of them number `first`.
template <int R, int V>
NCA_INLINE void tile(const Segment* segments, int segment_count, int first, const Weight* panel,
                     const After& after, float* out, int64_t stride) {
    constexpr int kVectors = V * kParts;
    Vector sums[R][kVectors];
    NCA_UNROLL for (int v = 0; v < kVectors; ++v) {
        const Vector bias = widen(panel + v * kWidth);
        NCA_UNROLL for (int i = 0; i < R; ++i) sums[i][v] = bias;
    }
    const Weight* weights = panel + V * kOutputs;
    for (const Segment* s = segments; s < segments + segment_count; ++s) {
        if (R > kCells && s->stride)
            weights = accumulate<R, V>(sums, Even<R>(s->rows[first], s->stride), s->length, weights);
        else
            weights = accumulate<R, V>(sums, Scattered<R>(s->rows + first), s->length, weights);
    }
    out += first * stride;
    // what is not below or not above 0 stays, so that NaN shows, on every instruction set alike
    if (after.kind == After::relu) {
        NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < kVectors; ++v) sums[i][v] =
            sums[i][v] < 0.0f ? below_zero(sums[i][v]) : sums[i][v];
    } else if (after.kind == After::gate) {
        const float* gates = after.gates + first * stride;
        NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < kVectors; ++v) sums[i][v] =
            load<Vector>(gates + i * stride + v * kWidth) > 0.0f ? sums[i][v] : Vector{};
    }
    NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < kVectors; ++v)
        store(out + i * stride + v * kWidth, sums[i][v]);
}

// One panel of V registers of weights for all tiles.
template <int V>
void panel_product(const Segment* segments, int segment_count, int tiles, const Weight* panel,
                   const After& after, float* out, int stride) {
    int cell = 0;
    // two tiles together where one would be too few chains
    for (; V == 1 && cell + 2 * kCells <= tiles * kCells; cell += 2 * kCells)
        tile<2 * kCells, V>(segments, segment_count, cell, panel, after, out, stride);
    for (; cell < tiles * kCells; cell += kCells)
        tile<kCells, V>(segments, segment_count, cell, panel, after, out, stride);
}

void product(const Segment* segments, int segment_count, int tiles, const Panels& panels, const After& after,
             float* out, int out_stride) {
    const auto* panel = (const Weight*)panels.data;
    for (int n = 0; n < panels.outputs;) {
        const int left = (panels.outputs - n) / kOutputs;
        const int vectors = panel_registers(left, kPanelVectors);
        auto run = panel_product<1>;
        if (vectors == 2)
            run = panel_product<2>;
#if defined(NCA_ISA_AVX512) || defined(NCA_ISA_NEON_HALF)
        if (vectors == 3)
            run = panel_product<3>;
        if (vectors == 4)
            run = panel_product<4>;
#endif
        const After part = {after.kind, after.gates ? after.gates + n : nullptr};
        run(segments, segment_count, tiles, panel, part, out + n, out_stride);
        panel += (panels.depth + 1) * vectors * kOutputs;
        n += vectors * kOutputs;
    }
}

#if defined(NCA_ISA_NEON_HALF)
// Ascending: what is written stands where everything has been read.
void pack(float* weights, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const auto half = (Weight)weights[i];
        __builtin_memcpy((char*)weights + i * (int64_t)sizeof half, &half, sizeof half);
    }
}
#else
constexpr void (*pack)(float*, int64_t) = nullptr;
#endif

// Calls part(T{}, c) for channels c.. in registers, then in quads, then one by one.
template <class Part> NCA_INLINE void each_part(int channels, const Part& part) {
    int c = 0;
    for (; c + kWidth <= channels; c += kWidth)
        part(Vector{}, c);
    for (; c + 4 <= channels; c += 4)
        part(Quad{}, c);
    for (; c < channels; ++c)
        part(0.0f, c);
}

void gather(const float* const* rows, int cells, int length, float* out, int out_stride) {
    for (int i = 0; i < cells; ++i, out += out_stride)
        each_part(length, [&]<class T>(T, int c) { store<T>(out + c, load<T>(rows[i] + c)); });
}

void scatter(float* const* rows, int cells, int length, const float* in, int in_stride) {
    for (int i = 0; i < cells; ++i, in += in_stride)
        each_part(length, [&]<class T>(T, int c) { store<T>(rows[i] + c, load<T>(in + c)); });
}

// Both derivatives of channels c.. of one cell; its neighbours in three rows, in reading order.
template <class T>
inline void sobel_part(const float* above, const float* here, const float* below, int c, int channels,
                       float* out) {
    const int middle = channels + c, right = 2 * channels + c;
    const T p0 = load<T>(above + c), p1 = load<T>(above + middle), p2 = load<T>(above + right);
    const T p3 = load<T>(here + c), p5 = load<T>(here + right);
    const T p6 = load<T>(below + c), p7 = load<T>(below + middle), p8 = load<T>(below + right);
    const T down = p7 - p1, across = p5 - p3;
    store<T>(out + c, (((p6 - p0) + (p8 - p2)) + (down + down)) * 0.125f);
    store<T>(out + middle, (((p2 - p0) + (p8 - p6)) + (across + across)) * 0.125f);
}

void sobel(const Segment* rows, int cells, int channels, float* out, int out_stride) {
    for (int i = 0; i < cells; ++i, out += out_stride) {
        const float *above = rows[0].rows[i], *here = rows[1].rows[i], *below = rows[2].rows[i];
        each_part(channels, [&]<class T>(T, int c) { sobel_part<T>(above, here, below, c, channels, out); });
    }
}

template <class T> inline void spread_part(const float* in, int c, int channels, float* out) {
    const T down = load<T>(in + c) * 0.125f, across = load<T>(in + channels + c) * 0.125f;
    const T twice_down = down + down, twice_across = across + across, sum = down + across,
            rest = down - across;
    const T patch[9] = {-sum, -twice_down, -rest, -twice_across, T{}, twice_across, rest, twice_down, sum};
    for (int tap = 0; tap < 9; ++tap)
        store<T>(out + tap * channels + c, patch[tap]);
}

void spread_sobel(const float* const* in, int cells, int channels, float* out, int out_stride) {
    for (int i = 0; i < cells; ++i, out += out_stride)
        each_part(channels, [&]<class T>(T, int c) { spread_part<T>(in[i], c, channels, out); });
}

template <class T> inline void add_part(float* to, const float* from) {
    store<T>(to, load<T>(to) + load<T>(from));
}

// Row by row in parts of T, then in quads, then one by one.
template <class T>
void add_in(float* const* to, int rows, const float* from, int stride, int first, int length, int cells) {
    constexpr int kPart = sizeof(T) / sizeof(float);
    typedef decltype(T{} < T{}) Lanes;
    Lanes lane = {};
    for (int i = 0; i < kPart; ++i)
        lane[i] = i;
    const int start = first / kPart * kPart;
    const Lanes kept = lane < first - start; // of the first part
    for (int i = 0; i < cells; ++i, from += stride) {
        const float* row = from;
        for (int r = 0; r < rows; ++r, row += length) {
            float* cell = *to++;
            int c = start;
            if (c + kPart <= length) {
                const T old = load<T>(cell + c);
                store<T>(cell + c, kept ? old : old + load<T>(row + c));
                for (c += kPart; c + kPart <= length; c += kPart)
                    add_part<T>(cell + c, row + c);
            } else {
                c = first;
            }
            for (; c + 4 <= length; c += 4)
                add_part<Quad>(cell + c, row + c);
            for (; c < length; ++c)
                add_part<float>(cell + c, row + c);
        }
    }
}

// Neighbours share cells, and what was stored a moment ago is loaded at once only in the same pieces: so in
// the largest that divide a row of channels.
void add(float* const* to, int rows, const float* from, int stride, int first, int length, int cells) {
    auto run = add_in<Vector>;
    if (length % 8 == 4)
        run = add_in<Quad>;
#if defined(NCA_ISA_AVX512)
    if (length % kWidth == 8)
        run = add_in<Octet>;
#endif
    run(to, rows, from, stride, first, length, cells);
}

// R rows and V registers of columns of an outer product; `last` floats in the last register count.
template <int R, int V>
NCA_INLINE void outer_tile(const float* const* a, int row, const float* const* b, int column, int last,
                           int cells, float* out, int out_stride) {
    Vector sums[R][V];
    NCA_UNROLL for (int m = 0; m < R; ++m) NCA_UNROLL for (int v = 0; v < V; ++v) sums[m][v] =
        load<Vector>(out + m * out_stride + v * kWidth);
    const float* const* const end = a + cells; // there is one at least
    int64_t x_first = row, w_first = column;
    do {
        // Hides that these stay the same, so that they are added in each load and no sum of one is kept in a
        // register.
        __asm__("" : "+r"(x_first), "+r"(w_first));
        const float *x_of = *a++ + x_first, *w_of = *b++ + w_first;
        Vector w[V];
        NCA_UNROLL for (int v = 0; v + 1 < V; ++v) w[v] = load<Vector>(w_of + v * kWidth);
        w[V - 1] = load_first(w_of + (V - 1) * kWidth, last);
        NCA_UNROLL for (int m = 0; m < R; ++m) {
            const Vector x = broadcast(x_of[m]);
            NCA_UNROLL for (int v = 0; v < V; ++v) sums[m][v] = multiply_add(x, w[v], sums[m][v]);
        }
    } while (a < end);
    NCA_UNROLL for (int m = 0; m < R; ++m) NCA_UNROLL for (int v = 0; v < V; ++v)
        store(out + m * out_stride + v * kWidth, sums[m][v]);
}

// As many registers of columns as there are, of at most V.
template <int R, int V>
void outer_columns(int vectors, const float* const* a, int first, int rows, const float* const* b, int column,
                   int last, int cells, float* out, int out_stride) {
    if constexpr (V > 1)
        if (vectors < V)
            return outer_columns<R, V - 1>(vectors, a, first, rows, b, column, last, cells, out, out_stride);
    for (int m = first; m < first + rows; m += R, out += R * out_stride)
        outer_tile<R, V>(a, m, b, column, last, cells, out, out_stride);
}

// Rows first .. first + rows - 1, in steps of R, with at most V registers of columns at a time.
template <int R, int V>
void outer_rows(const float* const* a, int first, int rows, const float* const* b, int columns, int cells,
                float* out, int out_stride) {
    out += (int64_t)first * out_stride;
    for (int n = 0; n < columns;) {
        const int left = (columns - n + kWidth - 1) / kWidth;
        const int vectors = left < V ? left : V;
        const int rest = columns - n - (vectors - 1) * kWidth, last = rest < kWidth ? rest : kWidth;
        outer_columns<R, V>(vectors, a, first, rows, b, n, last, cells, out + n, out_stride);
        n += vectors * kWidth;
    }
}

void outer(const float* const* a, int rows, const float* const* b, int columns, int cells, float* out,
           int out_stride) {
    const int whole = rows / kOuterRows * kOuterRows;
    outer_rows<kOuterRows, kOuterVectors>(a, 0, whole, b, columns, cells, out, out_stride);
    if (whole < rows) // one by one
        outer_rows<1, 2 * kOuterVectors>(a, whole, rows - whole, b, columns, cells, out, out_stride);
}

// R rows and V parts of T of a product of matrices.
template <int R, int V, class T>
NCA_INLINE void multiply_tile(const float* a, const float* b, int k, int n, float* out) {
    constexpr int kPart = sizeof(T) / sizeof(float);
    T sums[R][V];
    NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < V; ++v) sums[i][v] =
        load<T>(out + i * n + v * kPart);
    for (int l = 0; l < k; ++l, b += n) {
        T w[V];
        NCA_UNROLL for (int v = 0; v < V; ++v) w[v] = load<T>(b + v * kPart);
        NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < V; ++v) sums[i][v] +=
            a[i * k + l] * w[v];
    }
    NCA_UNROLL for (int i = 0; i < R; ++i) NCA_UNROLL for (int v = 0; v < V; ++v)
        store<T>(out + i * n + v * kPart, sums[i][v]);
}

template <int V, class T>
void multiply_columns(const float* a, const float* b, int m, int k, int n, float* out) {
    constexpr int kRows = 8 / V; // chains enough
    int i = 0;
    for (; i + kRows <= m; i += kRows)
        multiply_tile<kRows, V, T>(a + i * k, b, k, n, out + i * n);
    for (; i < m; ++i)
        multiply_tile<1, V, T>(a + i * k, b, k, n, out + i * n);
}

void multiply(const float* a, const float* b, int m, int k, int n, float* out) {
    int c = 0;
    for (; c + 2 * kWidth <= n; c += 2 * kWidth)
        multiply_columns<2, Vector>(a, b + c, m, k, n, out + c);
    for (; c + kWidth <= n; c += kWidth)
        multiply_columns<1, Vector>(a, b + c, m, k, n, out + c);
    for (; c + 4 <= n; c += 4)
        multiply_columns<1, Quad>(a, b + c, m, k, n, out + c);
    for (; c < n; ++c)
        multiply_columns<1, float>(a, b + c, m, k, n, out + c);
}

// A polynomial by Horner, from its last coefficient to its first.
template <int N> NCA_INLINE Doubles polynomial(const double (&coefficients)[N], Doubles x) {
    Doubles total = Doubles{} + coefficients[N - 1];
    NCA_UNROLL for (int n = N - 2; n >= 0; --n) total = total * x + coefficients[n];
    return total;
}

// e^x for x from -700 to 0, or NaN.
inline Doubles exponential(Doubles x) {
    constexpr double kLn2High = 6.93147180369123816490e-01,
                     kLn2Low = 1.90821492927058770002e-10; // to 80 bits
    constexpr double kShift = 6755399441055744.0; // 1.5 * 2^52: what is added to it loses its fraction
    constexpr double kTaylor[] = {1,
                                  1,
                                  1.0 / 2,
                                  1.0 / 6,
                                  1.0 / 24,
                                  1.0 / 120,
                                  1.0 / 720,
                                  1.0 / 5040,
                                  1.0 / 40320,
                                  1.0 / 362880,
                                  1.0 / 3628800,
                                  1.0 / 39916800,
                                  1.0 / 479001600,
                                  1.0 / 6227020800};
    const Doubles scaled = x * 1.4426950408889634 + 0.5, nearest = (scaled + kShift) - kShift;
    const Doubles power = nearest - (nearest > scaled ? Doubles{} + 1.0 : Doubles{}); // rounded down
    const Doubles rest = (x - power * kLn2High) - power * kLn2Low;                    // at most 0.35
    // The last bits of the sum are the whole number; they become an exponent.
    return polynomial(kTaylor, rest) * (Doubles)(((Words)(power + kShift) + 1023) << 52);
}

// ln(1 + x) for x from 0 to 1: that of (1 + s) / (1 - s), s at most 1/3.
inline Doubles logarithm(Doubles x) {
    constexpr double kOdd[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                               1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25,
                               1.0 / 27, 1.0 / 29, 1.0 / 31, 1.0 / 33, 1.0 / 35};
    const Doubles s = x / (2.0 + x), square = s * s;
    return 2.0 * s * (1.0 + square * polynomial(kOdd, square));
}

inline void sigmoid_part(const double* from, double* sigmoid, double* softplus) {
    const auto x = load<Doubles>(from);
    const Doubles one = Doubles{} + 1.0, most = Doubles{} + 700.0, size = x < 0.0 ? -x : x;
    const Doubles small = exponential(size > most ? -most : -size);
    store(sigmoid, (x >= 0.0 ? one : small) / (1.0 + small));
    store(softplus, (x > 0.0 ? x : Doubles{}) + logarithm(small));
}

void sigmoid_and_softplus(const double* x, int64_t count, double* sigmoid, double* softplus) {
    constexpr int kLanes = kWidth / 2;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        sigmoid_part(x + i, sigmoid + i, softplus + i);
    if (i == count)
        return;
    double last[3][kLanes] = {};
    for (int k = 0; k < count - i; ++k)
        last[0][k] = x[i + k];
    sigmoid_part(last[0], last[1], last[2]);
    for (int k = 0; k < count - i; ++k) {
        sigmoid[i + k] = last[1][k];
        softplus[i + k] = last[2][k];
    }
}

// Philox4x32-10, kWidth / 2 blocks of four cells at a time. Words stand in 64-bit lanes whose upper halves
// hold leftovers of products: only the lower halves count until the end.
void fire(const FireRow& row, int width, uint8_t* mask) {
    constexpr int kLanes = kWidth / 2;
    Words block = {};
    for (int lane = 0; lane < kLanes; ++lane)
        block[lane] = row.first + (uint64_t)lane;
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
        typedef uint32_t Halves __attribute__((vector_size(4 * kLanes)));
        const Halves four = __builtin_convertvector(bytes, Halves);
        __builtin_memcpy(mask + 4 * first, &four, sizeof four);
    }
}

int list(const uint8_t* mask, int width, int* cells) {
    int count = 0, x = 0;
#if defined(NCA_ISA_AVX512)
    // Sixteen are written, of which the next overwrite those that do not fire: there is room, as many are
    // ahead.
    __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; x + kWidth <= width; x += kWidth) {
        const __m128i bytes = _mm_loadu_si128((const __m128i*)(mask + x));
        const __mmask16 fires = _mm_test_epi8_mask(bytes, bytes);
        _mm512_storeu_si512(cells + count, _mm512_maskz_compress_epi32(fires, numbers));
        count += __builtin_popcount(fires);
        numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(kWidth));
    }
#endif
    for (; x < width; ++x) {
        cells[count] = x;
        count += mask[x] != 0;
    }
    return count;
}

void burst(int rounds, float* out) {
    const Weights factor = spread(out[0]), term = spread(out[1]);
    Weights chains[kBurst];
    for (int i = 0; i < kBurst; ++i)
        chains[i] = spread(out[2]);
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
const Kernels kernels = {NCA_STRING(NCA_ISA),
                         kCells,
                         kOutputs,
                         kPanelVectors,
                         product,
                         gather,
                         scatter,
                         sobel,
                         spread_sobel,
                         add,
                         outer,
                         multiply,
                         sigmoid_and_softplus,
                         fire,
                         list,
                         burst,
                         pack};

} // namespace nca::NCA_ISA
