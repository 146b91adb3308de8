// Quantities of the gradients of a linear layer's samples without the gradients, which is less work where samples are
// short: with x_t the T input rows of a sample and b_t those of the output's gradient,
//
//   gram          |g|^2 = sum_t sum_s (x_t x_s) (b_t b_s)
//   gram_pairs    the same, a block for each pair of rows: for T of a few
//   projected     <g, V> = sum_t b_t V x_t, written for each row t
//
// Threads of gram and projected: a block of 4 warps has 64 by 64 products of rows, each warp 32 by 32 on tensor cores, a
// thread 4 by 8 in f32. 128 bytes a row and step come by asynchronous copies, 2 steps ahead. gram forms both matrices of
// products in registers, one after the other, and has the tiles on and below the diagonal. projected multiplies the rows
// with those of V, and what it finds with b. Neither stores a matrix. Shared memory: 48 KB.
//
// Work for each sample: gram T^2 (I + O) multiplications, projected T I O. A number is made of the sample's own rows in an
// order that the sizes alone decide.
#include "meta_gradient.cuh"

constexpr unsigned THREADS = 128, STAGES = 3, ROWS = 64, NUMBERS = 32;

template <class T> struct RowTile {
    using Number = T;
    static constexpr unsigned THREADS = ::THREADS, STEP = ROWS, SIDE = 128 / sizeof(T);

    // Exchanged, so that 8 rows are in different banks.
    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * SIDE + (chunk ^ (row & 7)) * PACK<T>;
    }
};

// Where the thread's products lie, and how they grow by SIDE columns.
template <class T> struct Products : RowTile<T> {
    using RowTile<T>::at;

    static __device__ __forceinline__ unsigned first(unsigned warp) { return warp * 32; }
    static __device__ __forceinline__ unsigned row(unsigned number) {
        return first(threadIdx.x / WARP / 2) + number / 16 * 16 + threadIdx.x % WARP / 4 + number / 2 % 2 * 8;
    }
    static __device__ __forceinline__ unsigned column(unsigned number) {
        return first(threadIdx.x / WARP % 2) + number / 4 % 4 * 8 + threadIdx.x % 4 * 2 + number % 2;
    }

    static __device__ __forceinline__ void multiply(float (&products)[NUMBERS], const T *left, const T *right) {
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
                    float(&part)[4] = *reinterpret_cast<float(*)[4]>(products + (m * 4 + n) * 4);
                    mma_16x8x16<T>(part, a, b[n]);
                }
            }
        }
    }
};

template <> struct Products<float> : RowTile<float> {
    static __device__ __forceinline__ unsigned row(unsigned number) { return threadIdx.x / 8 + number / 8 * 16; }
    static __device__ __forceinline__ unsigned column(unsigned number) { return threadIdx.x % 8 + number % 8 * 8; }

    static __device__ __forceinline__ void multiply(float (&products)[NUMBERS], const float *left, const float *right) {
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
                for (unsigned number = j; number < NUMBERS; number += 8) {
#pragma unroll
                    for (unsigned k = 0; k < 4; ++k) products[number] += a[number / 8][k] * b[k];
                }
            }
        }
    }
};

// Rows of `columns` numbers, of which a block takes 64 from `first` on.
template <class T> struct RowsFrom {
    const T *rows;
    unsigned first, count;
};

// products = left right^T over all columns.
template <class T>
__device__ __forceinline__ void multiply_rows(
    float (&products)[NUMBERS], T *shared, const RowsFrom<T> &left, const RowsFrom<T> &right, unsigned columns) {
    using Tile = Products<T>;
    constexpr unsigned PART = Tile::STEP * Tile::SIDE;
    bool wide_left = packs(left.rows, columns), wide_right = packs(right.rows, columns);
    unsigned steps = (columns + Tile::SIDE - 1) / Tile::SIDE;
    auto start = [&](unsigned step) {
        if (step < steps) {
            T *to = shared + step % STAGES * 2 * PART;
            unsigned column = step * Tile::SIDE;
            start_rows<Tile>(to, left.rows, left.first, left.count, column, columns, wide_left);
            start_rows<Tile>(to + PART, right.rows, right.first, right.count, column, columns, wide_right);
        }
        commit_copies();
    };
#pragma unroll
    for (unsigned number = 0; number < NUMBERS; ++number) products[number] = 0.0f;
    for (unsigned step = 0; step < STAGES - 1; ++step) start(step);
    for (unsigned step = 0; step < steps; ++step) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        start(step + STAGES - 1);
        const T *from = shared + step % STAGES * 2 * PART;
        Tile::multiply(products, from, from + PART);
    }
    // All have read what is written next.
    wait_copies<0>();
    __syncthreads();
}

