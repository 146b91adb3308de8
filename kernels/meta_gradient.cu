// The gradient of each sample of a linear layer, formed in registers and never stored: its inner product with a direction,
// its squared norm, and the weighted sum of all. Also the same of gradients that are there for each sample, sums over the
// rows of each sample, and the direction as AdamW sees it.
//
//   in_tile            g_i = sum_t b_t x_t^T of [outputs, inputs]:  <g_i, V>,  |g_i|^2,  sum_i w_i g_i
//   dot_samples        the first two of gradients d [samples, N]
//   gather_samples     table[sample, k, n] = sum over the rows r with index[r] = k of d[sample, r, n]
//   precondition       v / (sqrt(second_moment inverse_correction) + epsilon)
//
// Threads of in_tile: a block of 8 warps has 128 by 128 numbers of the gradient (64 by 64 in f32), and goes through
// its samples in order. 64 rows a step come by asynchronous copies, 2 steps ahead (16 rows, and 3 steps, in f32), also
// over the end of a sample: the steps of a sample start with its first row, and rows past its last are zeros. Each
// warp has 64 by 32 numbers in registers, and as many of the weighted sum; it reads the factors of the next 16 rows
// while it multiplies those of the last, over a step's end too, as there are no more than 2 warps for each part of a
// multiprocessor to wait for one another. The direction stays in shared memory, each thread's own numbers side by
// side.
// Shared memory: 96 KB of rows, and 64 KB of the direction; one block a multiprocessor. In f32 32 KB and 16 KB.
//
// Work for T rows a sample: the weight gradient's products, T rounded up to 16, and for each sample and number of the
// gradient up to 3 multiplications beside. At T = 680 those are 3 for 1376 on tensor cores. Limits on an H100 for S 64,
// T 680, [3072, 1024], computed: 277 GFLOP or 0.46 ms at the 600 TFLOP/s of mma.sync. The factors of 16 rows are
// 24 KB that warps read from shared memory and 8 KB that come there: 256 cycles, where mma.sync takes about 210. Blocks
// of one launch read the same rows at about the same time, so memory is read about once.
//
// Measured for that layer in bf16 on an H200 on 2026-11-26: 0.98 ms; 1.19 ms with 4 stages of 32 rows, and 1.12 ms with
// those and rows past a sample's last multiplied as others are, which with 64 rows needs more registers than there are;
// 1.52 ms with 512 threads; 1.85 ms before factors were read ahead. cuBLAS's weight gradient alone takes 0.35 ms, by
// warpgroup instructions (meta_gradient_hopper.cu).
#include "elementwise.cuh"
#include "meta_gradient.cuh"

constexpr unsigned THREADS = 256;

// A warp's numbers on tensor cores, for bf16 and f16: 64 outputs by 32 inputs, of 2 by 4 warps.
template <class T> struct TensorTile {
    using Number = T;
    // ROWS are multiplied at once.
    static constexpr unsigned SIDE = 128, STEP = 64, STAGES = 3, ROWS = 16, NUMBERS = 64;
    static constexpr unsigned UNROLL = STEP / ROWS;
    static constexpr unsigned THREADS = ::THREADS, OUTPUTS = 4, INPUTS = 4;

    // Of ROWS rows, as mma_16x8x16 takes them.
    struct Factors {
        uint32_t left[OUTPUTS][4], right[INPUTS][2];
    };

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

    // Where the thread's factors of the first ROWS of a step lie. Those of others are a multiple of 8 rows further.
    unsigned left_at[OUTPUTS], right_at[INPUTS / 2];

    __device__ __forceinline__ TensorTile() {
        unsigned matrix = threadIdx.x % WARP / 8, within = threadIdx.x % 8;
#pragma unroll
        for (unsigned m = 0; m < OUTPUTS; ++m) {
            left_at[m] = at(matrix / 2 * 8 + within, first_output() / 8 + m * 2 + matrix % 2);
        }
#pragma unroll
        for (unsigned n = 0; n < INPUTS / 2; ++n) {
            right_at[n] = at(matrix % 2 * 8 + within, first_input() / 8 + n * 2 + matrix / 2);
        }
    }

    // Rows are the inner size here, so both operands are read transposed.
    __device__ __forceinline__ void bring(Factors &to, const T *d_output, const T *input, unsigned row) const {
#pragma unroll
        for (unsigned n = 0; n < INPUTS / 2; ++n) {
            uint32_t both[4];
            load_matrices<4, true>(both, input + right_at[n] + row * SIDE);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) to.right[n * 2 + i / 2][i % 2] = both[i];
        }
#pragma unroll
        for (unsigned m = 0; m < OUTPUTS; ++m) load_matrices<4, true>(to.left[m], d_output + left_at[m] + row * SIDE);
    }

    static __device__ __forceinline__ void multiply(float (&gradient)[NUMBERS], const Factors &factors) {
#pragma unroll
        for (unsigned m = 0; m < OUTPUTS; ++m) {
#pragma unroll
            for (unsigned n = 0; n < INPUTS; ++n) {
                float(&part)[4] = *reinterpret_cast<float(*)[4]>(gradient + (m * INPUTS + n) * 4);
                mma_16x8x16<T>(part, factors.left[m], factors.right[n]);
            }
        }
    }
};

