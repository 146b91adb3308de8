// The norms of the text encoders, with a learned scale per channel:
//
//     y = (x - mean) / sqrt(variance + epsilon) weight[c] + bias[c]    CLIP's layer norm
//     y = x / sqrt(mean(x^2) + epsilon) weight[c]                      T5's RMS norm, where bias is null
//
// Shapes: x, y [R, C]; weight, bias [C]; all in float.
// Threads: one warp per row, 8 rows per block, consecutive values to consecutive lanes.
// Memory: a row is read up to three times, from cache after the first. No shared memory.
// Precision: f32, two-pass variance; one order per sum.
// Reference: src/engine/ops/affine_norm/cpu.rs. Source: torch.nn.LayerNorm; RMSNorm (arXiv:1910.07467),
// T5LayerNorm of Hugging Face transformers.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

KERNEL(
    affine_norm_f32, THREADS, float *y, const float *x, const float *weight, const float *bias, uint32_t rows,
    uint32_t channels, float epsilon) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps return: the sums below are within a warp.
    if (row >= rows) return;
    x += uint64_t(row) * channels;
    y += uint64_t(row) * channels;
    float inverse_channels = 1.0f / float(channels), mean = 0.0f, squares = 0.0f;
    if (bias != nullptr) {
        for (unsigned c = lane; c < channels; c += WARP) mean += x[c];
        mean = warp_sum(mean) * inverse_channels;
    }
    for (unsigned c = lane; c < channels; c += WARP) {
        float value = x[c] - mean;
        squares += value * value;
    }
    float inverse = rsqrtf(warp_sum(squares) * inverse_channels + epsilon);
    for (unsigned c = lane; c < channels; c += WARP) {
        y[c] = (x[c] - mean) * inverse * weight[c] + (bias == nullptr ? 0.0f : bias[c]);
    }
}
