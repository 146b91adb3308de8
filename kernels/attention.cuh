// Shared code of the attention kernels: the assignment of work to blocks, swizzled tiles of 16-bit values in
// shared memory, mma fragments, and the backward of RoPE and QK-norm.
//
// With rope the rotation of a row by its position, q^ = l2norm(rope(q)) and k^ = l2norm(rope(k)), the logits
// are
//
//     logit = scale <q^, k^>,    p = softmax(logit) = 2^(logit log2(e) - lse)
//
// Exponentials are taken in base 2 (ex2.approx is one instruction), so the scale is multiplied by log2(e)
// once per head, and the forward keeps one float per row, lse = log2(sum of 2^(logit log2(e))), for the
// backward.
//
// Precision: values are bf16 or f16; fragments of mma.sync.m16n8k16 accumulate in f32; statistics are f32.
// Determinism: no atomics. Every sum is made by one warp or one thread in an order that depends on the shapes
// alone.
// Reference: src/engine/ops/attention/cpu.rs.
// Source: FlashAttention-2 (arXiv:2307.08691); online softmax (arXiv:1805.02867); RoPE (arXiv:2104.09864);
// QK-norm (arXiv:2010.04245). Upstream's use of them: docs/upstream.md, B3 to B5.
#pragma once
#include "portable.cuh"

#include <type_traits>

constexpr float LOG2_E = 1.44269504088896341f;
// Upstream's clamp of a head's log scale, ln 100, and the epsilon of its l2 normalization.
constexpr float MAX_LOG_SCALE = 4.60517018598809137f;
constexpr float MIN_NORM = 1e-12f;
// Keys per tile, and queries per tile in the kernel that keeps keys.
constexpr unsigned TILE = 64;
// (sample, head) pairs that are scheduled together: few enough that their keys and values stay in L2 (64
// heads of 680 tokens and 64 channels are 11 MB), enough to fill the GPU.
constexpr unsigned GROUP = 64;

struct WorkTile {
    // task = sample * heads + head; tile counts tiles of rows within the task.
    unsigned task, sample, head, tile;
};

// Maps the block index to its tile, the tile scheduler: groups of GROUP tasks, and within a group tile 0 of
// every task, then tile 1, and so on.
__device__ __forceinline__ WorkTile
work_tile(unsigned block, unsigned tasks, unsigned tiles, unsigned heads) {
    unsigned group = block / (GROUP * tiles), first = group * GROUP;
    unsigned size = min(GROUP, tasks - first), within = block - first * tiles;
    unsigned task = first + within % size;
    return {task, task / heads, task % heads, within / size};
}

// Cosines and sines of RoPE, [L, half] each; no rotation if `cosine` is null.
struct Rope {
    const float *cosine, *sine;
    unsigned half;
};

// The rows of the last `queries` positions of `keys`: decoding with a KV cache.
__device__ __forceinline__ Rope last_positions(Rope rope, unsigned queries, unsigned keys) {
    if (rope.cosine == nullptr) return rope;
    uint64_t first = uint64_t(keys - queries) * rope.half;
    return {rope.cosine + first, rope.sine + first, rope.half};
}

// The scale of the logits: exp(min(log_scale[head], ln 100)) if learned, else the fixed 0.25 / sqrt(D).
__device__ __forceinline__ float logit_scale(const float *log_scale, unsigned head, float fixed) {
    if (log_scale == nullptr) return fixed;
    // Not fminf, which would drop a NaN.
    return expf(log_scale[head] > MAX_LOG_SCALE ? MAX_LOG_SCALE : log_scale[head]);
}

// The number of keys that a query sees under the block-causal mask.
__device__ __forceinline__ unsigned visible_keys(const uint32_t *visible, unsigned query, unsigned keys) {
    return visible == nullptr ? keys : min(visible[query], keys);
}

// One bit for each of the 32 keys from `first` on: whether the sample's mask allows it. All lanes of a warp
// call it.
__device__ __forceinline__ unsigned unmasked_keys(const uint32_t *mask, unsigned first, unsigned keys) {
    unsigned key = first + threadIdx.x % WARP;
    return __ballot_sync(ALL_LANES, key < keys && (mask == nullptr || mask[key] == 1));
}

// The number of leading query tiles that see none of the keys from `key` on. All lanes of a warp call it.
__device__ __forceinline__ unsigned
masked_tiles(const uint32_t *visible, unsigned key, unsigned queries, unsigned keys, unsigned tiles) {
    unsigned masked = 0;
    for (unsigned first = 0; first < tiles; first += WARP) {
        unsigned tile = first + threadIdx.x % WARP, last = min(tile * TILE + TILE, queries) - 1;
        unsigned votes = __ballot_sync(ALL_LANES, tile < tiles && visible_keys(visible, last, keys) <= key);
        masked += __popc(votes);
    }
    return masked;
}

// Butterfly sum over the lanes whose indices differ only in the bits from WIDTH up to below LIMIT.
template <unsigned LIMIT, unsigned WIDTH = 1> __device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
    for (unsigned other = LIMIT / 2; other >= WIDTH; other /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, other);
    }
    return value;
}

