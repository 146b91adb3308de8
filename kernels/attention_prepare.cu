// RoPE and QK-norm of queries or keys, in the type that the tensor cores multiply:
//
//     x^ = rope(x) / max(|rope(x)|, 1e-12)
//
// A separate pass, once per row: the attention kernels read a head's keys once per query tile and its queries
// once per key tile, and would otherwise repeat the work each time.
//
// Shapes: x [B, L, ..] in T, a row's heads beginning at `from`, with row stride `stride`; x^ [B, L, H D] in
// T; the inverse norms [B, L, H] in float, or null; cosine and sine [.., D/2] in float, or null. Token t has
// position first + t.
// Threads: 256 per block, D/8 lanes per row, 8 values (16 bytes) each.
// Memory: 2 sizeof(T) bytes per value, plus the angles, which stay in cache. No shared memory.
// Precision: computed in f32, rounded once. The norm is a butterfly sum over the lanes of the row: one order.
// Reference: src/engine/ops/attention/cpu.rs. Source: docs/upstream.md, B3 to B5.
#include "attention.cuh"

constexpr unsigned PREPARE_THREADS = 256;

template <class T, unsigned D>
__device__ __forceinline__ void attention_prepare(
    T *hat, float *inverse_lengths, const T *from, const float *cosine, const float *sine, unsigned normalize,
    unsigned rows, unsigned tokens, unsigned first, unsigned heads, unsigned head_dim, unsigned stride,
    unsigned vectorized) {
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS;
    unsigned row = blockIdx.x * (PREPARE_THREADS / CHUNKS) + threadIdx.x / CHUNKS;
    unsigned chunk = threadIdx.x % CHUNKS;
    // Lanes past the end repeat the last row, because its shuffles need them, and write nothing.
    bool within = row < rows;
    row = min(row, rows - 1);
    unsigned head = row % heads, token = row / heads;
    Source<const T> source = {
        from + uint64_t(token) * stride + uint64_t(head) * head_dim, stride, 1, head_dim,
        is_vectorized<D>(vectorized)};
    Source<T> result = {
        hat + uint64_t(row) * head_dim, head_dim, within ? 1u : 0u, head_dim, is_vectorized<D>(vectorized)};
    auto pack = source.read(0, chunk);
    float value[8];
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) value[i] = to_float(pack.value[i]);
    if (cosine != nullptr && source.has(0, chunk)) {
        unsigned half = head_dim / 2;
        uint64_t angle = uint64_t(first + token % tokens) * half + chunk * 4;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            bool inside = chunk * 4 + i < half;
            float c = inside ? cosine[angle + i] : 1.0f, s = inside ? sine[angle + i] : 0.0f;
            float real = value[2 * i], imaginary = value[2 * i + 1];
            value[2 * i] = real * c - imaginary * s;
            value[2 * i + 1] = real * s + imaginary * c;
        }
    }
    if (normalize != 0) {
        float squares = 0.0f;
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) squares += value[i] * value[i];
        squares = lanes_sum<CHUNKS>(squares);
        float inverse = rsqrtf(fmaxf(squares, MIN_NORM * MIN_NORM));
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) value[i] *= inverse;
        if (inverse_lengths != nullptr && chunk == 0 && within) inverse_lengths[row] = inverse;
    }
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) pack.value[i] = from_float<T>(value[i]);
    result.write(0, chunk, pack);
}

#define ATTENTION_PREPARE(T, suffix, D)                                                                      \
    KERNEL(                                                                                                  \
        attention_prepare_##D##_##suffix, PREPARE_THREADS, T *hat, float *inverse_lengths, const T *from,    \
        const float *cosine, const float *sine, uint32_t normalize, uint32_t rows, uint32_t tokens,          \
        uint32_t first, uint32_t heads, uint32_t head_dim, uint32_t stride, uint32_t vectorized) {           \
        attention_prepare<T, D>(                                                                             \
            hat, inverse_lengths, from, cosine, sine, normalize, rows, tokens, first, heads, head_dim,       \
            stride, vectorized);                                                                             \
    }
#define ALL_ATTENTION_PREPARE(T, suffix)                                                                     \
    ATTENTION_PREPARE(T, suffix, 16)                                                                         \
    ATTENTION_PREPARE(T, suffix, 32)                                                                         \
    ATTENTION_PREPARE(T, suffix, 64)                                                                         \
    ATTENTION_PREPARE(T, suffix, 128)
ALL_ATTENTION_PREPARE(bf16, bf16)
ALL_ATTENTION_PREPARE(f16, f16)
