// Gradients of attention's keys and values in 16-bit numbers on tensor cores; runs after attention_backward_queries.cu.
// With g = d_out, and q^, k^ and the inverse lengths of keys from attention_prepare.cu:
//
//     d_s = p (g v - mean),  d_v = p g,  d_k^ = factor d_s q^,  d_k = turned back (d_k^ - k^ (k^ d_k^)) / length
//
// Threads: a block of 4 warps has 64 keys of one head, 16 a warp, whose k^ and v stay in registers. Query tiles of 64
// pass by, from the last to the first that sees one of the keys, so that blocks of all key tiles read the same rows at
// about the same time; a warp takes 16 queries at a time, and leaves those out that see none of its keys. Products are
// transposed: keys are rows, so that probabilities are left operands as they are. The block of the first keys adds the
// parts of the scale's gradient in order. No atomics: every sum has one order, and a sample's gradients do not depend
// on its batch mates. Shared memory: 512 D bytes, 32 KB for D = 64 (keys and values pass through the second stage), and
// 2 KB of row sums.
//
// Limits for B 64, H 16, D 64, L 680 on an H100: 4 products over 0.657 of L^2 (16 by
// 16), 159 GFLOP or 0.27 ms at the 600 TFLOP/s of mma.sync. A warp reads 16 right operands of 512 bytes for 32 mma: 0.4
// ms of shared memory's bandwidth, the limit to expect; 32 keys a warp would halve that and need 128 registers of sums.
// 168 registers with D = 64: 3 blocks a multiprocessor. With the queries' kernel 7 products are computed, not the 5 of
// one kernel that adds d_q with atomics: the price of sums in a fixed order.
#include "attention.cuh"

template <class T, unsigned D>
__device__ __forceinline__ void attention_backward_keys(
    T *d_k, T *d_v, float *d_log_scale, const float *rows, const T *q, const T *k, const T *v, const T *d_out,
    const float *inverse_lengths, const uint32_t *visible, const uint32_t *mask, const float *log_scale,
    const float *cosine, const float *sine, unsigned heads, unsigned queries, unsigned keys, unsigned head_dim,
    unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned length_stride, unsigned d_stride,
    float fixed_factor, unsigned wide) {
    constexpr unsigned STEPS = D / 16, STAGE = 2 * TILE * D, SUBTILE = 16;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, shifts, [2][TILE]);
    SHARED_ARRAY(float, means, [2][TILE]);
    SHARED_ARRAY(unsigned, sees, [2][TILE]);
    unsigned tiles = (keys + TILE - 1) / TILE, tasks = gridDim.x / tiles, query_tiles = (queries + TILE - 1) / TILE;
    // Tile 0 first: it is seen by the most queries.
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = place.tile * TILE, warp = threadIdx.x / WARP, warp_row = row + warp * 16;
    uint64_t q_first = uint64_t(place.sample) * queries * q_stride + place.head * head_dim;
    uint64_t k_first = uint64_t(place.sample) * keys * k_stride + place.head * head_dim;
    uint64_t v_first = uint64_t(place.sample) * keys * v_stride + place.head * head_dim;
    uint64_t d_first = uint64_t(place.sample) * keys * d_stride + place.head * head_dim;
    uint64_t out_first = (uint64_t(place.sample) * queries * heads + place.head) * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_wide<D>(wide)};
    Source<const T> k_rows = {k + k_first, k_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> v_rows = {v + v_first, v_stride, keys, head_dim, is_wide<D>(wide)};
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

    // Query tiles are taken from the last to the first that sees a key of this tile, so that blocks of all key tiles
    // read the same rows at about the same time.
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
        // From here on all see this tile, and none uses the one before.
        __syncthreads();
        if (number + 1 < count) start_queries(number + 1);
        commit_copies();
// Whole for D = 128 it would take nvcc long and gain nothing.
#pragma unroll(D <= 64 ? TILE / SUBTILE : 1)
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
                    float p = exp2_approx(s[n][i] * factor2 - shift[i % 2]);
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

    Source<T> k_results = {d_k + d_first, d_stride, keys, head_dim, is_wide<D>(wide)};
    Source<T> v_results = {d_v + d_first, d_stride, keys, head_dim, is_wide<D>(wide)};
    float inverse[2] = {1.0f, 1.0f};
#pragma unroll
    for (unsigned pair = 0; pair < 2; ++pair) {
        unsigned at = warp_row + result_row(pair);
        if (normalise && at < keys) {
            inverse[pair] = inverse_lengths[(uint64_t(place.sample) * keys + at) * length_stride + place.head];
        }
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

#define ATTENTION_BACKWARD_KEYS(T, suffix, D)                                                                          \
    KERNEL_SHARING(                                                                                                    \
        attention_backward_keys_##D##_##suffix, THREADS, D <= 64 ? 3 : 2, T *d_k, T *d_v, float *d_log_scale,          \
        const float *rows, const T *q, const T *k, const T *v, const T *d_out, const float *inverse_lengths,           \
        const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine, \
        uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t k_stride,      \
        uint32_t v_stride, uint32_t length_stride, uint32_t d_stride, float fixed_factor, uint32_t wide) {             \
        attention_backward_keys<T, D>(                                                                                 \
            d_k, d_v, d_log_scale, rows, q, k, v, d_out, inverse_lengths, visible, mask, log_scale, cosine, sine,      \
            heads, queries, keys, head_dim, q_stride, k_stride, v_stride, length_stride, d_stride, fixed_factor,       \
            wide);                                                                                                     \
    }
#define ALL_ATTENTION_BACKWARD_KEYS(T, suffix)                                                                         \
    ATTENTION_BACKWARD_KEYS(T, suffix, 16)                                                                             \
    ATTENTION_BACKWARD_KEYS(T, suffix, 32)                                                                             \
    ATTENTION_BACKWARD_KEYS(T, suffix, 64)                                                                             \
    ATTENTION_BACKWARD_KEYS(T, suffix, 128)
ALL_ATTENTION_BACKWARD_KEYS(bf16, bf16)
ALL_ATTENTION_BACKWARD_KEYS(f16, f16)
