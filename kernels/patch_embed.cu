// The start of the sequence in one pass: the pyramid's rows projected to the width, with level and position added, and the
// text with the start embedding as the first tokens. In float, rounded once:
//
//     x[b, t] = W rows[b, t - first] + bias + level[levels[t]] + position[t]      t >= first
//     x[b, t] = text[b] + start[t] + level[levels[t]] + position[t]               t < first
//
// x: [B, L, C] in T; rows: [B, L - first, K] or, with the first tokens' rows as zeros, [B, L, K] in T; weight: [C, K] in T;
// text: [B, C] in T; bias [C], start [first, C], level [S, C] or null, position [L, C] or null in float.
//
// The floor is the write of x: sizeof(T) bytes a number; rows are K / C of that, and W is read once a block.
// patch_embed_forward_<T>: any sizes; 128 threads for 32 tokens x 128 channels, 4 channels x 8 tokens a thread, 20.6 KB of
// shared memory. patch_embed_forward_<T>_<K>: tensor cores, 16-bit T, K = 32 or 64, C a multiple of 64; a warp keeps the
// weights of 64 channels, and what is added to 16 tokens, in registers and goes through 8 samples, whose rows are in shared
// memory (10 or 18 KB). Its columns are dealt to the matrix so that a lane's results are 8 neighbouring channels: stores are
// 16 bytes, 64 neighbouring bytes a row.
#include "portable.cuh"

constexpr unsigned THREADS = 128;

// What is added to a token, in float.
struct Terms {
    const float *bias, *start, *level, *position;
    const uint32_t *levels;
    unsigned tokens, first, channels;

    // Level and position of channel c of a token.
    __device__ __forceinline__ float place(unsigned token, unsigned c) const {
        float sum = level == nullptr ? 0.0f : level[uint64_t(levels[token]) * channels + c];
        return position == nullptr ? sum : sum + position[uint64_t(token) * channels + c];
    }
};

// The first tokens of a sample, channels `from` to `to`.
template <class T>
__device__ __forceinline__ void
head(T *x, const T *text, const Terms &terms, uint64_t sample, unsigned from, unsigned to) {
    for (unsigned token = 0; token < terms.first; ++token) {
        for (unsigned c = from + threadIdx.x; c < to; c += THREADS) {
            float value = to_float(text[sample * terms.channels + c]) +
                          terms.start[uint64_t(token) * terms.channels + c] + terms.place(token, c);
            x[(sample * terms.tokens + token) * terms.channels + c] = from_float<T>(value);
        }
    }
}

constexpr unsigned TOKENS = 32;
constexpr unsigned COLUMNS = 4 * WARP;
constexpr unsigned DEPTH = 32;
constexpr unsigned TOKENS_A_WARP = TOKENS / (THREADS / WARP);

// Block: 128 channels (x), the first tokens (y = 0) or 32 others, one sample (z). `rows_a_sample` and `skip`: where a
// sample's rows and the first of them that is used are.
template <class T>
__device__ __forceinline__ void patch_embed_forward(
    T *x, const T *text, const T *rows, const T *weight, const Terms &terms, unsigned depth, unsigned rows_a_sample,
    unsigned skip) {
    SHARED_ARRAY(float, shared_weight, [DEPTH][COLUMNS + 1]);
    SHARED_ARRAY(float, shared_rows, [TOKENS][DEPTH]);
    unsigned channels = terms.channels, column = blockIdx.x * COLUMNS;
    if (blockIdx.y == 0) {
        head(x, text, terms, blockIdx.z, column, min(column + COLUMNS, channels));
        return;
    }
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned token = terms.first + (blockIdx.y - 1) * TOKENS, given = terms.tokens - terms.first;
    const T *from = rows + (uint64_t(blockIdx.z) * rows_a_sample + skip) * depth;
    float sums[TOKENS_A_WARP][4] = {};
    for (unsigned k = 0; k < depth; k += DEPTH) {
        // Four at a time below: what is missing to a multiple of four is zero.
        unsigned count = min(DEPTH, (depth - k + 3) / 4 * 4);
        if (k > 0) __syncthreads();
        for (unsigned at = threadIdx.x; at < COLUMNS * count; at += THREADS) {
            unsigned c = at / count, i = at % count;
            bool inside = column + c < channels && k + i < depth;
            shared_weight[i][c] = inside ? to_float(weight[uint64_t(column + c) * depth + k + i]) : 0.0f;
        }
        for (unsigned at = threadIdx.x; at < TOKENS * count; at += THREADS) {
            unsigned t = at / count, i = at % count, row = token - terms.first + t;
            bool inside = row < given && k + i < depth;
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
            for (unsigned t = 0; t < TOKENS_A_WARP; ++t) {
                float r[4];
                load<4>(r, &shared_rows[warp * TOKENS_A_WARP + t][i]);
#pragma unroll
                for (unsigned part = 0; part < 4; ++part) {
#pragma unroll
                    for (unsigned j = 0; j < 4; ++j) sums[t][j] += r[part] * w[part][j];
                }
            }
        }
    }
#pragma unroll
    for (unsigned t = 0; t < TOKENS_A_WARP; ++t) {
        unsigned at = token + warp * TOKENS_A_WARP + t;
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
            unsigned c = column + lane + j * WARP;
            if (at < terms.tokens && c < channels) {
                float value = sums[t][j] + terms.bias[c] + terms.place(at, c);
                x[(uint64_t(blockIdx.z) * terms.tokens + at) * channels + c] = from_float<T>(value);
            }
        }
    }
}

