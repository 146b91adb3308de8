// Attention and its gradients in f32, without tensor cores, accurate to about 1e-5: what is trained with `f32`, and
// what the 16-bit kernels can be compared with on a card. The equations and arguments are those of
// attention_forward.cu, attention_backward_queries.cu and attention_backward_keys.cu; `rows` has [3, B, H, L] (the
// largest logit2, the mean, and the inverse of the sum, kept apart because one logarithm of both would lose digits
// where logits reach 100) and the parts of the scale's gradient.
//
// Threads: a block of 256, as 16 by 16, has 64 queries (or keys) of one head and takes tiles of 64 of the others; each
// thread 4 by 4 products, and 4 rows of D/16 channels. The largest logit is always tracked: what that costs is little
// here. Shared memory, in floats: (3 or, for gradients, 4) 64 (D + 4) + 64 68; 149 KB for D = 128. Each product of two
// numbers takes half a read of shared memory, which is its limit; a block or two fit a multiprocessor.
#include "attention.cuh"

// Threads (x, y) of 16 by 16: rows 4 y .. 4 y + 3 and, of the other side, x, x + 16, x + 32, x + 48.
constexpr unsigned SIDE = 16, BLOCK = SIDE * SIDE;
// Numbers from one row of a tile to the next: 4 more than there are, so that 8 rows read at once lie in different
// banks.
template <unsigned D> constexpr unsigned LINE = D + 4;
constexpr unsigned WEIGHTS_LINE = TILE + 4;

__device__ __forceinline__ unsigned x_of() { return threadIdx.x % SIDE; }
__device__ __forceinline__ unsigned y_of() { return threadIdx.x / SIDE; }

// One head's rows in a source.
struct Source32 {
    const float *first;
    unsigned stride, length, head_dim;
};

__device__ __forceinline__ Source32
source_of(const float *from, const Place &place, unsigned stride, unsigned length, unsigned head_dim) {
    return {from + uint64_t(place.sample) * length * stride + place.head * head_dim, stride, length, head_dim};
}

// Brings 64 rows into a tile, a warp a row, turned and normalised if asked for; zeros past the end. `inverse_length`,
// if not null, gets 1 / max(length, 1e-12).
template <unsigned D>
__device__ __forceinline__ void
bring(float *tile, const Source32 &source, unsigned row, const Rotary &rotary, bool normalise, float *inverse_length) {
    constexpr unsigned PAIRS = D / 2 / WARP;
    unsigned lane = threadIdx.x % WARP;
    for (unsigned r = threadIdx.x / WARP; r < TILE; r += BLOCK / WARP) {
        float value[PAIRS][2], squares = 0.0f;
#pragma unroll
        for (unsigned at = 0; at < PAIRS; ++at) {
            unsigned pair = at * WARP + lane;
            value[at][0] = value[at][1] = 0.0f;
            if (row + r < source.length && 2 * pair < source.head_dim) {
                load<2>(value[at], source.first + uint64_t(row + r) * source.stride + 2 * pair);
                if (rotary.cosine != nullptr) {
                    uint64_t angle = uint64_t(row + r) * rotary.half + pair;
                    float cosine = rotary.cosine[angle], sine = rotary.sine[angle], real = value[at][0];
                    value[at][0] = real * cosine - value[at][1] * sine;
                    value[at][1] = real * sine + value[at][1] * cosine;
                }
            }
            squares += value[at][0] * value[at][0] + value[at][1] * value[at][1];
        }
        float inverse = normalise ? 1.0f / fmaxf(sqrtf(warp_sum(squares)), SHORTEST) : 1.0f;
        if (inverse_length != nullptr && lane == 0) inverse_length[r] = inverse;
#pragma unroll
        for (unsigned at = 0; at < PAIRS; ++at) {
            value[at][0] *= inverse;
            value[at][1] *= inverse;
            store<2>(tile + r * LINE<D> + 2 * (at * WARP + lane), value[at]);
        }
    }
}

