#include "probe.hpp"

#include <algorithm>
#include <chrono>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace nca {

double peak_flops(int threads, double seconds, const Interrupt& interrupt) {
    using Clock = std::chrono::steady_clock;
    constexpr int kRounds = 200'000; // about half a millisecond
    const Kernels& kernels = active_kernels();
    Watch watch(interrupt);
    Team team(std::max(threads, 1));
    const double operations = 2.0 * kRounds * kBurst * kernels.width * team.size();
    double best = 0.0;
    const auto seconds_since = [](Clock::time_point began) {
        return std::chrono::duration<double>(Clock::now() - began).count();
    };
    const auto start = Clock::now();
    do {
        const auto began = Clock::now();
        team.run(watch, [&](int) {
            float numbers[3] = {0.999f, 0.001f, 0.5f}; // a fixed point near 1: never denormal
            kernels.burst(kRounds, numbers);
        });
        best = std::max(best, operations / seconds_since(began));
        watch.ask();
    } while (seconds_since(start) < seconds && !watch.stopped());
    return watch.stopped() ? -1.0 : best;
}

} // namespace nca
