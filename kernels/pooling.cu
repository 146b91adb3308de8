// Means over tokens, statistics over the batch, the softmax over the batch, and a product with one number.
//
// x: [B, L, C] or [B, C] in T; sums in float in a fixed order, the softmax in double (its weights hardly differ, so their
// gradients are small differences of large terms). Bytes moved: the mean reads x once, its backward writes dx once; all
// others work on [B, C] or [B] numbers and cost a launch. Shared memory: 1 KiB for the mean, 2 KiB for the softmax.
#include "elementwise.cuh"

// Block: 32 channels (x) of one sample (y); tokens are taken 8 at a time by 8 warps, whose sums are added in order.
constexpr unsigned MEAN_ROWS = 8;

template <class To, class From>
__device__ __forceinline__ void mean_tokens_forward(To *y, const From *x, unsigned tokens, unsigned channels) {
    SHARED_ARRAY(float, partial, [MEAN_ROWS][WARP]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (c < channels) {
        const From *from = x + uint64_t(blockIdx.y) * tokens * channels + c;
        for (unsigned token = warp; token < tokens; token += MEAN_ROWS) sum += widen(from[uint64_t(token) * channels]);
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < channels) {
#pragma unroll
        for (unsigned other = 1; other < MEAN_ROWS; ++other) sum += partial[other][lane];
        y[uint64_t(blockIdx.y) * channels + c] = narrow<To>(sum / float(tokens));
    }
}

// Block: 256 channels (x) of one sample (y) and the tokens of part z.
template <class To, class From>
__device__ __forceinline__ void
mean_tokens_backward(To *dx, const From *dy, unsigned tokens, unsigned channels, unsigned tokens_a_part) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    To value = narrow<To>(widen(dy[uint64_t(blockIdx.y) * channels + c]) / float(tokens));
    unsigned begin = blockIdx.z * tokens_a_part, end = min(tokens, begin + tokens_a_part);
    for (unsigned token = begin; token < end; ++token) {
        dx[(uint64_t(blockIdx.y) * tokens + token) * channels + c] = value;
    }
}

template <class T> __device__ __forceinline__ float batch_mean(const T *x, unsigned batch, unsigned channels) {
    float sum = 0.0f;
    for (unsigned sample = 0; sample < batch; ++sample) sum += widen(x[uint64_t(sample) * channels]);
    return sum / float(batch);
}

// y: [2, C], mean and biased variance over the batch. A thread a channel.
template <class T>
__device__ __forceinline__ void batch_statistics_forward(T *y, const T *x, unsigned batch, unsigned channels) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    float mean = batch_mean(x + c, batch, channels), squares = 0.0f;
    for (unsigned sample = 0; sample < batch; ++sample) {
        float value = widen(x[uint64_t(sample) * channels + c]) - mean;
        squares += value * value;
    }
    y[c] = narrow<T>(mean);
    y[channels + c] = narrow<T>(squares / float(batch));
}

template <class T>
__device__ __forceinline__ void
batch_statistics_backward(T *dx, const T *dy, const T *x, unsigned batch, unsigned channels) {
    unsigned c = blockIdx.x * EACH_THREADS + threadIdx.x;
    if (c >= channels) return;
    // Not the forward's mean, which may have been rounded to 16 bits.
    float mean = batch_mean(x + c, batch, channels), share = 1.0f / float(batch);
    float d_mean = widen(dy[c]), d_variance = widen(dy[channels + c]);
    for (unsigned sample = 0; sample < batch; ++sample) {
        uint64_t at = uint64_t(sample) * channels + c;
        dx[at] = narrow<T>(share * (d_mean + 2.0f * (widen(x[at]) - mean) * d_variance));
    }
}

// The sum (or maximum) over the block in the order of the threads.
template <bool MAXIMUM> __device__ __forceinline__ double block_total(double value, double (&scratch)[EACH_THREADS]) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    __syncthreads();
    double total = scratch[0];
    for (unsigned other = 1; other < EACH_THREADS; ++other) {
        total = MAXIMUM ? fmax(total, scratch[other]) : total + scratch[other];
    }
    return total;
}

// One block for the whole batch.
template <class T>
__device__ __forceinline__ void batch_softmax_forward(T *y, const T *x, unsigned batch, double inverse_temperature) {
    SHARED_ARRAY(double, scratch, [EACH_THREADS]);
    double largest = -INFINITY, total = 0.0;
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        largest = fmax(largest, double(widen(x[at])) * inverse_temperature);
    }
    largest = block_total<true>(largest, scratch);
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        total += exp(double(widen(x[at])) * inverse_temperature - largest);
    }
    total = block_total<false>(total, scratch);
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        y[at] = narrow<T>(float(exp(double(widen(x[at])) * inverse_temperature - largest) / total));
    }
}

