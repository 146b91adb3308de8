// CUDA C++ for a C++17 compiler: the part of the language and of its library that the kernels use.
#pragma once
#include "emulator.h"

#include <math.h>
#include <stdint.h>
#include <type_traits>
#include <utility>

// build.rs defines the name, one per kernel file.
extern "C" const char EMULATOR_FILE;
const char EMULATOR_FILE = 0;

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict

#define threadIdx emulator::thread_index()
#define blockIdx emulator::block_index()
#define blockDim emulator::block_size()
#define gridDim emulator::grid_size()

#define __syncthreads() emulator::block_barrier(__FILE__, __LINE__)
#define EMULATOR_MASK(...) (0xffffffffu __VA_OPT__(&(__VA_ARGS__)))
#define __syncwarp(...)                                                                                      \
    emulator::collective(                                                                                    \
        emulator::Collective::sync, EMULATOR_MASK(__VA_ARGS__), nullptr, nullptr, __FILE__, __LINE__)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

template <class To, class From> inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace emulator

inline unsigned __float_as_uint(float value) { return emulator::bits_of<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return emulator::bits_of<float>(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class T> inline T __ldg(const T *address) { return *address; }

template <class T> inline T min(T left, T right) { return right < left ? right : left; }
template <class T> inline T max(T left, T right) { return left < right ? right : left; }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline float __fdividef(float left, float right) { return left / right; }
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }

// bfloat16 and half as bits, with arithmetic in f32 rounded to nearest even, as on the GPU. (Rounding a sum,
// difference, product or quotient twice gives the same result as once, because f32 has more than twice the
// digits.)

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16(float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half value) {
    unsigned sign = unsigned(value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}

inline __half __float2half(float value) {
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {0x7fff};
    // 65520 and above round to infinity.
    if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
    if (magnitude < 0x38800000u) {
        // Subnormal: adding 1/2 leaves the rounded result in the last bits of the significand.
        unsigned rounded = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
        return {uint16_t(sign | (rounded - 0x3f000000u))};
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1) - 0x38000000u;
    return {uint16_t(sign | magnitude >> 13)};
}

#define EMULATOR_HALF_OPERATOR(type, to_float, from_float, operation)                                        \
    inline type operator operation(type left, type right) {                                                  \
        return from_float(to_float(left) operation to_float(right));                                         \
    }
#define EMULATOR_HALF_OPERATORS(type, to_float, from_float)                                                  \
    EMULATOR_HALF_OPERATOR(type, to_float, from_float, +)                                                    \
    EMULATOR_HALF_OPERATOR(type, to_float, from_float, -)                                                    \
    EMULATOR_HALF_OPERATOR(type, to_float, from_float, *)                                                    \
    EMULATOR_HALF_OPERATOR(type, to_float, from_float, /)
EMULATOR_HALF_OPERATORS(__nv_bfloat16, __bfloat162float, __float2bfloat16)
EMULATOR_HALF_OPERATORS(__half, __half2float, __float2half)

namespace emulator {

template <class T>
inline T shuffle(unsigned mask, T value, unsigned source, const char *file, unsigned line) {
    static_assert(sizeof(T) <= 8);
    ShuffleIn in = {0, source};
    __builtin_memcpy(&in.value, &value, sizeof value);
    uint64_t out;
    collective(Collective::shuffle, mask, &in, &out, file, line);
    __builtin_memcpy(&value, &out, sizeof value);
    return value;
}

inline unsigned thread_number() {
    Index3 at = thread_index(), size = block_size();
    return at.x + size.x * (at.y + size.y * at.z);
}

// The source lane of CUDA's shuffles, with the warp divided into segments of `width` lanes.
inline unsigned shuffle_xor(unsigned other, unsigned width) {
    unsigned lane = thread_number() % 32, source = lane ^ other;
    return source / width > lane / width ? lane : source;
}
inline unsigned shuffle_down(unsigned delta, unsigned width) {
    unsigned lane = thread_number() % 32;
    return lane % width + delta < width ? lane + delta : lane;
}
inline unsigned shuffle_up(unsigned delta, unsigned width) {
    unsigned lane = thread_number() % 32;
    return lane % width >= delta ? lane - delta : lane;
}
inline unsigned shuffle_index(unsigned source, unsigned width) {
    unsigned lane = thread_number() % 32;
    return lane / width * width + source % width;
}

inline unsigned ballot(unsigned mask, bool vote, const char *file, unsigned line) {
    unsigned in = vote, out;
    collective(Collective::vote, mask, &in, &out, file, line);
    return out;
}

// Not instrumented by the compiler: atomic_access has checked the address.
template <class T, class Change>
__attribute__((no_sanitize("thread"), noinline)) inline T atomic_change(T *address, Change change) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    auto *bits = reinterpret_cast<Bits *>(address);
    Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED), after;
    do {
        after = bits_of<Bits>(T(change(bits_of<T>(before))));
    } while (!__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return bits_of<T>(before);
}

template <class T, class Change> __attribute__((always_inline)) inline T atomic(T *address, Change change) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    atomic_access(address, sizeof(T));
    return atomic_change<T>(address, change);
}

} // namespace emulator

