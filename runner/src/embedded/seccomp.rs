//! Which system calls a sandbox may make. What is not named does not exist (ENOSYS), so that programs fall back as on an
//! older kernel; what is named as forbidden is refused (EPERM), as an unprivileged user would be.

use std::collections::BTreeMap;
use std::io;

use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::sys;

/// In the order of their installation: of two refusals the kernel reports the later filter's.
pub struct Filters {
    allow: BpfProgram,
    forbid: BpfProgram,
}

impl Filters {
    /// Some milliseconds; once per process.
    pub fn compile() -> io::Result<Filters> {
        Ok(Filters {
            allow: compile(allowed()?, SeccompAction::Errno(ENOSYS as u32), SeccompAction::Allow)?,
            forbid: compile(forbidden()?, SeccompAction::Allow, SeccompAction::Errno(EPERM as u32))?,
        })
    }

    /// On the calling thread, the only one. Before CAP_SYS_ADMIN of its user namespace is given up.
    pub fn install(&self) -> io::Result<()> {
        sys::install_seccomp(&self.allow)?;
        sys::install_seccomp(&self.forbid)
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, matching, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

fn argument(index: u8, op: Op, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(index, Len::Dword, op, value).map_err(io::Error::other)
}

/// Matches when all conditions hold.
fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

/// New namespaces are the way to most of the kernel's privileged code.
const NEW_NAMESPACES: u64 = (CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET) as u64;
const INTERNET_PROTOCOLS: [c_int; 6] =
    [0, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6, IPPROTO_MPTCP];
/// Routes and sockets of its own network namespace, what `sudo` logs to, and what browsers hear of devices by.
const NETLINK_PROTOCOLS: [c_int; 4] =
    [NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_AUDIT, NETLINK_KOBJECT_UEVENT];
/// Families, and of each the protocols; none named means all. The others are seldom used and have been the way into many kernels.
const SOCKETS: [(c_int, &[c_int]); 4] = [
    (AF_UNIX, &[]),
    (AF_INET, &INTERNET_PROTOCOLS),
    (AF_INET6, &INTERNET_PROTOCOLS),
    (AF_NETLINK, &NETLINK_PROTOCOLS),
];
/// Linux, 32-bit `uname`, a version before 3.0, the question alone, and a debugger's wish for fixed addresses.
const PERSONALITIES: [u64; 6] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff, 0x4_0000];
/// Pushes characters into somebody's terminal.
const TIOCSTI_REQUEST: u64 = 0x5412;
/// As TIOCSTI, on a virtual console.
const TIOCLINUX_REQUEST: u64 = 0x541C;

fn allowed() -> io::Result<Rules> {
    let mut rules: Rules = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend(ALLOWED_X86_64.iter().map(|number| (*number, Vec::new())));
    // clone3 hides its flags in memory, where no filter can look: ENOSYS, and the C library takes clone.
    rules.insert(SYS_clone, vec![rule(vec![argument(0, Op::MaskedEq(NEW_NAMESPACES), 0)?])?]);
    let mut sockets = Vec::new();
    for (family, protocols) in SOCKETS {
        if protocols.is_empty() {
            sockets.push(rule(vec![argument(0, Op::Eq, family as u64)?])?);
        }
        for protocol in protocols {
            sockets.push(rule(vec![
                argument(0, Op::Eq, family as u64)?,
                argument(2, Op::Eq, *protocol as u64)?,
            ])?);
        }
    }
    rules.insert(SYS_socket, sockets);
    // It makes sockets of any family before it finds that they come in no pairs.
    rules.insert(SYS_socketpair, vec![rule(vec![argument(0, Op::Eq, AF_UNIX as u64)?])?]);
    let persona = |persona: &u64| rule(vec![argument(0, Op::Eq, *persona)?]);
    rules.insert(SYS_personality, PERSONALITIES.iter().map(persona).collect::<io::Result<_>>()?);
    Ok(rules)
}

fn forbidden() -> io::Result<Rules> {
    let mut rules: Rules = FORBIDDEN.iter().map(|number| (*number, Vec::new())).collect();
    let request = |request| rule(vec![argument(1, Op::Eq, request)?]);
    rules.insert(SYS_ioctl, vec![request(TIOCSTI_REQUEST)?, request(TIOCLINUX_REQUEST)?]);
    let mut namespaces = Vec::new();
    for bit in (0..u32::BITS).map(|bit| 1u64 << bit).filter(|bit| NEW_NAMESPACES & bit != 0) {
        namespaces.push(rule(vec![argument(0, Op::MaskedEq(bit), bit)?])?);
    }
    rules.insert(SYS_clone, namespaces);
    let other_family = SOCKETS.iter().map(|(family, _)| argument(0, Op::Ne, *family as u64));
    let mut sockets = vec![rule(other_family.collect::<io::Result<_>>()?)?];
    for (family, protocols) in SOCKETS.iter().filter(|(_, protocols)| !protocols.is_empty()) {
        let mut conditions = vec![argument(0, Op::Eq, *family as u64)?];
        for protocol in *protocols {
            conditions.push(argument(2, Op::Ne, *protocol as u64)?);
        }
        sockets.push(rule(conditions)?);
    }
    rules.insert(SYS_socket, sockets);
    rules.insert(SYS_socketpair, vec![rule(vec![argument(0, Op::Ne, AF_UNIX as u64)?])?]);
    let other_persona = PERSONALITIES.iter().map(|persona| argument(0, Op::Ne, *persona));
    rules.insert(SYS_personality, vec![rule(other_persona.collect::<io::Result<_>>()?)?]);
    Ok(rules)
}

/// Known to every program as privileged, so they are answered EPERM and not ENOSYS.
const FORBIDDEN: &[i64] = &[
    SYS_acct,
    SYS_add_key,
    SYS_adjtimex,
    SYS_bpf,
    SYS_clock_adjtime,
    SYS_clock_settime,
    SYS_delete_module,
    SYS_fanotify_init,
    SYS_finit_module,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_fspick,
    SYS_init_module,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_kcmp,
    SYS_kexec_file_load,
    SYS_kexec_load,
    SYS_keyctl,
    SYS_lookup_dcookie,
    SYS_mbind,
    SYS_migrate_pages,
    SYS_mount,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_move_pages,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    SYS_open_tree,
    SYS_perf_event_open,
    SYS_pivot_root,
    SYS_quotactl,
    SYS_quotactl_fd,
    SYS_reboot,
    SYS_request_key,
    SYS_set_mempolicy,
    SYS_setdomainname,
    SYS_sethostname,
    SYS_setns,
    SYS_settimeofday,
    SYS_swapoff,
    SYS_swapon,
    SYS_syslog,
    SYS_umount2,
    SYS_unshare,
    SYS_userfaultfd,
    SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    SYS_iopl,
];

/// What ordinary programs, compilers, databases, browsers and debuggers use. Left out though some do: io_setup, whose rings the kernel
/// counts for the whole host, so that one sandbox could take all; ustat, which tells of any file system of the host; modify_ldt.
const ALLOWED: &[i64] = &[
    SYS_accept,
    SYS_accept4,
    SYS_bind,
    SYS_brk,
    SYS_capget,
    SYS_capset,
    SYS_chdir,
    SYS_chroot,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_close_range,
    SYS_connect,
    SYS_copy_file_range,
    SYS_dup,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_execve,
    SYS_execveat,
    SYS_exit,
    SYS_exit_group,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fadvise64,
    SYS_fallocate,
    SYS_fanotify_mark,
    SYS_fchdir,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_futex,
    SYS_futex_waitv,
    SYS_get_mempolicy,
    SYS_get_robust_list,
    SYS_getcpu,
    SYS_getcwd,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getgroups,
    SYS_getitimer,
    SYS_getpeername,
    SYS_getpgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getpriority,
    SYS_getrandom,
    SYS_getresgid,
    SYS_getresuid,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_getsid,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_getuid,
    SYS_getxattr,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_inotify_rm_watch,
    SYS_ioctl,
    SYS_ioprio_get,
    SYS_ioprio_set,
    SYS_kill,
    SYS_landlock_add_rule,
    SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self,
    SYS_lgetxattr,
    SYS_linkat,
    SYS_listen,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_lremovexattr,
    SYS_lseek,
    SYS_lsetxattr,
    SYS_madvise,
    SYS_membarrier,
    SYS_memfd_create,
    SYS_mincore,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_mlock,
    SYS_mlock2,
    SYS_mlockall,
    SYS_mmap,
    SYS_mprotect,
    SYS_mq_getsetattr,
    SYS_mq_notify,
    SYS_mq_open,
    SYS_mq_timedreceive,
    SYS_mq_timedsend,
    SYS_mq_unlink,
    SYS_mremap,
    SYS_msgctl,
    SYS_msgget,
    SYS_msgrcv,
    SYS_msgsnd,
    SYS_msync,
    SYS_munlock,
    SYS_munlockall,
    SYS_munmap,
    SYS_nanosleep,
    SYS_newfstatat,
    SYS_openat,
    SYS_openat2,
    SYS_pidfd_getfd,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_pipe2,
    SYS_pkey_alloc,
    SYS_pkey_free,
    SYS_pkey_mprotect,
    SYS_ppoll,
    SYS_prctl,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_prlimit64,
    SYS_process_madvise,
    SYS_process_mrelease,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pselect6,
    SYS_ptrace,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_read,
    SYS_readahead,
    SYS_readlinkat,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_remap_file_pages,
    SYS_removexattr,
    SYS_renameat,
    SYS_renameat2,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigpending,
    SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo,
    SYS_rt_sigreturn,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_rt_tgsigqueueinfo,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_sched_getaffinity,
    SYS_sched_getattr,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_rr_get_interval,
    SYS_sched_setaffinity,
    SYS_sched_setattr,
    SYS_sched_setparam,
    SYS_sched_setscheduler,
    SYS_sched_yield,
    SYS_seccomp,
    SYS_semctl,
    SYS_semget,
    SYS_semop,
    SYS_semtimedop,
    SYS_sendfile,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setgid,
    SYS_setgroups,
    SYS_setitimer,
    SYS_setpgid,
    SYS_setpriority,
    SYS_setregid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setreuid,
    SYS_setrlimit,
    SYS_setsid,
    SYS_setsockopt,
    SYS_setuid,
    SYS_setxattr,
    SYS_shmat,
    SYS_shmctl,
    SYS_shmdt,
    SYS_shmget,
    SYS_shutdown,
    SYS_sigaltstack,
    SYS_signalfd4,
    SYS_splice,
    SYS_statfs,
    SYS_statx,
    SYS_symlinkat,
    SYS_sync,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_sysinfo,
    SYS_tee,
    SYS_tgkill,
    SYS_timer_create,
    SYS_timer_delete,
    SYS_timer_getoverrun,
    SYS_timer_gettime,
    SYS_timer_settime,
    SYS_timerfd_create,
    SYS_timerfd_gettime,
    SYS_timerfd_settime,
    SYS_times,
    SYS_tkill,
    SYS_truncate,
    SYS_umask,
    SYS_uname,
    SYS_unlinkat,
    SYS_utimensat,
    SYS_vmsplice,
    SYS_wait4,
    SYS_waitid,
    SYS_write,
    SYS_writev,
];

#[cfg(target_arch = "x86_64")]
const ALLOWED_X86_64: &[i64] = &[
    SYS_access,
    SYS_alarm,
    SYS_arch_prctl,
    SYS_chmod,
    SYS_chown,
    SYS_creat,
    SYS_dup2,
    SYS_epoll_create,
    SYS_epoll_wait,
    SYS_eventfd,
    SYS_fork,
    SYS_futimesat,
    SYS_getdents,
    SYS_getpgrp,
    SYS_inotify_init,
    SYS_lchown,
    SYS_link,
    SYS_lstat,
    SYS_mkdir,
    SYS_mknod,
    SYS_open,
    SYS_pause,
    SYS_pipe,
    SYS_poll,
    SYS_readlink,
    SYS_rename,
    SYS_rmdir,
    SYS_select,
    SYS_signalfd,
    SYS_stat,
    SYS_symlink,
    SYS_time,
    SYS_unlink,
    SYS_utime,
    SYS_utimes,
    SYS_vfork,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_no_call_is_both_allowed_and_forbidden() {
        Filters::compile().unwrap();

        let both: Vec<_> = FORBIDDEN.iter().filter(|number| ALLOWED.contains(number)).collect();
        assert_eq!(both, Vec::<&i64>::new());
    }
}
