// Runs a block of CUDA threads on one CPU core: one fiber per thread, a context switch at each barrier and
// collective.
//
// A bug found here or in watch.cpp stops the launch with a Fault.
#include "worker.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

namespace emulator {

__thread Worker *current_worker;
static const Kernel *kernels;

Registration::Registration(Kernel &kernel) {
    kernel.next = kernels;
    kernels = &kernel;
}

// Leaves the fiber for good: nothing on its stack needs to be released.
[[noreturn]] static void
stop(const void *pc, const char *file, unsigned line, const char *format, va_list values) {
    Worker &worker = *current_worker;
    Fault &fault = worker.fault;
    vsnprintf(fault.message, sizeof fault.message, format, values);
    fault.pc = pc;
    fault.file = file;
    fault.line = line;
    fault.block = worker.block;
    fault.thread = current_lane().index;
    worker.faulted = true;
    Context dead;
    switch_context(dead, worker.scheduler);
    __builtin_unreachable();
}

void fail(const void *pc, const char *format, ...) {
    va_list values;
    va_start(values, format);
    stop(pc, nullptr, 0, format, values);
}

void fail_at(const char *file, unsigned line, const char *format, ...) {
    va_list values;
    va_start(values, format);
    stop(nullptr, file, line, format, values);
}

void trap(const char *file, unsigned line, const char *what) { fail_at(file, line, "%s", what); }

// Switches to the next lane of the warp that can run, else to the scheduler.
static void yield() {
    Worker &worker = *current_worker;
    unsigned from = worker.current, first = from & ~(LANES - 1);
    unsigned ready = worker.warp[from / LANES].ready;
    unsigned later = ready & ~((2u << (from % LANES)) - 1);
    if (ready == 0) {
        switch_context(worker.lane[from].context, worker.scheduler);
        return;
    }
    unsigned next = first + unsigned(__builtin_ctz(later ? later : ready));
    if (next == from) return;
    worker.current = next;
    switch_context(worker.lane[from].context, worker.lane[next].context);
}

static void fiber_main() {
    Worker &worker = *current_worker;
    worker.kernel->call(worker.arguments);
    unsigned bit = 1u << (worker.current % LANES);
    Warp &warp = worker.warp[worker.current / LANES];
    warp.ready &= ~bit;
    warp.done |= bit;
    yield();
    __builtin_unreachable();
}

Index3 thread_index() { return current_lane().index; }
Index3 block_index() { return current_worker->block; }
Index3 block_size() { return current_worker->shape.block; }
Index3 grid_size() { return current_worker->shape.grid; }

void block_barrier(const char *file, unsigned line) {
    Worker &worker = *current_worker;
    unsigned bit = 1u << (worker.current % LANES);
    Warp &warp = worker.warp[worker.current / LANES];
    current_lane().file = file;
    current_lane().line = line;
    warp.ready &= ~bit;
    warp.at_barrier |= bit;
    yield();
}

// Collectives -----------------------------------------------------------------------------------------------

static float bf16_to_float(uint32_t bits) {
    uint32_t float_bits = bits << 16;
    float value;
    memcpy(&value, &float_bits, 4);
    return value;
}

static float f16_to_float(uint32_t bits) {
    uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu, float_bits;
    if (magnitude >= 0x7c00u) {
        float_bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else {
        // 2^112 moves the exponent bias and normalizes subnormals.
        float_bits = magnitude << 13;
        float value;
        memcpy(&value, &float_bits, 4);
        value *= 0x1p112f;
        memcpy(&float_bits, &value, 4);
        float_bits |= sign;
    }
    float value;
    memcpy(&value, &float_bits, 4);
    return value;
}

// D = A B + C of mma.sync.m16n8k16 in the layout of the PTX ISA: lane 4g+t holds of A the rows g and g+8,
// columns 2t, 2t+1, 2t+8, 2t+9; of B the same rows of column g; of C and D the columns 2t, 2t+1 of rows g and
// g+8.
static void mma_m16n8k16(Lane *lanes, float (*to_float)(uint32_t)) {
    float a[16][16], b[16][8], d[16][8];
    for (unsigned at = 0; at < LANES; ++at) {
        const auto &in = *static_cast<const MmaIn *>(lanes[at].in);
        unsigned g = at / 4, t = at % 4;
        for (unsigned half = 0; half < 2; ++half) {
            for (unsigned array = 0; array < 4; ++array) {
                a[g + 8 * (array % 2)][2 * t + 8 * (array / 2) + half] =
                    to_float(in.a[array] >> (16 * half) & 0xffffu);
            }
            for (unsigned array = 0; array < 2; ++array) {
                b[2 * t + 8 * array + half][g] = to_float(in.b[array] >> (16 * half) & 0xffffu);
            }
            d[g][2 * t + half] = in.c[half];
            d[g + 8][2 * t + half] = in.c[2 + half];
        }
    }
    for (unsigned row = 0; row < 16; ++row) {
        for (unsigned k = 0; k < 16; ++k) {
            for (unsigned column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (unsigned at = 0; at < LANES; ++at) {
        unsigned g = at / 4, t = at % 4;
        *static_cast<MmaOut *>(lanes[at].out) = {
            {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]}};
    }
}

// ldmatrix: lane l passes the address of row l % 8 of matrix l / 8; lane 4g+t receives elements 2t, 2t+1 of
// row g of each (of column g, if transposed).
static void ldmatrix(Worker &worker, Lane *lanes) {
    const auto &first = *static_cast<const LdmatrixIn *>(lanes[0].in);
    unsigned self = worker.current;
    for (unsigned matrix = 0; matrix < first.count; ++matrix) {
        uint16_t rows[8][8];
        for (unsigned row = 0; row < 8; ++row) {
            unsigned from = 8 * matrix + row;
            const auto &in = *static_cast<const LdmatrixIn *>(lanes[from].in);
            worker.current = unsigned(&lanes[from] - worker.lane);
            check(uintptr_t(in.row), 16, false, false, true, in.pc);
            memcpy(rows[row], in.row, 16);
        }
        for (unsigned at = 0; at < LANES; ++at) {
            unsigned g = at / 4, t = at % 4;
            uint32_t low = first.transposed ? rows[2 * t][g] : rows[g][2 * t];
            uint32_t high = first.transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
            static_cast<uint32_t *>(lanes[at].out)[matrix] = low | high << 16;
        }
    }
    worker.current = self;
}

static void perform(Worker &worker, Warp &warp, Lane *lanes, unsigned mask, Collective kind) {
    switch (kind) {
    case Collective::sync: warp.epoch += 1; return;
    case Collective::shuffle:
        for (unsigned left = mask; left; left &= left - 1) {
            unsigned at = unsigned(__builtin_ctz(left));
            unsigned source = static_cast<const ShuffleIn *>(lanes[at].in)->source;
            if (!(mask >> source & 1)) {
                fail_at(
                    lanes[at].file, lanes[at].line,
                    "lane %u shuffles from lane %u, which is not in the mask %08x", at, source, mask);
            }
            *static_cast<uint64_t *>(lanes[at].out) = static_cast<const ShuffleIn *>(lanes[source].in)->value;
        }
        return;
    case Collective::vote: {
        unsigned votes = 0;
        for (unsigned left = mask; left; left &= left - 1) {
            unsigned at = unsigned(__builtin_ctz(left));
            votes |= *static_cast<const unsigned *>(lanes[at].in) << at;
        }
        for (unsigned left = mask; left; left &= left - 1) {
            *static_cast<unsigned *>(lanes[__builtin_ctz(left)].out) = votes;
        }
        return;
    }
    case Collective::mma_bf16: return mma_m16n8k16(lanes, bf16_to_float);
    case Collective::mma_f16: return mma_m16n8k16(lanes, f16_to_float);
    case Collective::ldmatrix: return ldmatrix(worker, lanes);
    }
}

void collective(Collective kind, unsigned mask, const void *in, void *out, const char *file, unsigned line) {
    Worker &worker = *current_worker;
    Warp &warp = worker.warp[worker.current / LANES];
    Lane *lanes = &worker.lane[worker.current & ~(LANES - 1)], &lane = current_lane();
    unsigned bit = 1u << (worker.current % LANES);
    if (!(mask & bit)) {
        fail_at(file, line, "a thread takes part in a collective whose mask %08x does not include it", mask);
    }
    lane.file = file;
    lane.line = line;
    lane.mask = mask;
    lane.kind = kind;
    lane.in = in;
    lane.out = out;
    warp.waiting |= bit;
    bool complete = (warp.waiting & mask) == mask;
    for (unsigned left = mask; complete && left; left &= left - 1) {
        const Lane &other = lanes[__builtin_ctz(left)];
        complete = other.mask == mask && other.kind == kind;
    }
    if (complete) {
        perform(worker, warp, lanes, mask, kind);
        warp.waiting &= ~mask;
        warp.ready |= mask;
        return;
    }
    warp.ready &= ~bit;
    yield();
}

// The block -------------------------------------------------------------------------------------------------

// Deadlock: every thread that has not returned waits at a barrier or in a collective that cannot complete.
static void report_stall(Worker &worker) {
    unsigned done = 0, at_barrier = 0, waiting = 0, example = 0;
    for (unsigned w = 0; w < worker.warps; ++w) {
        const Warp &warp = worker.warp[w];
        done += unsigned(__builtin_popcount(warp.done));
        at_barrier += unsigned(__builtin_popcount(warp.at_barrier));
        waiting += unsigned(__builtin_popcount(warp.waiting));
        unsigned stuck = warp.waiting ? warp.waiting : warp.at_barrier;
        if (stuck && !(worker.warp[example / LANES].waiting >> (example % LANES) & 1)) {
            example = w * LANES + unsigned(__builtin_ctz(stuck));
        }
    }
    Fault &fault = worker.fault;
    const Lane &lane = worker.lane[example];
    fault.pc = nullptr;
    fault.file = lane.file;
    fault.line = lane.line;
    fault.block = worker.block;
    fault.thread = lane.index;
    const char *what = waiting ? "divergent collective" : "divergent barrier";
    snprintf(
        fault.message, sizeof fault.message,
        "%s: of %u threads %u wait at a block barrier, %u in a warp collective and %u have returned", what,
        worker.threads, at_barrier, waiting, done);
}

// Whether all threads wait at the same barrier; else the fault names two that do not.
static bool same_barrier(Worker &worker) {
    const Lane &first = worker.lane[0];
    for (unsigned at = 1; at < worker.threads; ++at) {
        const Lane &lane = worker.lane[at];
        if (lane.line == first.line && (lane.file == first.file || strcmp(lane.file, first.file) == 0)) {
            continue;
        }
        Fault &fault = worker.fault;
        fault.pc = nullptr;
        fault.file = lane.file;
        fault.line = lane.line;
        fault.block = worker.block;
        fault.thread = lane.index;
        snprintf(
            fault.message, sizeof fault.message,
            "divergent barrier: this thread waits here while thread (%u, %u, %u) waits at line %u",
            first.index.x, first.index.y, first.index.z, first.line);
        return false;
    }
    return true;
}

static bool run(Worker &worker) {
    for (;;) {
        bool ran = false;
        unsigned at_barrier = 0, done = 0;
        for (unsigned w = 0; w < worker.warps; ++w) {
            Warp &warp = worker.warp[w];
            while (warp.ready) {
                ran = true;
                worker.current = w * LANES + unsigned(__builtin_ctz(warp.ready));
                switch_context(worker.scheduler, worker.lane[worker.current].context);
                if (worker.faulted) return false;
            }
            at_barrier += unsigned(__builtin_popcount(warp.at_barrier));
            done += unsigned(__builtin_popcount(warp.done));
        }
        if (done == worker.threads) return true;
        if (at_barrier == worker.threads) {
            if (!same_barrier(worker)) return false;
            worker.shared.epoch += 1;
            for (unsigned w = 0; w < worker.warps; ++w) {
                worker.warp[w].ready = worker.warp[w].at_barrier;
                worker.warp[w].at_barrier = 0;
            }
        } else if (!ran) {
            report_stall(worker);
            return false;
        }
    }
}

} // namespace emulator

using namespace emulator;

extern "C" {

// One symbol per kernel file, null-terminated (written by build.rs). Referring to all of them links every
// file, so that its kernels register themselves.
extern const char *const emulator_files[];

Worker *emulator_worker_new() {
    auto *worker = static_cast<Worker *>(mmap(
        nullptr, sizeof(Worker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (worker == MAP_FAILED) return nullptr;
    void *stacks = mmap(
        nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED || !worker->shared.open()) {
        munmap(worker, sizeof(Worker));
        return nullptr;
    }
    worker->stacks = static_cast<char *>(stacks);
    return worker;
}

void emulator_worker_free(Worker *worker) {
    worker->shared.close();
    munmap(worker->stacks, MAX_THREADS * STACK_BYTES);
    munmap(worker, sizeof(Worker));
}

const Kernel *emulator_find(const char *name) {
    if (emulator_files[0] == nullptr) return nullptr;
    const Kernel *kernel = kernels;
    while (kernel != nullptr && strcmp(kernel->name, name) != 0) kernel = kernel->next;
    return kernel;
}

// Runs one block. Null on success, else the fault (valid until the next block of the worker).
const Fault *emulator_run_block(
    Worker *worker, const Kernel *kernel, const Shape *shape, void **arguments, const Index3 *block) {
    worker->shape = *shape;
    worker->kernel = kernel;
    worker->arguments = arguments;
    worker->block = *block;
    worker->threads = shape->block.x * shape->block.y * shape->block.z;
    worker->warps = (worker->threads + LANES - 1) / LANES;
    worker->faulted = false;
    worker->shared.start(shape->dynamic_bytes);
    for (unsigned at = 0; at < worker->threads; ++at) {
        Lane &lane = worker->lane[at];
        unsigned row = at / shape->block.x;
        lane.index = {at % shape->block.x, row % shape->block.y, row / shape->block.y};
        lane.copies = lane.group = 0;
        lane.mask = 0;
        start_context(lane.context, worker->stacks + at * STACK_BYTES, STACK_BYTES, fiber_main);
    }
    for (unsigned w = 0; w < worker->warps; ++w) {
        unsigned lanes = worker->threads - w * LANES;
        unsigned all = lanes >= LANES ? ~0u : (1u << lanes) - 1;
        worker->warp[w] = {all, 0, 0, 0, all, 0};
    }
    current_worker = worker;
    bool fine = run(*worker);
    current_worker = nullptr;
    return fine ? nullptr : &worker->fault;
}

} // extern "C"
