/*
 * Counts a program's system calls on files under a folder, and makes one of them fail or ends the program at it.
 *
 * Loaded by LD_PRELOAD, but it does not interpose functions of the C library: a seccomp filter turns the calls below into
 * SIGSYS, so that code with system calls of its own (rustix, statically linked allocators) is covered, too. The handler makes
 * the call on the program's behalf. The filter allows calls from the one instruction in `gate`. Not covered: reads of mapped
 * files, which are no system calls (mapping can fail), and io_uring. A child process inherits the filter but not the handler,
 * and is ended by it.
 *
 * FAULTS_ROOT      folder to watch, without links in its path; calls elsewhere pass
 * FAULTS_OUTPUT    folder below it: modifying calls count only here, reading calls anywhere below the root
 * FAULTS_COUNTERS  a file of 4096 bytes, which is mapped: see `struct counters`. It outlives SIGKILL
 * FAULTS_PLAN      the fault:
 *     count                  none
 *     signal:CLASS:N:SIG:W   raise SIG at the N-th call of a class; W 0: before the call, 1: after it
 *     error:CLASS:N:ERRNO:P  let the N-th call fail; P 1: and all later ones of the class
 *     short:CLASS:N          let the N-th call read or write about half of the requested bytes
 *     budget:BYTES           a full disk: after so many bytes ENOSPC, also for new files and folders
 *
 * CLASS is the name of a group of calls (`groups` below), or `change` for all modifying calls and `read` for all others.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

long gate(long number, long a, long b, long c, long d, long e, long f);
extern char gate_return[];

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
__asm__(".text\n.globl gate\n.type gate,@function\ngate:\n"
        "  movq %rdi, %rax\n  movq %rsi, %rdi\n  movq %rdx, %rsi\n  movq %rcx, %rdx\n  movq %r8, %r10\n  movq %r9, %r8\n"
        "  movq 8(%rsp), %r9\n  syscall\n"
        ".globl gate_return\ngate_return:\n  ret\n.size gate, . - gate\n");
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
__asm__(".text\n.globl gate\n.type gate,%function\ngate:\n"
        "  mov x8, x0\n  mov x0, x1\n  mov x1, x2\n  mov x2, x3\n  mov x3, x4\n  mov x4, x5\n  mov x5, x6\n  svc #0\n"
        ".globl gate_return\ngate_return:\n  ret\n.size gate, . - gate\n");
#else
#error "only x86-64 and aarch64"
#endif

enum group {
    OPEN, CREATE, WRITE, READ, SYNC, CLOSE, RENAME, REMOVE, MKDIR, LINK, STAT, LIST, LOCK, MAP, ATTRIBUTE, GROUPS
};

static const char *const groups[GROUPS] = {
    "open", "create", "write", "read_bytes", "sync", "close", "rename", "remove", "mkdir", "link", "stat", "list", "lock", "map",
    "attribute"};

static int changes(enum group group) {
    switch (group) {
    case OPEN: case READ: case STAT: case LIST: case MAP: return 0;
    default: return 1;
    }
}

/* Read by the parent; little-endian 64-bit integers, then the path of the call that the fault was injected into. */
struct counters {
    _Atomic uint64_t started;       /* 1 once the filter is installed */
    _Atomic uint64_t injected;      /* calls with injected faults */
    _Atomic uint64_t injected_group;
    _Atomic uint64_t written;       /* bytes */
    _Atomic uint64_t change;
    _Atomic uint64_t read;
    _Atomic uint64_t group[GROUPS];
    char path[2048];
};

static struct counters *counters;
static char root[PATH_MAX], output[PATH_MAX];
static size_t root_length, output_length;

enum plan { COUNT, SIGNAL, ERROR, SHORT, BUDGET };
static enum plan plan;
static int plan_class;      /* a group, or one of these: */
enum { CHANGE = -1, READING = -2 };
static uint64_t plan_at, plan_value, plan_flag;

/* For each file descriptor: whether its file is below the root, and below the output. */
enum { FD_ROOT = 1, FD_OUTPUT = 2, FD_FOLDER = 4 };
#define FDS 4096
static _Atomic unsigned char fds[FDS];

#define CALL(number, ...) CALL_((number), ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL_(n, a, b, c, d, e, f, ...) gate((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static int below(const char *path) {
    int found = 0;
    if (strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0)) found |= FD_ROOT;
    if (strncmp(path, output, output_length) == 0 && (path[output_length] == '/' || path[output_length] == 0)) found |= FD_OUTPUT;
    return found;
}

