// The state of one emulated block: threads as fibers, warps, shared memory.
#pragma once
#include "emulator.h"
#include "memory.h"
#include "switch.h"

namespace emulator {

constexpr unsigned LANES = 32;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_WARPS = MAX_THREADS / LANES;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr unsigned MAX_COPIES = 64;

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, source_bytes, group;
    const void *pc;
};

struct Lane {
    Context context;
    Index3 index;
    // Where the lane waits: for messages, and to distinguish collectives.
    const char *file;
    unsigned line;
    unsigned mask;
    Collective kind;
    const void *in;
    void *out;
    unsigned copies, group;
};

struct Warp {
    // One bit per lane: can run; waits in a collective; waits at the block barrier; has returned.
    unsigned ready, waiting, at_barrier, done, present;
    unsigned epoch;
};

struct Worker {
    Context scheduler;
    Shape shape;
    const Kernel *kernel;
    void **arguments;
    Index3 block;
    unsigned threads, warps, current;
    bool faulted;
    Fault fault;
    char *stacks;
    SharedMemory shared;
    Warp warp[MAX_WARPS];
    Lane lane[MAX_THREADS];
    Copy copies[MAX_THREADS][MAX_COPIES];
};

// The worker of this thread while it runs a block, else null. (__thread: no wrapper call on each access.)
extern __thread Worker *current_worker;

inline Lane &current_lane() { return current_worker->lane[current_worker->current]; }

// The identity of the current access.
inline Who who(bool atomic) {
    Worker &worker = *current_worker;
    return {worker.current, worker.warp[worker.current / LANES].epoch, atomic};
}

// Ends the launch with a fault at this program counter, or source line. Does not return to the kernel.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const void *pc, const char *format, ...);
[[noreturn]] __attribute__((format(printf, 3, 4))) void
fail_at(const char *file, unsigned line, const char *format, ...);

// Checks an access, and stops the kernel if it is invalid. `aligned`: a single instruction on the GPU, whose
// address must be a multiple of its size.
void check(uintptr_t address, unsigned bytes, bool write, bool atomic, bool aligned, const void *pc);

} // namespace emulator
