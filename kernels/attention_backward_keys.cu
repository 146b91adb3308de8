// Attention backward in 16 bits on tensor cores, second of two kernels: the gradients of keys and values. It
// runs after attention_backward_queries.cu and reads its delta. With g = d_out, q^ and k^ of
// attention_prepare.cu:
//
//     p = 2^(scale log2(e) <q^, k^> - lse),    d_s = p (g v^T - delta)
//     d_v = p^T g,    d_k^ = scale d_s^T q^
//     d_k = rope^-1((d_k^ - k^ <k^, d_k^>) / |k|)
//
// Shapes: as in attention_forward.cu; d_k, d_v: rows of `d_stride` values; inverse_lengths: 1 / |k| at stride
// `length_stride`; d_log_scale [B, H] in float, or null.
// Threads: a grid of B H ceil(keys / 64) blocks, ordered by work_tile(). A block of 4 warps keeps 64 keys of
// one head, 16 per warp, whose k^ and v stay in registers as A fragments. Products are transposed, with keys
// as rows, so that p and d_s are A fragments as they come out of the first products. Query tiles of 64 pass
// through two stages, from the last to the first that sees one of the keys, so that the blocks of all key
// tiles read the same rows at about the same time. A warp computes 16 queries at a time and skips those that
// see none of its keys. The block of key tile 0 adds the parts of the log scale's gradient in order.
// Memory: 512 D bytes of shared memory (32 KB for D = 64), XOR-swizzled; keys and values pass through the
// second stage; 2 KB of row statistics.
// Precision: products and sums in f32, p and d_s rounded to T for the second products.
// Determinism: no atomics. A sample's gradients do not depend on the rest of its batch. The price of a fixed
// order is 7 products in two kernels, where one kernel that adds d_q atomically needs 5.
//
// Occupancy: 168 registers for D = 64, 3 blocks per multiprocessor.
// Limits for B 64, H 16, D 64, L 680 on an H100: 4 products over 0.657 of L^2 (steps of 16 by 16), 159 GFLOP
// or 0.27 ms at the 600 TFLOP/s of mma.sync. A warp reads 16 B fragments of 512 bytes for 32 mma: 0.4 ms of
// shared memory bandwidth, the expected limit. 32 keys per warp would halve that and need 128 registers of
// accumulators.
//
// Reference: src/engine/ops/attention/cpu.rs. Source: FlashAttention-2 (arXiv:2307.08691), backward split in
// two.
#include "attention.cuh"

