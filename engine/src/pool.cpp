#include "pool.hpp"

#if MI_THREADS
#include <thread>
#include <vector>
#endif

namespace mi {

#if MI_THREADS

namespace {

// About 20 microseconds: longer than a layer's parts take and the calling thread needs between two tokens.
constexpr int patience = 2000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: awake at first, then asleep.
template <class T>
T changed(const std::atomic<T> &value, T old) {
    for (int i = 0; i < patience; ++i) {
        const T now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

}  // namespace

struct Pool::Shared {
    // What is there to do: the number of the task (32 bits), its parts (16), the next part that nobody has taken (16). Whoever
    // takes a part by adding one to all this knows that `call` and `work` were that task's when it read them: they change
    // only after all parts of it are done, and the number changes with them.
    std::atomic<uint64_t> task{0};
    std::atomic<Call> call{nullptr};
    std::atomic<const void *> work{nullptr};
    std::atomic<int> unfinished{0};
    std::vector<std::thread> helpers;

    static constexpr uint64_t end = ~uint64_t{0};  // more parts than any task has, all taken
    static constexpr uint64_t next_of(uint64_t t) { return t & 0xffff; }
    static constexpr uint64_t parts_of(uint64_t t) { return t >> 16 & 0xffff; }

    // Does parts as long as there are any; gives the state of the task in which there were none.
    uint64_t help() {
        uint64_t seen = task.load(std::memory_order_acquire);
        while (next_of(seen) < parts_of(seen)) {
            const Call function = call.load(std::memory_order_relaxed);
            const void *argument = work.load(std::memory_order_relaxed);
            if (!task.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            function(argument, static_cast<int>(next_of(seen)));
            if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
            seen = task.load(std::memory_order_acquire);
        }
        return seen;
    }

    // The end is a state of the task, not a flag beside it: what a helper waits for a change of is what it has looked at.
    void live() {
        for (uint64_t seen; (seen = help()) != end;) changed(task, seen);
    }

    ~Shared() {
        task.store(end, std::memory_order_release);
        task.notify_all();
        for (std::thread &helper : helpers) helper.join();
    }
};

Pool::Pool(int threads) : threads_(std::max(threads, 1)) {
    if (threads_ == 1) return;
    shared_ = std::make_unique<Shared>();
    shared_->helpers.reserve(static_cast<size_t>(threads_ - 1));
    for (int i = 1; i < threads_; ++i) shared_->helpers.emplace_back(&Shared::live, shared_.get());
}

void Pool::share(int parts, Call call, const void *work) {
    Shared &s = *shared_;
    s.unfinished.store(parts, std::memory_order_relaxed);
    s.call.store(call, std::memory_order_relaxed);
    s.work.store(work, std::memory_order_relaxed);
    const uint64_t number = (s.task.load(std::memory_order_relaxed) >> 32) + 1;
    s.task.store(number << 32 | static_cast<uint64_t>(parts) << 16, std::memory_order_release);
    s.task.notify_all();
    s.help();
    for (int left; (left = s.unfinished.load(std::memory_order_acquire)) != 0;) changed(s.unfinished, left);
}

#else

struct Pool::Shared {};

Pool::Pool(int) : threads_(1) {}

void Pool::share(int parts, Call call, const void *work) {
    for (int i = 0; i < parts; ++i) call(work, i);
}

#endif

Pool::~Pool() = default;

}  // namespace mi
