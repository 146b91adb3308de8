// Casts between f32 and the 16-bit types, rounding to nearest even.
//
// Shapes: `count` values.
// Threads: 256 per block, 8 values per thread.
// Memory: 4 + 2 bytes per value. No shared memory.
// Reference: src/engine/ops/cast/mod.rs.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned VALUES = 8;

template <class To, class From>
__device__ __forceinline__ void cast(To *to, const From *from, uint64_t count) {
    uint64_t at = (uint64_t(blockIdx.x) * THREADS + threadIdx.x) * VALUES;
    if (at + VALUES <= count) {
        float values[VALUES];
        // In halves of 4 values, so that floats are loaded and stored 16 bytes at a time, too.
#pragma unroll
        for (unsigned half = 0; half < VALUES; half += 4) {
            float four[4];
            load<4>(four, from + at + half);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) values[half + i] = four[i];
        }
#pragma unroll
        for (unsigned half = 0; half < VALUES; half += 4) {
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