template <class T, unsigned D>
__device__ __forceinline__ void attention_backward_keys(
    T *d_k, T *d_v, float *d_log_scale, const float *rows, const T *q, const T *k, const T *v, const T *d_out,
    const float *inverse_lengths, const uint32_t *visible, const uint32_t *mask, const float *log_scale,
    const float *cosine, const float *sine, unsigned heads, unsigned queries, unsigned keys,
    unsigned head_dim, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned length_stride,
    unsigned d_stride, float fixed_scale, unsigned vectorized) {
    constexpr unsigned STEPS = D / 16, STAGE = 2 * TILE * D, SUBTILE = 16;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, lse_tile, [2][TILE]);
    SHARED_ARRAY(float, deltas, [2][TILE]);
    SHARED_ARRAY(unsigned, key_ends, [2][TILE]);
    unsigned tiles = (keys + TILE - 1) / TILE, tasks = gridDim.x / tiles;
    unsigned query_tiles = (queries + TILE - 1) / TILE;
    // Tile 0 comes first because the most queries see it.
    WorkTile work = work_tile(blockIdx.x, tasks, tiles, heads);
    unsigned row = work.tile * TILE, warp = threadIdx.x / WARP, warp_row = row + warp * 16;
    uint64_t q_first = uint64_t(work.sample) * queries * q_stride + work.head * head_dim;
    uint64_t k_first = uint64_t(work.sample) * keys * k_stride + work.head * head_dim;
    uint64_t v_first = uint64_t(work.sample) * keys * v_stride + work.head * head_dim;
    uint64_t d_first = uint64_t(work.sample) * keys * d_stride + work.head * head_dim;
    uint64_t out_first = (uint64_t(work.sample) * queries * heads + work.head) * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> k_rows = {k + k_first, k_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> v_rows = {v + v_first, v_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> d_out_rows = {
        d_out + out_first, heads * head_dim, queries, head_dim, is_vectorized<D>(vectorized)};
    Rope rope = {cosine, sine, head_dim / 2};
    bool normalize = log_scale != nullptr;
    float scale = logit_scale(log_scale, work.head, fixed_scale), scale_log2 = scale * LOG2_E;
    if (mask != nullptr) mask += uint64_t(work.sample) * keys;
    const float *lse_rows = rows + uint64_t(work.task) * queries;
    const float *delta_rows = lse_rows + uint64_t(tasks) * queries;

    if (d_log_scale != nullptr && work.tile == 0 && threadIdx.x == 0) {
        unsigned parts = (queries + QUERY_ROWS<D> - 1) / QUERY_ROWS<D>;
        const float *part = rows + uint64_t(2) * tasks * queries + uint64_t(work.task) * parts;
        float sum = 0.0f;
        for (unsigned at = 0; at < parts; ++at) sum += part[at];
        d_log_scale[work.task] = log_scale[work.head] <= MAX_LOG_SCALE ? sum : 0.0f;
    }

    // Query tiles from the last to the first that sees a key of this tile: see the header.
    const unsigned unmasked[2] = {unmasked_keys(mask, row, keys), unmasked_keys(mask, row + WARP, keys)};
    unsigned bits = (warp < 2 ? unmasked[0] : unmasked[1]) >> warp % 2 * 16 & 0xffffu, count = 0;
    if ((unmasked[0] | unmasked[1]) != 0) {
        count = query_tiles - masked_tiles(visible, row, queries, keys, query_tiles);
    }

    T *k_tile = shared + STAGE, *v_tile = k_tile + TILE * D;
    copy_tile_async<D, TILE, THREADS>(k_tile, k_rows, row);
    copy_tile_async<D, TILE, THREADS>(v_tile, v_rows, row);
    commit_copies();
    // Row statistics of the next tile, prefetched in registers: lse and key ends by the first half of the
    // threads, delta by the second.
    float next_statistic = 0.0f;
    unsigned next_key_end = 0;
    auto start_queries = [&](unsigned tile) {
        unsigned first = (query_tiles - 1 - tile) * TILE, at = first + threadIdx.x % TILE;
        T *stage = shared + tile % 2 * STAGE;
        copy_tile_async<D, TILE, THREADS>(stage, q_rows, first);
        copy_tile_async<D, TILE, THREADS>(stage + TILE * D, d_out_rows, first);
        if (threadIdx.x < TILE) {
            next_statistic = at < queries ? lse_rows[at] : INFINITY;
            next_key_end = visible_keys(visible, min(at, queries - 1), keys);
        } else {
            next_statistic = at < queries ? delta_rows[at] : 0.0f;
        }
    };
    if (count > 0) start_queries(0);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    uint32_t k_hat[STEPS][4], v_a[STEPS][4];
    float d_k_acc[D / 8][4], d_v_acc[D / 8][4];
#pragma unroll
    for (unsigned step = 0; step < STEPS; ++step) {
        load_a<D>(k_hat[step], k_tile, warp * 16, step);
        load_a<D>(v_a[step], v_tile, warp * 16, step);
    }
#pragma unroll
    for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) d_k_acc[n][i] = d_v_acc[n][i] = 0.0f;
    }

    for (unsigned tile = 0; tile < count; ++tile) {
        T *q_tile = shared + tile % 2 * STAGE, *d_out_tile = q_tile + TILE * D;
        const unsigned *tile_key_ends = key_ends[tile % 2];
        unsigned first = (query_tiles - 1 - tile) * TILE;
        if (threadIdx.x < TILE) {
            lse_tile[tile % 2][threadIdx.x] = next_statistic;
            key_ends[tile % 2][threadIdx.x] = next_key_end;
        } else {
            deltas[tile % 2][threadIdx.x - TILE] = next_statistic;
        }
        wait_copies<0>();
        // The barrier makes this tile visible and frees the previous stage.
        __syncthreads();
        if (tile + 1 < count) start_queries(tile + 1);
        commit_copies();
// For D = 128 unrolling costs nvcc a long time and gains nothing.
#pragma unroll(D <= 64 ? TILE / SUBTILE : 1)
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned query = part * SUBTILE;
            if (bits == 0 || first + query >= queries || tile_key_ends[query + SUBTILE - 1] <= warp_row) {
                continue;
            }
            // Transposed, rows are keys and columns are queries: S^T = K Q^T and dP^T = V dO^T.
            float s[2][4] = {}, d_p[2][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t b[4];
                load_b<D>(b, q_tile, query, step);
                mma_pair<T>(s[0], s[1], k_hat[step], b);
                load_b<D>(b, d_out_tile, query, step);
                mma_pair<T>(d_p[0], d_p[1], v_a[step], b);
            }
            if (bits != 0xffffu || tile_key_ends[query] < warp_row + 16) {
#pragma unroll
                for (unsigned at = 0; at < 8; ++at) {
                    unsigned key = result_row(at / 2 % 2);
                    unsigned column = query + at / 4 * 8 + result_column() + at % 2;
                    if (!(bits >> key & 1) || warp_row + key >= tile_key_ends[column]) {
                        s[at / 4][at % 4] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (unsigned n = 0; n < 2; ++n) {
                float lse[2], delta[2];
                load<2>(lse, lse_tile[tile % 2] + query + n * 8 + result_column());
                load<2>(delta, deltas[tile % 2] + query + n * 8 + result_column());
#pragma unroll
                for (unsigned i = 0; i < 4; ++i) {
                    float p = exp2_approx(s[n][i] * scale_log2 - lse[i % 2]);
                    s[n][i] = p;
                    d_p[n][i] = p * (d_p[n][i] - delta[i % 2]);
                }
            }
            // P^T and dS^T = P^T (dP^T - delta) are A fragments as they are.
            uint32_t p[4], d_s[4];
            pack_a<T>(p, s[0], s[1]);
            pack_a<T>(d_s, d_p[0], d_p[1]);
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                // dV += P^T dO and dK += dS^T Q, 16 channels.
                uint32_t b[4];
                load_b_transposed<D>(b, d_out_tile, query, step);
                mma_pair<T>(d_v_acc[2 * step], d_v_acc[2 * step + 1], p, b);
                load_b_transposed<D>(b, q_tile, query, step);
                mma_pair<T>(d_k_acc[2 * step], d_k_acc[2 * step + 1], d_s, b);
            }
        }
    }

    // Epilogue: the scale, RoPE and QK-norm backward of the keys.
    Source<T> d_k_rows = {d_k + d_first, d_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    Source<T> d_v_rows = {d_v + d_first, d_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    float inverse[2] = {1.0f, 1.0f};
#pragma unroll
    for (unsigned pair = 0; pair < 2; ++pair) {
        unsigned at = warp_row + result_row(pair);
        if (normalize && at < keys) {
            inverse[pair] = inverse_lengths[(uint64_t(work.sample) * keys + at) * length_stride + work.head];
        }
    }
#pragma unroll
    for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) d_k_acc[n][i] *= scale;
    }
    rope_norm_backward<D, T>(d_k_acc, k_hat, inverse, normalize, warp_row, keys, rope);
    // All warps are done with the tiles; their memory stages the gradients.
    __syncthreads();
    store_results<D>(shared, d_k_acc, warp * 16);
    store_results<D>(shared + TILE * D, d_v_acc, warp * 16);
    __syncwarp();
    copy_out_rows<D, 16>(d_k_rows, shared, warp * 16, warp_row);
    copy_out_rows<D, 16>(d_v_rows, shared + TILE * D, warp * 16, warp_row);
}

