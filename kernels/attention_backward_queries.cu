// Gradients of attention's queries in 16-bit numbers on tensor cores, from the forward's `rows` (attention_forward.cu);
// the probabilities are computed again. With g = d_out:
//
//     mean = sum(out g),  d_s = p (g v - mean),  d_q^ = factor d_s k^
//     d_q = turned back (d_q^ - q^ (q^ d_q^)) / length
//
// q^ and k^ are those of attention_prepare.cu, with the inverse lengths of queries; d_q, in rows of `d_stride`, is the
// gradient before turning and normalising.
//
// The gradient of the logarithm of the scale is the sum of q^ d_q^ over a sample's queries, for each sample and head.
// `rows` continues with the means, [B, H, L], and each block's part of that sum, [B, H, blocks]:
// attention_backward_keys.cu, which runs after this, uses both.
//
// Threads and tiles as in the forward: a block of 4 warps has 128 queries of one head (64 for D = 128), whose q^ and g
// stay in registers; a warp takes 16 keys at a time. No atomics: every sum has one order. Shared memory: 1024 D bytes
// (768 D for D = 128), 64 KB for D = 64, and 1 KB of row sums.
//
// Limits for B 64, H 16, D 64, L 680 on an H100: 3 products over 0.694 of L^2, 126 GFLOP or 0.21 ms at the 600 TFLOP/s
// of mma.sync; the same 0.09 ms of exponentials as the forward. Up to 230 registers with D = 64: 2 blocks a
// multiprocessor.
#include "attention.cuh"

