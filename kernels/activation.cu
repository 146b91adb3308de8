// Activation functions with the bias of the product before them, and their backward. With u = x + bias:
//
//     gelu_tanh   u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))) / 2       silu     u / (1 + exp(-u))
//     gelu_erf    u erfc(-u / sqrt(2)) / 2                              sigmoid  1 / (1 + exp(-u))
//     quick_gelu  u / (1 + exp(-1.702 u))                               relu     max(u, 0)
//
// Shapes: x, y [R, C] in T; bias [C] in float, or null. y may be x.
// Threads: 256 per block, 16 bytes per thread where C allows, else a grid-stride loop over single values.
// Memory: forward 2 sizeof(T) bytes per value, backward 3 sizeof(T). No shared memory.
// Precision: computed in f32, rounded once.
// Reference: src/engine/ops/activation/cpu.rs. Source: GELU (arXiv:1606.08415); torch.nn.GELU, SiLU, Sigmoid,
// ReLU; QuickGELUActivation of Hugging Face transformers.
#include "portable.cuh"

constexpr unsigned THREADS = 256;

// __fdividef is within 2 ulp (and 0 below -87). It avoids a call to the exact division, which made registers
// spill.
__device__ __forceinline__ float sigmoid(float u) { return __fdividef(1.0f, 1.0f + expf(-u)); }

struct GeluTanh {
    static constexpr float SLOPE = 2.0f * 0.7978845608028654f;
    static constexpr float CUBE = 0.044715f;
    // (1 + tanh(v)) / 2 = sigmoid(2 v).
    static __device__ __forceinline__ float gate(float u) { return sigmoid(SLOPE * (u + CUBE * u * u * u)); }
    static __device__ __forceinline__ float value(float u) { return u * gate(u); }
    static __device__ __forceinline__ float slope(float u) {
        float s = gate(u);
        return s + u * s * (1.0f - s) * SLOPE * (1.0f + 3.0f * CUBE * u * u);
    }
};

struct GeluErf {
    // The standard normal CDF. erfc stays accurate far below 0, where 1 + erf cancels.
    static __device__ __forceinline__ float below(float u) { return 0.5f * erfcf(-0.7071067811865475f * u); }
    static __device__ __forceinline__ float value(float u) { return u * below(u); }
    static __device__ __forceinline__ float slope(float u) {
        return below(u) + u * 0.3989422804014327f * expf(-0.5f * u * u);
    }
};

struct Silu {
    static __device__ __forceinline__ float value(float u) { return u * sigmoid(u); }
    static __device__ __forceinline__ float slope(float u) {
        float s = sigmoid(u);
        return s * (1.0f + u * (1.0f - s));
    }
};

struct Sigmoid {
    static __device__ __forceinline__ float value(float u) { return sigmoid(u); }
    static __device__ __forceinline__ float slope(float u) {
        float s = sigmoid(u);
        return s * (1.0f - s);
    }
};

struct QuickGelu {
    static constexpr float SLOPE = 1.702f;
    static __device__ __forceinline__ float value(float u) { return u * sigmoid(SLOPE * u); }
    static __device__ __forceinline__ float slope(float u) {
        float s = sigmoid(SLOPE * u);
        return s * (1.0f + SLOPE * u * (1.0f - s));
    }
};

struct Relu {
    static __device__ __forceinline__ float value(float u) { return fmaxf(u, 0.0f); }
    static __device__ __forceinline__ float slope(float u) { return u > 0.0f ? 1.0f : 0.0f; }
};

template <class Kind, class T>
__device__ __forceinline__ void
forward(T *y, const T *x, const float *bias, uint64_t count, unsigned channels) {
    uint64_t thread = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (packs(x, channels) && packs(y, channels)) {
        uint64_t at = thread * PACK<T>;
        if (at >= count) return;
        float values[PACK<T>];
        load<PACK<T>>(values, x + at);
        unsigned c = unsigned(at % channels);
#pragma unroll
        for (unsigned i = 0; i < PACK<T>; ++i) {
            values[i] = Kind::value(values[i] + (bias == nullptr ? 0.0f : bias[c + i]));
        }
        store<PACK<T>>(y + at, values);
    } else {
        for (uint64_t at = thread; at < count; at += uint64_t(gridDim.x) * THREADS) {
            float u = to_float(x[at]) + (bias == nullptr ? 0.0f : bias[at % channels]);
            y[at] = from_float<T>(Kind::value(u));
        }
    }
}

template <class Kind, class T>
__device__ __forceinline__ void
backward(T *dx, const T *dy, const T *x, const float *bias, uint64_t count, unsigned channels) {
    uint64_t thread = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (packs(x, channels) && packs(dy, channels) && packs(dx, channels)) {
        uint64_t at = thread * PACK<T>;
        if (at >= count) return;
        float values[PACK<T>], d[PACK<T>];
        load<PACK<T>>(values, x + at);
        load<PACK<T>>(d, dy + at);
        unsigned c = unsigned(at % channels);
#pragma unroll
        for (unsigned i = 0; i < PACK<T>; ++i) {
            d[i] *= Kind::slope(values[i] + (bias == nullptr ? 0.0f : bias[c + i]));
        }
        store<PACK<T>>(dx + at, d);
    } else {
        for (uint64_t at = thread; at < count; at += uint64_t(gridDim.x) * THREADS) {
            float u = to_float(x[at]) + (bias == nullptr ? 0.0f : bias[at % channels]);
            dx[at] = from_float<T>(to_float(dy[at]) * Kind::slope(u));
        }
    }
}

#define ACTIVATION(Kind, kind, T, suffix)                                                                    \
    KERNEL(                                                                                                  \
        kind##_forward_##suffix, THREADS, T *y, const T *x, const float *bias, uint64_t count,               \
        uint32_t channels) {                                                                                 \
        forward<Kind>(y, x, bias, count, channels);                                                          \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        kind##_backward_##suffix, THREADS, T *dx, const T *dy, const T *x, const float *bias,                \
        uint64_t count, uint32_t channels) {                                                                 \
        backward<Kind>(dx, dy, x, bias, count, channels);                                                    \
    }
#define ACTIVATIONS(T, suffix)                                                                               \
    ACTIVATION(GeluTanh, gelu_tanh, T, suffix)                                                               \
    ACTIVATION(GeluErf, gelu_erf, T, suffix)                                                                 \
    ACTIVATION(QuickGelu, quick_gelu, T, suffix)                                                             \
    ACTIVATION(Relu, relu, T, suffix)                                                                        \
    ACTIVATION(Silu, silu, T, suffix)                                                                        \
    ACTIVATION(Sigmoid, sigmoid, T, suffix)
ACTIVATIONS(float, f32)
ACTIVATIONS(bf16, bf16)
ACTIVATIONS(f16, f16)
