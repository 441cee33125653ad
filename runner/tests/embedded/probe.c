/* Tries from inside a sandbox what no sandbox may do: each attempt by name, each in a process of its own.
 *
 *   probe NAME...   tries these (all without a name) and prints one line for each: its name and OK, an errno's name, or the signal
 *                   that ended it. "OK" is what an attacker wants to see.
 *   probe -hold KIND N     takes N of what the kernel counts (or as many as it may) and waits; see `hold`
 *   probe -listen WHERE, -connect WHERE    at the name of an abstract Unix socket, or at an address and a port
 *
 * Raw system calls, so that no C library is kind enough to ask for something else. x86-64 only where it says so. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

typedef long (*attempt)(void);
#define CALL(...) syscall(__VA_ARGS__)

/* ---- mounts: the old calls */
static long mounts_a(const char *kind, const char *options) {
    mkdir("/tmp/m", 0755);
    return CALL(SYS_mount, "none", "/tmp/m", kind, 0, options);
}
#define MOUNT(kind, options) static long mount_##kind(void) { return mounts_a(#kind, options); }
MOUNT(tmpfs, 0) MOUNT(proc, 0) MOUNT(sysfs, 0) MOUNT(devpts, 0) MOUNT(devtmpfs, 0) MOUNT(mqueue, 0) MOUNT(ramfs, 0)
MOUNT(cgroup, "memory") MOUNT(cgroup2, 0) MOUNT(debugfs, 0) MOUNT(tracefs, 0) MOUNT(securityfs, 0) MOUNT(bpf, 0)
MOUNT(binfmt_misc, 0) MOUNT(configfs, 0) MOUNT(hugetlbfs, 0) MOUNT(ext4, 0) MOUNT(xfs, 0) MOUNT(squashfs, 0)
MOUNT(overlay, "lowerdir=/,upperdir=/tmp,workdir=/var") MOUNT(fuse, "fd=3,rootmode=40000,user_id=0,group_id=0")
MOUNT(nfs, "addr=127.0.0.1") MOUNT(cifs, 0) MOUNT(efivarfs, 0) MOUNT(pstore, 0) MOUNT(nsfs, 0)
static long mount_bind(void) { mkdir("/tmp/m", 0755); return CALL(SYS_mount, "/", "/tmp/m", 0, MS_BIND | MS_REC, 0); }
static long mount_move(void) { mkdir("/tmp/m", 0755); return CALL(SYS_mount, "/proc", "/tmp/m", 0, MS_MOVE, 0); }
static long mount_shared(void) { return CALL(SYS_mount, 0, "/", 0, MS_SHARED | MS_REC, 0); }
static long remount_proc_sys(void) { return CALL(SYS_mount, 0, "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0); }
static long remount_sys(void) { return CALL(SYS_mount, 0, "/sys", 0, MS_REMOUNT, 0); }
static long remount_root_with_devices(void) { return CALL(SYS_mount, 0, "/", 0, MS_REMOUNT | MS_BIND, 0); }
static long umount_mask(void) { return CALL(SYS_umount2, "/proc/kcore", MNT_DETACH); }
static long umount_proc(void) { return CALL(SYS_umount2, "/proc", MNT_DETACH); }
static long umount_root(void) { return CALL(SYS_umount2, "/", MNT_DETACH); }
static long pivot(void) { return CALL(SYS_pivot_root, ".", "."); }

/* ---- mounts: the new calls, by number where the C library is older */
static long new_fsopen(void) { return CALL(430, "tmpfs", 0); }
static long new_fsconfig(void) { return CALL(431, 0, 6, 0, 0, 0); }
static long new_fsmount(void) { return CALL(432, 0, 0, 0); }
static long new_fspick(void) { return CALL(433, AT_FDCWD, "/proc", 0); }
static long new_open_tree(void) { return CALL(428, AT_FDCWD, "/", 1 /* clone */); }
static long new_open_tree_plain(void) { return CALL(428, AT_FDCWD, "/", 0); }
static long new_move_mount(void) { return CALL(429, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0); }
static long new_mount_setattr(void) { uint64_t a[4] = {0, 1, 0, 0}; return CALL(442, AT_FDCWD, "/proc/sys", 0, a, sizeof a); }
static long new_open_tree_attr(void) { return CALL(467, AT_FDCWD, "/", 1, 0, 0); }
static long new_statmount(void) { char b[512]; uint64_t q[4] = {32, 1, 1, 0}; return CALL(457, q, b, sizeof b, 0); }
static long new_listmount(void) { uint64_t b[8], q[4] = {32, -1ull, 0, 0}; return CALL(458, q, b, 8, 0); }

/* ---- device nodes */
static long node_at(const char *path, mode_t kind, int major, int minor) {
    unlink(path);
    return CALL(SYS_mknod, path, kind | 0666, (unsigned)(major << 8 | minor));
}
static long mknod_disk(void) { return node_at("/tmp/sda", S_IFBLK, 8, 0); }
static long mknod_virtual_disk(void) { return node_at("/vda", S_IFBLK, 254, 0); }
static long mknod_disk_in_dev(void) { return node_at("/dev/sda", S_IFBLK, 8, 0); }
static long mknod_disk_in_shm(void) { return node_at("/dev/shm/sda", S_IFBLK, 8, 0); }
static long mknod_memory(void) { return node_at("/tmp/mem", S_IFCHR, 1, 1); }
static long mknod_kernel_log(void) { return node_at("/tmp/kmsg", S_IFCHR, 1, 11); }
static long mknod_fuse(void) { return node_at("/tmp/fuse", S_IFCHR, 10, 229); }
static long mknod_at(void) { return CALL(SYS_mknodat, AT_FDCWD, "/tmp/at", S_IFBLK | 0600, 8 << 8); }
static long mknod_whiteout(void) { return node_at("/bin/ls-whiteout", S_IFCHR, 0, 0); }
static long opened(const char *path, int flags) { return CALL(SYS_open, path, flags, 0); }
#define OPEN(name, path, flags) static long open_##name(void) { return opened(path, flags); }
OPEN(dev_mem, "/dev/mem", O_RDWR) OPEN(dev_kmsg, "/dev/kmsg", O_RDONLY) OPEN(dev_fuse, "/dev/fuse", O_RDWR)
OPEN(dev_kvm, "/dev/kvm", O_RDWR) OPEN(dev_tun, "/dev/net/tun", O_RDWR) OPEN(dev_loop, "/dev/loop-control", O_RDWR)
OPEN(dev_console, "/dev/console", O_RDWR) OPEN(dev_vsock, "/dev/vsock", O_RDWR) OPEN(dev_port, "/dev/port", O_RDWR)
OPEN(dev_userfaultfd, "/dev/userfaultfd", O_RDWR)
/* A tty that nobody gave us. */
OPEN(dev_tty, "/dev/tty", O_RDWR)

/* ---- the kernel itself */
static long load_module(void) { return CALL(SYS_init_module, "x", 1, ""); }
static long load_module_file(void) { return CALL(SYS_finit_module, open("/bin/busybox", O_RDONLY), "", 0); }
static long unload_module(void) { return CALL(SYS_delete_module, "loop", 0); }
static long kexec(void) { return CALL(SYS_kexec_load, 0, 0, 0, 0); }
static long kexec_file(void) { return CALL(SYS_kexec_file_load, -1, -1, 0, "", 0); }
static long restart(void) { return CALL(SYS_reboot, 0xfee1dead, 672274793, 0x89abcdef /* Ctrl-Alt-Del on */, 0); }
static long swap_on(void) { return CALL(SYS_swapon, "/bin/busybox", 0); }
static long swap_off(void) { return CALL(SYS_swapoff, "/bin/busybox"); }
static long clock_set(void) { struct timespec t = {1, 0}; return CALL(SYS_clock_settime, CLOCK_REALTIME, &t); }
static long time_of_day_set(void) { struct timeval t = {1, 0}; return CALL(SYS_settimeofday, &t, 0); }
static long clock_adjust(void) { struct timex t = {.modes = ADJ_FREQUENCY}; return CALL(SYS_clock_adjtime, CLOCK_REALTIME, &t); }
static long time_adjust(void) { struct timex t = {.modes = ADJ_FREQUENCY}; return CALL(SYS_adjtimex, &t); }
static long host_name(void) { return CALL(SYS_sethostname, "x", 1); }
static long domain_name(void) { return CALL(SYS_setdomainname, "x", 1); }
static long kernel_log(void) { char b[64]; return CALL(SYS_syslog, 3, b, sizeof b); }
static long kernel_log_size(void) { return CALL(SYS_syslog, 10, 0, 0); }
static long accounting(void) { return CALL(SYS_acct, "/tmp/acct"); }
static long quota(void) { return CALL(SYS_quotactl, 0x800007 << 8, "/dev/vda", 0, 0); }
static long quota_fd(void) { return CALL(443, open("/", O_RDONLY), 0x800007 << 8, 0, 0); }
static long hang_up(void) { return CALL(SYS_vhangup); }
static long load_program(void) { char a[128] = {0}; return CALL(SYS_bpf, 0 /* map create */, a, sizeof a); }
static long perf(void) { char a[128] = {0}; return CALL(SYS_perf_event_open, a, 0, -1, -1, 0); }
static long user_faults(void) { return CALL(SYS_userfaultfd, O_CLOEXEC); }
static long user_faults_unprivileged(void) { return CALL(SYS_userfaultfd, O_CLOEXEC | 1); }
static long ring(void) { char a[120] = {0}; return CALL(SYS_io_uring_setup, 4, a); }
static long ring_enter(void) { return CALL(SYS_io_uring_enter, 0, 1, 0, 0, 0, 0); }
static long watch_file_system(void) { return CALL(SYS_fanotify_init, 0, 0); }
static long dcookie(void) { char b[8]; return CALL(SYS_lookup_dcookie, 0, b, 8); }
static long add_key_(void) { return CALL(SYS_add_key, "user", "k", "v", 1, -3); }
static long request_key_(void) { return CALL(SYS_request_key, "user", "k", 0, -3); }
static long key_ring(void) { return CALL(SYS_keyctl, 0, -3, 0); }
static long pages_moved(void) { return CALL(SYS_move_pages, 0, 0, 0, 0, 0, 0); }
static long pages_bound(void) { return CALL(SYS_mbind, 0, 0, 0, 0, 0, 0); }
static long compare(void) { return CALL(SYS_kcmp, 1, 1, 0, 0, 0); }
static long ring_of_old(void) { long ring = 0; return CALL(SYS_io_setup, 65536, &ring); }
static long secret_memory(void) { return CALL(447, 0); }
static long landing_in_zero_page(void) {
    return mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0;
}
#ifdef __x86_64__
static long ports(void) { return CALL(SYS_iopl, 3); }
static long port(void) { return CALL(SYS_ioperm, 0x80, 1, 1); }
#endif

/* ---- namespaces and roots */
#define NAMESPACE(name, flag)                                                                                                    \
    static long unshare_##name(void) { return CALL(SYS_unshare, flag); }                                                         \
    static long clone_##name(void) {                                                                                             \
        long pid = CALL(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0);                                                                  \
        if (pid == 0) _exit(0);                                                                                                  \
        return pid;                                                                                                              \
    }
NAMESPACE(user, CLONE_NEWUSER) NAMESPACE(mount, CLONE_NEWNS) NAMESPACE(pid, CLONE_NEWPID) NAMESPACE(net, CLONE_NEWNET)
NAMESPACE(ipc, CLONE_NEWIPC) NAMESPACE(uts, CLONE_NEWUTS) NAMESPACE(cgroup, CLONE_NEWCGROUP)
static long unshare_time(void) { return CALL(SYS_unshare, 0x80); }
static long clone_user_with_more(void) {
    long pid = CALL(SYS_clone, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}
/* The filter looks at 32 bits of the flags; so does the kernel. */
static long clone_user_with_high_bits(void) {
    long pid = CALL(SYS_clone, 1ul << 40 | CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}
static long clone3_user(void) {
    uint64_t a[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long pid = CALL(435, a, sizeof a);
    if (pid == 0) _exit(0);
    return pid;
}
static long mount_in_own_user_namespace(void) { return CALL(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNS) ? -1 : mount_tmpfs(); }
static long enter_mounts_of_init(void) { return CALL(SYS_setns, open("/proc/1/ns/mnt", O_RDONLY), CLONE_NEWNS); }
static long enter_own_user_namespace(void) { return CALL(SYS_setns, open("/proc/self/ns/user", O_RDONLY), 0); }
static long enter_by_pidfd(void) { return CALL(SYS_setns, CALL(SYS_pidfd_open, 1, 0), CLONE_NEWNS | CLONE_NEWNET); }
static long parent_of_user_namespace(void) { return ioctl(open("/proc/self/ns/user", O_RDONLY), 0xb702 /* NS_GET_PARENT */); }
static long handle_made(void) {
    struct { unsigned bytes; int kind; unsigned char h[128]; } handle = {128, 0, {0}};
    int id;
    return CALL(SYS_name_to_handle_at, AT_FDCWD, "/etc/hosts", &handle, &id, 0);
}
/* "Shocker": inode 2 is the root of the file system that a file from outside is on. */
static long handle_opened(void) {
    struct { unsigned bytes; int kind; unsigned char h[8]; } handle = {8, 1, {2}};
    return CALL(SYS_open_by_handle_at, open("/etc/hosts", O_RDONLY), &handle, O_RDONLY);
}
/* The classical way out: a second chroot while a folder outside it is open, then up and up. OK if it comes out elsewhere. */
static long chroot_escape(void) {
    struct stat before, after;
    if (stat("/", &before)) return -1;
    int out = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/jail", 0755);
    if (chroot("/tmp/jail") || fchdir(out)) return -1;
    for (int i = 0; i < 64; i++)
        if (chdir("..")) return -1;
    if (chroot(".") || stat("/", &after)) return -1;
    errno = ENOENT;
    return before.st_ino == after.st_ino && before.st_dev == after.st_dev ? -1 : 0;
}

/* ---- the daemon and its neighbours */
static long trace_init(void) { return CALL(SYS_ptrace, PTRACE_ATTACH, 1, 0, 0); }
static long seize_init(void) { return CALL(SYS_ptrace, PTRACE_SEIZE, 1, 0, 0); }
static long read_init(void) {
    char b[8];
    struct iovec here = {b, 8}, there = {(void *)0x400000, 8};
    return CALL(SYS_process_vm_readv, 1, &here, 1, &there, 1, 0);
}
static long write_init(void) {
    char b[8] = {0};
    struct iovec here = {b, 8}, there = {(void *)0x400000, 8};
    return CALL(SYS_process_vm_writev, 1, &here, 1, &there, 1, 0);
}
static long take_fd_of_init(void) { return CALL(438, CALL(SYS_pidfd_open, 1, 0), 3, 0); }
static long open_memory_of_init(void) { return opened("/proc/1/mem", O_RDWR); }
static long open_environment_of_init(void) { return opened("/proc/1/environ", O_RDONLY); }
static long open_fd_of_init(void) { return opened("/proc/1/fd/3", O_RDONLY); }
static long root_of_init(void) { char b[64]; return readlink("/proc/1/root", b, sizeof b); }
static long limits_of_init(void) { struct rlimit l = {0, 0}; return CALL(SYS_prlimit64, 1, RLIMIT_NOFILE, &l, 0); }
static long badness_of_init(void) { return write(open("/proc/1/oom_score_adj", O_WRONLY), "1000", 4); }
static long advise_init(void) {
    struct iovec all = {(void *)0x400000, 4096};
    return CALL(440, CALL(SYS_pidfd_open, 1, 0), &all, 1, 21 /* pageout */, 0);
}
static long release_init(void) { return CALL(448, CALL(SYS_pidfd_open, 1, 0), 0); }

/* ---- what is root's own */
static long nice_up(void) { return CALL(SYS_setpriority, 0, 0, -10); }
static long real_time(void) { int p = 1; return CALL(SYS_sched_setscheduler, 0, SCHED_FIFO, &p); }
static long real_time_io(void) { return CALL(SYS_ioprio_set, 1, 0, 1 << 13); }
static long more_files(void) { struct rlimit l = {1 << 22, 1 << 22}; return CALL(SYS_prlimit64, 0, RLIMIT_NOFILE, &l, 0); }
static long less_badness(void) { return write(open("/proc/self/oom_score_adj", O_WRONLY), "-1000", 5); }
static long id_of_nobody(void) { return CALL(SYS_setuid, 70000); }
static long own_by_nobody(void) { close(open("/tmp/owned", O_CREAT | O_RDWR, 0600)); return chown("/tmp/owned", 70000, 70000); }
static long capability_gained(void) {
    struct { uint32_t version; int pid; } head = {0x20080522, 0};
    struct { uint32_t effective, permitted, inheritable; } sets[2];
    if (CALL(SYS_capget, &head, sets)) return -1;
    sets[0].effective |= 1 << 21, sets[0].permitted |= 1 << 21;
    return CALL(SYS_capset, &head, sets);
}
static long capability_inherited(void) {
    struct { uint32_t version; int pid; } head = {0x20080522, 0};
    struct { uint32_t effective, permitted, inheritable; } sets[2];
    if (CALL(SYS_capget, &head, sets)) return -1;
    sets[0].inheritable |= 1 << 21;
    return CALL(SYS_capset, &head, sets);
}
static long capability_ambient(void) { return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0); }
static long capability_of_file(void) {
    uint32_t v[5] = {0x02000001, 1 << 21, 0, 0, 0};
    close(open("/tmp/capable", O_CREAT | O_RDWR, 0755));
    return setxattr("/tmp/capable", "security.capability", v, sizeof v, 0);
}
static long trusted_attribute(void) { return setxattr("/tmp", "trusted.overlay.opaque", "y", 1, 0); }
static long immutable(void) {
    long flags = 0x10;
    return ioctl(open("/tmp/immutable", O_CREAT | O_RDWR, 0600), 0x40086602 /* FS_IOC_SETFLAGS */, &flags);
}
static long persona_of_old_unix(void) { return CALL(SYS_personality, PER_SVR4); }
static long persona_that_executes_data(void) { return CALL(SYS_personality, READ_IMPLIES_EXEC); }

/* ---- terminals */
static int terminal(void) {
    int zero = 0, number, master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    char name[32];
    if (master < 0 || ioctl(master, TIOCSPTLCK, &zero) || ioctl(master, TIOCGPTN, &number)) return -1;
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    return open(name, O_RDWR);
}
static long terminal_pushed(void) { return ioctl(terminal(), TIOCSTI, "x"); }
static long terminal_pushed_high_bits(void) { return CALL(SYS_ioctl, terminal(), 1ul << 32 | TIOCSTI, "x"); }
static long console_pasted(void) { char c = 3; return ioctl(terminal(), TIOCLINUX, &c); }
static long console_taken(void) { return ioctl(terminal(), TIOCCONS, 0); }
static long discipline(void) { int slip = 1; return ioctl(terminal(), TIOCSETD, &slip); }

/* ---- sockets */
#define SOCKET(name, family, kind, protocol) static long socket_##name(void) { return CALL(SYS_socket, family, kind, protocol); }
SOCKET(packet, 17, SOCK_RAW, 0x0300) SOCKET(packet_cooked, 17, SOCK_DGRAM, 0x0300) SOCKET(raw, AF_INET, SOCK_RAW, 1)
SOCKET(raw_header, AF_INET, SOCK_RAW, 255) SOCKET(raw6, AF_INET6, SOCK_RAW, 58) SOCKET(vsock, 40, SOCK_STREAM, 0)
SOCKET(alg, 38, SOCK_SEQPACKET, 0) SOCKET(xdp, 44, SOCK_RAW, 0) SOCKET(bluetooth, 31, SOCK_RAW, 1) SOCKET(can, 29, SOCK_RAW, 1)
SOCKET(key, 15, SOCK_RAW, 2) SOCKET(tipc, 30, SOCK_STREAM, 0) SOCKET(rds, 21, SOCK_SEQPACKET, 0) SOCKET(smc, 43, SOCK_STREAM, 0)
SOCKET(x25, 9, SOCK_SEQPACKET, 0) SOCKET(ax25, 3, SOCK_DGRAM, 0) SOCKET(appletalk, 5, SOCK_DGRAM, 0) SOCKET(llc, 26, SOCK_STREAM, 0)
SOCKET(nfc, 39, SOCK_SEQPACKET, 0) SOCKET(qipcrtr, 42, SOCK_DGRAM, 0) SOCKET(rxrpc, 33, SOCK_DGRAM, AF_INET)
SOCKET(kcm, 41, SOCK_DGRAM, 0) SOCKET(pppox, 24, SOCK_STREAM, 0) SOCKET(mctp, 45, SOCK_DGRAM, 0)
SOCKET(family_high_bits, 1ul << 32 | 40, SOCK_STREAM, 0)
SOCKET(sctp, AF_INET, SOCK_STREAM, 132) SOCKET(sctp_seq, AF_INET6, SOCK_SEQPACKET, 132) SOCKET(dccp, AF_INET, 6, 33)
SOCKET(l2tp, AF_INET, SOCK_DGRAM, 115) SOCKET(udplite, AF_INET, SOCK_DGRAM, 136)
SOCKET(netfilter, AF_NETLINK, SOCK_RAW, 12) SOCKET(xfrm, AF_NETLINK, SOCK_RAW, 6) SOCKET(generic, AF_NETLINK, SOCK_RAW, 16)
SOCKET(crypto, AF_NETLINK, SOCK_RAW, 21) SOCKET(connector, AF_NETLINK, SOCK_RAW, 11) SOCKET(rdma, AF_NETLINK, SOCK_RAW, 20)
SOCKET(scsi, AF_NETLINK, SOCK_RAW, 18)
static long paired(int family, int kind) { int ends[2]; return CALL(SYS_socketpair, family, kind, 0, ends); }
static long pair_of_vsock(void) { return paired(40, SOCK_STREAM); }
static long pair_of_tipc(void) { return paired(30, SOCK_STREAM); }
static long pair_of_internet(void) { return paired(AF_INET, SOCK_STREAM); }
static long socket_mark(void) { int m = 1; return setsockopt(socket(AF_INET, SOCK_DGRAM, 0), SOL_SOCKET, SO_MARK, &m, sizeof m); }
static long socket_transparent(void) { int m = 1; return setsockopt(socket(AF_INET, SOCK_DGRAM, 0), 0, 19, &m, sizeof m); }
static long socket_filter_table(void) { char b[1024] = {0}; return setsockopt(socket(AF_INET, SOCK_STREAM, 0), 0, 64, b, sizeof b); }
static long socket_buffer_forced(void) { int m = 1 << 30; return setsockopt(socket(AF_INET, SOCK_DGRAM, 0), SOL_SOCKET, 32, &m, sizeof m); }
static long device_renamed(void) {
    struct ifreq r = {0};
    strcpy(r.ifr_name, "eth0"), strcpy(r.ifr_newname, "eth9");
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), 0x8923 /* SIOCSIFNAME */, &r);
}
static long address_changed(void) {
    struct ifreq r = {0};
    strcpy(r.ifr_name, "eth0");
    struct sockaddr_in *a = (struct sockaddr_in *)&r.ifr_addr;
    a->sin_family = AF_INET, a->sin_addr.s_addr = htonl(0x0a000001);
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), 0x8916 /* SIOCSIFADDR */, &r);
}
static long neighbour_forged(void) {
    struct { struct sockaddr pa, ha; int flags; struct sockaddr mask; char dev[16]; } r;
    memset(&r, 0, sizeof r);
    r.pa.sa_family = AF_INET, r.ha.sa_family = 1, r.flags = 6, strcpy(r.dev, "eth0");
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), 0x8955 /* SIOCSARP */, &r);
}

