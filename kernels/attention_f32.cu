// Attention forward and backward in f32, without tensor cores, accurate to about 1e-5: for training in f32,
// and as the reference of the 16-bit kernels on a GPU. The same three kernels with the equations and
// arguments of attention_forward.cu, attention_backward_queries.cu and attention_backward_keys.cu. RoPE and
// QK-norm are part of loading a tile.
//
// Shapes: `rows` is [3, B, H, L] in float: the row maximum of logit log2(e), delta, and the inverse of the
// sum of exponentials, followed by the parts of the log scale's gradient. Maximum and sum are separate: one
// logarithm of both would lose digits where logits reach 100.
// Threads: a block of 256, as 16 by 16, takes 64 queries (or keys) of one head, and tiles of 64 of the other
// side; a thread computes 4 by 4 products and accumulates 4 rows of D/16 channels.
// Memory: (3, or 4 in the backward) 64 (D + 4) + 64 68 floats of shared memory, 149 KB for D = 128; rows are
// padded by 4 floats against bank conflicts. Each multiplication needs half a read of shared memory, which is
// the limit; one or two blocks fit on a multiprocessor.
// Precision: f32 throughout. The online softmax always keeps the running maximum, which costs little here.
// Determinism: no atomics, one order per sum.
// Reference: src/engine/ops/attention/cpu.rs.
#include "attention.cuh"

// Thread (x, y) of 16 by 16: rows 4 y to 4 y + 3 and, of the other side, x, x + 16, x + 32 and x + 48.
constexpr unsigned SIDE = 16, BLOCK = SIDE * SIDE;
// Values from one row of a tile to the next: 4 of padding, so that 8 rows read at once lie in different
// banks.
template <unsigned D> constexpr unsigned ROW_STRIDE = D + 4;
constexpr unsigned WEIGHTS_STRIDE = TILE + 4;

__device__ __forceinline__ unsigned thread_x() { return threadIdx.x % SIDE; }
__device__ __forceinline__ unsigned thread_y() { return threadIdx.x / SIDE; }

// One head's rows in global memory.
struct Source32 {
    const float *first;
    unsigned stride, length, head_dim;
};

__device__ __forceinline__ Source32
head_rows(const float *from, const WorkTile &work, unsigned stride, unsigned length, unsigned head_dim) {
    return {from + uint64_t(work.sample) * length * stride + work.head * head_dim, stride, length, head_dim};
}

// Loads 64 rows into a tile, one warp per row, rotated by `rope` and, if `normalize`, divided by their norm;
// zeros past the end. `inverse_length`, if not null, receives 1 / max(norm, 1e-12).
template <unsigned D>
__device__ __forceinline__ void load_tile(
    float *tile, const Source32 &source, unsigned row, const Rope &rope, bool normalize,
    float *inverse_length) {
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
                if (rope.cosine != nullptr) {
                    uint64_t angle = uint64_t(row + r) * rope.half + pair;
                    float cosine = rope.cosine[angle], sine = rope.sine[angle], real = value[at][0];
                    value[at][0] = real * cosine - value[at][1] * sine;
                    value[at][1] = real * sine + value[at][1] * cosine;
                }
            }
            squares += value[at][0] * value[at][0] + value[at][1] * value[at][1];
        }
        float inverse = normalize ? 1.0f / fmaxf(sqrtf(warp_sum(squares)), MIN_NORM) : 1.0f;
        if (inverse_length != nullptr && lane == 0) inverse_length[r] = inverse;
#pragma unroll
        for (unsigned at = 0; at < PAIRS; ++at) {
            value[at][0] *= inverse;
            value[at][1] *= inverse;
            store<2>(tile + r * ROW_STRIDE<D> + 2 * (at * WARP + lane), value[at]);
        }
    }
}

