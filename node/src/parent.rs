//! A process that is to end with the one that started it, as those of `atoll dev` do, also when that one is killed.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

/// Whether it was the parent's end that stopped us.
#[derive(Debug, Clone, Default)]
pub struct Parent {
    ended: CancellationToken,
}

impl Parent {
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

/// Cancels `stop` when the process `pid`, which must be our parent, has ended. Without a pid nothing is followed.
pub fn follow(pid: Option<i32>, stop: &CancellationToken) -> Result<Parent> {
    let parent = Parent::default();
    let Some(pid) = pid else { return Ok(parent) };
    let process = open(pid)?;
    let (ended, stop) = (parent.ended.clone(), stop.clone());
    // Lives as long as the process: there is nothing to join it before.
    tokio::spawn(async move {
        // Deprecated for types that may close or swap their descriptor while it is registered; this one cannot.
        #[expect(deprecated)]
        let process = AsyncFd::with_interest(process, Interest::READABLE);
        let watched = match &process {
            Ok(process) => process.readable().await.map(|_| ()),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        };
        match watched {
            Ok(()) => {
                tracing::warn!(pid, "the process that started this one has ended");
                ended.cancel();
                stop.cancel();
            }
            Err(error) => tracing::warn!(%error, pid, "cannot follow the process that started this one"),
        }
    });
    Ok(parent)
}

fn open(pid: i32) -> Result<OwnedFd> {
    let parent = Pid::from_raw(pid).context("--parent must be a process id")?;
    let process = pidfd_open(parent, PidfdFlags::NONBLOCK).context("open the parent process")?;
    // Looked at afterwards: the number may have become another's before.
    ensure!(getppid() == Some(parent), "process {pid} is not this one's parent (any more)");
    Ok(process)
}
