// Group norm of channels-last maps, optionally followed by SiLU:
//
//     y = f((x - mean) / sqrt(variance + epsilon) scale[c] + shift[c]),    f(u) = u or u / (1 + exp(-u))
//
// with mean and variance over all pixels and the channels of a group of a sample.
//
// Shapes: x, y [B, P, C] in float, C a multiple of the groups G and of 4, y may be x; scale, shift [C];
// partial [B, N, G, 2]: the sums of x - x0 and (x - x0)^2 over one of N parts of the pixels, x0 the group's
// first value; statistics [B, G, 2] (mean, 1 / deviation).
// Threads: three kernels. Sums, split over N parts: a block of 256 per part, 4 channels per thread, and as
// many pixels at a time as there are threads for. Statistics: one warp per group. Apply: 4 channels per
// thread.
// Memory: 12 bytes per value. Sums: max(C, 1024) pairs of floats in shared memory.
// Precision: f32. Sums are shifted by x0, so that the variance, a difference, stays accurate where the mean
// is far from 0. Their order depends on P, C and N alone.
// Reference: src/engine/ops/group_norm/cpu.rs. Source: group norm (arXiv:1803.08494); torch.nn.GroupNorm,
// SiLU.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
// Values in 16 bytes.
constexpr unsigned N = PACK<float>;

struct Sizes {
    unsigned pixels, channels, groups;
};

__device__ __forceinline__ void
group_norm_sums(float *partial, const float *x, Sizes sizes, unsigned pixels_per_part) {
    // [lanes, C, 2]
    DYNAMIC_SHARED(float, sums);
    unsigned channels = sizes.channels, packs_per_pixel = channels / N, size = channels / sizes.groups;
    unsigned lanes = packs_per_pixel < THREADS ? THREADS / packs_per_pixel : 1;
    unsigned lane = packs_per_pixel < THREADS ? threadIdx.x / packs_per_pixel : 0;
    unsigned first = packs_per_pixel < THREADS ? threadIdx.x % packs_per_pixel : threadIdx.x;
    const float *sample = x + uint64_t(blockIdx.y) * sizes.pixels * channels;
    unsigned begin = blockIdx.x * pixels_per_part, end = min(begin + pixels_per_part, sizes.pixels);
    for (unsigned pack = first; lane < lanes && pack < packs_per_pixel; pack += THREADS) {
        float origin[N], sum[N] = {}, square[N] = {};
#pragma unroll
        for (unsigned i = 0; i < N; ++i) origin[i] = sample[(pack * N + i) / size * size];
        for (unsigned pixel = begin + lane; pixel < end; pixel += lanes) {
            float values[N];
            load<N>(values, sample + uint64_t(pixel) * channels + pack * N);
#pragma unroll
            for (unsigned i = 0; i < N; ++i) {
                float difference = values[i] - origin[i];
                sum[i] += difference;
                square[i] += difference * difference;
            }
        }
#pragma unroll
        for (unsigned i = 0; i < N; ++i) {
            float *to = sums + (uint64_t(lane) * channels + pack * N + i) * 2;
            to[0] = sum[i];
            to[1] = square[i];
        }
    }
    __syncthreads();
    partial += (uint64_t(blockIdx.y) * gridDim.x + blockIdx.x) * sizes.groups * 2;
    for (unsigned at = threadIdx.x; at < sizes.groups * 2; at += THREADS) {
        unsigned group = at / 2;
        float total = 0.0f;
        for (unsigned from = 0; from < lanes; ++from) {
            for (unsigned c = group * size; c < (group + 1) * size; ++c) {
                total += sums[(uint64_t(from) * channels + c) * 2 + at % 2];
            }
        }
        partial[at] = total;
    }
}

__device__ __forceinline__ void group_norm_statistics(
    float *statistics, const float *partial, const float *x, Sizes sizes, unsigned samples, unsigned parts,
    float epsilon) {
    unsigned item = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps return: the sums below are within a warp.
    if (item >= samples * sizes.groups) return;
    unsigned sample = item / sizes.groups, group = item % sizes.groups, size = sizes.channels / sizes.groups;
    float sum = 0.0f, square = 0.0f;
    for (unsigned part = lane; part < parts; part += WARP) {
        const float *from = partial + ((uint64_t(sample) * parts + part) * sizes.groups + group) * 2;
        sum += from[0];
        square += from[1];
    }
    float share = 1.0f / (float(sizes.pixels) * float(size));
    float offset = warp_sum(sum) * share;
    float variance = fmaxf(warp_sum(square) * share - offset * offset, 0.0f);
    if (lane == 0) {
        float origin = x[uint64_t(sample) * sizes.pixels * sizes.channels + group * size];
        statistics[2 * uint64_t(item)] = origin + offset;
        statistics[2 * uint64_t(item) + 1] = rsqrtf(variance + epsilon);
    }
}

template <bool SILU>
__device__ __forceinline__ void group_norm_apply(
    float *y, const float *x, const float *statistics, const float *scale, const float *shift, Sizes sizes) {
    uint64_t share = uint64_t(sizes.pixels) * sizes.channels;
    uint64_t at = (uint64_t(blockIdx.x) * THREADS + threadIdx.x) * N;
    if (at >= share) return;
    unsigned c = unsigned(at % sizes.channels), size = sizes.channels / sizes.groups;
    statistics += uint64_t(blockIdx.y) * sizes.groups * 2;
    at += blockIdx.y * share;
    float values[N];
    load<N>(values, x + at);
#pragma unroll
    for (unsigned i = 0; i < N; ++i) {
        const float *mean_rstd = statistics + (c + i) / size * 2;
        float u = (values[i] - mean_rstd[0]) * mean_rstd[1] * scale[c + i] + shift[c + i];
        values[i] = SILU ? u * __fdividef(1.0f, 1.0f + expf(-u)) : u;
    }
    store<N>(y + at, values);
}

KERNEL(
    group_norm_sums_f32, THREADS, float *partial, const float *x, uint32_t pixels, uint32_t channels,
    uint32_t groups, uint32_t pixels_per_part) {
    group_norm_sums(partial, x, {pixels, channels, groups}, pixels_per_part);
}
KERNEL(
    group_norm_statistics_f32, THREADS, float *statistics, const float *partial, const float *x,
    uint32_t pixels, uint32_t channels, uint32_t groups, uint32_t samples, uint32_t parts, float epsilon) {
    group_norm_statistics(statistics, partial, x, {pixels, channels, groups}, samples, parts, epsilon);
}
KERNEL(
    group_norm_plain_f32, THREADS, float *y, const float *x, const float *statistics, const float *scale,
    const float *shift, uint32_t pixels, uint32_t channels, uint32_t groups) {
    group_norm_apply<false>(y, x, statistics, scale, shift, {pixels, channels, groups});
}
KERNEL(
    group_norm_silu_f32, THREADS, float *y, const float *x, const float *statistics, const float *scale,
    const float *shift, uint32_t pixels, uint32_t channels, uint32_t groups) {
    group_norm_apply<true>(y, x, statistics, scale, shift, {pixels, channels, groups});
}
