// Checks every memory access of a kernel. Kernels are compiled with -fsanitize=thread and
// -fsanitize=alignment,bounds; the calls that the compiler inserts are answered here instead of by the
// sanitizer runtimes.
#include "worker.h"

#include <string.h>

namespace emulator {

static const char *verb(bool write) { return write ? "writes" : "reads"; }

static void check_global(uintptr_t address, unsigned bytes, bool write, bool atomic, const void *pc) {
    const Worker &worker = *current_worker;
    Allocation near;
    if (!arena.holds(address, bytes, near)) {
        if (near.begin == 0) {
            fail(pc, "%s %u bytes of device memory that is not allocated", verb(write), bytes);
        }
        fail(
            pc, "%s %u bytes at byte %lld of an allocation of %llu bytes", verb(write), bytes,
            (long long)(address - near.begin), (unsigned long long)(near.end - near.begin));
    }
    const Index3 &at = worker.block, &grid = worker.shape.grid;
    unsigned block = at.x + grid.x * (at.y + grid.y * at.z);
    switch (arena.mark(address, bytes, write, atomic, worker.shape.serial, block)) {
    case Arena::Mark::fine: return;
    case Arena::Mark::unwritten:
        fail(
            pc, "reads %u bytes at byte %llu of an allocation where nothing was written", bytes,
            (unsigned long long)(address - near.begin));
    case Arena::Mark::race:
        fail(
            pc, "%s %u bytes at byte %llu of an allocation that another block of the same launch writes",
            verb(write), bytes, (unsigned long long)(address - near.begin));
    }
}

static void check_shared(uintptr_t address, unsigned bytes, bool write, bool atomic, const void *pc) {
    Worker &worker = *current_worker;
    unsigned other = 0;
    const SharedMemory::Array *array = worker.shared.array(address, bytes);
    if (array == nullptr) {
        fail(pc, "%s %u bytes of shared memory outside every array of the block", verb(write), bytes);
    }
    auto offset = (unsigned long long)(address - worker.shared.base - array->begin);
    switch (worker.shared.mark(address, bytes, write, who(atomic), other)) {
    case SharedMemory::Mark::fine: return;
    case SharedMemory::Mark::unwritten:
        fail(
            pc, "reads shared memory that no thread of the block wrote: byte %llu of `%s`", offset,
            array->name);
    case SharedMemory::Mark::pending:
        fail(
            pc, "%s byte %llu of `%s` while the cp.async into it has not been waited for", verb(write),
            offset, array->name);
    case SharedMemory::Mark::race: {
        const Index3 &with = worker.lane[other].index;
        fail(
            pc,
            "%s byte %llu of `%s` in shared memory, which thread (%u, %u, %u) accesses with no barrier "
            "between",
            verb(write), offset, array->name, with.x, with.y, with.z);
    }
    }
}

void check(uintptr_t address, unsigned bytes, bool write, bool atomic, bool aligned, const void *pc) {
    Worker *worker = current_worker;
    if (worker == nullptr) return;
    if (address - uintptr_t(worker->stacks) < MAX_THREADS * STACK_BYTES) return;
    if (aligned && address % bytes != 0) {
        fail(pc, "%s %u bytes at an address that is not a multiple of %u", verb(write), bytes, bytes);
    }
    if (address - arena.base < arena.bytes) return check_global(address, bytes, write, atomic, pc);
    if (address - worker->shared.base < SharedMemory::SPAN) {
        return check_shared(address, bytes, write, atomic, pc);
    }
    if (!write && in_program(address)) return;
    fail(
        pc, "%s %u bytes at the address %p, which is not device memory", verb(write), bytes,
        (void *)address);
}

void atomic_access(const void *address, unsigned bytes) {
    check(uintptr_t(address), bytes, false, true, true, __builtin_return_address(0));
    check(uintptr_t(address), bytes, true, true, true, __builtin_return_address(0));
}

const void *here() { return __builtin_return_address(0); }

void *static_shared(const void *site, unsigned bytes, const char *name) {
    Worker &worker = *current_worker;
    void *found = worker.shared.find(site);
    if (found != nullptr) return found;
    if (worker.shared.used + bytes > worker.shape.shared_limit) {
        fail(
            __builtin_return_address(0),
            "`%s` brings the block to %u bytes of shared memory; the limit is %u", name,
            worker.shared.used + bytes, worker.shape.shared_limit);
    }
    found = worker.shared.add(site, bytes, name);
    if (found == nullptr) {
        fail(__builtin_return_address(0), "`%s` exceeds the number of shared arrays that the emulator supports", name);
    }
    return found;
}

void *dynamic_shared() { return reinterpret_cast<void *>(current_worker->shared.base); }

void copy_async(void *to, const void *from, unsigned bytes, unsigned source_bytes) {
    const void *pc = __builtin_return_address(0);
    Worker &worker = *current_worker;
    Lane &lane = current_lane();
    if (uintptr_t(from) % bytes != 0) {
        fail(pc, "cp.async reads %u bytes at an address that is not a multiple of that size", bytes);
    }
    if (source_bytes > 0) check(uintptr_t(from), source_bytes, false, false, false, pc);
    check(uintptr_t(to), bytes, true, false, true, pc);
    worker.shared.set_pending(uintptr_t(to), bytes);
    if (lane.copies == MAX_COPIES) fail(pc, "more than %u cp.async in flight in one thread", MAX_COPIES);
    worker.copies[worker.current][lane.copies++] = {to, from, bytes, source_bytes, lane.group, pc};
}

void copy_async_commit() { current_lane().group += 1; }

// Performs the copies now, not when they were issued: a kernel that forgets to wait reads the old data.
void copy_async_wait(unsigned groups) {
    Worker &worker = *current_worker;
    Lane &lane = current_lane();
    Copy *copies = worker.copies[worker.current];
    unsigned kept = 0;
    for (unsigned at = 0; at < lane.copies; ++at) {
        const Copy copy = copies[at];
        if (copy.group + groups >= lane.group) {
            copies[kept++] = copy;
            continue;
        }
        memcpy(copy.to, copy.from, copy.source_bytes);
        memset((char *)copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
        worker.shared.set_written(uintptr_t(copy.to), copy.bytes, who(false));
    }
    lane.copies = kept;
}

} // namespace emulator

using namespace emulator;

extern "C" {

// The calls that -fsanitize=thread inserts before each access.
#define ACCESS(bytes)                                                                                        \
    void __tsan_read##bytes(void *address) {                                                                 \
        check(uintptr_t(address), bytes, false, false, true, __builtin_return_address(0));                   \
    }                                                                                                        \
    void __tsan_write##bytes(void *address) {                                                                \
        check(uintptr_t(address), bytes, true, false, true, __builtin_return_address(0));                    \
    }                                                                                                        \
    void __tsan_unaligned_read##bytes(void *address) {                                                       \
        check(uintptr_t(address), bytes, false, false, false, __builtin_return_address(0));                  \
    }                                                                                                        \
    void __tsan_unaligned_write##bytes(void *address) {                                                      \
        check(uintptr_t(address), bytes, true, false, false, __builtin_return_address(0));                   \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

void __tsan_read_range(void *address, unsigned long bytes) {
    check(uintptr_t(address), unsigned(bytes), false, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void *address, unsigned long bytes) {
    check(uintptr_t(address), unsigned(bytes), true, false, false, __builtin_return_address(0));
}
// The calls of -fsanitize=alignment,bounds, made only on an error. (A vector that is split into its values no
// longer looks misaligned to the calls above.)
struct AlignmentData {
    const char *file;
    uint32_t line, column;
    const void *type;
    unsigned char log_alignment;
};
void __ubsan_handle_type_mismatch_v1(const AlignmentData *data, uintptr_t address) {
    const void *pc = __builtin_return_address(0);
    if (current_worker == nullptr) return;
    unsigned alignment = 1u << data->log_alignment;
    if (address == 0) fail(pc, "uses a null pointer, which is not device memory");
    fail(pc, "uses a vector at an address that is not a multiple of %u", alignment);
}
void __ubsan_handle_out_of_bounds(const void *, uintptr_t index) {
    const void *pc = __builtin_return_address(0);
    if (current_worker != nullptr) fail(pc, "the index %lld is outside of its array", (long long)index);
}

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}

} // extern "C"
