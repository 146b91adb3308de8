// Attention forward in 16 bits on tensor cores (FlashAttention-2): nothing of size [L, L] is stored.
//
//     p = softmax(scale q k^T, over the visible keys),    out = p v
//
// Shapes: q, k, v: rows of one head of D values in sources of `q_stride`, `k_stride` and `v_stride` values
// per row, rotated and normalized beforehand by attention_prepare.cu; out [B, L, H D] in T; rows [2, B, H, L]
// in float, of which the first half receives lse, log2 of the sum of 2^(logit log2(e)), +infinity for a row
// without keys. `visible` [L]: the number of leading keys that each query sees, non-decreasing along the
// queries (the block-causal mask of the token pyramid). `mask` [B, T]: a key is visible only where it is 1.
// `log_scale` [H]: null for the fixed scale without QK-norm. A query that sees no key gets zeros.
//
// Threads: a grid of B H ceil(L / 128) blocks, ordered by work_tile(). A block of 4 warps takes 128 queries
// of one head (64 for D = 128), a warp 32 (16) of them, which stay in registers as A fragments. Key and value
// tiles of 64 rows pass through two stages of shared memory (cp.async), one barrier per tile. A warp computes
// 16 keys at a time and skips them with one comparison if none of its queries sees them; a tile that no query
// of the block sees is never loaded. Within a group of 64 heads the blocks with the most keys start first.
// Memory: 512 D bytes of shared memory (32 KB for D = 64), XOR-swizzled; the queries pass through the second
// stage.
// Precision: products and sums in f32, p rounded to T for the second product. Online softmax, without the
// running maximum where QK-norm bounds the logits (see MAX_BOUNDED_SCALE).
// Determinism: no atomics, no split over keys; one order of summation per row.
//
// Occupancy: 168 registers for D = 64 leave room for 3 blocks per multiprocessor.
// Limits for B 64, H 16, D 64, L 680 on an H100. Steps of 32 queries by 16 keys compute 0.694 of L^2 (the
// mask allows 0.619; steps of 128 by 64 would compute 0.886): 84 GFLOP, 0.14 ms at the 600 TFLOP/s of
// mma.sync. The same number of exponentials takes 0.09 ms, and 357 MB from HBM take 0.12 ms; keys and values
// are read from L2, 0.84 GB. With one m-tile of 16 queries per warp each B fragment of 512 bytes would feed
// one mma instead of two, and shared memory's 128 bytes per cycle would be the limit. Measurements:
// benches/RESULTS.md.
//
// Reference: src/engine/ops/attention/cpu.rs. Source: FlashAttention-2 (arXiv:2307.08691); docs/upstream.md,
// B3 to B5.
#include "attention.cuh"

// QK-norm bounds every logit by the scale of its head. Up to this scale the bound replaces the row's maximum:
// nothing is compared or rescaled. bf16 has the exponent range of f32, so 2^logit is stored as it is. For
// f16, powers are shifted so that they reach at most 2^15, and the largest power of a row, at worst 2^(-2
// scale log2(e)) of that, must leave enough precision for the keys that matter.
template <class T> constexpr float MAX_BOUNDED_SCALE = std::is_same_v<T, bf16> ? 40.0f : 6.0f;
constexpr float MAX_F16_EXPONENT = 15.0f;
// Beyond that scale: online softmax with lazy rescaling. A row's shift is its maximum so far, but it is
// renewed only once a logit exceeds it by this threshold; until then powers stay below 2^8, which every type
// holds. A row without keys so far has a finite shift, so that the -infinity of a masked key can be
// subtracted from it.
constexpr float RESCALE_THRESHOLD = 8.0f, NO_MAXIMUM = -1e30f;
// Keys per step of a warp.
constexpr unsigned SUBTILE = 16;
// How many steps are unrolled for D <= 64: as many as each architecture has registers for without spilling.
// For D = 128 unrolling costs nvcc a long time and gains nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr unsigned UNROLL = 2;
#else
constexpr unsigned UNROLL = TILE / SUBTILE;
#endif

