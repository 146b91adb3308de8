// Context switch between fibers: assembly on x86-64 and AArch64, swapcontext elsewhere.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__aarch64__)

namespace emulator {

// A suspended fiber is its stack pointer; callee-saved registers are on its stack.
struct Context {
    void *stack;
};

} // namespace emulator

extern "C" void emulator_switch(void **from, void *to);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#else
asm(R"(
.text
.p2align 4
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#endif

namespace emulator {

inline void switch_context(Context &from, Context &to) { emulator_switch(&from.stack, to.stack); }

inline void start_context(Context &context, char *stack, size_t bytes, void (*entry)()) {
    auto **top = reinterpret_cast<void **>((uintptr_t(stack) + bytes) & ~uintptr_t(15));
#if defined(__x86_64__)
    // The stack as a call leaves it: the return address, then six registers below. The word above keeps it
    // aligned.
    top -= 2;
    top[0] = reinterpret_cast<void *>(entry);
    top[1] = nullptr;
    top -= 6;
    for (int at = 0; at < 6; ++at) top[at] = nullptr;
#else
    top -= 20;
    for (int at = 0; at < 20; ++at) top[at] = nullptr;
    top[11] = reinterpret_cast<void *>(entry);
#endif
    context.stack = top;
}

} // namespace emulator

#else

#include <ucontext.h>

namespace emulator {

struct Context {
    ucontext_t context;
};

inline void switch_context(Context &from, Context &to) { swapcontext(&from.context, &to.context); }

inline void start_context(Context &context, char *stack, size_t bytes, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = bytes;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}

} // namespace emulator

#endif
