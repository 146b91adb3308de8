// The epilogue of the kernels that form per-sample gradients in registers. For a linear layer with input rows
// x_t and output gradients b_t,
//
//     g_i = sum over the rows t of sample i of b_t x_t^T        [outputs, inputs]
//
// is the accumulator of an ordinary weight-gradient GEMM whose loop over rows stops at the end of each
// sample. A block owns one tile of it.
//
// g_i is never stored. At the end of each sample the block reduces its tile of <g_i, V>, of |g_i|^2 or of
// both to one float each, adds the tile to sum_i W_i g_i, and clears it.
//
// Shapes: `products` and `norms` are [parts, slots] in float: a part per tile (or per warpgroup's half of a
// tile), a slot per sample of the launch. A second launch sums over the parts.
// Determinism: no atomics. A sample's values are computed from its own rows, in an order that depends on the
// layer's sizes alone: they are bit-identical in any batch and at any position in it.
// Reference: src/engine/ops/meta_gradient/cpu.rs.
// Source: docs/method.md, "The fused meta-gradient"; ghost dot-product (arXiv:2406.11011), ghost norm
// (arXiv:2110.05679).
#pragma once
#include "portable.cuh"

// Starts the copy (cp.async) of a tile of STEP rows of SIDE values: columns from `first` on of rows from
// `row` on, out of [rows, columns]; zeros outside. `vectorized`: rows can be read 16 bytes at a time.
template <class Tile>
__device__ __forceinline__ void copy_rows_async(
    typename Tile::Value *to, const typename Tile::Value *from, unsigned row, unsigned rows, unsigned first,
    unsigned columns, bool vectorized) {
    using T = typename Tile::Value;
    constexpr unsigned CHUNKS = Tile::SIDE / PACK<T>;
#pragma unroll
    for (unsigned chunk = threadIdx.x; chunk < Tile::STEP * CHUNKS; chunk += Tile::THREADS) {
        unsigned r = chunk / CHUNKS, column = first + chunk % CHUNKS * PACK<T>;
        T *target = to + Tile::at(r, chunk % CHUNKS);
        bool within = row + r < rows && column < columns;
        const T *source = from + uint64_t(row + r) * columns + column;
        if (vectorized) {
            copy_16_async(target, within ? source : from, within);
        } else {
            Pack<T, PACK<T>> pack;
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                pack.value[i] = within && column + i < columns ? source[i] : from_float<T>(0.0f);
            }
            *reinterpret_cast<Pack<T, PACK<T>> *>(target) = pack;
        }
    }
}

// The inputs and outputs of the epilogue. An output that is null is skipped, at the cost of a branch.
struct Epilogue {
    float *products, *norms;
    // [gridDim.y, outputs, inputs]: the weighted sum over the samples of each y.
    float *sums;
    const float *direction, *weights;
    bool accumulate;
};

struct LayerSizes {
    unsigned samples, rows, outputs, inputs;
};

// The samples of one block. The batch is cut into chunks, one per y, with a weighted sum each (split-K over
// the samples). A launch takes `count` samples of each chunk, from `first` on: all of them, unless [parts,
// slots] would be too large.
struct SampleRange {
    unsigned begin, end, slot;

    __device__ __forceinline__ SampleRange(unsigned samples, unsigned chunk, unsigned first, unsigned count) {
        unsigned start = blockIdx.y * chunk;
        end = min(samples, start + min(chunk, first + count));
        begin = min(end, start + first);
        slot = blockIdx.y * count;
    }
};

// The epilogue of one sample: multiplies its tile by the direction's and by itself, adds it to the weighted
// sum, and with CLEAR sets it to zero. Each warp writes its sums to `warp_sums`. `direction` points to the
// calling thread's own float4s, at stride THREADS.
template <unsigned THREADS, bool CLEAR = true, unsigned VALUES, unsigned WARPS>
__device__ __forceinline__ void sample_epilogue(
    float (&gradient)[VALUES], float (&sum)[VALUES], const float4 *direction, const Epilogue &epilogue,
    float weight, float (&warp_sums)[2][WARPS], unsigned warp) {
    // Four independent sums hide the latency of each other's additions.
    if (epilogue.products != nullptr) {
        float part[4] = {};
#pragma unroll
        for (unsigned at = 0; at < VALUES / 4; ++at) {
            float4 v = direction[at * THREADS];
            part[0] += gradient[4 * at] * v.x;
            part[1] += gradient[4 * at + 1] * v.y;
            part[2] += gradient[4 * at + 2] * v.z;
            part[3] += gradient[4 * at + 3] * v.w;
        }
        float product = warp_sum((part[0] + part[1]) + (part[2] + part[3]));
        if (threadIdx.x % WARP == 0) warp_sums[0][warp] = product;
    }
    if (epilogue.norms != nullptr) {
        float part[4] = {};
#pragma unroll
        for (unsigned at = 0; at < VALUES; ++at) part[at % 4] += gradient[at] * gradient[at];
        float norm = warp_sum((part[0] + part[1]) + (part[2] + part[3]));
        if (threadIdx.x % WARP == 0) warp_sums[1][warp] = norm;
    }
    if (epilogue.sums != nullptr) {
#pragma unroll
        for (unsigned at = 0; at < VALUES; ++at) sum[at] += weight * gradient[at];
    }
    if constexpr (CLEAR) {
#pragma unroll
        for (unsigned at = 0; at < VALUES; ++at) gradient[at] = 0.0f;
    }
}

// Adds the sums of the warps in order and writes them at [part, slot]: the first thread those of the
// products, the second those of the norms.
template <unsigned WARPS>
__device__ __forceinline__ void
write_partials(const float (&warp_sums)[2][WARPS], const Epilogue &epilogue, uint64_t at, unsigned thread) {
    if (thread >= 2) return;
    float *to = thread == 0 ? epilogue.products : epilogue.norms;
    if (to == nullptr) return;
    float total = warp_sums[thread][0];
#pragma unroll
    for (unsigned warp = 1; warp < WARPS; ++warp) total += warp_sums[thread][warp];
    to[at] = total;
}

// Calls work(element, within, index) for each element of the thread's tile; `within`: it lies inside
// [outputs, inputs].
template <class Tile, class Work>
__device__ __forceinline__ void
for_each_element(unsigned first_output, unsigned first_input, const LayerSizes &sizes, Work work) {
#pragma unroll
    for (unsigned element = 0; element < Tile::VALUES; ++element) {
        unsigned output = first_output + Tile::row(element), input = first_input + Tile::column(element);
        bool within = output < sizes.outputs && input < sizes.inputs;
        work(element, within, uint64_t(output) * sizes.inputs + input);
    }
}

// Loads the thread's part of V to where sample_epilogue reads it. No other thread does.
template <class Tile>
__device__ __forceinline__ void
load_direction(float4 *to, const float *direction, unsigned output, unsigned input, const LayerSizes &sizes) {
    float four[4];
    for_each_element<Tile>(output, input, sizes, [&](unsigned element, bool within, uint64_t at) {
        four[element % 4] = within ? direction[at] : 0.0f;
        if (element % 4 == 3) {
            to[element / 4 * Tile::THREADS] = make_float4(four[0], four[1], four[2], four[3]);
        }
    });
}