/* ---- ways around the filter */
#ifdef __x86_64__
static long x32_mount(void) { return CALL(0x40000000 | SYS_mount, "none", "/tmp", "tmpfs", 0, 0); }
static long x32_unshare(void) { return CALL(0x40000000 | SYS_unshare, CLONE_NEWUSER); }
static long x32_getpid(void) { return CALL(0x40000000 | SYS_getpid); }
static long int80(long number, long a, long b) {
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(number), "b"(a), "c"(b) : "memory", "r8", "r9", "r10", "r11");
    if (answer < 0) errno = -answer, answer = -1;
    return answer;
}
static long int80_getpid(void) { return int80(20, 0, 0); }
static long int80_unshare(void) { return int80(310, CLONE_NEWUSER, 0); }
/* 32-bit code reaches the same numbers without int 0x80; it needs a 32-bit segment, which modify_ldt could make. */
static long obsolete_sysctl(void) { return CALL(156, 0); }
static long obsolete_uselib(void) { return CALL(134, "/bin/busybox"); }
static long obsolete_create_module(void) { return CALL(174, "x", 4096); }
static long obsolete_get_kernel_syms(void) { return CALL(177, 0); }
static long obsolete_query_module(void) { return CALL(178, 0, 0, 0, 0, 0); }
static long obsolete_nfsservctl(void) { return CALL(180, 0, 0, 0); }
static long obsolete_getpmsg(void) { return CALL(181, 0, 0, 0, 0, 0); }
static long obsolete_afs(void) { return CALL(183); }
static long obsolete_security(void) { return CALL(185); }
static long obsolete_epoll_ctl(void) { return CALL(214, 0, 0, 0, 0); }
static long obsolete_vserver(void) { return CALL(236); }
/* Asks about the file system of any device of the host. */
static long obsolete_ustat(void) { char b[64]; return CALL(SYS_ustat, 254 << 8, b); }
static long segment_made(void) { char b[16] = {0}; return CALL(SYS_modify_ldt, 1, b, sizeof b); }
static long obsolete_sysfs(void) { return CALL(139, 3); }
#endif
static long unknown_call(void) { return CALL(499); }
static long negative_call(void) { return CALL(-2); }

