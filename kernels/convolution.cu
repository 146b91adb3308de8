// The windows of convolutions as the rows of a matrix, which is then multiplied by the filters: of the map as it is, with a
// border of one zero; of every second pixel, with zeros past the end; of the map with each pixel twice in either direction,
// which is never made itself; or, for filters of one pixel, the pixels. Every number x is split into parts that tensor cores
// take, each being what the parts before it have left of x, rounded to T:
//
//     x = p0 + p1 (+ p2),    p0 = T(x),  p1 = T(x - p0),  p2 = T(x - p0 - p1)
//
// Two parts of f16 hold 22 bits of a number below 65504, to 2^-25 at the smallest; three of bf16 all 24 of any.
//
// map: [B, H, H, C], or with `planes` [B, C, H, H]; rows: [count, PARTS, width], of which row r is the window of pixel first +
// r of the B H' H' that come out, [size, size, C] and zeros up to `width`, once for each part. What is at (y, x) of H up by
// H up comes from (y / up, x / up); the window of (y, x) begins at (stride y - before, stride x - before). Source:
// torch.nn.Conv2d, Upsample.
//
// Threads: one warp a row, 8 rows a block; 8 numbers a lane where C allows, so that parts are stored 16 bytes at a time, else
// one. Bytes moved a number of a row: 4, mostly from the cache, and PARTS sizeof(T) written. No shared memory.
//
// And the filters, once when they are placed: times a factor, in the order of a window, split into parts in the same way, a
// number a thread.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

// Into how many numbers of a type one of float is split.
template <class T> constexpr unsigned PARTS = 0;
template <> constexpr unsigned PARTS<f16> = 2;
template <> constexpr unsigned PARTS<bf16> = 3;

struct Window {
    unsigned side, side_out, channels, up, stride, before, size;
};

// Stores the parts of N numbers, `width` apart. What is too large for T leaves an infinity, whose rest is not finite either.
template <class T, unsigned N> __device__ __forceinline__ void store_parts(T *to, float (&rest)[N], unsigned width) {
#pragma unroll
    for (unsigned part = 0; part < PARTS<T>; ++part) {
        Pack<T, N> pack;
#pragma unroll
        for (unsigned i = 0; i < N; ++i) {
            pack.value[i] = from_float<T>(rest[i]);
            rest[i] -= to_float(pack.value[i]);
        }
        *reinterpret_cast<Pack<T, N> *>(to + part * width) = pack;
    }
}

template <class T>
__device__ __forceinline__ void convolution_windows(
    T *rows, const float *map, Window window, unsigned first, unsigned count, unsigned width, bool planes) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= count) return;
    unsigned pixel = first + row, side = window.side, channels = window.channels, taps = window.size * window.size;
    // A pixel stands once or twice: shifting is dividing.
    unsigned shift = window.up - 1, limit = side * window.up;
    unsigned left = pixel % window.side_out * window.stride - window.before;
    unsigned top = pixel / window.side_out % window.side_out * window.stride - window.before;
    uint64_t area = uint64_t(side) * side;
    map += uint64_t(pixel / window.side_out / window.side_out) * area * channels;
    rows += uint64_t(row) * width * PARTS<T>;
    // Where the pixel under a tap is; false: outside, where all is zero. One left of 0 is far beyond the end.
    auto find = [&](unsigned tap, uint64_t &place) {
        unsigned y = top + tap / 3, x = left + tap % 3;
        place = uint64_t(y >> shift) * side + (x >> shift);
        return tap < taps && y < limit && x < limit;
    };
    constexpr unsigned N = PACK<T>;
    if (!planes && channels % N == 0 && packs(map, channels) && packs(rows, width)) {
        // Taps are counted along: a division a number would cost more than what is done with it.
        unsigned packs_a_tap = channels / N, tap = 0, pack = lane;
        for (unsigned at = lane * N; at < width; at += WARP * N, pack += WARP) {
            for (; pack >= packs_a_tap; ++tap) pack -= packs_a_tap;
            float values[N] = {};
            uint64_t place;
            if (find(tap, place)) {
                const float *from = map + place * channels + pack * N;
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
            uint64_t place;
            if (find(tap, place)) value[0] = map[planes ? c * area + place : place * channels + c];
            store_parts<T>(rows + at, value, width);
        }
    }
}

// parts: for each part p, PARTS - p times the same [width, row], of which number (w, o) is that of filter o at w of its window
// [taps, I]; zeros where there is none. given: (tap, i, o) at tap * by_tap + i * by_input + o * by_output.
template <class T>
__device__ __forceinline__ void convolution_filters(
    T *parts, const float *given, float factor, unsigned taps, unsigned inputs, unsigned outputs, unsigned width,
    unsigned row, unsigned by_tap, unsigned by_input, unsigned by_output) {
    uint64_t at = uint64_t(blockIdx.x) * THREADS + threadIdx.x, size = uint64_t(width) * row;
    if (at >= size) return;
    unsigned w = at / row, output = at % row, tap = w / inputs, input = w % inputs;
    float rest = 0.0f;
    if (tap < taps && output < outputs) {
        rest = given[uint64_t(tap) * by_tap + uint64_t(input) * by_input + uint64_t(output) * by_output] * factor;
    }
#pragma unroll
    for (unsigned part = 0; part < PARTS<T>; ++part) {
        T rounded = from_float<T>(rest);
        rest -= to_float(rounded);
#pragma unroll
        for (unsigned copy = part; copy < PARTS<T>; ++copy, at += size) parts[at] = rounded;
    }
}

#define CONVOLUTION(T, suffix)                                                                                         \
    KERNEL(                                                                                                            \
        convolution_windows_##suffix, THREADS, T *rows, const float *map, uint32_t side, uint32_t side_out,            \
        uint32_t channels, uint32_t up, uint32_t stride, uint32_t before, uint32_t size, uint32_t first,               \
        uint32_t count, uint32_t width, uint32_t planes) {                                                             \
        Window window = {side, side_out, channels, up, stride, before, size};                                          \
        convolution_windows(rows, map, window, first, count, width, planes != 0);                                      \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        convolution_filters_##suffix, THREADS, T *parts, const float *given, float factor, uint32_t taps,              \
        uint32_t inputs, uint32_t outputs, uint32_t width, uint32_t row, uint32_t by_tap, uint32_t by_input,           \
        uint32_t by_output) {                                                                                          \
        convolution_filters(                                                                                           \
            parts, given, factor, taps, inputs, outputs, width, row, by_tap, by_input, by_output);                     \
    }
CONVOLUTION(f16, f16)
CONVOLUTION(bf16, bf16)
