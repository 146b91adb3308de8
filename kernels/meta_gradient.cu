// The gradient of each sample of a linear layer, formed in registers and never stored: its inner product with a direction,
// its squared norm, and the weighted sum of all. Also the same of gradients that are there for each sample, sums over the
// rows of each sample, and the direction as AdamW sees it.
//
//   in_tile            g_i = sum_t b_t x_t^T of [outputs, inputs]:  <g_i, V>,  |g_i|^2,  sum_i w_i g_i
//   dot_samples        the first two of gradients d [samples, N]
//   gather_samples     table[sample, k, n] = sum over the rows r with index[r] = k of d[sample, r, n]
//   precondition       v / (sqrt(second_moment inverse_correction) + epsilon)
//
// Threads of in_tile: a block of 8 warps has 128 by 128 numbers of the gradient (64 by 64 in f32), and goes through its
// samples in order. 32 rows a step come by asynchronous copies, 3 steps ahead, also over the end of a sample: the steps
// of a sample start with its first row, and rows past its last are zeros. Each warp has 64 by 32 numbers in registers,
// and as many of the weighted sum; the direction stays in shared memory, each thread's own numbers side by side.
// Shared memory: 64 KB of rows, and 64 KB of the direction; one block a multiprocessor.
//
// Work for T rows a sample: the weight gradient's products, T rounded up to 16, and for each sample and number of the
// gradient up to 3 multiplications beside. At T = 680 those are 3 for 1376 on tensor cores. Limits on an H100 for
// S 64, T 680, [3072, 1024], computed and not yet measured: 274 GFLOP or 0.46 ms at the 600 TFLOP/s of mma.sync.
// Blocks of one launch read the same rows at about the same time, so memory is read about once.
#include "elementwise.cuh"
#include "meta_gradient.cuh"

constexpr unsigned THREADS = 256, STAGES = 4;

// A warp's numbers on tensor cores, for bf16 and f16: 64 outputs by 32 inputs, of 2 by 4 warps.
template <class T> struct TensorTile {
    using Number = T;
    static constexpr unsigned THREADS = ::THREADS, SIDE = 128, STEP = 32, NUMBERS = 64;
    static constexpr unsigned OUTPUTS = 4, INPUTS = 4;

    static __device__ __forceinline__ unsigned first_output() { return threadIdx.x / WARP / 4 * 64; }
    static __device__ __forceinline__ unsigned first_input() { return threadIdx.x / WARP % 4 * 32; }

    // Where a number of the thread's lies: of each product of 16 by 8, in the layout of mma_16x8x16.
    static __device__ __forceinline__ unsigned row(unsigned number) {
        return first_output() + number / 16 * 16 + threadIdx.x % WARP / 4 + number / 2 % 2 * 8;
    }
    static __device__ __forceinline__ unsigned column(unsigned number) {
        return first_input() + number / 4 % INPUTS * 8 + threadIdx.x % 4 * 2 + number % 2;
    }

    // Where 8 numbers of a row lie: exchanged, so that the 8 rows that load_matrices reads at once are in different banks.
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * SIDE + (chunk ^ (row & 7)) * 8;
    }

    // Rows are the inner size here, so both operands are read transposed.
    static __device__ __forceinline__ void
    multiply(float (&gradient)[NUMBERS], const T *d_output, const T *input, unsigned rows) {
        unsigned matrix = threadIdx.x % WARP / 8, within = threadIdx.x % 8;
#pragma unroll
        for (unsigned k = 0; k < STEP; k += 16) {
            if (k >= rows) break;
            uint32_t right[INPUTS][2];
#pragma unroll
            for (unsigned n = 0; n < INPUTS; n += 2) {
                unsigned chunk = first_input() / 8 + n + matrix / 2;
                uint32_t both[4];
                load_matrices<4, true>(both, input + at(k + matrix % 2 * 8 + within, chunk));
#pragma unroll
                for (unsigned i = 0; i < 4; ++i) right[n + i / 2][i % 2] = both[i];
            }
#pragma unroll
            for (unsigned m = 0; m < OUTPUTS; ++m) {
                unsigned chunk = first_output() / 8 + m * 2 + matrix % 2;
                uint32_t left[4];
                load_matrices<4, true>(left, d_output + at(k + matrix / 2 * 8 + within, chunk));
#pragma unroll
                for (unsigned n = 0; n < INPUTS; ++n) {
                    float(&part)[4] = *reinterpret_cast<float(*)[4]>(gradient + (m * INPUTS + n) * 4);
                    mma_16x8x16<T>(part, left, right[n]);
                }
            }
        }
    }
};

