// y = x z, elementwise.
//
// Shapes: x, y, z: `count` values of T.
// Threads: elementwise.cuh. Memory: 3 sizeof(T) bytes per value.
// Reference: src/engine/ops/multiply/cpu.rs.
#include "elementwise.cuh"

template <class T> __device__ __forceinline__ void multiply(T *y, const T *x, const T *z, uint64_t count) {
    const T *const inputs[2] = {x, z};
    each(y, inputs, count, [](const float (&in)[2]) { return in[0] * in[1]; });
}

#define MULTIPLY(T, suffix)                                                                                  \
    KERNEL(multiply_##suffix, EACH_THREADS, T *y, const T *x, const T *z, uint64_t count) {                  \
        multiply(y, x, z, count);                                                                            \
    }
MULTIPLY(float, f32)
MULTIPLY(bf16, bf16)
MULTIPLY(f16, f16)
