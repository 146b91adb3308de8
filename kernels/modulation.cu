// The shared modulation (`saln`) where layer_norm.cu has not folded it in: the gates, and the table that
// scale, shift and gate come from.
//
//     y = x (base + factor[level]) + shift[level]     base 1: scale and shift; base 0 without shift: a gate
//
// With dy for x, the same kernel without the shift gives dx. The gradients of factor and shift per sample
// come from modulation_backward in layer_norm.cu; modulation_add sums them over samples into the gradient of
// the table.
//
// Shapes: x, y [R, C] in T, y may be x; factor, shift: one row of C floats per level at row stride `stride`,
// and per sample at stride `sample_stride`, 0 if all samples share them.
// Threads: 256 per block, one warp per row, 16 bytes per lane where C allows.
// Memory: 2 sizeof(T) bytes per value, plus the level's rows from cache. No shared memory.
// Precision: computed in f32, rounded once; sums over samples in order.
// Reference: src/engine/ops/modulation/cpu.rs. Source: AdaLN (arXiv:2212.09748); docs/upstream.md, B7.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

template <class T>
__device__ __forceinline__ void modulate(
    T *y, const T *x, const float *factor, const float *shift, const uint32_t *levels, unsigned rows,
    unsigned channels, unsigned tokens, unsigned stride, unsigned sample_stride, float base) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels;
    T *to = y + uint64_t(row) * channels;
    uint64_t offset = uint64_t(levels[row % tokens]) * stride + uint64_t(row / tokens) * sample_stride;
    factor += offset;
    if (shift != nullptr) shift += offset;
    if (packs(from, channels) && packs(to, channels)) {
        for (unsigned c = lane * PACK<T>; c < channels; c += WARP * PACK<T>) {
            float values[PACK<T>];
            load<PACK<T>>(values, from + c);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                values[i] = values[i] * (base + factor[c + i]) + (shift == nullptr ? 0.0f : shift[c + i]);
            }
            store<PACK<T>>(to + c, values);
        }
    } else {
        for (unsigned c = lane; c < channels; c += WARP) {
            to[c] =
                from_float<T>(to_float(from[c]) * (base + factor[c]) + (shift == nullptr ? 0.0f : shift[c]));
        }
    }
}

// d_table[level, factor + c] += sum over samples of d[sample, level, 0, c], and the same of d[.., 1, c] at
// `shift`, if `shift` lies within the stride. One thread per channel (x) of a level (y). To keep the
// gradients of the samples separate, the caller passes the levels of all samples as the levels of one sample.
KERNEL(
    modulation_add, THREADS, float *d_table, const float *d, uint32_t samples, uint32_t channels,
    uint32_t stride, uint32_t factor, uint32_t shift) {
    unsigned c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    float d_factor = 0.0f, d_shift = 0.0f;
    for (unsigned sample = 0; sample < samples; ++sample) {
        const float *from = d + (uint64_t(sample) * gridDim.y + blockIdx.y) * 2 * channels + c;
        d_factor += from[0];
        d_shift += from[channels];
    }
    float *to = d_table + uint64_t(blockIdx.y) * stride + c;
    to[factor] += d_factor;
    if (shift < stride) to[shift] += d_shift;
}

// Each row of the table [S, C] concatenated with the last one, [S, 2C], repeated for each sample (z).
template <class T>
__device__ __forceinline__ void level_pairs(T *pairs, const T *table, unsigned levels, unsigned channels) {
    unsigned c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    T *to = pairs + (uint64_t(blockIdx.z) * levels + blockIdx.y) * 2 * channels + c;
    to[0] = table[uint64_t(blockIdx.y) * channels + c];
    to[channels] = table[uint64_t(levels - 1) * channels + c];
}

#define MODULATION(T, suffix)                                                                                \
    KERNEL(                                                                                                  \
        modulate_##suffix, THREADS, T *y, const T *x, const float *factor, const float *shift,               \
        const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens, uint32_t stride,          \
        uint32_t sample_stride, float base) {                                                                \
        modulate(y, x, factor, shift, levels, rows, channels, tokens, stride, sample_stride, base);          \
    }                                                                                                        \
    KERNEL(level_pairs_##suffix, THREADS, T *pairs, const T *table, uint32_t levels, uint32_t channels) {    \
        level_pairs(pairs, table, levels, channels);                                                         \
    }
MODULATION(float, f32)
MODULATION(bf16, bf16)
MODULATION(f16, f16)