// Products of this thread's rows of one tile and of another.
template <unsigned D>
__device__ __forceinline__ void dots(float (&s)[4][4], const float *left, const float *right, unsigned head_dim) {
#pragma unroll
    for (unsigned at = 0; at < 16; ++at) s[at / 4][at % 4] = 0.0f;
    for (unsigned c = 0; c < head_dim; c += 4) {
        float a[4][4], b[4][4];
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            load<4>(a[i], left + (y_of() * 4 + i) * LINE<D> + c);
            load<4>(b[i], right + (x_of() + SIDE * i) * LINE<D> + c);
        }
#pragma unroll
        for (unsigned at = 0; at < 64; ++at) s[at / 16][at / 4 % 4] += a[at / 16][at % 4] * b[at / 4 % 4][at % 4];
    }
}

// sum[i] += the sum over the 64 rows of a tile, row r weighted by weights[4 y + i][r], or by weights[r][4 y + i]. This
// thread's channels are 4 x + 64 c .. 4 x + 64 c + 3.
template <unsigned D, bool TRANSPOSED>
__device__ __forceinline__ void add_weighted(float (&sum)[4][D / 64][4], const float *weights, const float *tile) {
    for (unsigned r = 0; r < TILE; r += 4) {
        float w[4][4];
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            load<4>(w[i], weights + (TRANSPOSED ? (r + i) * WEIGHTS_LINE + y_of() * 4 : (y_of() * 4 + i) * WEIGHTS_LINE + r));
        }
#pragma unroll
        for (unsigned at = 0; at < 4; ++at) {
#pragma unroll
            for (unsigned c = 0; c < D / 64; ++c) {
                float value[4];
                load<4>(value, tile + (r + at) * LINE<D> + x_of() * 4 + c * 64);
#pragma unroll
                for (unsigned i = 0; i < 16; ++i) {
                    sum[i / 4][c][i % 4] += (TRANSPOSED ? w[at][i / 4] : w[i / 4][at]) * value[i % 4];
                }
            }
        }
    }
}

template <unsigned D> __device__ __forceinline__ void clear(float (&sum)[4][D / 64][4]) {
#pragma unroll
    for (unsigned at = 0; at < D / 4; ++at) sum[at / (D / 16)][at / 4 % (D / 64)][at % 4] = 0.0f;
}

// Writes this thread's part of rows `row` .. of a result.
template <unsigned D>
__device__ __forceinline__ void
write(float *to, const float (&value)[4][D / 64][4], const Source32 &like, unsigned row) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        unsigned at = row + y_of() * 4 + i;
#pragma unroll
        for (unsigned c = 0; c < D / 64; ++c) {
            unsigned channel = x_of() * 4 + c * 64;
            if (at < like.length && channel < like.head_dim) {
                store<4>(to + uint64_t(at) * like.stride + channel, value[i][c]);
            }
        }
    }
}

// Gradients before turning and normalising, in place, from those after; `hat` is the tile after it. Gives the products
// of gradients and rows, summed over this thread's rows, as attention.cuh's undo.
template <unsigned D>
__device__ __forceinline__ float
undo32(float (&d)[4][D / 64][4], const float *hat, const float *inverse_length, bool normalise, float factor, unsigned row,
       unsigned length, const Rotary &rotary) {
    float total = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        unsigned r = y_of() * 4 + i;
        float along = 0.0f, inverse = inverse_length[r], unit[D / 64][4];
#pragma unroll
        for (unsigned c = 0; c < D / 64; ++c) {
            load<4>(unit[c], hat + r * LINE<D> + x_of() * 4 + c * 64);
#pragma unroll
            for (unsigned at = 0; at < 4; ++at) {
                d[i][c][at] *= factor;
                along += d[i][c][at] * unit[c][at];
            }
        }
        along = lanes_sum<SIDE>(along);
        total += along;
        // Below the floor the length is a constant, so nothing of the direction is taken out.
        if (!(inverse < 1.0f / SHORTEST)) along = 0.0f;
#pragma unroll
        for (unsigned at = 0; at < D / 32; ++at) {
            unsigned c = at / 2, first = at % 2 * 2;
            float &real = d[i][c][first], &imaginary = d[i][c][first + 1];
            if (normalise) {
                real = (real - unit[c][first] * along) * inverse;
                imaginary = (imaginary - unit[c][first + 1] * along) * inverse;
            }
            unsigned angle = (x_of() * 4 + c * 64 + first) / 2;
            if (rotary.cosine != nullptr && row + r < length && angle < rotary.half) {
                uint64_t place = uint64_t(row + r) * rotary.half + angle;
                float cosine = rotary.cosine[place], sine = rotary.sine[place], before = real;
                real = before * cosine + imaginary * sine;
                imaginary = imaginary * cosine - before * sine;
            }
        }
    }
    return total;
}

