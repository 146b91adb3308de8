// im2col for convolutions in f32 accuracy on tensor cores: windows become rows of a matrix, split into 16-bit
// parts, which cuBLASLt then multiplies by the filters, split once in the same way. Every value x is
//
//     x = p0 + p1 (+ p2),    p0 = T(x),    p1 = T(x - p0),    p2 = T(x - p0 - p1)
//
// Two parts of f16 hold 22 bits of a value below 65504, down to 2^-25; three of bf16 hold all 24 bits of any
// value.
//
// Windows: 3x3 with a border of one zero; with stride 2 and zeros past the end; of the map upsampled twice
// (nearest), which is never materialized; or 1x1. The value at (y, x) of the map upsampled by `up` is that of
// (y / up, x / up); the window of (y, x) starts at (stride y - padding, stride x - padding).
// Shapes: map [B, H, H, C], or with `channels_first` [B, C, H, H]; rows [count, PARTS, width], of which row r
// is the window of pixel first + r of the B H' H' outputs, [size, size, C] padded with zeros to `width`, once
// per part.
// Threads: one warp per row, 8 rows per block; 8 values per lane where C allows, so that parts are stored 16
// bytes at a time, else one. Filters: one value per thread.
// Memory: per value of a row 4 bytes read, mostly from cache, and PARTS sizeof(T) written. No shared memory.
// Precision: the split is exact up to the last part's rounding; no sums.
// Reference: src/engine/ops/convolution/cpu.rs. Source: torch.nn.Conv2d, Upsample; split of f32 into 16-bit
// parts (arXiv:1904.06376, arXiv:2203.03341).
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

// How many values of T an f32 is split into.
template <class T> constexpr unsigned PARTS = 0;
template <> constexpr unsigned PARTS<f16> = 2;
template <> constexpr unsigned PARTS<bf16> = 3;

struct Window {
    unsigned side, side_out, channels, up, stride, padding, size;
};

// Stores the parts of N values at stride `width`. A value too large for T becomes an infinity, and its
// remainder is not finite either, so that an overflow shows in the result.
template <class T, unsigned N>
__device__ __forceinline__ void store_parts(T *to, float (&remainder)[N], unsigned width) {
#pragma unroll
    for (unsigned part = 0; part < PARTS<T>; ++part) {
        Pack<T, N> pack;
#pragma unroll
        for (unsigned i = 0; i < N; ++i) {
            pack.value[i] = from_float<T>(remainder[i]);
            remainder[i] -= to_float(pack.value[i]);
        }
        *reinterpret_cast<Pack<T, N> *>(to + part * width) = pack;
    }
}

template <class T>
__device__ __forceinline__ void convolution_windows(
    T *rows, const float *map, Window window, unsigned first, unsigned count, unsigned width,
    bool channels_first) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= count) return;
    unsigned pixel = first + row, side = window.side, channels = window.channels;
    unsigned taps = window.size * window.size;
    // `up` is 1 or 2: a division by it is a shift.
    unsigned shift = window.up - 1, limit = side * window.up;
    unsigned left = pixel % window.side_out * window.stride - window.padding;
    unsigned top = pixel / window.side_out % window.side_out * window.stride - window.padding;
    uint64_t area = uint64_t(side) * side;
    map += uint64_t(pixel / window.side_out / window.side_out) * area * channels;
    rows += uint64_t(row) * width * PARTS<T>;
    // The pixel under a tap; false outside of the map, where all values are zero. -1 wraps to far past the
    // end.
    auto locate = [&](unsigned tap, uint64_t &index) {
        unsigned y = top + tap / 3, x = left + tap % 3;
        index = uint64_t(y >> shift) * side + (x >> shift);
        return tap < taps && y < limit && x < limit;
    };
    constexpr unsigned N = PACK<T>;
    if (!channels_first && channels % N == 0 && packs(map, channels) && packs(rows, width)) {
        // Taps are counted incrementally: a division per value would cost more than the copy.
        unsigned packs_per_tap = channels / N, tap = 0, pack = lane;
        for (unsigned at = lane * N; at < width; at += WARP * N, pack += WARP) {
            for (; pack >= packs_per_tap; ++tap) pack -= packs_per_tap;
            float values[N] = {};
            uint64_t index;
            if (locate(tap, index)) {
                const float *from = map + index * channels + pack * N;
#pragma unroll
                for (unsigned half = 0; half < N; half += 4) {
                    float four[4];
                    load<4>(four, from + half);
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) values[half + i] = four[i];
                }
            }
            store_parts<T>(rows + at, values, width);
        }
    } else {
        for (unsigned at = lane; at < width; at += WARP) {
            unsigned tap = at / channels, c = at - tap * channels;
            float value[1] = {};
            uint64_t index;
            if (locate(tap, index)) value[0] = map[channels_first ? c * area + index : index * channels + c];
            store_parts<T>(rows + at, value, width);
        }
    }
}

// parts: per part p, PARTS - p copies of the same [width, row] matrix, whose element (w, o) is the value of
// filter o at w of its window [taps, I]; zeros in the padding. filters: element (tap, i, o) at tap by_tap + i
// by_input + o by_output.
template <class T>
__device__ __forceinline__ void convolution_filters(
    T *parts, const float *filters, float factor, unsigned taps, unsigned inputs, unsigned outputs,
    unsigned width, unsigned row, unsigned by_tap, unsigned by_input, unsigned by_output) {
    uint64_t at = uint64_t(blockIdx.x) * THREADS + threadIdx.x, size = uint64_t(width) * row;
    if (at >= size) return;
    unsigned w = at / row, output = at % row, tap = w / inputs, input = w % inputs;
    float remainder = 0.0f;
    if (tap < taps && output < outputs) {
        remainder =
            filters[uint64_t(tap) * by_tap + uint64_t(input) * by_input + uint64_t(output) * by_output] *
            factor;
    }
#pragma unroll
    for (unsigned part = 0; part < PARTS<T>; ++part) {
        T rounded = from_float<T>(remainder);
        remainder -= to_float(rounded);
#pragma unroll
        for (unsigned copy = part; copy < PARTS<T>; ++copy, at += size) parts[at] = rounded;
    }
}

#define CONVOLUTION(T, suffix)                                                                               \
    KERNEL(                                                                                                  \
        convolution_windows_##suffix, THREADS, T *rows, const float *map, uint32_t side, uint32_t side_out,  \
        uint32_t channels, uint32_t up, uint32_t stride, uint32_t padding, uint32_t size, uint32_t first,    \
        uint32_t count, uint32_t width, uint32_t channels_first) {                                           \
        Window window = {side, side_out, channels, up, stride, padding, size};                               \
        convolution_windows(rows, map, window, first, count, width, channels_first != 0);                    \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        convolution_filters_##suffix, THREADS, T *parts, const float *filters, float factor, uint32_t taps,  \
        uint32_t inputs, uint32_t outputs, uint32_t width, uint32_t row, uint32_t by_tap, uint32_t by_input, \
        uint32_t by_output) {                                                                                \
        convolution_filters(                                                                                 \
            parts, filters, factor, taps, inputs, outputs, width, row, by_tap, by_input, by_output);         \
    }
CONVOLUTION(f16, f16)
CONVOLUTION(bf16, bf16)
