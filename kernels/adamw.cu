// AdamW over all tensors of a network in three launches, with clipping by the global norm and without waiting
// for the host:
//
//     adamw_squares    the sum of g^2 of each chunk
//     adamw_norm       norm = sqrt(sum) / loss scale,    clip = min(1, max_norm / (norm + 1e-6))
//     adamw_update     m += (g - m) (1 - beta1),    v = beta2 v + (1 - beta2) g^2
//                      step = lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//                      value = value (1 - lr decay) - step
//
// Shapes: `table`: per tensor the addresses of value, gradient, first and second moment (float) and of a bf16
// or f16 copy of the value (0 for none). `chunks`: per block the tensor, its first value and the count.
// `decays`: per tensor 1 or 0. `factors`: the values that change from step to step, see Factor; in device
// memory, so that a recorded CUDA graph reads those of its step.
// Threads: 256 per block, one chunk per block; the norm is one block.
// Memory: 4 bytes per value for the norm, 28 for the update, 30 with the copy.
// Precision: values, gradients and moments in f32; the norm is summed in f64 over the chunks, in order. If
// the norm is not finite (NaN or Inf), nothing is updated.
// Reference: src/engine/ops/adamw/cpu.rs, with the order of operations of torch.optim.AdamW. Source: AdamW
// (arXiv:1711.05101); docs/upstream.md, C1 to C3.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned FIELDS = 5;

// INVERSE_SCALE: 1 / loss scale. MAX_NORM: the clipping norm, or 0. DECAY: 1 - lr weight_decay. STEP_SIZE: lr
// / (1 - beta1^t). SQRT_CORRECTION2: sqrt(1 - beta2^t).
enum Factor {
    INVERSE_SCALE,
    MAX_NORM,
    DECAY,
    STEP_SIZE,
    ONE_MINUS_BETA1,
    BETA2,
    ONE_MINUS_BETA2,
    SQRT_CORRECTION2,
    EPSILON
};

struct Chunk {
    float *value, *first, *second;
    const float *gradient;
    uint64_t copy;
    unsigned tensor, begin, end;
};

__device__ __forceinline__ Chunk chunk_of(const uint64_t *table, const uint32_t *chunks) {
    unsigned tensor = chunks[3 * blockIdx.x], begin = chunks[3 * blockIdx.x + 1];
    const uint64_t *fields = table + uint64_t(tensor) * FIELDS;
    return {
        reinterpret_cast<float *>(fields[0]),
        reinterpret_cast<float *>(fields[2]),
        reinterpret_cast<float *>(fields[3]),
        reinterpret_cast<const float *>(fields[1]),
        fields[4],
        tensor,
        begin,
        begin + chunks[3 * blockIdx.x + 2]};
}

KERNEL(adamw_squares, THREADS, float *squares, const uint64_t *table, const uint32_t *chunks) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    Chunk chunk = chunk_of(table, chunks);
    float sum = 0.0f;
    for (unsigned at = chunk.begin + threadIdx.x; at < chunk.end; at += THREADS) {
        sum += chunk.gradient[at] * chunk.gradient[at];
    }
    sum = block_reduce<THREADS>(sum, scratch);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// norm[0]: the global norm; norm[1]: the factor of the gradients. One block.
KERNEL(adamw_norm, THREADS, float *norm, const float *squares, uint32_t count, const float *factors) {
    SHARED_ARRAY(double, partial, [THREADS]);
    double sum = 0.0;
    for (unsigned at = threadIdx.x; at < count; at += THREADS) sum += double(squares[at]);
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned other = 1; other < THREADS; ++other) sum += partial[other];
        double scale = double(factors[INVERSE_SCALE]), length = sqrt(sum) * scale,
               max_norm = double(factors[MAX_NORM]);
        norm[0] = float(length);
        norm[1] = float((max_norm > 0.0 ? fmin(max_norm / (length + 1e-6), 1.0) : 1.0) * scale);
    }
}

template <class Copy>
__device__ __forceinline__ void adamw(
    const uint64_t *table, const uint32_t *chunks, const uint32_t *decays, const float *norm,
    const float *factors) {
    // A NaN compares false, too.
    if (!(fabsf(norm[0]) < INFINITY)) return;
    Chunk chunk = chunk_of(table, chunks);
    auto *copy = reinterpret_cast<Copy *>(chunk.copy);
    float clip = norm[1], decay = decays[chunk.tensor] == 0 ? 1.0f : factors[DECAY],
          step_size = factors[STEP_SIZE];
    float one_minus_beta1 = factors[ONE_MINUS_BETA1], beta2 = factors[BETA2],
          one_minus_beta2 = factors[ONE_MINUS_BETA2];
    float sqrt_correction2 = factors[SQRT_CORRECTION2], epsilon = factors[EPSILON];
    for (unsigned at = chunk.begin + threadIdx.x; at < chunk.end; at += THREADS) {
        float g = chunk.gradient[at] * clip, m = chunk.first[at], v = chunk.second[at];
        m += (g - m) * one_minus_beta1;
        v = v * beta2 + g * g * one_minus_beta2;
        float value = chunk.value[at] * decay - step_size * (m / (sqrtf(v) / sqrt_correction2 + epsilon));
        chunk.first[at] = m;
        chunk.second[at] = v;
        chunk.value[at] = value;
        if (copy != nullptr) copy[at] = from_float<Copy>(value);
    }
}

#define ADAMW(Copy, suffix)                                                                                  \
    KERNEL(                                                                                                  \
        adamw_update_##suffix, THREADS, const uint64_t *table, const uint32_t *chunks,                       \
        const uint32_t *decays, const float *norm, const float *factors) {                                   \
        adamw<Copy>(table, chunks, decays, norm, factors);                                                   \
    }
ADAMW(bf16, bf16)
ADAMW(f16, f16)
