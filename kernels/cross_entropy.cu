// Token cross-entropy with label smoothing s, and its gradient in the same pass over the logits:
//
//     loss = (1 - s) (lse - z[target]) + s (lse - mean(z)),    lse = log sum exp z
//     dz   = seed (exp(z - lse) - s/V - (1 - s) [v = target])
//
// Shapes: z, dz [R, V] in T, dz may be z or null; targets [R]; seeds: the factor of the gradient, one per
// `tokens` rows (a sample's mean loss divides by its tokens); losses [R] in float; correct [R]: whether the
// first of the largest logits is the target's.
// Threads: one block of 256 per row.
// Memory: rows of up to 4096 logits in multiples of 16 bytes stay in registers (16 values per thread), and
// each exponential is computed once: 2 sizeof(T) bytes per logit with the gradient, sizeof(T) without. Other
// rows are read again for each sum. 32 bytes of shared memory.
// Precision: maximum, sums and exponentials in f32; dz rounded once. Sums have one order.
// Reference: src/engine/ops/cross_entropy/cpu.rs. Source: label smoothing (arXiv:1512.00567);
// torch.nn.CrossEntropyLoss.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned VALUES_PER_THREAD = 16;

// The logits of a row, spread over the threads of the block: in registers, or read from memory each time.
template <class T, bool CACHED> struct Row;

template <class T> struct Row<T, true> {
    static constexpr unsigned PACKS = VALUES_PER_THREAD / PACK<T>;
    unsigned codes;
    // The logits, and after exponentials() their exponentials.
    float cached[PACKS][PACK<T>];

    static __device__ __forceinline__ unsigned offset(unsigned at) {
        return (at * THREADS + threadIdx.x) * PACK<T>;
    }
    // The thread that has code v.
    static __device__ __forceinline__ unsigned owner(unsigned v) { return v / PACK<T> % THREADS; }

    __device__ __forceinline__ Row(const T *from, unsigned codes) : codes(codes) {
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            if (offset(at) < codes) load<PACK<T>>(cached[at], from + offset(at));
        }
    }

    // Calls work(code, logit) for each logit of the thread.
    template <class Work> __device__ __forceinline__ void each(Work work) {
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            if (offset(at) < codes) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) work(offset(at) + i, cached[at][i]);
            }
        }
    }

    // The sum of exp(logit - maximum); the exponentials replace the logits.
    __device__ __forceinline__ float exponentials(float maximum) {
        float sum = 0.0f;
        each([&](unsigned, float &value) {
            value = expf(value - maximum);
            sum += value;
        });
        return sum;
    }

    // Stores exp(logit - maximum) factor - uniform.
    __device__ __forceinline__ void write(T *to, float, float factor, float uniform) {
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            if (offset(at) < codes) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) cached[at][i] = cached[at][i] * factor - uniform;
                store<PACK<T>>(to + offset(at), cached[at]);
            }
        }
    }
};

template <class T> struct Row<T, false> {
    const T *from;
    unsigned codes;

    static __device__ __forceinline__ unsigned owner(unsigned v) { return v % THREADS; }

    __device__ __forceinline__ Row(const T *from, unsigned codes) : from(from), codes(codes) {}

    template <class Work> __device__ __forceinline__ void each(Work work) {
        for (unsigned v = threadIdx.x; v < codes; v += THREADS) work(v, to_float(from[v]));
    }

    __device__ __forceinline__ float exponentials(float maximum) {
        float sum = 0.0f;
        each([&](unsigned, float value) { sum += expf(value - maximum); });
        return sum;
    }

    __device__ __forceinline__ void write(T *to, float maximum, float factor, float uniform) {
        each([&](unsigned v, float value) {
            to[v] = from_float<T>(expf(value - maximum) * factor - uniform);
        });
    }
};

template <bool CACHED, class T>
__device__ __forceinline__ void cross_entropy(
    float *losses, uint32_t *correct, T *dz, const T *z, const uint32_t *targets, const float *seeds,
    unsigned codes, unsigned tokens, float smoothing, float *scratch) {
    uint64_t row_index = blockIdx.x;
    const T *from = z + row_index * codes;
    unsigned target = targets[row_index];
    if (target >= codes) TRAP("a target is not one of the codes");
    float target_logit = to_float(from[target]), maximum = -INFINITY;
    Row<T, CACHED> row(from, codes);
    row.each([&](unsigned, float value) { maximum = fmaxf(maximum, value); });
    maximum = block_reduce<THREADS, true>(maximum, scratch);
    // The same for all threads of the block, as the barriers in block_reduce require.
    bool is_correct = target_logit == maximum;
    if (is_correct) {
        float earlier = 0.0f;
        row.each([&](unsigned v, float value) { earlier = v < target && value == maximum ? 1.0f : earlier; });
        is_correct = block_reduce<THREADS, true>(earlier, scratch) == 0.0f;
    }
    float mean = 0.0f;
    if (smoothing > 0.0f) {
        row.each([&](unsigned, float value) { mean += value; });
        mean = block_reduce<THREADS>(mean, scratch) / float(codes);
    }
    float total = block_reduce<THREADS>(row.exponentials(maximum), scratch);
    if (threadIdx.x == 0) {
        float log_sum = maximum + logf(total), loss = log_sum - target_logit;
        if (smoothing > 0.0f) loss = loss * (1.0f - smoothing) + (log_sum - mean) * smoothing;
        losses[row_index] = loss;
        correct[row_index] = is_correct ? 1 : 0;
    }
    if (dz == nullptr) return;

    // All threads have read the target's logit before one overwrites it: block_reduce has barriers.
    float seed = seeds[row_index / tokens], factor = seed / total, uniform = smoothing / float(codes) * seed;
    T *to = dz + row_index * codes;
    row.write(to, maximum, factor, uniform);
    // Overwrites what this same thread has just written.
    if (threadIdx.x == Row<T, CACHED>::owner(target)) {
        to[target] =
            from_float<T>(expf(target_logit - maximum) * factor - uniform - (1.0f - smoothing) * seed);
    }
}

#define CROSS_ENTROPY(T, suffix)                                                                             \
    KERNEL_SHARING(                                                                                          \
        cross_entropy_##suffix, THREADS, 6, float *losses, uint32_t *correct, T *dz, const T *z,             \
        const uint32_t *targets, const float *seeds, uint32_t codes, uint32_t tokens, float smoothing) {     \
        SHARED_ARRAY(float, scratch, [THREADS / WARP]);                                                      \
        if (codes <= VALUES_PER_THREAD * THREADS && packs(z, codes) && packs(dz, codes)) {                   \
            cross_entropy<true>(losses, correct, dz, z, targets, seeds, codes, tokens, smoothing, scratch);  \
        } else {                                                                                             \
            cross_entropy<false>(losses, correct, dz, z, targets, seeds, codes, tokens, smoothing, scratch); \
        }                                                                                                    \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)
