// Per-sample gradients of a linear layer, formed in registers and never stored: inner product with a
// direction V, squared norm, and weighted sum. Also the same for per-sample gradients that exist, per-sample
// sums over rows, and the direction in AdamW's geometry.
//
//     in_tile            g_i = sum_t b_t x_t^T [outputs, inputs]:  <g_i, V>,  |g_i|^2,  sum_i W_i g_i
//     dot_samples        the first two for gradients d [samples, N]
//     gather_samples     table[sample, k, n] = sum over the rows r with index[r] = k of d[sample, r, n]
//     precondition       v / (sqrt(second_moment inverse_correction) + epsilon)
//
// in_tile: grid (tiles of the weight, chunks of the batch). A block of 8 warps owns a tile of 128 by 128 (64
// by 64 in f32) and walks through its samples in order. A warp holds 64 by 32 accumulators of
// mma.sync.m16n8k16 and as many for the weighted sum.
// Pipeline: cp.async loads steps of 64 rows into a ring of 3 stages (f32: 16 rows, 4 stages) and does not
// stop at the end of a sample: a sample's steps start with its first row, and rows past its last are zeros.
// ldmatrix reads the fragments of the next 16 rows while those of the last are multiplied, across the end of
// a step, too: with no more than two warps per scheduler nothing else would hide that latency.
// Memory: 96 KB of rows, XOR-swizzled, and 64 KB of V, each thread's own values side by side; one block per
// multiprocessor. In f32 32 KB and 16 KB.
// Precision: products in bf16 or f16 with f32 accumulators; f32 stays f32, without tensor cores. Everything
// in the epilogue is f32.
// Determinism: see meta_gradient.cuh.
//
// Work per sample of T rows and element of its gradient: T multiplications on tensor cores (rounded up to a
// multiple of 16), and up to 3 in the epilogue.
// Limits on an H100 for S 64, T 680, [3072, 1024]: 277 GFLOP or 0.46 ms at the 600 TFLOP/s of mma.sync. The
// fragments of 16 rows are 24 KB read from shared memory and 8 KB written to it: 256 cycles, where mma.sync
// takes about 210. The blocks of a launch read the same rows at about the same time, so rows come from HBM
// about once.
// Measured on an H200: 0.98 ms in bf16. meta_gradient_hopper.cu takes half of that with wgmma.
//
// Reference: src/engine/ops/meta_gradient/cpu.rs. Source: docs/method.md, "The fused meta-gradient".
#include "elementwise.cuh"
#include "meta_gradient.cuh"

constexpr unsigned THREADS = 256;

// The tile for bf16 and f16, on tensor cores: 2 by 4 warps of 64 outputs by 32 inputs.
template <class T> struct TensorTile {
    using Value = T;
    // STEP rows per stage, GROUP_ROWS per mma: its k.
    static constexpr unsigned SIDE = 128, STEP = 64, STAGES = 3, GROUP_ROWS = 16, VALUES = 64;
    static constexpr unsigned UNROLL = STEP / GROUP_ROWS;
    static constexpr unsigned THREADS = ::THREADS, OUTPUTS = 4, INPUTS = 4;

    // A and B fragments of GROUP_ROWS rows.
    struct Fragments {
        uint32_t left[OUTPUTS][4], right[INPUTS][2];
    };

    static __device__ __forceinline__ unsigned first_output() { return threadIdx.x / WARP / 4 * 64; }
    static __device__ __forceinline__ unsigned first_input() { return threadIdx.x / WARP % 4 * 32; }

    // The output and input of an element, by the accumulator layout of mma_16x8x16.
    static __device__ __forceinline__ unsigned row(unsigned element) {
        return first_output() + element / 16 * 16 + threadIdx.x % WARP / 4 + element / 2 % 2 * 8;
    }
    static __device__ __forceinline__ unsigned column(unsigned element) {
        return first_input() + element / 4 % INPUTS * 8 + threadIdx.x % 4 * 2 + element % 2;
    }

    // The XOR swizzle: the 8 rows that ldmatrix reads at once lie in different banks.
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * SIDE + (chunk ^ (row & 7)) * 8;
    }

    // Offsets of the thread's fragments in the first GROUP_ROWS rows of a stage. Further groups are a
    // multiple of 8 rows away, where the swizzle is the same.
    unsigned a_offset[OUTPUTS], b_offset[INPUTS / 2];

    __device__ __forceinline__ TensorTile() {
        unsigned matrix = threadIdx.x % WARP / 8, within = threadIdx.x % 8;
#pragma unroll
        for (unsigned m = 0; m < OUTPUTS; ++m) {
            a_offset[m] = at(matrix / 2 * 8 + within, first_output() / 8 + m * 2 + matrix % 2);
        }
#pragma unroll
        for (unsigned n = 0; n < INPUTS / 2; ++n) {
            b_offset[n] = at(matrix % 2 * 8 + within, first_input() / 8 + n * 2 + matrix / 2);
        }
    }

    // Rows are the k dimension here, so both operands are read transposed.
    __device__ __forceinline__ void
    load_fragments(Fragments &to, const T *d_output, const T *input, unsigned row) const {
#pragma unroll
        for (unsigned n = 0; n < INPUTS / 2; ++n) {
            uint32_t both[4];
            load_matrices<4, true>(both, input + b_offset[n] + row * SIDE);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) to.right[n * 2 + i / 2][i % 2] = both[i];
        }
