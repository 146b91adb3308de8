// Attention backward in 16 bits on tensor cores, first of two kernels: the gradient of the queries.
// Probabilities are recomputed from the forward's lse. With g = d_out, q^ and k^ of attention_prepare.cu, and
// delta = rowsum(out g):
//
//     p = 2^(scale log2(e) <q^, k^> - lse),    d_s = p (g v^T - delta),    d_q^ = scale d_s k^
//     d_q = rope^-1((d_q^ - q^ <q^, d_q^>) / |q|)
//
// The gradient of the log scale is the sum of <q^, d_q^> over the queries of a sample and head. `rows`
// continues after lse with delta [B, H, L] and each block's part of that sum [B, H, blocks];
// attention_backward_keys.cu, which runs next, reads both.
//
// Shapes: as in attention_forward.cu; d_q: rows of `d_stride` values; inverse_lengths: 1 / |q| at stride
// `length_stride`.
// Threads: a grid of B H ceil(L / 128) blocks, ordered by work_tile(). A block of 4 warps takes 128 queries
// of one head (64 for D = 128), whose q^ and g stay in registers as A fragments; a warp computes 16 keys at a
// time, with the skips of the forward.
// Memory: 1024 D bytes of shared memory (768 D for D = 128), 64 KB for D = 64, XOR-swizzled, two stages of
// keys and values; 1 KB of row sums.
// Precision: products and sums in f32, d_s rounded to T for the second product.
// Determinism: no atomics, one order per sum.
//
// Occupancy: up to 230 registers for D = 64, 2 blocks per multiprocessor.
// Limits for B 64, H 16, D 64, L 680 on an H100: 3 products over 0.694 of L^2, 126 GFLOP or 0.21 ms at the
// 600 TFLOP/s of mma.sync, and the forward's 0.09 ms of exponentials.
//
// Reference: src/engine/ops/attention/cpu.rs. Source: FlashAttention-2 (arXiv:2307.08691), backward split in
// two.
#include "attention.cuh"

