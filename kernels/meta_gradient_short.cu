// Norms and inner products of per-sample gradients without the gradients, cheaper where samples have few
// rows. With the T input rows x_t of a sample and its output gradients b_t:
//
//     gram          |g|^2 = sum_t sum_s <x_t, x_s> <b_t, b_s>       the ghost norm, from two Gram matrices
//     gram_pairs    the same, one block per pair of rows: for very small T
//     projected     <g, V> = sum_t b_t^T V x_t                      written per row t
//
// Threads: gram and projected: a block of 4 warps computes 64 by 64 products of rows, a warp 32 by 32 on
// tensor cores (a thread 4 by 8 in f32). gram forms both Gram matrices in registers, one after the other;
// grid (pairs of row tiles on and below the diagonal, samples). projected multiplies the rows by those of V
// and the result by b; grid (tiles of rows by tiles of outputs).
// Memory: 128 bytes per row and step by cp.async in a ring of 3 stages, XOR-swizzled: 48 KB of shared memory.
// No matrix is stored.
// Precision: f32 accumulators. Determinism: a value is computed from the sample's own rows, in an order that
// depends on the sizes alone.
// Work per sample: gram T^2 (inputs + outputs) multiplications, projected T inputs outputs.
//
// Reference: src/engine/ops/meta_gradient/cpu.rs. Source: ghost norm (arXiv:2110.05679); docs/method.md, "The
// fused meta-gradient".
#include "meta_gradient.cuh"

constexpr unsigned THREADS = 128, STAGES = 3, ROWS = 64, VALUES = 32;

template <class T> struct RowTile {
    using Value = T;
    static constexpr unsigned THREADS = ::THREADS, STEP = ROWS, SIDE = 128 / sizeof(T);

    // The XOR swizzle: 8 rows lie in different banks.
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * SIDE + (chunk ^ (row & 7)) * PACK<T>;
    }
};

// The products of a thread, to which SIDE more columns are added at a time.
template <class T> struct Products : RowTile<T> {
    using RowTile<T>::at;

    static __device__ __forceinline__ unsigned first(unsigned warp) { return warp * 32; }
    static __device__ __forceinline__ unsigned row(unsigned element) {
        return first(threadIdx.x / WARP / 2) + element / 16 * 16 + threadIdx.x % WARP / 4 +
               element / 2 % 2 * 8;
    }
    static __device__ __forceinline__ unsigned column(unsigned element) {
        return first(threadIdx.x / WARP % 2) + element / 4 % 4 * 8 + threadIdx.x % 4 * 2 + element % 2;
    }

    static __device__ __forceinline__ void
    multiply(float (&products)[VALUES], const T *left, const T *right) {
        unsigned matrix = threadIdx.x % WARP / 8, within = threadIdx.x % 8;
        unsigned left_row = first(threadIdx.x / WARP / 2) + matrix % 2 * 8 + within;
        unsigned right_row = first(threadIdx.x / WARP % 2) + matrix / 2 * 8 + within;
#pragma unroll
        for (unsigned k = 0; k < RowTile<T>::SIDE / 8; k += 2) {
            uint32_t b[4][2];
#pragma unroll
            for (unsigned n = 0; n < 4; n += 2) {
                uint32_t both[4];
                load_matrices<4>(both, right + at(right_row + n * 8, k + matrix % 2));
#pragma unroll
                for (unsigned i = 0; i < 4; ++i) b[n + i / 2][i % 2] = both[i];
            }
#pragma unroll
            for (unsigned m = 0; m < 2; ++m) {
                uint32_t a[4];
                load_matrices<4>(a, left + at(left_row + m * 16, k + matrix / 2));
#pragma unroll
                for (unsigned n = 0; n < 4; ++n) {
                    float (&part)[4] = *reinterpret_cast<float (*)[4]>(products + (m * 4 + n) * 4);
                    mma_16x8x16<T>(part, a, b[n]);
                }
            }
        }
    }
};

template <> struct Products<float> : RowTile<float> {
    static __device__ __forceinline__ unsigned row(unsigned element) {
        return threadIdx.x / 8 + element / 8 * 16;
    }
    static __device__ __forceinline__ unsigned column(unsigned element) {
        return threadIdx.x % 8 + element % 8 * 8;
    }

    static __device__ __forceinline__ void
    multiply(float (&products)[VALUES], const float *left, const float *right) {
#pragma unroll 1
        for (unsigned chunk = 0; chunk < SIDE / 4; ++chunk) {
            float a[4][4];
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) load<4>(a[i], left + at(row(i * 8), chunk));
#pragma unroll
            for (unsigned j = 0; j < 8; ++j) {
                float b[4];
                load<4>(b, right + at(column(j), chunk));
#pragma unroll
                for (unsigned element = j; element < VALUES; element += 8) {
#pragma unroll
                    for (unsigned k = 0; k < 4; ++k) products[element] += a[element / 8][k] * b[k];
                }
            }
        }
    }
};

// A block of 64 rows, from `first` on, of a matrix of `count` rows.
template <class T> struct RowBlock {
    const T *rows;
    unsigned first, count;
};