#pragma unroll
        for (unsigned m = 0; m < OUTPUTS; ++m) {
            load_matrices<4, true>(to.left[m], d_output + a_offset[m] + row * SIDE);
        }
    }

    static __device__ __forceinline__ void multiply(float (&gradient)[VALUES], const Fragments &fragments) {
#pragma unroll
        for (unsigned m = 0; m < OUTPUTS; ++m) {
#pragma unroll
            for (unsigned n = 0; n < INPUTS; ++n) {
                float (&part)[4] = *reinterpret_cast<float (*)[4]>(gradient + (m * INPUTS + n) * 4);
                mma_16x8x16<T>(part, fragments.left[m], fragments.right[n]);
            }
        }
    }
};

// The tile for f32, 4 by 4 elements per thread: tensor cores would round.
struct PlainTile {
    using Value = float;
    static constexpr unsigned THREADS = ::THREADS, SIDE = 64, STEP = 16, STAGES = 4, GROUP_ROWS = 2,
                              VALUES = 16;
    static constexpr unsigned UNROLL = 2;

    struct Fragments {
        float left[GROUP_ROWS][4], right[GROUP_ROWS][4];
    };

    static __device__ __forceinline__ unsigned row(unsigned element) {
        return threadIdx.x / 16 * 4 + element / 4;
    }
    static __device__ __forceinline__ unsigned column(unsigned element) {
        return threadIdx.x % 16 * 4 + element % 4;
    }
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * SIDE + chunk * 4;
    }

    __device__ __forceinline__ void
    load_fragments(Fragments &to, const float *d_output, const float *input, unsigned row) const {
#pragma unroll
        for (unsigned k = 0; k < GROUP_ROWS; ++k) {
            load<4>(to.left[k], d_output + (row + k) * SIDE + threadIdx.x / 16 * 4);
            load<4>(to.right[k], input + (row + k) * SIDE + threadIdx.x % 16 * 4);
        }
    }

    static __device__ __forceinline__ void multiply(float (&gradient)[VALUES], const Fragments &fragments) {
#pragma unroll
        for (unsigned k = 0; k < GROUP_ROWS; ++k) {
#pragma unroll
            for (unsigned element = 0; element < VALUES; ++element) {
                gradient[element] += fragments.left[k][element / 4] * fragments.right[k][element % 4];
            }
        }
    }
};

// A thread's share of copying one operand, step by step: 16 bytes of every ROWS_AT_ONCE-th row. Samples are
// adjacent in memory. WIDE: rows can be read 16 bytes at a time.
template <class Tile, bool WIDE> struct OperandCopy {
    using T = typename Tile::Value;
    static constexpr unsigned CHUNKS = Tile::SIDE / PACK<T>, ROWS_AT_ONCE = THREADS / CHUNKS;

    // The thread's first values of the next step, and how many columns the layer has from there on.
    const T *next;
    unsigned columns, left;

    __device__ __forceinline__ OperandCopy(const T *rows, uint64_t row, unsigned first, unsigned columns)
        : columns(columns) {
        unsigned column = first + threadIdx.x % CHUNKS * PACK<T>;
        next = rows + (row + threadIdx.x / CHUNKS) * columns + column;
        left = column < columns ? columns - column : 0;
    }

    // Starts the copy of the next step, of which the sample has `rows` rows left; zeros past them.
    __device__ __forceinline__ void start(T *to, unsigned rows) {
        const T *from = next;
        T *target = to + Tile::at(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
        static_assert(ROWS_AT_ONCE % 8 == 0, "rows that far apart exchange their chunks alike");
#pragma unroll
        for (unsigned row = 0; row < Tile::STEP; row += ROWS_AT_ONCE) {
            bool within = threadIdx.x / CHUNKS + row < rows && left > 0;
            if constexpr (WIDE) {
                copy_16_async(target + row * Tile::SIDE, from, within);
            } else {
                Pack<T, PACK<T>> pack;
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    pack.value[i] = within && i < left ? from[i] : from_float<T>(0.0f);
                }
                *reinterpret_cast<Pack<T, PACK<T>> *>(target + row * Tile::SIDE) = pack;
            }
            from += uint64_t(ROWS_AT_ONCE) * columns;
        }
        next += uint64_t(min(rows, Tile::STEP)) * columns;
    }
};

