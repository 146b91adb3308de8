// The first sample of a batch, and its gradient: that of the result, followed by zeros. Upstream's
// cross-attention needs it.
//
// Shapes: from: `available` values of T; to: `count` values of T.
// Threads: 256 per block, a grid-stride loop over single values.
// Memory: 2 sizeof(T) bytes per value. No shared memory.
// Reference: src/engine/ops/first_sample/cpu.rs. Source: docs/upstream.md, A1.
#include "elementwise.cuh"

// The first `count` values of `from`, or all `available` of them, followed by zeros.
template <class T>
__device__ __forceinline__ void first_sample(T *to, const T *from, uint64_t count, uint64_t available) {
    uint64_t step = uint64_t(gridDim.x) * EACH_THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x; at < count; at += step) {
        to[at] = at < available ? from[at] : from_float<T>(0.0f);
    }
}

#define FIRST_SAMPLE(T, suffix)                                                                              \
    KERNEL(first_sample_##suffix, EACH_THREADS, T *to, const T *from, uint64_t count, uint64_t available) {  \
        first_sample(to, from, count, available);                                                            \
    }
FIRST_SAMPLE(float, f32)
FIRST_SAMPLE(bf16, bf16)
FIRST_SAMPLE(f16, f16)
