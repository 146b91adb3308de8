// in_tile of meta_gradient.cu for Hopper, in bf16 and f16: rows come by the card's copy unit, products by its warpgroup
// instructions.
//
// Threads: a block of 3 warpgroups has 128 by 128 numbers of the gradient. The first two multiply: each has 64 outputs by
// 128 inputs in registers (64 numbers a thread), as many of the weighted sum, and writes a part of its own for each sample.
// One thread of the third starts copies of 64 rows a step, up to 4 steps ahead, also over the end of a sample; its
// warpgroup gives its registers to the others. A stage is full when its bytes have come, and empty when the 8 warps that
// multiply have read it.
//
// Rows are boxes of [64 rows, 64 columns] of [samples, rows of a sample, columns]: the unit writes zeros for rows past a
// sample's last, and for columns past the layer's last. In shared memory a row of a box is 128 bytes, its 16-byte chunks
// exchanged by the row's last three bits; a box is 8 KB, and starts on a multiple of 1024 bytes, as that exchange needs.
// Shared memory: 128 KB of rows and 64 KB of the direction; one block a multiprocessor.
//
// Limits for S 64, T 680, [3072, 1024] on an H100, computed and not yet measured: 274 GFLOP (284 with the rows that pad
// 680 to 704), 0.36 ms at 800 TFLOP/s. A step of a warpgroup reads 24 KB of shared memory for 256 cycles of products, and
// 32 KB come for 512: 5/8 of what shared memory can do. Needs columns in multiples of 8.
#include "meta_gradient.cuh"

#if defined(__CUDACC__)

// What the driver's cuTensorMapEncodeTiled makes; only the copy unit reads it.
struct alignas(128) TensorMap {
    unsigned char bytes[128];
};

constexpr unsigned THREADS = 384;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr unsigned CONSUMERS = 256, STAGES = 4, BOX = 64, SIDE = 128;
// Numbers of a box, and bytes of a stage: two boxes of each operand.
constexpr unsigned BOX_NUMBERS = BOX * BOX, STAGE_BYTES = 4 * BOX_NUMBERS * 2;

// Where a thread's numbers lie: the layout of wgmma's m64n128 result, a warpgroup below the other.
struct GroupTile {
    static constexpr unsigned THREADS = CONSUMERS, NUMBERS = 64;
    static __device__ __forceinline__ unsigned row(unsigned number) {
        return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + number / 2 % 2 * 8;
    }
    static __device__ __forceinline__ unsigned column(unsigned number) {
        return number / 4 * 8 + threadIdx.x % 4 * 2 + number % 2;
    }
};

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
start_box(void *to, const TensorMap &map, uint64_t *barrier, unsigned column, unsigned row, unsigned sample) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
                 "[%2];" ::"r"(address_of(to)),
                 "l"(&map), "r"(address_of(barrier)), "r"(column), "r"(row), "r"(sample)
                 : "memory");
}

// Products of a warpgroup ---------------------------------------------------------------------------------------------

// How wgmma finds an operand whose rows in shared memory are the inner size, 16 of them from `first` on. In units of 16
// bytes: from bit 0 the address, from bit 16 the distance between two boxes of 64 columns, from bit 32 that between rows
// 8 apart; from bit 49 where the exchange begins (0: boxes start on multiples of 1024 bytes, and 16 rows are 2048); at bit
// 62 a 1 for the exchange of chunks within 128 bytes.
__device__ __forceinline__ uint64_t operand(unsigned address) {
    constexpr uint64_t BETWEEN_BOXES = BOX_NUMBERS * 2 / 16, BETWEEN_EIGHTS = 8 * 128 / 16;
    return uint64_t((address & 0x3ffffu) / 16) | BETWEEN_BOXES << 16 | BETWEEN_EIGHTS << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most GROUPS groups of products are on their way.
template <unsigned GROUPS> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}

// d += a b for the warpgroup: a is 64 by 16, b 16 by 128, both with rows of the inner size (the last two ones).
#define MULTIPLY(type)                                                                                                 \
    asm volatile("{\n"                                                                                                 \
                 ".reg .pred p;\n"                                                                                     \
                 "setp.ne.b32 p, 1, 0;\n"                                                                              \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                     \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                              \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "                     \
                 "}, %64, %65, p, 1, 1, 1, 1;\n"                                                                       \
                 "}"                                                                                                   \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                                     \
                   "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                                                     \
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),                                                   \
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),                                                 \
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),                                                 \
                   "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),                                                 \
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),                                                 \
                   "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),                                                 \
                   "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),                                                 \
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),                                                 \
                   "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),                                                 \
                   "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),                                                 \
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),                                                 \
                   "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),                                                 \
                   "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),                                                 \
                   "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                                                  \
                 : "l"(a), "l"(b))
template <class T> __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b) {
    if constexpr (__is_same(T, bf16)) {
        MULTIPLY("bf16");
    } else {
        MULTIPLY("f16");
    }
}

// The numbers are not touched by what stands before, nor before what stands after.
__device__ __forceinline__ void hold(float (&numbers)[64]) {
#pragma unroll
    for (unsigned at = 0; at < 64; ++at) asm volatile("" : "+f"(numbers[at])::"memory");
}