// s = the products of this thread's 4 rows of one tile with its 4 of another.
template <unsigned D>
__device__ __forceinline__ void
dots(float (&s)[4][4], const float *left, const float *right, unsigned head_dim) {
#pragma unroll
    for (unsigned at = 0; at < 16; ++at) s[at / 4][at % 4] = 0.0f;
    for (unsigned c = 0; c < head_dim; c += 4) {
        float a[4][4], b[4][4];
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            load<4>(a[i], left + (thread_y() * 4 + i) * ROW_STRIDE<D> + c);
            load<4>(b[i], right + (thread_x() + SIDE * i) * ROW_STRIDE<D> + c);
        }
#pragma unroll
        for (unsigned at = 0; at < 64; ++at) {
            s[at / 16][at / 4 % 4] += a[at / 16][at % 4] * b[at / 4 % 4][at % 4];
        }
    }
}

// sum[i] += the sum over the 64 rows r of a tile, weighted by weights[4 y + i][r] or, transposed,
// weights[r][4 y + i]. The thread's channels are 4 x + 64 c to 4 x + 64 c + 3.
template <unsigned D, bool TRANSPOSED>
__device__ __forceinline__ void
add_weighted(float (&sum)[4][D / 64][4], const float *weights, const float *tile) {
    for (unsigned r = 0; r < TILE; r += 4) {
        float w[4][4];
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            load<4>(
                w[i], weights + (TRANSPOSED ? (r + i) * WEIGHTS_STRIDE + thread_y() * 4
                                            : (thread_y() * 4 + i) * WEIGHTS_STRIDE + r));
        }
#pragma unroll
        for (unsigned at = 0; at < 4; ++at) {
#pragma unroll
            for (unsigned c = 0; c < D / 64; ++c) {
                float value[4];
                load<4>(value, tile + (r + at) * ROW_STRIDE<D> + thread_x() * 4 + c * 64);
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

// Writes this thread's part of rows `row` and following.
template <unsigned D>
__device__ __forceinline__ void
write(float *to, const float (&value)[4][D / 64][4], const Source32 &like, unsigned row) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        unsigned at = row + thread_y() * 4 + i;
#pragma unroll
        for (unsigned c = 0; c < D / 64; ++c) {
            unsigned channel = thread_x() * 4 + c * 64;
            if (at < like.length && channel < like.head_dim) {
                store<4>(to + uint64_t(at) * like.stride + channel, value[i][c]);
            }
        }
    }
}

// The backward of RoPE and QK-norm, in place; `hat` is the tile of rotated and normalized rows. Returns the
// sum of <y, d> over the thread's rows: see rope_norm_backward in attention.cuh.
template <unsigned D>
__device__ __forceinline__ float rope_norm_backward32(
    float (&d)[4][D / 64][4], const float *hat, const float *inverse_length, bool normalize, float scale,
    unsigned row, unsigned length, const Rope &rope) {
    float total = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        unsigned r = thread_y() * 4 + i;
        float dot = 0.0f, inverse = inverse_length[r], y[D / 64][4];
#pragma unroll
        for (unsigned c = 0; c < D / 64; ++c) {
            load<4>(y[c], hat + r * ROW_STRIDE<D> + thread_x() * 4 + c * 64);
#pragma unroll
            for (unsigned at = 0; at < 4; ++at) {
                d[i][c][at] *= scale;
                dot += d[i][c][at] * y[c][at];
            }
        }
        dot = lanes_sum<SIDE>(dot);
        total += dot;
        // Below epsilon the norm is a constant, so the radial part of the gradient stays.
        if (!(inverse < 1.0f / MIN_NORM)) dot = 0.0f;
#pragma unroll
        for (unsigned at = 0; at < D / 32; ++at) {
            unsigned c = at / 2, first = at % 2 * 2;
            float &real = d[i][c][first], &imaginary = d[i][c][first + 1];
            if (normalize) {
                real = (real - y[c][first] * dot) * inverse;
                imaginary = (imaginary - y[c][first + 1] * dot) * inverse;
            }
            unsigned angle = (thread_x() * 4 + c * 64 + first) / 2;
            if (rope.cosine != nullptr && row + r < length && angle < rope.half) {
                uint64_t index = uint64_t(row + r) * rope.half + angle;
                float cosine = rope.cosine[index], sine = rope.sine[index], before = real;
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
    unsigned queries, unsigned keys, unsigned head_dim, unsigned q_stride, unsigned kv_stride,
    float fixed_scale) {
    DYNAMIC_SHARED(float, shared);
    float *q_tile = shared, *k_tile = q_tile + TILE * ROW_STRIDE<D>, *v_tile = k_tile + TILE * ROW_STRIDE<D>;
    float *weights = v_tile + TILE * ROW_STRIDE<D>;
    unsigned tiles = (queries + TILE - 1) / TILE, tasks = gridDim.x / tiles;
    WorkTile work = work_tile(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - work.tile) * TILE, first = row + thread_y() * 4;
    Source32 q_rows = head_rows(q, work, q_stride, queries, head_dim);
    Source32 k_rows = head_rows(k, work, kv_stride, keys, head_dim);
    Source32 v_rows = head_rows(v, work, kv_stride, keys, head_dim);
    Source32 out_rows = head_rows(out, work, heads * head_dim, queries, head_dim);
    Rope rope = {cosine, sine, head_dim / 2}, none = {nullptr, nullptr, 0};
    Rope q_rotary = last_positions(rope, queries, keys);
    bool normalize = log_scale != nullptr;
    float scale_log2 = logit_scale(log_scale, work.head, fixed_scale) * LOG2_E;
    if (mask != nullptr) mask += uint64_t(work.sample) * keys;
    unsigned end = visible_keys(visible, min(row + TILE, queries) - 1, keys), key_end[4];
    float row_max[4], sum[4], o[4][D / 64][4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        key_end[i] = visible_keys(visible, min(first + i, queries - 1), keys);
        // Finite, so that it can be subtracted from the -infinity of a masked key.
        row_max[i] = -1e30f;
        sum[i] = 0.0f;
    }
    clear<D>(o);
    load_tile<D>(q_tile, q_rows, row, q_rotary, normalize, nullptr);
    for (unsigned key = 0; key < end; key += TILE) {
        __syncthreads();
        load_tile<D>(k_tile, k_rows, key, rope, normalize, nullptr);
        load_tile<D>(v_tile, v_rows, key, none, false, nullptr);
        const unsigned unmasked[2] = {unmasked_keys(mask, key, keys), unmasked_keys(mask, key + WARP, keys)};
        __syncthreads();
        float s[4][4];
        dots<D>(s, q_tile, k_tile, head_dim);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            float maximum = -INFINITY;
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                unsigned column = thread_x() + SIDE * j;
                bool is_visible = key + column < key_end[i] && (unmasked[j / 2] >> column % WARP & 1);
                if (!is_visible) s[i][j] = -INFINITY;
                maximum = fmaxf(maximum, s[i][j]);
            }
#pragma unroll
            for (unsigned other = SIDE / 2; other > 0; other /= 2) {
                maximum = fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, other));
            }
            maximum = fmaxf(maximum * scale_log2, row_max[i]);
            float rescale = exp2_approx(row_max[i] - maximum);
            row_max[i] = maximum;
            sum[i] *= rescale;
#pragma unroll
            for (unsigned at = 0; at < D / 16; ++at) o[i][at / 4][at % 4] *= rescale;
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                // fmaf rounds only once: a logit near 100 has few digits to spare.
                float p = exp2_approx(fmaf(s[i][j], scale_log2, -maximum));
                sum[i] += p;
                weights[(thread_y() * 4 + i) * WEIGHTS_STRIDE + thread_x() + SIDE * j] = p;
            }
        }
        // A row's weights are read by the half warp that wrote them.
        __syncwarp();
        add_weighted<D, false>(o, weights, v_tile);
    }
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        float total = lanes_sum<SIDE>(sum[i]), inverse = total > 0.0f ? 1.0f / total : 0.0f;
        if (thread_x() == 0 && first + i < queries) {
            uint64_t at = uint64_t(work.task) * queries + first + i;
            rows[at] = row_max[i];
            rows[2 * uint64_t(tasks) * queries + at] = inverse;
        }