static long link_of_fd(long fd, char *to, size_t size) {
    char name[64];
    char digits[24];
    int count = 0;
    strcpy(name, "/proc/self/fd/");
    do digits[count++] = (char)('0' + fd % 10); while ((fd /= 10) > 0);
    size_t at = strlen(name);
    while (count > 0) name[at++] = digits[--count];
    name[at] = 0;
    long length = CALL(SYS_readlinkat, AT_FDCWD, name, to, size - 1);
    if (length >= 0) to[length] = 0;
    return length;
}

/* The absolute path, with `.` and `..` resolved lexically; links are not followed. */
static void whole(long dirfd, const char *path, char *to) {
    char raw[2 * PATH_MAX];
    raw[0] = 0;
    if (path == NULL) path = "";
    if (path[0] != '/') {
        if ((int)dirfd == AT_FDCWD) {
            if (CALL(SYS_getcwd, raw, PATH_MAX) < 0) raw[0] = 0;
        } else if (link_of_fd((int)dirfd, raw, PATH_MAX) < 0) {
            raw[0] = 0;
        }
        strcat(raw, "/");
    }
    strncat(raw, path, PATH_MAX - 1);
    size_t length = 0;
    const char *at = raw;
    while (*at) {
        while (*at == '/') at++;
        const char *end = at;
        while (*end && *end != '/') end++;
        size_t part = (size_t)(end - at);
        if (part == 2 && at[0] == '.' && at[1] == '.') {
            while (length > 0 && to[--length] != '/') {}
        } else if (part > 0 && !(part == 1 && at[0] == '.') && length + part + 2 < PATH_MAX) {
            to[length++] = '/';
            memcpy(to + length, at, part);
            length += part;
        }
        at = end;
    }
    to[length] = 0;
}

/* Counts a call and returns whether to inject the fault. */
static int counted(enum group group) {
    uint64_t own = atomic_fetch_add(&counters->group[group], 1) + 1;
    uint64_t all = atomic_fetch_add(changes(group) ? &counters->change : &counters->read, 1) + 1;
    uint64_t at;
    if (plan_class == (int)group) at = own;
    else if (plan_class == CHANGE && changes(group)) at = all;
    else if (plan_class == READING && !changes(group)) at = all;
    else return 0;
    return at == plan_at || (plan == ERROR && plan_flag && at > plan_at);
}

static void note(enum group group, const char *path) {
    if (atomic_fetch_add(&counters->injected, 1) == 0) {
        atomic_store(&counters->injected_group, group);
        strncpy(counters->path, path, sizeof counters->path - 1);
    }
}

static void note_fd(enum group group, long fd) {
    char path[PATH_MAX];
    if (link_of_fd(fd, path, sizeof path) < 0) path[0] = 0;
    note(group, path);
}

static void raise_signal(void) {
    long process = CALL(SYS_getpid);
    CALL(SYS_kill, process, plan_value);
}

/* How many of these bytes still fit on the full disk. */
static uint64_t granted(uint64_t wanted) {
    for (;;) {
        uint64_t written = atomic_load(&counters->written);
        uint64_t left = written < plan_value ? plan_value - written : 0;
        uint64_t taken = wanted < left ? wanted : left;
        if (atomic_compare_exchange_strong(&counters->written, &written, written + taken)) return taken;
    }
}

static int descriptor(long fd) { return fd >= 0 && fd < FDS ? atomic_load(&fds[fd]) : 0; }

static void opened(long fd) {
    if (fd < 0 || fd >= FDS) return;
    char path[PATH_MAX];
    atomic_store(&fds[fd], link_of_fd(fd, path, sizeof path) < 0 ? 0 : (unsigned char)below(path));
}

/* The location of a path or descriptor decides whether a call counts: modifying calls count only below the output. */
static int meant(enum group group, int where) { return (where & (changes(group) ? FD_OUTPUT : FD_ROOT)) != 0; }

#define IOVECS 64
struct iovec_ { void *base; size_t length; };

static long whole_call(long n, long *a) { return gate(n, a[0], a[1], a[2], a[3], a[4], a[5]); }

/* Makes a call that transfers bytes with fewer bytes. */
static long fewer(long n, long *a, int bytes_at, int vector, uint64_t bytes) {
    if (!vector) {
        long b[6];
        memcpy(b, a, sizeof b);
        b[bytes_at] = (long)bytes;
        return whole_call(n, b);
    }
    const struct iovec_ *from = (const struct iovec_ *)a[1];
    struct iovec_ to[IOVECS];
    long count = 0;
    for (long i = 0; i < a[2] && i < IOVECS && bytes > 0; i++) {
        to[count] = from[i];
        if (to[count].length > bytes) to[count].length = bytes;
        bytes -= to[count++].length;
    }
    return gate(n, a[0], (long)to, count, a[3], a[4], a[5]);
}

