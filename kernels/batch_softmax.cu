// Softmax over the batch, and its gradient: the rater's weights of the samples.
//
//     y = softmax(x / temperature),    dx = y (dy - <y, dy> / sum(y)) / temperature
//
// Shapes: x, y [B] in T.
// Threads: one block of 256 for the whole batch. Latency-bound: [B] is small.
// Memory: 2 KB of shared memory.
// Precision: computed in f64. The weights hardly differ from each other, so their gradients are small
// differences of large terms. Sums are added in the order of the threads.
// Reference: src/engine/ops/batch_softmax/cpu.rs.
#include "elementwise.cuh"

// The sum (or maximum) over the block, in the order of the threads.
template <bool MAXIMUM>
__device__ __forceinline__ double block_total(double value, double (&scratch)[EACH_THREADS]) {
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
__device__ __forceinline__ void
batch_softmax_forward(T *y, const T *x, unsigned batch, double inverse_temperature) {
    SHARED_ARRAY(double, scratch, [EACH_THREADS]);
    double largest = -INFINITY, total = 0.0;
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        largest = fmax(largest, double(to_float(x[at])) * inverse_temperature);
    }
    largest = block_total<true>(largest, scratch);
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        total += exp(double(to_float(x[at])) * inverse_temperature - largest);
    }
    total = block_total<false>(total, scratch);
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        y[at] = from_float<T>(float(exp(double(to_float(x[at])) * inverse_temperature - largest) / total));
    }
}

// Divided by sum(y), because a rounded softmax does not add up to 1.
template <class T>
__device__ __forceinline__ void
batch_softmax_backward(T *dx, const T *dy, const T *y, unsigned batch, double inverse_temperature) {
    SHARED_ARRAY(double, scratch, [EACH_THREADS]);
    double dot = 0.0, total = 0.0;
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        total += double(to_float(y[at]));
        dot += double(to_float(y[at])) * double(to_float(dy[at]));
    }
    total = block_total<false>(total, scratch);
    dot = block_total<false>(dot, scratch) / total;
    for (unsigned at = threadIdx.x; at < batch; at += EACH_THREADS) {
        dx[at] = from_float<T>(
            float(double(to_float(y[at])) * (double(to_float(dy[at])) - dot) * inverse_temperature));
    }
}

#define BATCH_SOFTMAX(T, suffix)                                                                             \
    KERNEL(                                                                                                  \
        batch_softmax_forward_##suffix, EACH_THREADS, T *y, const T *x, uint32_t batch, float temperature) { \
        batch_softmax_forward(y, x, batch, 1.0 / double(temperature));                                       \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        batch_softmax_backward_##suffix, EACH_THREADS, T *dx, const T *dy, const T *y, uint32_t batch,       \
        float temperature) {                                                                                 \
        batch_softmax_backward(dx, dy, y, batch, 1.0 / double(temperature));                                 \
    }
BATCH_SOFTMAX(float, f32)
BATCH_SOFTMAX(bf16, bf16)
BATCH_SOFTMAX(f16, f16)
