// Gradients of attention in 16-bit numbers on tensor cores, from the forward's `rows` (attention_forward.cu); the
// probabilities are computed again. With g = d_out:
//
//     mean = sum(out g),  d_s = p (g v - mean),  d_q^ = factor d_s k^,  d_k^ = factor d_s q^,  d_v = p g
//
// and of each row d_q = turned back (d_q^ - q^ (q^ d_q^)) / length. The gradient of the logarithm of the scale is the sum of
// q^ d_q^ over a sample's queries, for each sample and head.
//
// attention_backward_queries has a block for each 128 queries (64 for D = 128), like the forward, and writes d_q, the rows'
// means and a part of the scale's gradient. attention_backward_keys has one for each 64 keys, 16 a warp, and runs after it:
// query tiles pass by, from the last to the first that sees one of the keys, as rows of right operands; it writes d_k, d_v
// and, in the block of the first keys, the scale's gradient, its parts added in order. No atomics: every sum has one order,
// and a sample's gradients do not depend on its batch mates.
// `rows` continues with the means [B, H, L] and the parts [B, H, query blocks].
//
// Shared memory: queries 1024 D bytes (768 D for D = 128), keys 512 D: 64 and 32 KB for D = 64; and 1 to 2 KB of row sums.
//
// Limits for B 64, H 16, D 64, L 680 on an H100, computed and not yet measured. Queries: 3 products over 0.694 of L^2, 126
// GFLOP; keys: 4 over 0.657 (16 by 16), 159 GFLOP: 0.48 ms together at the 600 TFLOP/s of mma.sync. A warp with 16 keys
// reads 16 right operands of 512 bytes for 32 products, 0.4 ms of shared memory's bandwidth: the keys' limit. Registers
// (168 and 229) leave room for 3 and 2 blocks a multiprocessor. Both kernels compute p: 7 products instead of the 5 of one
// kernel that adds d_q with atomics, which is the price of sums in a fixed order.
#include "attention.cuh"

template <class T, unsigned D>
__device__ __forceinline__ void attention_backward_queries(
    T *d_q, float *rows, const T *q, const T *k, const T *v, const T *out, const T *d_out, const uint32_t *visible,
    const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine, unsigned heads,
    unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride, unsigned kv_stride, float fixed_factor,
    unsigned wide) {
    constexpr unsigned LEFT = LEFTS<D>, ROWS = QUERY_ROWS<D>, STEPS = D / 16, STAGE = 2 * TILE * D;
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS, SUBTILE = 16;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, inverse_length, [ROWS]);
    SHARED_ARRAY(float, means, [ROWS]);
    SHARED_ARRAY(float, warp_sums, [WARPS]);
    unsigned tiles = (queries + ROWS - 1) / ROWS, tasks = gridDim.x / tiles;
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - place.tile) * ROWS, warp = threadIdx.x / WARP, warp_row = row + warp * 16 * LEFT;
    uint64_t q_first = uint64_t(place.sample) * queries * q_stride + place.head * head_dim;
    uint64_t k_first = uint64_t(place.sample) * keys * kv_stride + place.head * head_dim;
    uint64_t out_first = (uint64_t(place.sample) * queries * heads + place.head) * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_wide<D>(wide)};
    Source<const T> k_rows = {k + k_first, kv_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> v_rows = {v + k_first, kv_stride, keys, head_dim, is_wide<D>(wide)};
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
    prepare<D, ROWS, THREADS>(q_tile, q_rows, row, rotary, normalise, inverse_length);
    // Each row's mean of the gradients of its logits: the product of output and gradient.
#pragma unroll 2
    for (unsigned from = 0; from < ROWS * CHUNKS; from += THREADS) {
        unsigned at = from + threadIdx.x, chunk = at % CHUNKS, r = at / CHUNKS;
        auto o = out_rows.read(row + r, chunk);
        float d[8], mean = 0.0f;
        load<8>(d, d_out_tile + Tile<D>::at(r, chunk));
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) mean += d[i] * widen(o.value[i]);
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
        prepare<D, TILE, THREADS>(k_tile, k_rows, tile * TILE, rotary, normalise, nullptr);
        // From here on all see this tile, and none uses the one before.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            T *next = stages + (tile + 1) % 2 * STAGE;
            start_copy<D, TILE, THREADS>(next, k_rows, (tile + 1) * TILE);
            start_copy<D, TILE, THREADS>(next + TILE * D, v_rows, (tile + 1) * TILE);
        }
        commit_copies();
