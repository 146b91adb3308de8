// Products of queries and keys to weights:
//
//     y = softmax over the keys that are seen of (scale x + bias),    0 for the others
//
// A query sees the keys whose mask is 1, and with `causal` none after itself; one that sees no key gets zeros.
//
// x and y: [B, H, Q, row] in float, K <= row numbers of each row being used; bias: [H, Q, K] in float, or
// null; mask: [B, K], or null. Threads: one warp a row, 8 rows a block. x is read three times, from the cache but the first.
// No shared memory; sums in float, in a fixed order. Source: torch.softmax.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

__device__ __forceinline__ void softmax(
    float *y, const float *x, const float *bias, const uint32_t *mask, unsigned rows, unsigned heads, unsigned queries,
    unsigned keys, unsigned distance, bool causal, float scale) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps leave: the sums below are within one.
    if (row >= rows) return;
    unsigned query = row % queries, sample = row / queries / heads;
    unsigned end = causal ? min(query + 1, keys) : keys;
    x += uint64_t(row) * distance;
    y += uint64_t(row) * distance;
    if (bias != nullptr) bias += uint64_t(row % (heads * queries)) * keys;
    if (mask != nullptr) mask += uint64_t(sample) * keys;
    auto seen = [&](unsigned key) { return key < end && (mask == nullptr || mask[key] == 1); };
    auto value = [&](unsigned key) { return x[key] * scale + (bias == nullptr ? 0.0f : bias[key]); };

    float most = -INFINITY;
    for (unsigned key = lane; key < end; key += WARP) {
        if (seen(key)) most = fmaxf(most, value(key));
    }
    most = warp_max(most);
    float sum = 0.0f;
    for (unsigned key = lane; key < end; key += WARP) {
        if (seen(key)) sum += expf(value(key) - most);
    }
    sum = warp_sum(sum);
    float share = 1.0f / sum;
    for (unsigned key = lane; key < keys; key += WARP) {
        y[key] = seen(key) ? expf(value(key) - most) * share : 0.0f;
    }
}

KERNEL(
    softmax_f32, THREADS, float *y, const float *x, const float *bias, const uint32_t *mask, uint32_t rows, uint32_t heads,
    uint32_t queries, uint32_t keys, uint32_t distance, uint32_t causal, float scale) {
    softmax(y, x, bias, mask, rows, heads, queries, keys, distance, causal != 0, scale);
}
