// Shadow memory: which allocation a byte belongs to, whether it was written, and by whom.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {

struct Allocation {
    uintptr_t begin, end;
};

// Device memory: one range of address space; every allocation starts on its own page.
struct Arena {
    static constexpr size_t PAGE = 4096;
    // Bytes per stamp.
    static constexpr size_t GRANULE = 4;

    enum class Mark { fine, unwritten, race };

    uintptr_t base;
    size_t bytes;
    // Per page the allocation on it; per granule a stamp.
    Allocation *pages;
    uint64_t *stamps;

    bool open();
    // Whether the bytes lie in one allocation. `near` receives the allocation of the page, or zeros.
    bool holds(uintptr_t address, size_t count, Allocation &near) const;
    // Records an access by a block. Two blocks of one launch may not touch the same bytes if one of them
    // writes.
    Mark mark(uintptr_t address, unsigned count, bool write, bool atomic, unsigned serial, unsigned block);
    // Records that the host, or a copy or matrix product on the device, wrote the bytes.
    void mark_written(uintptr_t address, size_t count);
    bool is_written(uintptr_t address, size_t count) const;
};

extern Arena arena;

// Whether the address is part of the program itself: constants that a kernel reads.
bool in_program(uintptr_t address);

// The identity of an access.
struct Who {
    unsigned thread, warp_epoch;
    bool atomic;
};

// The shared memory of a block: the dynamic part first, and gaps between arrays.
struct SharedMemory {
    static constexpr size_t SPAN = 512 << 10;
    static constexpr size_t GRANULE = 2;
    static constexpr unsigned MAX_ARRAYS = 16;

    enum class Mark { fine, unwritten, race, pending };

    struct Array {
        const void *site;
        const char *name;
        unsigned begin, end;
    };
    struct Stamp {
        uint64_t write, read;
    };

    uintptr_t base;
    Stamp *stamps;
    // Counts barriers over the life of the worker, so that stamps of earlier blocks need not be cleared.
    uint32_t epoch, first_epoch;
    Array arrays[MAX_ARRAYS];
    unsigned count, used, next;

    bool open();
    void close();
    void start(unsigned dynamic_bytes);
    void *address(unsigned offset) const { return reinterpret_cast<void *>(base + offset); }
    void *find(const void *site) const;
    void *add(const void *site, unsigned bytes, const char *name);
    const Array *array(uintptr_t address, unsigned bytes) const;
    // Records an access. On a race `other` is the thread on the other side.
    Mark mark(uintptr_t address, unsigned bytes, bool write, Who who, unsigned &other);
    // Records that an asynchronous copy was issued, or was waited for.
    void set_pending(uintptr_t address, unsigned bytes);
    void set_written(uintptr_t address, unsigned bytes, Who who);
};

} // namespace emulator
