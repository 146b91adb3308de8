// y = x + one sample for all.
//
// x, y: [B, N] in T, addend: [N]. y may be x. Threads: elementwise.cuh. Bytes a number: 2 sizeof(T).
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void add_to_all(T *y, const T *x, const T *addend, uint64_t share) {
    uint64_t from = blockIdx.y * share;
    const T *const inputs[2] = {x + from, addend};
    each(y + from, inputs, share, [](const float (&in)[2]) { return in[0] + in[1]; });
}

#define ADD_TO_ALL(T, suffix)                                                                                          \
    KERNEL(add_to_all_##suffix, EACH_THREADS, T *y, const T *x, const T *addend, uint64_t share) {                     \
        add_to_all(y, x, addend, share);                                                                               \
    }
ADD_TO_ALL(float, f32)
ADD_TO_ALL(bf16, bf16)
ADD_TO_ALL(f16, f16)