// Block: a pair of tiles of rows (x) of a sample (y). `partial` is [pairs, samples].
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
    float of_input[NUMBERS], of_output[NUMBERS];
    multiply_rows<T>(of_input, shared, {input, left, rows}, {input, right, rows}, inputs);
    multiply_rows<T>(of_output, shared, {d_output, left, rows}, {d_output, right, rows}, outputs);
    float part[4] = {};
#pragma unroll
    for (unsigned number = 0; number < NUMBERS; ++number) part[number % 4] += of_input[number] * of_output[number];
    float sum = block_reduce<THREADS>((part[0] + part[1]) + (part[2] + part[3]), scratch);
    // What lies above the diagonal is what lies below.
    if (threadIdx.x == 0) partial[uint64_t(blockIdx.x) * gridDim.y + blockIdx.y] = left == right ? sum : 2.0f * sum;
}

// Block: a pair of rows (x) of a sample (y). `partial` is [pairs, samples].
template <class T>
__device__ __forceinline__ void
gram_pairs(float *partial, const T *input, const T *d_output, unsigned rows, unsigned outputs, unsigned inputs) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    unsigned lower = 0, upper = blockIdx.x;
    while (upper > lower) upper -= ++lower;
    uint64_t left = uint64_t(blockIdx.y) * rows + lower, right = uint64_t(blockIdx.y) * rows + upper;
    auto product = [&](const T *from, unsigned columns) {
        float sum = 0.0f;
        const T *a = from + left * columns, *b = from + right * columns;
        for (unsigned column = threadIdx.x; column < columns; column += THREADS) sum += to_float(a[column]) * to_float(b[column]);
        return block_reduce<THREADS>(sum, scratch);
    };
    float sum = product(input, inputs) * product(d_output, outputs);
    if (threadIdx.x == 0) partial[uint64_t(blockIdx.x) * gridDim.y + blockIdx.y] = left == right ? sum : 2.0f * sum;
}

// Block: 64 rows, of all samples, by 64 outputs. `partial` is [tiles of outputs, rows].
template <class T>
__device__ __forceinline__ void projected(
    float *partial, const T *direction, const T *input, const T *d_output, unsigned rows, unsigned outputs,
    unsigned inputs) {
    constexpr unsigned LINE = ROWS + 1;
    DYNAMIC_SHARED(T, shared);
    unsigned tiles = (outputs + ROWS - 1) / ROWS, tile = blockIdx.x % tiles;
    unsigned first_row = blockIdx.x / tiles * ROWS, first_output = tile * ROWS;
    float products[NUMBERS];
    multiply_rows<T>(products, shared, {input, first_row, rows}, {direction, first_output, outputs}, inputs);
    float *lines = reinterpret_cast<float *>(shared);
#pragma unroll
    for (unsigned number = 0; number < NUMBERS; ++number) {
        unsigned row = Products<T>::row(number), column = Products<T>::column(number);
        bool within = first_row + row < rows && first_output + column < outputs;
        float b = within ? to_float(d_output[uint64_t(first_row + row) * outputs + first_output + column]) : 0.0f;
        lines[row * LINE + column] = products[number] * b;
    }
    __syncthreads();
    unsigned row = threadIdx.x;
    if (row >= ROWS || first_row + row >= rows) return;
    float sum = 0.0f;
    for (unsigned column = 0; column < ROWS; ++column) sum += lines[row * LINE + column];
    partial[uint64_t(tile) * rows + first_row + row] = sum;
}

#define SHORT(T, suffix)                                                                                               \
    KERNEL(                                                                                                            \
        gram_##suffix, THREADS, float *partial, const T *input, const T *d_output, uint32_t rows, uint32_t outputs,    \
        uint32_t inputs) {                                                                                             \
        gram(partial, input, d_output, rows, outputs, inputs);                                                         \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        gram_pairs_##suffix, THREADS, float *partial, const T *input, const T *d_output, uint32_t rows,                \
        uint32_t outputs, uint32_t inputs) {                                                                           \
        gram_pairs(partial, input, d_output, rows, outputs, inputs);                                                   \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        projected_##suffix, THREADS, float *partial, const T *direction, const T *input, const T *d_output,            \
        uint32_t rows, uint32_t outputs, uint32_t inputs) {                                                            \
        projected(partial, direction, input, d_output, rows, outputs, inputs);                                         \
    }
SHORT(float, f32)
SHORT(bf16, bf16)
SHORT(f16, f16)