#pragma unroll
        for (unsigned at = 0; at < D / 16; ++at) o[i][at / 4][at % 4] *= inverse;
    }
    write<D>(out + (out_rows.first - out), o, out_rows, row);
}

// Turns the products of this thread's 4x4 of a tile into probabilities and gradients of the logits (without
// the scale).
struct Softmax32 {
    float scale_log2, shift[4], inverse_sum[4], delta[4];
    unsigned key_end[4];

    __device__ __forceinline__ void read(
        unsigned row, const float *shifts, const float *inverse_sums, const float *deltas,
        const uint32_t *visible, unsigned queries, unsigned keys) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            unsigned at = row + thread_y() * 4 + i;
            shift[i] = at < queries ? shifts[at] : 0.0f;
            inverse_sum[i] = at < queries ? inverse_sums[at] : 0.0f;
            delta[i] = at < queries ? deltas[at] : 0.0f;
            key_end[i] = visible_keys(visible, min(at, queries - 1), keys);
        }
    }
    __device__ __forceinline__ void
    run(float (&s)[4][4], float (&d_p)[4][4], unsigned key, const unsigned (&unmasked)[2]) const {
#pragma unroll
        for (unsigned at = 0; at < 16; ++at) {
            unsigned i = at / 4, j = at % 4, column = thread_x() + SIDE * j;
            bool is_visible =
                inverse_sum[i] > 0.0f && key + column < key_end[i] && (unmasked[j / 2] >> column % WARP & 1);
            float p = is_visible ? exp2_approx(fmaf(s[i][j], scale_log2, -shift[i])) * inverse_sum[i] : 0.0f;
            s[i][j] = p;
            d_p[i][j] = p * (d_p[i][j] - delta[i]);
        }
    }
};

