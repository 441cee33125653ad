//! What happens in a child between fork and exec. Unsafe because nothing here may allocate, lock or panic.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::process::{Gid, Uid};

use crate::accounts::Account;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    None,
    /// Descriptor 0 becomes the controlling terminal.
    Controlling,
}

/// Everything the child needs, made before the fork.
pub struct Becoming {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    cwd: CString,
    terminal: Terminal,
    /// Open in this process until the fork, and never one of the standard three.
    kept: Option<RawFd>,
}

impl Becoming {
    pub fn new(account: &Account, cwd: CString, terminal: Terminal, kept: Option<RawFd>) -> Becoming {
        Becoming {
            uid: Uid::from_raw(account.uid),
            gid: Gid::from_raw(account.gid),
            groups: account.groups.iter().copied().map(Gid::from_raw).collect(),
            cwd,
            terminal,
            kept,
        }
    }
}

pub fn prepare(command: &mut Command, becoming: Becoming) {
    // SAFETY: the closure runs after fork in a copy of a process with several threads, so it must be async-signal-safe.
    // It makes raw system calls only (rustix's Linux backend; pthread_sigmask, which POSIX lists as safe), reads memory
    // that was allocated before the fork, builds errors from numbers, and neither allocates, locks nor panics.
    unsafe {
        command.pre_exec(move || become_user(&becoming));
    }
}

fn become_user(becoming: &Becoming) -> io::Result<()> {
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| io::Error::from_raw_os_error(errno as i32))?;
    reset_signals();
    rustix::process::setsid()?;
    if becoming.terminal == Terminal::Controlling {
        // SAFETY: descriptor 0 is the terminal, open until exec and beyond; nothing here closes it.
        rustix::process::ioctl_tiocsctty(unsafe { BorrowedFd::borrow_raw(0) })?;
    }
    raise_oom_score();
    close_the_rest_on_exec();
    if let Some(kept) = becoming.kept {
        // SAFETY: whoever asked for the process borrowed the descriptor to us until it has been forked, so the copy of it is open here.
        rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(kept) }, FdFlags::empty())?;
    }
    own_pipes(becoming);
    rustix::thread::set_thread_groups(&becoming.groups)?;
    rustix::thread::set_thread_res_gid(becoming.gid, becoming.gid, becoming.gid)?;
    rustix::thread::set_thread_res_uid(becoming.uid, becoming.uid, becoming.uid)?;
    // As the user: a directory that the user may not enter is not entered.
    rustix::process::chdir(becoming.cwd.as_c_str())?;
    Ok(())
}

/// A signal that whoever started us ignores (a shell does so with what it runs in the background, nohup too) would be ignored by all
/// programs in the sandbox: no Ctrl-C would reach them, and no hang-up.
fn reset_signals() {
    const LAST: nix::libc::c_int = 64;
    for signal in 1..=LAST {
        // SAFETY: sets no handler but the default one; a number that is no signal, or cannot be set, is refused and changes nothing.
        unsafe { nix::libc::signal(signal, nix::libc::SIG_DFL) };
    }
}

/// What the daemon starts is killed for memory before the daemon is, also where the daemon cannot lower its own score. Raising one's
/// score is always allowed.
fn raise_oom_score() {
    if let Ok(file) =
        rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    {
        let _ = rustix::io::write(&file, b"500");
    }
}

/// A pipe is its maker's, and only who may open it can open `/dev/stdout`. Nothing else is touched: a device has one owner for all.
fn own_pipes(becoming: &Becoming) {
    for standard in 0..=2 {
        // SAFETY: the standard three were just set up for this child and stay open until exec and beyond.
        let fd = unsafe { BorrowedFd::borrow_raw(standard) };
        let is_pipe =
            rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe {
            let _ = rustix::fs::fchown(fd, Some(becoming.uid), Some(becoming.gid));
        }
    }
}

/// All our descriptors are close-on-exec already; this holds also for one that somebody forgets.
fn close_the_rest_on_exec() {
    const FIRST: nix::libc::c_uint = 3;
    // SAFETY: takes numbers only, and marks descriptors of this process, which is about to exec.
    // An old kernel answers ENOSYS, and the first sentence above still holds.
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            FIRST,
            nix::libc::c_uint::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}
