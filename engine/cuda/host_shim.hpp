// A host that stands in for a GPU: enough of CUDA, in one header, to compile engine/cuda/*.cu with the host's compiler and to
// run them thread by thread, so that their bits can be tested where there is no GPU. Slow, and no word about speed.
//
// Threads of a block are fibers of one thread of the host. Each runs until it must wait: at __syncthreads for its block, at
// a shuffle, a reduction or a matrix product for its warp. When all that could run have run, those whose company is complete go on.
// So a missing barrier shows: a thread finds what the others have not yet written (shared memory is filled with 0xAB before
// every block), in one order of the threads if not in another; `schedule` chooses the order: forwards, backwards, or
// shuffled anew at every round. A barrier that not all threads reach, or two kinds of them met by one warp, end the program
// with a message.
//
// Memory of the device lies in one mapping that can be touched only while a kernel or a copy runs: host code that follows a
// device pointer crashes here as it would there. Fresh memory is filled with 0xCD. Streams do at once what they are told;
// a graph is the list of what it was told.
//
// What it cannot show: races within a warp that the hardware would resolve otherwise, races between blocks (they run one
// after the other, in the order of the schedule), misaligned loads (the sanitizer does), and anything about time.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// ---- The language ---------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// All shared memory of a program in one place, so that it can be spoilt.
#define __shared__ static __attribute__((section("mi_shared")))

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNoDevice = 100,
    cudaErrorLaunchFailure = 719
};

// The linker's names for the ends of the section, if this library or program has it.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_mi_shared[], __stop_mi_shared[];

// ---- Fibers ---------------------------------------------------------------------------------------------------------

namespace shim {

enum class Schedule { forwards, backwards, shuffled };

// What a thread waits for.
enum class Wait : uint8_t { nothing, block, warp, done };

#if defined(__x86_64__)
// Stores the callee's registers and stack in *from and takes up those of `to`.
extern "C" void mi_shim_switch(void **from, void *to);
asm(R"(
.text
.weak mi_shim_switch
.hidden mi_shim_switch
.type mi_shim_switch, @function
mi_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size mi_shim_switch, .-mi_shim_switch
)");
#endif

constexpr unsigned most_threads = 1024, warp_size = 32;
constexpr size_t stack_bytes = size_t{1} << 17;

struct Fiber {
    char *stack = nullptr;  // [stack_bytes]
#if defined(__x86_64__)
    void *saved = nullptr;
#else
    ucontext_t saved;
#endif
    Wait wait = Wait::done;
    const char *at = nullptr;  // what it waits in
    unsigned turn = 0;         // collectives so far
};

[[noreturn]] inline void die(const char *what, const char *more = "") {
    std::fprintf(stderr, "host shim: %s%s\n", what, more);
    std::abort();
}

struct Machine;
Machine &machine();

struct Graph {
    std::vector<std::function<void()>> steps;
};

// The one device. Its lock makes it serve one host thread at a time.
struct Machine {
    std::recursive_mutex lock;
    Schedule schedule = Schedule::forwards;
    uint64_t random = 1;
    Graph *capturing = nullptr;
    cudaError_t last_error = cudaSuccess;
    long calls_to_failure = -1;  // runtime calls that still succeed; below zero: all
    long launches = 0;

    dim3 grid, block, block_index;
    unsigned thread = 0, threads = 0;  // the one that runs, of how many
    Fiber fibers[most_threads];
    uint32_t exchanged[2][most_threads][8];  // what lanes show one another, by turns
    std::function<void()> kernel;
#if defined(__x86_64__)
    void *home = nullptr;
#else
    ucontext_t home;
#endif
    const void *home_stack = nullptr;
    size_t home_stack_bytes = 0;

    // ---- memory of the device
    static constexpr size_t arena_bytes = size_t{1} << 32, guard = 256;
    char *arena = nullptr;
    size_t used = 0;
    int open = 0;
    std::map<void *, size_t> blocks;

    void access(bool on) {
        if (!arena) return;
        open += on ? 1 : -1;
        if (open == (on ? 1 : 0)) mprotect(arena, used, on ? PROT_READ | PROT_WRITE : PROT_NONE);
    }

    uint64_t next_random() {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return random;
    }

    // A number of things in the order of the schedule.
    void order(std::vector<unsigned> &out, unsigned n) {
        out.resize(n);
        for (unsigned i = 0; i < n; ++i) out[i] = schedule == Schedule::backwards ? n - 1 - i : i;
        if (schedule == Schedule::shuffled)
            for (unsigned i = n; i > 1; --i) std::swap(out[i - 1], out[(next_random() >> 32) * i >> 32]);
    }