constexpr unsigned WARP_COLUMNS = 64;
constexpr unsigned TILE = 16;
constexpr unsigned SAMPLES = 8;

// Adds the lane's 16 channels of a row: 8 from where it starts and 8 from 32 later.
__device__ __forceinline__ void add_row(float (&to)[16], const float *row) {
#pragma unroll
    for (unsigned four = 0; four < 4; ++four) {
        float values[4];
        load<4>(values, row + four / 2 * 32 + four % 2 * 4);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) to[four * 4 + i] += values[i];
    }
}

// Block: 256 channels (x), the first tokens (y = 0) or a tile of 16 others, 8 samples (z). The rows of all come at once;
// what the samples have in common, weights and what is added to a token, stays in registers.
template <unsigned STEPS, class T>
__device__ __forceinline__ void patch_embed_tensor(
    T *x, const T *text, const T *rows, const T *weight, const Terms &terms, unsigned rows_a_sample, unsigned skip,
    unsigned samples) {
    constexpr unsigned K = STEPS * 16;
    unsigned channels = terms.channels, first_column = blockIdx.x * (THREADS / WARP) * WARP_COLUMNS;
    unsigned begin = blockIdx.z * SAMPLES, end = min(begin + SAMPLES, samples);
    if (blockIdx.y == 0) {
        unsigned last_column = min(first_column + THREADS / WARP * WARP_COLUMNS, channels);
        for (unsigned sample = begin; sample < end; ++sample) head(x, text, terms, sample, first_column, last_column);
        return;
    }
    unsigned first_token = terms.first + (blockIdx.y - 1) * TILE;
    // Each row 16 bytes longer than it is, so that rows that are read at once lie in different banks.
    SHARED_ARRAY(T, shared_rows, [SAMPLES][TILE][K + 8]);
    for (unsigned at = threadIdx.x; at < SAMPLES * TILE * K / 8; at += THREADS) {
        unsigned sample = at / (TILE * K / 8), row = at / (K / 8) % TILE, k = at % (K / 8) * 8;
        bool keep = begin + sample < end && first_token + row < terms.tokens;
        uint64_t place = uint64_t(begin + sample) * rows_a_sample + skip + first_token - terms.first + row;
        copy_16_async(&shared_rows[sample][row][k], keep ? rows + place * K + k : rows, keep);
    }
    commit_copies();
    unsigned base = first_column + threadIdx.x / WARP * WARP_COLUMNS, lane = threadIdx.x % WARP;
    bool mine = base < channels;
    unsigned g = lane / 4, t = lane % 4, column = mine ? base + t * 8 : 0, token = first_token + g;
    bool inside[2] = {mine && token < terms.tokens, mine && token + 8 < terms.tokens};
    base = mine ? base : 0;
    // Column n of the matrix's part j is channel base + j/4 32 + n/2 8 + j%4 2 + n%2.
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
    // Bias, level and position of the lane's two tokens.
    float added[2][16] = {};
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
        unsigned at = token + half * 8;
        if (inside[half]) {
            add_row(added[half], terms.bias + column);
            if (terms.level != nullptr) add_row(added[half], terms.level + uint64_t(terms.levels[at]) * channels + column);
            if (terms.position != nullptr) add_row(added[half], terms.position + uint64_t(at) * channels + column);
        }
    }
    wait_copies<0>();
    __syncthreads();
    if (!mine) return;
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

