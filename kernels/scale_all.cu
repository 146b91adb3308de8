// y = factor x with one learned factor, and the gradients of both: the rater's group score times its logits.
//
//     dx = factor dy,    d_factor = sum of x dy
//
// Shapes: x, y [B] in T; factor [1] in T.
// Threads: the forward as elementwise.cuh; the backward is one block of 256. Latency-bound: [B] is small.
// Memory: 32 bytes of shared memory.
// Precision: sums in f32 in a fixed order.
// Reference: src/engine/ops/scale_all/cpu.rs.
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void scale_all_forward(T *y, const T *x, const T *factor, uint64_t count) {
    float by = to_float(*factor);
    const T *const inputs[1] = {x};
    each(y, inputs, count, [by](const float (&in)[1]) { return in[0] * by; });
}

// One block.
template <class T>
__device__ __forceinline__ void
scale_all_backward(T *dx, T *d_factor, const T *dy, const T *x, const T *factor, unsigned count) {
    SHARED_ARRAY(float, scratch, [EACH_THREADS / WARP]);
    float by = to_float(*factor), sum = 0.0f;
    for (unsigned at = threadIdx.x; at < count; at += EACH_THREADS) {
        float d = to_float(dy[at]);
        sum += to_float(x[at]) * d;
        dx[at] = from_float<T>(d * by);
    }
    sum = block_reduce<EACH_THREADS>(sum, scratch);
    if (threadIdx.x == 0) *d_factor = from_float<T>(sum);
}

#define SCALE_ALL(T, suffix)                                                                                 \
    KERNEL(scale_all_forward_##suffix, EACH_THREADS, T *y, const T *x, const T *factor, uint64_t count) {    \
        scale_all_forward(y, x, factor, count);                                                              \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        scale_all_backward_##suffix, EACH_THREADS, T *dx, T *d_factor, const T *dy, const T *x,              \
        const T *factor, uint32_t count) {                                                                   \
        scale_all_backward(dx, d_factor, dy, x, factor, count);                                              \
    }
SCALE_ALL(float, f32)
SCALE_ALL(bf16, bf16)
SCALE_ALL(f16, f16)
