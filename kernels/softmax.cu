// Softmax of attention logits with mask, causal order and bias, for the encoders:
//
//     y = softmax(scale x + bias) over the visible keys,    0 elsewhere
//
// A query sees the keys whose mask is 1 and, if `causal`, none after itself. A query that sees no key gets
// zeros.
//
// Shapes: x, y [B, H, Q, row_stride] in float, of which K values per row are used; bias [H, Q, K] in float,
// or null; mask [B, K], or null.
// Threads: one warp per row, 8 rows per block.
// Memory: x is read three times, from cache after the first. No shared memory.
// Precision: f32, shifted by the row's maximum; one order per sum.
// Reference: src/engine/ops/softmax/cpu.rs. Source: torch.softmax.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

__device__ __forceinline__ void softmax(
    float *y, const float *x, const float *bias, const uint32_t *mask, unsigned rows, unsigned heads,
    unsigned queries, unsigned keys, unsigned row_stride, bool causal, float scale) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps return: the sums below are within a warp.
    if (row >= rows) return;
    unsigned query = row % queries, sample = row / queries / heads;
    unsigned end = causal ? min(query + 1, keys) : keys;
    x += uint64_t(row) * row_stride;
    y += uint64_t(row) * row_stride;
    if (bias != nullptr) bias += uint64_t(row % (heads * queries)) * keys;
    if (mask != nullptr) mask += uint64_t(sample) * keys;
    auto is_visible = [&](unsigned key) { return key < end && (mask == nullptr || mask[key] == 1); };
    auto value = [&](unsigned key) { return x[key] * scale + (bias == nullptr ? 0.0f : bias[key]); };

    float maximum = -INFINITY;
    for (unsigned key = lane; key < end; key += WARP) {
        if (is_visible(key)) maximum = fmaxf(maximum, value(key));
    }
    maximum = warp_max(maximum);
    float sum = 0.0f;
    for (unsigned key = lane; key < end; key += WARP) {
        if (is_visible(key)) sum += expf(value(key) - maximum);
    }
    sum = warp_sum(sum);
    float inverse_sum = 1.0f / sum;
    for (unsigned key = lane; key < keys; key += WARP) {
        y[key] = is_visible(key) ? expf(value(key) - maximum) * inverse_sum : 0.0f;
    }
}

KERNEL(
    softmax_f32, THREADS, float *y, const float *x, const float *bias, const uint32_t *mask, uint32_t rows,
    uint32_t heads, uint32_t queries, uint32_t keys, uint32_t row_stride, uint32_t causal, float scale) {
    softmax(y, x, bias, mask, rows, heads, queries, keys, row_stride, causal != 0, scale);
}
