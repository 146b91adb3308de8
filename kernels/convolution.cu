// The windows of 3x3 convolutions as the rows of a matrix, which is then multiplied by the filters: of the map as it is, with
// a border of one zero; of every second pixel, with zeros past the end; or of the map with each pixel twice in either
// direction, which is never made itself.
//
// map: [B, H, H, C], or with `planes` [B, C, H, H]; rows: [count, width], of which row r is the window of pixel first + r
// of the B H' H' that come out, [3, 3, C] and zeros up to `width`. What is at (y, x) of H up by H up comes from (y / up,
// x / up); the window of (y, x) begins at (stride y - before, stride x - before). Source: torch.nn.Conv2d, Upsample.
//
// Threads: one warp a row, 8 rows a block; 16 bytes a lane where C allows, else one number. Bytes moved a number of a row:
// 2 sizeof(T), of which those read come mostly from the cache. No shared memory.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;

struct Window {
    unsigned side, side_out, channels, up, stride, before;
};

template <class T>
__device__ __forceinline__ void
convolution_windows(T *rows, const T *map, Window window, unsigned first, unsigned count, unsigned width, bool planes) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= count) return;
    unsigned pixel = first + row, side = window.side, channels = window.channels, limit = side * window.up;
    unsigned left = pixel % window.side_out * window.stride - window.before;
    unsigned top = pixel / window.side_out % window.side_out * window.stride - window.before;
    uint64_t area = uint64_t(side) * side;
    map += uint64_t(pixel / window.side_out / window.side_out) * area * channels;
    rows += uint64_t(row) * width;
    // Where the window's number `at` comes from; false: from outside, where all is zero. One left of 0 is far beyond the end.
    auto find = [&](unsigned at, uint64_t &from) {
        unsigned tap = at / channels, c = at - tap * channels, y = top + tap / 3, x = left + tap % 3;
        if (tap >= 9 || y >= limit || x >= limit) return false;
        uint64_t place = uint64_t(y / window.up) * side + x / window.up;
        from = planes ? c * area + place : place * channels + c;
        return true;
    };
    if (!planes && packs(map, channels) && packs(rows, width)) {
        for (unsigned at = lane * PACK<T>; at < width; at += WARP * PACK<T>) {
            Pack<T, PACK<T>> pack;
            uint64_t from;
            if (find(at, from)) {
                pack = *reinterpret_cast<const Pack<T, PACK<T>> *>(map + from);
            } else {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) pack.value[i] = narrow<T>(0.0f);
            }
            *reinterpret_cast<Pack<T, PACK<T>> *>(rows + at) = pack;
        }
    } else {
        for (unsigned at = lane; at < width; at += WARP) {
            uint64_t from;
            rows[at] = find(at, from) ? map[from] : narrow<T>(0.0f);
        }
    }
}

#define CONVOLUTION(T, suffix)                                                                                         \
    KERNEL(                                                                                                            \
        convolution_windows_##suffix, THREADS, T *rows, const T *map, uint32_t side, uint32_t side_out,                \
        uint32_t channels, uint32_t up, uint32_t stride, uint32_t before, uint32_t first, uint32_t count,              \
        uint32_t width, uint32_t planes) {                                                                             \
        Window window = {side, side_out, channels, up, stride, before};                                                \
        convolution_windows(rows, map, window, first, count, width, planes != 0);                                      \
    }
CONVOLUTION(float, f32)
CONVOLUTION(bf16, bf16)