template <unsigned D>
__device__ __forceinline__ void attention_forward32(
    float *out, float *rows, const float *q, const float *k, const float *v, const uint32_t *visible,
    const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine, unsigned heads,
    unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride, unsigned kv_stride, float fixed_factor) {
    DYNAMIC_SHARED(float, shared);
    float *q_tile = shared, *k_tile = q_tile + TILE * LINE<D>, *v_tile = k_tile + TILE * LINE<D>;
    float *weights = v_tile + TILE * LINE<D>;
    unsigned tiles = (queries + TILE - 1) / TILE, tasks = gridDim.x / tiles;
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - place.tile) * TILE, first = row + y_of() * 4;
    Source32 q_rows = source_of(q, place, q_stride, queries, head_dim);
    Source32 k_rows = source_of(k, place, kv_stride, keys, head_dim);
    Source32 v_rows = source_of(v, place, kv_stride, keys, head_dim);
    Source32 out_rows = source_of(out, place, heads * head_dim, queries, head_dim);
    Rotary rotary = {cosine, sine, head_dim / 2}, none = {nullptr, nullptr, 0};
    Rotary q_rotary = last_rows(rotary, queries, keys);
    bool normalise = log_scale != nullptr;
    float factor2 = factor_of(log_scale, place.head, fixed_factor) * LOG2_E;
    if (mask != nullptr) mask += uint64_t(place.sample) * keys;
    unsigned end = visible_of(visible, min(row + TILE, queries) - 1, keys), sees[4];
    float largest[4], sum[4], o[4][D / 64][4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        sees[i] = visible_of(visible, min(first + i, queries - 1), keys);
        // A row that has seen nothing keeps a number that can be subtracted.
        largest[i] = -1e30f;
        sum[i] = 0.0f;
    }
    clear<D>(o);
    bring<D>(q_tile, q_rows, row, q_rotary, normalise, nullptr);
    for (unsigned key = 0; key < end; key += TILE) {
        __syncthreads();
        bring<D>(k_tile, k_rows, key, rotary, normalise, nullptr);
        bring<D>(v_tile, v_rows, key, none, false, nullptr);
        const unsigned seen[2] = {seen_keys(mask, key, keys), seen_keys(mask, key + WARP, keys)};
        __syncthreads();
        float s[4][4];
        dots<D>(s, q_tile, k_tile, head_dim);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            float most = -INFINITY;
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                unsigned column = x_of() + SIDE * j;
                bool sees_it = key + column < sees[i] && (seen[j / 2] >> column % WARP & 1);
                if (!sees_it) s[i][j] = -INFINITY;
                most = fmaxf(most, s[i][j]);
            }
#pragma unroll
            for (unsigned other = SIDE / 2; other > 0; other /= 2) {
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, other));
            }
            most = fmaxf(most * factor2, largest[i]);
            float rescale = exp2_approx(largest[i] - most);
            largest[i] = most;
            sum[i] *= rescale;
#pragma unroll
            for (unsigned at = 0; at < D / 16; ++at) o[i][at / 4][at % 4] *= rescale;
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                // One rounding: a logit near 100 has few digits to lose.
                float p = exp2_approx(fmaf(s[i][j], factor2, -most));
                sum[i] += p;
                weights[(y_of() * 4 + i) * WEIGHTS_LINE + x_of() + SIDE * j] = p;
            }
        }
        // A row's weights are used by the half warp that has made them.
        __syncwarp();
        add_weighted<D, false>(o, weights, v_tile);
    }
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        float total = lanes_sum<SIDE>(sum[i]), inverse = total > 0.0f ? 1.0f / total : 0.0f;
        if (x_of() == 0 && first + i < queries) {
            uint64_t at = uint64_t(place.task) * queries + first + i;
            rows[at] = largest[i];
            rows[2 * uint64_t(tasks) * queries + at] = inverse;
        }