template <class T, unsigned D>
__device__ __forceinline__ void attention_backward_queries(
    T *d_q, float *rows, const T *q, const T *k, const T *v, const T *out, const T *d_out,
    const float *inverse_lengths, const uint32_t *visible, const uint32_t *mask, const float *log_scale,
    const float *cosine, const float *sine, unsigned heads, unsigned queries, unsigned keys,
    unsigned head_dim, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned length_stride,
    unsigned d_stride, float fixed_scale, unsigned vectorized) {
    constexpr unsigned MT = M_TILES<D>, ROWS = QUERY_ROWS<D>, STEPS = D / 16, STAGE = 2 * TILE * D;
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS, SUBTILE = 16;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, deltas, [ROWS]);
    SHARED_ARRAY(float, warp_sums, [WARPS]);
    unsigned tiles = (queries + ROWS - 1) / ROWS, tasks = gridDim.x / tiles;
    WorkTile work = work_tile(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - work.tile) * ROWS, warp = threadIdx.x / WARP, warp_row = row + warp * 16 * MT;
    uint64_t q_first = uint64_t(work.sample) * queries * q_stride + work.head * head_dim;
    uint64_t k_first = uint64_t(work.sample) * keys * k_stride + work.head * head_dim;
    uint64_t v_first = uint64_t(work.sample) * keys * v_stride + work.head * head_dim;
    uint64_t d_first = uint64_t(work.sample) * queries * d_stride + work.head * head_dim;
    uint64_t out_first = (uint64_t(work.sample) * queries * heads + work.head) * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> k_rows = {k + k_first, k_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> v_rows = {v + v_first, v_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> out_rows = {
        out + out_first, heads * head_dim, queries, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> d_out_rows = {
        d_out + out_first, heads * head_dim, queries, head_dim, is_vectorized<D>(vectorized)};
    Rope rope = {cosine, sine, head_dim / 2};
    bool normalize = log_scale != nullptr;
    float scale = logit_scale(log_scale, work.head, fixed_scale), scale_log2 = scale * LOG2_E;
    if (mask != nullptr) mask += uint64_t(work.sample) * keys;
    const float *lse_rows = rows + uint64_t(work.task) * queries;
    float *delta_rows = rows + uint64_t(tasks) * queries + uint64_t(work.task) * queries;

    unsigned end = visible_keys(visible, min(row + ROWS, queries) - 1, keys);
    unsigned key_tiles = (end + TILE - 1) / TILE;
    bool active = warp_row < queries;
    unsigned warp_end = active ? visible_keys(visible, min(warp_row + 16 * MT, queries) - 1, keys) : 0;
    unsigned warp_all = active ? visible_keys(visible, warp_row, keys) : 0;

    // Queries and output gradients are loaded once; keys and values pass through two stages.
    T *q_tile = shared, *d_out_tile = shared + ROWS * D, *stages = shared + 2 * ROWS * D;
    copy_tile_async<D, ROWS, THREADS>(q_tile, q_rows, row);
    copy_tile_async<D, ROWS, THREADS>(d_out_tile, d_out_rows, row);
    commit_copies();
    if (key_tiles > 0) {
        copy_tile_async<D, TILE, THREADS>(stages, k_rows, 0);
        copy_tile_async<D, TILE, THREADS>(stages + TILE * D, v_rows, 0);
    }
    commit_copies();
    wait_copies<1>();
    // delta of each row: the product of output and gradient.
#pragma unroll 2
    for (unsigned from = 0; from < ROWS * CHUNKS; from += THREADS) {
        unsigned at = from + threadIdx.x, chunk = at % CHUNKS, r = at / CHUNKS;
        auto o = out_rows.read(row + r, chunk);
        float d[8], delta = 0.0f;
        load<8>(d, d_out_tile + Tile<D>::at(r, chunk));
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) delta += d[i] * to_float(o.value[i]);
        delta = lanes_sum<CHUNKS>(delta);
        if (chunk == 0) {
            deltas[r] = delta;
            if (row + r < queries) delta_rows[row + r] = delta;
        }
    }
    __syncthreads();
    uint32_t q_hat[MT][STEPS][4], d_o[MT][STEPS][4];
    float lse[MT][2], delta[MT][2], d[MT][D / 8][4];
    unsigned key_end[MT][2];
#pragma unroll
    for (unsigned m = 0; m < MT; ++m) {
        unsigned first = warp * 16 * MT + m * 16;
#pragma unroll
        for (unsigned step = 0; step < STEPS; ++step) {
            load_a<D>(q_hat[m][step], q_tile, first, step);
            load_a<D>(d_o[m][step], d_out_tile, first, step);
        }
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            unsigned at = row + first + result_row(pair);
            lse[m][pair] = at < queries ? lse_rows[at] : INFINITY;
            delta[m][pair] = deltas[first + result_row(pair)];
            key_end[m][pair] = visible_keys(visible, min(at, queries - 1), keys);
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) d[m][n][i] = 0.0f;
        }
    }

    for (unsigned tile = 0; tile < key_tiles; ++tile) {
        T *k_tile = stages + tile % 2 * STAGE, *v_tile = k_tile + TILE * D;
        const unsigned unmasked[2] = {
            unmasked_keys(mask, tile * TILE, keys), unmasked_keys(mask, tile * TILE + WARP, keys)};
        wait_copies<0>();
        // The barrier makes this tile visible and frees the previous stage.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            T *next = stages + (tile + 1) % 2 * STAGE;
            copy_tile_async<D, TILE, THREADS>(next, k_rows, (tile + 1) * TILE);
            copy_tile_async<D, TILE, THREADS>(next + TILE * D, v_rows, (tile + 1) * TILE);
        }
        commit_copies();
// For D = 128 unrolling costs nvcc a long time and gains nothing.
#pragma unroll(D <= 64 ? TILE / SUBTILE : 1)
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned key = tile * TILE + part * SUBTILE;
            unsigned bits = (part < 2 ? unmasked[0] : unmasked[1]) >> part % 2 * SUBTILE & 0xffffu;
            if (key >= warp_end || bits == 0) continue;
            // S = Q K^T and dP = dO V^T, 16 keys.
            float s[MT][2][4] = {}, d_p[MT][2][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t b[4];
                load_b<D>(b, k_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned m = 0; m < MT; ++m) {
                    mma_pair<T>(s[m][0], s[m][1], q_hat[m][step], b);
                }
                load_b<D>(b, v_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned m = 0; m < MT; ++m) {
                    mma_pair<T>(d_p[m][0], d_p[m][1], d_o[m][step], b);
                }
            }
            // Applies the mask, only in steps that cross its border.
            if (key + SUBTILE > warp_all || bits != 0xffffu) {
#pragma unroll
                for (unsigned at = 0; at < 8 * MT; ++at) {
                    unsigned m = at / 8, column = at / 4 % 2 * 8 + result_column() + at % 2;
                    bool is_visible = key + column < key_end[m][at / 2 % 2] && (bits >> column & 1);
                    if (!is_visible) s[m][at / 4 % 2][at % 4] = -INFINITY;
                }
            }
            // dS = P (dP - delta).
            uint32_t d_s[MT][4];
