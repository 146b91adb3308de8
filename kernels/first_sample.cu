// The first sample of a batch, and its gradient: numbers followed by zeros.
//
// Threads: elementwise.cuh. Bytes a number: 2 sizeof(T).
#include "elementwise.cuh"

// The first `count` numbers of `from`, or all `given` of them and zeros after.
template <class T>
__device__ __forceinline__ void first_sample(T *to, const T *from, uint64_t count, uint64_t given) {
    uint64_t step = uint64_t(gridDim.x) * EACH_THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x; at < count; at += step) {
        to[at] = at < given ? from[at] : from_float<T>(0.0f);
    }
}

#define FIRST_SAMPLE(T, suffix)                                                                                        \
    KERNEL(first_sample_##suffix, EACH_THREADS, T *to, const T *from, uint64_t count, uint64_t given) {                \
        first_sample(to, from, count, given);                                                                          \
    }
FIRST_SAMPLE(float, f32)
FIRST_SAMPLE(bf16, bf16)
FIRST_SAMPLE(f16, f16)
