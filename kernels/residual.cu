// y = x + keep[sample] branch: a residual with drop-path.
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

#define RESIDUAL(T, suffix)                                                                                            \
    KERNEL(                                                                                                            \
        residual_forward_##suffix, EACH_THREADS, T *y, const T *x, const T *branch, const float *keep,                 \
        uint64_t share) {                                                                                              \
        residual_forward(y, x, branch, keep, share);                                                                   \
    }
RESIDUAL(float, f32)
RESIDUAL(bf16, bf16)
RESIDUAL(f16, f16)
