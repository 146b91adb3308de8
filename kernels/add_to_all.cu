// y[b] = x[b] + addend: one sample is broadcast over the batch. Upstream's cross-attention needs it.
//
// Shapes: x, y [B, N] in T; addend [N] in T. y may be x.
// Threads: elementwise.cuh.
// Memory: 2 sizeof(T) bytes per value, plus the addend from cache.
// Reference: src/engine/ops/add_to_all/cpu.rs. Source: docs/upstream.md, A1.
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void add_to_all(T *y, const T *x, const T *addend, uint64_t count) {
    uint64_t from = blockIdx.y * count;
    const T *const inputs[2] = {x + from, addend};
    each(y + from, inputs, count, [](const float (&in)[2]) { return in[0] + in[1]; });
}

#define ADD_TO_ALL(T, suffix)                                                                                \
    KERNEL(add_to_all_##suffix, EACH_THREADS, T *y, const T *x, const T *addend, uint64_t count) {           \
        add_to_all(y, x, addend, count);                                                                     \
    }
ADD_TO_ALL(float, f32)
ADD_TO_ALL(bf16, bf16)
ADD_TO_ALL(f16, f16)
