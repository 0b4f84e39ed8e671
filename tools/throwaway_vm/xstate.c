// Preloaded below the kernel where it needs it: lets User Mode Linux run on processors with AMX.
//
// Linux 6.1 as a program keeps 2,696 bytes of floating point state for each of its processes. The host's kernel wants the whole of its own
// state back (arch/x86/kernel/fpu/regset.c: xstateregs_set answers EFAULT to less), which with AMX is 11,008 bytes: every first process
// of the guest would die. This fills up what is handed over with what the traced process has.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*next_ptrace)(int request, ...);
static char whole[1 << 16] __attribute__((aligned(64)));  // static: the stacks of the guest's kernel are small

__attribute__((constructor)) static void find_next(void) {
    next_ptrace = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
}

static long set_whole_state(int pid, const struct iovec *part) {
    struct iovec all = {whole, sizeof whole};
    if (next_ptrace(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &all)) return -1;
    if (part->iov_len < all.iov_len) {
        memcpy(whole, part->iov_base, part->iov_len);
        part = &all;
    }
    return next_ptrace(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, part);
}

long ptrace(enum __ptrace_request request, ...) {
    va_list arguments;
    va_start(arguments, request);
    int pid = va_arg(arguments, int);
    void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) return set_whole_state(pid, data);
    return next_ptrace(request, pid, address, data);
}
