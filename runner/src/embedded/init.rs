//! The first process of a sandbox, from its birth in new namespaces to the exec of the daemon. It trusts neither the image nor what an
//! earlier run has left in it: every path inside is opened beneath the root, and through no symlink.

mod furnish;
mod root;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Instant;

use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::messages::{Become, Failed, Park, Settle, Settled};
use super::seccomp::Filters;
use super::{capabilities, cgroup, channel, sys};
use furnish::Furniture;

/// Descriptors of the daemon beside its standard ones.
pub const CONFIG_FD: RawFd = 3;
pub const HELLO_FD: RawFd = 4;
/// While they are moved to their places, descriptors are kept from here on.
const SHELF: RawFd = 64;

/// Soft and hard limits of open files. Browsers and databases ask for more than the usual 1024.
const OPEN_FILES: (u64, u64) = (65_536, 524_288);

/// A step that failed, and whose fault it is.
pub(super) struct Fault {
    image: bool,
    reason: String,
}

pub(super) trait Step<T> {
    /// The host's fault unless it is said otherwise.
    fn step(self, what: &str) -> Result<T, Fault>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, what: &str) -> Result<T, Fault> {
        self.map_err(|error| Fault { image: false, reason: format!("cannot {what}: {error}") })
    }
}

impl Fault {
    pub(super) fn of_image(reason: String) -> Fault {
        Fault { image: true, reason }
    }
}

/// Does not return. `socket_of_zygote` is a number only: the descriptor is closed here.
pub(super) fn live(
    control: &OwnedFd,
    signal: &OwnedFd,
    socket_of_zygote: RawFd,
    groups: Vec<OwnedFd>,
    park: &Park,
    staging: &Path,
    filters: &Filters,
) -> ! {
    close(socket_of_zygote);
    let began = Instant::now();
    let entered = enter_groups(groups, park.born_in_cgroup);
    let cgroup_us = micros(began);
    let began = Instant::now();
    let furniture = entered.and_then(|()| settle_in(signal, park, staging));
    let outcome = furniture.as_ref().map(|_| ()).map_err(|fault| fault.reason.clone());
    let told = channel::send(control, &Settled { outcome, cgroup_us, furnish_us: micros(began) }, &[]);
    let (Ok(furniture), Ok(())) = (furniture, told) else { sys::exit_now(1) };
    // The runner has gone, or does not need us.
    let Ok(Some((become_it, fds))) = channel::receive::<Become>(control) else { sys::exit_now(0) };
    let Err(fault) = become_sandbox(&become_it, fds, furniture, staging, filters);
    let _ = channel::send(control, &Failed { image: fault.image, reason: fault.reason }, &[]);
    sys::exit_now(1)
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// First of all: nothing that this process does or becomes is outside of them.
fn enter_groups(groups: Vec<OwnedFd>, born_in_cgroup: bool) -> Result<(), Fault> {
    match born_in_cgroup {
        true => Ok(()),
        false => groups.into_iter().try_for_each(cgroup::enter).step("enter the control groups"),
    }
}

fn close(number: RawFd) {
    // Owned by the copy of the zygote's stack that this process will never return to.
    #[allow(unsafe_code)]
    // SAFETY: open, as the zygote's socket is; nothing of this process uses it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

/// Everything that does not depend on which sandbox this will be.
fn settle_in(signal: &OwnedFd, park: &Park, staging: &Path) -> Result<Furniture, Fault> {
    let Some((Settle {}, _)) = channel::receive(signal).step("hear from the zygote")? else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).step("hear from the zygote");
    };
    set_thread_groups(&[]).step("leave the host's groups")?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("become the sandbox's root group")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step("become the sandbox's root")?;
    rustix::process::setsid().step("start a session")?;
    sys::join_new_session_keyring().step("leave the host's keyring")?;
    // After the control groups were entered: they are the root that this process sees.
    sys::unshare(libc::CLONE_NEWCGROUP).step("make a cgroup namespace")?;
    furnish::furnish(staging, park.shared_memory_pages)
}

fn become_sandbox(
    wish: &Become,
    fds: Vec<OwnedFd>,
    furniture: Furniture,
    staging: &Path,
    filters: &Filters,
) -> Result<std::convert::Infallible, Fault> {
    let Ok([root, program_dir, etc, stderr, config, hello]) = <[OwnedFd; 6]>::try_from(fds) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).step("read the runner's descriptors");
    };
    rustix::system::sethostname(wish.hostname.as_bytes()).step("set the host name")?;
    root::move_in(root, program_dir, etc, furniture, staging, wish.shared_memory_bytes)?;

    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .step("open /dev/null")?;
    place([
        (null.try_clone().step("copy a descriptor")?, 0),
        (null, 1),
        (stderr, 2),
        (config, CONFIG_FD),
        (hello, HELLO_FD),
    ])?;
    sys::close_from_on_exec(HELLO_FD as u32 + 1).step("mark descriptors")?;

    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, no_core).step("forbid core dumps")?;
    // Only the host's root may raise it beyond what we were born with.
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(OPEN_FILES.1);
    let files = Rlimit { current: Some(hard.min(OPEN_FILES.0)), maximum: Some(hard) };
    setrlimit(Resource::Nofile, files).step("limit open files")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    let program = CString::new(wish.program.as_os_str().as_encoded_bytes()).step("name the daemon")?;
    let arguments = c_strings(&wish.arguments)?;
    let env = c_strings(&wish.env)?;
    // From here on the order matters: what each step needs is given up by a later one.
    capabilities::bound().step("bound capabilities")?;
    if wish.no_new_privileges {
        set_no_new_privs(true).step("forbid new privileges")?;
    }
    filters.install().step("install the seccomp filters")?;
    capabilities::shed().step("give capabilities up")?;
    if let Some(work_dir) = &wish.work_dir {
        // Within the root that was moved into, so a link leads nowhere else. An image may name a folder that it lacks.
        let _ = rustix::process::chdir(work_dir.as_str());
    }
    match nix::unistd::execve(&program, &arguments, &env) {
        Ok(never) => match never {},
        Err(errno) => Err(errno).step("exec the daemon"),
    }
}

fn c_strings(words: &[String]) -> Result<Vec<CString>, Fault> {
    words
        .iter()
        .map(|word| CString::new(word.as_str()))
        .collect::<Result<_, _>>()
        .step("pass a word with a zero byte")
}

/// First all away from the numbers that are wanted, then each to its own.
fn place<const N: usize>(fds: [(OwnedFd, RawFd); N]) -> Result<(), Fault> {
    let mut shelved = Vec::with_capacity(N);
    for (fd, at) in fds {
        let kept = rustix::io::fcntl_dupfd_cloexec(&fd, SHELF).step("copy a descriptor")?;
        shelved.push((kept, at));
    }
    for (fd, at) in shelved {
        sys::place_fd(fd.as_fd().as_raw_fd(), at).step("place a descriptor")?;
    }
    Ok(())
}
