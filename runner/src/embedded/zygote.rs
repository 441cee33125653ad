//! A small process with one thread that makes inits. The runner has many threads, and of such a process a copy cannot go on safely.
//!
//! ```text
//! runner ─Park─▶ zygote ──clone3──▶ init: child of the runner (CLONE_PARENT), pid 1 of its namespaces
//!                   │ maps its ids ─Settle─▶        enters its control groups, furnishes
//!        ◀─Parked───┘ pidfd, control socket                          ─Settled─▶ runner … ─Become─▶ execs the daemon
//! ```
//! It lives in a mount namespace of its own, so that inits do not hold mounts of sandboxes that have gone.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlinkat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{Signal, Uid};
use rustix::thread::{capabilities, set_capabilities, set_thread_res_uid};

use super::channel;
use super::init;
use super::messages::{Park, Parked, Settle};
use super::seccomp::Filters;
use super::sys::{self, Cloned};

/// The descriptor at which the zygote finds its socket: standard input.
const SOCKET_FD: i32 = 0;
/// Ids that each sandbox has to itself, 0 to 65535 inside.
pub const IDS_PER_SANDBOX: u32 = 65_536;

/// The device nodes of every sandbox: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The whole life of the process: until the runner closes its end. `state_dir`: the runtime's, absolute.
pub fn run(state_dir: &Path) -> io::Result<()> {
    let socket = sys::inherited_fd(SOCKET_FD)?;
    be_ordinary()?;
    isolate(state_dir, &state_dir.join("staging"))?;
    // Inits find it by their working directory, in their own mount namespace too: no path leads them there, as only the
    // host's root may enter the state folder.
    std::env::set_current_dir(state_dir.join("staging"))?;
    let staging = Path::new(".");
    let filters = Filters::compile()?;
    while let Some((park, fds)) = channel::receive::<Park>(&socket)? {
        let mut parked = Parked { slot: park.slot, outcome: Err(String::new()), clone_us: 0 };
        match make_init(&park, fds, &socket, staging, &filters, &mut parked) {
            Ok((pid, pidfd, control)) => {
                parked.outcome = Ok(pid);
                channel::send(&socket, &parked, &[pidfd.as_fd(), control.as_fd()])?;
            }
            Err(error) => {
                parked.outcome = Err(error.to_string());
                channel::send(&socket, &parked, &[])?;
            }
        }
    }
    Ok(())
}

/// A service manager may have given the runner a better place before the scheduler and the killer of processes that take
/// too much memory. Sandboxes inherit neither.
fn be_ordinary() -> io::Result<()> {
    rustix::process::setpriority_process(None, 0)?;
    fs::write("/proc/self/oom_score_adj", "0")
}

/// A mount namespace without the runtime's own mounts, and a folder from which inits take what all have in common.
fn isolate(state_dir: &Path, staging: &Path) -> io::Result<()> {
    sys::unshare(libc::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|place| Path::new(place) != state_dir && Path::new(place).starts_with(state_dir));
    for place in below {
        // One that lay below another has gone with it.
        let _ = unmount(place, UnmountFlags::DETACH);
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("atoll-staging", staging, "tmpfs", flags, Some(c"size=64k,mode=755"))?;
    for dir in ["root", "proc", "sys", "dev", "devices", "empty"] {
        fs::create_dir(staging.join(dir))?;
    }
    let devices = &staging.join("devices");
    mount("atoll-devices", devices, "tmpfs", flags, Some(c"size=64k,mode=755"))?;
    for (name, major, minor) in DEVICES {
        // The mode is subject to our umask, so it is set again.
        let path = devices.join(name);
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666))?;
    }
    for (name, target) in DEVICE_LINKS {
        symlinkat(target, CWD, devices.join(name))?;
    }
    for dir in ["pts", "shm", "mqueue"] {
        fs::create_dir(devices.join(dir))?;
    }
    mount_remount(devices, MountFlags::RDONLY | flags, "")?;
    mount_remount(staging, MountFlags::RDONLY | flags, "")?;
    Ok(())
}

fn make_init(
    park: &Park,
    fds: Vec<OwnedFd>,
    socket: &OwnedFd,
    staging: &Path,
    filters: &Filters,
    timings: &mut Parked,
) -> io::Result<(i32, OwnedFd, OwnedFd)> {
    let began = Instant::now();
    let (control, control_of_init) = channel::pair()?;
    let (signal, signal_of_init) = channel::pair()?;
    let born_in: Option<BorrowedFd<'_>> =
        if park.born_in_cgroup { fds.first().map(AsFd::as_fd) } else { None };
    let acting = ActingAs::enter(park.uid_base)?;
    // SAFETY: this process never starts a thread.
    #[allow(unsafe_code)]
    let cloned = unsafe { sys::clone_into_namespaces(born_in)? };
    let (pid, pidfd) = match cloned {
        Cloned::Parent { pid, pidfd } => {
            drop(acting);
            (pid, pidfd)
        }
        Cloned::Child => {
            // Nothing of the zygote's stays open, and no return from here reaches its loop.
            drop((control, signal));
            let socket_of_zygote = rustix::fd::AsRawFd::as_raw_fd(socket);
            init::live(&control_of_init, &signal_of_init, socket_of_zygote, fds, park, staging, filters)
        }
    };
    drop((control_of_init, signal_of_init, fds));
    timings.clone_us = micros(began);
    let settled = (|| {
        map_ids(pid.as_raw_nonzero().get(), park.uid_base)?;
        channel::send(&signal, &Settle {}, &[])
    })();
    if let Err(error) = settled {
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        return Err(error);
    }
    Ok((pid.as_raw_nonzero().get(), pidfd, control))
}

/// Whoever makes a user namespace owns it, and what the kernel counts per user (inotify instances, pending signals, message queues,
/// locked memory) it counts for the owner too. Were that the host's root, one sandbox could use up what all sandboxes and the host's own
/// services have together. So each sandbox's namespace is made by the id that is root in it; the real id stays, and the rights.
struct ActingAs;

impl ActingAs {
    fn enter(id: u32) -> io::Result<ActingAs> {
        let rights = capabilities(None)?;
        set_thread_res_uid(Uid::ROOT, Uid::from_raw(id), Uid::ROOT)?;
        let acting = ActingAs;
        // The kernel takes the effective ones with the id.
        set_capabilities(None, rights)?;
        Ok(acting)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).expect("a process may return to its real id");
    }
}

fn map_ids(pid: i32, base: u32) -> io::Result<()> {
    let map = format!("0 {base} {IDS_PER_SANDBOX}\n");
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map)?;
    }
    Ok(())
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
