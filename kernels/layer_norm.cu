// Layer norm without learned scale or shift, with the modulation of each token's level folded in:
//
//     n = (x - mean) / sqrt(variance + epsilon),    y = n (1 + scale[level]) + shift[level]    (or y = n)
//
// x, y: [R, C] in T; statistics: [R, 2] (mean, 1/deviation) in float; scale, shift: rows of float, one a level, `stride`
// numbers apart. Sums in float, in a fixed order. Source: upstream.md, B; the backward is derived in the op's file.
//
// Threads: one warp a row, 8 rows a block. Where a row is a multiple of 16 bytes and fits, it is held in registers, so
// that it is read once: forward 2 sizeof(T) bytes a number, backward 3 sizeof(T). No shared memory.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;
// Numbers of a row that one lane can hold.
constexpr unsigned HELD = 64;

struct Modulation {
    const float *scale, *shift;
};

template <class T> struct Rows {
    static constexpr unsigned PACKS = HELD / PACK<T>;
    // The place of pack `at` of this lane.
    static __device__ __forceinline__ unsigned place(unsigned at) { return (at * WARP + threadIdx.x % WARP) * PACK<T>; }
};

__device__ __forceinline__ Modulation
modulation_of(const float *scale, const float *shift, const uint32_t *levels, unsigned row, unsigned tokens, unsigned stride) {
    if (scale == nullptr) return {nullptr, nullptr};
    uint64_t from = uint64_t(levels[row % tokens]) * stride;
    return {scale + from, shift == nullptr ? nullptr : shift + from};
}

template <class T>
__device__ __forceinline__ void layer_norm_forward(
    T *y, float *statistics, const T *x, const float *scale, const float *shift, const uint32_t *levels, unsigned rows,
    unsigned channels, unsigned tokens, unsigned stride, float epsilon) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps leave: the sums below are within one.
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels;
    T *to = y + uint64_t(row) * channels;
    Modulation change = modulation_of(scale, shift, levels, row, tokens, stride);
    float share = 1.0f / float(channels), mean, inverse;

    if (packs(from, channels) && packs(to, channels) && channels <= HELD * WARP) {
        float held[Rows<T>::PACKS][PACK<T>];
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (unsigned at = 0; at < Rows<T>::PACKS; ++at) {
            if (Rows<T>::place(at) < channels) {
                load<PACK<T>>(held[at], from + Rows<T>::place(at));
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) sum += held[at][i];
            }
        }
        mean = warp_sum(sum) * share;
#pragma unroll
        for (unsigned at = 0; at < Rows<T>::PACKS; ++at) {
            if (Rows<T>::place(at) < channels) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    held[at][i] -= mean;
                    squares += held[at][i] * held[at][i];
                }
            }
        }
        inverse = rsqrtf(warp_sum(squares) * share + epsilon);
#pragma unroll
        for (unsigned at = 0; at < Rows<T>::PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    held[at][i] *= inverse;
                    if (change.scale != nullptr) {
                        held[at][i] = held[at][i] * (1.0f + change.scale[c + i]) + change.shift[c + i];
                    }
                }
                store<PACK<T>>(to + c, held[at]);
            }
        }
    } else {
        float sum = 0.0f, squares = 0.0f;
        for (unsigned c = lane; c < channels; c += WARP) sum += widen(from[c]);
        mean = warp_sum(sum) * share;
        for (unsigned c = lane; c < channels; c += WARP) {
            float value = widen(from[c]) - mean;
            squares += value * value;
        }
        inverse = rsqrtf(warp_sum(squares) * share + epsilon);
        for (unsigned c = lane; c < channels; c += WARP) {
            float value = (widen(from[c]) - mean) * inverse;
            if (change.scale != nullptr) value = value * (1.0f + change.scale[c]) + change.shift[c];
            to[c] = narrow<T>(value);
        }
    }
    if (lane == 0) {
        statistics[2 * uint64_t(row)] = mean;
        statistics[2 * uint64_t(row) + 1] = inverse;
    }
}

