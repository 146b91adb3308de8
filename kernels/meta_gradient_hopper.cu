// in_tile of meta_gradient.cu for Hopper, in bf16 and f16: rows come by the card's copy unit, products by its warpgroup
// instructions.
//
// A gradient, or its transpose, is cut into tiles of 128 by 128 or 128 by 192 numbers; `left` is the operand whose
// columns are the 128, `right` the other. tiles.rs says which width, and which way round, a layer gets.
//
// Threads: a block of 3 warpgroups. The first two multiply: each has 64 by 128 or 192 numbers in registers (64 or 96 a
// thread), as many of the weighted sum, and writes a part of its own for each sample. One thread of the third starts
// copies of a step's rows, up to 5 steps of 64 rows or 6 of 32 ahead, also over the end of a sample; its warpgroup
// gives its registers to the others. A stage is full when its bytes have come, and empty when the 8 warps that
// multiply have read it.
//
// Rows are boxes of [rows of a step, 64 columns] of [samples, rows of a sample, columns]: the unit writes zeros for
// rows past a sample's last, and for columns past the layer's last. In shared memory a row of a box is 128 bytes, its
// 16-byte chunks exchanged by the row's last three bits; a box starts on a multiple of 1024 bytes, as that exchange
// needs.
// Shared memory: 160 KB of rows and 64 KB of the direction, or 120 KB and 96 KB; one block a multiprocessor.
//
// Measured for S 64, T 680, [3072, 1024] in bf16 on an H200 on 2026-11-26, each kernel by itself (in the benches, on a card
// at work, 0.484 ms and 0.409 ms for the library): 0.419 ms with tiles of 192 (128 blocks, each
// through all samples), 0.483 ms with tiles of 128 (384 blocks in 3 rounds of half the samples). cuBLAS takes 0.347 ms
// for the weight gradient alone. Products with nothing asked of them take 0.381 ms by 192, and 0.421 ms of 0.496 by 128
// with 4 stages; 97% of the multiprocessors are at work in both. So the end of a sample is 9% for 192 and 15% for 128,
// almost all of it the products with the direction, and bringing rows is the rest of what is lost: for 64 rows a block
// of 128 multiplies for 512 cycles and gets 32 KB from the second-level cache, one of 192 for 768 cycles and 40 KB.
// Clusters of 2 by 2 blocks that share rows halve that, but took longer (0.56 ms by 128, 0.65 ms by 192): a card has
// room for 30 of them, 120 of its 132 multiprocessors. Clusters of 2 took 0.472 and 0.451 ms. Starting the second
// warpgroup later, and fewer products in a sample's last step, gained nothing. Nor did a direction of 16 bits, which
// leaves room for 8 steps, nor equal shares of all pairs of tile and sample: blocks at different samples read them from
// memory (0.64 ms). Under load it is the card's power that counts: 0.42 ms at 1.65 GHz become 0.50, and cuBLAS's 0.35
// become 0.41. Then, in that trial, clusters of 2 with 64 rows a step took 3% less: left to do. (Tiles numbered down
// first took 2% less than across first there; in the benches, since, 0.490 ms beside 0.492 before.) Those trials are in no
// script of the project.
// Needs columns in multiples of 8.
#include "meta_gradient.cuh"

#if defined(__CUDACC__)

// What the driver's cuTensorMapEncodeTiled makes; only the copy unit reads it.
struct alignas(128) TensorMap {
    unsigned char bytes[128];
};

constexpr unsigned THREADS = 384;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr unsigned CONSUMERS = 256;

// Tiles with RIGHT columns of `right`. NUMBERS are a thread's. The direction of 192 leaves less room for rows.
template <unsigned RIGHT_COLUMNS> struct Shape {
    static constexpr unsigned LEFT = 128, RIGHT = RIGHT_COLUMNS, NUMBERS = RIGHT / 2;
    static constexpr unsigned STEP = RIGHT == 128 ? 64 : 32, STAGES = RIGHT == 128 ? 5 : 6;
    // Columns of a box, and bytes of a box and of all that a step needs.
    static constexpr unsigned BOX = 64, BOX_BYTES = STEP * BOX * 2, STAGE_BYTES = (LEFT + RIGHT) / BOX * BOX_BYTES;
};