template <class T>
__device__ __forceinline__ void in_tile(
    const Asked &asked, const TensorMap &input, const TensorMap &d_output, const LayerSizes &sizes,
    const SampleRange &range, unsigned slots) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    SHARED_ARRAY(uint64_t, full, [STAGES]);
    SHARED_ARRAY(uint64_t, empty, [STAGES]);
    SHARED_ARRAY(float, warp_sums, [2][2][2][4]);
    unsigned char *stages = dynamic + (1024 - address_of(dynamic) % 1024) % 1024;
    float4 *direction = reinterpret_cast<float4 *>(stages + STAGES * STAGE_BYTES) + threadIdx.x;
    unsigned across = (sizes.inputs + SIDE - 1) / SIDE;
    unsigned output = blockIdx.x / across * SIDE, column = blockIdx.x % across * SIDE;
    unsigned steps = (sizes.rows + BOX - 1) / BOX;
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
    unsigned warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0);
    if (warp >= CONSUMERS / WARP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x != CONSUMERS) return;
        for (unsigned sample = range.begin; sample < range.end; ++sample) {
            for (unsigned step = 0; step < steps; ++step) {
                wait_barrier(empty + stage, parity ^ 1);
                arrive_and_expect(full + stage, STAGE_BYTES);
                T *to = reinterpret_cast<T *>(stages + stage * STAGE_BYTES);
                unsigned row = step * BOX;
                start_box(to, d_output, full + stage, output, row, sample);
                start_box(to + BOX_NUMBERS, d_output, full + stage, output + BOX, row, sample);
                start_box(to + 2 * BOX_NUMBERS, input, full + stage, column, row, sample);
                start_box(to + 3 * BOX_NUMBERS, input, full + stage, column + BOX, row, sample);
                advance();
            }
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    unsigned group = warp / 4;
    float *sums = nullptr;
    float gradient[GroupTile::NUMBERS], sum[GroupTile::NUMBERS];
    if (asked.sums != nullptr) sums = asked.sums + uint64_t(blockIdx.y) * sizes.outputs * sizes.inputs;
    each_place<GroupTile>(output, column, sizes, [&](unsigned number, bool within, uint64_t at) {
        gradient[number] = 0.0f;
        sum[number] = asked.accumulate && within && sums != nullptr ? sums[at] : 0.0f;
    });
    if (asked.products != nullptr) bring_direction<GroupTile>(direction, asked.direction, output, column, sizes);

    uint64_t part = uint64_t(blockIdx.x * 2 + group) * slots + range.slot;
    for (unsigned sample = range.begin; sample < range.end; ++sample) {
        float weight = sums == nullptr ? 0.0f : asked.weights[sample];
        unsigned before = 0;
        for (unsigned step = 0; step < steps; ++step) {
            wait_barrier(full + stage, parity);
            unsigned left = address_of(stages) + stage * STAGE_BYTES + group * BOX_NUMBERS * 2;
            unsigned right = address_of(stages) + stage * STAGE_BYTES + 2 * BOX_NUMBERS * 2;
            hold(gradient);
            begin_products();
#pragma unroll
            for (unsigned k = 0; k < BOX; k += 16) multiply<T>(gradient, operand(left + k * 128), operand(right + k * 128));
            close_products();
            // The step before has read its rows.
            wait_products<1>();
            if (step > 0 && threadIdx.x % WARP == 0) arrive(empty + before);
            before = stage;
            advance();
        }
        wait_products<0>();
        hold(gradient);
        if (threadIdx.x % WARP == 0) arrive(empty + before);
        float(&mine)[2][4] = warp_sums[sample % 2][group];
        finish_sample<CONSUMERS>(gradient, sum, direction, asked, weight, mine, warp % 4);
        // All warps of this warpgroup have written; the other half of the sums is written next.
        asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
        write_sample(mine, asked, part + sample - range.begin, threadIdx.x % 128);
    }
    if (sums == nullptr) return;
    each_place<GroupTile>(output, column, sizes, [&](unsigned number, bool within, uint64_t at) {
        if (within) sums[at] = sum[number];
    });
}

#define BODY(T)                                                                                                        \
    in_tile<T>(                                                                                                        \
        {products, norms, sums, direction, weights, accumulate != 0}, input, d_output,                                 \
        {samples, rows, outputs, inputs}, {samples, chunk, first, count}, slots)
#else
// No other card has these instructions, and the engine asks for this kernel on no other.
#define BODY(T) TRAP("this kernel is for Hopper")
#endif

#define IN_TILE(T, suffix)                                                                                             \
    KERNEL(                                                                                                            \
        in_tile_hopper_##suffix, THREADS, float *products, float *norms, float *sums, const float *direction,          \
        const float *weights, const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap d_output,     \
        uint32_t samples, uint32_t rows, uint32_t outputs, uint32_t inputs, uint32_t chunk, uint32_t first,            \
        uint32_t count, uint32_t slots, uint32_t accumulate) {                                                         \
        BODY(T);                                                                                                       \
    }
IN_TILE(bf16, bf16)
IN_TILE(f16, f16)

#endif