#pragma unroll
        for (unsigned at = 0; at < D / 16; ++at) o[i][at / 4][at % 4] *= inverse;
    }
    write<D>(out + (out_rows.first - out), o, out_rows, row);
}

// From products to weights in this thread's 4x4 of a tile: probabilities, and gradients of the logits over the factor.
struct Softmax32 {
    float factor2, shift[4], share[4], mean[4];
    unsigned sees[4];

    __device__ __forceinline__ void read(
        unsigned row, const float *shifts, const float *shares, const float *means, const uint32_t *visible,
        unsigned queries, unsigned keys) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            unsigned at = row + y_of() * 4 + i;
            shift[i] = at < queries ? shifts[at] : 0.0f;
            share[i] = at < queries ? shares[at] : 0.0f;
            mean[i] = at < queries ? means[at] : 0.0f;
            sees[i] = visible_of(visible, min(at, queries - 1), keys);
        }
    }
    __device__ __forceinline__ void
    run(float (&s)[4][4], float (&d_p)[4][4], unsigned key, const unsigned (&seen)[2]) const {
#pragma unroll
        for (unsigned at = 0; at < 16; ++at) {
            unsigned i = at / 4, j = at % 4, column = x_of() + SIDE * j;
            bool sees_it = share[i] > 0.0f && key + column < sees[i] && (seen[j / 2] >> column % WARP & 1);
            float p = sees_it ? exp2_approx(fmaf(s[i][j], factor2, -shift[i])) * share[i] : 0.0f;
            s[i][j] = p;
            d_p[i][j] = p * (d_p[i][j] - mean[i]);
        }
    }
};

__device__ __forceinline__ void put_weights(float *weights, const float (&values)[4][4]) {
#pragma unroll
    for (unsigned at = 0; at < 16; ++at) {
        weights[(y_of() * 4 + at / 4) * WEIGHTS_LINE + x_of() + SIDE * (at % 4)] = values[at / 4][at % 4];
    }
}

