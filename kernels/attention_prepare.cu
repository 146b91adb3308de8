// Queries and keys as attention's products take them, in 16-bit numbers: turned by the rotary positions and normalised,
//
//     x^ = unit(turn(x))
//
// once for each row, where the attention kernels, which read a head's keys once for each block of queries (and its
// queries once for each block of keys), would do it again for each.
//
// x: [B, L, ..] of which a row's heads begin at `from` and rows are `stride` numbers apart; x^ [B, L, H D] in T; the
// inverse lengths [B, L, H], 1 / max(length, 1e-12), if not null. Cosine and sine [.., D/2] may be null; token t has
// position `first + t`. Source: upstream.md, B3 to B5.
//
// Threads: D/8 lanes a row, 8 numbers each; 256 a block. Bytes moved a number: 2 sizeof(T), and the angles, which stay in
// the cache. No shared memory.
#include "attention.cuh"

constexpr unsigned PREPARING = 256;

template <class T, unsigned D>
__device__ __forceinline__ void attention_prepare(
    T *hat, float *inverse_lengths, const T *from, const float *cosine, const float *sine, unsigned normalise,
    unsigned rows, unsigned tokens, unsigned first, unsigned heads, unsigned head_dim, unsigned stride, unsigned wide) {
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS;
    unsigned row = blockIdx.x * (PREPARING / CHUNKS) + threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    // Lanes past the end do as the last row's: they are needed for its sums' shuffles, and write nothing.
    bool within = row < rows;
    row = min(row, rows - 1);
    unsigned head = row % heads, token = row / heads;
    Source<const T> source = {
        from + uint64_t(token) * stride + uint64_t(head) * head_dim, stride, 1, head_dim, is_wide<D>(wide)};
    Source<T> result = {hat + uint64_t(row) * head_dim, head_dim, within ? 1u : 0u, head_dim, is_wide<D>(wide)};
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
    if (normalise != 0) {
        float squares = 0.0f;
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) squares += value[i] * value[i];
        squares = lanes_sum<CHUNKS>(squares);
        float inverse = rsqrtf(fmaxf(squares, SHORTEST * SHORTEST));
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) value[i] *= inverse;
        if (inverse_lengths != nullptr && chunk == 0 && within) inverse_lengths[row] = inverse;
    }
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) pack.value[i] = from_float<T>(value[i]);
    result.write(0, chunk, pack);
}

#define ATTENTION_PREPARE(T, suffix, D)                                                                                \
    KERNEL(                                                                                                            \
        attention_prepare_##D##_##suffix, PREPARING, T *hat, float *inverse_lengths, const T *from,                    \
        const float *cosine, const float *sine, uint32_t normalise, uint32_t rows, uint32_t tokens, uint32_t first,    \
        uint32_t heads, uint32_t head_dim, uint32_t stride, uint32_t wide) {                                           \
        attention_prepare<T, D>(                                                                                       \
            hat, inverse_lengths, from, cosine, sine, normalise, rows, tokens, first, heads, head_dim, stride, wide);  \
    }
#define ALL_ATTENTION_PREPARE(T, suffix)                                                                               \
    ATTENTION_PREPARE(T, suffix, 16)                                                                                   \
    ATTENTION_PREPARE(T, suffix, 32)                                                                                   \
    ATTENTION_PREPARE(T, suffix, 64)                                                                                   \
    ATTENTION_PREPARE(T, suffix, 128)
ALL_ATTENTION_PREPARE(bf16, bf16)
ALL_ATTENTION_PREPARE(f16, f16)
