// What the kernels use beyond plain CUDA C++. nvcc compiles it for the GPU; a C++ compiler, with
// host/language.h in place of CUDA, for the emulator.
//
// A kernel is defined by `KERNEL(name, max_threads, arguments) { ... }`. Its shared memory is declared with
// SHARED_ARRAY (`SHARED_ARRAY(float, sums, [32]);`) or DYNAMIC_SHARED, never with __shared__ itself, so that
// the emulator can check every access.
//
// Precision: values are stored as T (float, bf16 or f16) and computed as float; load and store convert.
// Determinism: warp_sum and block_reduce add in one fixed order; there are no atomics.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define KERNEL(name, max_threads, ...)                                                                       \
    extern "C" __global__ void __launch_bounds__(max_threads) name(__VA_ARGS__)
// The same, with the register limit that lets `blocks` blocks share a multiprocessor (the occupancy).
#define KERNEL_SHARING(name, max_threads, blocks, ...)                                                       \
    extern "C" __global__ void __launch_bounds__(max_threads, blocks) name(__VA_ARGS__)
#define SHARED_ARRAY(type, name, size) __shared__ __align__(16) type name size
#define DYNAMIC_SHARED(type, name)                                                                           \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];                                    \
    type *name = reinterpret_cast<type *>(dynamic_shared_bytes)
#define TRAP(what) __trap()

#else
#include "host/language.h"
#define KERNEL_SHARING(name, max_threads, blocks, ...) KERNEL(name, max_threads, __VA_ARGS__)
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Conversions -----------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(f16 value) { return __half2float(value); }

template <class T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float value) { return __float2bfloat16(value); }
template <> __device__ __forceinline__ f16 from_float<f16>(float value) { return __float2half(value); }

// N values that are loaded and stored at once. The address must be a multiple of N sizeof(T).
template <class T, unsigned N> struct alignas(sizeof(T) * N) Pack {
    T value[N];
};

// Values of type T in 16 bytes.
template <class T> constexpr unsigned PACK = 16 / sizeof(T);

// Whether rows of `count` values that start at `address` can be accessed 16 bytes at a time.
template <class T> __device__ __forceinline__ bool packs(const T *address, unsigned count) {
    return count % PACK<T> == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

template <unsigned N, class T> __device__ __forceinline__ void load(float (&to)[N], const T *from) {
    auto pack = *reinterpret_cast<const Pack<T, N> *>(from);
#pragma unroll
    for (unsigned at = 0; at < N; ++at) to[at] = to_float(pack.value[at]);
}

template <unsigned N, class T> __device__ __forceinline__ void store(T *to, const float (&from)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (unsigned at = 0; at < N; ++at) pack.value[at] = from_float<T>(from[at]);
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

// Reductions in a fixed order -------------------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (unsigned other = WARP / 2; other > 0; other /= 2) value += __shfl_xor_sync(ALL_LANES, value, other);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (unsigned other = WARP / 2; other > 0; other /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, other));
    }
    return value;
}

// Over all THREADS of the block (a multiple of 32); every thread receives the result. `scratch` holds THREADS
// / 32 floats and may be reused without another barrier.
template <unsigned THREADS, bool MAXIMUM = false>
__device__ __forceinline__ float block_reduce(float value, float *scratch) {
    constexpr unsigned WARPS = THREADS / WARP;
    value = MAXIMUM ? warp_max(value) : warp_sum(value);
    if (WARPS == 1) return value;
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = scratch[0];
#pragma unroll
    for (unsigned warp = 1; warp < WARPS; ++warp) {
        total = MAXIMUM ? fmaxf(total, scratch[warp]) : total + scratch[warp];
    }
    return total;
}

// 2^value by ex2.approx, one instruction, where exp2f takes four to be exact for subnormals. The relative
// error is below 2^-22; the result is 0 far below 2^-126 and for -infinity.
__device__ __forceinline__ float exp2_approx(float value) {
#if defined(__CUDACC__)
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
#else
    return exp2f(value);
#endif
}

// Two values in one register, the first in the lower half: the operand format of mma_16x8x16.
template <class T> __device__ __forceinline__ uint32_t pack_two(float low, float high) {
#if defined(__CUDACC__)
    uint32_t packed;
    if constexpr (__is_same(T, bf16)) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    }
    return packed;
#else
    return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
#endif
}

// The inverse of pack_two.
template <class T> __device__ __forceinline__ void unpack_two(uint32_t packed, float &low, float &high) {
#if defined(__CUDACC__)
    if constexpr (__is_same(T, bf16)) {
        low = __uint_as_float(packed << 16);
        high = __uint_as_float(packed & 0xffff0000u);
    } else {
        float2 both = __half22float2(*reinterpret_cast<const __half2 *>(&packed));
        low = both.x;
        high = both.y;
    }
#else
    low = to_float(T{uint16_t(packed)});
    high = to_float(T{uint16_t(packed >> 16)});
#endif
}

// Tensor cores ----------------------------------------------------------------------------------------------

// d += a b on one warp: a is 16x16 row-major, b 16x8 column-major, d 16x8. Fragments have the layout of PTX's
// mma.sync.m16n8k16.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    if constexpr (sizeof(T) == 2 && __is_same(T, bf16)) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
    auto kind = std::is_same_v<T, bf16> ? emulator::Collective::mma_bf16 : emulator::Collective::mma_f16;
    emulator::MmaIn in = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
    emulator::MmaOut out;
    emulator::collective(kind, ALL_LANES, &in, &out, __FILE__, __LINE__);
    for (unsigned at = 0; at < 4; ++at) d[at] = out.d[at];
#endif
}

// ldmatrix: loads N (1, 2 or 4) 8x8 matrices of 16-bit values from shared memory as fragments of mma_16x8x16.
// Lane l passes the address of row l % 8 of matrix l / 8.
template <unsigned N, bool TRANSPOSED = false>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[N], const void *row) {
    static_assert(N == 1 || N == 2 || N == 4);
#if defined(__CUDACC__)
    auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (N == 4 && TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    } else if constexpr (N == 4) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    } else if constexpr (N == 2 && TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
    } else if constexpr (N == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
    } else if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(to[0])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                     : "=r"(to[0])
                     : "r"(address)
                     : "memory");
    }
#else
    emulator::LdmatrixIn in = {row, emulator::here(), N, TRANSPOSED};
    uint32_t out[4];
    emulator::collective(emulator::Collective::ldmatrix, ALL_LANES, &in, &out, __FILE__, __LINE__);
    for (unsigned at = 0; at < N; ++at) to[at] = out[at];
#endif
}

// Asynchronous copies to shared memory ----------------------------------------------------------------------

// cp.async of 16 bytes from global to shared memory, past the registers. If not `keep`, 16 zeros are written
// and nothing is read.
__device__ __forceinline__ void copy_16_async(void *to, const void *from, bool keep = true) {
#if defined(__CUDACC__)
    auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(keep ? 16 : 0)
                 : "memory");
#else
    emulator::copy_async(to, from, 16, keep ? 16 : 0);
#endif
}

// Closes the group of copies issued since the last call.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::copy_async_commit();
#endif
}

// Waits until at most GROUPS groups of this thread are in flight. Other threads see the data after a barrier.
template <unsigned GROUPS> __device__ __forceinline__ void wait_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#else
    emulator::copy_async_wait(GROUPS);
#endif
}