#pragma unroll
            for (unsigned m = 0; m < MT; ++m) {
#pragma unroll
                for (unsigned at = 0; at < 8; ++at) {
                    unsigned pair = at / 2 % 2;
                    float p = exp2_approx(s[m][at / 4][at % 4] * scale_log2 - lse[m][pair]);
                    s[m][at / 4][at % 4] = p * (d_p[m][at / 4][at % 4] - delta[m][pair]);
                }
                pack_a<T>(d_s[m], s[m][0], s[m][1]);
            }
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                // dQ += dS K, 16 channels.
                uint32_t b[4];
                load_b_transposed<D>(b, k_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned m = 0; m < MT; ++m) {
                    mma_pair<T>(d[m][2 * step], d[m][2 * step + 1], d_s[m], b);
                }
            }
        }
    }

    // Epilogue: the scale, RoPE and QK-norm backward, this block's part of the log scale's gradient.
    Source<T> d_q_rows = {d_q + d_first, d_stride, queries, head_dim, is_vectorized<D>(vectorized)};
    float total = 0.0f;
#pragma unroll
    for (unsigned m = 0; m < MT; ++m) {
        unsigned first = warp * 16 * MT + m * 16;
        float inverse[2] = {1.0f, 1.0f};
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            unsigned at = row + first + result_row(pair);
            if (normalize && at < queries) {
                inverse[pair] =
                    inverse_lengths[(uint64_t(work.sample) * queries + at) * length_stride + work.head];
            }
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) d[m][n][i] *= scale;
        }
        total += rope_norm_backward<D, T>(d[m], q_hat[m], inverse, normalize, row + first, queries, rope);
        // No other warp has used these rows since the barrier before the loop.
        store_results<D>(q_tile, d[m], first);
    }
    total = lanes_sum<WARP, 4>(total);
    if (threadIdx.x % WARP == 0) warp_sums[warp] = total;
    __syncthreads();
    if (threadIdx.x == 0 && normalize) {
        float sum = 0.0f;
#pragma unroll
        for (unsigned at = 0; at < WARPS; ++at) sum += warp_sums[at];
        rows[uint64_t(2) * tasks * queries + uint64_t(work.task) * tiles + row / ROWS] = sum;
    }
    copy_out_rows<D, 16 * MT>(d_q_rows, q_tile, warp * 16 * MT, warp_row);
}

#define ATTENTION_BACKWARD_QUERIES(T, suffix, D)                                                             \
    KERNEL(                                                                                                  \
        attention_backward_queries_##D##_##suffix, THREADS, T *d_q, float *rows, const T *q, const T *k,     \
        const T *v, const T *out, const T *d_out, const float *inverse_lengths, const uint32_t *visible,     \
        const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine,                \
        uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride,               \
        uint32_t k_stride, uint32_t v_stride, uint32_t length_stride, uint32_t d_stride, float fixed_scale,  \
        uint32_t vectorized) {                                                                               \
        attention_backward_queries<T, D>(                                                                    \
            d_q, rows, q, k, v, out, d_out, inverse_lengths, visible, mask, log_scale, cosine, sine, heads,  \
            queries, keys, head_dim, q_stride, k_stride, v_stride, length_stride, d_stride, fixed_scale,     \
            vectorized);                                                                                     \
    }
#define ALL_ATTENTION_BACKWARD_QUERIES(T, suffix)                                                            \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 16)                                                                \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 32)                                                                \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 64)                                                                \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 128)
ALL_ATTENTION_BACKWARD_QUERIES(bf16, bf16)
ALL_ATTENTION_BACKWARD_QUERIES(f16, f16)
