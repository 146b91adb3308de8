// The interface between the emulator's runtime (runtime.cpp), the kernels compiled for the host, and the Rust
// side (src/engine/cuda/emulator/mod.rs). Plain C types only: the runtime links no C++ standard library.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {

struct Index3 {
    unsigned x, y, z;
};

// A kernel, and how to call it with an array of pointers to its arguments.
struct Kernel {
    const char *name;
    const char *file;
    unsigned line;
    // The largest block that its __launch_bounds__ allow.
    unsigned threads;
    // Two letters per argument: how it is passed ('v' by value, 'r' pointer to const, 'w' pointer), and its
    // type.
    const char *signature;
    void (*call)(void **arguments);
    const Kernel *next;
};

// Adds a kernel to the list that emulator_find searches.
struct Registration {
    explicit Registration(Kernel &kernel);
};

struct Shape {
    Index3 grid, block;
    unsigned dynamic_bytes;
    // The limit on static plus dynamic shared memory per block.
    unsigned shared_limit;
    // The serial number of this launch, never 0: distinguishes accesses of one launch from those of another.
    unsigned serial;
};

// A bug found in a kernel. `pc` is the address of the access if there is one, else `file` and `line` are set.
struct Fault {
    char message[512];
    const void *pc;
    const char *file;
    unsigned line;
    Index3 block, thread;
};

// A named array in a block's shared memory, at a fixed address within a launch.
void *static_shared(const void *site, unsigned bytes, const char *name);
void *dynamic_shared();

Index3 thread_index() __attribute__((const));
Index3 block_index() __attribute__((const));
Index3 block_size() __attribute__((const));
Index3 grid_size() __attribute__((const));

void block_barrier(const char *file, unsigned line);

enum class Collective : unsigned { sync, shuffle, vote, mma_bf16, mma_f16, ldmatrix };

// Waits until every lane of `mask` is in the same collective; the last one to arrive computes it for all.
void collective(Collective kind, unsigned mask, const void *in, void *out, const char *file, unsigned line);

// Checks the address of an atomic, which is not instrumented.
void atomic_access(const void *address, unsigned bytes);
// The location in the kernel that calls this.
const void *here();

void copy_async(void *to, const void *from, unsigned bytes, unsigned source_bytes);
void copy_async_commit();
void copy_async_wait(unsigned groups);

[[noreturn]] void trap(const char *file, unsigned line, const char *what);

// Inputs of the collectives, one per lane.
struct ShuffleIn {
    uint64_t value;
    // The source lane; the lane itself where CUDA leaves the value unchanged.
    unsigned source;
};
struct MmaIn {
    uint32_t a[4], b[2];
    float c[4];
};
struct MmaOut {
    float d[4];
};
struct LdmatrixIn {
    const void *row;
    const void *pc;
    unsigned count;
    bool transposed;
};

} // namespace emulator
