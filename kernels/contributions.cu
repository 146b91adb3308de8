// Gradients of biases and embedding tables from the rows of a backward pass, and small arithmetic on vectors.
//
//     column_sum    sums[c] (+)= sum over rows of d[row, first + c]
//     sum_samples   sum[n] (+)= sum over samples of weight[sample] d[sample, n]
//     gather_sum    table[k, n] += sum over the rows r with index[r] = k of d[r, n]
//     scale         to[sample, n] = factor weight[sample] from[sample, n]
//     add_scaled    y += factor x
//     fill          y = value
//
// Shapes: d in T; gradients in float, optionally accumulated.
// Threads: 256 per block; see each kernel.
// Memory: each input is read once, each output written once (and read once where it is added to).
// Precision: f32 sums. Determinism: no atomics, one order per sum.
// Reference: src/engine/autograd/contributions/cpu.rs.
#include "elementwise.cuh"

// column_sum is split-K in two launches: block (x, y) sums 32 columns of the rows of part y; a second launch
// sums the parts as rows. Each of 8 warps takes every eighth row, and their sums are added in order.
constexpr unsigned SUM_ROWS = 8;

// Adds the sums of the warps in order, one column per lane. The result is valid in warp 0.
__device__ __forceinline__ float reduce_warps(float sum, float (&partial)[SUM_ROWS][WARP]) {
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
#pragma unroll
        for (unsigned other = 1; other < SUM_ROWS; ++other) sum += partial[other][lane];
    }
    return sum;
}

template <class T>
__device__ __forceinline__ void column_sum(
    float *sums, const T *d, unsigned rows, unsigned columns, unsigned width, unsigned first,
    unsigned rows_per_part, unsigned accumulate) {
    SHARED_ARRAY(float, partial, [SUM_ROWS][WARP]);
    unsigned warp = threadIdx.x / WARP, c = blockIdx.x * WARP + threadIdx.x % WARP;
    unsigned begin = blockIdx.y * rows_per_part, end = min(rows, begin + rows_per_part);
    float sum = 0.0f;
    if (c < columns) {
        for (unsigned row = begin + warp; row < end; row += SUM_ROWS) {
            sum += to_float(d[uint64_t(row) * width + first + c]);
        }
    }
    sum = reduce_warps(sum, partial);
    if (warp == 0 && c < columns) {
        float *to = sums + uint64_t(blockIdx.y) * columns + c;
        *to = accumulate != 0 ? *to + sum : sum;
    }
}

// `order`: the tokens of table row 0, of row 1, ...; `starts[k]`: where those of row k begin. All samples
// share them. Block: 32 columns (x) of one table row (y).
template <class T>
__device__ __forceinline__ void gather_sum(
    float *table, const T *d, const uint32_t *starts, const uint32_t *order, unsigned samples,
    unsigned tokens, unsigned columns) {
    SHARED_ARRAY(float, partial, [SUM_ROWS][WARP]);
    unsigned warp = threadIdx.x / WARP, c = blockIdx.x * WARP + threadIdx.x % WARP;
    unsigned begin = starts[blockIdx.y], count = starts[blockIdx.y + 1] - begin;
    float sum = 0.0f;
    if (c < columns) {
        for (unsigned sample = 0; sample < samples; ++sample) {
            for (unsigned at = warp; at < count; at += SUM_ROWS) {
                sum += to_float(d[(uint64_t(sample) * tokens + order[begin + at]) * columns + c]);
            }
        }
    }
    sum = reduce_warps(sum, partial);
    if (warp == 0 && c < columns) table[uint64_t(blockIdx.y) * columns + c] += sum;
}