// A thread's 4 by 4 numbers in f32, which tensor cores would round.
struct PlainTile {
    using Number = float;
    static constexpr unsigned THREADS = ::THREADS, SIDE = 64, STEP = 16, NUMBERS = 16;

    static __device__ __forceinline__ unsigned row(unsigned number) { return threadIdx.x / 16 * 4 + number / 4; }
    static __device__ __forceinline__ unsigned column(unsigned number) { return threadIdx.x % 16 * 4 + number % 4; }
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) { return row * SIDE + chunk * 4; }

    static __device__ __forceinline__ void
    multiply(float (&gradient)[NUMBERS], const float *d_output, const float *input, unsigned rows) {
#pragma unroll 2
        for (unsigned k = 0; k < min(rows, STEP); ++k) {
            float left[4], right[4];
            load<4>(left, d_output + k * SIDE + threadIdx.x / 16 * 4);
            load<4>(right, input + k * SIDE + threadIdx.x % 16 * 4);
#pragma unroll
            for (unsigned number = 0; number < NUMBERS; ++number) {
                gradient[number] += left[number / 4] * right[number % 4];
            }
        }
    }
};

template <class Tile>
__device__ __forceinline__ void in_tile(
    const Asked &asked, const typename Tile::Number *input, const typename Tile::Number *d_output,
    const LayerSizes &sizes, const SampleRange &range, unsigned slots) {
    using T = typename Tile::Number;
    constexpr unsigned PART = Tile::STEP * Tile::SIDE, WARPS = THREADS / WARP;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, warp_sums, [2][2][WARPS]);
    float4 *direction = reinterpret_cast<float4 *>(shared + STAGES * 2 * PART) + threadIdx.x;
    unsigned across = (sizes.inputs + Tile::SIDE - 1) / Tile::SIDE;
    unsigned output = blockIdx.x / across * Tile::SIDE, column = blockIdx.x % across * Tile::SIDE;
    unsigned steps = (sizes.rows + Tile::STEP - 1) / Tile::STEP;
    bool wide_output = packs(d_output, sizes.outputs), wide_input = packs(input, sizes.inputs);

    unsigned next_sample = range.begin, next_step = 0;
    auto start_next = [&](unsigned stage) {
        if (next_sample < range.end) {
            T *to = shared + stage * 2 * PART;
            uint64_t row = uint64_t(next_sample) * sizes.rows;
            unsigned step = next_step * Tile::STEP;
            start_rows<Tile>(
                to, d_output + row * sizes.outputs, step, sizes.rows, output, sizes.outputs, wide_output);
            start_rows<Tile>(
                to + PART, input + row * sizes.inputs, step, sizes.rows, column, sizes.inputs, wide_input);
            if (++next_step == steps) {
                next_step = 0;
                ++next_sample;
            }
        }
        commit_copies();
    };
    for (unsigned stage = 0; stage < STAGES - 1; ++stage) start_next(stage);

    float *sums = nullptr;
    float gradient[Tile::NUMBERS], sum[Tile::NUMBERS];
    if (asked.sums != nullptr) sums = asked.sums + uint64_t(blockIdx.y) * sizes.outputs * sizes.inputs;
    each_place<Tile>(output, column, sizes, [&](unsigned number, bool within, uint64_t at) {
        gradient[number] = 0.0f;
        sum[number] = asked.accumulate && within && sums != nullptr ? sums[at] : 0.0f;
    });
    if (asked.products != nullptr) bring_direction<Tile>(direction, asked.direction, output, column, sizes);

    uint64_t part = uint64_t(blockIdx.x) * slots + range.slot;
    unsigned stage = 0;
    for (unsigned sample = range.begin; sample < range.end; ++sample) {
        float weight = sums == nullptr ? 0.0f : asked.weights[sample];
        for (unsigned step = 0; step < steps; ++step) {
            wait_copies<STAGES - 2>();
            // From here on all see this step's rows, and none reads those of the step before.
            __syncthreads();
            if (step == 0 && sample > range.begin) {
                write_sample(warp_sums[(sample - 1) % 2], asked, part + sample - 1 - range.begin, threadIdx.x);
            }
            start_next((stage + STAGES - 1) % STAGES);
            T *rows = shared + stage * 2 * PART;
            Tile::multiply(gradient, rows, rows + PART, sizes.rows - step * Tile::STEP);
            stage = (stage + 1) % STAGES;
        }
        finish_sample<THREADS>(
            gradient, sum, direction, asked, weight, warp_sums[sample % 2], threadIdx.x / WARP);
    }
    __syncthreads();
    if (range.begin < range.end) {
        unsigned sample = range.end - 1;
        write_sample(warp_sums[sample % 2], asked, part + sample - range.begin, threadIdx.x);
    }
    if (sums == nullptr) return;
    each_place<Tile>(output, column, sizes, [&](unsigned number, bool within, uint64_t at) {
        if (within) sums[at] = sum[number];
    });
}