template <class T, unsigned D>
__device__ __forceinline__ void attention_backward_queries(
    T *d_q, float *rows, const T *q, const T *k, const T *v, const T *out, const T *d_out, const float *inverse_lengths,
    const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine,
    unsigned heads, unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride, unsigned k_stride,
    unsigned v_stride, unsigned length_stride, unsigned d_stride, float fixed_factor, unsigned wide) {
    constexpr unsigned LEFT = LEFTS<D>, ROWS = QUERY_ROWS<D>, STEPS = D / 16, STAGE = 2 * TILE * D;
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS, SUBTILE = 16;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, means, [ROWS]);
    SHARED_ARRAY(float, warp_sums, [WARPS]);
    unsigned tiles = (queries + ROWS - 1) / ROWS, tasks = gridDim.x / tiles;
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - place.tile) * ROWS, warp = threadIdx.x / WARP, warp_row = row + warp * 16 * LEFT;
    uint64_t q_first = uint64_t(place.sample) * queries * q_stride + place.head * head_dim;
    uint64_t k_first = uint64_t(place.sample) * keys * k_stride + place.head * head_dim;
    uint64_t v_first = uint64_t(place.sample) * keys * v_stride + place.head * head_dim;
    uint64_t d_first = uint64_t(place.sample) * queries * d_stride + place.head * head_dim;
    uint64_t out_first = (uint64_t(place.sample) * queries * heads + place.head) * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_wide<D>(wide)};
    Source<const T> k_rows = {k + k_first, k_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> v_rows = {v + v_first, v_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> out_rows = {out + out_first, heads * head_dim, queries, head_dim, is_wide<D>(wide)};
    Source<const T> d_out_rows = {d_out + out_first, heads * head_dim, queries, head_dim, is_wide<D>(wide)};
    Rotary rotary = {cosine, sine, head_dim / 2};
    bool normalise = log_scale != nullptr;
    float factor = factor_of(log_scale, place.head, fixed_factor), factor2 = factor * LOG2_E;
    if (mask != nullptr) mask += uint64_t(place.sample) * keys;
    const float *shifts = rows + uint64_t(place.task) * queries;
    float *mean_rows = rows + uint64_t(tasks) * queries + uint64_t(place.task) * queries;

    unsigned end = visible_of(visible, min(row + ROWS, queries) - 1, keys), key_tiles = (end + TILE - 1) / TILE;
    bool working = warp_row < queries;
    unsigned warp_end = working ? visible_of(visible, min(warp_row + 16 * LEFT, queries) - 1, keys) : 0;
    unsigned warp_all = working ? visible_of(visible, warp_row, keys) : 0;

    T *q_tile = shared, *d_out_tile = shared + ROWS * D, *stages = shared + 2 * ROWS * D;
    start_copy<D, ROWS, THREADS>(q_tile, q_rows, row);
    start_copy<D, ROWS, THREADS>(d_out_tile, d_out_rows, row);
    commit_copies();
    if (key_tiles > 0) {
        start_copy<D, TILE, THREADS>(stages, k_rows, 0);
        start_copy<D, TILE, THREADS>(stages + TILE * D, v_rows, 0);
    }
    commit_copies();
    wait_copies<1>();
    // Each row's mean of the gradients of its logits: the product of output and gradient.
#pragma unroll 2
    for (unsigned from = 0; from < ROWS * CHUNKS; from += THREADS) {
        unsigned at = from + threadIdx.x, chunk = at % CHUNKS, r = at / CHUNKS;
        auto o = out_rows.read(row + r, chunk);
        float d[8], mean = 0.0f;
        load<8>(d, d_out_tile + Tile<D>::at(r, chunk));
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) mean += d[i] * to_float(o.value[i]);
        mean = lanes_sum<CHUNKS>(mean);
        if (chunk == 0) {
            means[r] = mean;
            if (row + r < queries) mean_rows[row + r] = mean;
        }
    }
    __syncthreads();
    uint32_t q_hat[LEFT][STEPS][4], d_o[LEFT][STEPS][4];
    float shift[LEFT][2], mean[LEFT][2], d[LEFT][D / 8][4];
    unsigned sees[LEFT][2];
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
        unsigned first = warp * 16 * LEFT + left * 16;
#pragma unroll
        for (unsigned step = 0; step < STEPS; ++step) {
            load_left<D>(q_hat[left][step], q_tile, first, step);
            load_left<D>(d_o[left][step], d_out_tile, first, step);
        }
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            unsigned at = row + first + result_row(pair);
            shift[left][pair] = at < queries ? shifts[at] : INFINITY;
            mean[left][pair] = means[first + result_row(pair)];
            sees[left][pair] = visible_of(visible, min(at, queries - 1), keys);
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) d[left][n][i] = 0.0f;
        }
    }

    for (unsigned tile = 0; tile < key_tiles; ++tile) {
        T *k_tile = stages + tile % 2 * STAGE, *v_tile = k_tile + TILE * D;
        const unsigned seen[2] = {seen_keys(mask, tile * TILE, keys), seen_keys(mask, tile * TILE + WARP, keys)};
        wait_copies<0>();
        // From here on all see this tile, and none uses the one before.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            T *next = stages + (tile + 1) % 2 * STAGE;
            start_copy<D, TILE, THREADS>(next, k_rows, (tile + 1) * TILE);
            start_copy<D, TILE, THREADS>(next + TILE * D, v_rows, (tile + 1) * TILE);
        }
        commit_copies();
// Whole for D = 128 it would take nvcc long and gain nothing.
#pragma unroll(D <= 64 ? TILE / SUBTILE : 1)
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned key = tile * TILE + part * SUBTILE;
            unsigned bits = (part < 2 ? seen[0] : seen[1]) >> part % 2 * SUBTILE & 0xffffu;
            if (key >= warp_end || bits == 0) continue;
            float s[LEFT][2][4] = {}, d_p[LEFT][2][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t right[4];
                load_columns<D>(right, k_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
                    multiply_pair<T>(s[left][0], s[left][1], q_hat[left][step], right);
                }
                load_columns<D>(right, v_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
                    multiply_pair<T>(d_p[left][0], d_p[left][1], d_o[left][step], right);
                }
            }
            if (key + SUBTILE > warp_all || bits != 0xffffu) {
#pragma unroll
                for (unsigned at = 0; at < 8 * LEFT; ++at) {
                    unsigned left = at / 8, column = at / 4 % 2 * 8 + result_column() + at % 2;
                    bool sees_it = key + column < sees[left][at / 2 % 2] && (bits >> column & 1);
                    if (!sees_it) s[left][at / 4 % 2][at % 4] = -INFINITY;
                }
            }
            uint32_t d_s[LEFT][4];
