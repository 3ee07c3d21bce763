// Threads that work on the parts of one task together. Which thread does which part is left to chance; what the parts
// compute must not depend on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

namespace mi {

// Builds for machines without threads (-DMI_THREADS=0) do all parts in the calling thread.
#if !defined(MI_THREADS)
#define MI_THREADS 1
#endif

class Pool {
  public:
    // `threads` in all, the caller's among them. They sleep while there is nothing to do, but for some microseconds after a
    // task, in which the next one is usually there. Throws std::system_error.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return threads_; }

    // Calls work(i) for i = 0 ... parts - 1 (parts < 2^16 - 1), each once, and returns when all are done. Not to be called from
    // within, and by one thread at a time.
    template <class Work>
    void run(int parts, const Work &work) {
        if (threads_ == 1 || parts <= 1) {
            for (int i = 0; i < parts; ++i) work(i);
        } else {
            share(parts, [](const void *w, int i) { (*static_cast<const Work *>(w))(i); }, &work);
        }
    }

    // As run, for ranges: calls work(begin, end) for pieces of 0 ... n - 1 that are multiples of `grain` long.
    template <class Work>
    void split(int n, int grain, const Work &work) {
        if (threads_ == 1 || n <= grain) return work(0, n);
        const int even = n >> (std::bit_width(static_cast<unsigned>(threads_)) + 1);  // some pieces for each thread
        int piece = grain;
        while (piece < even) piece += grain;
        int parts = 0;
        for (int begin = 0; begin < n; begin += piece) ++parts;
        run(parts, [&](int i) { work(i * piece, std::min(n, (i + 1) * piece)); });
    }

  private:
    using Call = void (*)(const void *work, int part);
    struct Shared;

    void share(int parts, Call call, const void *work);

    int threads_;
    std::unique_ptr<Shared> shared_;  // null where the caller's is the only thread
};

}  // namespace mi