// Tensor core kernels: 4 warps per block, one m-tile of 16 rows per warp, or two where registers allow (D <=
// 64): then every B fragment that is loaded feeds two mma.
constexpr unsigned WARPS = 4, THREADS = WARPS * WARP;
template <unsigned D> constexpr unsigned M_TILES = D <= 64 ? 2 : 1;
template <unsigned D> constexpr unsigned QUERY_ROWS = WARPS * 16 * M_TILES<D>;

// Whether rows are read 16 bytes at a time. A head whose width is not a multiple of 8 uses the kernels for
// D = 16, 32 or 128: in those for D = 64 there are no registers left for the 8-byte path.
template <unsigned D> __device__ __forceinline__ bool is_vectorized(unsigned vectorized) {
    return D == 64 || vectorized != 0;
}

// Tiles of 16-bit values ------------------------------------------------------------------------------------

// A tile of rows of D values in shared memory, XOR-swizzled: the 16-byte chunk c of row r is stored at chunk
// c ^ (r / ROWS_PER_LINE), so that the 8 rows that ldmatrix reads at once lie in different banks.
template <unsigned D> struct Tile {
    static constexpr unsigned CHUNKS = D / 8;
    static constexpr unsigned ROWS_PER_LINE = CHUNKS < 8 ? 8 / CHUNKS : 1;
    static constexpr unsigned XOR_MASK = CHUNKS < 8 ? CHUNKS - 1 : 7;

    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * D + (chunk ^ (row / ROWS_PER_LINE & XOR_MASK)) * 8;
    }
};

// One head's rows in global memory at row stride `stride`. `vectorized`: rows can be read 16 bytes at a time;
// 8 bytes always can.
template <class T> struct Source {
    T *first;
    unsigned stride, length, head_dim;
    bool vectorized;

    __device__ __forceinline__ T *at(unsigned row, unsigned chunk) const {
        return first + uint64_t(row) * stride + chunk * 8;
    }
    __device__ __forceinline__ bool has(unsigned row, unsigned chunk) const {
        return row < length && chunk * 8 < head_dim;
    }
    // Eight values; zeros past the last row or channel.
    __device__ __forceinline__ Pack<std::remove_const_t<T>, 8> read(unsigned row, unsigned chunk) const {
        using Value = std::remove_const_t<T>;
        Pack<Value, 8> pack;
        bool has_high = chunk * 8 + 4 < head_dim;
        if (!has(row, chunk)) {
#pragma unroll
            for (unsigned i = 0; i < 8; ++i) pack.value[i] = from_float<Value>(0.0f);
        } else if (vectorized) {
            pack = *reinterpret_cast<const Pack<Value, 8> *>(at(row, chunk));
        } else {
            auto from = reinterpret_cast<const Pack<Value, 4> *>(at(row, chunk));
            auto low = from[0];
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) pack.value[i] = low.value[i];
            Pack<Value, 4> high;
            if (has_high) high = from[1];
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                pack.value[4 + i] = has_high ? high.value[i] : from_float<Value>(0.0f);
            }
        }
        return pack;
    }
    __device__ __forceinline__ void write(unsigned row, unsigned chunk, const Pack<T, 8> &pack) const {
        if (!has(row, chunk)) return;
        if (vectorized) {
            *reinterpret_cast<Pack<T, 8> *>(at(row, chunk)) = pack;
            return;
        }
        auto to = reinterpret_cast<Pack<T, 4> *>(at(row, chunk));
        Pack<T, 4> half;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) half.value[i] = pack.value[i];
        to[0] = half;
        if (chunk * 8 + 4 >= head_dim) return;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) half.value[i] = pack.value[4 + i];
        to[1] = half;
    }
};

// Starts the copy (cp.async) of ROWS rows from `row` on into a tile. Rows and channels past the end become
// zeros.
template <unsigned D, unsigned ROWS, unsigned THREADS, class T>
__device__ __forceinline__ void copy_tile_async(T *tile, const Source<const T> &source, unsigned row) {
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS, COUNT = ROWS * CHUNKS;
#pragma unroll
    for (unsigned from = 0; from < COUNT; from += THREADS) {
        unsigned at = from + threadIdx.x, chunk = at % CHUNKS, to = Tile<D>::at(at / CHUNKS, chunk);
        if (COUNT % THREADS != 0 && at >= COUNT) break;
        if (source.vectorized) {
            bool keep = source.has(row + at / CHUNKS, chunk);
            copy_16_async(tile + to, keep ? source.at(row + at / CHUNKS, chunk) : source.first, keep);
        } else {
            *reinterpret_cast<Pack<T, 8> *>(tile + to) = source.read(row + at / CHUNKS, chunk);
        }
    }
}

// Fragments of mma_16x8x16 ----------------------------------------------------------------------------------

// The A fragment: 16 rows from `row` on, channels 16 step to 16 step + 15.
template <unsigned D, class T>
__device__ __forceinline__ void load_a(uint32_t (&to)[4], const T *tile, unsigned row, unsigned step) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices(to, tile + Tile<D>::at(row + lane % 16, 2 * step + lane / 16));
}

