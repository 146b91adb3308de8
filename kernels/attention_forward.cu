// Attention of queries to keys in 16-bit numbers on tensor cores, flash-style: nothing of the size [L, L] is kept.
//
//     p = softmax(factor q k, over the keys seen),  out = p v
//
// q, k, v: rows of one head, D numbers each, in sources of `q_stride`, `k_stride` and `v_stride` numbers a row, turned and
// normalised by attention_prepare.cu where they are to be; out [B, L, H D] in T; rows [2, B, H, L] in float, of which the first half gets each row's shift: log2 of the sum of 2^logit2 (+infinity
// where nothing is seen). `visible` [L]: the query sees the first so many keys, never fewer than the one before it;
// `mask` [B, T]: only a 1 is seen; `log_scale` [H]: if null, nothing is normalised and the factor is fixed. A query that
// sees no key gets zeros. Source: upstream.md, B3 to B5.
//
// Threads: a block of 4 warps has 128 queries of one head (64 for D = 128), a warp 32 of them (16), which stay in
// registers. Tiles of 64 keys and values pass through two stages of shared memory by cp.async, a barrier each. A warp takes 16 keys at a time: where none of its queries sees them, or the mask hides them all, they cost a
// comparison, and a tile that no query of the block sees is never loaded. Blocks with the most keys come first within
// 64 heads. Shared memory: 512 D bytes (32 KB for D = 64; the queries pass through the second stage).
//
// Limits for B 64, H 16, D 64, L 680 on an H100. Warps of 32 queries and 16 keys do 0.694 of L^2 (the mask allows 0.619;
// tiles of 128 by 64 would do 0.886): 84 GFLOP, 0.14 ms at the 600 TFLOP/s of mma.sync; as many exponentials take 0.09
// ms. HBM: 357 MB, 0.12 ms. L2: 0.84 GB of keys and values. A warp of 16 queries would read each right operand of 512
// bytes for one product, not two: then shared memory's 128 bytes a cycle are the limit. With D = 64, 168 registers leave
// room for 3 blocks a multiprocessor. What was measured is in benches/RESULTS.md.
#include "attention.cuh"

// Up to this factor the bound on the logits stands for the largest of a row: nothing is compared and nothing rescaled.
// bfloat16 has the range of f32, so 2^(logit2) itself is kept. Half does not: its powers are moved to end at 2^15, and
// the row's largest, at worst 2^(-2 logit2) of that, must leave the digits of those that matter.
template <class T> constexpr float LARGEST_FIXED = std::is_same_v<T, bf16> ? 40.0f : 6.0f;
constexpr float LARGEST_HALF_POWER = 15.0f;
// Above it, a row's shift is its largest logit so far, but is only renewed once a logit is this much above: until then
// the powers reach 2^8, which every type holds. A row that has seen nothing has the lowest shift, from which a logit of
// a key that is not seen, -infinity, can be subtracted.
constexpr float SLACK = 8.0f, LOWEST = -1e30f;
// Keys whose logits a warp holds at a time.
constexpr unsigned SUBTILE = 16;
// Subtiles of a tile that are written out for D up to 64: as many as each card's compiler has registers for without a
// spill. For D = 128 it would take nvcc long and gain nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr unsigned UNROLLED = 2;
#else
constexpr unsigned UNROLLED = TILE / SUBTILE;
#endif

