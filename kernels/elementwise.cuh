// The loop of elementwise kernels: each output value is computed from the input values at the same index.
//
// Threads: 256 per block; grid x covers the values of one sample, y the samples. 16 bytes per thread where
// all addresses allow it, else a grid-stride loop over single values.
// Memory: every value is read and written once. No shared memory.
// Precision: computed in f32, rounded once.
#pragma once
#include "portable.cuh"

constexpr unsigned EACH_THREADS = 256;

// to[i] = work({from[0][i], from[1][i], ...}) for `count` values. `to` may be one of `from`.
template <class T, unsigned INPUTS, class Work>
__device__ __forceinline__ void each(T *to, const T *const (&from)[INPUTS], uint64_t count, Work work) {
    uint64_t thread = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x;
    bool vectorized = count % PACK<T> == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0;
#pragma unroll
    for (unsigned input = 0; input < INPUTS; ++input) {
        vectorized &= reinterpret_cast<uintptr_t>(from[input]) % 16 == 0;
    }
    if (vectorized) {
        uint64_t at = thread * PACK<T>;
        if (at >= count) return;
        float in[INPUTS][PACK<T>], out[PACK<T>];
#pragma unroll
        for (unsigned input = 0; input < INPUTS; ++input) load<PACK<T>>(in[input], from[input] + at);
#pragma unroll
        for (unsigned i = 0; i < PACK<T>; ++i) {
            float values[INPUTS];
#pragma unroll
            for (unsigned input = 0; input < INPUTS; ++input) values[input] = in[input][i];
            out[i] = work(values);
        }
        store<PACK<T>>(to + at, out);
    } else {
        for (uint64_t at = thread; at < count; at += uint64_t(gridDim.x) * EACH_THREADS) {
            float values[INPUTS];
#pragma unroll
            for (unsigned input = 0; input < INPUTS; ++input) values[input] = to_float(from[input][at]);
            to[at] = from_float<T>(work(values));
        }
    }
}