    // ---- switching
    void to_home() {
        Fiber &fiber = fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
        void *fake = nullptr;
        __sanitizer_start_switch_fiber(fiber.wait == Wait::done ? nullptr : &fake, home_stack, home_stack_bytes);
#endif
#if defined(__x86_64__)
        mi_shim_switch(&fiber.saved, home);
#else
        swapcontext(&fiber.saved, &home);
#endif
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    void to_fiber(unsigned t) {
        thread = t;
        Fiber &fiber = fibers[t];
#if defined(__SANITIZE_ADDRESS__)
        void *fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, fiber.stack, stack_bytes);
#endif
#if defined(__x86_64__)
        mi_shim_switch(&home, fiber.saved);
#else
        swapcontext(&home, &fiber.saved);
#endif
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    static void body() {
        Machine &m = machine();
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &m.home_stack, &m.home_stack_bytes);
#endif
        m.kernel();
        m.fibers[m.thread].wait = Wait::done;
        m.to_home();
        die("a thread that had ended was taken up again");
    }

    void prepare(unsigned t) {
        Fiber &fiber = fibers[t];
        if (!fiber.stack) {
            void *stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED) die("no memory for a thread's stack");
            fiber.stack = static_cast<char *>(stack);
        }
        fiber.wait = Wait::nothing, fiber.turn = 0;
#if defined(__x86_64__)
        void **top = reinterpret_cast<void **>(fiber.stack + stack_bytes) - 1;  // as after a call
        *top = nullptr;
        *--top = reinterpret_cast<void *>(&body);
        fiber.saved = top - 6;
#else
        getcontext(&fiber.saved);
        fiber.saved.uc_stack.ss_sp = fiber.stack;
        fiber.saved.uc_stack.ss_size = stack_bytes;
        fiber.saved.uc_link = nullptr;
        makecontext(&fiber.saved, &body, 0);
#endif
    }

    void wait_for(Wait what, const char *at) {
        fibers[thread].wait = what, fibers[thread].at = at;
        to_home();
    }

    // Whether all of first ... first + n - 1 wait for the same; those that do go on.
    bool release(unsigned first, unsigned n, Wait what) {
        unsigned there = 0;
        for (unsigned t = first; t < first + n; ++t) there += fibers[t].wait == what;
        if (there < n) return false;
        for (unsigned t = first; t < first + n; ++t) {
            if (std::strcmp(fibers[t].at, fibers[first].at) != 0) die("a warp divides at ", fibers[t].at);
            fibers[t].wait = Wait::nothing;
        }
        return true;
    }

    void run_block(char *shared, size_t shared_bytes) {
        if (shared_bytes > 0) std::memset(shared, 0xab, shared_bytes);
        for (unsigned t = 0; t < threads; ++t) prepare(t);
        std::vector<unsigned> turns;
        for (;;) {
            order(turns, threads);
            for (unsigned t : turns)
                if (fibers[t].wait == Wait::nothing) to_fiber(t);
            bool on = release(0, threads, Wait::block);
            for (unsigned w = 0; w < threads; w += warp_size) on |= release(w, warp_size, Wait::warp);
            if (on) continue;
            for (unsigned t = 0; t < threads; ++t)
                if (fibers[t].wait != Wait::done) die("not all threads come to ", fibers[t].at);
            return;
        }
    }

    void run(dim3 g, dim3 b, char *shared, size_t shared_bytes, const std::function<void()> &body_of_kernel) {
        threads = b.x * b.y * b.z;
        if (b.y != 1 || b.z != 1 || threads == 0 || threads > most_threads || threads % warp_size != 0)
            die("blocks must be of whole warps in one dimension, at most 1024 threads");
        if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535) {
            last_error = cudaErrorInvalidValue;
            return;
        }
        ++launches;
        grid = g, block = b, kernel = body_of_kernel;
        access(true);
        std::vector<unsigned> blocks_in_order;
        order(blocks_in_order, g.x * g.y * g.z);
        for (unsigned i : blocks_in_order) {
            block_index = {i % g.x, i / g.x % g.y, i / g.x / g.y};
            run_block(shared, shared_bytes);
        }
        access(false);
    }
};

inline Machine &machine() {
    static Machine *const the_machine = new Machine;  // never taken down: fibers may be on its stacks
    return *the_machine;
}