#define T(name) {#name, name}
static const struct { const char *name; attempt attempt; } ATTEMPTS[] = {
    T(mount_tmpfs), T(mount_proc), T(mount_sysfs), T(mount_devpts), T(mount_devtmpfs), T(mount_mqueue), T(mount_ramfs),
    T(mount_cgroup), T(mount_cgroup2), T(mount_debugfs), T(mount_tracefs), T(mount_securityfs), T(mount_bpf), T(mount_binfmt_misc),
    T(mount_configfs), T(mount_hugetlbfs), T(mount_ext4), T(mount_xfs), T(mount_squashfs), T(mount_overlay), T(mount_fuse),
    T(mount_nfs), T(mount_cifs), T(mount_efivarfs), T(mount_pstore), T(mount_nsfs), T(mount_bind), T(mount_move), T(mount_shared),
    T(remount_proc_sys), T(remount_sys), T(remount_root_with_devices), T(umount_mask), T(umount_proc), T(umount_root), T(pivot),
    T(new_fsopen), T(new_fsconfig), T(new_fsmount), T(new_fspick), T(new_open_tree), T(new_open_tree_plain), T(new_move_mount),
    T(new_mount_setattr), T(new_open_tree_attr), T(new_statmount), T(new_listmount),
    T(mknod_disk), T(mknod_virtual_disk), T(mknod_disk_in_dev), T(mknod_disk_in_shm), T(mknod_memory), T(mknod_kernel_log),
    T(mknod_fuse), T(mknod_at), T(mknod_whiteout), T(open_dev_mem), T(open_dev_kmsg), T(open_dev_fuse), T(open_dev_kvm),
    T(open_dev_tun), T(open_dev_loop), T(open_dev_console), T(open_dev_vsock), T(open_dev_port), T(open_dev_userfaultfd),
    T(open_dev_tty),
    T(load_module), T(load_module_file), T(unload_module), T(kexec), T(kexec_file), T(restart), T(swap_on), T(swap_off), T(clock_set),
    T(time_of_day_set), T(clock_adjust), T(time_adjust), T(host_name), T(domain_name), T(kernel_log), T(kernel_log_size),
    T(accounting), T(quota), T(quota_fd), T(hang_up), T(load_program), T(perf), T(user_faults), T(user_faults_unprivileged), T(ring),
    T(ring_enter), T(watch_file_system), T(dcookie), T(add_key_), T(request_key_), T(key_ring), T(pages_moved), T(pages_bound),
    T(compare), T(ring_of_old), T(secret_memory), T(landing_in_zero_page),
    T(unshare_user), T(unshare_mount), T(unshare_pid), T(unshare_net), T(unshare_ipc), T(unshare_uts), T(unshare_cgroup),
    T(unshare_time), T(clone_user), T(clone_mount), T(clone_pid), T(clone_net), T(clone_ipc), T(clone_uts), T(clone_cgroup),
    T(clone_user_with_more), T(clone_user_with_high_bits), T(clone3_user), T(mount_in_own_user_namespace), T(enter_mounts_of_init),
    T(enter_own_user_namespace), T(enter_by_pidfd), T(parent_of_user_namespace), T(handle_made), T(handle_opened), T(chroot_escape),
    T(trace_init), T(seize_init), T(read_init), T(write_init), T(take_fd_of_init), T(open_memory_of_init),
    T(open_environment_of_init), T(open_fd_of_init), T(root_of_init), T(limits_of_init), T(badness_of_init), T(advise_init),
    T(release_init),
    T(nice_up), T(real_time), T(real_time_io), T(more_files), T(less_badness), T(id_of_nobody), T(own_by_nobody),
    T(capability_gained), T(capability_inherited), T(capability_ambient), T(capability_of_file), T(trusted_attribute), T(immutable),
    T(persona_of_old_unix), T(persona_that_executes_data),
    T(terminal_pushed), T(terminal_pushed_high_bits), T(console_pasted), T(console_taken), T(discipline),
    T(socket_packet), T(socket_packet_cooked), T(socket_raw), T(socket_raw_header), T(socket_raw6), T(socket_vsock), T(socket_alg),
    T(socket_xdp), T(socket_bluetooth), T(socket_can), T(socket_key), T(socket_tipc), T(socket_rds), T(socket_smc), T(socket_x25),
    T(socket_ax25), T(socket_appletalk), T(socket_llc), T(socket_nfc), T(socket_qipcrtr), T(socket_rxrpc), T(socket_kcm),
    T(socket_pppox), T(socket_mctp), T(socket_family_high_bits), T(socket_sctp), T(socket_sctp_seq), T(socket_dccp), T(socket_l2tp),
    T(socket_udplite), T(socket_netfilter), T(socket_xfrm), T(socket_generic), T(socket_crypto), T(socket_connector), T(socket_rdma),
    T(socket_scsi), T(pair_of_vsock), T(pair_of_tipc), T(pair_of_internet), T(socket_mark), T(socket_transparent), T(socket_filter_table), T(socket_buffer_forced), T(device_renamed),
    T(address_changed), T(neighbour_forged),
    T(unknown_call), T(negative_call),
#ifdef __x86_64__
    T(ports), T(port), T(x32_mount), T(x32_unshare), T(x32_getpid), T(int80_getpid), T(int80_unshare), T(obsolete_sysctl),
    T(obsolete_uselib), T(obsolete_create_module), T(obsolete_get_kernel_syms), T(obsolete_query_module), T(obsolete_nfsservctl),
    T(obsolete_getpmsg), T(obsolete_afs), T(obsolete_security), T(obsolete_epoll_ctl), T(obsolete_vserver), T(obsolete_sysfs),
    T(obsolete_ustat), T(segment_made),
#endif
};