template <class T, unsigned D>
__device__ __forceinline__ void attention_forward(
    T *out, float *rows, const T *q, const T *k, const T *v, const uint32_t *visible, const uint32_t *mask,
    const float *log_scale, unsigned heads, unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride,
    unsigned k_stride, unsigned v_stride, float fixed_factor, unsigned wide) {
    constexpr unsigned LEFT = LEFTS<D>, ROWS = QUERY_ROWS<D>, STEPS = D / 16, STAGE = 2 * TILE * D;
    static_assert(ROWS * D <= STAGE, "the queries pass through the second stage");
    DYNAMIC_SHARED(T, shared);
    unsigned tiles = (queries + ROWS - 1) / ROWS;
    Place place = place_of(blockIdx.x, gridDim.x / tiles, tiles, heads);
    unsigned row = (tiles - 1 - place.tile) * ROWS, warp = threadIdx.x / WARP, warp_row = row + warp * 16 * LEFT;
    uint64_t q_first = uint64_t(place.sample) * queries * q_stride + place.head * head_dim;
    uint64_t k_first = uint64_t(place.sample) * keys * k_stride + place.head * head_dim;
    uint64_t v_first = uint64_t(place.sample) * keys * v_stride + place.head * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, is_wide<D>(wide)};
    Source<const T> k_rows = {k + k_first, k_stride, keys, head_dim, is_wide<D>(wide)};
    Source<const T> v_rows = {v + v_first, v_stride, keys, head_dim, is_wide<D>(wide)};
    bool normalise = log_scale != nullptr;
    float factor = factor_of(log_scale, place.head, fixed_factor), factor2 = factor * LOG2_E;
    if (mask != nullptr) mask += uint64_t(place.sample) * keys;

    // Keys that the block's last row sees, the warp's last, and all of the warp's.
    unsigned end = visible_of(visible, min(row + ROWS, queries) - 1, keys), key_tiles = (end + TILE - 1) / TILE;
    bool working = warp_row < queries;
    unsigned warp_end = working ? visible_of(visible, min(warp_row + 16 * LEFT, queries) - 1, keys) : 0;
    unsigned warp_all = working ? visible_of(visible, warp_row, keys) : 0;

    T *q_tile = shared + STAGE;
    start_copy<D, ROWS, THREADS>(q_tile, q_rows, row);
    commit_copies();
    if (key_tiles > 0) {
        start_copy<D, TILE, THREADS>(shared, k_rows, 0);
        start_copy<D, TILE, THREADS>(shared + TILE * D, v_rows, 0);
    }
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    uint32_t q_hat[LEFT][STEPS][4];
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
        for (unsigned step = 0; step < STEPS; ++step) {
            load_left<D>(q_hat[left][step], q_tile, warp * 16 * LEFT + left * 16, step);
        }
    }

    bool online = !normalise || !(factor <= LARGEST_FIXED<T>);
    float first_shift = std::is_same_v<T, bf16> ? 0.0f : factor2 - LARGEST_HALF_POWER;
    float shift[LEFT][2], sum[LEFT][2], o[LEFT][D / 8][4];
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            shift[left][pair] = online ? LOWEST : first_shift;
            sum[left][pair] = 0.0f;
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) o[left][n][i] = 0.0f;
        }
    }

    for (unsigned tile = 0; tile < key_tiles; ++tile) {
        T *k_tile = shared + tile % 2 * STAGE, *v_tile = k_tile + TILE * D;
        const unsigned seen[2] = {seen_keys(mask, tile * TILE, keys), seen_keys(mask, tile * TILE + WARP, keys)};
        wait_copies<0>();
        // From here on all see this tile, and none uses the one before.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            T *next = shared + (tile + 1) % 2 * STAGE;
            start_copy<D, TILE, THREADS>(next, k_rows, (tile + 1) * TILE);
            start_copy<D, TILE, THREADS>(next + TILE * D, v_rows, (tile + 1) * TILE);
        }
        commit_copies();
#pragma unroll(D <= 64 ? UNROLLED : 1)
        for (unsigned part = 0; part < TILE / SUBTILE; ++part) {
            unsigned key = tile * TILE + part * SUBTILE;
            unsigned bits = (part < 2 ? seen[0] : seen[1]) >> part % 2 * SUBTILE & 0xffffu;
            if (key >= warp_end || bits == 0) continue;
            float s[LEFT][2][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t right[4];
                load_columns<D>(right, k_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
                    multiply_pair<T>(s[left][0], s[left][1], q_hat[left][step], right);
                }
            }
            if (key + SUBTILE > warp_all || bits != 0xffffu) {
#pragma unroll
                for (unsigned at = 0; at < 2 * LEFT; ++at) {
                    unsigned left = at / 2, pair = at % 2;
                    // Read again for each of the few subtiles that come here: registers are scarcer than time.
                    unsigned query = min(warp_row + left * 16 + result_row(pair), queries - 1);
                    unsigned sees = visible_of(visible, query, keys);
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) {
                        unsigned column = i / 2 * 8 + result_column() + i % 2;
                        bool sees_it = key + column < sees && (bits >> column & 1);
                        if (!sees_it) s[left][i / 2][2 * pair + i % 2] = -INFINITY;
                    }
                }
            }
            if (online) {
                float largest[LEFT][2];
                bool beyond = false;
#pragma unroll
                for (unsigned at = 0; at < 2 * LEFT; ++at) {
                    unsigned left = at / 2, pair = at % 2;
                    float most = fmaxf(
                        fmaxf(s[left][0][2 * pair], s[left][0][2 * pair + 1]),
                        fmaxf(s[left][1][2 * pair], s[left][1][2 * pair + 1]));
                    largest[left][pair] = most * factor2;
                    beyond |= largest[left][pair] > shift[left][pair] + SLACK;
                }
                if (__any_sync(ALL_LANES, beyond)) {
#pragma unroll
                    for (unsigned at = 0; at < 2 * LEFT; ++at) {
                        unsigned left = at / 2, pair = at % 2;
                        float most = largest[left][pair];
                        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
                        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
                        most = fmaxf(most, shift[left][pair]);
                        float rescale = exp2_approx(shift[left][pair] - most);
                        shift[left][pair] = most;
                        sum[left][pair] *= rescale;
#pragma unroll
                        for (unsigned n = 0; n < D / 8; ++n) {
                            o[left][n][2 * pair] *= rescale;
                            o[left][n][2 * pair + 1] *= rescale;
                        }
                    }
                }
            }
            uint32_t p[LEFT][4];
