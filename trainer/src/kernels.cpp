// The C interface of the training kernels: threads, and the choice of instruction set.

#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#define MI_DECLARE(NAMESPACE)                                                                               \
    namespace NAMESPACE {                                                                                   \
    void mixer_forward(const mi_mixer &, int, int);                                                         \
    void mixer_backward(const mi_mixer &, const mi_mixer_grads &, int, int, float *);                       \
    void requantise(const int32_t *, const int32_t *, int, int16_t *, float *, int64_t, int, int);          \
    void residual_add(const float *, const int32_t *, const int32_t *, int, float *, int64_t, int);         \
    void norm_forward(const mi_norm &, int64_t, int64_t);                                                   \
    void norm_backward(const mi_norm &, const float *, float *, float *, int64_t, int64_t);                 \
    void cross_entropy(void *, int, float, const int64_t *, const float *, float *, int64_t, int64_t, int); \
    }

MI_DECLARE(baseline)
#if defined(MI_X86)
MI_DECLARE(v3)
MI_DECLARE(v4)

namespace {
enum class Isa { baseline, v3, v4 };

// The largest that the processor has; MAMBA_INTEGER_TRAIN_ISA=baseline, v3 or v4 asks for a smaller one.
Isa choose() {
    const char *asked = std::getenv("MAMBA_INTEGER_TRAIN_ISA");
    const bool v4 = asked == nullptr || std::strcmp(asked, "v4") == 0;
    const bool v3 = v4 || std::strcmp(asked, "v3") == 0;
    if (v4 && __builtin_cpu_supports("x86-64-v4")) return Isa::v4;
    if (v3 && __builtin_cpu_supports("x86-64-v3")) return Isa::v3;
    return Isa::baseline;
}

Isa isa() {
    static const Isa chosen = choose();
    return chosen;
}
}  // namespace

#define MI_CALL(...) (isa() == Isa::v4 ? v4::__VA_ARGS__ : isa() == Isa::v3 ? v3::__VA_ARGS__ : baseline::__VA_ARGS__)
#else
#define MI_CALL(...) baseline::__VA_ARGS__
#endif

namespace {

// f(first, end, thread) over 0 … count - 1 in equal parts.
template <class F>
void parallel(int32_t threads, int64_t count, F f) {
    if (threads <= 1 || count <= 1) return f(0, count, 0);
    std::vector<std::thread> others;
    for (int32_t i = 1; i < threads; ++i) others.emplace_back(f, count * i / threads, count * (i + 1) / threads, i);
    f(0, count / threads, 0);
    for (std::thread &t : others) t.join();
}

}  // namespace

void mi_train_norm(const mi_norm *s, int64_t rows, int32_t threads) {
    parallel(threads, rows, [=](int64_t a, int64_t b, int) { MI_CALL(norm_forward(*s, a, b)); });
}

void mi_train_norm_backward(const mi_norm *s, const float *grad_out, float *grad_in, float *grad_scale, int64_t stride,
                            int64_t rows, int32_t threads) {
    parallel(threads, rows, [=](int64_t a, int64_t b, int i) {
        MI_CALL(norm_backward(*s, grad_out, grad_in, grad_scale + i * stride, a, b));
    });
}

void mi_train_requantise(const int32_t *acc, const int32_t *mul, int32_t shift, int16_t *out, float *dt, int64_t rows,
                         int32_t width, int32_t heads, int32_t threads) {
    parallel(threads, rows, [=](int64_t a, int64_t b, int) {
        MI_CALL(requantise(acc + a * width, mul, shift, out + a * width, dt + a * heads, b - a, width, heads));
    });
}

void mi_train_residual(const float *r, const int32_t *acc, const int32_t *mul, int32_t shift, float *out, int64_t rows,
                       int32_t width, int32_t threads) {
    parallel(threads, rows, [=](int64_t a, int64_t b, int) {
        MI_CALL(residual_add(r + a * width, acc + a * width, mul, shift, out + a * width, b - a, width));
    });
}

void mi_train_mixer(const mi_mixer *s, int32_t threads) {
    parallel(threads, s->rows,
             [=](int64_t a, int64_t b, int) { MI_CALL(mixer_forward(*s, static_cast<int>(a), static_cast<int>(b))); });
}

void mi_train_mixer_backward(const mi_mixer *s, const mi_mixer_grads *g, float *grads, int64_t stride,
                             int32_t threads) {
    parallel(threads, s->rows, [=](int64_t a, int64_t b, int i) {
        MI_CALL(mixer_backward(*s, *g, static_cast<int>(a), static_cast<int>(b), grads + i * stride));
    });
}

void mi_train_cross_entropy(void *logits, int32_t is_float, float scale, const int64_t *target, const float *weight,
                            float *nats, int64_t rows, int32_t width, int32_t threads) {
    parallel(threads, rows, [=](int64_t a, int64_t b, int) {
        MI_CALL(cross_entropy(logits, is_float, scale, target, weight, nats, a, b, width));
    });
}
