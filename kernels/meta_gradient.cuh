// What the kernels share that form the gradient of each sample in registers: g_i = sum over the sample's rows t of
// b_t x_t^T for a linear layer's output gradient b and input x, a tile of [outputs, inputs] a block.
//
// g_i is never stored. Before the block goes on to the next sample it multiplies the tile with the direction's and with
// itself, and writes one number a quantity: `products` and `norms` are [parts, slots], a part for each tile, or for each of
// its halves, and a slot for each sample of the launch. Sums over parts follow in another launch. A sample's numbers are
// made of its own rows in an order that the sizes of the layer alone decide, so they are the same bits in whatever batch,
// and at whatever place of it, it stands.
#pragma once
#include "portable.cuh"

// Starts copying a tile of STEP rows of SIDE numbers: columns from `first` on of rows from `row` on, of `rows` rows of
// `columns` numbers; zeros where there is none. `wide`: 16 bytes can be read at once.
template <class Tile>
__device__ __forceinline__ void start_rows(
    typename Tile::Number *to, const typename Tile::Number *from, unsigned row, unsigned rows, unsigned first,
    unsigned columns, bool wide) {
    using T = typename Tile::Number;
    constexpr unsigned CHUNKS = Tile::SIDE / PACK<T>;
#pragma unroll
    for (unsigned chunk = threadIdx.x; chunk < Tile::STEP * CHUNKS; chunk += Tile::THREADS) {
        unsigned r = chunk / CHUNKS, column = first + chunk % CHUNKS * PACK<T>;
        T *place = to + Tile::at(r, chunk % CHUNKS);
        bool within = row + r < rows && column < columns;
        const T *source = from + uint64_t(row + r) * columns + column;
        if (wide) {
            copy_16_async(place, within ? source : from, within);
        } else {
            Pack<T, PACK<T>> pack;
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                pack.value[i] = within && column + i < columns ? source[i] : from_float<T>(0.0f);
            }
            *reinterpret_cast<Pack<T, PACK<T>> *>(place) = pack;
        }
    }
}

// What is asked of the gradients; null is not asked for and costs a branch.
struct Asked {
    float *products, *norms;
    // [gridDim.y, outputs, inputs]: the weighted sum over the samples of each y.
    float *sums;
    const float *direction, *weights;
    bool accumulate;
};

struct LayerSizes {
    unsigned samples, rows, outputs, inputs;
};

// The samples of one block. Those of the batch are cut into chunks, one for each y, that are summed apart. A launch takes
// `count` of each chunk, from the `first` on: all of them, unless there would be too many numbers for each sample.
struct SampleRange {
    unsigned begin, end, slot;

    __device__ __forceinline__ SampleRange(unsigned samples, unsigned chunk, unsigned first, unsigned count) {
        unsigned start = blockIdx.y * chunk;
        end = min(samples, start + min(chunk, first + count));
        begin = min(end, start + first);
        slot = blockIdx.y * count;
    }
};

// Multiplies a sample's tile with the direction's and with itself, adds it to the weighted sum, and with CLEAR leaves zeros
// for the next. The sum of each warp of those that share a part goes to `warp_sums`. `direction` is the calling thread's
// own, THREADS times 16 bytes apart.
template <unsigned THREADS, bool CLEAR = true, unsigned NUMBERS, unsigned WARPS>
__device__ __forceinline__ void finish_sample(
    float (&gradient)[NUMBERS], float (&sum)[NUMBERS], const float4 *direction, const Asked &asked, float weight,
    float (&warp_sums)[2][WARPS], unsigned warp) {
    // Four sums side by side: one would wait for itself.
    if (asked.products != nullptr) {
        float part[4] = {};
#pragma unroll
        for (unsigned at = 0; at < NUMBERS / 4; ++at) {
            float4 v = direction[at * THREADS];
            part[0] += gradient[4 * at] * v.x;
            part[1] += gradient[4 * at + 1] * v.y;
            part[2] += gradient[4 * at + 2] * v.z;
            part[3] += gradient[4 * at + 3] * v.w;
        }
        float product = warp_sum((part[0] + part[1]) + (part[2] + part[3]));
        if (threadIdx.x % WARP == 0) warp_sums[0][warp] = product;
    }
    if (asked.norms != nullptr) {
        float part[4] = {};
#pragma unroll
        for (unsigned at = 0; at < NUMBERS; ++at) part[at % 4] += gradient[at] * gradient[at];
        float norm = warp_sum((part[0] + part[1]) + (part[2] + part[3]));
        if (threadIdx.x % WARP == 0) warp_sums[1][warp] = norm;
    }
    if (asked.sums != nullptr) {
#pragma unroll
        for (unsigned at = 0; at < NUMBERS; ++at) sum[at] += weight * gradient[at];
    }
    if constexpr (CLEAR) {
#pragma unroll
        for (unsigned at = 0; at < NUMBERS; ++at) gradient[at] = 0.0f;
    }
}

// Adds the sums of the warps in order and writes them at [part, slot]: the first thread those of the products, the second
// the norms'.
template <unsigned WARPS>
__device__ __forceinline__ void
write_sample(const float (&warp_sums)[2][WARPS], const Asked &asked, uint64_t at, unsigned thread) {
    if (thread >= 2) return;
    float *to = thread == 0 ? asked.products : asked.norms;
    if (to == nullptr) return;
    float total = warp_sums[thread][0];
#pragma unroll
    for (unsigned warp = 1; warp < WARPS; ++warp) total += warp_sums[thread][warp];
    to[at] = total;
}

// Calls work(number, at) for each number of the thread's tile that lies within [outputs, inputs].
template <class Tile, class Work>
__device__ __forceinline__ void
each_place(unsigned first_output, unsigned first_input, const LayerSizes &sizes, Work work) {
#pragma unroll
    for (unsigned number = 0; number < Tile::NUMBERS; ++number) {
        unsigned output = first_output + Tile::row(number), input = first_input + Tile::column(number);
        bool within = output < sizes.outputs && input < sizes.inputs;
        work(number, within, uint64_t(output) * sizes.inputs + input);
    }
}

// Puts the thread's part of the direction where finish_sample reads it; no other thread does.
template <class Tile>
__device__ __forceinline__ void
bring_direction(float4 *to, const float *direction, unsigned output, unsigned input, const LayerSizes &sizes) {
    float four[4];
    each_place<Tile>(output, input, sizes, [&](unsigned number, bool within, uint64_t at) {
        four[number % 4] = within ? direction[at] : 0.0f;
        if (number % 4 == 3) to[number / 4 * Tile::THREADS] = make_float4(four[0], four[1], four[2], four[3]);
    });
}