// A thread's 4 by 4 numbers in f32, which tensor cores would round.
struct PlainTile {
    using Number = float;
    static constexpr unsigned THREADS = ::THREADS, SIDE = 64, STEP = 16, STAGES = 4, ROWS = 2, NUMBERS = 16;
    static constexpr unsigned UNROLL = 2;

    struct Factors {
        float left[ROWS][4], right[ROWS][4];
    };

    static __device__ __forceinline__ unsigned row(unsigned number) { return threadIdx.x / 16 * 4 + number / 4; }
    static __device__ __forceinline__ unsigned column(unsigned number) { return threadIdx.x % 16 * 4 + number % 4; }
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) { return row * SIDE + chunk * 4; }

    __device__ __forceinline__ void bring(Factors &to, const float *d_output, const float *input, unsigned row) const {
#pragma unroll
        for (unsigned k = 0; k < ROWS; ++k) {
            load<4>(to.left[k], d_output + (row + k) * SIDE + threadIdx.x / 16 * 4);
            load<4>(to.right[k], input + (row + k) * SIDE + threadIdx.x % 16 * 4);
        }
    }

    static __device__ __forceinline__ void multiply(float (&gradient)[NUMBERS], const Factors &factors) {
#pragma unroll
        for (unsigned k = 0; k < ROWS; ++k) {
#pragma unroll
            for (unsigned number = 0; number < NUMBERS; ++number) {
                gradient[number] += factors.left[k][number / 4] * factors.right[k][number % 4];
            }
        }
    }
};

// What a thread copies of one operand, step after step: 16 bytes of every AT_ONCE-th row. The rows of one sample follow
// those of another. WIDE: 16 bytes can be read at once.
template <class Tile, bool WIDE> struct Steps {
    using T = typename Tile::Number;
    static constexpr unsigned CHUNKS = Tile::SIDE / PACK<T>, AT_ONCE = THREADS / CHUNKS;

    // The thread's first numbers of the next step, and how many columns the layer has from there on.
    const T *next;
    unsigned columns, left;

    __device__ __forceinline__ Steps(const T *rows, uint64_t row, unsigned first, unsigned columns) : columns(columns) {
        unsigned column = first + threadIdx.x % CHUNKS * PACK<T>;
        next = rows + (row + threadIdx.x / CHUNKS) * columns + column;
        left = column < columns ? columns - column : 0;
    }

    // Starts copying the next step, for which the sample has `rows` rows left; zeros where there is none.
    __device__ __forceinline__ void start(T *to, unsigned rows) {
        const T *from = next;
        T *place = to + Tile::at(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
        static_assert(AT_ONCE % 8 == 0, "rows that far apart exchange their chunks alike");
#pragma unroll
        for (unsigned row = 0; row < Tile::STEP; row += AT_ONCE) {
            bool within = threadIdx.x / CHUNKS + row < rows && left > 0;
            if constexpr (WIDE) {
                copy_16_async(place + row * Tile::SIDE, from, within);
            } else {
                Pack<T, PACK<T>> pack;
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) pack.value[i] = within && i < left ? from[i] : from_float<T>(0.0f);
                *reinterpret_cast<Pack<T, PACK<T>> *>(place + row * Tile::SIDE) = pack;
            }
            from += uint64_t(AT_ONCE) * columns;
        }
        next += uint64_t(min(rows, Tile::STEP)) * columns;
    }
};