#pragma unroll
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned key = tile * TILE + part * SUBTILE, bits = seen[part / 2] >> part % 2 * SUBTILE & 0xffffu;
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
                    float p = power_of_two(s[left][at / 4][at % 4] * factor2 - shift[left][pair]);
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

    Source<T> results = {d_q + q_first, q_stride, queries, head_dim, is_wide<D>(wide)};
    float total = 0.0f;
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
        unsigned first = warp * 16 * LEFT + left * 16;
        float inverse[2] = {1.0f, 1.0f};
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            if (normalise) inverse[pair] = inverse_length[first + result_row(pair)];
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

template <class T, unsigned D>
__device__ __forceinline__ void attention_backward_keys(
    T *d_k, T *d_v, float *d_log_scale, const float *rows, const T *q, const T *k, const T *v, const T *d_out,
    const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine,
    unsigned heads, unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride, unsigned kv_stride,
    float fixed_factor, unsigned wide) {
    constexpr unsigned STEPS = D / 16, STAGE = 2 * TILE * D, SUBTILE = 16;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, inverse_length, [TILE]);
    SHARED_ARRAY(float, shifts, [2][TILE]);
    SHARED_ARRAY(float, means, [2][TILE]);
    SHARED_ARRAY(unsigned, sees, [2][TILE]);
    unsigned tiles = (keys + TILE - 1) / TILE, tasks = gridDim.x / tiles, query_tiles = (queries + TILE - 1) / TILE;
    // Tile 0 first: it is seen by the most queries.
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = place.tile * TILE, warp = threadIdx.x / WARP, warp_row = row + warp * 16;
    uint64_t q_first = uint64_t(place.sample) * queries * q_stride + place.head * head_dim;
    uint64_t k_first = uint64_t(place.sample) * keys * kv_stride + place.head * head_dim;
    uint64_t out_first = (uint64_t(place.sample) * queries * heads + place.head) * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_wide<D>(wide)};
    Source<const T> k_rows = {k + k_first, kv_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> v_rows = {v + k_first, kv_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> d_out_rows = {d_out + out_first, heads * head_dim, queries, head_dim, is_wide<D>(wide)};
    Rotary rotary = {cosine, sine, head_dim / 2};
    bool normalise = log_scale != nullptr;
    float factor = factor_of(log_scale, place.head, fixed_factor), factor2 = factor * LOG2_E;
    if (mask != nullptr) mask += uint64_t(place.sample) * keys;
    const float *shift_rows = rows + uint64_t(place.task) * queries;
    const float *mean_rows = shift_rows + uint64_t(tasks) * queries;

    if (d_log_scale != nullptr && place.tile == 0 && threadIdx.x == 0) {
        unsigned parts = (queries + QUERY_ROWS<D> - 1) / QUERY_ROWS<D>;
        const float *part = rows + uint64_t(2) * tasks * queries + uint64_t(place.task) * parts;
        float sum = 0.0f;
        for (unsigned at = 0; at < parts; ++at) sum += part[at];
        d_log_scale[place.task] = log_scale[place.head] <= LARGEST_LOG_SCALE ? sum : 0.0f;
    }

    // Query tiles are taken from the last to the first that sees a key of this tile, so that blocks of all key tiles read
    // the same rows at about the same time.
    const unsigned seen[2] = {seen_keys(mask, row, keys), seen_keys(mask, row + WARP, keys)};
    unsigned bits = (warp < 2 ? seen[0] : seen[1]) >> warp % 2 * 16 & 0xffffu, count = 0;
    if ((seen[0] | seen[1]) != 0) count = query_tiles - blind_tiles(visible, row, queries, keys, query_tiles);

    T *k_tile = shared + STAGE, *v_tile = k_tile + TILE * D;
    start_copy<D, TILE, THREADS>(k_tile, k_rows, row);
    start_copy<D, TILE, THREADS>(v_tile, v_rows, row);
    commit_copies();
    // What a thread brings of the next tile's rows: shifts and visible keys the first half, means the second.
    float next_number = 0.0f;
    unsigned next_sees = 0;
    auto start_queries = [&](unsigned number) {
        unsigned first = (query_tiles - 1 - number) * TILE, at = first + threadIdx.x % TILE;
        T *stage = shared + number % 2 * STAGE;
        start_copy<D, TILE, THREADS>(stage, q_rows, first);
        start_copy<D, TILE, THREADS>(stage + TILE * D, d_out_rows, first);
        if (threadIdx.x < TILE) {
            next_number = at < queries ? shift_rows[at] : INFINITY;
            next_sees = visible_of(visible, min(at, queries - 1), keys);
        } else {
            next_number = at < queries ? mean_rows[at] : 0.0f;
        }
    };
    if (count > 0) start_queries(0);
    commit_copies();
    wait_copies<1>();
    prepare<D, TILE, THREADS>(k_tile, k_rows, row, rotary, normalise, inverse_length);
    __syncthreads();
    uint32_t k_hat[STEPS][4], v_left[STEPS][4];
    float d_k_sum[D / 8][4], d_v_sum[D / 8][4];
#pragma unroll
    for (unsigned step = 0; step < STEPS; ++step) {
        load_left<D>(k_hat[step], k_tile, warp * 16, step);
        load_left<D>(v_left[step], v_tile, warp * 16, step);
    }
#pragma unroll
    for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) d_k_sum[n][i] = d_v_sum[n][i] = 0.0f;
    }

    for (unsigned number = 0; number < count; ++number) {
        T *q_tile = shared + number % 2 * STAGE, *d_out_tile = q_tile + TILE * D;
        const unsigned *sees_keys = sees[number % 2];
        unsigned first = (query_tiles - 1 - number) * TILE;
        if (threadIdx.x < TILE) {
            shifts[number % 2][threadIdx.x] = next_number;
            sees[number % 2][threadIdx.x] = next_sees;
        } else {
            means[number % 2][threadIdx.x - TILE] = next_number;
        }
        wait_copies<0>();
        prepare<D, TILE, THREADS>(q_tile, q_rows, first, rotary, normalise, nullptr);
        // From here on all see this tile, and none uses the one before.
        __syncthreads();
        if (number + 1 < count) start_queries(number + 1);
        commit_copies();
#pragma unroll
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned query = part * SUBTILE;
            if (bits == 0 || first + query >= queries || sees_keys[query + SUBTILE - 1] <= warp_row) continue;
            // Rows are keys, columns queries.
            float s[2][4] = {}, d_p[2][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t right[4];
                load_columns<D>(right, q_tile, query, step);
                multiply_pair<T>(s[0], s[1], k_hat[step], right);
                load_columns<D>(right, d_out_tile, query, step);
                multiply_pair<T>(d_p[0], d_p[1], v_left[step], right);
            }
            if (bits != 0xffffu || sees_keys[query] < warp_row + 16) {
#pragma unroll
                for (unsigned at = 0; at < 8; ++at) {
                    unsigned key = result_row(at / 2 % 2), column = query + at / 4 * 8 + result_column() + at % 2;
                    if (!(bits >> key & 1) || warp_row + key >= sees_keys[column]) s[at / 4][at % 4] = -INFINITY;
                }
            }
#pragma unroll
            for (unsigned n = 0; n < 2; ++n) {
                float shift[2], mean[2];
                load<2>(shift, shifts[number % 2] + query + n * 8 + result_column());
                load<2>(mean, means[number % 2] + query + n * 8 + result_column());
#pragma unroll
                for (unsigned i = 0; i < 4; ++i) {
                    float p = power_of_two(s[n][i] * factor2 - shift[i % 2]);
                    s[n][i] = p;
                    d_p[n][i] = p * (d_p[n][i] - mean[i % 2]);
                }
            }
            uint32_t p[4], d_s[4];
            as_left<T>(p, s[0], s[1]);
            as_left<T>(d_s, d_p[0], d_p[1]);
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t right[4];
                load_summed<D>(right, d_out_tile, query, step);
                multiply_pair<T>(d_v_sum[2 * step], d_v_sum[2 * step + 1], p, right);
                load_summed<D>(right, q_tile, query, step);
                multiply_pair<T>(d_k_sum[2 * step], d_k_sum[2 * step + 1], d_s, right);
            }
        }
    }

    Source<T> k_results = {d_k + k_first, kv_stride, keys, head_dim, is_wide<D>(wide)};
    Source<T> v_results = {d_v + k_first, kv_stride, keys, head_dim, is_wide<D>(wide)};
    float inverse[2] = {1.0f, 1.0f};
