// in_tile of meta_gradient.cu for Hopper, in bf16 and f16: TMA loads, wgmma products, warp specialization.
//
// A gradient, or its transpose, is cut into tiles of 128 by 128 or 128 by 192. `left` is the operand whose
// columns are the 128, `right` the other; src/engine/ops/meta_gradient/cuda/tiles.rs chooses width and
// orientation per layer.
//
// Threads: a block of 3 warpgroups. Two consumers hold 64 by 128 or 192 accumulators each (64 or 96 registers
// per thread) and as many for the weighted sum; each writes its own part of a sample's sums. One thread of
// the third, the producer, issues the copies; setmaxnreg hands the registers of its warpgroup to the
// consumers.
// Pipeline: a ring of 5 stages of 64 rows, or 6 of 32 for tiles of 192, which does not stop at the end of a
// sample. Each stage has two mbarriers: full (its bytes have arrived) and empty (the 8 consumer warps have
// read it).
// TMA: a box is [rows of a step, 64 columns] of the tensor [samples, rows of a sample, columns]. The unit
// writes zeros for rows past a sample's last and for columns past the layer's last. In shared memory a row of
// a box is 128 bytes with the 128-byte swizzle (16-byte chunks XORed with the row's last three bits); a box
// starts on a multiple of 1024 bytes, as that swizzle requires.
// Memory: 160 KB of rows and 64 KB of V, or 120 KB and 96 KB; one block per multiprocessor.
// Precision: f32 accumulators and epilogue. Determinism: see meta_gradient.cuh.
// Requires columns in multiples of 8.
//
// Measured for S 64, T 680, [3072, 1024] in bf16 on an H200: 0.419 ms with tiles of 192 (128 blocks, each
// through all samples), 0.483 ms with tiles of 128 (384 blocks in 3 waves, half the samples each); cuBLAS
// takes 0.347 ms for the weight gradient alone. With an empty epilogue the products take 0.381 ms with tiles
// of 192, so the epilogue costs 9%, almost all of it the products with V. The loads are the rest: for 64 rows
// a block of 128 multiplies for 512 cycles and reads 32 KB from L2, one of 192 for 768 cycles and 40 KB.
//
// Reference: src/engine/ops/meta_gradient/cpu.rs. Source: docs/method.md, "The fused meta-gradient"; PTX ISA,
// wgmma and cp.async.bulk.tensor.
#include "meta_gradient.cuh"

#if defined(__CUDACC__)

// A CUtensorMap, as cuTensorMapEncodeTiled encodes it on the host. Only the TMA unit reads it.
struct alignas(128) TensorMap {
    unsigned char bytes[128];
};

constexpr unsigned THREADS = 384;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr unsigned CONSUMERS = 256;

// A tile of LEFT by RIGHT; VALUES accumulators per thread. V for 192 columns leaves less room for rows.
template <unsigned RIGHT_COLUMNS> struct Shape {
    static constexpr unsigned LEFT = 128, RIGHT = RIGHT_COLUMNS, VALUES = RIGHT / 2;
    static constexpr unsigned STEP = RIGHT == 128 ? 64 : 32, STAGES = RIGHT == 128 ? 5 : 6;
    // Columns of a box, and bytes of a box and of all boxes of a step.
    static constexpr unsigned BOX = 64, BOX_BYTES = STEP * BOX * 2;
    static constexpr unsigned STAGE_BYTES = (LEFT + RIGHT) / BOX * BOX_BYTES;
};

// The layer in the orientation of the tile: columns of both operands, and the strides of the gradient in
// memory.
struct GradientLayout {
    unsigned left_columns, right_columns, left_stride, right_stride;
};