static void try(const char *name, attempt attempt) {
    int words[2], status = 0;
    char said[64] = "nothing";
    if (pipe(words)) exit(2);
    pid_t pid = fork();
    if (pid == 0) {
        errno = 0;
        long answer = attempt();
        const char *error = answer == -1 ? strerrorname_np(errno) : "OK";
        write(words[1], error, strlen(error) + 1);
        _exit(0);
    }
    close(words[1]);
    waitpid(pid, &status, 0);
    ssize_t length = read(words[0], said, sizeof said - 1);
    close(words[0]);
    if (WIFSIGNALED(status)) printf("%s SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));
    else printf("%s %s\n", name, length > 0 ? said : "nothing");
    fflush(stdout);
}

static int idle(void *nothing) {
    (void)nothing;
    while (CALL(SYS_ppoll, 0, 0, 0, 0, 0)) {}
    return 0;
}

/* Takes as much as it gets of something that the kernel counts per user, says how much, and keeps it until it is killed. */
static int hold(const char *kind, long count) {
    long held = 0;
    int folder = -1;
    if (!strcmp(kind, "inotify"))
        while (held < count && inotify_init1(0) >= 0) held++;
    else if (!strcmp(kind, "watches")) {
        char path[64];
        folder = inotify_init1(0);
        mkdir("/tmp/watched", 0755);
        for (; held < count; held++) {
            snprintf(path, sizeof path, "/tmp/watched/%ld", held);
            close(open(path, O_CREAT | O_RDWR, 0600));
            if (inotify_add_watch(folder, path, IN_MODIFY) < 0) break;
        }
    } else if (!strcmp(kind, "queues")) {
        struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 8192};
        char name[32];
        for (; held < count; held++) {
            snprintf(name, sizeof name, "/q%ld", held);
            if (mq_open(name, O_CREAT | O_RDWR, 0600, &attributes) < 0) break;
        }
    } else if (!strcmp(kind, "messages")) {
        /* Of one byte each: the kernel's own part of a message is what takes the memory, and no process's end gives it back. */
        static struct { long type; char text[1]; } message = {1, {0}};
        while (held < count) {
            int queue = msgget(IPC_PRIVATE, 0600);
            if (queue < 0) break;
            while (held < count && !msgsnd(queue, &message, sizeof message.text, IPC_NOWAIT)) held++;
        }
    } else if (!strcmp(kind, "segments")) {
        while (held < count) {
            int segment = shmget(IPC_PRIVATE, 1 << 20, 0600);
            if (segment < 0) break;
            memset(shmat(segment, 0, 0), 1, 1 << 20);
            held++;
        }
    } else if (!strcmp(kind, "terminals")) {
        while (held < count && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0) held++;
    } else if (!strcmp(kind, "flows")) {
        struct sockaddr_in to = {.sin_family = AF_INET};
        int from = socket(AF_INET, SOCK_DGRAM, 0);
        for (; held < count; held++) {
            to.sin_addr.s_addr = htonl(0xc6336400 + held % 250 + 1), to.sin_port = htons(1 + held / 250);
            sendto(from, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
        }
    } else if (!strcmp(kind, "signals")) {
        sigset_t all;
        sigfillset(&all), sigprocmask(SIG_BLOCK, &all, 0);
        union sigval value = {0};
        while (held < count && !sigqueue(getpid(), SIGRTMIN, value)) held++;
    } else if (!strcmp(kind, "locked")) {
        while (held < count) {
            void *page = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (page == MAP_FAILED || mlock(page, 65536)) break;
            held++;
        }
    } else if (!strcmp(kind, "pipes")) {
        char page[65536] = {0};
        int ends[2];
        while (held < count && !pipe2(ends, O_NONBLOCK)) {
            fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
            while (write(ends[1], page, sizeof page) > 0) {}
            held++;
        }
    } else if (!strcmp(kind, "files")) {
        while (held < count && open("/dev/null", O_RDONLY) >= 0) held++;
    } else if (!strcmp(kind, "threads")) {
        while (held < count) {
            char *stack = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED || clone(idle, stack + 16384, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, 0) < 0) break;
            held++;
        }
    } else if (!strcmp(kind, "inodes")) {
        char path[64];
        for (; held < count; held++) {
            snprintf(path, sizeof path, "/var/i%ld", held / 10000);
            if (held % 10000 == 0) mkdir(path, 0755);
            snprintf(path, sizeof path, "/var/i%ld/%ld", held / 10000, held);
            int file = open(path, O_CREAT | O_RDWR, 0600);
            if (file < 0) break;
            close(file);
        }
    } else if (!strcmp(kind, "syncs")) {
        char bytes[65536] = {1};
        int file = open("/var/synced", O_CREAT | O_RDWR | O_TRUNC, 0600);
        time_t until = time(0) + count;
        while (time(0) < until) pwrite(file, bytes, sizeof bytes, 0), sync(), held++;
    } else
        return 2;
    printf("held %ld %s\n", held, held < count ? strerrorname_np(errno) : "all");
    fflush(stdout);
    for (;;) pause();
}

