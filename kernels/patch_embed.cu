// The input embedding in one pass: the projected rows of the pyramid with level and position embeddings,
// after the first tokens, which are the pooled text with the start embedding:
//
//     x[b, t] = W rows[b, t - first] + bias + level[levels[t]] + position[t]      t >= first
//     x[b, t] = text[b] + start[t] + level[levels[t]] + position[t]               t < first
//
// Shapes: x [B, L, C] in T; rows [B, L - first, K] or, with zero rows for the first tokens, [B, L, K] in T;
// weight [C, K] in T; text [B, C] in T; bias [C], start [first, C], level [S, C] or null, position [L, C] or
// null in float.
// Threads: patch_embed_forward_<T>, any sizes: 128 threads for 32 tokens by 128 channels, 8 tokens by 4
// channels per thread. patch_embed_forward_<T>_<K>, on tensor cores, 16-bit T, K = 32 or 64, C a multiple of
// 64: a warp keeps the weights of 64 channels and the embeddings of 16 tokens in registers and walks through
// 8 samples. Columns are permuted in the fragments so that a lane's accumulators are 8 consecutive channels:
// stores are 16 bytes, 64 contiguous bytes per row. The backward sums per level: see there.
// Memory: the floor is the write of x, sizeof(T) bytes per value; rows are K / C of that, W is read once per
// block. Shared memory: 20.6 KB, or 10 and 18 KB (K = 32, 64) of rows on tensor cores.
// Precision: f32 accumulators that start from bias, level and position; rounded once. One order per sum.
// Reference: src/engine/ops/patch_embed/cpu.rs. Source: docs/upstream.md, B6.
#include "portable.cuh"

constexpr unsigned THREADS = 128;

// The terms that are added to a token, in float.
struct Terms {
    const float *bias, *start, *level, *position;
    const uint32_t *levels;
    unsigned tokens, first, channels;

    // The level and position embeddings of channel c of a token.
    __device__ __forceinline__ float level_and_position(unsigned token, unsigned c) const {
        float sum = level == nullptr ? 0.0f : level[uint64_t(levels[token]) * channels + c];
        return position == nullptr ? sum : sum + position[uint64_t(token) * channels + c];
    }
};

// The first tokens of a sample, channels `from` up to `to`.
template <class T>
__device__ __forceinline__ void
first_tokens(T *x, const T *text, const Terms &terms, uint64_t sample, unsigned from, unsigned to) {
    for (unsigned token = 0; token < terms.first; ++token) {
        for (unsigned c = from + threadIdx.x; c < to; c += THREADS) {
            float value = to_float(text[sample * terms.channels + c]) +
                          terms.start[uint64_t(token) * terms.channels + c] +
                          terms.level_and_position(token, c);
            x[(sample * terms.tokens + token) * terms.channels + c] = from_float<T>(value);
        }
    }
}

constexpr unsigned TOKENS = 32;
constexpr unsigned COLUMNS = 4 * WARP;
constexpr unsigned DEPTH = 32;
constexpr unsigned TOKENS_PER_WARP = TOKENS / (THREADS / WARP);