// Sums of d_x [B, L, C] over the tokens of each level of each sample: sums [B, S, C] in float, read once, in a fixed
// order. Those of level 0 also go to d_text [B, C] in T, if it is not null. Block: 16 bytes a lane of channels (x), one
// level (y) of one sample (z); 8 warps take every eighth token, and their sums are added in order.
constexpr unsigned SUM_WARPS = 8;

template <class T>
__device__ __forceinline__ void patch_embed_backward(
    float *sums, T *d_text, const T *d_x, const uint32_t *starts, unsigned tokens, unsigned channels) {
    constexpr unsigned WIDTH = WARP * PACK<T>;
    SHARED_ARRAY(float, partial, [SUM_WARPS][WIDTH]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // The last levels have most tokens, and begin first.
    unsigned levels = gridDim.y, level = levels - 1 - blockIdx.y;
    unsigned column = blockIdx.x * WIDTH + lane * PACK<T>, end = starts[level + 1];
    const T *from = d_x + uint64_t(blockIdx.z) * tokens * channels + column;
    float total[PACK<T>] = {};
    if (packs(d_x, channels)) {
        // Several tokens' numbers are on their way at once.
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
            if (level == 0 && d_text != nullptr) d_text[uint64_t(blockIdx.z) * channels + c] = from_float<T>(sum);
        }
    }
}

// The bias's gradient of each sample, [B, C]: the sums of all levels but the first.
KERNEL(
    patch_embed_bias, THREADS, float *d_bias, const float *sums, uint32_t levels, uint32_t channels) {
    unsigned c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    float sum = 0.0f;
    for (unsigned level = 1; level < levels; ++level) {
        sum += sums[(uint64_t(blockIdx.y) * levels + level) * channels + c];
    }
    d_bias[uint64_t(blockIdx.y) * channels + c] = sum;
}

#define PATCH_EMBED(T, suffix)                                                                                         \
    KERNEL(                                                                                                            \
        patch_embed_forward_##suffix, THREADS, T *x, const T *text, const T *rows, const T *weight, const float *bias, \
        const float *start, const float *level, const float *position, const uint32_t *levels, uint32_t tokens,        \
        uint32_t first, uint32_t channels, uint32_t depth, uint32_t rows_a_sample, uint32_t skip, uint32_t) {          \
        patch_embed_forward(                                                                                           \
            x, text, rows, weight, {bias, start, level, position, levels, tokens, first, channels}, depth,             \
            rows_a_sample, skip);                                                                                      \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        patch_embed_backward_##suffix, SUM_WARPS *WARP, float *sums, T *d_text, const T *d_x, const uint32_t *starts,  \
        uint32_t tokens, uint32_t channels) {                                                                          \
        patch_embed_backward(sums, d_text, d_x, starts, tokens, channels);                                             \
    }
PATCH_EMBED(float, f32)
PATCH_EMBED(bf16, bf16)
PATCH_EMBED(f16, f16)

#define PATCH_EMBED_TENSOR(T, suffix, steps, size)                                                                     \
    KERNEL(                                                                                                            \
        patch_embed_forward_##suffix##_##size, THREADS, T *x, const T *text, const T *rows, const T *weight,           \
        const float *bias, const float *start, const float *level, const float *position, const uint32_t *levels,      \
        uint32_t tokens, uint32_t first, uint32_t channels, uint32_t, uint32_t rows_a_sample, uint32_t skip,           \
        uint32_t samples) {                                                                                            \
        patch_embed_tensor<steps>(                                                                                     \
            x, text, rows, weight, {bias, start, level, position, levels, tokens, first, channels}, rows_a_sample,     \
            skip, samples);                                                                                            \
    }
PATCH_EMBED_TENSOR(bf16, bf16, 2, 32)
PATCH_EMBED_TENSOR(bf16, bf16, 4, 64)
PATCH_EMBED_TENSOR(f16, f16, 2, 32)
PATCH_EMBED_TENSOR(f16, f16, 4, 64)
