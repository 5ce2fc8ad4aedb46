// How a call that takes long learns that whoever made it wants it to stop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace nca {

// `asked` says whether to stop. It is called by the thread that made the call, five times a second, once the
// call has taken that long; null where nobody will ask.
struct Interrupt {
    bool (*asked)(void* context) noexcept = nullptr;
    void* context = nullptr;
};

// What the threads of one call look at.
class Watch {
  public:
    explicit Watch(const Interrupt& interrupt) : interrupt_(interrupt), next_(Clock::now() + kPeriod) {}

    bool asks() const { return interrupt_.asked; }
    bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

    // Asks if it is time; by the thread that made the call alone.
    void ask() noexcept {
        if (!asks() || stopped() || Clock::now() < next_)
            return;
        if (interrupt_.asked(interrupt_.context))
            stopped_.store(true, std::memory_order_relaxed);
        next_ = Clock::now() + kPeriod;
    }

    static constexpr std::chrono::milliseconds kPeriod{200};

  private:
    using Clock = std::chrono::steady_clock;

    const Interrupt interrupt_;
    Clock::time_point next_;
    std::atomic<bool> stopped_{false};
};

// Where one thread says what it has done, so that a clock is read once in about a millisecond.
class Lookout {
  public:
    Lookout(Watch& watch, bool made_the_call) : watch_(&watch), asks_(made_the_call && watch.asks()) {}

    // Whether to stop, after so many multiply-adds more or what takes as long.
    bool stop(uint64_t work) {
        if (asks_ && (work_ += work) >= kWork) {
            work_ = 0;
            watch_->ask();
        }
        return watch_->stopped();
    }

  private:
    static constexpr uint64_t kWork = 1 << 23;

    Watch* watch_;
    bool asks_;
    uint64_t work_ = 0;
};

} // namespace nca
