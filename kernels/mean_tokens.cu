// Means over tokens, and their gradient.
//
// x: [B, L, C] in T, y: [B, C] in T or float; sums in float in a fixed order. Bytes moved: the mean reads x once, its backward
// writes dx once. Shared memory: 1 KiB.
#include "elementwise.cuh"

// Block: 32 channels (x) of one sample (y); tokens are taken 8 at a time by 8 warps, whose sums are added in order.
constexpr unsigned MEAN_ROWS = 8;

template <class To, class From>
__device__ __forceinline__ void mean_tokens_forward(To *y, const From *x, unsigned tokens, unsigned channels) {
    SHARED_ARRAY(float, partial, [MEAN_ROWS][WARP]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (c < channels) {
        const From *from = x + uint64_t(blockIdx.y) * tokens * channels + c;
        for (unsigned token = warp; token < tokens; token += MEAN_ROWS) sum += to_float(from[uint64_t(token) * channels]);
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < channels) {
#pragma unroll
        for (unsigned other = 1; other < MEAN_ROWS; ++other) sum += partial[other][lane];
        y[uint64_t(blockIdx.y) * channels + c] = from_float<To>(sum / float(tokens));
    }
}

// Block: 256 channels (x) of one sample (y) and the tokens of part z.
template <class To, class From>
__device__ __forceinline__ void
mean_tokens_backward(To *dx, const From *dy, unsigned tokens, unsigned channels, unsigned tokens_a_part) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    To value = from_float<To>(to_float(dy[uint64_t(blockIdx.y) * channels + c]) / float(tokens));
    unsigned begin = blockIdx.z * tokens_a_part, end = min(tokens, begin + tokens_a_part);
    for (unsigned token = begin; token < end; ++token) {
        dx[(uint64_t(blockIdx.y) * tokens + token) * channels + c] = value;
    }
}

#define MEAN_TOKENS(T, suffix, Pooled, pooled)                                                                         \
    KERNEL(                                                                                                            \
        mean_tokens_forward_##suffix##_to_##pooled, MEAN_ROWS *WARP, Pooled *y, const T *x, uint32_t tokens,           \
        uint32_t channels) {                                                                                           \
        mean_tokens_forward(y, x, tokens, channels);                                                                   \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        mean_tokens_backward_##pooled##_to_##suffix, EACH_THREADS, T *dx, const Pooled *dy, uint32_t tokens,           \
        uint32_t channels, uint32_t tokens_a_part) {                                                                   \
        mean_tokens_backward(dx, dy, tokens, channels, tokens_a_part);                                                 \
    }
MEAN_TOKENS(float, f32, float, f32)
MEAN_TOKENS(bf16, bf16, bf16, bf16)
MEAN_TOKENS(bf16, bf16, float, f32)
MEAN_TOKENS(f16, f16, f16, f16)
MEAN_TOKENS(f16, f16, float, f32)