template <unsigned D>
__device__ __forceinline__ void attention_backward_queries32(
    float *d_q, float *rows, const float *q, const float *k, const float *v, const float *out, const float *d_out,
    const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine,
    unsigned heads, unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride, unsigned kv_stride,
    float fixed_factor) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(float, inverse_length, [TILE]);
    SHARED_ARRAY(float, scratch, [BLOCK / WARP]);
    float *q_tile = shared, *d_out_tile = q_tile + TILE * LINE<D>, *k_tile = d_out_tile + TILE * LINE<D>;
    float *v_tile = k_tile + TILE * LINE<D>, *weights = v_tile + TILE * LINE<D>;
    unsigned tiles = (queries + TILE - 1) / TILE, tasks = gridDim.x / tiles;
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - place.tile) * TILE;
    Source32 q_rows = source_of(q, place, q_stride, queries, head_dim);
    Source32 k_rows = source_of(k, place, kv_stride, keys, head_dim);
    Source32 v_rows = source_of(v, place, kv_stride, keys, head_dim);
    Source32 out_rows = source_of(out, place, heads * head_dim, queries, head_dim);
    Source32 d_out_rows = source_of(d_out, place, heads * head_dim, queries, head_dim);
    Rotary rotary = {cosine, sine, head_dim / 2}, none = {nullptr, nullptr, 0};
    bool normalise = log_scale != nullptr;
    float factor = factor_of(log_scale, place.head, fixed_factor);
    if (mask != nullptr) mask += uint64_t(place.sample) * keys;
    uint64_t plane = uint64_t(tasks) * queries, mine = uint64_t(place.task) * queries;
    float *means = rows + plane + mine;

    bring<D>(q_tile, q_rows, row, rotary, normalise, inverse_length);
    bring<D>(d_out_tile, d_out_rows, row, none, false, nullptr);
    __syncthreads();
    // Each row's mean of the gradients of its logits: the product of output and gradient.
    for (unsigned r = threadIdx.x / WARP; r < TILE && row + r < queries; r += BLOCK / WARP) {
        float mean = 0.0f;
        for (unsigned c = threadIdx.x % WARP; c < head_dim; c += WARP) {
            mean += d_out_tile[r * LINE<D> + c] * out_rows.first[uint64_t(row + r) * out_rows.stride + c];
        }
        mean = warp_sum(mean);
        if (threadIdx.x % WARP == 0) means[row + r] = mean;
    }
    __syncthreads();
    Softmax32 softmax;
    softmax.factor2 = factor * LOG2_E;
    softmax.read(row, rows + mine, rows + 2 * plane + mine, means, visible, queries, keys);
    float d[4][D / 64][4];
    clear<D>(d);
    unsigned end = visible_of(visible, min(row + TILE, queries) - 1, keys);
    for (unsigned key = 0; key < end; key += TILE) {
        __syncthreads();
        bring<D>(k_tile, k_rows, key, rotary, normalise, nullptr);
        bring<D>(v_tile, v_rows, key, none, false, nullptr);
        const unsigned seen[2] = {seen_keys(mask, key, keys), seen_keys(mask, key + WARP, keys)};
        __syncthreads();
        float s[4][4], d_s[4][4];
        dots<D>(s, q_tile, k_tile, head_dim);
        dots<D>(d_s, d_out_tile, v_tile, head_dim);
        softmax.run(s, d_s, key, seen);
        put_weights(weights, d_s);
        // A row's weights are used by the half warp that has made them.
        __syncwarp();
        add_weighted<D, false>(d, weights, k_tile);
    }
    float total = undo32<D>(d, q_tile, inverse_length, normalise, factor, row, queries, rotary);
    total = block_reduce<BLOCK>(x_of() == 0 ? total : 0.0f, scratch);
    if (threadIdx.x == 0 && normalise) rows[3 * plane + uint64_t(place.task) * tiles + row / TILE] = total;
    write<D>(d_q + (q_rows.first - q), d, q_rows, row);
}