// Block: 128 channels (x), the first tokens (y = 0) or 32 others, one sample (z). `rows_per_sample` and
// `skip`: the rows of a sample, and how many of them precede the first that is used.
template <class T>
__device__ __forceinline__ void patch_embed_forward(
    T *x, const T *text, const T *rows, const T *weight, const Terms &terms, unsigned depth,
    unsigned rows_per_sample, unsigned skip) {
    SHARED_ARRAY(float, shared_weight, [DEPTH][COLUMNS + 1]);
    SHARED_ARRAY(float, shared_rows, [TOKENS][DEPTH]);
    unsigned channels = terms.channels, column = blockIdx.x * COLUMNS;
    if (blockIdx.y == 0) {
        first_tokens(x, text, terms, blockIdx.z, column, min(column + COLUMNS, channels));
        return;
    }
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned token = terms.first + (blockIdx.y - 1) * TOKENS, row_count = terms.tokens - terms.first;
    const T *from = rows + (uint64_t(blockIdx.z) * rows_per_sample + skip) * depth;
    float sums[TOKENS_PER_WARP][4] = {};
    for (unsigned k = 0; k < depth; k += DEPTH) {
        // Read four at a time below: padded with zeros to a multiple of four.
        unsigned count = min(DEPTH, (depth - k + 3) / 4 * 4);
        if (k > 0) __syncthreads();
        for (unsigned at = threadIdx.x; at < COLUMNS * count; at += THREADS) {
            unsigned c = at / count, i = at % count;
            bool inside = column + c < channels && k + i < depth;
            shared_weight[i][c] = inside ? to_float(weight[uint64_t(column + c) * depth + k + i]) : 0.0f;
        }
        for (unsigned at = threadIdx.x; at < TOKENS * count; at += THREADS) {
            unsigned t = at / count, i = at % count, row = token - terms.first + t;
            bool inside = row < row_count && k + i < depth;
            shared_rows[t][i] = inside ? to_float(from[uint64_t(row) * depth + k + i]) : 0.0f;
        }
        __syncthreads();
        for (unsigned i = 0; i < count; i += 4) {
            float w[4][4];
#pragma unroll
            for (unsigned part = 0; part < 4; ++part) {
#pragma unroll
                for (unsigned j = 0; j < 4; ++j) w[part][j] = shared_weight[i + part][lane + j * WARP];
            }
#pragma unroll
            for (unsigned t = 0; t < TOKENS_PER_WARP; ++t) {
                float r[4];
                load<4>(r, &shared_rows[warp * TOKENS_PER_WARP + t][i]);
#pragma unroll
                for (unsigned part = 0; part < 4; ++part) {
#pragma unroll
                    for (unsigned j = 0; j < 4; ++j) sums[t][j] += r[part] * w[part][j];
                }
            }
        }
    }
#pragma unroll
    for (unsigned t = 0; t < TOKENS_PER_WARP; ++t) {
        unsigned at = token + warp * TOKENS_PER_WARP + t;
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
            unsigned c = column + lane + j * WARP;
            if (at < terms.tokens && c < channels) {
                float value = sums[t][j] + terms.bias[c] + terms.level_and_position(at, c);
                x[(uint64_t(blockIdx.z) * terms.tokens + at) * channels + c] = from_float<T>(value);
            }
        }
    }
}

constexpr unsigned WARP_COLUMNS = 64;
constexpr unsigned TILE = 16;
constexpr unsigned SAMPLES = 8;

// Adds the lane's 16 channels of a row: 8 from its start and 8 from 32 channels later.
__device__ __forceinline__ void add_row(float (&to)[16], const float *row) {
#pragma unroll
    for (unsigned four = 0; four < 4; ++four) {
        float values[4];
        load<4>(values, row + four / 2 * 32 + four % 2 * 4);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) to[four * 4 + i] += values[i];
    }
}