template <class T, unsigned D>
__device__ __forceinline__ void attention_forward(
    T *out, float *rows, const T *q, const T *k, const T *v, const uint32_t *visible, const uint32_t *mask,
    const float *log_scale, unsigned heads, unsigned queries, unsigned keys, unsigned head_dim,
    unsigned q_stride, unsigned k_stride, unsigned v_stride, float fixed_scale, unsigned vectorized) {
    constexpr unsigned MT = M_TILES<D>, ROWS = QUERY_ROWS<D>, STEPS = D / 16, STAGE = 2 * TILE * D;
    static_assert(ROWS * D <= STAGE, "the queries pass through the second stage");
    DYNAMIC_SHARED(T, shared);
    unsigned tiles = (queries + ROWS - 1) / ROWS;
    WorkTile work = work_tile(blockIdx.x, gridDim.x / tiles, tiles, heads);
    unsigned row = (tiles - 1 - work.tile) * ROWS, warp = threadIdx.x / WARP, warp_row = row + warp * 16 * MT;
    uint64_t q_first = uint64_t(work.sample) * queries * q_stride + work.head * head_dim;
    uint64_t k_first = uint64_t(work.sample) * keys * k_stride + work.head * head_dim;
    uint64_t v_first = uint64_t(work.sample) * keys * v_stride + work.head * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> k_rows = {k + k_first, k_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    Source<const T> v_rows = {v + v_first, v_stride, keys, head_dim, is_vectorized<D>(vectorized)};
    bool normalize = log_scale != nullptr;
    float scale = logit_scale(log_scale, work.head, fixed_scale), scale_log2 = scale * LOG2_E;
    if (mask != nullptr) mask += uint64_t(work.sample) * keys;

    // The end of the keys that the block's last row sees, that the warp's last row sees, and that all its
    // rows see.
    unsigned end = visible_keys(visible, min(row + ROWS, queries) - 1, keys);
    unsigned key_tiles = (end + TILE - 1) / TILE;
    bool active = warp_row < queries;
    unsigned warp_end = active ? visible_keys(visible, min(warp_row + 16 * MT, queries) - 1, keys) : 0;
    unsigned warp_all = active ? visible_keys(visible, warp_row, keys) : 0;

    // The queries go from global memory through the second stage into A fragments, while the first keys and
    // values load.
    T *q_tile = shared + STAGE;
    copy_tile_async<D, ROWS, THREADS>(q_tile, q_rows, row);
    commit_copies();
    if (key_tiles > 0) {
        copy_tile_async<D, TILE, THREADS>(shared, k_rows, 0);
        copy_tile_async<D, TILE, THREADS>(shared + TILE * D, v_rows, 0);
    }
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    uint32_t q_hat[MT][STEPS][4];
#pragma unroll
    for (unsigned m = 0; m < MT; ++m) {
#pragma unroll
        for (unsigned step = 0; step < STEPS; ++step) {
            load_a<D>(q_hat[m][step], q_tile, warp * 16 * MT + m * 16, step);
        }
    }

    bool online = !normalize || !(scale <= MAX_BOUNDED_SCALE<T>);
    float first_shift = std::is_same_v<T, bf16> ? 0.0f : scale_log2 - MAX_F16_EXPONENT;
    float shift[MT][2], sum[MT][2], o[MT][D / 8][4];
#pragma unroll
    for (unsigned m = 0; m < MT; ++m) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            shift[m][pair] = online ? NO_MAXIMUM : first_shift;
            sum[m][pair] = 0.0f;
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) o[m][n][i] = 0.0f;
        }
    }

    for (unsigned tile = 0; tile < key_tiles; ++tile) {
        T *k_tile = shared + tile % 2 * STAGE, *v_tile = k_tile + TILE * D;
        const unsigned unmasked[2] = {
            unmasked_keys(mask, tile * TILE, keys), unmasked_keys(mask, tile * TILE + WARP, keys)};
        wait_copies<0>();
        // The barrier makes this tile visible and frees the previous stage.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            T *next = shared + (tile + 1) % 2 * STAGE;
            copy_tile_async<D, TILE, THREADS>(next, k_rows, (tile + 1) * TILE);
            copy_tile_async<D, TILE, THREADS>(next + TILE * D, v_rows, (tile + 1) * TILE);
        }
        commit_copies();
#pragma unroll(D <= 64 ? UNROLL : 1)
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned key = tile * TILE + part * SUBTILE;
            unsigned bits = (part < 2 ? unmasked[0] : unmasked[1]) >> part % 2 * SUBTILE & 0xffffu;
            if (key >= warp_end || bits == 0) continue;
            // S = Q K^T, 16 keys.
            float s[MT][2][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t b[4];
                load_b<D>(b, k_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned m = 0; m < MT; ++m) {
                    mma_pair<T>(s[m][0], s[m][1], q_hat[m][step], b);
                }
            }
            // Applies the mask, only in steps that cross its border.
            if (key + SUBTILE > warp_all || bits != 0xffffu) {
#pragma unroll
                for (unsigned at = 0; at < 2 * MT; ++at) {
                    unsigned m = at / 2, pair = at % 2;
                    // Reloaded in the few steps on the border of the mask, because registers are scarcer than
                    // time.
                    unsigned query = min(warp_row + m * 16 + result_row(pair), queries - 1);
                    unsigned key_end = visible_keys(visible, query, keys);
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) {
                        unsigned column = i / 2 * 8 + result_column() + i % 2;
                        bool is_visible = key + column < key_end && (bits >> column & 1);
                        if (!is_visible) s[m][i / 2][2 * pair + i % 2] = -INFINITY;
                    }
                }
            }
            // Online softmax: rescales sum and output once a logit exceeds the shift by the threshold.
            if (online) {
                float row_max[MT][2];
                bool exceeded = false;
#pragma unroll
                for (unsigned at = 0; at < 2 * MT; ++at) {
                    unsigned m = at / 2, pair = at % 2;
                    float maximum = fmaxf(
                        fmaxf(s[m][0][2 * pair], s[m][0][2 * pair + 1]),
                        fmaxf(s[m][1][2 * pair], s[m][1][2 * pair + 1]));
                    row_max[m][pair] = maximum * scale_log2;
                    exceeded |= row_max[m][pair] > shift[m][pair] + RESCALE_THRESHOLD;
                }
                if (__any_sync(ALL_LANES, exceeded)) {
#pragma unroll
                    for (unsigned at = 0; at < 2 * MT; ++at) {
                        unsigned m = at / 2, pair = at % 2;
                        float maximum = row_max[m][pair];
                        maximum = fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, 1));
                        maximum = fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, 2));
                        maximum = fmaxf(maximum, shift[m][pair]);
                        float rescale = exp2_approx(shift[m][pair] - maximum);
                        shift[m][pair] = maximum;
                        sum[m][pair] *= rescale;
