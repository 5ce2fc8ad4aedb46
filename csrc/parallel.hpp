// The threads: a pool of our own, started on first use, safe after fork and under concurrent calls.
#pragma once

#include <atomic>

#include "interrupt.hpp"

namespace nca {

// Where the threads of one job wait for each other.
class Barrier {
  public:
    Barrier(int threads, const Watch& watch) : threads_(threads), watch_(watch) {}
    // Returns whether to stop, which all threads are told alike.
    bool wait();

  private:
    const int threads_;
    const Watch& watch_;
    bool stop_ = false; // written by the last to arrive, before the others go on
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> generation_{0};
};

// A team that runs one job after the other; each index 0 .. size() - 1 has a thread of its own, index 0 the
// caller's. Workers belong to one team at a time, so that concurrent calls cannot wait for each other.
class Team {
  public:
    // Takes idle workers from the pool and starts those that are missing. When the system refuses to start a
    // thread the team is smaller.
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Calls body(index) on every thread and returns when all are done. The body must not throw. While the
    // caller waits for the others it goes on asking whether to stop.
    template <class Body> void run(Watch& watch, const Body& body) {
        run([](const void* context, int index) { (*static_cast<const Body*>(context))(index); }, &body,
            watch);
    }

    void run(void (*function)(const void*, int), const void* context, Watch& watch);

  private:
    void* workers_; // a list of them; in a borrowing extension (gradient/guest.cpp) the lender's team
    int size_;
};

} // namespace nca
