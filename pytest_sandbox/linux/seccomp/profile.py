"""Docker's default seccomp policy: the system calls that a payload may make, by name.

The source is seccomp/default.json of moby/profiles, 2026-05-06. All other calls are refused.
docs/security.md has the differences from docker, with reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import ENOSYS, EPERM

__all__ = [
    "ALWAYS",
    "BY_ARGUMENT",
    "NEWEST",
    "REFUSED_AS_MISSING",
    "WITH_CAPABILITY",
    "WITH_PACKETS",
    "ByArgument",
]

# Newer calls fail with ENOSYS, for which the C library has fallbacks, as in runc
# (libcontainer/seccomp/patchbpf). Calls since Linux 5.1 have the same number on every architecture,
# so one name is enough for all tables.
NEWEST = "removexattrat"


@dataclass(frozen=True, slots=True)
class ByArgument:
    """A rule for the argument ``index`` of a call, which fails with ``errno`` if it is not met.

    The low 32 bits of the argument, masked with ``mask``, are compared. Allowed are either ``only``
    the listed values, or all but those in ``never`` and those with one of ``bits`` set. If the
    argument is ``then[0]``, the rule ``then[1]`` applies instead.
    """

    index: int = 0
    mask: int = 0xFFFFFFFF
    only: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    bits: int = 0
    errno: int = EPERM
    then: tuple[int, ByArgument] | None = None


AF_INET = 2
AF_PACKET = 17
AF_ALG = 38
AF_VSOCK = 40
# The type argument of socket(2) has flags above these bits. AF_INET with the obsolete SOCK_PACKET
# creates a packet socket too (packet(7)).
SOCK_TYPE_MASK = 0xF
SOCK_PACKET = 10
SYS_SOCKET = 1  # <linux/net.h>: the number of socket(2) in socketcall(2)
# The CLONE_NEW* flags: mount, cgroup, uts, ipc, user, pid, net.
NEW_NAMESPACES = 0x7E020000
# PER_LINUX and PER_LINUX32, each with and without UNAME26, and the query (personality(2)).
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# They insert input into a terminal, to be read by a process outside (CVE-2017-5226).
TIOCSTI = 0x5412
TIOCLINUX = 0x541C

#: The rule for socket(2) if packet sockets are allowed.
WITH_PACKETS = "socket with AF_PACKET"

BY_ARGUMENT = {
    "clone": ByArgument(bits=NEW_NAMESPACES),
    "ioctl": ByArgument(index=1, never=(TIOCSTI, TIOCLINUX)),
    "personality": ByArgument(only=PERSONALITIES),
    # The ring buffers of a packet socket are memory that no cgroup counts.
    "socket": ByArgument(
        never=(AF_ALG, AF_VSOCK, AF_PACKET),
        then=(AF_INET, ByArgument(index=1, mask=SOCK_TYPE_MASK, never=(SOCK_PACKET,))),
    ),
    WITH_PACKETS: ByArgument(never=(AF_ALG, AF_VSOCK)),
    # On i386 the arguments of socket are behind a pointer, which a filter cannot read. With ENOSYS
    # the C library calls socket(2) instead.
    "socketcall": ByArgument(never=(SYS_SOCKET,), errno=ENOSYS),
}

# The flags of clone3(2) are behind a pointer. With ENOSYS the C library calls clone(2) instead, and
# a filter can read its flags.
REFUSED_AS_MISSING = ("clone3",)

# With SYS_ADMIN, "clone" and "ioctl" are not subject to the rules above.
WITH_CAPABILITY = {
    "BPF": "bpf",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "PERFMON": "perf_event_open",
    "SYSLOG": "syslog",
    "SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick ioctl lookup_dcookie
        lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount
        open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount
        umount2 unshare
    """,
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
}

# The calls of the last two lines exist on one architecture only.
ALWAYS = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod
chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32
fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents
getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32
getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get
ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat
mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal
msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64
sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketpair splice stat stat64 statfs statfs64 statmount statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork
vmsplice wait4 waitid waitpid write writev
arch_prctl modify_ldt
arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls
"""
