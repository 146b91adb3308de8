// Mean and biased variance over the batch, and their gradient: input of the rater's group head.
//
//     y = [mean_b x, mean_b (x - mean)^2],    dx = (d_mean + 2 (x - mean) d_variance) / B
//
// Shapes: x [B, C] in T; y [2, C] in T.
// Threads: 256 per block, one channel per thread. Latency-bound: B C is small.
// Precision: f32 sums in the order of the samples, of differences from the first sample.
// Reference: src/engine/ops/batch_statistics/cpu.rs. Source: docs/upstream.md, A14.
#include "elementwise.cuh"

// Shifted by the first sample: values may lie far from 0 where their variance is small.
template <class T>
__device__ __forceinline__ float batch_mean(const T *x, unsigned batch, unsigned channels) {
    float first = to_float(x[0]), sum = 0.0f;
    for (unsigned sample = 1; sample < batch; ++sample) {
        sum += to_float(x[uint64_t(sample) * channels]) - first;
    }
    return first + sum / float(batch);
}

// One channel per thread.
template <class T>
__device__ __forceinline__ void
batch_statistics_forward(T *y, const T *x, unsigned batch, unsigned channels) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    float mean = batch_mean(x + c, batch, channels), squares = 0.0f;
    for (unsigned sample = 0; sample < batch; ++sample) {
        float value = to_float(x[uint64_t(sample) * channels + c]) - mean;
        squares += value * value;
    }
    y[c] = from_float<T>(mean);
    y[channels + c] = from_float<T>(squares / float(batch));
}

template <class T>
__device__ __forceinline__ void
batch_statistics_backward(T *dx, const T *dy, const T *x, unsigned batch, unsigned channels) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    // Recomputed: the forward's mean may have been rounded to 16 bits.
    float mean = batch_mean(x + c, batch, channels), inverse_batch = 1.0f / float(batch);
    float d_mean = to_float(dy[c]), d_variance = to_float(dy[channels + c]);
    for (unsigned sample = 0; sample < batch; ++sample) {
        uint64_t at = uint64_t(sample) * channels + c;
        dx[at] = from_float<T>(inverse_batch * (d_mean + 2.0f * (to_float(x[at]) - mean) * d_variance));
    }
}

#define BATCH_STATISTICS(T, suffix)                                                                          \
    KERNEL(                                                                                                  \
        batch_statistics_forward_##suffix, EACH_THREADS, T *y, const T *x, uint32_t batch,                   \
        uint32_t channels) {                                                                                 \
        batch_statistics_forward(y, x, batch, channels);                                                     \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        batch_statistics_backward_##suffix, EACH_THREADS, T *dx, const T *dy, const T *x, uint32_t batch,    \
        uint32_t channels) {                                                                                 \
        batch_statistics_backward(dx, dy, x, batch, channels);                                               \
    }
BATCH_STATISTICS(float, f32)
BATCH_STATISTICS(bf16, bf16)
BATCH_STATISTICS(f16, f16)
