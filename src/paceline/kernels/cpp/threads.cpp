#include "threads.hpp"

#include <chrono>
#include <map>

#include "records.hpp"

namespace paceline {
namespace {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int kSpinsBeforeYield = 1000;       // some 50 microseconds
constexpr auto kAwake = std::chrono::microseconds(1000);

}  // namespace

void wait(Barrier& barrier) {
    if (barrier.threads == 1) return;
    const uint32_t round = barrier.round.load(std::memory_order_relaxed);
    if (barrier.arrived.fetch_add(1, std::memory_order_acq_rel) == barrier.threads - 1) {
        barrier.arrived.store(0, std::memory_order_relaxed);
        barrier.round.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; barrier.round.load(std::memory_order_acquire) == round; spins++)
        if (spins < kSpinsBeforeYield) relax();
        else std::this_thread::yield();
}

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads) {
    static std::mutex mutex;
    static std::map<int, std::weak_ptr<ThreadPool>> pools;
    const std::lock_guard lock(mutex);
    auto pool = pools[threads].lock();
    if (!pool) pools[threads] = pool = std::make_shared<ThreadPool>(threads);
    return pool;
}

ThreadPool::ThreadPool(int threads) : barrier(threads) {
    for (int thread = 1; thread < threads; thread++) workers_.emplace_back([this, thread] { serve(thread); });
}

ThreadPool::~ThreadPool() {
    stop_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(int)>& work) {
    if (workers_.empty()) return work(0);       // on the caller's thread, beside other callers
    const std::lock_guard lock(turn_);
    work_ = &work;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    work(0);
    wait(barrier);           // nobody still uses `work` after this
}

void ThreadPool::serve(int thread) {
    uint32_t seen = 0;
    while (true) {
        const auto until = std::chrono::steady_clock::now() + kAwake;
        for (int spins = 0; round_.load(std::memory_order_acquire) == seen; spins++) {
            relax();
            if (spins % 1024 == 1023 && std::chrono::steady_clock::now() > until) round_.wait(seen, std::memory_order_acquire);
        }
        seen++;
        if (stop_) return;
        (*work_)(thread);
        wait(barrier);
    }
}

}  // namespace paceline
