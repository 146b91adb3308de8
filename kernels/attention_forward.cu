// Attention of queries to keys in 16-bit numbers on tensor cores, flash-style; see attention.cuh for what is shared.
#include "attention.cuh"

// Up to this factor the bound on the logits stands for the largest of a row: nothing is compared and nothing rescaled.
// bfloat16 has the range of f32, so 2^(logit2) itself is kept. Half does not: its powers are moved to end at 2^15, and the
// row's largest, at worst 2^(-2 logit2) of that, must leave the digits of those that matter.
template <class T> constexpr float LARGEST_FIXED = std::is_same_v<T, bf16> ? 40.0f : 6.0f;
constexpr float LARGEST_HALF_POWER = 15.0f;

template <class T, unsigned D>
__device__ __forceinline__ void attention_forward(
    T *out, float *rows, const T *q, const T *k, const T *v, const uint32_t *visible, const uint32_t *mask,
    const float *log_scale, const float *cosine, const float *sine, unsigned heads, unsigned queries, unsigned keys,
    unsigned head_dim, unsigned q_stride, unsigned kv_stride, float fixed_factor, unsigned wide) {
    constexpr unsigned LEFT = LEFTS<D>, ROWS = QUERY_ROWS<D>, STEPS = D / 16, STAGE = 2 * TILE * D;
    static_assert(ROWS * D <= STAGE, "the queries pass through the second stage");
    DYNAMIC_SHARED(T, shared);
    unsigned tiles = (queries + ROWS - 1) / ROWS;
    Place place = place_of(blockIdx.x, gridDim.x / tiles, tiles, heads);
    unsigned row = (tiles - 1 - place.tile) * ROWS, warp = threadIdx.x / WARP, warp_row = row + warp * 16 * LEFT;
    uint64_t q_first = uint64_t(place.sample) * queries * q_stride + place.head * head_dim;
    uint64_t k_first = uint64_t(place.sample) * keys * kv_stride + place.head * head_dim;
    Source<const T> q_rows = {q + q_first, q_stride, queries, head_dim, wide != 0};
    Source<const T> k_rows = {k + k_first, kv_stride, keys, head_dim, wide != 0};
    Source<const T> v_rows = {v + k_first, kv_stride, keys, head_dim, wide != 0};
    Rotary rotary = {cosine, sine, head_dim / 2};
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
    prepare<D, ROWS, THREADS>(q_tile, q_rows, row, rotary, normalise, nullptr);
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
    unsigned sees[LEFT][2];
#pragma unroll
    for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            shift[left][pair] = online ? -INFINITY : first_shift;
            sum[left][pair] = 0.0f;
            sees[left][pair] = visible_of(visible, min(warp_row + left * 16 + result_row(pair), queries - 1), keys);
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
        prepare<D, TILE, THREADS>(k_tile, k_rows, tile * TILE, rotary, normalise, nullptr);
        // From here on all see this tile, and none uses the one before.
        __syncthreads();
        if (tile + 1 < key_tiles) {
            T *next = shared + (tile + 1) % 2 * STAGE;
            start_copy<D, TILE, THREADS>(next, k_rows, (tile + 1) * TILE);
            start_copy<D, TILE, THREADS>(next + TILE * D, v_rows, (tile + 1) * TILE);
        }
        commit_copies();
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            unsigned key = tile * TILE + half * WARP;
            if (key >= warp_end || seen[half] == 0) continue;
            float s[LEFT][4][4] = {};
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) {
#pragma unroll
                for (unsigned pair = 0; pair < 2; ++pair) {
                    uint32_t right[4];
                    load_columns<D>(right, k_tile, half * WARP + pair * 16, step);
#pragma unroll
                    for (unsigned left = 0; left < LEFT; ++left) {
                        multiply_pair<T>(s[left][2 * pair], s[left][2 * pair + 1], q_hat[left][step], right);
                    }
                }
            }
            if (key + WARP > warp_all || seen[half] != ALL_LANES) {
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
                    for (unsigned at = 0; at < 16; ++at) {
                        unsigned column = at / 4 * 8 + result_column() + at % 2;
                        bool sees_it = key + column < sees[left][at / 2 % 2] && (seen[half] >> column & 1);
                        if (!sees_it) s[left][at / 4][at % 4] = -INFINITY;
                    }
                }
            }
            if (online) {
#pragma unroll
                for (unsigned at = 0; at < 2 * LEFT; ++at) {
                    unsigned left = at / 2, pair = at % 2;
                    float largest = -INFINITY;
#pragma unroll
                    for (unsigned n = 0; n < 4; ++n) {
                        largest = fmaxf(largest, fmaxf(s[left][n][2 * pair], s[left][n][2 * pair + 1]));
                    }
                    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
                    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
                    // A row that has seen nothing keeps a shift that can be subtracted.
                    float next = fmaxf(fmaxf(shift[left][pair], largest * factor2), -1e30f);
                    float rescale = power_of_two(shift[left][pair] - next);
                    shift[left][pair] = next;
                    sum[left][pair] *= rescale;
#pragma unroll
                    for (unsigned n = 0; n < D / 8; ++n) {
                        o[left][n][2 * pair] *= rescale;
                        o[left][n][2 * pair + 1] *= rescale;
                    }
                }
            }
#pragma unroll
            for (unsigned left = 0; left < LEFT; ++left) {
#pragma unroll
                for (unsigned at = 0; at < 16; ++at) {
                    unsigned pair = at / 2 % 2;
                    float &value = s[left][at / 4][at % 4];
                    value = power_of_two(value * factor2 - shift[left][pair]);
                    sum[left][pair] += value;
                }
            }
#pragma unroll
            for (unsigned pair = 0; pair < 2; ++pair) {
                uint32_t p[LEFT][4];
#pragma unroll
                for (unsigned left = 0; left < LEFT; ++left) {
                    as_left<T>(p[left], s[left][2 * pair], s[left][2 * pair + 1]);
                }
#pragma unroll
                for (unsigned step = 0; step < STEPS; ++step) {
                    uint32_t right[4];
                    load_summed<D>(right, v_tile, half * WARP + pair * 16, step);
#pragma unroll
                    for (unsigned left = 0; left < LEFT; ++left) {
                        multiply_pair<T>(o[left][2 * step], o[left][2 * step + 1], p[left], right);
                    }
                }
            }
        }
    }

    // All have done with the tiles: their place takes the results.
    __syncthreads();
    uint64_t out_stride = uint64_t(heads) * head_dim;
    Source<T> results = {
        out + uint64_t(place.sample) * queries * out_stride + place.head * head_dim, unsigned(out_stride), queries,
        head_dim, wide != 0};
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
    KERNEL(                                                                                                            \
        attention_forward_##D##_##suffix, THREADS, T *out, float *rows, const T *q, const T *k, const T *v,            \
        const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine, \
        uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t kv_stride,     \
        float fixed_factor, uint32_t wide) {                                                                           \
        attention_forward<T, D>(                                                                                       \
            out, rows, q, k, v, visible, mask, log_scale, cosine, sine, heads, queries, keys, head_dim, q_stride,      \
            kv_stride, fixed_factor, wide);                                                                            \
    }
#define ATTENTION_FORWARDS(T, suffix)                                                                                  \
    ATTENTION_FORWARD(T, suffix, 16)                                                                                   \
    ATTENTION_FORWARD(T, suffix, 32)                                                                                   \
    ATTENTION_FORWARD(T, suffix, 64)                                                                                   \
    ATTENTION_FORWARD(T, suffix, 128)
ATTENTION_FORWARDS(bf16, bf16)
ATTENTION_FORWARDS(f16, f16)
