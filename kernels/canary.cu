// One planted bug per kernel, for the tools of compute-sanitizer to find: memcheck, racecheck, initcheck,
// synccheck. The program never launches them. tests/canary.rs does: always on the emulator, and on a GPU when
// scripts/gpu.sh asks.
//
// Threads: one block of 64. Shapes: out [64] in float.
#include "portable.cuh"

constexpr unsigned THREADS = 64;

// memcheck: writes one value past the end.
KERNEL(canary_out_of_bounds, THREADS, float *out) { out[threadIdx.x + 1] = float(threadIdx.x); }

// racecheck: reads what another warp writes, without a barrier between.
KERNEL(canary_race, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = values[THREADS - 1 - threadIdx.x];
}

// initcheck: reads memory that nothing wrote.
KERNEL(canary_unwritten, THREADS, float *out) { out[threadIdx.x] += 1.0f; }

// synccheck: half a warp waits at a barrier that the other half never reaches. The other half must still run:
// the hardware does not count threads that have exited, and synccheck accepts those.
KERNEL(canary_divergent_barrier, THREADS, float *out) {
    if (threadIdx.x % WARP < WARP / 2) __syncthreads();
    out[threadIdx.x] = 1.0f;
}
