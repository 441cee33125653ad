//! The runner's end of the zygote: asks for parked inits.

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::cgroup::{Cgroup, Entrance};
use super::channel;
use super::messages::{Become, Failed, Park, Parked, Settled};
use super::zygote::IDS_PER_SANDBOX;

/// Far above what making an init takes; a zygote that needs longer is replaced.
const PARK_DEADLINE: Duration = Duration::from_secs(10);
/// For an init to move into its root and exec.
const BECOME_DEADLINE: Duration = Duration::from_secs(10);

/// Makes inits, one at a time; starts the zygote, and another when it has died.
#[derive(Debug)]
pub(super) struct Maker {
    /// Program and arguments that end in [`super::zygote::run`] with its socket as standard input.
    command: Vec<OsString>,
    state_dir: PathBuf,
    uid_base: u32,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    socket: OwnedFd,
}

/// A first process in namespaces and control groups of its own that waits to be told which sandbox it is. It ends when this is
/// dropped.
#[derive(Debug)]
pub(super) struct ParkedInit {
    pub(super) slot: u16,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) user_namespace: OwnedFd,
    pub(super) network_namespace: OwnedFd,
    /// What root inside is outside.
    pub(super) root_id: u32,
    /// `None` until a cable is attached.
    pub(super) address: Option<Ipv4Addr>,
    pub(super) cgroup: Cgroup,
    pub(super) timings: ParkTimings,
    control: OwnedFd,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ParkTimings {
    pub(super) clone_us: u64,
    pub(super) cgroup_us: u64,
    pub(super) furnish_us: u64,
    pub(super) network_us: u64,
}

/// Why an init did not become its sandbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum BecomeError {
    #[error("{0}")]
    Image(String),
    #[error("{0}")]
    Host(String),
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Maker {
    pub(super) fn new(command: Vec<OsString>, state_dir: PathBuf, uid_base: u32) -> Maker {
        Maker { command, state_dir, uid_base, running: Mutex::new(None) }
    }

    /// Blocks for some milliseconds.
    pub(super) fn park(&self, slot: u16, cgroup: Cgroup, shared_memory_pages: u64) -> io::Result<ParkedInit> {
        let entrance = cgroup.entrance()?;
        let (fds, born_in_cgroup): (Vec<OwnedFd>, bool) = match entrance {
            Entrance::BornIn(dir) => (vec![dir], true),
            Entrance::Tasks(files) => (files.into_iter().map(OwnedFd::from).collect(), false),
        };
        let uid_base = self.uid_base + u32::from(slot) * IDS_PER_SANDBOX;
        let request = Park { slot, uid_base, shared_memory_pages, born_in_cgroup };
        let (parked, fds) = self.ask(&request, &fds)?;
        let pid = parked.outcome.map_err(io::Error::other)?;
        let Ok([pidfd, control]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(io::Error::other("the zygote sent no init"));
        };
        // A process's folder is about that process for as long as it lives, and it waits for us.
        let namespace = |name| std::fs::File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
        let (user_namespace, network_namespace) = (namespace("user")?, namespace("net")?);
        channel::set_receive_deadline(&control, PARK_DEADLINE)?;
        let (settled, _) = channel::receive::<Settled>(&control)?
            .ok_or_else(|| io::Error::other("an init ended before it had settled"))?;
        settled.outcome.map_err(io::Error::other)?;
        let timings = ParkTimings {
            clone_us: parked.clone_us,
            cgroup_us: settled.cgroup_us,
            furnish_us: settled.furnish_us,
            network_us: 0,
        };
        Ok(ParkedInit {
            slot,
            pid,
            pidfd,
            user_namespace,
            network_namespace,
            root_id: uid_base,
            address: None,
            cgroup,
            timings,
            control,
        })
    }

    fn ask(&self, request: &Park, fds: &[OwnedFd]) -> io::Result<(Parked, Vec<OwnedFd>)> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = Some(self.start()?);
        }
        let zygote = running.as_ref().expect("was just started");
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let answer = channel::send(&zygote.socket, request, &borrowed)
            .and_then(|()| channel::receive(&zygote.socket))
            .and_then(|answer| answer.ok_or_else(|| io::Error::other("the zygote has ended")));
        if answer.is_err() {
            // Whatever it was doing, its next answer would be to this question.
            *running = None;
        }
        answer
    }

    fn start(&self) -> io::Result<Running> {
        let (socket, theirs) = channel::pair()?;
        channel::set_receive_deadline(&socket, PARK_DEADLINE)?;
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::other("there is no zygote command"))?;
        let process = Command::new(program)
            .args(arguments)
            .arg(&self.state_dir)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .env_clear()
            .spawn()?;
        Ok(Running { process, socket })
    }
}

impl ParkedInit {
    /// Returns when the daemon has been exec'ed. The descriptors are those that [`Become`] lists.
    pub(super) fn become_sandbox(&self, wish: &Become, fds: [BorrowedFd<'_>; 6]) -> Result<(), BecomeError> {
        let host =
            |error: io::Error| BecomeError::Host(format!("cannot start a sandbox's first process: {error}"));
        channel::set_receive_deadline(&self.control, BECOME_DEADLINE).map_err(host)?;
        channel::send(&self.control, wish, &fds).map_err(host)?;
        match channel::receive::<Failed>(&self.control) {
            Ok(None) => Ok(()),
            Ok(Some((Failed { image: true, reason }, _))) => Err(BecomeError::Image(reason)),
            Ok(Some((Failed { image: false, reason }, _))) => Err(BecomeError::Host(reason)),
            Err(error) => Err(host(error)),
        }
    }
}