// dx = y (dy - sum(y dy) / sum(y)) / temperature; the sum of a rounded softmax is not quite 1.
template <class T>
__device__ __forceinline__ void
batch_softmax_backward(T *dx, const T *dy, const T *y, unsigned batch, double inverse_temperature) {
    SHARED_ARRAY(double, scratch, [EACH_THREADS]);
    double along = 0.0, total = 0.0;
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        total += double(widen(y[at]));
        along += double(widen(y[at])) * double(widen(dy[at]));
    }
    total = block_total<false>(total, scratch);
    along = block_total<false>(along, scratch) / total;
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        dx[at] = narrow<T>(float(double(widen(y[at])) * (double(widen(dy[at])) - along) * inverse_temperature));
    }
}

template <class T> __device__ __forceinline__ void scale_all_forward(T *y, const T *x, const T *factor, uint64_t count) {
    float by = widen(*factor);
    const T *const inputs[1] = {x};
    each(y, inputs, count, [by](const float (&in)[1]) { return in[0] * by; });
}

// dx = dy scale and d_scale = sum of x dy. One block.
template <class T>
__device__ __forceinline__ void
scale_all_backward(T *dx, T *d_factor, const T *dy, const T *x, const T *factor, unsigned count) {
    SHARED_ARRAY(float, scratch, [EACH_THREADS / WARP]);
    float by = widen(*factor), sum = 0.0f;
    for (unsigned at = threadIdx.x; at < count; at += EACH_THREADS) {
        float d = widen(dy[at]);
        sum += widen(x[at]) * d;
        dx[at] = narrow<T>(d * by);
    }
    sum = block_reduce<EACH_THREADS>(sum, scratch);
    if (threadIdx.x == 0) *d_factor = narrow<T>(sum);
}

#define MEAN_TOKENS(T, suffix, Pooled, pooled)                                                                         \
    KERNEL(                                                                                                            \
        mean_tokens_forward_##suffix##_to_##pooled, MEAN_ROWS *WARP, Pooled *y, const T *x, uint32_t tokens,           \
        uint32_t channels) {                                                                                           \
        mean_tokens_forward(y, x, tokens, channels);                                                                   \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        mean_tokens_backward_##pooled##_to_##suffix, EACH_THREADS, T *dx, const Pooled *dy, uint32_t tokens,           \
        uint32_t channels, uint32_t tokens_a_part) {                                                                   \
        mean_tokens_backward(dx, dy, tokens, channels, tokens_a_part);                                                 \
    }
MEAN_TOKENS(float, f32, float, f32)
MEAN_TOKENS(bf16, bf16, bf16, bf16)
MEAN_TOKENS(bf16, bf16, float, f32)
MEAN_TOKENS(f16, f16, f16, f16)
MEAN_TOKENS(f16, f16, float, f32)

#define POOLING(T, suffix)                                                                                             \
    KERNEL(batch_statistics_forward_##suffix, EACH_THREADS, T *y, const T *x, uint32_t batch, uint32_t channels) {     \
        batch_statistics_forward(y, x, batch, channels);                                                               \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        batch_statistics_backward_##suffix, EACH_THREADS, T *dx, const T *dy, const T *x, uint32_t batch,              \
        uint32_t channels) {                                                                                           \
        batch_statistics_backward(dx, dy, x, batch, channels);                                                         \
    }                                                                                                                  \
    KERNEL(batch_softmax_forward_##suffix, EACH_THREADS, T *y, const T *x, uint32_t batch, float temperature) {        \
        batch_softmax_forward(y, x, batch, 1.0 / double(temperature));                                                 \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        batch_softmax_backward_##suffix, EACH_THREADS, T *dx, const T *dy, const T *y, uint32_t batch,                 \
        float temperature) {                                                                                           \
        batch_softmax_backward(dx, dy, y, batch, 1.0 / double(temperature));                                           \
    }                                                                                                                  \
    KERNEL(scale_all_forward_##suffix, EACH_THREADS, T *y, const T *x, const T *factor, uint64_t count) {              \
        scale_all_forward(y, x, factor, count);                                                                        \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        scale_all_backward_##suffix, EACH_THREADS, T *dx, T *d_factor, const T *dy, const T *x, const T *factor,       \
        uint32_t count) {                                                                                              \
        scale_all_backward(dx, d_factor, dy, x, factor, count);                                                        \
    }
POOLING(float, f32)
POOLING(bf16, bf16)
POOLING(f16, f16)