#pragma unroll
            for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
                for (unsigned at = 0; at < 8; ++at) {
                    unsigned pair = at / 2 % 2;
                    float p = exp2_approx(s[left][at / 4][at % 4] * factor2 - shift[left][pair]);
                    s[left][at / 4][at % 4] = p * (d_p[left][at / 4][at % 4] - mean[left][pair]);
                }
                as_left<T>(d_s[left], s[left][0], s[left][1]);
            }
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t right[4];
                load_summed<D>(right, k_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
                    multiply_pair<T>(d[left][2 * step], d[left][2 * step + 1], d_s[left], right);
                }
            }
        }
    }

    Source<T> results = {d_q + d_first, d_stride, queries, head_dim, is_wide<D>(wide)};
    float total = 0.0f;
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
        unsigned first = warp * 16 * LEFT + left * 16;
        float inverse[2] = {1.0f, 1.0f};
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            unsigned at = row + first + result_row(pair);
            if (normalise && at < queries) {
                inverse[pair] = inverse_lengths[(uint64_t(place.sample) * queries + at) * length_stride + place.head];
            }
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) d[left][n][i] *= factor;
        }
        total += undo<D, T>(d[left], q_hat[left], inverse, normalise, row + first, queries, rotary);
        // Only this warp has used these rows since the barrier after they were prepared.
        put_results<D>(q_tile, d[left], first);
    }
    total = lanes_sum<WARP, 4>(total);
    if (threadIdx.x % WARP == 0) warp_sums[warp] = total;
    __syncthreads();
    if (threadIdx.x == 0 && normalise) {
        float sum = 0.0f;
#pragma unroll
        for (unsigned at = 0; at < WARPS; ++at) sum += warp_sums[at];
        rows[uint64_t(2) * tasks * queries + uint64_t(place.task) * tiles + row / ROWS] = sum;
    }
    write_rows<D, 16 * LEFT>(results, q_tile, warp * 16 * LEFT, warp_row);
}

#define ATTENTION_BACKWARD_QUERIES(T, suffix, D)                                                                       \
    KERNEL(                                                                                                            \
        attention_backward_queries_##D##_##suffix, THREADS, T *d_q, float *rows, const T *q, const T *k, const T *v,   \
        const T *out, const T *d_out, const float *inverse_lengths, const uint32_t *visible, const uint32_t *mask,     \
        const float *log_scale, const float *cosine, const float *sine, uint32_t heads, uint32_t queries,              \
        uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t k_stride, uint32_t v_stride,                     \
        uint32_t length_stride, uint32_t d_stride, float fixed_factor, uint32_t wide) {                                \
        attention_backward_queries<T, D>(                                                                              \
            d_q, rows, q, k, v, out, d_out, inverse_lengths, visible, mask, log_scale, cosine, sine, heads, queries,   \
            keys, head_dim, q_stride, k_stride, v_stride, length_stride, d_stride, fixed_factor, wide);                \
    }
#define ALL_ATTENTION_BACKWARD_QUERIES(T, suffix)                                                                      \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 16)                                                                          \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 32)                                                                          \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 64)                                                                          \
    ATTENTION_BACKWARD_QUERIES(T, suffix, 128)
ALL_ATTENTION_BACKWARD_QUERIES(bf16, bf16)
ALL_ATTENTION_BACKWARD_QUERIES(f16, f16)
