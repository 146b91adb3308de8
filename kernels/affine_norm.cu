// The norms of text encoders, with a learned factor for each channel:
//
//     y = (x - mean) / sqrt(variance + epsilon) weight[c] + bias[c]    (CLIP's layer norm)
//     y = x / sqrt(mean of x^2 + epsilon) weight[c]                    (T5's root-mean-square norm, where bias is null)
//
// x, y: [R, C], weight, bias: [C], all in float. Sums in float, in a fixed order. Source: torch.nn.LayerNorm; T5LayerNorm of
// Hugging Face's transformers.
//
// Threads: one warp a row, 8 rows a block, neighbouring numbers to neighbouring lanes. A row is read up to three times, from
// the cache but the first. No shared memory.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

KERNEL(
    affine_norm_f32, THREADS, float *y, const float *x, const float *weight, const float *bias, uint32_t rows,
    uint32_t channels, float epsilon) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps leave: the sums below are within one.
    if (row >= rows) return;
    x += uint64_t(row) * channels;
    y += uint64_t(row) * channels;
    float share = 1.0f / float(channels), mean = 0.0f, squares = 0.0f;
    if (bias != nullptr) {
        for (unsigned c = lane; c < channels; c += WARP) mean += x[c];
        mean = warp_sum(mean) * share;
    }
    for (unsigned c = lane; c < channels; c += WARP) {
        float value = x[c] - mean;
        squares += value * value;
    }
    float inverse = rsqrtf(warp_sum(squares) * share + epsilon);
    for (unsigned c = lane; c < channels; c += WARP) {
        y[c] = (x[c] - mean) * inverse * weight[c] + (bias == nullptr ? 0.0f : bias[c]);
    }
}