__device__ __forceinline__ void store_weights(float *weights, const float (&values)[4][4]) {
#pragma unroll
    for (unsigned at = 0; at < 16; ++at) {
        weights[(thread_y() * 4 + at / 4) * WEIGHTS_STRIDE + thread_x() + SIDE * (at % 4)] =
            values[at / 4][at % 4];
    }
}

template <unsigned D>
__device__ __forceinline__ void attention_backward_queries32(
    float *d_q, float *rows, const float *q, const float *k, const float *v, const float *out,
    const float *d_out, const uint32_t *visible, const uint32_t *mask, const float *log_scale,
    const float *cosine, const float *sine, unsigned heads, unsigned queries, unsigned keys,
    unsigned head_dim, unsigned q_stride, unsigned kv_stride, float fixed_scale) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(float, inverse_length, [TILE]);
    SHARED_ARRAY(float, scratch, [BLOCK / WARP]);
    float *q_tile = shared, *d_out_tile = q_tile + TILE * ROW_STRIDE<D>,
          *k_tile = d_out_tile + TILE * ROW_STRIDE<D>;
    float *v_tile = k_tile + TILE * ROW_STRIDE<D>, *weights = v_tile + TILE * ROW_STRIDE<D>;
    unsigned tiles = (queries + TILE - 1) / TILE, tasks = gridDim.x / tiles;
    WorkTile work = work_tile(blockIdx.x, tasks, tiles, heads);
    unsigned row = (tiles - 1 - work.tile) * TILE;
    Source32 q_rows = head_rows(q, work, q_stride, queries, head_dim);
    Source32 k_rows = head_rows(k, work, kv_stride, keys, head_dim);
    Source32 v_rows = head_rows(v, work, kv_stride, keys, head_dim);
    Source32 out_rows = head_rows(out, work, heads * head_dim, queries, head_dim);
    Source32 d_out_rows = head_rows(d_out, work, heads * head_dim, queries, head_dim);
    Rope rope = {cosine, sine, head_dim / 2}, none = {nullptr, nullptr, 0};
    bool normalize = log_scale != nullptr;
    float scale = logit_scale(log_scale, work.head, fixed_scale);
    if (mask != nullptr) mask += uint64_t(work.sample) * keys;
    uint64_t plane = uint64_t(tasks) * queries, offset = uint64_t(work.task) * queries;
    float *deltas = rows + plane + offset;

    load_tile<D>(q_tile, q_rows, row, rope, normalize, inverse_length);
    load_tile<D>(d_out_tile, d_out_rows, row, none, false, nullptr);
    __syncthreads();
    // delta of each row: the product of output and gradient.
    for (unsigned r = threadIdx.x / WARP; r < TILE && row + r < queries; r += BLOCK / WARP) {
        float delta = 0.0f;
        for (unsigned c = threadIdx.x % WARP; c < head_dim; c += WARP) {
            delta +=
                d_out_tile[r * ROW_STRIDE<D> + c] * out_rows.first[uint64_t(row + r) * out_rows.stride + c];
        }
        delta = warp_sum(delta);
        if (threadIdx.x % WARP == 0) deltas[row + r] = delta;
    }
    __syncthreads();
    Softmax32 softmax;
    softmax.scale_log2 = scale * LOG2_E;
    softmax.read(row, rows + offset, rows + 2 * plane + offset, deltas, visible, queries, keys);
    float d[4][D / 64][4];
    clear<D>(d);
    unsigned end = visible_keys(visible, min(row + TILE, queries) - 1, keys);
    for (unsigned key = 0; key < end; key += TILE) {
        __syncthreads();
        load_tile<D>(k_tile, k_rows, key, rope, normalize, nullptr);
        load_tile<D>(v_tile, v_rows, key, none, false, nullptr);
        const unsigned unmasked[2] = {unmasked_keys(mask, key, keys), unmasked_keys(mask, key + WARP, keys)};
        __syncthreads();
        float s[4][4], d_s[4][4];
        dots<D>(s, q_tile, k_tile, head_dim);
        dots<D>(d_s, d_out_tile, v_tile, head_dim);
        softmax.run(s, d_s, key, unmasked);
        store_weights(weights, d_s);
        // A row's weights are read by the half warp that wrote them.
        __syncwarp();
        add_weighted<D, false>(d, weights, k_tile);
    }
    float total = rope_norm_backward32<D>(d, q_tile, inverse_length, normalize, scale, row, queries, rope);
    total = block_reduce<BLOCK>(thread_x() == 0 ? total : 0.0f, scratch);
    if (threadIdx.x == 0 && normalize) rows[3 * plane + uint64_t(work.task) * tiles + row / TILE] = total;
    write<D>(d_q + (q_rows.first - q), d, q_rows, row);
}