template <class Tile, bool WIDE>
__device__ __forceinline__ void in_tile(
    const Epilogue &epilogue, const typename Tile::Value *input, const typename Tile::Value *d_output,
    const LayerSizes &sizes, const SampleRange &range, unsigned slots) {
    using T = typename Tile::Value;
    constexpr unsigned PART = Tile::STEP * Tile::SIDE, WARPS = THREADS / WARP;
    constexpr unsigned GROUPS = Tile::STEP / Tile::GROUP_ROWS;
    constexpr unsigned STAGES = Tile::STAGES;
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, warp_sums, [2][2][WARPS]);
    float4 *direction = reinterpret_cast<float4 *>(shared + STAGES * 2 * PART) + threadIdx.x;
    unsigned tiles_x = (sizes.inputs + Tile::SIDE - 1) / Tile::SIDE;
    unsigned output = blockIdx.x / tiles_x * Tile::SIDE, column = blockIdx.x % tiles_x * Tile::SIDE;
    unsigned steps = (sizes.rows + Tile::STEP - 1) / Tile::STEP;

    uint64_t first_row = uint64_t(range.begin) * sizes.rows;
    OperandCopy<Tile, WIDE> left(d_output, first_row, output, sizes.outputs),
        right(input, first_row, column, sizes.inputs);
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
    // Prologue of the pipeline.
    for (unsigned stage = 0; stage < STAGES - 1; ++stage) start_next(stage);

    float *sums = nullptr;
    float gradient[Tile::VALUES], sum[Tile::VALUES];
    if (epilogue.sums != nullptr) sums = epilogue.sums + uint64_t(blockIdx.y) * sizes.outputs * sizes.inputs;
    for_each_element<Tile>(output, column, sizes, [&](unsigned element, bool within, uint64_t at) {
        gradient[element] = 0.0f;
        sum[element] = epilogue.accumulate && within && sums != nullptr ? sums[at] : 0.0f;
    });
    if (epilogue.products != nullptr) {
        load_direction<Tile>(direction, epilogue.direction, output, column, sizes);
    }

    // Software pipelining: one set of fragments is multiplied while the other is loaded.
    Tile tile;
    typename Tile::Fragments fragments[2];
    static_assert(GROUPS % 2 == 0, "a step begins with the first of them");
    wait_copies<STAGES - 2>();
    __syncthreads();
    if (range.begin < range.end) tile.load_fragments(fragments[0], shared, shared + PART, 0);

    uint64_t part = uint64_t(blockIdx.x) * slots + range.slot;
    unsigned stage = 0;
    for (unsigned sample = range.begin; sample < range.end; ++sample) {
        float weight = sums == nullptr ? 0.0f : epilogue.weights[sample];
        for (unsigned step = 0; step < steps; ++step) {
            unsigned rows = sizes.rows - step * Tile::STEP;
#pragma unroll(Tile::UNROLL)
            for (unsigned group = 0; group < GROUPS; ++group) {
                bool same_step = group + 1 < GROUPS;
                if (!same_step) {
                    wait_copies<STAGES - 2>();
                    // The barrier makes the rows of the next step visible and frees the stage of this one.
                    __syncthreads();
                    stage = (stage + 1) % STAGES;
                    if (step == 0 && sample > range.begin) {
                        write_partials(
                            warp_sums[(sample - 1) % 2], epilogue, part + sample - 1 - range.begin,
                            threadIdx.x);
                    }
                }
                const T *from = shared + stage * 2 * PART;
                if (same_step || step + 1 < steps || sample + 1 < range.end) {
                    tile.load_fragments(
                        fragments[(group + 1) % 2], from, from + PART,
                        same_step ? (group + 1) * Tile::GROUP_ROWS : 0);
                }
                // Refills the stage of the step before.
                if (group == 0) start_next((stage + STAGES - 1) % STAGES);
                if (group * Tile::GROUP_ROWS < rows) Tile::multiply(gradient, fragments[group % 2]);
            }
        }
        // The accumulators are this sample's tile of g_i.
        sample_epilogue<THREADS>(
            gradient, sum, direction, epilogue, weight, warp_sums[sample % 2], threadIdx.x / WARP);
    }
    __syncthreads();
    if (range.begin < range.end) {
        unsigned sample = range.end - 1;
        write_partials(warp_sums[sample % 2], epilogue, part + sample - range.begin, threadIdx.x);
    }
    if (sums == nullptr) return;
    for_each_element<Tile>(output, column, sizes, [&](unsigned element, bool within, uint64_t at) {
        if (within) sums[at] = sum[element];
    });
}

