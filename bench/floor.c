// The floor: the least that a container with limits costs on this kernel, in C and without any protocol, checks or security profile.
//
//   floor SCRATCH GROUP...
//
// SCRATCH is an empty folder to mount upon (in a mount namespace of the container's own). Each GROUP is a cgroup folder to make groups in:
// one per v1 controller, or a single v2 folder. A line "COUNT GAP_MS BUSY_MS" on stdin is answered by one line with a JSON list of COUNT
// times in milliseconds; before each round the process sleeps GAP_MS and then computes for BUSY_MS, outside of the measured time.
//
// One round: groups with limits, clone3 with six namespaces, tmpfs, overlay of the host's root, pivot_root, /proc, loopback, exec of true,
// wait, groups removed.
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

enum { MOST_GROUPS = 8, PATH = 512 };

static const struct { const char *file, *value; } LIMITS[] = {
    {"memory.limit_in_bytes", "268435456"}, {"cpu.cfs_quota_us", "100000"},  // v1
    {"memory.max", "268435456"},            {"cpu.max", "100000 100000"},    // v2
    {"pids.max", "100"},                                                     // both
};

struct group {
    const char *parent;
    char path[PATH];
    int tasks;  // v1: the child writes itself here, which takes no lock over all threads as cgroup.procs does
};

static struct group groups[MOST_GROUPS];
static int group_count;
static int unified = -1;  // v2: the open folder of the round's group
static const char *scratch;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int is_unified(void) {
    char path[PATH];
    snprintf(path, sizeof path, "%s/cgroup.controllers", groups[0].parent);
    return access(path, F_OK) == 0;
}

static void set_limits(const char *folder) {
    char path[PATH + 64];
    for (size_t i = 0; i < sizeof LIMITS / sizeof *LIMITS; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, LIMITS[i].file);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;  // another controller's, or the other version's
        if (write(fd, LIMITS[i].value, strlen(LIMITS[i].value)) < 0) err(1, "%s", path);
        close(fd);
    }
}

static void make_group(struct group *g, int round, int v2) {
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

static void remove_group(struct group *g, int v2) {
    close(v2 ? unified : g->tasks);
    if (rmdir(g->path)) err(1, "rmdir %s", g->path);
}

static void join_groups(int v2) {
    for (int i = 0; !v2 && i < group_count; i++)
        if (write(groups[i].tasks, "0", 1) != 1) err(99, "join %s", groups[i].path);
    if (!v2 && unshare(CLONE_NEWCGROUP)) err(99, "unshare(CLONE_NEWCGROUP)");  // after joining, so that the group is its root
}

static void mount_layer(void) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) err(99, "private /");
    if (mount("tmpfs", scratch, "tmpfs", 0, "size=64m,mode=755")) err(99, "tmpfs");
    if (chdir(scratch) || mkdir("upper", 0755) || mkdir("work", 0755) || mkdir("root", 0755)) err(99, "folders of the layer");
    if (mount("overlay", "root", "overlay", 0, "lowerdir=/,upperdir=upper,workdir=work")) err(99, "overlay");
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
    join_groups(v2);
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
    for (int i = 0; i < group_count; i++) make_group(&groups[i], round, v2);
    if (v2) args.flags |= CLONE_INTO_CGROUP | CLONE_NEWCGROUP, args.cgroup = unified;
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0) err(1, "clone3");
    if (pid == 0) contain_and_exec(v2);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    if (status) errx(1, "the child ended with status %x", status);
    for (int i = 0; i < group_count; i++) remove_group(&groups[i], v2);
}

static void wait_and_compute(int gap_ms, int busy_ms) {
    if (gap_ms) usleep(gap_ms * 1000);
    for (double end = now_ms() + busy_ms; busy_ms && now_ms() < end;) {}
}

int main(int argc, char **argv) {
    int count, gap_ms, busy_ms, round = 0;
    if (argc < 3 || argc - 2 > MOST_GROUPS) errx(2, "usage: floor SCRATCH GROUP...");
    scratch = argv[1];
    for (int i = 2; i < argc; i++) groups[group_count++].parent = argv[i];
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
