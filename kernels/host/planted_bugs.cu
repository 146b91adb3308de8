// One planted bug of each kind that the emulator must find (tests/emulator.rs), next to kernels that do the
// same correctly. Never compiled for a GPU.
#include "portable.cuh"

constexpr unsigned THREADS = 64;

KERNEL(planted_divergent_barrier, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = 1.0f;
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

KERNEL(planted_two_barriers, THREADS, float *out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1.0f;
}

KERNEL(planted_divergent_shuffle, THREADS, float *out) {
    float value = float(threadIdx.x);
    if (threadIdx.x % 2 == 0) value += __shfl_xor_sync(ALL_LANES, value, 2);
    out[threadIdx.x] = value;
}

KERNEL(planted_shuffle_from_outside, THREADS, float *out) {
    float value = float(threadIdx.x);
    if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(0xffffu, value, 16);
    out[threadIdx.x] = value;
}

KERNEL(planted_unwritten_shared, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    if (threadIdx.x != 7) values[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = values[THREADS - 1 - threadIdx.x];
}

KERNEL(planted_race, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = 1.0f;
    out[threadIdx.x] = values[THREADS - 1 - threadIdx.x];
}

KERNEL(planted_race_after_reading, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = 1.0f;
    __syncthreads();
    float next = values[(threadIdx.x + 1) % THREADS];
    values[threadIdx.x] = next;
    out[threadIdx.x] = next;
}

KERNEL(planted_race_in_warp, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = 1.0f;
    out[threadIdx.x] = values[threadIdx.x ^ 1];
}

KERNEL(planted_race_of_blocks, THREADS, float *out) { out[threadIdx.x] = float(blockIdx.x); }

KERNEL(planted_read_outside, THREADS, float *out, const float *in) { out[threadIdx.x] = in[threadIdx.x + 1]; }

KERNEL(planted_write_outside, THREADS, float *out) { out[threadIdx.x + 1] = 1.0f; }

KERNEL(planted_unwritten_global, THREADS, float *out) { out[threadIdx.x] += 1.0f; }

KERNEL(planted_index_outside, THREADS, float *out) {
    float values[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    out[threadIdx.x] = values[threadIdx.x % 5];
}

KERNEL(planted_shared_outside, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    float *place = values + threadIdx.x;
    place[1] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

KERNEL(planted_misaligned, THREADS, float *out) {
    *reinterpret_cast<float4 *>(out + 4 * threadIdx.x + 1) = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
}

KERNEL(planted_missing_wait, THREADS, float *out, const float *in) {
    DYNAMIC_SHARED(float, values);
    copy_16_async(values + 4 * threadIdx.x, in + 4 * threadIdx.x);
    commit_copies();
    __syncthreads();
    out[threadIdx.x] = values[4 * threadIdx.x];
}

KERNEL(planted_too_much_shared, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = 1.0f;
    out[threadIdx.x] = values[threadIdx.x];
}

// Correct code that must not be reported: exchanges through shared memory with warp and block barriers.
KERNEL(right_exchanges, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = float(threadIdx.x);
    __syncwarp();
    float near = values[threadIdx.x ^ 1];
    __syncthreads();
    float far = values[THREADS - 1 - threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = near + far;
    __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 5) % THREADS];
}

// Collectives within segments of a warp, after which the whole warp reconverges; votes; counting with
// atomics.
KERNEL(right_collectives, THREADS, float *out, uint32_t *counts) {
    SHARED_ARRAY(uint32_t, shared_count, [1]);
    unsigned lane = threadIdx.x % WARP;
    if (threadIdx.x == 0) shared_count[0] = 0;
    __syncthreads();
    float value = float(lane);
    if (lane < 16) value += __shfl_xor_sync(0xffffu, value, 8);
    value = __shfl_sync(ALL_LANES, value, (lane + 1) % WARP);
    float down = __shfl_down_sync(ALL_LANES, value, 3, 8), up = __shfl_up_sync(ALL_LANES, value, 3, 8);
    value += down + up;
    unsigned votes = __ballot_sync(ALL_LANES, lane % 3 == 0);
    bool all = __all_sync(ALL_LANES, lane < 32), any = __any_sync(ALL_LANES, lane == 40);
    if (votes >> lane & 1) atomicAdd(&shared_count[0], 1u);
    atomicMax(&counts[1], threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&counts[0], shared_count[0]);
    out[blockIdx.x * THREADS + threadIdx.x] = all && !any ? value : -1.0f;
}

// C [16, 8] = A [16, 16] B [16, 8] on one warp: tiles by cp.async, fragments by ldmatrix, product by mma. B
// is stored row-major, so its fragments are loaded transposed.
template <class T> __device__ __forceinline__ void tile_product(float *c, const T *a, const T *b) {
    SHARED_ARRAY(T, rows, [16][16]);
    SHARED_ARRAY(T, columns, [16][8]);
    unsigned lane = threadIdx.x;
    copy_16_async(&rows[lane / 2][lane % 2 * 8], a + lane * 8);
    commit_copies();
    if (lane < 16) copy_16_async(&columns[lane][0], b + lane * 8);
    commit_copies();
    wait_copies<0>();
    __syncwarp();
    uint32_t left[4], right[2];
    load_matrices<4>(left, &rows[lane % 16][lane / 16 * 8]);
    load_matrices<2, true>(right, &columns[lane % 16][0]);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_16x8x16<T>(sums, left, right);
    for (unsigned at = 0; at < 4; ++at) c[(lane / 4 + at / 2 * 8) * 8 + lane % 4 * 2 + at % 2] = sums[at];
}
KERNEL(right_product_bf16, WARP, float *c, const bf16 *a, const bf16 *b) { tile_product(c, a, b); }
KERNEL(right_product_f16, WARP, float *c, const f16 *a, const f16 *b) { tile_product(c, a, b); }

// Sums, differences, products and quotients in the 16-bit types.
template <class T>
__device__ __forceinline__ void arithmetic(T *out, const T *left, const T *right, unsigned count) {
    for (unsigned at = threadIdx.x; at < count; at += THREADS) {
        out[at] = left[at] + right[at];
        out[count + at] = left[at] - right[at];
        out[2 * count + at] = left[at] * right[at];
        out[3 * count + at] = left[at] / right[at];
    }
}
KERNEL(right_arithmetic_bf16, THREADS, bf16 *out, const bf16 *left, const bf16 *right, uint32_t count) {
    arithmetic(out, left, right, count);
}
KERNEL(right_arithmetic_f16, THREADS, f16 *out, const f16 *left, const f16 *right, uint32_t count) {
    arithmetic(out, left, right, count);
}
