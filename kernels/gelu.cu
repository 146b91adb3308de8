// GELU (tanh form) of a product's rows with their bias: y = u s(u) with u = x + bias, s = (1 + tanh(...))/2, and its
// backward; and the gradient of a bias, the sum over rows.
//
// x, y: [R, C] in T; bias: [C] in float or null. Threads: 256 a block, 16 bytes a thread where C allows, else one number.
// Forward 2 sizeof(T) bytes a number, backward 3 sizeof(T). Source: torch.nn.GELU(approximate='tanh').
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr float SLOPE = 2.0f * 0.7978845608028654f;
constexpr float CUBE = 0.044715f;

// (1 + tanh(v))/2 = 1/(1 + exp(-2v)).
__device__ __forceinline__ float gate(float u) { return 1.0f / (1.0f + expf(-SLOPE * (u + CUBE * u * u * u))); }

__device__ __forceinline__ float gelu(float u) { return u * gate(u); }

__device__ __forceinline__ float gelu_slope(float u) {
    float s = gate(u);
    return s + u * s * (1.0f - s) * SLOPE * (1.0f + 3.0f * CUBE * u * u);
}

template <class T>
__device__ __forceinline__ void
gelu_forward(T *y, const T *x, const float *bias, uint64_t count, unsigned channels) {
    uint64_t number = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (packs(x, channels) && packs(y, channels)) {
        uint64_t at = number * PACK<T>;
        if (at >= count) return;
        float values[PACK<T>];
        load<PACK<T>>(values, x + at);
        unsigned c = unsigned(at % channels);
#pragma unroll
        for (unsigned i = 0; i < PACK<T>; ++i) values[i] = gelu(values[i] + (bias == nullptr ? 0.0f : bias[c + i]));
        store<PACK<T>>(y + at, values);
    } else {
        for (uint64_t at = number; at < count; at += uint64_t(gridDim.x) * THREADS) {
            float u = widen(x[at]) + (bias == nullptr ? 0.0f : bias[at % channels]);
            y[at] = narrow<T>(gelu(u));
        }
    }
}

template <class T>
__device__ __forceinline__ void
gelu_backward(T *dx, const T *dy, const T *x, const float *bias, uint64_t count, unsigned channels) {
    uint64_t number = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (packs(x, channels) && packs(dy, channels) && packs(dx, channels)) {
        uint64_t at = number * PACK<T>;
        if (at >= count) return;
        float values[PACK<T>], d[PACK<T>];
        load<PACK<T>>(values, x + at);
        load<PACK<T>>(d, dy + at);
        unsigned c = unsigned(at % channels);
#pragma unroll
        for (unsigned i = 0; i < PACK<T>; ++i) {
            d[i] *= gelu_slope(values[i] + (bias == nullptr ? 0.0f : bias[c + i]));
        }
        store<PACK<T>>(dx + at, d);
    } else {
        for (uint64_t at = number; at < count; at += uint64_t(gridDim.x) * THREADS) {
            float u = widen(x[at]) + (bias == nullptr ? 0.0f : bias[at % channels]);
            dx[at] = narrow<T>(widen(dy[at]) * gelu_slope(u));
        }
    }
}

// Sums of columns in two steps, without atomics: block (x, y) adds 32 columns of the rows of part y; a second launch
// with the parts as rows adds those. Rows are taken 8 at a time by 8 warps, and the warps' sums added in order.
constexpr unsigned SUM_ROWS = 8;

template <class T>
__device__ __forceinline__ void
column_sum(float *sums, const T *d, unsigned rows, unsigned channels, unsigned rows_a_part) {
    SHARED_ARRAY(float, partial, [SUM_ROWS][WARP]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    unsigned first = blockIdx.y * rows_a_part, last = min(rows, first + rows_a_part);
    float sum = 0.0f;
    if (c < channels) {
        for (unsigned row = first + warp; row < last; row += SUM_ROWS) sum += widen(d[uint64_t(row) * channels + c]);
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < channels) {
#pragma unroll
        for (unsigned other = 1; other < SUM_ROWS; ++other) sum += partial[other][lane];
        sums[uint64_t(blockIdx.y) * channels + c] = sum;
    }
}

#define GELU(T, suffix)                                                                                                \
    KERNEL(                                                                                                            \
        gelu_forward_##suffix, THREADS, T *y, const T *x, const float *bias, uint64_t count, uint32_t channels) {      \
        gelu_forward(y, x, bias, count, channels);                                                                     \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        gelu_backward_##suffix, THREADS, T *dx, const T *dy, const T *x, const float *bias, uint64_t count,            \
        uint32_t channels) {                                                                                           \
        gelu_backward(dx, dy, x, bias, count, channels);                                                               \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        column_sum_##suffix, SUM_ROWS *WARP, float *sums, const T *d, uint32_t rows, uint32_t channels,                \
        uint32_t rows_a_part) {                                                                                        \
        column_sum(sums, d, rows, channels, rows_a_part);                                                              \
    }
GELU(float, f32)
GELU(bf16, bf16)
GELU(f16, f16)
