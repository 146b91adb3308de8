// Mean over the tokens, and its gradient: the rater's pooling.
//
//     y[b, c] = mean over t of x[b, t, c],    dx[b, t, c] = dy[b, c] / L
//
// Shapes: x [B, L, C] in T; y [B, C] in T or float.
// Threads: forward: a block of 8 warps takes 32 channels (x) of one sample (y), each warp every eighth token.
// Backward: 256 channels (x) of one sample (y) and a range of tokens (z).
// Memory: the forward reads x once, the backward writes dx once. 1 KB of shared memory.
// Precision: f32 sums, first per warp, then over the warps in order.
// Reference: src/engine/ops/mean_tokens/cpu.rs. Source: docs/upstream.md, A13.
#include "elementwise.cuh"

// Warps per block of the forward; their sums are added in order.
constexpr unsigned MEAN_ROWS = 8;

template <class To, class From>
__device__ __forceinline__ void
mean_tokens_forward(To *y, const From *x, unsigned tokens, unsigned channels) {
    SHARED_ARRAY(float, partial, [MEAN_ROWS][WARP]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (c < channels) {
        const From *from = x + uint64_t(blockIdx.y) * tokens * channels + c;
        for (unsigned token = warp; token < tokens; token += MEAN_ROWS) {
            sum += to_float(from[uint64_t(token) * channels]);
        }
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
mean_tokens_backward(To *dx, const From *dy, unsigned tokens, unsigned channels, unsigned tokens_per_part) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    To value = from_float<To>(to_float(dy[uint64_t(blockIdx.y) * channels + c]) / float(tokens));
    unsigned begin = blockIdx.z * tokens_per_part, end = min(tokens, begin + tokens_per_part);
    for (unsigned token = begin; token < end; ++token) {
        dx[(uint64_t(blockIdx.y) * tokens + token) * channels + c] = value;
    }
}

#define MEAN_TOKENS(T, suffix, Pooled, pooled)                                                               \
    KERNEL(                                                                                                  \
        mean_tokens_forward_##suffix##_to_##pooled, MEAN_ROWS *WARP, Pooled *y, const T *x, uint32_t tokens, \
        uint32_t channels) {                                                                                 \
        mean_tokens_forward(y, x, tokens, channels);                                                         \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        mean_tokens_backward_##pooled##_to_##suffix, EACH_THREADS, T *dx, const Pooled *dy, uint32_t tokens, \
        uint32_t channels, uint32_t tokens_per_part) {                                                       \
        mean_tokens_backward(dx, dy, tokens, channels, tokens_per_part);                                     \
    }
MEAN_TOKENS(float, f32, float, f32)
MEAN_TOKENS(bf16, bf16, bf16, bf16)
MEAN_TOKENS(bf16, bf16, float, f32)
MEAN_TOKENS(f16, f16, f16, f16)
MEAN_TOKENS(f16, f16, float, f32)