// Block: 256 channels (x), the first tokens (y = 0) or a tile of 16 others, 8 samples (z). The rows of all 8
// are loaded at once (cp.async); weights and embeddings, which the samples share, stay in registers.
template <unsigned STEPS, class T>
__device__ __forceinline__ void patch_embed_tensor(
    T *x, const T *text, const T *rows, const T *weight, const Terms &terms, unsigned rows_per_sample,
    unsigned skip, unsigned samples) {
    constexpr unsigned K = STEPS * 16;
    unsigned channels = terms.channels, first_column = blockIdx.x * (THREADS / WARP) * WARP_COLUMNS;
    unsigned begin = blockIdx.z * SAMPLES, end = min(begin + SAMPLES, samples);
    if (blockIdx.y == 0) {
        unsigned last_column = min(first_column + THREADS / WARP * WARP_COLUMNS, channels);
        for (unsigned sample = begin; sample < end; ++sample) {
            first_tokens(x, text, terms, sample, first_column, last_column);
        }
        return;
    }
    unsigned first_token = terms.first + (blockIdx.y - 1) * TILE;
    // Rows are padded by 16 bytes: rows that ldmatrix reads at once lie in different banks.
    SHARED_ARRAY(T, shared_rows, [SAMPLES][TILE][K + 8]);
    for (unsigned at = threadIdx.x; at < SAMPLES * TILE * K / 8; at += THREADS) {
        unsigned sample = at / (TILE * K / 8), row = at / (K / 8) % TILE, k = at % (K / 8) * 8;
        bool keep = begin + sample < end && first_token + row < terms.tokens;
        uint64_t source_row =
            uint64_t(begin + sample) * rows_per_sample + skip + first_token - terms.first + row;
        copy_16_async(&shared_rows[sample][row][k], keep ? rows + source_row * K + k : rows, keep);
    }
    commit_copies();
    unsigned base = first_column + threadIdx.x / WARP * WARP_COLUMNS, lane = threadIdx.x % WARP;
    bool active = base < channels;
    unsigned g = lane / 4, t = lane % 4, column = active ? base + t * 8 : 0, token = first_token + g;
    bool inside[2] = {active && token < terms.tokens, active && token + 8 < terms.tokens};
    base = active ? base : 0;
    // Column n of n-tile j is channel base + j/4 32 + n/2 8 + j%4 2 + n%2.
    uint32_t b[8][STEPS][2];
#pragma unroll
    for (unsigned j = 0; j < 8; ++j) {
        const T *one = weight + uint64_t(base + j / 4 * 32 + g / 2 * 8 + j % 4 * 2 + g % 2) * K + 2 * t;
#pragma unroll
        for (unsigned step = 0; step < STEPS; ++step) {
            b[j][step][0] = *reinterpret_cast<const uint32_t *>(one + step * 16);
            b[j][step][1] = *reinterpret_cast<const uint32_t *>(one + step * 16 + 8);
        }
    }
    // Bias, level and position of the lane's two tokens: where the accumulators start.
    float added[2][16] = {};
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
        unsigned at = token + half * 8;
        if (inside[half]) {
            add_row(added[half], terms.bias + column);
            if (terms.level != nullptr) {
                add_row(added[half], terms.level + uint64_t(terms.levels[at]) * channels + column);
            }
            if (terms.position != nullptr) {
                add_row(added[half], terms.position + uint64_t(at) * channels + column);
            }
        }
    }
    wait_copies<0>();
    __syncthreads();
    if (!active) return;
    for (unsigned sample = begin; sample < end; ++sample) {
        uint32_t a[STEPS][4];
#pragma unroll
        for (unsigned step = 0; step < STEPS; ++step) {
            load_matrices(a[step], &shared_rows[sample - begin][lane % 16][step * 16 + lane / 16 * 8]);
        }
        float d[8][4];
#pragma unroll
        for (unsigned j = 0; j < 8; ++j) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) d[j][i] = added[i / 2][j * 2 + i % 2];
#pragma unroll
            for (unsigned step = 0; step < STEPS; ++step) mma_16x8x16<T>(d[j], a[step], b[j][step]);
        }
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            if (inside[half]) {
                T *to = x + (uint64_t(sample) * terms.tokens + token + half * 8) * channels + column;
#pragma unroll
                for (unsigned eight = 0; eight < 2; ++eight) {
                    float values[8];
#pragma unroll
                    for (unsigned i = 0; i < 8; ++i) values[i] = d[eight * 4 + i / 2][half * 2 + i % 2];
                    store<8>(to + eight * 32, values);
                }
            }
        }
    }
}

// The backward: sums of d_x [B, L, C] over the tokens of each level of each sample, [B, S, C] in float. d_x
// is read once. Level 0 also goes to d_text [B, C] in T, unless that is null. Block: 16 bytes per lane of
// channels (x), one level (y) of one sample (z); each of 8 warps takes every eighth token, and their sums are
// added in order.
constexpr unsigned SUM_WARPS = 8;