// The layer as a tile sees it: `columns` of both operands, and how far apart neighbours of a gradient lie in memory.
struct Sides {
    unsigned left_columns, right_columns, left_stride, right_stride;
};

// Calls work(number, within, at) for each number of the thread's. They lie as the result of wgmma does, a warpgroup
// below the other. A place is computed from the one before, and anew each time: all together would need too many
// registers.
template <unsigned NUMBERS, class Work>
__device__ __forceinline__ void each_number(unsigned left, unsigned right, const Sides &sides, Work work) {
    left += threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    right += threadIdx.x % 4 * 2;
    uint64_t at = uint64_t(left) * sides.left_stride + uint64_t(right) * sides.right_stride;
#pragma unroll
    for (unsigned number = 0; number < NUMBERS; ++number) {
        if (number % 4 == 0) asm volatile("" : "+l"(at), "+r"(right));
        unsigned down = number / 2 % 2 * 8, across = number % 2;
        bool within = left + down < sides.left_columns && right + across < sides.right_columns;
        work(number, within, at + down * sides.left_stride + across * sides.right_stride);
        if (number % 4 == 3) {
            right += 8;
            at += 8 * sides.right_stride;
        }
    }
}

__device__ __forceinline__ unsigned address_of(const void *shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Barriers in shared memory -------------------------------------------------------------------------------------------

__device__ __forceinline__ void open_barrier(uint64_t *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_of(barrier)) : "memory");
}
__device__ __forceinline__ void arrive_and_expect(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(barrier)), "r"(bytes)
                 : "memory");
}
// Waits for the end of the phase of this parity. A new barrier is in phase 0, and that of parity 1 counts as over.
__device__ __forceinline__ void wait_barrier(uint64_t *barrier, unsigned parity) {
    unsigned done;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(address_of(barrier)), "r"(parity)
                     : "memory");
    } while (done == 0);
}

// Starts the copy of one box, which tells the barrier when its bytes have come.
__device__ __forceinline__ void
start_box(unsigned to, const TensorMap &map, uint64_t *barrier, unsigned column, unsigned row, unsigned sample) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
                 "[%2];" ::"r"(to),
                 "l"(&map), "r"(address_of(barrier)), "r"(column), "r"(row), "r"(sample)
                 : "memory");
}

// Products of a warpgroup ---------------------------------------------------------------------------------------------

// How wgmma finds an operand whose rows in shared memory are the inner size, 16 of them from `first` on. In units of 16
// bytes: from bit 0 the address, from bit 16 the distance between two boxes of 64 columns, from bit 32 that between rows
// 8 apart; from bit 49 where the exchange begins (0: boxes start on multiples of 1024 bytes, and 16 rows are 2048); at bit
// 62 a 1 for the exchange of chunks within 128 bytes.
template <unsigned BOX_BYTES> __device__ __forceinline__ uint64_t operand(unsigned address) {
    constexpr uint64_t BETWEEN_BOXES = BOX_BYTES / 16, BETWEEN_EIGHTS = 8 * 128 / 16;
    return uint64_t((address & 0x3ffffu) / 16) | BETWEEN_BOXES << 16 | BETWEEN_EIGHTS << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most GROUPS groups of products are on their way.
template <unsigned GROUPS> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}

// d = a b for the warpgroup, plus what d was if `add`: a is 64 by 16, b 16 by RIGHT, both with rows of the inner size (the
// last two ones).
#define NAMES_64                                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_32_MORE                                                                                                  \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                 \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NUMBERS_64                                                                                                     \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                                                    \
    "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                                                                    \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),                                                                  \
    "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),                                                                \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),                                                                \
    "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),                                                                \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),                                                                \
    "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),                                                                \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),                                                                \
    "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),                                                                \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),                                                                \
    "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),                                                                \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),                                                                \
    "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),                                                                \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),                                                                \
    "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define NUMBERS_32_MORE                                                                                                \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]),                                                                \
    "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),                                                                \
    "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]),                                                                \
    "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),                                                                \
    "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),                                                                \
    "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),                                                                \
    "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]),                                                                \
    "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define MULTIPLY(shape, type, names, a_name, b_name, add_name, ...)                                                    \
    asm volatile("{\n"                                                                                                 \
                 ".reg .pred p;\n"                                                                                     \
                 "setp.ne.b32 p, " add_name ", 0;\n"                                                                   \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" names "}, "                          \
                 a_name ", " b_name ", p, 1, 1, 1, 1;\n"                                                               \
                 "}"                                                                                                   \
                 : __VA_ARGS__                                                                                         \
                 : "l"(a), "l"(b), "r"(unsigned(add)))