template <unsigned D>
__device__ __forceinline__ void attention_backward_keys32(
    float *d_k, float *d_v, float *d_log_scale, const float *rows, const float *q, const float *k,
    const float *v, const float *d_out, const uint32_t *visible, const uint32_t *mask, const float *log_scale,
    const float *cosine, const float *sine, unsigned heads, unsigned queries, unsigned keys,
    unsigned head_dim, unsigned q_stride, unsigned kv_stride, float fixed_scale) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(float, inverse_length, [TILE]);
    float *q_tile = shared, *d_out_tile = q_tile + TILE * ROW_STRIDE<D>,
          *k_tile = d_out_tile + TILE * ROW_STRIDE<D>;
    float *v_tile = k_tile + TILE * ROW_STRIDE<D>, *weights = v_tile + TILE * ROW_STRIDE<D>;
    unsigned tiles = (keys + TILE - 1) / TILE, tasks = gridDim.x / tiles;
    unsigned query_tiles = (queries + TILE - 1) / TILE;
    WorkTile work = work_tile(blockIdx.x, tasks, tiles, heads);
    unsigned row = work.tile * TILE;
    Source32 q_rows = head_rows(q, work, q_stride, queries, head_dim);
    Source32 k_rows = head_rows(k, work, kv_stride, keys, head_dim);
    Source32 v_rows = head_rows(v, work, kv_stride, keys, head_dim);
    Source32 d_out_rows = head_rows(d_out, work, heads * head_dim, queries, head_dim);
    Rope rope = {cosine, sine, head_dim / 2}, none = {nullptr, nullptr, 0};
    bool normalize = log_scale != nullptr;
    float scale = logit_scale(log_scale, work.head, fixed_scale);
    if (mask != nullptr) mask += uint64_t(work.sample) * keys;
    uint64_t plane = uint64_t(tasks) * queries, offset = uint64_t(work.task) * queries;

    if (d_log_scale != nullptr && work.tile == 0 && threadIdx.x == 0) {
        const float *part = rows + 3 * plane + uint64_t(work.task) * query_tiles;
        float sum = 0.0f;
        for (unsigned at = 0; at < query_tiles; ++at) sum += part[at];
        d_log_scale[work.task] = log_scale[work.head] <= MAX_LOG_SCALE ? sum : 0.0f;
    }

    const unsigned unmasked[2] = {unmasked_keys(mask, row, keys), unmasked_keys(mask, row + WARP, keys)};
    unsigned masked = masked_tiles(visible, row, queries, keys, query_tiles);
    if ((unmasked[0] | unmasked[1]) == 0) masked = query_tiles;
    load_tile<D>(k_tile, k_rows, row, rope, normalize, inverse_length);
    load_tile<D>(v_tile, v_rows, row, none, false, nullptr);
    float d_k_sum[4][D / 64][4], d_v_sum[4][D / 64][4];
    clear<D>(d_k_sum);
    clear<D>(d_v_sum);
    Softmax32 softmax;
    softmax.scale_log2 = scale * LOG2_E;
    for (unsigned query = masked * TILE; query < queries; query += TILE) {
        __syncthreads();
        load_tile<D>(q_tile, q_rows, query, rope, normalize, nullptr);
        load_tile<D>(d_out_tile, d_out_rows, query, none, false, nullptr);
        softmax.read(
            query, rows + offset, rows + 2 * plane + offset, rows + plane + offset, visible, queries, keys);
        __syncthreads();
        float p[4][4], d_s[4][4];
        dots<D>(p, q_tile, k_tile, head_dim);
        dots<D>(d_s, d_out_tile, v_tile, head_dim);
        softmax.run(p, d_s, row, unmasked);
        store_weights(weights, p);
        __syncthreads();
        add_weighted<D, true>(d_v_sum, weights, d_out_tile);
        __syncthreads();
        store_weights(weights, d_s);
        __syncthreads();
        add_weighted<D, true>(d_k_sum, weights, q_tile);
    }
    __syncthreads();
    rope_norm_backward32<D>(d_k_sum, k_tile, inverse_length, normalize, scale, row, keys, rope);
    write<D>(d_k + (k_rows.first - k), d_k_sum, k_rows, row);
    write<D>(d_v + (v_rows.first - v), d_v_sum, v_rows, row);
}

