// What this machine can do at most: the yardstick of the benchmarks.
#pragma once

#include "interrupt.hpp"

namespace nca {

// Floating-point operations a second, two a multiply-add, of the active kernels in registers alone: the best
// of bursts during about `seconds` on so many threads at once. Negative where it was interrupted.
double peak_flops(int threads, double seconds, const Interrupt& interrupt = {});

} // namespace nca