template <unsigned D>
__device__ __forceinline__ void attention_backward_keys32(
    float *d_k, float *d_v, float *d_log_scale, const float *rows, const float *q, const float *k, const float *v,
    const float *d_out, const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine,
    const float *sine, unsigned heads, unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride,
    unsigned kv_stride, float fixed_factor) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(float, inverse_length, [TILE]);
    float *q_tile = shared, *d_out_tile = q_tile + TILE * LINE<D>, *k_tile = d_out_tile + TILE * LINE<D>;
    float *v_tile = k_tile + TILE * LINE<D>, *weights = v_tile + TILE * LINE<D>;
    unsigned tiles = (keys + TILE - 1) / TILE, tasks = gridDim.x / tiles, query_tiles = (queries + TILE - 1) / TILE;
    Place place = place_of(blockIdx.x, tasks, tiles, heads);
    unsigned row = place.tile * TILE;
    Source32 q_rows = source_of(q, place, q_stride, queries, head_dim);
    Source32 k_rows = source_of(k, place, kv_stride, keys, head_dim);
    Source32 v_rows = source_of(v, place, kv_stride, keys, head_dim);
    Source32 d_out_rows = source_of(d_out, place, heads * head_dim, queries, head_dim);
    Rotary rotary = {cosine, sine, head_dim / 2}, none = {nullptr, nullptr, 0};
    bool normalise = log_scale != nullptr;
    float factor = factor_of(log_scale, place.head, fixed_factor);
    if (mask != nullptr) mask += uint64_t(place.sample) * keys;
    uint64_t plane = uint64_t(tasks) * queries, mine = uint64_t(place.task) * queries;

    if (d_log_scale != nullptr && place.tile == 0 && threadIdx.x == 0) {
        const float *part = rows + 3 * plane + uint64_t(place.task) * query_tiles;
        float sum = 0.0f;
        for (unsigned at = 0; at < query_tiles; ++at) sum += part[at];
        d_log_scale[place.task] = log_scale[place.head] <= LARGEST_LOG_SCALE ? sum : 0.0f;
    }

    const unsigned seen[2] = {seen_keys(mask, row, keys), seen_keys(mask, row + WARP, keys)};
    unsigned blind = blind_tiles(visible, row, queries, keys, query_tiles);
    if ((seen[0] | seen[1]) == 0) blind = query_tiles;
    bring<D>(k_tile, k_rows, row, rotary, normalise, inverse_length);
    bring<D>(v_tile, v_rows, row, none, false, nullptr);
    float d_k_sum[4][D / 64][4], d_v_sum[4][D / 64][4];
    clear<D>(d_k_sum);
    clear<D>(d_v_sum);
    Softmax32 softmax;
    softmax.factor2 = factor * LOG2_E;
    for (unsigned query = blind * TILE; query < queries; query += TILE) {
        __syncthreads();
        bring<D>(q_tile, q_rows, query, rotary, normalise, nullptr);
        bring<D>(d_out_tile, d_out_rows, query, none, false, nullptr);
        softmax.read(query, rows + mine, rows + 2 * plane + mine, rows + plane + mine, visible, queries, keys);
        __syncthreads();
        float p[4][4], d_s[4][4];
        dots<D>(p, q_tile, k_tile, head_dim);
        dots<D>(d_s, d_out_tile, v_tile, head_dim);
        softmax.run(p, d_s, row, seen);
        put_weights(weights, p);
        __syncthreads();
        add_weighted<D, true>(d_v_sum, weights, d_out_tile);
        __syncthreads();
        put_weights(weights, d_s);
        __syncthreads();
        add_weighted<D, true>(d_k_sum, weights, q_tile);
    }
    __syncthreads();
    undo32<D>(d_k_sum, k_tile, inverse_length, normalise, factor, row, keys, rotary);
    write<D>(d_k + (k_rows.first - k), d_k_sum, k_rows, row);
    write<D>(d_v + (v_rows.first - v), d_v_sum, v_rows, row);
}

#define ATTENTION_F32(D)                                                                                               \
    KERNEL(                                                                                                            \
        attention_forward_##D##_f32, BLOCK, float *out, float *rows, const float *q, const float *k, const float *v,   \
        const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine, \
        uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t kv_stride,     \
        float fixed_factor) {                                                                                          \
        attention_forward32<D>(                                                                                        \
            out, rows, q, k, v, visible, mask, log_scale, cosine, sine, heads, queries, keys, head_dim, q_stride,      \
            kv_stride, fixed_factor);                                                                                  \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        attention_backward_queries_##D##_f32, BLOCK, float *d_q, float *rows, const float *q, const float *k,          \
        const float *v, const float *out, const float *d_out, const uint32_t *visible, const uint32_t *mask,           \
        const float *log_scale, const float *cosine, const float *sine, uint32_t heads, uint32_t queries,              \
        uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t kv_stride, float fixed_factor) {                 \
        attention_backward_queries32<D>(                                                                               \
            d_q, rows, q, k, v, out, d_out, visible, mask, log_scale, cosine, sine, heads, queries, keys, head_dim,    \
            q_stride, kv_stride, fixed_factor);                                                                        \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        attention_backward_keys_##D##_f32, BLOCK, float *d_k, float *d_v, float *d_log_scale, const float *rows,       \
        const float *q, const float *k, const float *v, const float *d_out, const uint32_t *visible,                   \
        const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine, uint32_t heads,          \
        uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride, uint32_t kv_stride,                     \
        float fixed_factor) {                                                                                          \
        attention_backward_keys32<D>(                                                                                  \
            d_k, d_v, d_log_scale, rows, q, k, v, d_out, visible, mask, log_scale, cosine, sine, heads, queries, keys, \
            head_dim, q_stride, kv_stride, fixed_factor);                                                              \
    }
ATTENTION_F32(64)
ATTENTION_F32(128)