#pragma unroll
    for (unsigned pair = 0; pair < 2; ++pair) {
        if (normalise) inverse[pair] = inverse_length[warp * 16 + result_row(pair)];
    }
#pragma unroll
    for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) d_k_sum[n][i] *= factor;
    }
    undo<D, T>(d_k_sum, k_hat, inverse, normalise, warp_row, keys, rotary);
    // All have done with the tiles: their place takes the results.
    __syncthreads();
    put_results<D>(shared, d_k_sum, warp * 16);
    put_results<D>(shared + TILE * D, d_v_sum, warp * 16);
    __syncwarp();
    write_rows<D, 16>(k_results, shared, warp * 16, warp_row);
    write_rows<D, 16>(v_results, shared + TILE * D, warp * 16, warp_row);
}

#define ATTENTION_BACKWARD(T, suffix, D)                                                                               \
    KERNEL(                                                                                                            \
        attention_backward_queries_##D##_##suffix, THREADS, T *d_q, float *rows, const T *q, const T *k, const T *v,   \
        const T *out, const T *d_out, const uint32_t *visible, const uint32_t *mask, const float *log_scale,           \
        const float *cosine, const float *sine, uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim,    \
        uint32_t q_stride, uint32_t kv_stride, float fixed_factor, uint32_t wide) {                                    \
        attention_backward_queries<T, D>(                                                                              \
            d_q, rows, q, k, v, out, d_out, visible, mask, log_scale, cosine, sine, heads, queries, keys, head_dim,    \
            q_stride, kv_stride, fixed_factor, wide);                                                                  \
    }                                                                                                                  \
    KERNEL_SHARING(                                                                                                    \
        attention_backward_keys_##D##_##suffix, THREADS, D <= 64 ? 3 : 2, T *d_k, T *d_v, float *d_log_scale, const float *rows,        \
        const T *q, const T *k, const T *v, const T *d_out, const uint32_t *visible, const uint32_t *mask,             \
        const float *log_scale, const float *cosine, const float *sine, uint32_t heads, uint32_t queries,              \
        uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t kv_stride, float fixed_factor, uint32_t wide) {  \
        attention_backward_keys<T, D>(                                                                                 \
            d_k, d_v, d_log_scale, rows, q, k, v, d_out, visible, mask, log_scale, cosine, sine, heads, queries, keys, \
            head_dim, q_stride, kv_stride, fixed_factor, wide);                                                        \
    }
#define ATTENTION_BACKWARDS(T, suffix)                                                                                 \
    ATTENTION_BACKWARD(T, suffix, 16)                                                                                  \
    ATTENTION_BACKWARD(T, suffix, 32)                                                                                  \
    ATTENTION_BACKWARD(T, suffix, 64)                                                                                  \
    ATTENTION_BACKWARD(T, suffix, 128)
ATTENTION_BACKWARDS(bf16, bf16)
ATTENTION_BACKWARDS(f16, f16)