static uint64_t bytes_of(long *a, int bytes_at, int vector) {
    if (!vector) return (uint64_t)a[bytes_at];
    uint64_t all = 0;
    for (long i = 0; i < a[2]; i++) all += ((const struct iovec_ *)a[1])[i].length;
    return all;
}

static long moving(enum group group, long n, long *a, int fd_at, int bytes_at, int vector) {
    if (!meant(group, descriptor(a[fd_at]))) return whole_call(n, a);
    uint64_t bytes = bytes_of(a, bytes_at, vector);
    if (group == WRITE && plan == BUDGET) {
        uint64_t taken = granted(bytes);
        counted(group);
        if (taken < bytes) note_fd(group, a[fd_at]);
        if (taken == 0 && bytes > 0) return -ENOSPC;
        return taken < bytes ? fewer(n, a, bytes_at, vector, taken) : whole_call(n, a);
    }
    if (!counted(group)) {
        long done = whole_call(n, a);
        if (group == WRITE && done > 0) atomic_fetch_add(&counters->written, (uint64_t)done);
        return done;
    }
    note_fd(group, a[fd_at]);
    if (plan == ERROR) return -(long)plan_value;
    if (plan == SHORT) return bytes > 1 ? fewer(n, a, bytes_at, vector, bytes / 2) : whole_call(n, a);
    if (plan == SIGNAL && !plan_flag) raise_signal();
    /* A kill in the middle of a write leaves part of it. */
    long done = plan == SIGNAL && plan_flag && plan_value == SIGKILL && group == WRITE && bytes > 1
                    ? fewer(n, a, bytes_at, vector, bytes / 2)
                    : whole_call(n, a);
    if (plan == SIGNAL && plan_flag) raise_signal();
    return done;
}

/* A call that transfers no bytes. `where` is the location of its file. */
static long plain(enum group group, long n, long *a, int where, const char *path, long fd) {
    if (!meant(group, where)) return whole_call(n, a);
    int it = counted(group);
    int makes = group == CREATE || group == MKDIR || group == LINK;
    if (plan == BUDGET && makes && atomic_load(&counters->written) >= plan_value) {
        note(group, path ? path : "");
        return -ENOSPC;
    }
    if (!it || plan == COUNT || plan == BUDGET) return whole_call(n, a);
    if (path) note(group, path);
    else note_fd(group, fd);
    if (plan == ERROR) {
        /* close() closes the descriptor even if it returns an error. */
        if (group == CLOSE) whole_call(n, a);
        return -(long)plan_value;
    }
    if (plan == SIGNAL && !plan_flag) raise_signal();
    long done = whole_call(n, a);
    if (plan == SIGNAL && plan_flag) raise_signal();
    return done;
}

static long at_path(enum group group, long n, long *a, int dirfd_at, int path_at) {
    char path[PATH_MAX];
    long dirfd = dirfd_at < 0 ? AT_FDCWD : a[dirfd_at];
    whole(dirfd, (const char *)a[path_at], path);
    return plain(group, n, a, below(path), path, -1);
}

static long opening(long n, long *a, int dirfd_at, int path_at, long flags) {
    char path[PATH_MAX];
    long dirfd = dirfd_at < 0 ? AT_FDCWD : a[dirfd_at];
    whole(dirfd, (const char *)a[path_at], path);
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE;
    long fd = plain(writes ? CREATE : OPEN, n, a, below(path), path, -1);
    opened(fd);
    if (fd >= 0 && fd < FDS && (flags & O_DIRECTORY)) atomic_fetch_or(&fds[fd], FD_FOLDER);
    return fd;
}

static long stat_at(long n, long *a, int dirfd_at, int path_at) {
    const char *path = (const char *)a[path_at];
    if (dirfd_at >= 0 && (path == NULL || path[0] == 0)) {
        return plain(STAT, n, a, descriptor(a[dirfd_at]), NULL, a[dirfd_at]);
    }
    return at_path(STAT, n, a, dirfd_at, path_at);
}

static long on_fd(enum group group, long n, long *a) { return plain(group, n, a, descriptor(a[0]), NULL, a[0]); }

