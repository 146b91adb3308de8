// y = x + keep[sample] branch: a residual connection with drop-path.
//
// Shapes: x, branch, y [B, N] in T; keep [B] in float, 0 for a dropped branch, or null for 1. y may be x.
// Threads: elementwise.cuh.
// Memory: 3 sizeof(T) bytes per value.
// Precision: computed in f32. A dropped branch is not multiplied, so that its NaN or Inf does not pass.
// Reference: src/engine/ops/residual/cpu.rs. Source: stochastic depth (arXiv:1603.09382); docs/upstream.md,
// B11.
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void
residual_forward(T *y, const T *x, const T *branch, const float *keep, uint64_t count) {
    uint64_t from = blockIdx.y * count;
    float factor = keep == nullptr ? 1.0f : keep[blockIdx.y];
    const T *const inputs[2] = {x + from, branch + from};
    each(y + from, inputs, count, [factor](const float (&in)[2]) {
        return factor == 0.0f ? in[0] : in[0] + factor * in[1];
    });
}

#define RESIDUAL(T, suffix)                                                                                  \
    KERNEL(                                                                                                  \
        residual_forward_##suffix, EACH_THREADS, T *y, const T *x, const T *branch, const float *keep,       \
        uint64_t count) {                                                                                    \
        residual_forward(y, x, branch, keep, count);                                                         \
    }
RESIDUAL(float, f32)
RESIDUAL(bf16, bf16)
RESIDUAL(f16, f16)
