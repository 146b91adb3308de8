// Shadow memory of the emulator: allocations, and stamps that record who wrote and read what, and when.
#include "memory.h"

#include <string.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <link.h>
#endif

namespace emulator {

Arena arena;

static void *reserve(size_t bytes) {
    void *memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

// Device memory ---------------------------------------------------------------------------------------------

bool Arena::open() {
    // Reserves address space, not memory, as much as the system grants.
    for (size_t size = size_t(64) << 30; size >= size_t(64) << 20; size /= 2) {
        void *memory = reserve(size);
        void *owners = reserve(size / PAGE * sizeof(Allocation));
        void *shadow = reserve(size / GRANULE * sizeof(uint64_t));
        if (memory && owners && shadow) {
            base = uintptr_t(memory);
            bytes = size;
            pages = static_cast<Allocation *>(owners);
            stamps = static_cast<uint64_t *>(shadow);
            return true;
        }
        if (memory) munmap(memory, size);
        if (owners) munmap(owners, size / PAGE * sizeof(Allocation));
        if (shadow) munmap(shadow, size / GRANULE * sizeof(uint64_t));
    }
    return false;
}

bool Arena::holds(uintptr_t address, size_t count, Allocation &near) const {
    near = pages[(address - base) / PAGE];
    if (near.begin == 0 && address - base >= PAGE) {
        // Most invalid accesses are just past an allocation; naming it gives a better message.
        near = pages[(address - base) / PAGE - 1];
        return false;
    }
    return address >= near.begin && address < near.end && count <= near.end - address;
}

// A stamp of device memory: the launch in the upper half, then two bits for the halves of the granule that
// were written in that launch, a bit for an atomic, and the block. 0: never written. Launch 0: the host.
constexpr uint64_t HOST = 1;
constexpr unsigned HALVES = 30, ATOMIC_BIT = 29;
constexpr uint64_t BLOCK_MASK = (uint64_t(1) << ATOMIC_BIT) - 1;

Arena::Mark
Arena::mark(uintptr_t address, unsigned count, bool write, bool atomic, unsigned serial, unsigned block) {
    uint64_t own = uint64_t(serial) << 32 | (uint64_t(block) & BLOCK_MASK) | uint64_t(atomic) << ATOMIC_BIT;
    for (uintptr_t at = address & ~uintptr_t(GRANULE - 1); at < address + count; at += GRANULE) {
        uint64_t *slot = &stamps[(at - base) / GRANULE];
        uint64_t stamp = __atomic_load_n(slot, __ATOMIC_RELAXED);
        unsigned low = at < address ? unsigned(address - at) : 0;
        unsigned high = at + GRANULE > address + count ? unsigned(address + count - at) : unsigned(GRANULE);
        uint64_t halves = uint64_t((low < 2) | (high > 2) << 1) << HALVES;
        if (stamp == 0 && !write) return Mark::unwritten;
        bool same_launch = stamp >> 32 == serial;
        if (same_launch && (stamp & halves) && (stamp & BLOCK_MASK) != (own & BLOCK_MASK)) {
            bool both_atomic = atomic && (stamp >> ATOMIC_BIT & 1);
            if (!both_atomic) return Mark::race;
        }
        if (write) {
            bool same_block = same_launch && (stamp & BLOCK_MASK) == (own & BLOCK_MASK);
            uint64_t before = same_block ? stamp & uint64_t(3) << HALVES : 0;
            __atomic_store_n(slot, own | halves | before, __ATOMIC_RELAXED);
        }
    }
    return Mark::fine;
}

void Arena::mark_written(uintptr_t address, size_t count) {
    for (uintptr_t at = address & ~uintptr_t(GRANULE - 1); at < address + count; at += GRANULE) {
        stamps[(at - base) / GRANULE] = HOST;
    }
}

bool Arena::is_written(uintptr_t address, size_t count) const {
    for (uintptr_t at = address & ~uintptr_t(GRANULE - 1); at < address + count; at += GRANULE) {
        if (stamps[(at - base) / GRANULE] == 0) return false;
    }
    return true;
}

#if defined(__linux__)
struct Image {
    uintptr_t begin, end;
};

static int find_image(dl_phdr_info *info, size_t, void *found) {
    auto *image = static_cast<Image *>(found);
    uintptr_t low = UINTPTR_MAX, high = 0;
    for (unsigned at = 0; at < info->dlpi_phnum; ++at) {
        const auto &array = info->dlpi_phdr[at];
        if (array.p_type != PT_LOAD) continue;
        uintptr_t begin = info->dlpi_addr + array.p_vaddr;
        if (begin < low) low = begin;
        if (begin + array.p_memsz > high) high = begin + array.p_memsz;
    }
    auto self = uintptr_t(&find_image);
    if (self < low || self >= high) return 0;
    *image = {low, high};
    return 1;
}

bool in_program(uintptr_t address) {
    static Image image;
    if (__atomic_load_n(&image.end, __ATOMIC_ACQUIRE) == 0) {
        Image found = {0, 0};
        dl_iterate_phdr(find_image, &found);
        __atomic_store_n(&image.begin, found.begin, __ATOMIC_RELAXED);
        __atomic_store_n(&image.end, found.end, __ATOMIC_RELEASE);
    }
    return address >= image.begin && address < image.end;
}
#else
// The address range of the program is unknown here: only values that cannot be pointers are refused.
bool in_program(uintptr_t address) { return address >= 1 << 16; }
#endif

// Shared memory ---------------------------------------------------------------------------------------------

// A stamp of shared memory: block epoch, warp epoch, thread, and flags.
constexpr uint64_t SEVERAL_THREADS = 1, SEVERAL_WARPS = 2, ATOMIC = 4, PENDING = 8;
constexpr unsigned THREAD_SHIFT = 6, WARP_EPOCH_SHIFT = 16, EPOCH_SHIFT = 32;
constexpr unsigned LANES = 32;

static uint64_t stamp_of(uint32_t epoch, Who who) {
    return uint64_t(epoch) << EPOCH_SHIFT | uint64_t(who.warp_epoch & 0xffffu) << WARP_EPOCH_SHIFT |
           uint64_t(who.thread) << THREAD_SHIFT | (who.atomic ? ATOMIC : 0);
}
static uint32_t epoch_of(uint64_t stamp) { return uint32_t(stamp >> EPOCH_SHIFT); }
static unsigned warp_epoch_of(uint64_t stamp) { return unsigned(stamp >> WARP_EPOCH_SHIFT) & 0xffffu; }
static unsigned thread_of(uint64_t stamp) { return unsigned(stamp >> THREAD_SHIFT) & 0x3ffu; }

bool SharedMemory::open() {
    void *memory = reserve(SPAN), *shadow = reserve(SPAN / GRANULE * sizeof(Stamp));
    if (!memory || !shadow) return false;
    base = uintptr_t(memory);
    stamps = static_cast<Stamp *>(shadow);
    epoch = 0;
    return true;
}

void SharedMemory::close() {
    munmap(reinterpret_cast<void *>(base), SPAN);
    munmap(stamps, SPAN / GRANULE * sizeof(Stamp));
}

constexpr unsigned GAP = 64;

static unsigned round_up(unsigned bytes) { return (bytes + 15) & ~15u; }

void SharedMemory::start(unsigned dynamic_bytes) {
    epoch += 1;
    first_epoch = epoch;
    arrays[0] = {nullptr, "dynamic shared memory", 0, dynamic_bytes};
    count = 1;
    used = dynamic_bytes;
    next = round_up(dynamic_bytes) + GAP;
}

void *SharedMemory::find(const void *site) const {
    for (unsigned at = 1; at < count; ++at) {
        if (arrays[at].site == site) return address(arrays[at].begin);
    }
    return nullptr;
}

void *SharedMemory::add(const void *site, unsigned bytes, const char *name) {
    if (count == MAX_ARRAYS || next + bytes > SPAN) return nullptr;
    arrays[count++] = {site, name, next, next + bytes};
    void *array = address(next);
    used += bytes;
    next = round_up(next + bytes) + GAP;
    return array;
}

const SharedMemory::Array *SharedMemory::array(uintptr_t address, unsigned bytes) const {
    auto offset = unsigned(address - base);
    for (unsigned at = 0; at < count; ++at) {
        if (offset >= arrays[at].begin && offset + bytes <= arrays[at].end) return &arrays[at];
    }
    return nullptr;
}

SharedMemory::Mark
SharedMemory::mark(uintptr_t address, unsigned bytes, bool write, Who who, unsigned &other) {
    uint64_t own = stamp_of(epoch, who);
    // Threads of one warp are ordered by its barriers, others by the barriers of the block only.
    auto ordered = [&](uint64_t stamp) {
        if (epoch_of(stamp) != epoch || thread_of(stamp) == who.thread) return true;
        return thread_of(stamp) / LANES == who.thread / LANES &&
               warp_epoch_of(stamp) != (who.warp_epoch & 0xffffu);
    };
    size_t first = (address - base) / GRANULE, last = (address - base + bytes - 1) / GRANULE;
    // Neighboring bytes share a stamp, so races of single bytes cannot be distinguished from those of their
    // neighbors.
    bool exact = bytes > 1;
    for (size_t at = first; at <= last; ++at) {
        Stamp &stamp = stamps[at];
        if (stamp.write & PENDING && epoch_of(stamp.write) >= first_epoch) return Mark::pending;
        bool atomics = who.atomic && stamp.write & ATOMIC;
        if (exact && !atomics && !ordered(stamp.write)) {
            other = thread_of(stamp.write);
            return Mark::race;
        }
        if (!write) {
            if (epoch_of(stamp.write) < first_epoch) return Mark::unwritten;
            uint64_t next = own;
            if (epoch_of(stamp.read) == epoch) {
                next |= stamp.read & SEVERAL_WARPS;
                if (thread_of(stamp.read) / LANES != who.thread / LANES) {
                    next |= SEVERAL_WARPS;
                } else if (warp_epoch_of(stamp.read) == (who.warp_epoch & 0xffffu)) {
                    next |= stamp.read & SEVERAL_THREADS;
                    if (thread_of(stamp.read) != who.thread) next |= SEVERAL_THREADS;
                }
            }
            stamp.read = next;
            continue;
        }
        if (exact && !atomics && epoch_of(stamp.read) == epoch) {
            bool read_now = warp_epoch_of(stamp.read) == (who.warp_epoch & 0xffffu);
            bool same_warp = thread_of(stamp.read) / LANES == who.thread / LANES;
            bool several =
                stamp.read & SEVERAL_WARPS || (stamp.read & SEVERAL_THREADS && (read_now || !same_warp));
            if (several || !ordered(stamp.read)) {
                other = thread_of(stamp.read);
                return Mark::race;
            }
        }
        stamp.write = own;
    }
    return Mark::fine;
}

void SharedMemory::set_pending(uintptr_t address, unsigned bytes) {
    for (size_t at = (address - base) / GRANULE; at <= (address - base + bytes - 1) / GRANULE; ++at) {
        stamps[at].write |= PENDING;
    }
}

void SharedMemory::set_written(uintptr_t address, unsigned bytes, Who who) {
    for (size_t at = (address - base) / GRANULE; at <= (address - base + bytes - 1) / GRANULE; ++at) {
        stamps[at].write = stamp_of(epoch, who);
    }
}

} // namespace emulator

using namespace emulator;

extern "C" {

// The size of the memory of the emulated device, 0 if the system grants none.
uint64_t emulator_arena_open() { return arena.open() ? arena.bytes : 0; }

void *emulator_arena_base() { return reinterpret_cast<void *>(arena.base); }

// Makes `bytes` at `address` (page-aligned) an allocation whose contents count as unwritten.
void emulator_arena_add(void *address, uint64_t bytes) {
    auto begin = uintptr_t(address);
    for (size_t page = (begin - arena.base) / Arena::PAGE; arena.base + page * Arena::PAGE < begin + bytes;
         ++page) {
        arena.pages[page] = {begin, begin + bytes};
    }
    // NaN in every float type, in case anything reads it regardless.
    memset(address, 0xff, bytes);
}

// Returns an allocation to the system.
void emulator_arena_remove(void *address, uint64_t bytes) {
    auto begin = uintptr_t(address);
    uint64_t page_bytes = (bytes + Arena::PAGE - 1) / Arena::PAGE * Arena::PAGE;
    size_t first = (begin - arena.base) / Arena::PAGE;
    for (size_t page = first; page < first + page_bytes / Arena::PAGE; ++page) arena.pages[page] = {0, 0};
    madvise(address, page_bytes, MADV_DONTNEED);
    // The stamps of one page fill two, so this frees exactly them.
    madvise(&arena.stamps[(begin - arena.base) / Arena::GRANULE], page_bytes * 2, MADV_DONTNEED);
}

// Whether the bytes lie in one allocation.
int emulator_arena_holds(const void *address, uint64_t bytes) {
    Allocation near;
    auto at = uintptr_t(address);
    return at - arena.base < arena.bytes && arena.holds(at, bytes, near);
}

void emulator_arena_mark_written(void *address, uint64_t bytes) {
    arena.mark_written(uintptr_t(address), bytes);
}

int emulator_arena_is_written(const void *address, uint64_t bytes) {
    return arena.is_written(uintptr_t(address), bytes);
}

} // extern "C"
