//! The system calls of the embedded runtime that no safe wrapper covers. Nothing here decides anything.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_ulong};
use rustix::process::Pid;

/// What [`clone_into_namespaces`] returned in.
pub enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// A child in new user, mount, pid, ipc, uts and network namespaces, whose parent is *our* parent (`CLONE_PARENT`), so
/// that the process which supervises sandboxes can wait for it. `cgroup` (version 2): born there.
///
/// # Safety
/// The process has one thread: the child goes on in a copy of it and may allocate and lock as usual only for that reason.
pub unsafe fn clone_into_namespaces(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: c_int = -1;
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET;
    let flags = (namespaces | libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64;
    // libc's own constant has too few bits.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    // With CLONE_PARENT the signal that tells of the end is the caller's own, so it must be 0 here.
    let args = libc::clone_args {
        flags: flags | into_cgroup,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is whole and outlives the call; no stack is given, so the child runs on a copy of ours, as after
    // fork; the caller vouches for there being one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(Cloned::Child),
        1.. => {
            let pid = Pid::from_raw(pid as i32).expect("a positive number");
            // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
            Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The calling thread, the only one of its process, gets namespaces of its own; descriptors stay shared.
pub fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: takes a number. Only CLONE_FILES could separate descriptors that other threads rely on.
    let done = unsafe { libc::unshare(namespaces & !libc::CLONE_FILES) };
    checked(c_long::from(done))
}

/// Ends this process without running anything that the parent registered.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Attributes of a detached mount: read-only, nosuid, nodev, noexec as `MOUNT_ATTR_*`; shifted by a user namespace.
pub fn mount_setattr(
    mount: impl AsFd,
    set: u64,
    user_namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set | if user_namespace.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attributes` is whole; both outlive the call, which only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    checked(done)
}

/// Installs a compiled filter on the calling thread, the only one. Needs no_new_privs, or CAP_SYS_ADMIN in its user
/// namespace. What is installed last is asked first.
pub fn install_seccomp(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::other("the filter is too long"))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `filter` points to `len` instructions (both crates declare the kernel's struct sock_filter, repr(C));
    // the kernel copies them and does not write.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    checked(done)
}

/// Leaves the host's session keyring behind.
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) };
    checked(done.min(0))
}

/// Gives a descriptor the lowest numbers from `at` on, without close-on-exec. What was at `at` is closed.
pub fn place_fd(fd: RawFd, at: RawFd) -> io::Result<()> {
    // SAFETY: numbers only. The caller is a process that is about to exec and names numbers that it uses itself.
    let placed = unsafe { libc::dup2(fd, at) };
    checked(c_long::from(placed.min(0)))
}

/// Marks every descriptor from `first` on to be closed by exec.
pub fn close_from_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: numbers only; marks descriptors of this process, which is about to exec.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    checked(done)
}

/// Descriptors that a parent left to this process, by number. Each may be taken once.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks whether the number is open, and reads flags.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, as just seen; by its contract the caller is the first and only one to take it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: as above.
    checked(c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.min(0)))?;
    Ok(fd)
}

/// The first free loop device, made if there is none.
pub fn loop_get_free(control: impl AsFd) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;
    // SAFETY: takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Binds a file to a loop device that goes by itself when its last user has gone. `WouldBlock`-like races (somebody
/// took the device meanwhile) are `EBUSY`.
pub fn loop_configure(device: impl AsFd, file: impl AsFd, direct_io: bool) -> io::Result<()> {
    const LOOP_CONFIGURE: c_ulong = 0x4C0A;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    #[repr(C)]
    struct LoopInfo64 {
        device: u64,
        inode: u64,
        rdevice: u64,
        offset: u64,
        size_limit: u64,
        number: u32,
        encrypt_type: u32,
        encrypt_key_size: u32,
        flags: u32,
        file_name: [u8; 64],
        crypt_name: [u8; 64],
        encrypt_key: [u8; 32],
        init: [u64; 2],
    }
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        info: LoopInfo64,
        reserved: [u64; 8],
    }
    // SAFETY: every field is a number or an array of numbers, for which zero is a value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_fd().as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR | if direct_io { LO_FLAGS_DIRECT_IO } else { 0 };
    // SAFETY: `config` has the kernel's layout (linux/loop.h) and outlives the call, which only reads it.
    let done = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    checked(c_long::from(done))
}

fn checked(answer: c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