#define EMULATOR_WIDTH(...) (0 __VA_OPT__(+(__VA_ARGS__)) ? 0 __VA_OPT__(+(__VA_ARGS__)) : 32)
#define EMULATOR_SHUFFLE(kind, mask, value, other, ...)                                                      \
    emulator::shuffle(mask, value, emulator::kind(other, EMULATOR_WIDTH(__VA_ARGS__)), __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, other, ...)                                                             \
    EMULATOR_SHUFFLE(shuffle_xor, mask, value, other __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_down_sync(mask, value, delta, ...)                                                            \
    EMULATOR_SHUFFLE(shuffle_down, mask, value, delta __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_up_sync(mask, value, delta, ...)                                                              \
    EMULATOR_SHUFFLE(shuffle_up, mask, value, delta __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(mask, value, source, ...)                                                                \
    EMULATOR_SHUFFLE(shuffle_index, mask, value, source __VA_OPT__(, ) __VA_ARGS__)
#define __ballot_sync(mask, vote) emulator::ballot(mask, vote, __FILE__, __LINE__)
#define __any_sync(mask, vote) (emulator::ballot(mask, vote, __FILE__, __LINE__) != 0)
#define __all_sync(mask, vote) (emulator::ballot(mask, !(vote), __FILE__, __LINE__) == 0)

template <class T> inline T atomicAdd(T *address, T value) {
    return emulator::atomic(address, [=](T before) { return before + value; });
}
template <class T> inline T atomicMax(T *address, T value) {
    return emulator::atomic(address, [=](T before) { return before < value ? value : before; });
}
template <class T> inline T atomicMin(T *address, T value) {
    return emulator::atomic(address, [=](T before) { return value < before ? value : before; });
}
template <class T> inline T atomicExch(T *address, T value) {
    return emulator::atomic(address, [=](T) { return value; });
}
template <class T> inline T atomicCAS(T *address, T expected, T value) {
    return emulator::atomic(address, [=](T before) { return before == expected ? value : before; });
}

// The description of a kernel for the runtime.

namespace emulator {

template <class T> constexpr char type_letter() {
    if (std::is_same_v<T, float>) return 'f';
    if (std::is_same_v<T, __nv_bfloat16>) return 'b';
    if (std::is_same_v<T, __half>) return 'h';
    if (std::is_same_v<T, uint32_t>) return 'u';
    if (std::is_same_v<T, int32_t>) return 'i';
    if (std::is_same_v<T, uint64_t>) return 'l';
    return 'x';
}

template <class T> constexpr char passing_letter() {
    if (!std::is_pointer_v<T>) return 'v';
    return std::is_const_v<std::remove_pointer_t<T>> ? 'r' : 'w';
}

template <class Function> struct Describe;
template <class... Arguments> struct Describe<void(Arguments...)> {
    static constexpr char signature[] = {
        passing_letter<Arguments>()..., type_letter<std::remove_cv_t<std::remove_pointer_t<Arguments>>>()...,
        0};

    template <void (*function)(Arguments...), size_t... at>
    __attribute__((no_sanitize("thread"))) static void call_at(void **arguments, std::index_sequence<at...>) {
        function(*static_cast<std::remove_cv_t<Arguments> *>(arguments[at])...);
    }
    template <void (*function)(Arguments...)>
    __attribute__((no_sanitize("thread"))) static void call(void **arguments) {
        call_at<function>(arguments, std::index_sequence_for<Arguments...>());
    }
};

} // namespace emulator

#define KERNEL(name, max_threads, ...)                                                                       \
    static void name(__VA_ARGS__);                                                                           \
    static emulator::Kernel name##_description = {                                                           \
        #name,                                                                                               \
        __FILE__,                                                                                            \
        __LINE__,                                                                                            \
        max_threads,                                                                                         \
        emulator::Describe<decltype(name)>::signature,                                                       \
        emulator::Describe<decltype(name)>::call<name>,                                                      \
        nullptr};                                                                                            \
    static emulator::Registration name##_registration(name##_description);                                   \
    static void name(__VA_ARGS__)

#define SHARED_ARRAY(type, name, size)                                                                       \
    static const char name##_site = 0;                                                                       \
    auto &name = *static_cast<type(*) size>(emulator::static_shared(&name##_site, sizeof(type size), #name))
#define DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(emulator::dynamic_shared())
#define TRAP(what) emulator::trap(__FILE__, __LINE__, what)