inline cudaError_t failing() {
    Machine &m = machine();
    if (m.calls_to_failure < 0) return cudaSuccess;
    return m.calls_to_failure-- == 0 ? (m.calls_to_failure = 0, cudaErrorLaunchFailure) : cudaSuccess;
}

// At once, or when the graph that is being recorded is launched.
inline cudaError_t perform(std::function<void()> step) {
    Machine &m = machine();
    const std::lock_guard<std::recursive_mutex> hold(m.lock);
    if (const cudaError_t error = failing()) return m.last_error = error;
    if (m.capturing)
        m.capturing->steps.push_back(std::move(step));
    else
        step();
    return cudaSuccess;
}

inline void launch(dim3 grid, dim3 block, char *shared, size_t shared_bytes, std::function<void()> kernel) {
    perform([=] { machine().run(grid, block, shared, shared_bytes, kernel); });
}

// What every lane of the warp shows: `words` of it, from all 32, once all are here.
struct Shown {
    const uint32_t (*lanes)[8];
};
inline Shown show(const char *at, const uint32_t *mine, int words) {
    Machine &m = machine();
    Fiber &fiber = m.fibers[m.thread];
    uint32_t (*const buffer)[8] = m.exchanged[fiber.turn++ & 1];  // a lane that is ahead must not overwrite this turn's
    std::memcpy(buffer[m.thread], mine, static_cast<size_t>(words) * sizeof *mine);
    const unsigned first = m.thread & ~(warp_size - 1);
    m.wait_for(Wait::warp, at);
    return {buffer + first};
}

inline void whole(unsigned mask) {
    if (mask != 0xffffffff) die("only whole warps act together here");
}

template <class T>
T shuffle(const char *at, T v, unsigned source, bool valid = true) {
    uint32_t words[2] = {};
    std::memcpy(words, &v, sizeof v);
    const Shown shown = show(at, words, 2);
    if (valid) std::memcpy(&v, shown.lanes[source], sizeof v);
    return v;
}

template <class T>
T reduce_add(const char *at, T v) {
    const uint32_t mine = static_cast<uint32_t>(v);
    const Shown shown = show(at, &mine, 1);
    uint32_t sum = 0;
    for (unsigned i = 0; i < warp_size; ++i) sum += shown.lanes[i][0];
    return static_cast<T>(sum);
}

// mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32: the fragments as the PTX ISA lays them out.
inline void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned lane = machine().thread & (warp_size - 1);
    const Shown shown = show("mma", mine, 6);
    const auto byte = [&](unsigned owner, int word, unsigned k) {
        return static_cast<int32_t>(static_cast<int8_t>(shown.lanes[owner][word] >> (8 * k)));
    };
    for (int i = 0; i < 4; ++i) {
        const unsigned row = (lane >> 2) + 8 * static_cast<unsigned>(i >> 1);
        const unsigned column = 2 * (lane & 3) + static_cast<unsigned>(i & 1);
        uint32_t sum = static_cast<uint32_t>(d[i]);
        for (unsigned k = 0; k < 32; ++k) {
            const unsigned quad = k >> 2 & 3, far = k >> 4;  // columns 0 ... 15, then 16 ... 31
            const int a_word = static_cast<int>(2 * far + (row >> 3)), b_word = 4 + static_cast<int>(far);
            sum += static_cast<uint32_t>(byte(4 * (row & 7) + quad, a_word, k & 3) *
                                         byte(4 * column + quad, b_word, k & 3));
        }
        d[i] = static_cast<int32_t>(sum);
    }
}

// ---- The runtime's objects

struct Stream {
    int unused = 0;
};

}  // namespace shim

// What a kernel asks for.
#define threadIdx (dim3(::shim::machine().thread, 0, 0))
#define blockIdx (::shim::machine().block_index)
#define blockDim (::shim::machine().block)
#define gridDim (::shim::machine().grid)
#define __syncthreads() ::shim::machine().wait_for(::shim::Wait::block, "__syncthreads")

#define MI_LAUNCH(kernel, grid, block, stream, ...)                                                                \
    ((void)(stream),                                                                                               \
     ::shim::launch((grid), (block), __start_mi_shared, static_cast<size_t>(__stop_mi_shared - __start_mi_shared), \
                    [=] { kernel(__VA_ARGS__); }))