static const int trapped[] = {
    SYS_openat, SYS_close, SYS_read, SYS_pread64, SYS_readv, SYS_write, SYS_pwrite64, SYS_writev, SYS_pwritev, SYS_copy_file_range,
    SYS_sendfile, SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_fallocate, SYS_renameat2, SYS_unlinkat, SYS_mkdirat, SYS_symlinkat,
    SYS_linkat, SYS_statx, SYS_newfstatat, SYS_fstat, SYS_faccessat, SYS_readlinkat, SYS_getdents64, SYS_flock, SYS_fchmod,
    SYS_fchmodat, SYS_utimensat, SYS_mmap, SYS_dup, SYS_dup3, SYS_fcntl, SYS_splice,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_open
    SYS_open, SYS_creat, SYS_rename, SYS_unlink, SYS_rmdir, SYS_mkdir, SYS_symlink, SYS_link, SYS_stat, SYS_lstat, SYS_access,
    SYS_readlink, SYS_chmod, SYS_dup2,
#endif
#ifdef SYS_faccessat2
    SYS_faccessat2,
#endif
};

static long handled(long n, long *a) {
    switch (n) {
    case SYS_openat: return opening(n, a, 0, 1, a[2]);
    case SYS_close: {
        int where = descriptor(a[0]);
        if (where && a[0] < FDS) atomic_store(&fds[a[0]], 0);
        /* Rust's standard library panics if closing a directory fails. */
        if (where & FD_FOLDER) return whole_call(n, a);
        return plain(CLOSE, n, a, where, NULL, a[0]);
    }
    case SYS_read: case SYS_pread64: return moving(READ, n, a, 0, 2, 0);
    case SYS_readv: return moving(READ, n, a, 0, 0, 1);
    case SYS_write: case SYS_pwrite64: return moving(WRITE, n, a, 0, 2, 0);
    case SYS_writev: case SYS_pwritev: return moving(WRITE, n, a, 0, 0, 1);
    case SYS_copy_file_range:
        /* Reading and writing fail alike; if only the source is watched, it counts as reading. */
        if (meant(WRITE, descriptor(a[2]))) return moving(WRITE, n, a, 2, 4, 0);
        return moving(READ, n, a, 0, 4, 0);
    case SYS_splice:
        if (meant(WRITE, descriptor(a[2]))) return moving(WRITE, n, a, 2, 4, 0);
        return moving(READ, n, a, 0, 4, 0);
    case SYS_sendfile:
        if (meant(WRITE, descriptor(a[0]))) return moving(WRITE, n, a, 0, 3, 0);
        return moving(READ, n, a, 1, 3, 0);
    case SYS_fsync: case SYS_fdatasync: return on_fd(SYNC, n, a);
    case SYS_ftruncate: case SYS_fallocate: return on_fd(WRITE, n, a);
    case SYS_renameat2: return at_path(RENAME, n, a, 2, 3);
    case SYS_unlinkat: return at_path(REMOVE, n, a, 0, 1);
    case SYS_mkdirat: return at_path(MKDIR, n, a, 0, 1);
    case SYS_symlinkat: return at_path(LINK, n, a, 1, 2);
    case SYS_linkat: return at_path(LINK, n, a, 2, 3);
    case SYS_statx: case SYS_newfstatat: return stat_at(n, a, 0, 1);
    case SYS_fstat: return on_fd(STAT, n, a);
    case SYS_faccessat: case SYS_readlinkat: return at_path(STAT, n, a, 0, 1);
#ifdef SYS_faccessat2
    case SYS_faccessat2: return at_path(STAT, n, a, 0, 1);
#endif
    case SYS_getdents64: return on_fd(LIST, n, a);
    case SYS_flock: return on_fd(LOCK, n, a);
    case SYS_fchmod: return on_fd(ATTRIBUTE, n, a);
    case SYS_fchmodat: case SYS_utimensat: return a[1] ? at_path(ATTRIBUTE, n, a, 0, 1) : on_fd(ATTRIBUTE, n, a);
    case SYS_mmap: return plain(MAP, n, a, descriptor((int)a[4]), NULL, (int)a[4]);
    case SYS_dup: case SYS_dup3: {
        long fd = whole_call(n, a);
        opened(fd);
        return fd;
    }
    case SYS_fcntl: {
        long result = whole_call(n, a);
        if (a[1] == F_DUPFD || a[1] == F_DUPFD_CLOEXEC) opened(result);
        return result;
    }
#ifdef SYS_renameat
    case SYS_renameat: return at_path(RENAME, n, a, 2, 3);
#endif
#ifdef SYS_open
    case SYS_open: return opening(n, a, -1, 0, a[1]);
    case SYS_creat: return opening(n, a, -1, 0, O_CREAT | O_WRONLY | O_TRUNC);
    case SYS_rename: return at_path(RENAME, n, a, -1, 1);
    case SYS_unlink: case SYS_rmdir: return at_path(REMOVE, n, a, -1, 0);
    case SYS_mkdir: return at_path(MKDIR, n, a, -1, 0);
    case SYS_symlink: case SYS_link: return at_path(LINK, n, a, -1, 1);
    case SYS_stat: case SYS_lstat: case SYS_access: case SYS_readlink: return at_path(STAT, n, a, -1, 0);
    case SYS_chmod: return at_path(ATTRIBUTE, n, a, -1, 0);
    case SYS_dup2: {
        long fd = whole_call(n, a);
        opened(fd);
        return fd;
    }
#endif
    default: return whole_call(n, a);
    }
}