// Calls work(element, within, index) for each accumulator of the thread, by the layout of wgmma's D fragment;
// the second warpgroup lies 64 rows below the first. Each index is derived from the previous one, and all are
// recomputed in every call: keeping them would take too many registers.
template <unsigned VALUES, class Work>
__device__ __forceinline__ void
for_each_element(unsigned left, unsigned right, const GradientLayout &layout, Work work) {
    left += threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    right += threadIdx.x % 4 * 2;
    uint64_t at = uint64_t(left) * layout.left_stride + uint64_t(right) * layout.right_stride;
#pragma unroll
    for (unsigned element = 0; element < VALUES; ++element) {
        if (element % 4 == 0) asm volatile("" : "+l"(at), "+r"(right));
        unsigned down = element / 2 % 2 * 8, across = element % 2;
        bool within = left + down < layout.left_columns && right + across < layout.right_columns;
        work(element, within, at + down * layout.left_stride + across * layout.right_stride);
        if (element % 4 == 3) {
            right += 8;
            at += 8 * layout.right_stride;
        }
    }
}

__device__ __forceinline__ unsigned address_of(const void *shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// mbarrier and TMA ------------------------------------------------------------------------------------------

__device__ __forceinline__ void init_barrier(uint64_t *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(arrivals)
                 : "memory");
}
__device__ __forceinline__ void arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_of(barrier)) : "memory");
}
__device__ __forceinline__ void arrive_and_expect(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(barrier)),
                 "r"(bytes)
                 : "memory");
}
// Waits until the phase of this parity is over. A new barrier is in phase 0, and parity 1 counts as over.
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

// Starts the copy of one box. The barrier counts its bytes as they arrive.
__device__ __forceinline__ void tma_load_box(
    unsigned to, const TensorMap &map, uint64_t *barrier, unsigned column, unsigned row, unsigned sample) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
                 "l"(&map), "r"(address_of(barrier)), "r"(column), "r"(row), "r"(sample)
                 : "memory");
}

// wgmma -----------------------------------------------------------------------------------------------------

// The matrix descriptor of a transposed operand (rows in shared memory are the k dimension), 16 rows from
// `address` on. In units of 16 bytes: from bit 0 the address, from bit 16 the leading dimension offset (from
// one box of 64 columns to the next), from bit 32 the stride offset (8 rows), from bit 49 the base offset of
// the swizzle (0: boxes start on multiples of 1024 bytes, and 16 rows are 2048); bit 62 selects the 128-byte
// swizzle.
template <unsigned BOX_BYTES> __device__ __forceinline__ uint64_t matrix_descriptor(unsigned address) {
    constexpr uint64_t LEADING_OFFSET = BOX_BYTES / 16, STRIDE_OFFSET = 8 * 128 / 16;
    return uint64_t((address & 0x3ffffu) / 16) | LEADING_OFFSET << 16 | STRIDE_OFFSET << 32 |
           uint64_t(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit_group() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most GROUPS groups of products are in flight.
template <unsigned GROUPS> __device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}

// d = a b on the warpgroup, plus the old d if `add`: a is 64 by 16, b 16 by RIGHT, both transposed (the last
// two immediates).
#define REGISTERS_64                                                                                         \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_32_MORE                                                                                    \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                       \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define ACCUMULATORS_64                                                                                      \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),          \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),             \
        "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),           \
        "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),           \
        "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),           \
        "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),           \
        "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),           \
        "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),           \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define ACCUMULATORS_32_MORE                                                                                 \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),  \
        "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]),           \
        "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]),           \
        "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]),           \
        "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define WGMMA(shape, type, registers, a_name, b_name, add_name, ...)                                         \
    asm volatile("{\n"                                                                                       \
                 ".reg .pred p;\n"                                                                           \
                 "setp.ne.b32 p, " add_name ", 0;\n"                                                         \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" registers "}, " a_name     \
                 ", " b_name ", p, 1, 1, 1, 1;\n"                                                            \
                 "}"                                                                                         \
                 : __VA_ARGS__                                                                               \
                 : "l"(a), "l"(b), "r"(unsigned(add)))
#define WGMMA_128(type) WGMMA("m64n128k16", type, REGISTERS_64, "%64", "%65", "%66", ACCUMULATORS_64)
#define WGMMA_192(type)                                                                                      \
    WGMMA(                                                                                                   \
        "m64n192k16", type, REGISTERS_64 ", " REGISTERS_32_MORE, "%96", "%97", "%98", ACCUMULATORS_64,       \
        ACCUMULATORS_32_MORE)