template <class T>
T __shfl_xor_sync(unsigned mask, T v, int apart) {
    shim::whole(mask);
    return shim::shuffle("__shfl_xor_sync", v, (shim::machine().thread & 31) ^ static_cast<unsigned>(apart));
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned apart) {
    shim::whole(mask);
    const unsigned lane = shim::machine().thread & 31;
    return shim::shuffle("__shfl_up_sync", v, lane - apart, lane >= apart);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned apart) {
    shim::whole(mask);
    const unsigned lane = shim::machine().thread & 31;
    return shim::shuffle("__shfl_down_sync", v, lane + apart, lane + apart < 32);
}
template <class T>
T __reduce_add_sync(unsigned mask, T v) {
    shim::whole(mask);
    return shim::reduce_add("__reduce_add_sync", v);
}
template <class T>
T atomicAdd(T *at, T v) {
    const T old = *at;
    *at = old + v;
    return old;
}
inline int __dp4a(int a, int b, int c) {
    uint32_t sum = static_cast<uint32_t>(c);
    for (int i = 0; i < 32; i += 8)
        sum += static_cast<uint32_t>(static_cast<int8_t>(static_cast<uint32_t>(a) >> i) *
                                     static_cast<int8_t>(static_cast<uint32_t>(b) >> i));
    return static_cast<int>(sum);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t both = uint64_t{b} << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return out;
}

// ---- The runtime ----------------------------------------------------------------------------------------------------

using cudaStream_t = shim::Stream *;
using cudaGraph_t = shim::Graph *;
using cudaGraphExec_t = shim::Graph *;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
constexpr unsigned cudaStreamNonBlocking = 1;

inline const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory"
           : error == cudaErrorInvalidValue   ? "invalid argument"
           : error == cudaErrorNoDevice       ? "no CUDA-capable device is detected"
                                              : "unspecified launch failure";
}
inline cudaError_t cudaGetLastError() { return std::exchange(shim::machine().last_error, cudaSuccess); }
inline cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, shim::failing(); }

inline cudaError_t cudaMalloc(void **out, size_t bytes) {
    shim::Machine &m = shim::machine();
    const std::lock_guard<std::recursive_mutex> hold(m.lock);
    if (const cudaError_t error = shim::failing()) return error;
    if (!m.arena) {
        void *arena = mmap(nullptr, m.arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena == MAP_FAILED) return cudaErrorMemoryAllocation;
        m.arena = static_cast<char *>(arena);
    }
    constexpr size_t page = 4096;
    const size_t whole = (bytes + m.guard + page - 1) & ~(page - 1);
    if (whole < bytes || whole > m.arena_bytes - m.used) return cudaErrorMemoryAllocation;
    char *block = m.arena + m.used;
    m.used += whole;
    m.access(true);
    mprotect(block, whole, PROT_READ | PROT_WRITE);
    std::memset(block, 0xcd, bytes);
    std::memset(block + bytes, 0xee, whole - bytes);
    mprotect(block, whole, PROT_NONE);
    m.access(false);
    m.blocks[block] = bytes;
    *out = block;
    return cudaSuccess;
}
// Memory is given back to the system, its addresses are not used again: what still points there crashes.
inline cudaError_t cudaFree(void *p) {
    shim::Machine &m = shim::machine();
    const std::lock_guard<std::recursive_mutex> hold(m.lock);
    const auto found = m.blocks.find(p);
    if (!p) return cudaSuccess;
    if (found == m.blocks.end()) shim::die("cudaFree of what was not allocated");
    m.access(true);
    const char *end = static_cast<char *>(p) + found->second;
    for (size_t i = 0; i < m.guard; ++i)
        if (end[i] != '\xee') shim::die("written beyond the end of a block of device memory");
    madvise(p, found->second, MADV_DONTNEED);
    m.access(false);
    m.blocks.erase(found);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return shim::perform([=] {
        shim::machine().access(true);
        std::memcpy(to, from, bytes);
        shim::machine().access(false);
    });
}
inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
    return shim::perform([=] {
        shim::machine().access(true);
        std::memset(to, value, bytes);
        shim::machine().access(false);
    });
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    if (const cudaError_t error = shim::failing()) return error;
    *out = new shim::Stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return shim::failing(); }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    if (const cudaError_t error = shim::failing()) return error;
    shim::machine().capturing = new shim::Graph;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *out) {
    *out = std::exchange(shim::machine().capturing, nullptr);
    return shim::failing();
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long = 0) {
    if (const cudaError_t error = shim::failing()) return error;
    *out = new shim::Graph(*graph);
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    return shim::perform([graph] {
        for (const auto &step : graph->steps) step();
    });
}