static void on_call(int number, siginfo_t *info, void *context) {
    (void)number;
    int before = errno;
    mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;
#if defined(__x86_64__)
    greg_t *r = machine->gregs;
    long a[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    r[REG_RAX] = handled(info->si_syscall, a);
#else
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = (long)machine->regs[i];
    machine->regs[0] = (unsigned long long)handled(info->si_syscall, a);
#endif
    errno = before;
}

static void refuse(const char *what) {
    fprintf(stderr, "faults: %s: %s\n", what, strerror(errno));
    _exit(125);
}

static void read_plan(const char *text) {
    char kind[16] = "", class[16] = "";
    unsigned long long at = 0, value = 0, flag = 0;
    if (sscanf(text, "budget:%llu", &value) == 1) {
        plan = BUDGET;
        plan_class = GROUPS;
    } else if (sscanf(text, "%15[a-z]:%15[a-z_]:%llu:%llu:%llu", kind, class, &at, &value, &flag) >= 3) {
        plan = strcmp(kind, "signal") == 0 ? SIGNAL : strcmp(kind, "error") == 0 ? ERROR : SHORT;
        plan_class = GROUPS;
        for (int i = 0; i < GROUPS; i++)
            if (strcmp(class, groups[i]) == 0) plan_class = i;
        if (strcmp(class, "change") == 0) plan_class = CHANGE;
        if (strcmp(class, "read") == 0) plan_class = READING;
        if (plan_class == GROUPS) { errno = EINVAL; refuse(text); }
    } else {
        plan = COUNT;
        plan_class = GROUPS;
    }
    plan_at = at;
    plan_value = value;
    plan_flag = flag;
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAULTS_ROOT"), *below_it = getenv("FAULTS_OUTPUT"), *shared = getenv("FAULTS_COUNTERS");
    const char *what = getenv("FAULTS_PLAN");
    if (!folder || !below_it || !shared || !what) return;
    strncpy(root, folder, PATH_MAX - 1);
    strncpy(output, below_it, PATH_MAX - 1);
    root_length = strlen(root);
    output_length = strlen(output);
    int fd = open(shared, O_RDWR | O_CLOEXEC);
    if (fd < 0) refuse(shared);
    counters = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (counters == MAP_FAILED) refuse("mmap");
    close(fd);
    read_plan(what);

    struct sigaction action = {0};
    action.sa_sigaction = on_call;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    if (sigaction(SIGSYS, &action, NULL) != 0) refuse("sigaction");

    enum { COUNT_OF = sizeof trapped / sizeof *trapped };
    struct sock_filter filter[24 + 2 * COUNT_OF];
    size_t at = 0;
    uint64_t gate_at = (uint64_t)(uintptr_t)gate_return;
    uint32_t low = (uint32_t)gate_at, high = (uint32_t)(gate_at >> 32);
#define ADD(...) filter[at++] = (struct sock_filter)__VA_ARGS__
#define LOAD(field) ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(field)))
    LOAD(offsetof(struct seccomp_data, arch));
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
    ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    LOAD(offsetof(struct seccomp_data, instruction_pointer));
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low, 0, 3));
    LOAD(offsetof(struct seccomp_data, instruction_pointer) + 4);
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 1));
    ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    LOAD(offsetof(struct seccomp_data, nr));
    /* Anonymous memory: also mapped during thread creation, with all signals blocked. */
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 4));
    LOAD(offsetof(struct seccomp_data, args[4]));
    ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xffffffff, 0, 1));
    ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    LOAD(offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < COUNT_OF; i++) {
        ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)trapped[i], 0, 1));
        ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
    }
    ADD(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    struct sock_fprog program = {.len = (unsigned short)at, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) refuse("prctl");
    atomic_store(&counters->started, 1);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) refuse("seccomp");
}