#define MULTIPLY_128(type) MULTIPLY("m64n128k16", type, NAMES_64, "%64", "%65", "%66", NUMBERS_64)
#define MULTIPLY_192(type)                                                                                             \
    MULTIPLY("m64n192k16", type, NAMES_64 ", " NAMES_32_MORE, "%96", "%97", "%98", NUMBERS_64, NUMBERS_32_MORE)

template <class T> __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool add) {
    if constexpr (__is_same(T, bf16)) {
        MULTIPLY_128("bf16");
    } else {
        MULTIPLY_128("f16");
    }
}
template <class T> __device__ __forceinline__ void multiply(float (&d)[96], uint64_t a, uint64_t b, bool add) {
    if constexpr (__is_same(T, bf16)) {
        MULTIPLY_192("bf16");
    } else {
        MULTIPLY_192("f16");
    }
}

// The numbers are not touched by what stands before, nor before what stands after.
template <unsigned NUMBERS> __device__ __forceinline__ void hold(float (&numbers)[NUMBERS]) {
#pragma unroll
    for (unsigned at = 0; at < NUMBERS; ++at) asm volatile("" : "+f"(numbers[at])::"memory");
}

template <class T, class Shape>
__device__ __forceinline__ void in_tile(
    const Asked &asked, const TensorMap &left, const TensorMap &right, unsigned rows, const Sides &sides,
    const SampleRange &range, unsigned slots) {
    constexpr unsigned STEP = Shape::STEP, STAGES = Shape::STAGES, NUMBERS = Shape::NUMBERS;
    constexpr unsigned BOX = Shape::BOX, BOX_BYTES = Shape::BOX_BYTES, STAGE_BYTES = Shape::STAGE_BYTES;
    DYNAMIC_SHARED(unsigned char, dynamic);
    SHARED_ARRAY(uint64_t, full, [STAGES]);
    SHARED_ARRAY(uint64_t, empty, [STAGES]);
    SHARED_ARRAY(float, warp_sums, [2][2][2][4]);
    unsigned padding = (1024 - address_of(dynamic) % 1024) % 1024, stages = address_of(dynamic) + padding;
    float4 *direction = reinterpret_cast<float4 *>(dynamic + padding + STAGES * STAGE_BYTES) + threadIdx.x;
    // Tiles are numbered down first: neighbours in time then share the wider operand.
    unsigned down = (sides.left_columns + Shape::LEFT - 1) / Shape::LEFT;
    unsigned left_column = blockIdx.x % down * Shape::LEFT, right_column = blockIdx.x / down * Shape::RIGHT;
    unsigned steps = (rows + STEP - 1) / STEP;
    if (threadIdx.x == 0) {
        for (unsigned stage = 0; stage < STAGES; ++stage) {
            open_barrier(full + stage, 1);
            open_barrier(empty + stage, CONSUMERS / WARP);
        }
        // The copy unit sees them too.
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();

    unsigned stage = 0, parity = 0;
    auto advance = [&]() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    };
    // The same for a whole warp, which the compiler cannot know of threadIdx.
    unsigned warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
    if (warp >= CONSUMERS / WARP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x != CONSUMERS) return;
        for (unsigned sample = range.begin; sample < range.end; ++sample) {
            for (unsigned step = 0; step < steps; ++step) {
                wait_barrier(empty + stage, parity ^ 1);
                arrive_and_expect(full + stage, STAGE_BYTES);
                unsigned to = stages + stage * STAGE_BYTES, row = step * STEP;
#pragma unroll
                for (unsigned column = 0; column < Shape::LEFT; column += BOX) {
                    start_box(to, left, full + stage, left_column + column, row, sample);
                    to += BOX_BYTES;
                }
#pragma unroll
                for (unsigned column = 0; column < Shape::RIGHT; column += BOX) {
                    start_box(to, right, full + stage, right_column + column, row, sample);
                    to += BOX_BYTES;
                }
                advance();
            }
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    unsigned group = warp / 4;
    float *sums = nullptr;
    float gradient[NUMBERS], sum[NUMBERS];
    if (asked.sums != nullptr) sums = asked.sums + uint64_t(blockIdx.y) * sides.left_columns * sides.right_columns;
    if (asked.products != nullptr) {
        float four[4];
        each_number<NUMBERS>(left_column, right_column, sides, [&](unsigned number, bool within, uint64_t at) {
            four[number % 4] = within ? asked.direction[at] : 0.0f;
            if (number % 4 == 3) direction[number / 4 * CONSUMERS] = make_float4(four[0], four[1], four[2], four[3]);
        });
    }
    each_number<NUMBERS>(left_column, right_column, sides, [&](unsigned number, bool within, uint64_t at) {
        gradient[number] = 0.0f;
        sum[number] = asked.accumulate && within && sums != nullptr ? sums[at] : 0.0f;
    });

    uint64_t part = uint64_t(blockIdx.x * 2 + group) * slots + range.slot;
    for (unsigned sample = range.begin; sample < range.end; ++sample) {
        float weight = sums == nullptr ? 0.0f : asked.weights[sample];
        unsigned before = 0;
        for (unsigned step = 0; step < steps; ++step) {
            wait_barrier(full + stage, parity);
            unsigned a = stages + stage * STAGE_BYTES + group * BOX_BYTES;
            unsigned b = stages + stage * STAGE_BYTES + Shape::LEFT / BOX * BOX_BYTES;
            hold(gradient);
            begin_products();
#pragma unroll
            for (unsigned k = 0; k < STEP; k += 16) {
                uint64_t with = operand<BOX_BYTES>(b + k * 128);
                multiply<T>(gradient, operand<BOX_BYTES>(a + k * 128), with, step > 0 || k > 0);
            }
            close_products();
            // The step before has read its rows.
            wait_products<1>();
            if (step > 0 && lane == 0) arrive(empty + before);
            before = stage;
            advance();
        }
        wait_products<0>();
        hold(gradient);
        if (lane == 0) arrive(empty + before);
        float(&mine)[2][4] = warp_sums[sample % 2][group];
        finish_sample<CONSUMERS, false>(gradient, sum, direction, asked, weight, mine, warp % 4);
        // All warps of this warpgroup have written; the other half of the sums is written next.
        asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
        write_sample(mine, asked, part + sample - range.begin, threadIdx.x % 128);
    }
    if (sums != nullptr) {
        each_number<NUMBERS>(left_column, right_column, sides, [&](unsigned number, bool within, uint64_t at) {
            if (within) sums[at] = sum[number];
        });
    }
}

#define BODY(T, width)                                                                                                 \
    in_tile<T, Shape<width>>(                                                                                          \
        {products, norms, sums, direction, weights, accumulate != 0}, left, right, rows,                               \
        {left_columns, right_columns, left_stride, right_stride}, {samples, chunk, first, count}, slots)
#else
// No other card has these instructions, and the engine asks for this kernel on no other.
#define BODY(T, width) TRAP("this kernel is for Hopper")
#endif

#define IN_TILE(T, suffix, width)                                                                                      \
    KERNEL(                                                                                                            \
        in_tile_hopper_##width##_##suffix, THREADS, float *products, float *norms, float *sums,                        \
        const float *direction, const float *weights, const __grid_constant__ TensorMap left,                          \
        const __grid_constant__ TensorMap right, uint32_t samples, uint32_t rows, uint32_t left_columns,               \
        uint32_t right_columns, uint32_t left_stride, uint32_t right_stride, uint32_t chunk, uint32_t first,           \
        uint32_t count, uint32_t slots, uint32_t accumulate) {                                                         \
        BODY(T, width);                                                                                                \
    }
IN_TILE(bf16, bf16, 128)
IN_TILE(f16, f16, 128)
IN_TILE(bf16, bf16, 192)
IN_TILE(f16, f16, 192)

#endif