template <class T> __device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b, bool add) {
    if constexpr (__is_same(T, bf16)) {
        WGMMA_128("bf16");
    } else {
        WGMMA_128("f16");
    }
}
template <class T> __device__ __forceinline__ void wgmma(float (&d)[96], uint64_t a, uint64_t b, bool add) {
    if constexpr (__is_same(T, bf16)) {
        WGMMA_192("bf16");
    } else {
        WGMMA_192("f16");
    }
}

// Keeps the compiler from moving accesses to the accumulators across this point, while wgmma owns them.
template <unsigned VALUES> __device__ __forceinline__ void fence_accumulators(float (&values)[VALUES]) {
#pragma unroll
    for (unsigned at = 0; at < VALUES; ++at) asm volatile("" : "+f"(values[at])::"memory");
}

template <class T, class Shape>
__device__ __forceinline__ void in_tile(
    const Epilogue &epilogue, const TensorMap &left, const TensorMap &right, unsigned rows,
    const GradientLayout &layout, const SampleRange &range, unsigned slots) {
    constexpr unsigned STEP = Shape::STEP, STAGES = Shape::STAGES, VALUES = Shape::VALUES;
    constexpr unsigned BOX = Shape::BOX, BOX_BYTES = Shape::BOX_BYTES, STAGE_BYTES = Shape::STAGE_BYTES;
    DYNAMIC_SHARED(unsigned char, dynamic);
    SHARED_ARRAY(uint64_t, full, [STAGES]);
    SHARED_ARRAY(uint64_t, empty, [STAGES]);
    SHARED_ARRAY(float, warp_sums, [2][2][2][4]);
    unsigned padding = (1024 - address_of(dynamic) % 1024) % 1024, stages = address_of(dynamic) + padding;
    float4 *direction = reinterpret_cast<float4 *>(dynamic + padding + STAGES * STAGE_BYTES) + threadIdx.x;
    // Column-major tile order: blocks that run at the same time share the wider operand.
    unsigned down = (layout.left_columns + Shape::LEFT - 1) / Shape::LEFT;
    unsigned left_column = blockIdx.x % down * Shape::LEFT, right_column = blockIdx.x / down * Shape::RIGHT;
    unsigned steps = (rows + STEP - 1) / STEP;
    if (threadIdx.x == 0) {
        for (unsigned stage = 0; stage < STAGES; ++stage) {
            init_barrier(full + stage, 1);
            init_barrier(empty + stage, CONSUMERS / WARP);
        }
        // Makes the barriers visible to the TMA unit, the async proxy.
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
    // Uniform across the warp, which the compiler cannot derive from threadIdx.
    unsigned warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
    if (warp >= CONSUMERS / WARP) {
        // The producer warpgroup: one thread keeps the ring of stages full.
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x != CONSUMERS) return;
        for (unsigned sample = range.begin; sample < range.end; ++sample) {
            for (unsigned step = 0; step < steps; ++step) {
                wait_barrier(empty + stage, parity ^ 1);
                arrive_and_expect(full + stage, STAGE_BYTES);
                unsigned to = stages + stage * STAGE_BYTES, row = step * STEP;
#pragma unroll
                for (unsigned column = 0; column < Shape::LEFT; column += BOX) {
                    tma_load_box(to, left, full + stage, left_column + column, row, sample);
                    to += BOX_BYTES;
                }
#pragma unroll
                for (unsigned column = 0; column < Shape::RIGHT; column += BOX) {
                    tma_load_box(to, right, full + stage, right_column + column, row, sample);
                    to += BOX_BYTES;
                }
                advance();
            }
        }
        return;
    }

    // The consumer warpgroups.
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    unsigned group = warp / 4;
    float *sums = nullptr;
    float gradient[VALUES], sum[VALUES];
    if (epilogue.sums != nullptr) {
        sums = epilogue.sums + uint64_t(blockIdx.y) * layout.left_columns * layout.right_columns;
    }
    if (epilogue.products != nullptr) {
        float four[4];
        for_each_element<VALUES>(
            left_column, right_column, layout, [&](unsigned element, bool within, uint64_t at) {
                four[element % 4] = within ? epilogue.direction[at] : 0.0f;
                if (element % 4 == 3) {
                    direction[element / 4 * CONSUMERS] = make_float4(four[0], four[1], four[2], four[3]);
                }
            });
    }
    for_each_element<VALUES>(
        left_column, right_column, layout, [&](unsigned element, bool within, uint64_t at) {
            gradient[element] = 0.0f;
            sum[element] = epilogue.accumulate && within && sums != nullptr ? sums[at] : 0.0f;
        });

    uint64_t part = uint64_t(blockIdx.x * 2 + group) * slots + range.slot;
    for (unsigned sample = range.begin; sample < range.end; ++sample) {
        float weight = sums == nullptr ? 0.0f : epilogue.weights[sample];
        unsigned before = 0;
        for (unsigned step = 0; step < steps; ++step) {
            wait_barrier(full + stage, parity);
            unsigned a = stages + stage * STAGE_BYTES + group * BOX_BYTES;
            unsigned b = stages + stage * STAGE_BYTES + Shape::LEFT / BOX * BOX_BYTES;
            fence_accumulators(gradient);
            wgmma_fence();
#pragma unroll
            for (unsigned k = 0; k < STEP; k += 16) {
                uint64_t b_descriptor = matrix_descriptor<BOX_BYTES>(b + k * 128);
                wgmma<T>(
                    gradient, matrix_descriptor<BOX_BYTES>(a + k * 128), b_descriptor, step > 0 || k > 0);
            }
            wgmma_commit_group();
            // The products of the step before are complete: its stage is free.
            wgmma_wait_group<1>();
            if (step > 0 && lane == 0) arrive(empty + before);
            before = stage;
            advance();
        }
        wgmma_wait_group<0>();
        fence_accumulators(gradient);
        if (lane == 0) arrive(empty + before);
        float (&group_sums)[2][4] = warp_sums[sample % 2][group];
        sample_epilogue<CONSUMERS, false>(gradient, sum, direction, epilogue, weight, group_sums, warp % 4);
        // All warps of this warpgroup have written; the next sample uses the other half of the sums.
        asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
        write_partials(group_sums, epilogue, part + sample - range.begin, threadIdx.x % 128);
    }
    if (sums != nullptr) {
        for_each_element<VALUES>(
            left_column, right_column, layout, [&](unsigned element, bool within, uint64_t at) {
                if (within) sums[at] = sum[element];
            });
    }
}

