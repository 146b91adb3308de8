// Additions of the residual stream: y = x + keep[sample] branch (drop-path), y = x + one sample for all, and the first
// sample of a batch.
//
// x, branch, y: [B, N] in T; keep: [B] in float, or null for 1. y may be x. Threads: elementwise.cuh. Bytes a number:
// 3 sizeof(T); of a branch that is dropped nothing depends on what it holds, NaN included.
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void
residual_forward(T *y, const T *x, const T *branch, const float *keep, uint64_t share) {
    uint64_t from = blockIdx.y * share;
    float factor = keep == nullptr ? 1.0f : keep[blockIdx.y];
    const T *const inputs[2] = {x + from, branch + from};
    each(y + from, inputs, share, [factor](const float (&in)[2]) {
        return factor == 0.0f ? in[0] : in[0] + factor * in[1];
    });
}

template <class T>
__device__ __forceinline__ void add_to_all(T *y, const T *x, const T *addend, uint64_t share) {
    uint64_t from = blockIdx.y * share;
    const T *const inputs[2] = {x + from, addend};
    each(y + from, inputs, share, [](const float (&in)[2]) { return in[0] + in[1]; });
}

// The first `count` numbers of `from`, or all `given` of them and zeros after.
template <class T>
__device__ __forceinline__ void first_numbers(T *to, const T *from, uint64_t count, uint64_t given) {
    uint64_t step = uint64_t(gridDim.x) * EACH_THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x; at < count; at += step) {
        to[at] = at < given ? from[at] : narrow<T>(0.0f);
    }
}

#define RESIDUAL(T, suffix)                                                                                            \
    KERNEL(                                                                                                            \
        residual_forward_##suffix, EACH_THREADS, T *y, const T *x, const T *branch, const float *keep,                 \
        uint64_t share) {                                                                                              \
        residual_forward(y, x, branch, keep, share);                                                                   \
    }                                                                                                                  \
    KERNEL(add_to_all_##suffix, EACH_THREADS, T *y, const T *x, const T *addend, uint64_t share) {                     \
        add_to_all(y, x, addend, share);                                                                               \
    }                                                                                                                  \
    KERNEL(first_numbers_##suffix, EACH_THREADS, T *to, const T *from, uint64_t count, uint64_t given) {               \
        first_numbers(to, from, count, given);                                                                         \
    }
RESIDUAL(float, f32)
RESIDUAL(bf16, bf16)
RESIDUAL(f16, f16)
