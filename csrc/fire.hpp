// The fire mask as a pure function of (seed, sample, level, step, cell), fixed for ever.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
//   key     = (seed's low 32 bits, its high 32 bits)
//   counter = (x >> 2, y, z, step | level << 16 | sample << 20)
// Cell x takes word x & 3 and fires if it is below round(fire_rate * 2^32), compared in 64 bits.
// Included by kernel files: nothing of std:: here.
#pragma once

#include <cstdint>

namespace nca {

constexpr int kMaxSteps = (1 << 16) - 1;
constexpr int kMaxLevels = 1 << 4;
constexpr int kMaxSamples = 1 << 12;

namespace philox {
constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
} // namespace philox

} // namespace nca
