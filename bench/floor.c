// The floor: the least that a container with limits costs on this kernel, in C, without a protocol,
// checks or a security profile.
//
//   floor SCRATCH CGROUP...
//
// SCRATCH is an empty directory to mount on (in the container's own mount namespace). Cgroups are
// made in each directory CGROUP: one per v1 controller, or a single v2 directory. A line
// "COUNT GAP_MS BUSY_MS" on stdin is answered with one line, a JSON list of COUNT times in
// milliseconds. Before each round the process sleeps GAP_MS and then computes for BUSY_MS, which is
// not measured.
//
// One round: make cgroups with limits, clone3 with six namespaces, mount a tmpfs, an overlay of the
// host's root and /proc, pivot_root, bring up loopback, execute true, wait, remove the cgroups.
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CGROUPS = 8, PATH = 512 };

static const struct { const char *file, *value; } LIMITS[] = {
    {"memory.limit_in_bytes", "268435456"}, {"cpu.cfs_quota_us", "100000"},  // v1
    {"memory.max", "268435456"},            {"cpu.max", "100000 100000"},    // v2
    {"pids.max", "100"},                                                     // both
};

struct cgroup {
    const char *parent;
    char path[PATH];
    int tasks;  // v1: the child joins here; cgroup.procs would take a lock over all threads
};

static struct cgroup cgroups[MAX_CGROUPS];
static int cgroup_count;
static int unified = -1;  // v2: the directory of the round's cgroup
static const char *scratch;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int is_unified(void) {
    char path[PATH];
    snprintf(path, sizeof path, "%s/cgroup.controllers", cgroups[0].parent);
    return access(path, F_OK) == 0;
}

static void set_limits(const char *directory) {
    char path[PATH + 64];
    for (size_t i = 0; i < sizeof LIMITS / sizeof *LIMITS; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, LIMITS[i].file);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;  // a file of another controller or version
        if (write(fd, LIMITS[i].value, strlen(LIMITS[i].value)) < 0) err(1, "%s", path);
        close(fd);
    }
}

static void make_cgroup(struct cgroup *g, int round, int v2) {
    char tasks[PATH + 64];
    snprintf(g->path, sizeof g->path, "%s/floor-%d-%d", g->parent, getpid(), round);
    if (mkdir(g->path, 0755)) err(1, "mkdir %s", g->path);
    set_limits(g->path);
    if (v2) {
        unified = open(g->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        return;
    }
    snprintf(tasks, sizeof tasks, "%s/tasks", g->path);
    g->tasks = open(tasks, O_WRONLY | O_CLOEXEC);
    if (g->tasks < 0) err(1, "%s", tasks);
}

static void remove_cgroup(struct cgroup *g, int v2) {
    close(v2 ? unified : g->tasks);
    if (rmdir(g->path)) err(1, "rmdir %s", g->path);
}

static void join_cgroups(int v2) {
    for (int i = 0; !v2 && i < cgroup_count; i++)
        if (write(cgroups[i].tasks, "0", 1) != 1) err(99, "join %s", cgroups[i].path);
    // After joining, so that the cgroup is the root of the namespace.
    if (!v2 && unshare(CLONE_NEWCGROUP)) err(99, "unshare(CLONE_NEWCGROUP)");
}

static void mount_layer(void) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) err(99, "private /");
    if (mount("tmpfs", scratch, "tmpfs", 0, "size=64m,mode=755")) err(99, "tmpfs");
    if (chdir(scratch) || mkdir("upper", 0755) || mkdir("work", 0755) || mkdir("root", 0755))
        err(99, "directories of the layer");
    if (mount("overlay", "root", "overlay", 0, "lowerdir=/,upperdir=upper,workdir=work"))
        err(99, "overlay");
}

static void enter_root(void) {
    if (chdir("root") || syscall(SYS_pivot_root, ".", ".")) err(99, "pivot_root");
    if (umount2(".", MNT_DETACH) || chdir("/")) err(99, "detach the old root");
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) err(99, "/proc");
}

static void raise_loopback(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0 || ioctl(s, SIOCSIFFLAGS, &request)) err(99, "lo up");
    close(s);
}

static void contain_and_exec(int v2) {
    char *const arguments[] = {"true", NULL}, *const environment[] = {"PATH=/usr/bin:/bin", NULL};
    join_cgroups(v2);
    mount_layer();
    enter_root();
    raise_loopback();
    execve("/bin/true", arguments, environment);
    err(99, "execve /bin/true");
}

static void one_round(int round, int v2) {
    struct clone_args args = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC,
        .exit_signal = SIGCHLD,
    };
    int status;
    for (int i = 0; i < cgroup_count; i++) make_cgroup(&cgroups[i], round, v2);
    if (v2) args.flags |= CLONE_INTO_CGROUP | CLONE_NEWCGROUP, args.cgroup = unified;
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0) err(1, "clone3");
    if (pid == 0) contain_and_exec(v2);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    if (status) errx(1, "the child ended with status %x", status);
    for (int i = 0; i < cgroup_count; i++) remove_cgroup(&cgroups[i], v2);
}

static void wait_and_compute(int gap_ms, int busy_ms) {
    if (gap_ms) usleep(gap_ms * 1000);
    for (double end = now_ms() + busy_ms; busy_ms && now_ms() < end;) {}
}

int main(int argc, char **argv) {
    int count, gap_ms, busy_ms, round = 0;
    if (argc < 3 || argc - 2 > MAX_CGROUPS) errx(2, "usage: floor SCRATCH CGROUP...");
    scratch = argv[1];
    for (int i = 2; i < argc; i++) cgroups[cgroup_count++].parent = argv[i];
    int v2 = is_unified();
    while (scanf("%d %d %d", &count, &gap_ms, &busy_ms) == 3) {
        putchar('[');
        for (int i = 0; i < count; i++) {
            wait_and_compute(gap_ms, busy_ms);
            double start = now_ms();
            one_round(round++, v2);
            printf(i ? ", %.4f" : "%.4f", now_ms() - start);
        }
        puts("]");
        fflush(stdout);
    }
    return 0;
}
