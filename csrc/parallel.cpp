#include "parallel.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "nca.hpp"

namespace nca {

namespace {

// How often to look again before asking the system to sleep: some ten microseconds, the length of a step of a
// small image.
constexpr int kSpins = 500;

void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

void wait_while_equal(const std::atomic<unsigned>& value, unsigned old) {
    for (int i = 0; i < kSpins; ++i) {
        if (value.load(std::memory_order_acquire) != old)
            return;
        pause_cpu();
    }
    while (value.load(std::memory_order_acquire) == old)
        value.wait(old, std::memory_order_acquire);
}

// A thread that waits until it has a turn, does it, and waits again. It lives as long as the process:
// threads are never joined, so that nothing waits for them at exit.
struct Worker {
    std::atomic<unsigned> started{0}, finished{0}; // turns; they wrap
    std::mutex mutex;                              // for `done`, which says that a turn is finished
    std::condition_variable done;
    void (*function)(const void*, int) = nullptr;
    const void* context = nullptr;
    int index = 0;
    Worker* next = nullptr; // in the pool's or a team's list

    void loop() {
        for (unsigned turn = 0;; ++turn) {
            wait_while_equal(started, turn);
            function(context, index);
            {
                const std::lock_guard lock(mutex);
                finished.store(turn + 1, std::memory_order_release);
            }
            done.notify_one();
        }
    }

    void start() {
        started.fetch_add(1, std::memory_order_release);
        started.notify_one();
    }

    void wait(Watch& watch) {
        const unsigned turn = started.load(std::memory_order_relaxed);
        const auto finished_it = [&] { return finished.load(std::memory_order_acquire) == turn; };
        for (int i = 0; i < kSpins; ++i) {
            if (finished_it())
                return;
            pause_cpu();
        }
        std::unique_lock lock(mutex);
        if (!watch.asks())
            done.wait(lock, finished_it);
        // not by the steady clock, of which ThreadSanitizer does not know
        while (!done.wait_until(lock, std::chrono::system_clock::now() + Watch::kPeriod, finished_it)) {
            lock.unlock(); // to ask takes as long as a handler of signals does
            watch.ask();
            lock.lock();
        }
    }
};

struct Pool {
    std::mutex mutex;
    Worker* idle = nullptr;
};

Pool* pool = nullptr;

// Never destroyed. After fork the child has none of the threads: it gets a new, empty pool.
Pool& the_pool() {
    static std::once_flag once;
    std::call_once(once, [] {
        pool = new Pool;
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
    });
    return *pool;
}

// A new worker, or null where there is no thread or no memory for it.
Worker* start_worker() {
    std::unique_ptr<Worker> worker(new (std::nothrow) Worker);
    try {
        if (worker)
            std::thread(&Worker::loop, worker.get()).detach();
    } catch (const std::exception&) {
        return nullptr;
    }
    return worker.release();
}

} // namespace

bool Barrier::wait() {
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        stop_ = watch_.stopped();
        generation_.store(generation + 1, std::memory_order_release);
        generation_.notify_all();
    } else {
        wait_while_equal(generation_, generation);
    }
    return stop_;
}

Team::Team(int threads) : workers_(nullptr), size_(1) {
    threads = std::min(threads, kMaxThreads);
    Pool& pool = the_pool();
    const std::lock_guard lock(pool.mutex);
    for (; size_ < threads; ++size_) {
        Worker* worker = pool.idle;
        if (worker)
            pool.idle = worker->next;
        else if (!(worker = start_worker()))
            break;
        worker->next = static_cast<Worker*>(workers_);
        workers_ = worker;
    }
}

Team::~Team() {
    Pool& pool = the_pool();
    const std::lock_guard lock(pool.mutex);
    for (Worker *worker = static_cast<Worker*>(workers_), *next; worker; worker = next) {
        next = worker->next;
        worker->next = pool.idle;
        pool.idle = worker;
    }
}

void Team::run(void (*function)(const void*, int), const void* context, Watch& watch) {
    int index = 1;
    for (Worker* worker = static_cast<Worker*>(workers_); worker; worker = worker->next) {
        worker->function = function;
        worker->context = context;
        worker->index = index++;
        worker->start();
    }
    function(context, 0);
    for (Worker* worker = static_cast<Worker*>(workers_); worker; worker = worker->next)
        worker->wait(watch);
}

} // namespace nca
