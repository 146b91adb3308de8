// Loops over the numbers of a sample, for kernels that compute each number from those at the same place.
//
// Threads: 256 a block, blocks in x over the numbers of one sample and in y over the samples; 16 bytes a thread where all
// places allow it, else one number at a time. No shared memory.
#pragma once
#include "portable.cuh"

constexpr unsigned EACH_THREADS = 256;

// to[at] = work({from[0][at], from[1][at], ...}) for all `share` numbers. `to` may be one of `from`.
template <class T, unsigned INPUTS, class Work>
__device__ __forceinline__ void each(T *to, const T *const (&from)[INPUTS], uint64_t share, Work work) {
    uint64_t number = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x;
    bool packed = share % PACK<T> == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0;
#pragma unroll
    for (unsigned input = 0; input < INPUTS; ++input) packed &= reinterpret_cast<uintptr_t>(from[input]) % 16 == 0;
    if (packed) {
        uint64_t at = number * PACK<T>;
        if (at >= share) return;
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
        for (uint64_t at = number; at < share; at += uint64_t(gridDim.x) * EACH_THREADS) {
            float values[INPUTS];
#pragma unroll
            for (unsigned input = 0; input < INPUTS; ++input) values[input] = widen(from[input][at]);
            to[at] = narrow<T>(work(values));
        }
    }
}
