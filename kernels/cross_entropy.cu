// Token cross-entropy with label smoothing, and its gradient in the same pass over the logits:
//
//     loss = (1 - s)(log_sum - z[target]) + s (log_sum - mean(z)),   log_sum = log sum exp z
//     dz   = seed (exp(z - log_sum) - s/V - (1 - s) [v = target])
//
// z: [R, V] in T; targets: [R]; seeds: the factor of a row's gradient, one for `tokens` rows (the gradient of a sample's mean
// loss divided by its tokens); losses: [R] in float; correct: [R], whether the first of the largest logits is the target's.
// dz may be z itself, or null.
//
// Threads: one block of 256 a row. Rows of up to 4096 logits are held in registers (16 a thread): 2 sizeof(T) bytes a
// logit with the gradient, sizeof(T) without. Longer rows are read again. Shared memory: 32 bytes.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned HELD = 16;

struct RowSums {
    float largest, exponentials, sum;
    bool earlier;
};

template <class T>
__device__ __forceinline__ void cross_entropy(
    float *losses, uint32_t *correct, T *dz, const T *z, const uint32_t *targets, const float *seeds, unsigned codes,
    unsigned tokens, float smoothing) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    uint64_t row = blockIdx.x;
    const T *from = z + row * codes;
    unsigned target = targets[row];
    if (target >= codes) TRAP("a target is not one of the codes");
    bool held_whole = codes <= HELD * THREADS;
    float held[HELD];
    RowSums sums = {-INFINITY, 0.0f, 0.0f, false};

    if (held_whole) {
#pragma unroll
        for (unsigned at = 0; at < HELD; ++at) {
            unsigned v = at * THREADS + threadIdx.x;
            held[at] = v < codes ? widen(from[v]) : -INFINITY;
            sums.largest = fmaxf(sums.largest, held[at]);
        }
    } else {
        for (unsigned v = threadIdx.x; v < codes; v += THREADS) sums.largest = fmaxf(sums.largest, widen(from[v]));
    }
    float largest = block_reduce<THREADS, true>(sums.largest, scratch);
    if (held_whole) {
#pragma unroll
        for (unsigned at = 0; at < HELD; ++at) {
            unsigned v = at * THREADS + threadIdx.x;
            if (v < codes) {
                sums.sum += held[at];
                sums.exponentials += expf(held[at] - largest);
                sums.earlier |= v < target && held[at] == largest;
            }
        }
    } else {
        for (unsigned v = threadIdx.x; v < codes; v += THREADS) {
            float value = widen(from[v]);
            sums.sum += value;
            sums.exponentials += expf(value - largest);
            sums.earlier |= v < target && value == largest;
        }
    }
    float total = block_reduce<THREADS>(sums.exponentials, scratch);
    float mean = block_reduce<THREADS>(sums.sum, scratch) / float(codes);
    bool earlier = block_reduce<THREADS, true>(sums.earlier ? 1.0f : 0.0f, scratch) > 0.0f;
    float log_sum = largest + logf(total);
    float aim = widen(from[target]);
    if (threadIdx.x == 0) {
        float loss = log_sum - aim;
        if (smoothing > 0.0f) loss = loss * (1.0f - smoothing) + (log_sum - mean) * smoothing;
        losses[row] = loss;
        correct[row] = aim == largest && !earlier ? 1 : 0;
    }
    if (dz == nullptr) return;

    // The target's logit has been read by all threads before one of them may overwrite it.
    __syncthreads();
    float seed = seeds[row / tokens], even = smoothing / float(codes), sharp = 1.0f - smoothing;
    T *to = dz + row * codes;
    if (held_whole) {
#pragma unroll
        for (unsigned at = 0; at < HELD; ++at) {
            unsigned v = at * THREADS + threadIdx.x;
            if (v < codes) {
                to[v] = narrow<T>((expf(held[at] - log_sum) - even - (v == target ? sharp : 0.0f)) * seed);
            }
        }
    } else {
        for (unsigned v = threadIdx.x; v < codes; v += THREADS) {
            to[v] = narrow<T>((expf(widen(from[v]) - log_sum) - even - (v == target ? sharp : 0.0f)) * seed);
        }
    }
}

#define CROSS_ENTROPY(T, suffix)                                                                                       \
    KERNEL(                                                                                                            \
        cross_entropy_##suffix, THREADS, float *losses, uint32_t *correct, T *dz, const T *z,                          \
        const uint32_t *targets, const float *seeds, uint32_t codes, uint32_t tokens, float smoothing) {               \
        cross_entropy(losses, correct, dz, z, targets, seeds, codes, tokens, smoothing);                               \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)