// <d_i, V> and |d_i|^2 of one chunk of each sample: block (chunk, sample). Both results are [chunks,
// samples].
constexpr unsigned DOT_CHUNK = 8192;

template <class T>
__device__ __forceinline__ void
dot_samples(float *products, float *norms, const T *d, const float *direction, uint64_t count) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    const T *sample_rows = d + blockIdx.y * count;
    uint64_t begin = uint64_t(blockIdx.x) * DOT_CHUNK, end = min(count, begin + DOT_CHUNK);
    float product = 0.0f, norm = 0.0f;
    for (uint64_t at = begin + threadIdx.x; at < end; at += THREADS) {
        float value = to_float(sample_rows[at]);
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

// Block: 32 columns (x) of one table row (y) of one sample (z); each of 8 warps takes every eighth row.
// `order` and `starts` as in contributions.cu.
template <class T>
__device__ __forceinline__ void gather_samples(
    float *tables, const T *d, const uint32_t *starts, const uint32_t *order, unsigned tokens,
    unsigned columns) {
    constexpr unsigned WARPS = THREADS / WARP;
    SHARED_ARRAY(float, partial, [WARPS][WARP]);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    unsigned begin = starts[blockIdx.y], count = starts[blockIdx.y + 1] - begin;
    const T *sample_rows = d + uint64_t(blockIdx.z) * tokens * columns;
    float sum = 0.0f;
    if (c < columns) {
        for (unsigned at = warp; at < count; at += WARPS) {
            sum += to_float(sample_rows[uint64_t(order[begin + at]) * columns + c]);
        }
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= columns) return;
#pragma unroll
    for (unsigned other = 1; other < WARPS; ++other) sum += partial[other][lane];
    tables[(uint64_t(blockIdx.z) * gridDim.y + blockIdx.y) * columns + c] = sum;
}

// `factors`: the inverse of AdamW's bias correction of the second moment, 0 before the first step, and
// epsilon. They are device memory, so that a recorded CUDA graph reads those of its step.
KERNEL(
    precondition_f32, EACH_THREADS, float *to, const float *v, const float *second_moment,
    const float *fragments, uint64_t count) {
    float inverse = fragments[0], epsilon = fragments[1];
    const float *const inputs[2] = {v, second_moment};
    each(to, inputs, count, [inverse, epsilon](const float (&in)[2]) {
        return inverse == 0.0f ? 0.0f : in[0] / (sqrtf(in[1] * inverse) + epsilon);
    });
}

#define IN_TILE(T, Tile, suffix)                                                                             \
    KERNEL(                                                                                                  \
        in_tile_##suffix, THREADS, float *products, float *norms, float *sums, const float *direction,       \
        const float *weights, const T *input, const T *d_output, uint32_t samples, uint32_t rows,            \
        uint32_t outputs, uint32_t inputs, uint32_t chunk, uint32_t first, uint32_t count, uint32_t slots,   \
        uint32_t accumulate) {                                                                               \
        Epilogue epilogue = {products, norms, sums, direction, weights, accumulate != 0};                    \
        LayerSizes sizes = {samples, rows, outputs, inputs};                                                 \
        SampleRange range = {samples, chunk, first, count};                                                  \
        if (packs(d_output, outputs) && packs(input, inputs)) {                                              \
            in_tile<Tile, true>(epilogue, input, d_output, sizes, range, slots);                             \
        } else {                                                                                             \
            in_tile<Tile, false>(epilogue, input, d_output, sizes, range, slots);                            \
        }                                                                                                    \
    }
IN_TILE(float, PlainTile, f32)
IN_TILE(bf16, TensorTile<bf16>, bf16)
IN_TILE(f16, TensorTile<f16>, f16)

#define OF_SAMPLES(T, suffix)                                                                                \
    KERNEL(                                                                                                  \
        dot_samples_##suffix, THREADS, float *products, float *norms, const T *d, const float *direction,    \
        uint64_t count) {                                                                                    \
        dot_samples(products, norms, d, direction, count);                                                   \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        gather_samples_##suffix, THREADS, float *tables, const T *d, const uint32_t *starts,                 \
        const uint32_t *order, uint32_t tokens, uint32_t columns) {                                          \
        gather_samples(tables, d, starts, order, tokens, columns);                                           \
    }
OF_SAMPLES(float, f32)
OF_SAMPLES(bf16, bf16)
OF_SAMPLES(f16, f16)