// <d_i, V> and |d_i|^2 of one part of each sample: block (part, sample). Both results are [parts, samples].
constexpr unsigned DOT_SHARE = 8192;

template <class T>
__device__ __forceinline__ void
dot_samples(float *products, float *norms, const T *d, const float *direction, uint64_t count) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    const T *mine = d + blockIdx.y * count;
    uint64_t begin = uint64_t(blockIdx.x) * DOT_SHARE, end = min(count, begin + DOT_SHARE);
    float product = 0.0f, norm = 0.0f;
    for (uint64_t at = begin + threadIdx.x; at < end; at += THREADS) {
        float value = widen(mine[at]);
        if (products != nullptr) product += value * direction[at];
        norm += value * value;
    }
    uint64_t to = uint64_t(blockIdx.x) * gridDim.y + blockIdx.y;
    if (products != nullptr) {
        product = block_reduce<THREADS>(product, scratch);
        if (threadIdx.x == 0) products[to] = product;
    }
    if (norms != nullptr) {
        norm = block_reduce<THREADS>(norm, scratch);
        if (threadIdx.x == 0) norms[to] = norm;
    }
}

// Block: 32 columns (x) of one table row (y) of a sample (z); rows are taken 8 at a time by 8 warps. `order` and `starts`
// as in accumulate.cu.
template <class T>
__device__ __forceinline__ void gather_samples(
    float *tables, const T *d, const uint32_t *starts, const uint32_t *order, unsigned tokens, unsigned columns) {
    constexpr unsigned WARPS = THREADS / WARP;
    SHARED_ARRAY(float, partial, [WARPS][WARP]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    unsigned begin = starts[blockIdx.y], count = starts[blockIdx.y + 1] - begin;
    const T *mine = d + uint64_t(blockIdx.z) * tokens * columns;
    float sum = 0.0f;
    if (c < columns) {
        for (unsigned at = warp; at < count; at += WARPS) sum += widen(mine[uint64_t(order[begin + at]) * columns + c]);
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= columns) return;
#pragma unroll
    for (unsigned other = 1; other < WARPS; ++other) sum += partial[other][lane];
    tables[(uint64_t(blockIdx.z) * gridDim.y + blockIdx.y) * columns + c] = sum;
}

// `factors`: the inverse of AdamW's correction of the second moment, 0 before its first step, and its epsilon. They are in
// memory so that a recorded launch finds those of its step.
KERNEL(
    precondition_f32, EACH_THREADS, float *to, const float *v, const float *second_moment, const float *factors,
    uint64_t count) {
    float inverse = factors[0], epsilon = factors[1];
    const float *const inputs[2] = {v, second_moment};
    each(to, inputs, count, [inverse, epsilon](const float (&in)[2]) {
        return inverse == 0.0f ? 0.0f : in[0] / (sqrtf(in[1] * inverse) + epsilon);
    });
}

#define IN_TILE(T, Tile, suffix)                                                                                       \
    KERNEL(                                                                                                            \
        in_tile_##suffix, THREADS, float *products, float *norms, float *sums, const float *direction,                 \
        const float *weights, const T *input, const T *d_output, uint32_t samples, uint32_t rows, uint32_t outputs,    \
        uint32_t inputs, uint32_t chunk, uint32_t first, uint32_t count, uint32_t slots, uint32_t accumulate) {        \
        in_tile<Tile>(                                                                                                 \
            {products, norms, sums, direction, weights, accumulate != 0}, input, d_output,                             \
            {samples, rows, outputs, inputs}, {samples, chunk, first, count}, slots);                                  \
    }
IN_TILE(float, PlainTile, f32)
IN_TILE(bf16, TensorTile<bf16>, bf16)
IN_TILE(f16, TensorTile<f16>, f16)

#define OF_SAMPLES(T, suffix)                                                                                          \
    KERNEL(                                                                                                            \
        dot_samples_##suffix, THREADS, float *products, float *norms, const T *d, const float *direction,              \
        uint64_t count) {                                                                                              \
        dot_samples(products, norms, d, direction, count);                                                             \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        gather_samples_##suffix, THREADS, float *tables, const T *d, const uint32_t *starts, const uint32_t *order,    \
        uint32_t tokens, uint32_t columns) {                                                                           \
        gather_samples(tables, d, starts, order, tokens, columns);                                                     \
    }
OF_SAMPLES(float, f32)
OF_SAMPLES(bf16, bf16)
OF_SAMPLES(f16, f16)
