// Token cross-entropy with label smoothing, and its gradient in the same pass over the logits:
//
//     loss = (1 - s)(log_sum - z[target]) + s (log_sum - mean(z)),   log_sum = log sum exp z
//     dz   = seed (exp(z - log_sum) - s/V - (1 - s) [v = target])
//
// z: [R, V] in T; targets: [R]; seeds: the factor of a row's gradient, one for `tokens` rows (the gradient of a sample's mean
// loss divided by its tokens); losses: [R] in float; correct: [R], whether the first of the largest logits is the target's.
// dz may be z itself, or null.
//
// Threads: one block of 256 a row. Rows of up to 4096 logits in multiples of 16 bytes are held in registers (16 numbers a
// thread), each exponential computed once: 2 sizeof(T) bytes a logit with the gradient, sizeof(T) without. Other rows are
// read again for each sum. Shared memory: 32 bytes.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned HELD = 16;

// The logits of a row as its threads share them.
template <class T, bool WHOLE> struct Row;

template <class T> struct Row<T, true> {
    static constexpr unsigned PACKS = HELD / PACK<T>;
    unsigned codes;
    // First the logits, then their exponentials.
    float held[PACKS][PACK<T>];

    static __device__ __forceinline__ unsigned place(unsigned at) { return (at * THREADS + threadIdx.x) * PACK<T>; }
    // The thread that has code v.
    static __device__ __forceinline__ unsigned owner(unsigned v) { return v / PACK<T> % THREADS; }

    __device__ __forceinline__ Row(const T *from, unsigned codes) : codes(codes) {
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            if (place(at) < codes) load<PACK<T>>(held[at], from + place(at));
        }
    }

    // Calls work(code, logit) for each of the thread's.
    template <class Work> __device__ __forceinline__ void each(Work work) {
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            if (place(at) < codes) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) work(place(at) + i, held[at][i]);
            }
        }
    }

    // The sum of exp(logit - largest); from then on there are these in place of logits.
    __device__ __forceinline__ float exponentials(float largest) {
        float sum = 0.0f;
        each([&](unsigned, float &value) {
            value = expf(value - largest);
            sum += value;
        });
        return sum;
    }

    // exp(logit - largest) factor - even, stored.
    __device__ __forceinline__ void write(T *to, float, float factor, float even) {
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            if (place(at) < codes) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) held[at][i] = held[at][i] * factor - even;
                store<PACK<T>>(to + place(at), held[at]);
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

    __device__ __forceinline__ float exponentials(float largest) {
        float sum = 0.0f;
        each([&](unsigned, float value) { sum += expf(value - largest); });
        return sum;
    }

    __device__ __forceinline__ void write(T *to, float largest, float factor, float even) {
        each([&](unsigned v, float value) { to[v] = from_float<T>(expf(value - largest) * factor - even); });
    }
};

template <bool WHOLE, class T>
__device__ __forceinline__ void cross_entropy(
    float *losses, uint32_t *correct, T *dz, const T *z, const uint32_t *targets, const float *seeds, unsigned codes,
    unsigned tokens, float smoothing, float *scratch) {
    uint64_t number = blockIdx.x;
    const T *from = z + number * codes;
    unsigned target = targets[number];
    if (target >= codes) TRAP("a target is not one of the codes");
    float aim = to_float(from[target]), largest = -INFINITY;
    Row<T, WHOLE> row(from, codes);
    row.each([&](unsigned, float value) { largest = fmaxf(largest, value); });
    largest = block_reduce<THREADS, true>(largest, scratch);
    // The same for all threads of the block, as the barriers within sums need.
    bool first = aim == largest;
    if (first) {
        float earlier = 0.0f;
        row.each([&](unsigned v, float value) { earlier = v < target && value == largest ? 1.0f : earlier; });
        first = block_reduce<THREADS, true>(earlier, scratch) == 0.0f;
    }
    float mean = 0.0f;
    if (smoothing > 0.0f) {
        row.each([&](unsigned, float value) { mean += value; });
        mean = block_reduce<THREADS>(mean, scratch) / float(codes);
    }
    float total = block_reduce<THREADS>(row.exponentials(largest), scratch);
    if (threadIdx.x == 0) {
        float log_sum = largest + logf(total), loss = log_sum - aim;
        if (smoothing > 0.0f) loss = loss * (1.0f - smoothing) + (log_sum - mean) * smoothing;
        losses[number] = loss;
        correct[number] = first ? 1 : 0;
    }
    if (dz == nullptr) return;

    // The target's logit has been read by all threads before one of them overwrites it: sums have barriers.
    float seed = seeds[number / tokens], factor = seed / total, even = smoothing / float(codes) * seed;
    T *to = dz + number * codes;
    row.write(to, largest, factor, even);
    // Over what this thread has just written.
    if (threadIdx.x == Row<T, WHOLE>::owner(target)) {
        to[target] = from_float<T>(expf(aim - largest) * factor - even - (1.0f - smoothing) * seed);
    }
}

#define CROSS_ENTROPY(T, suffix)                                                                                       \
    KERNEL_SHARING(                                                                                                    \
        cross_entropy_##suffix, THREADS, 6, float *losses, uint32_t *correct, T *dz, const T *z,                       \
        const uint32_t *targets, const float *seeds, uint32_t codes, uint32_t tokens, float smoothing) {               \
        SHARED_ARRAY(float, scratch, [THREADS / WARP]);                                                                \
        if (codes <= HELD * THREADS && packs(z, codes) && packs(dz, codes)) {                                          \
            cross_entropy<true>(losses, correct, dz, z, targets, seeds, codes, tokens, smoothing, scratch);            \
        } else {                                                                                                       \
            cross_entropy<false>(losses, correct, dz, z, targets, seeds, codes, tokens, smoothing, scratch);           \
        }                                                                                                              \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)