#pragma unroll
                        for (unsigned n = 0; n < D / 8; ++n) {
                            o[m][n][2 * pair] *= rescale;
                            o[m][n][2 * pair + 1] *= rescale;
                        }
                    }
                }
            }
            // P = 2^(S scale log2(e) - shift), and the row sums.
            uint32_t p[MT][4];
#pragma unroll
            for (unsigned m = 0; m < MT; ++m) {
#pragma unroll
                for (unsigned at = 0; at < 8; ++at) {
                    float &value = s[m][at / 4][at % 4];
                    value = exp2_approx(value * scale_log2 - shift[m][at / 2 % 2]);
                    sum[m][at / 2 % 2] += value;
                }
                pack_a<T>(p[m], s[m][0], s[m][1]);
            }
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                // O += P V, 16 channels.
                uint32_t b[4];
                load_b_transposed<D>(b, v_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned m = 0; m < MT; ++m) {
                    mma_pair<T>(o[m][2 * step], o[m][2 * step + 1], p[m], b);
                }
            }
        }
    }

    // All warps are done with the tiles; their memory stages the output.
    __syncthreads();
    uint64_t out_stride = uint64_t(heads) * head_dim;
    Source<T> out_rows = {
        out + uint64_t(work.sample) * queries * out_stride + work.head * head_dim, unsigned(out_stride),
        queries, head_dim, is_vectorized<D>(vectorized)};
#pragma unroll
    for (unsigned m = 0; m < MT; ++m) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            float total = lanes_sum<4>(sum[m][pair]), inverse = total > 0.0f ? 1.0f / total : 0.0f;
            unsigned at = warp_row + m * 16 + result_row(pair);
            if (threadIdx.x % 4 == 0 && at < queries) {
                rows[uint64_t(work.task) * queries + at] =
                    total > 0.0f ? shift[m][pair] + log2f(total) : INFINITY;
            }
#pragma unroll
            for (unsigned n = 0; n < D / 8; ++n) {
                o[m][n][2 * pair] *= inverse;
                o[m][n][2 * pair + 1] *= inverse;
            }
        }
        store_results<D>(shared, o[m], warp * 16 * MT + m * 16);
    }
    __syncwarp();
    copy_out_rows<D, 16 * MT>(out_rows, shared, warp * 16 * MT, warp_row);
}

#define ATTENTION_FORWARD(T, suffix, D)                                                                      \
    KERNEL_SHARING(                                                                                          \
        attention_forward_##D##_##suffix, THREADS, D <= 64 ? 3 : 2, T *out, float *rows, const T *q,         \
        const T *k, const T *v, const uint32_t *visible, const uint32_t *mask, const float *log_scale,       \
        uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride,               \
        uint32_t k_stride, uint32_t v_stride, float fixed_scale, uint32_t vectorized) {                      \
        attention_forward<T, D>(                                                                             \
            out, rows, q, k, v, visible, mask, log_scale, heads, queries, keys, head_dim, q_stride,          \
            k_stride, v_stride, fixed_scale, vectorized);                                                    \
    }
#define ALL_ATTENTION_FORWARD(T, suffix)                                                                     \
    ATTENTION_FORWARD(T, suffix, 16)                                                                         \
    ATTENTION_FORWARD(T, suffix, 32)                                                                         \
    ATTENTION_FORWARD(T, suffix, 64)                                                                         \
    ATTENTION_FORWARD(T, suffix, 128)
ALL_ATTENTION_FORWARD(bf16, bf16)
ALL_ATTENTION_FORWARD(f16, f16)
