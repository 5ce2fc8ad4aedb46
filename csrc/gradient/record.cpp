#include "record.hpp"

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace nca {

namespace {

// Memory of records that are gone. Lives as long as the process, as nobody knows which record goes last.
// After fork the child gets new ones, as a thread that it does not have may be at work on these.
class Spares {
  public:
    using Memory = std::unique_ptr<float[], KeepSpare>;

    static Spares& get() {
        static std::atomic<Spares*> spares = [] {
#if !defined(_WIN32)
            pthread_atfork(nullptr, nullptr, [] { spares = new Spares(spares.load()->users_); });
#endif
            return new Spares(0);
        }();
        return *spares.load();
    }

    // The smallest that is large enough, or a new one in place of the largest that is not. Not zeroed.
    Memory take(size_t floats) {
        const std::lock_guard lock(mutex_);
        auto found = spares_.lower_bound(floats);
        if (found == spares_.end()) {
            if (!spares_.empty())
                spares_.erase(std::prev(found));
            const size_t size = floats + floats / 8; // the next may need a few more
            return Memory(new float[size], {size});
        }
        const size_t size = found->first;
        float* data = found->second.release();
        spares_.erase(found);
        return Memory(data, {size});
    }

    void keep(float* data, size_t floats) {
        std::unique_ptr<float[]> spare(data);
        const std::lock_guard lock(mutex_);
        if (users_ > 0)
            spares_.emplace(floats, std::move(spare));
    }

    void reuse(bool more) {
        const std::lock_guard lock(mutex_);
        users_ += more ? 1 : -1;
        if (users_ <= 0)
            spares_.clear();
    }

  private:
    explicit Spares(int users) : users_(users) {}

    std::mutex mutex_;
    std::atomic<int> users_;                                 // read by a child without the lock
    std::multimap<size_t, std::unique_ptr<float[]>> spares_; // by their size
};

} // namespace

void KeepSpare::operator()(float* p) const {
    Spares::get().keep(p, floats);
}

void reuse_memory(bool more) {
    Spares::get().reuse(more);
}

Record::Record(const RuleWeights& weights, size_t count, int steps)
    : count_(count), channels_(weights.channels),
      remembers_perceived_(weights.perception == Perception::conv), ends_(steps * count + 1) {}

void Record::make_room() {
    std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
    constexpr size_t kLine = 16;                                                  // floats
    const size_t floats = (ends_.back() * channels_ + kLine - 1) / kLine * kLine; // of states
    memory_ = Spares::get().take(floats * (remembers_perceived_ ? 3 : 1) + kLine);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float);
    states_ = memory_.get() + (kLine - address % kLine) % kLine;
    if (remembers_perceived_)
        perceived_ = states_ + floats;
}

} // namespace nca