#pragma unroll
            for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
                for (unsigned at = 0; at < 8; ++at) {
                    float &value = s[left][at / 4][at % 4];
                    value = exp2_approx(value * factor2 - shift[left][at / 2 % 2]);
                    sum[left][at / 2 % 2] += value;
                }
                as_left<T>(p[left], s[left][0], s[left][1]);
            }
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
                uint32_t right[4];
                load_summed<D>(right, v_tile, part * SUBTILE, step);
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
                    multiply_pair<T>(o[left][2 * step], o[left][2 * step + 1], p[left], right);
                }
            }
        }
    }

    // All have done with the tiles: their place takes the results.
    __syncthreads();
    uint64_t out_stride = uint64_t(heads) * head_dim;
    Source<T> results = {
        out + uint64_t(place.sample) * queries * out_stride + place.head * head_dim, unsigned(out_stride), queries,
        head_dim, is_wide<D>(wide)};
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            float total = lanes_sum<4>(sum[left][pair]), inverse = total > 0.0f ? 1.0f / total : 0.0f;
            unsigned at = warp_row + left * 16 + result_row(pair);
            if (threadIdx.x % 4 == 0 && at < queries) {
                rows[uint64_t(place.task) * queries + at] =
                    total > 0.0f ? shift[left][pair] + log2f(total) : INFINITY;
            }
#pragma unroll
            for (unsigned n = 0; n < D / 8; ++n) {
                o[left][n][2 * pair] *= inverse;
                o[left][n][2 * pair + 1] *= inverse;
            }
        }
        put_results<D>(shared, o[left], warp * 16 * LEFT + left * 16);
    }
    __syncwarp();
    write_rows<D, 16 * LEFT>(results, shared, warp * 16 * LEFT, warp_row);
}

#define ATTENTION_FORWARD(T, suffix, D)                                                                                \
    KERNEL_SHARING(                                                                                                    \
        attention_forward_##D##_##suffix, THREADS, D <= 64 ? 3 : 2, T *out, float *rows, const T *q, const T *k,       \
        const T *v, const uint32_t *visible, const uint32_t *mask, const float *log_scale, uint32_t heads,             \
        uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t k_stride, uint32_t v_stride,   \
        float fixed_factor, uint32_t wide) {                                                                           \
        attention_forward<T, D>(                                                                                       \
            out, rows, q, k, v, visible, mask, log_scale, heads, queries, keys, head_dim, q_stride, k_stride,          \
            v_stride, fixed_factor, wide);                                                                             \
    }
#define ALL_ATTENTION_FORWARD(T, suffix)                                                                               \
    ATTENTION_FORWARD(T, suffix, 16)                                                                                   \
    ATTENTION_FORWARD(T, suffix, 32)                                                                                   \
    ATTENTION_FORWARD(T, suffix, 64)                                                                                   \
    ATTENTION_FORWARD(T, suffix, 128)
ALL_ATTENTION_FORWARD(bf16, bf16)
ALL_ATTENTION_FORWARD(f16, f16)