template <class Tile, bool WIDE>
__device__ __forceinline__ void in_tile(
    const Asked &asked, const typename Tile::Number *input, const typename Tile::Number *d_output,
    const LayerSizes &sizes, const SampleRange &range, unsigned slots) {
    using T = typename Tile::Number;
    constexpr unsigned PART = Tile::STEP * Tile::SIDE, WARPS = THREADS / WARP, GROUPS = Tile::STEP / Tile::ROWS;
    constexpr unsigned STAGES = Tile::STAGES;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, warp_sums, [2][2][WARPS]);
    float4 *direction = reinterpret_cast<float4 *>(shared + STAGES * 2 * PART) + threadIdx.x;
    unsigned across = (sizes.inputs + Tile::SIDE - 1) / Tile::SIDE;
    unsigned output = blockIdx.x / across * Tile::SIDE, column = blockIdx.x % across * Tile::SIDE;
    unsigned steps = (sizes.rows + Tile::STEP - 1) / Tile::STEP;

    uint64_t first_row = uint64_t(range.begin) * sizes.rows;
    Steps<Tile, WIDE> left(d_output, first_row, output, sizes.outputs), right(input, first_row, column, sizes.inputs);
    unsigned next_sample = range.begin, next_rows = sizes.rows;
    auto start_next = [&](unsigned stage) {
        if (next_sample < range.end) {
            left.start(shared + stage * 2 * PART, next_rows);
            right.start(shared + stage * 2 * PART + PART, next_rows);
            if (next_rows > Tile::STEP) {
                next_rows -= Tile::STEP;
            } else {
                next_rows = sizes.rows;
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

    // The factors of some rows are multiplied while those of the next are brought.
    Tile tile;
    typename Tile::Factors factors[2];
    static_assert(GROUPS % 2 == 0, "a step begins with the first of them");
    wait_copies<STAGES - 2>();
    __syncthreads();
    if (range.begin < range.end) tile.bring(factors[0], shared, shared + PART, 0);

    uint64_t part = uint64_t(blockIdx.x) * slots + range.slot;
    unsigned stage = 0;
    for (unsigned sample = range.begin; sample < range.end; ++sample) {
        float weight = sums == nullptr ? 0.0f : asked.weights[sample];
        for (unsigned step = 0; step < steps; ++step) {
            unsigned rows = sizes.rows - step * Tile::STEP;
#pragma unroll (Tile::UNROLL)
            for (unsigned group = 0; group < GROUPS; ++group) {
                bool here = group + 1 < GROUPS;
                if (!here) {
                    wait_copies<STAGES - 2>();
                    // From here on all see the next step's rows, and none reads those of this step.
                    __syncthreads();
                    stage = (stage + 1) % STAGES;
                    if (step == 0 && sample > range.begin) {
                        write_sample(warp_sums[(sample - 1) % 2], asked, part + sample - 1 - range.begin, threadIdx.x);
                    }
                }
                const T *from = shared + stage * 2 * PART;
                if (here || step + 1 < steps || sample + 1 < range.end) {
                    tile.bring(factors[(group + 1) % 2], from, from + PART, here ? (group + 1) * Tile::ROWS : 0);
                }
                // Into the stage of the step before.
                if (group == 0) start_next((stage + STAGES - 1) % STAGES);
                if (group * Tile::ROWS < rows) Tile::multiply(gradient, factors[group % 2]);
            }
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
        float value = to_float(mine[at]);
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
// as in contributions.cu.
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
        for (unsigned at = warp; at < count; at += WARPS) sum += to_float(mine[uint64_t(order[begin + at]) * columns + c]);
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
        Asked asked = {products, norms, sums, direction, weights, accumulate != 0};                                    \
        LayerSizes sizes = {samples, rows, outputs, inputs};                                                           \
        SampleRange range = {samples, chunk, first, count};                                                            \
        if (packs(d_output, outputs) && packs(input, inputs)) {                                                        \
            in_tile<Tile, true>(asked, input, d_output, sizes, range, slots);                                          \
        } else {                                                                                                       \
            in_tile<Tile, false>(asked, input, d_output, sizes, range, slots);                                         \
        }                                                                                                              \
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