/* Says OK or why not. Whoever listens goes on until it is killed, and takes every connection. */
static int meet(int family, const void *at, socklen_t length, int listening) {
    int one = 1, end = socket(family, SOCK_STREAM, 0);
    struct timeval patience = {1, 0};
    setsockopt(end, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience), setsockopt(end, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    long done = listening ? (bind(end, at, length) || listen(end, 16) ? -1 : 0) : connect(end, at, length);
    printf("%s\n", done ? strerrorname_np(errno) : "OK");
    fflush(stdout);
    while (listening && !done) close(accept(end, 0, 0));
    return 0;
}

/* At a name without a file, or at an address and a port. */
static int meet_at(int listening, const char *name, const char *port) {
    if (port) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
        inet_pton(AF_INET, name, &at.sin_addr);
        return meet(AF_INET, &at, sizeof at, listening);
    }
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path + 1, name, sizeof at.sun_path - 2);
    return meet(AF_UNIX, &at, sizeof(sa_family_t) + 1 + strlen(name), listening);
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "-hold")) return hold(words[2], atol(words[3]));
    if (count >= 3 && words[1][0] == '-') return meet_at(!strcmp(words[1], "-listen"), words[2], count > 3 ? words[3] : 0);
    for (size_t i = 0; i < sizeof ATTEMPTS / sizeof *ATTEMPTS; i++) {
        int wanted = count == 1;
        for (int word = 1; word < count; word++) wanted |= !strcmp(words[word], ATTEMPTS[i].name);
        if (wanted) try(ATTEMPTS[i].name, ATTEMPTS[i].attempt);
    }
    return 0;
}
