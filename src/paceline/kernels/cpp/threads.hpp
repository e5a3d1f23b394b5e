// A few threads that run the same function together, and the barrier between its stages.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace paceline {

// Sense-reversing barrier. Waiting threads spin, and give way to others once a wait is long.
struct Barrier {
    explicit Barrier(int count) : threads(count) {}
    const int threads;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> round{0};
};

// Runs a function on all threads at once; the caller is thread 0. Workers spin for about a millisecond after a run,
// so that they are awake for the next step of a decoding loop, and then sleep.
class ThreadPool {
  public:
    // The pool of that many threads that all models share: the spinning workers of a target and of a model that drafts
    // for it would keep each other from the cores. Runs of different callers take turns, unless each is on one thread.
    static std::shared_ptr<ThreadPool> shared(int threads);
    explicit ThreadPool(int threads);
    ~ThreadPool();
    void run(const std::function<void(int)>& work);
    int size() const { return (int)workers_.size() + 1; }
    Barrier barrier;

  private:
    void serve(int thread);
    std::mutex turn_;
    const std::function<void(int)>* work_ = nullptr;
    alignas(64) std::atomic<uint32_t> round_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace paceline
