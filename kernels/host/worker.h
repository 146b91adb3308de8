// What runs one block at a time: its threads as fibers, its warps, its shared memory.
#pragma once
#include "emulator.h"
#include "memory.h"
#include "switch.h"

namespace emulator {

constexpr unsigned LANES = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned MOST_WARPS = MOST_THREADS / LANES;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr unsigned MOST_COPIES = 64;

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, source_bytes, group;
    const void *pc;
};

struct Lane {
    Context context;
    Index3 index;
    // Where the lane waits, for messages and to tell one collective from another.
    const char *file;
    unsigned line;
    unsigned mask;
    Collective kind;
    const void *in;
    void *out;
    unsigned copies, group;
};

struct Warp {
    // One bit a lane: can run; waits in a collective; waits at the block's barrier; has returned.
    unsigned ready, waiting, barred, done, present;
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
    Warp warp[MOST_WARPS];
    Lane lane[MOST_THREADS];
    Copy copies[MOST_THREADS][MOST_COPIES];
};

// The worker of this thread while it runs a block, else null. (__thread: no call to a wrapper at each access.)
extern __thread Worker *current_worker;

inline Lane &me() { return current_worker->lane[current_worker->current]; }

// Who makes an access now.
inline Who who(bool atomic) {
    Worker &worker = *current_worker;
    return {worker.current, worker.warp[worker.current / LANES].epoch, atomic};
}

// Ends the launch with a fault at this place of the program, or of its source; does not return to the kernel.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const void *pc, const char *format, ...);
[[noreturn]] __attribute__((format(printf, 3, 4))) void
fail_at(const char *file, unsigned line, const char *format, ...);

// Stops a kernel that may not make this access. `aligned`: it is one instruction on the card, which wants its address to
// be a multiple of its size.
void check(uintptr_t address, unsigned bytes, bool write, bool atomic, bool aligned, const void *pc);

} // namespace emulator