#define BODY(T, width)                                                                                       \
    in_tile<T, Shape<width>>(                                                                                \
        {products, norms, sums, direction, weights, accumulate != 0}, left, right, rows,                     \
        {left_columns, right_columns, left_stride, right_stride}, {samples, chunk, first, count}, slots)
#else
// wgmma and TMA exist on sm_90a only, and the engine launches this kernel on no other GPU.
#define BODY(T, width) TRAP("this kernel is for Hopper")
#endif

#define IN_TILE(T, suffix, width)                                                                            \
    KERNEL(                                                                                                  \
        in_tile_hopper_##width##_##suffix, THREADS, float *products, float *norms, float *sums,              \
        const float *direction, const float *weights, const __grid_constant__ TensorMap left,                \
        const __grid_constant__ TensorMap right, uint32_t samples, uint32_t rows, uint32_t left_columns,     \
        uint32_t right_columns, uint32_t left_stride, uint32_t right_stride, uint32_t chunk, uint32_t first, \
        uint32_t count, uint32_t slots, uint32_t accumulate) {                                               \
        BODY(T, width);                                                                                      \
    }
IN_TILE(bf16, bf16, 128)
IN_TILE(f16, f16, 128)
IN_TILE(bf16, bf16, 192)
IN_TILE(f16, f16, 192)

#endif