template <class T>
__device__ __forceinline__ void patch_embed_backward(
    float *sums, T *d_text, const T *d_x, const uint32_t *starts, unsigned tokens, unsigned channels) {
    constexpr unsigned WIDTH = WARP * PACK<T>;
    SHARED_ARRAY(float, partial, [SUM_WARPS][WIDTH]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // The last levels have the most tokens and start first.
    unsigned levels = gridDim.y, level = levels - 1 - blockIdx.y;
    unsigned column = blockIdx.x * WIDTH + lane * PACK<T>, end = starts[level + 1];
    const T *from = d_x + uint64_t(blockIdx.z) * tokens * channels + column;
    float total[PACK<T>] = {};
    if (packs(d_x, channels)) {
        // Unrolled, so that the loads of several tokens are in flight.
#pragma unroll 4
        for (unsigned token = starts[level] + warp; token < end && column < channels; token += SUM_WARPS) {
            float values[PACK<T>];
            load<PACK<T>>(values, from + uint64_t(token) * channels);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) total[i] += values[i];
        }
    } else {
        for (unsigned token = starts[level] + warp; token < end; token += SUM_WARPS) {
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                total[i] += column + i < channels ? to_float(from[uint64_t(token) * channels + i]) : 0.0f;
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < PACK<T>; ++i) partial[warp][lane * PACK<T> + i] = total[i];
    __syncthreads();
    for (unsigned at = threadIdx.x; at < WIDTH; at += SUM_WARPS * WARP) {
        unsigned c = blockIdx.x * WIDTH + at;
        if (c < channels) {
            float sum = 0.0f;
#pragma unroll
            for (unsigned other = 0; other < SUM_WARPS; ++other) sum += partial[other][at];
            sums[(uint64_t(blockIdx.z) * levels + level) * channels + c] = sum;
            if (level == 0 && d_text != nullptr) {
                d_text[uint64_t(blockIdx.z) * channels + c] = from_float<T>(sum);
            }
        }
    }
}

// The gradient of the bias per sample, [B, C]: the sums of all levels but the first.
KERNEL(patch_embed_bias, THREADS, float *d_bias, const float *sums, uint32_t levels, uint32_t channels) {
    unsigned c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    float sum = 0.0f;
    for (unsigned level = 1; level < levels; ++level) {
        sum += sums[(uint64_t(blockIdx.y) * levels + level) * channels + c];
    }
    d_bias[uint64_t(blockIdx.y) * channels + c] = sum;
}

#define PATCH_EMBED(T, suffix)                                                                               \
    KERNEL(                                                                                                  \
        patch_embed_forward_##suffix, THREADS, T *x, const T *text, const T *rows, const T *weight,          \
        const float *bias, const float *start, const float *level, const float *position,                    \
        const uint32_t *levels, uint32_t tokens, uint32_t first, uint32_t channels, uint32_t depth,          \
        uint32_t rows_per_sample, uint32_t skip, uint32_t) {                                                 \
        patch_embed_forward(                                                                                 \
            x, text, rows, weight, {bias, start, level, position, levels, tokens, first, channels}, depth,   \
            rows_per_sample, skip);                                                                          \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        patch_embed_backward_##suffix, SUM_WARPS *WARP, float *sums, T *d_text, const T *d_x,                \
        const uint32_t *starts, uint32_t tokens, uint32_t channels) {                                        \
        patch_embed_backward(sums, d_text, d_x, starts, tokens, channels);                                   \
    }
PATCH_EMBED(float, f32)
PATCH_EMBED(bf16, bf16)
PATCH_EMBED(f16, f16)

#define PATCH_EMBED_TENSOR(T, suffix, steps, size)                                                           \
    KERNEL(                                                                                                  \
        patch_embed_forward_##suffix##_##size, THREADS, T *x, const T *text, const T *rows, const T *weight, \
        const float *bias, const float *start, const float *level, const float *position,                    \
        const uint32_t *levels, uint32_t tokens, uint32_t first, uint32_t channels, uint32_t,                \
        uint32_t rows_per_sample, uint32_t skip, uint32_t samples) {                                         \
        patch_embed_tensor<steps>(                                                                           \
            x, text, rows, weight, {bias, start, level, position, levels, tokens, first, channels},          \
            rows_per_sample, skip, samples);                                                                 \
    }
PATCH_EMBED_TENSOR(bf16, bf16, 2, 32)
PATCH_EMBED_TENSOR(bf16, bf16, 4, 64)
PATCH_EMBED_TENSOR(f16, f16, 2, 32)
PATCH_EMBED_TENSOR(f16, f16, 4, 64)