// The B fragments for a product over channels: 16 rows of the tile are two n-tiles of 8 columns.
template <unsigned D, class T>
__device__ __forceinline__ void load_b(uint32_t (&to)[4], const T *tile, unsigned row, unsigned step) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices(to, tile + Tile<D>::at(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// The B fragments for a product over rows, loaded transposed: 16 rows are the k dimension, channels 16 pair
// to 16 pair + 15 are two n-tiles of 8 columns.
template <unsigned D, class T>
__device__ __forceinline__ void
load_b_transposed(uint32_t (&to)[4], const T *tile, unsigned row, unsigned pair) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices<4, true>(to, tile + Tile<D>::at(row + lane % 16, 2 * pair + lane / 16));
}

// Multiplies one A fragment by two B fragments.
template <class T>
__device__ __forceinline__ void
mma_pair(float (&first)[4], float (&second)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
    mma_16x8x16<T>(first, a, low);
    mma_16x8x16<T>(second, a, high);
}

// Two 16x8 accumulators, rounded to T, as one 16x16 A fragment.
template <class T>
__device__ __forceinline__ void pack_a(uint32_t (&to)[4], const float (&first)[4], const float (&second)[4]) {
    to[0] = pack_two<T>(first[0], first[1]);
    to[1] = pack_two<T>(first[2], first[3]);
    to[2] = pack_two<T>(second[0], second[1]);
    to[3] = pack_two<T>(second[2], second[3]);
}

// Where this lane's accumulators lie in the 16x8 tile: values 2 pair and 2 pair + 1 are in row
// result_row(pair), in columns result_column() and the next.
__device__ __forceinline__ unsigned result_row(unsigned pair) { return threadIdx.x % WARP / 4 + 8 * pair; }
__device__ __forceinline__ unsigned result_column() { return threadIdx.x % 4 * 2; }

// The backward of RoPE and QK-norm for 16 rows, in place. With y = l2norm(rope(x)) and the gradient d of y:
//
//     d_x = rope^-1((d - y <y, d>) / |x|)
//
// `hat` holds y as A fragments, `inverse` 1 / |x| of this lane's two rows. Returns the sum of <y, d> over the
// lane's rows, from which the gradient of the log scale is computed.
template <unsigned D, class T>
__device__ __forceinline__ float rope_norm_backward(
    float (&d)[D / 8][4], const uint32_t (&hat)[D / 16][4], const float (&inverse)[2], bool normalize,
    unsigned row, unsigned length, const Rope &rope) {
    float total = 0.0f;
#pragma unroll
    for (unsigned pair = 0; pair < 2; ++pair) {
        float dot = 0.0f;
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
            float low, high;
            unpack_two<T>(hat[n / 2][n % 2 * 2 + pair], low, high);
            dot += d[n][2 * pair] * low + d[n][2 * pair + 1] * high;
        }
        dot = lanes_sum<4>(dot);
        total += dot;
        unsigned token = row + result_row(pair);
        bool rotate = rope.cosine != nullptr && token < length;
        // Below epsilon the norm is a constant, so the radial part of the gradient stays.
        if (!(inverse[pair] < 1.0f / MIN_NORM)) dot = 0.0f;
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
            float &real = d[n][2 * pair], &imaginary = d[n][2 * pair + 1];
            if (normalize) {
                float low, high;
                unpack_two<T>(hat[n / 2][n % 2 * 2 + pair], low, high);
                real = (real - low * dot) * inverse[pair];
                imaginary = (imaginary - high * dot) * inverse[pair];
            }
            unsigned angle = n * 4 + result_column() / 2;
            if (rotate && angle < rope.half) {
                uint64_t at = uint64_t(token) * rope.half + angle;
                float cosine = rope.cosine[at], sine = rope.sine[at], before = real;
                real = before * cosine + imaginary * sine;
                imaginary = imaginary * cosine - before * sine;
            }
        }
    }
    return total;
}

// Rounds the accumulators of 16 rows into a tile whose rows no other warp uses.
template <unsigned D, class T>
__device__ __forceinline__ void store_results(T *tile, const float (&result)[D / 8][4], unsigned row) {
#pragma unroll
    for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            auto *to =
                reinterpret_cast<uint32_t *>(tile + Tile<D>::at(row + result_row(pair), n) + result_column());
            *to = pack_two<T>(result[n][2 * pair], result[n][2 * pair + 1]);
        }
    }
}

// Copies rows of a tile, written by this same warp, to rows `to` and following in global memory.
template <unsigned D, unsigned ROWS, class T>
__device__ __forceinline__ void
copy_out_rows(const Source<T> &result, const T *tile, unsigned row, unsigned to) {
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS;
#pragma unroll
    for (unsigned from = 0; from < ROWS * CHUNKS; from += WARP) {
        unsigned at = from + threadIdx.x % WARP, chunk = at % CHUNKS;
        result.write(
            to + at / CHUNKS, chunk,
            *reinterpret_cast<const Pack<T, 8> *>(tile + Tile<D>::at(row + at / CHUNKS, chunk)));
    }
}
