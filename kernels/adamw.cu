// AdamW over all tensors of a network in three launches, clipping by the global norm included, with no wait for the host:
// squares of each chunk, then the norm and the clip factor, then the update.
//
// `table`: for each tensor the addresses of value, gradient, first and second moment (float) and of a copy of the value
// in bf16 or f16 (0 for none). `chunks`: for each block tensor, first number and how many. `decays`: for each tensor 1 or
// 0. `factors`: the numbers that change from step to step, in memory, so that a recorded step can be repeated: see Factor.
// Where the norm is not finite nothing is updated. Order of operations as PyTorch's (upstream.md, C1 to C3). Threads: 256 a block, one chunk a block. Bytes a number:
// 4 for the norm, 28 for the update (30 with the copy).
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned FIELDS = 5;

// inverse_scale: 1 / the loss' scale; most: the largest norm, or 0; keep: 1 - learning rate * decay; rate: learning rate /
// (1 - beta1^t); rest1, rest2: 1 - beta; root2: sqrt(1 - beta2^t).
enum Factor { INVERSE_SCALE, MOST, KEEP, RATE, REST1, BETA2, REST2, ROOT2, EPSILON };

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

// norm[0]: the global norm; norm[1]: the factor that gradients are multiplied with. One block.
KERNEL(adamw_norm, THREADS, float *norm, const float *squares, uint32_t count, const float *factors) {
    SHARED_ARRAY(double, partial, [THREADS]);
    double sum = 0.0;
    for (unsigned at = threadIdx.x; at < count; at += THREADS) sum += double(squares[at]);
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned other = 1; other < THREADS; ++other) sum += partial[other];
        double scale = double(factors[INVERSE_SCALE]), length = sqrt(sum) * scale, most = double(factors[MOST]);
        norm[0] = float(length);
        norm[1] = float((most > 0.0 ? fmin(most / (length + 1e-6), 1.0) : 1.0) * scale);
    }
}

template <class Copy>
__device__ __forceinline__ void adamw(
    const uint64_t *table, const uint32_t *chunks, const uint32_t *decays, const float *norm, const float *factors) {
    // fabsf: a NaN is not below either.
    if (!(fabsf(norm[0]) < INFINITY)) return;
    Chunk chunk = chunk_of(table, chunks);
    auto *copy = reinterpret_cast<Copy *>(chunk.copy);
    float clip = norm[1], keep = decays[chunk.tensor] == 0 ? 1.0f : factors[KEEP], rate = factors[RATE];
    float rest1 = factors[REST1], beta2 = factors[BETA2], rest2 = factors[REST2];
    float root2 = factors[ROOT2], epsilon = factors[EPSILON];
    for (unsigned at = chunk.begin + threadIdx.x; at < chunk.end; at += THREADS) {
        float g = chunk.gradient[at] * clip, m = chunk.first[at], v = chunk.second[at];
        m += (g - m) * rest1;
        v = v * beta2 + g * g * rest2;
        float value = chunk.value[at] * keep - rate * (m / (sqrtf(v) / root2 + epsilon));
        chunk.first[at] = m;
        chunk.second[at] = v;
        chunk.value[at] = value;
        if (copy != nullptr) copy[at] = from_float<Copy>(value);
    }
}

#define ADAMW(Copy, suffix)                                                                                            \
    KERNEL(                                                                                                            \
        adamw_update_##suffix, THREADS, const uint64_t *table, const uint32_t *chunks, const uint32_t *decays,         \
        const float *norm, const float *factors) {                                                                     \
        adamw<Copy>(table, chunks, decays, norm, factors);                                                             \
    }
ADAMW(bf16, bf16)
ADAMW(f16, f16)