// Sample stride `stride`. Four values per thread if aligned.
template <class To, class From>
__device__ __forceinline__ void sum_samples(
    To *sum, const From *d, const float *weights, uint64_t count, uint64_t stride, unsigned samples,
    unsigned accumulate) {
    constexpr unsigned VALUES = 4;
    uint64_t thread = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x;
    if (count % VALUES == 0 && stride % VALUES == 0 &&
        reinterpret_cast<uintptr_t>(d) % (VALUES * sizeof(From)) == 0 &&
        reinterpret_cast<uintptr_t>(sum) % (VALUES * sizeof(To)) == 0) {
        uint64_t at = thread * VALUES;
        if (at >= count) return;
        float total[VALUES] = {}, values[VALUES];
        for (unsigned sample = 0; sample < samples; ++sample) {
            float weight = weights == nullptr ? 1.0f : weights[sample];
            load<VALUES>(values, d + sample * stride + at);
#pragma unroll
            for (unsigned i = 0; i < VALUES; ++i) total[i] += weight * values[i];
        }
        if (accumulate != 0) {
            load<VALUES>(values, sum + at);
#pragma unroll
            for (unsigned i = 0; i < VALUES; ++i) total[i] += values[i];
        }
        store<VALUES>(sum + at, total);
    } else {
        for (uint64_t at = thread; at < count; at += uint64_t(gridDim.x) * EACH_THREADS) {
            float total = 0.0f;
            for (unsigned sample = 0; sample < samples; ++sample) {
                total += (weights == nullptr ? 1.0f : weights[sample]) * to_float(d[sample * stride + at]);
            }
            sum[at] = from_float<To>(accumulate != 0 ? total + to_float(sum[at]) : total);
        }
    }
}

template <class T>
__device__ __forceinline__ void
scale(T *to, const T *from, const float *weights, float factor, uint64_t count) {
    if (weights != nullptr) factor *= weights[blockIdx.y];
    const T *const inputs[1] = {from + blockIdx.y * count};
    each(to + blockIdx.y * count, inputs, count, [factor](const float (&in)[1]) { return factor * in[0]; });
}

template <class T>
__device__ __forceinline__ void add_scaled(float *y, const T *x, float factor, uint64_t count) {
    constexpr unsigned VALUES = 4;
    uint64_t at = (uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x) * VALUES;
    if (at + VALUES <= count) {
        float sum[VALUES], values[VALUES];
        load<VALUES>(sum, y + at);
        load<VALUES>(values, x + at);
#pragma unroll
        for (unsigned i = 0; i < VALUES; ++i) sum[i] += factor * values[i];
        store<VALUES>(y + at, sum);
    } else {
        for (; at < count; ++at) y[at] += factor * to_float(x[at]);
    }
}

template <class T> __device__ __forceinline__ void fill(T *y, float value, uint64_t count) {
    uint64_t step = uint64_t(gridDim.x) * EACH_THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * EACH_THREADS + threadIdx.x; at < count; at += step) {
        y[at] = from_float<T>(value);
    }
}

#define ACCUMULATE(T, suffix)                                                                                \
    KERNEL(                                                                                                  \
        column_sum_##suffix, SUM_ROWS *WARP, float *sums, const T *d, uint32_t rows, uint32_t columns,       \
        uint32_t width, uint32_t first, uint32_t rows_per_part, uint32_t accumulate) {                       \
        column_sum(sums, d, rows, columns, width, first, rows_per_part, accumulate);                         \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        gather_sum_##suffix, SUM_ROWS *WARP, float *table, const T *d, const uint32_t *starts,               \
        const uint32_t *order, uint32_t samples, uint32_t tokens, uint32_t columns) {                        \
        gather_sum(table, d, starts, order, samples, tokens, columns);                                       \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        sum_samples_##suffix##_to_f32, EACH_THREADS, float *sum, const T *d, const float *weights,           \
        uint64_t count, uint64_t stride, uint32_t samples, uint32_t accumulate) {                            \
        sum_samples(sum, d, weights, count, stride, samples, accumulate);                                    \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        scale_##suffix, EACH_THREADS, T *to, const T *from, const float *weights, float factor,              \
        uint64_t count) {                                                                                    \
        scale(to, from, weights, factor, count);                                                             \
    }                                                                                                        \
    KERNEL(add_scaled_##suffix, EACH_THREADS, float *y, const T *x, float factor, uint64_t count) {          \
        add_scaled(y, x, factor, count);                                                                     \
    }                                                                                                        \
    KERNEL(fill_##suffix, EACH_THREADS, T *y, float value, uint64_t count) { fill(y, value, count); }
ACCUMULATE(float, f32)
ACCUMULATE(bf16, bf16)
ACCUMULATE(f16, f16)

#define SUM_SAMPLES(T, suffix)                                                                               \
    KERNEL(                                                                                                  \
        sum_samples_##suffix##_to_##suffix, EACH_THREADS, T *sum, const T *d, const float *weights,          \
        uint64_t count, uint64_t stride, uint32_t samples, uint32_t accumulate) {                            \
        sum_samples(sum, d, weights, count, stride, samples, accumulate);                                    \
    }
SUM_SAMPLES(bf16, bf16)
SUM_SAMPLES(f16, f16)