// products = left right^T over all columns.
template <class T>
__device__ __forceinline__ void multiply_rows(
    float (&products)[VALUES], T *shared, const RowBlock<T> &left, const RowBlock<T> &right,
    unsigned columns) {
    using Tile = Products<T>;
    constexpr unsigned PART = Tile::STEP * Tile::SIDE;
    bool wide_left = packs(left.rows, columns), wide_right = packs(right.rows, columns);
    unsigned steps = (columns + Tile::SIDE - 1) / Tile::SIDE;
    auto start = [&](unsigned step) {
        if (step < steps) {
            T *to = shared + step % STAGES * 2 * PART;
            unsigned column = step * Tile::SIDE;
            copy_rows_async<Tile>(to, left.rows, left.first, left.count, column, columns, wide_left);
            copy_rows_async<Tile>(
                to + PART, right.rows, right.first, right.count, column, columns, wide_right);
        }
        commit_copies();
    };
#pragma unroll
    for (unsigned element = 0; element < VALUES; ++element) products[element] = 0.0f;
    for (unsigned step = 0; step < STAGES - 1; ++step) start(step);
    for (unsigned step = 0; step < steps; ++step) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        start(step + STAGES - 1);
        const T *from = shared + step % STAGES * 2 * PART;
        Tile::multiply(products, from, from + PART);
    }
    // All warps are done with the stages before they are written again.
    wait_copies<0>();
    __syncthreads();
}

// Block: a pair of row tiles (x) of a sample (y). `partial` is [pairs, samples].
template <class T>
__device__ __forceinline__ void
gram(float *partial, const T *input, const T *d_output, unsigned rows, unsigned outputs, unsigned inputs) {
    DYNAMIC_SHARED(T, shared);
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    unsigned lower = 0, upper = blockIdx.x;
    while (upper > lower) upper -= ++lower;
    unsigned left = lower * ROWS, right = upper * ROWS;
    input += uint64_t(blockIdx.y) * rows * inputs;
    d_output += uint64_t(blockIdx.y) * rows * outputs;
    float of_input[VALUES], of_output[VALUES];
    multiply_rows<T>(of_input, shared, {input, left, rows}, {input, right, rows}, inputs);
    multiply_rows<T>(of_output, shared, {d_output, left, rows}, {d_output, right, rows}, outputs);
    float part[4] = {};
#pragma unroll
    for (unsigned element = 0; element < VALUES; ++element) {
        part[element % 4] += of_input[element] * of_output[element];
    }
    float sum = block_reduce<THREADS>((part[0] + part[1]) + (part[2] + part[3]), scratch);
    // The Gram matrices are symmetric.
    if (threadIdx.x == 0) {
        partial[uint64_t(blockIdx.x) * gridDim.y + blockIdx.y] = left == right ? sum : 2.0f * sum;
    }
}

// Block: a pair of rows (x) of a sample (y). `partial` is [pairs, samples].
template <class T>
__device__ __forceinline__ void gram_pairs(
    float *partial, const T *input, const T *d_output, unsigned rows, unsigned outputs, unsigned inputs) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    unsigned lower = 0, upper = blockIdx.x;
    while (upper > lower) upper -= ++lower;
    uint64_t left = uint64_t(blockIdx.y) * rows + lower, right = uint64_t(blockIdx.y) * rows + upper;
    auto product = [&](const T *from, unsigned columns) {
        float sum = 0.0f;
        const T *a = from + left * columns, *b = from + right * columns;
        for (unsigned column = threadIdx.x; column < columns; column += THREADS) {
            sum += to_float(a[column]) * to_float(b[column]);
        }
        return block_reduce<THREADS>(sum, scratch);
    };
    float sum = product(input, inputs) * product(d_output, outputs);
    if (threadIdx.x == 0) {
        partial[uint64_t(blockIdx.x) * gridDim.y + blockIdx.y] = left == right ? sum : 2.0f * sum;
    }
}

// Block: 64 rows, over all samples, by 64 outputs. `partial` is [tiles of outputs, rows].
template <class T>
__device__ __forceinline__ void projected(
    float *partial, const T *direction, const T *input, const T *d_output, unsigned rows, unsigned outputs,
    unsigned inputs) {
    constexpr unsigned ROW_STRIDE = ROWS + 1;
    DYNAMIC_SHARED(T, shared);
    unsigned tiles = (outputs + ROWS - 1) / ROWS, tile = blockIdx.x % tiles;
    unsigned first_row = blockIdx.x / tiles * ROWS, first_output = tile * ROWS;
    float products[VALUES];
    multiply_rows<T>(products, shared, {input, first_row, rows}, {direction, first_output, outputs}, inputs);
    float *scaled = reinterpret_cast<float *>(shared);
#pragma unroll
    for (unsigned element = 0; element < VALUES; ++element) {
        unsigned row = Products<T>::row(element), column = Products<T>::column(element);
        bool within = first_row + row < rows && first_output + column < outputs;
        float b =
            within ? to_float(d_output[uint64_t(first_row + row) * outputs + first_output + column]) : 0.0f;
        scaled[row * ROW_STRIDE + column] = products[element] * b;
    }
    __syncthreads();
    unsigned row = threadIdx.x;
    if (row >= ROWS || first_row + row >= rows) return;
    float sum = 0.0f;
    for (unsigned column = 0; column < ROWS; ++column) sum += scaled[row * ROW_STRIDE + column];
    partial[uint64_t(tile) * rows + first_row + row] = sum;
}

#define SHORT(T, suffix)                                                                                     \
    KERNEL(                                                                                                  \
        gram_##suffix, THREADS, float *partial, const T *input, const T *d_output, uint32_t rows,            \
        uint32_t outputs, uint32_t inputs) {                                                                 \
        gram(partial, input, d_output, rows, outputs, inputs);                                               \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        gram_pairs_##suffix, THREADS, float *partial, const T *input, const T *d_output, uint32_t rows,      \
        uint32_t outputs, uint32_t inputs) {                                                                 \
        gram_pairs(partial, input, d_output, rows, outputs, inputs);                                         \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        projected_##suffix, THREADS, float *partial, const T *direction, const T *input, const T *d_output,  \
        uint32_t rows, uint32_t outputs, uint32_t inputs) {                                                  \
        projected(partial, direction, input, d_output, rows, outputs, inputs);                               \
    }
SHORT(float, f32)
SHORT(bf16, bf16)
SHORT(f16, f16)