#define ATTENTION_F32(D)                                                                                     \
    KERNEL(                                                                                                  \
        attention_forward_##D##_f32, BLOCK, float *out, float *rows, const float *q, const float *k,         \
        const float *v, const uint32_t *visible, const uint32_t *mask, const float *log_scale,               \
        const float *cosine, const float *sine, uint32_t heads, uint32_t queries, uint32_t keys,             \
        uint32_t head_dim, uint32_t q_stride, uint32_t kv_stride, float fixed_scale) {                       \
        attention_forward32<D>(                                                                              \
            out, rows, q, k, v, visible, mask, log_scale, cosine, sine, heads, queries, keys, head_dim,      \
            q_stride, kv_stride, fixed_scale);                                                               \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        attention_backward_queries_##D##_f32, BLOCK, float *d_q, float *rows, const float *q,                \
        const float *k, const float *v, const float *out, const float *d_out, const uint32_t *visible,       \
        const uint32_t *mask, const float *log_scale, const float *cosine, const float *sine,                \
        uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim, uint32_t q_stride,               \
        uint32_t kv_stride, float fixed_scale) {                                                             \
        attention_backward_queries32<D>(                                                                     \
            d_q, rows, q, k, v, out, d_out, visible, mask, log_scale, cosine, sine, heads, queries, keys,    \
            head_dim, q_stride, kv_stride, fixed_scale);                                                     \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        attention_backward_keys_##D##_f32, BLOCK, float *d_k, float *d_v, float *d_log_scale,                \
        const float *rows, const float *q, const float *k, const float *v, const float *d_out,               \
        const uint32_t *visible, const uint32_t *mask, const float *log_scale, const float *cosine,          \
        const float *sine, uint32_t heads, uint32_t queries, uint32_t keys, uint32_t head_dim,               \
        uint32_t q_stride, uint32_t kv_stride, float fixed_scale) {                                          \
        attention_backward_keys32<D>(                                                                        \
            d_k, d_v, d_log_scale, rows, q, k, v, d_out, visible, mask, log_scale, cosine, sine, heads,      \
            queries, keys, head_dim, q_stride, kv_stride, fixed_scale);                                      \
    }
ATTENTION_F32(64)
ATTENTION_F32(128)