// dx = (g - mean(g) - n mean(g n)) / deviation with g = dy (1 + scale).
template <class T>
__device__ __forceinline__ void layer_norm_backward(
    T *dx, const T *dy, const T *x, const float *statistics, const float *scale, const uint32_t *levels, unsigned rows,
    unsigned channels, unsigned tokens, unsigned stride) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels, *d_from = dy + uint64_t(row) * channels;
    T *to = dx + uint64_t(row) * channels;
    const float *factor = modulation_of(scale, nullptr, levels, row, tokens, stride).scale;
    float mean = statistics[2 * uint64_t(row)], inverse = statistics[2 * uint64_t(row) + 1];
    float share = 1.0f / float(channels), sum = 0.0f, along = 0.0f;

    if (packs(from, channels) && packs(d_from, channels) && packs(to, channels) && channels <= HELD / 2 * WARP) {
        constexpr unsigned PACKS = Rows<T>::PACKS / 2;
        float n[PACKS][PACK<T>], g[PACKS][PACK<T>];
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
                load<PACK<T>>(n[at], from + c);
                load<PACK<T>>(g[at], d_from + c);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    n[at][i] = (n[at][i] - mean) * inverse;
                    if (factor != nullptr) g[at][i] *= 1.0f + factor[c + i];
                    sum += g[at][i];
                    along += g[at][i] * n[at][i];
                }
            }
        }
        sum = warp_sum(sum) * share;
        along = warp_sum(along) * share;
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) g[at][i] = (g[at][i] - sum - n[at][i] * along) * inverse;
                store<PACK<T>>(to + c, g[at]);
            }
        }
    } else {
        for (unsigned c = lane; c < channels; c += WARP) {
            float g = widen(d_from[c]) * (factor == nullptr ? 1.0f : 1.0f + factor[c]);
            sum += g;
            along += g * (widen(from[c]) - mean) * inverse;
        }
        sum = warp_sum(sum) * share;
        along = warp_sum(along) * share;
        for (unsigned c = lane; c < channels; c += WARP) {
            float g = widen(d_from[c]) * (factor == nullptr ? 1.0f : 1.0f + factor[c]);
            float n = (widen(from[c]) - mean) * inverse;
            to[c] = narrow<T>((g - sum - n * along) * inverse);
        }
    }
}

// The modulation's gradient, for each sample and level: d_scale = sum of dy n and d_shift = sum of dy over the sample's
// tokens of the level, in the order of the tokens. Block: 128 channels of one level (y) of one sample (z). `starts` are
// the first tokens of the levels and, last, the number of tokens. Output [B, levels, stride] in float, of which the C
// numbers from d_scale and from d_shift on are written.
constexpr unsigned COLUMNS = 128;

template <class T>
__device__ __forceinline__ void modulation_backward(
    float *d_modulation, const T *dy, const T *x, const float *statistics, const uint32_t *starts, unsigned channels,
    unsigned tokens, unsigned stride, unsigned scale, unsigned shift) {
    unsigned c = blockIdx.x * COLUMNS + threadIdx.x, level = blockIdx.y, sample = blockIdx.z;
    if (c >= channels) return;
    float d_scale = 0.0f, d_shift = 0.0f;
    for (unsigned token = starts[level]; token < starts[level + 1]; ++token) {
        uint64_t row = uint64_t(sample) * tokens + token;
        float d = widen(dy[row * channels + c]);
        d_scale += d * (widen(x[row * channels + c]) - statistics[2 * row]) * statistics[2 * row + 1];
        d_shift += d;
    }
    float *to = d_modulation + (uint64_t(sample) * gridDim.y + level) * stride + c;
    to[scale] = d_scale;
    to[shift] = d_shift;
}

#define LAYER_NORM(T, suffix)                                                                                          \
    KERNEL(                                                                                                            \
        layer_norm_forward_##suffix, THREADS, T *y, float *statistics, const T *x, const float *scale,                 \
        const float *shift, const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens,                 \
        uint32_t stride, float epsilon) {                                                                              \
        layer_norm_forward(y, statistics, x, scale, shift, levels, rows, channels, tokens, stride, epsilon);           \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        layer_norm_backward_##suffix, THREADS, T *dx, const T *dy, const T *x, const float *statistics,                \
        const float *scale, const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens,                 \
        uint32_t stride) {                                                                                             \
        layer_norm_backward(dx, dy, x, statistics, scale, levels, rows, channels, tokens, stride);                     \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        modulation_backward_##suffix, COLUMNS, float *d_modulation, const T *dy, const T *x, const float *statistics,  \
        const uint32_t *starts, uint32_t channels, uint32_t tokens, uint32_t stride, uint32_t scale, uint32_t shift) { \
        modulation_backward(d_modulation, dy, x, statistics, starts, channels, tokens, stride, scale, shift);          \
    }
LAYER_NORM(float, f32)
LAYER_NORM(bf16, bf16)
LAYER_NORM(f16, f16)
