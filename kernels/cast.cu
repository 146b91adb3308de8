// Casts between float and the 16-bit types, rounding to nearest even.
//
// Threads: 256 a block, 8 numbers a thread. Bytes moved per number: 4 + 2. No shared memory.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned NUMBERS = 8;

template <class To, class From>
__device__ __forceinline__ void cast(To *to, const From *from, uint64_t count) {
    uint64_t at = (uint64_t(blockIdx.x) * THREADS + threadIdx.x) * NUMBERS;
    if (at + NUMBERS <= count) {
        float values[NUMBERS];
        // Halves of 4 numbers, so that floats too are 16 bytes.
#pragma unroll
        for (unsigned half = 0; half < NUMBERS; half += 4) {
            float four[4];
            load<4>(four, from + at + half);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) values[half + i] = four[i];
        }
#pragma unroll
        for (unsigned half = 0; half < NUMBERS; half += 4) {
            float four[4];
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) four[i] = values[half + i];
            store<4>(to + at + half, four);
        }
    } else {
        for (; at < count; ++at) to[at] = from_float<To>(to_float(from[at]));
    }
}

KERNEL(cast_f32_to_bf16, THREADS, bf16 *to, const float *from, uint64_t count) { cast(to, from, count); }
KERNEL(cast_f32_to_f16, THREADS, f16 *to, const float *from, uint64_t count) { cast(to, from, count); }
KERNEL(cast_bf16_to_f32, THREADS, float *to, const bf16 *from, uint64_t count) { cast(to, from, count); }
KERNEL(cast_f16_to_f32, THREADS, float *to, const f16 *from, uint64_t count) { cast(to, from, count); }
