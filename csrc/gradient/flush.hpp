// Subnormal numbers, which processors compute many times more slowly than others, taken for zero.
#pragma once

#include <cstdint>

#if defined(__SSE__) || defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace nca {

// While one exists, this thread reads and writes zero in place of a subnormal number.
class FlushSubnormals {
  public:
    FlushSubnormals() : before_(control()) { set_control(before_ | kFlush); }
    ~FlushSubnormals() { set_control(before_); }
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;

  private:
#if defined(__SSE__) || defined(__x86_64__) || defined(_M_X64)
    static constexpr uint64_t kFlush = 0x8040; // FTZ for results, DAZ for operands
    static uint64_t control() { return _mm_getcsr(); }
    static void set_control(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__) || defined(_M_ARM64)
    static constexpr uint64_t kFlush = uint64_t{1} << 24; // FZ, for both
    static uint64_t control() {
        uint64_t value;
        __asm__ volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set_control(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
    static constexpr uint64_t kFlush = 0;
    static uint64_t control() { return 0; }
    static void set_control(uint64_t) {}
#endif
    const uint64_t before_;
};

} // namespace nca
