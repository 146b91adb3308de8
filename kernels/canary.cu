// One mistake in each kernel, for the tools that watch a card to find: memcheck, racecheck, initcheck, synccheck. The
// program never launches them; tests/canary.rs does, on the emulator always, and on a card when scripts/gpu.sh asks for it.
//
// One block of 64 threads; out: 64 numbers.
#include "portable.cuh"

constexpr unsigned THREADS = 64;

// Writes behind its 64 numbers.
KERNEL(canary_out_of_bounds, THREADS, float *out) { out[threadIdx.x + 1] = float(threadIdx.x); }

// Reads what another warp writes, with no barrier between.
KERNEL(canary_race, THREADS, float *out) {
    SHARED_ARRAY(float, values, [THREADS]);
    values[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = values[THREADS - 1 - threadIdx.x];
}

// Reads memory that nobody wrote.
KERNEL(canary_unwritten, THREADS, float *out) { out[threadIdx.x] += 1.0f; }

// Half of a warp waits at a barrier that the other half never reaches, but goes on behind it: a card does not count threads
// that have ended, and synccheck finds nothing wrong with those.
KERNEL(canary_divergent_barrier, THREADS, float *out) {
    if (threadIdx.x % WARP < WARP / 2) __syncthreads();
    out[threadIdx.x] = 1.0f;
}
