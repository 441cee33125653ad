//! A sandbox that runs: its first process, and what it holds on this host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::cgroup::Cgroup;
use super::record::{Run, process_started_at};
use crate::docker::namespace::Live as Inside;
use crate::runtime::Exit;

pub(super) struct Live {
    pub(super) run: Run,
    pub(super) cgroup: Cgroup,
    /// Its first process and its network namespace.
    pub(super) inside: Arc<Inside>,
    pidfd: OwnedFd,
    /// `Some` when it has ended and its record says so.
    pub(super) ended: watch::Sender<Option<Exit>>,
}

impl Live {
    pub(super) fn new(
        run: Run,
        pidfd: OwnedFd,
        cgroup: Cgroup,
        network_namespace: OwnedFd,
    ) -> io::Result<Live> {
        let inside = Arc::new(Inside::new(pidfd.try_clone()?, network_namespace));
        Ok(Live { run, cgroup, inside, pidfd, ended: watch::channel(None).0 })
    }

    /// Of a run that another process of the runtime began; `None` when it has ended.
    pub(super) fn adopt(run: Run, cgroup: Cgroup) -> io::Result<Option<Live>> {
        let Some(pid) = Pid::from_raw(run.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let opened = std::fs::File::open(format!("/proc/{}/ns/net", run.pid));
        // Asked after the descriptors were opened: they are this process's, and not a later one's with its number.
        match process_started_at(run.pid) {
            Ok(started_at) if started_at == run.started_at => {
                Ok(Some(Live::new(run, pidfd, cgroup, opened?.into())?))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Lasts until the first process has ended, and with it all others; reaps it.
    pub(super) async fn process_end(&self) -> io::Result<Exit> {
        // Deprecated for types that may close or swap their descriptor while it is registered; this one cannot.
        #[expect(deprecated)]
        let process = AsyncFd::with_interest(self.pidfd.try_clone()?, Interest::READABLE)?;
        let _ = process.readable().await?;
        let code =
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => status
                    .exit_status()
                    .map(i64::from)
                    .or_else(|| status.terminating_signal().map(|signal| 128 + i64::from(signal))),
                // Not our child: an adopted one.
                Ok(None) | Err(_) => None,
            };
        let killed = code.is_none_or(|code| code == 128 + i64::from(Signal::KILL.as_raw()));
        let out_of_memory = killed && self.cgroup.oom_kills().unwrap_or(0) > 0;
        Ok(Exit { code, out_of_memory })
    }

    /// `false` when it has not ended in time.
    pub(super) async fn ended_within(&self, deadline: Duration) -> bool {
        let mut ended = self.ended.subscribe();
        tokio::time::timeout(deadline, ended.wait_for(Option::is_some)).await.is_ok()
    }
}