#define ATTENTION_BACKWARD_KEYS(T, suffix, D)                                                                \
    KERNEL_SHARING(                                                                                          \
        attention_backward_keys_##D##_##suffix, THREADS, D <= 64 ? 3 : 2, T *d_k, T *d_v,                    \
        float *d_log_scale, const float *rows, const T *q, const T *k, const T *v, const T *d_out,           \
        const float *inverse_lengths, const uint32_t *visible, const uint32_t *mask, const float *log_scale, \
        const float *cosine, const float *sine, uint32_t heads, uint32_t queries, uint32_t keys,             \
        uint32_t head_dim, uint32_t q_stride, uint32_t k_stride, uint32_t v_stride, uint32_t length_stride,  \
        uint32_t d_stride, float fixed_scale, uint32_t vectorized) {                                         \
        attention_backward_keys<T, D>(                                                                       \
            d_k, d_v, d_log_scale, rows, q, k, v, d_out, inverse_lengths, visible, mask, log_scale, cosine,  \
            sine, heads, queries, keys, head_dim, q_stride, k_stride, v_stride, length_stride, d_stride,     \
            fixed_scale, vectorized);                                                                        \
    }
#define ALL_ATTENTION_BACKWARD_KEYS(T, suffix)                                                               \
    ATTENTION_BACKWARD_KEYS(T, suffix, 16)                                                                   \
    ATTENTION_BACKWARD_KEYS(T, suffix, 32)                                                                   \
    ATTENTION_BACKWARD_KEYS(T, suffix, 64)                                                                   \
    ATTENTION_BACKWARD_KEYS(T, suffix, 128)
ALL_ATTENTION_BACKWARD_KEYS(bf16, bf16)
ALL_ATTENTION_BACKWARD_KEYS(f16, f16)
