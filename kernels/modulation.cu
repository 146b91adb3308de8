// The gate of the shared modulation: y = x gate[level of the token], and its backward. Scale and shift are a part of the
// layer norm that they follow (layer_norm.cu).
//
// x, y: [B, L, C] in T; the gate of a level: C numbers of float, `stride` apart. Threads: a warp a row of x, 8 rows a
// block. Forward 2 sizeof(T) bytes a number; backward 3 sizeof(T) for dx and 2 for the gate's gradient, which is summed
// over the tokens of each sample and level in their order, a thread a channel. No shared memory.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;
constexpr unsigned COLUMNS = 128;

template <class T>
__device__ __forceinline__ void
gate(T *y, const T *x, const float *gates, const uint32_t *levels, unsigned rows, unsigned channels, unsigned tokens, unsigned stride) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const float *factor = gates + uint64_t(levels[row % tokens]) * stride;
    const T *from = x + uint64_t(row) * channels;
    T *to = y + uint64_t(row) * channels;
    if (packs(from, channels) && packs(to, channels)) {
        for (unsigned c = lane * PACK<T>; c < channels; c += WARP * PACK<T>) {
            float values[PACK<T>];
            load<PACK<T>>(values, from + c);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) values[i] *= factor[c + i];
            store<PACK<T>>(to + c, values);
        }
    } else {
        for (unsigned c = lane; c < channels; c += WARP) to[c] = narrow<T>(widen(from[c]) * factor[c]);
    }
}

// Block: 128 channels of one level (y) of one sample (z). Output rows of `stride` floats, of which C are written.
template <class T>
__device__ __forceinline__ void gate_backward(
    float *d_gates, const T *dy, const T *x, const uint32_t *starts, unsigned channels, unsigned tokens, unsigned stride) {
    unsigned c = blockIdx.x * COLUMNS + threadIdx.x, level = blockIdx.y, sample = blockIdx.z;
    if (c >= channels) return;
    float sum = 0.0f;
    for (unsigned token = starts[level]; token < starts[level + 1]; ++token) {
        uint64_t at = (uint64_t(sample) * tokens + token) * channels + c;
        sum += widen(dy[at]) * widen(x[at]);
    }
    d_gates[(uint64_t(sample) * gridDim.y + level) * stride + c] = sum;
}

#define MODULATION(T, suffix)                                                                                          \
    KERNEL(                                                                                                            \
        gate_##suffix, THREADS, T *y, const T *x, const float *gates, const uint32_t *levels, uint32_t rows,           \
        uint32_t channels, uint32_t tokens, uint32_t stride) {                                                         \
        gate(y, x, gates, levels, rows, channels, tokens, stride);                                                     \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        gate_backward_##suffix, COLUMNS, float *d_gates, const T *dy, const T *x, const uint32_t *starts,              \
        uint32_t channels, uint32_t tokens, uint32_t stride) {                                                         \
        gate_backward(d_gates, dy, x, starts, channels, tokens, stride);                                               \
    }
MODULATION(float, f32)
MODULATION(bf16, bf16)
MODULATION(f16, f16)
