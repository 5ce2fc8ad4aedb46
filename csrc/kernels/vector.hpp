// The vector type of the instruction set that this file is compiled for, chosen by NCA_ISA_*
// (CMakeLists.txt). Everything has internal linkage: a weak symbol compiled with AVX-512 could be the one
// that the linker keeps for everybody (tests/test_build.py).
#pragma once

#include <cstdint>

#if defined(NCA_ISA_NEON_HALF)
#define NCA_ISA_NEON // all but the products
#endif

#if defined(NCA_ISA_AVX2) || defined(NCA_ISA_AVX512)
#include <immintrin.h>
#elif defined(NCA_ISA_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

#if defined(NCA_ISA_AVX512)
constexpr int kWidth = 16;
#elif defined(NCA_ISA_AVX2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kWidth)));
typedef float Quad __attribute__((vector_size(16)));
#if defined(NCA_ISA_AVX512)
typedef float Octet __attribute__((vector_size(32)));
#endif
typedef uint64_t Words __attribute__((vector_size(4 * kWidth))); // 32-bit words in 64-bit lanes
typedef double Doubles __attribute__((vector_size(4 * kWidth)));

template <class T> inline T load(const void* p) {
    T v;
    __builtin_memcpy(&v, p, sizeof(T));
    return v;
}

template <class T> inline void store(void* p, T v) {
    __builtin_memcpy(p, &v, sizeof(T));
}

// The first 1 <= count <= kWidth floats, then zeros; reads no more.
inline Vector load_first(const float* p, int count) {
#if defined(NCA_ISA_AVX512)
    return _mm512_maskz_loadu_ps((__mmask16)(0xffffu >> (kWidth - count)), p);
#else
    if (count == kWidth)
        return load<Vector>(p);
    Vector v = {};
    for (int i = 0; i < count; ++i)
        v[i] = p[i];
    return v;
#endif
}

// a * b + c, rounded once where the instruction set can.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(NCA_ISA_AVX512)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(NCA_ISA_AVX2)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(NCA_ISA_NEON)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

inline Vector broadcast(float x) {
#if defined(NCA_ISA_AVX512)
    return _mm512_set1_ps(x);
#elif defined(NCA_ISA_AVX2)
    return _mm256_set1_ps(x);
#else
    return Vector{x, x, x, x};
#endif
}

// What a product reads and sums: a weight, a register of weights, and how many registers of floats hold as
// many.
#if defined(NCA_ISA_NEON_HALF)

typedef float16_t Weight;
typedef float16x8_t Weights;
constexpr int kParts = 2;

// Rounded to nearest; what is beyond 65504 becomes infinite.
inline Weights narrow(Vector low, Vector high) {
    return vcvt_high_f16_f32(vcvt_f16_f32(low), high);
}

inline Vector widen(const Weight* p) {
    return vcvt_f32_f16(vld1_f16(p));
}

inline Weights spread(float x) {
    return vdupq_n_f16((Weight)x);
}

inline Weights multiply_add(Weights a, Weights b, Weights c) {
    return vfmaq_f16(c, a, b);
}

// a * b[lane] + c. Not vfmaq_laneq_f16, for which GCC copies lanes that are used twice into registers of
// their own. Only the lower sixteen registers give lanes (x).
template <int lane> inline Weights multiply_add_lane(Weights a, Weights b, Weights c) {
    __asm__("fmla %0.8h, %1.8h, %2.h[%c3]" : "+w"(c) : "w"(a), "x"(b), "i"(lane));
    return c;
}

#else

typedef float Weight;
typedef Vector Weights;
constexpr int kParts = 1;

inline Vector widen(const Weight* p) {
    return load<Vector>(p);
}

inline Weights spread(float x) {
    return broadcast(x);
}

#endif

constexpr int kOutputs = kWidth * kParts; // in a register of weights

// The 64-bit products of the lower 32 bits of each lane with a constant.
inline Words multiply_wide(Words a, uint32_t b) {
#if defined(NCA_ISA_AVX512)
    // masked with all lanes: GCC 12 warns of its own header's unmasked form
    return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(b));
#elif defined(NCA_ISA_AVX2)
    return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(NCA_ISA_NEON)
    return (Words)vmull_n_u32(vmovn_u64((uint64x2_t)a), b);
#elif defined(__SSE2__)
    return (Words)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffffu) * b;
#endif
}

} // namespace
