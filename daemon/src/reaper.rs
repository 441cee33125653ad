//! The only place that waits for processes: our children and every orphan of the sandbox.
//!
//! One rule makes it right without peeking at pids: the daemon's runtime has a single thread, and forking, [`Reaper::adopt`] and
//! the reap loop all run on it. Between a fork and its `adopt` there is no await, so no exit can be reaped before
//! somebody waits for it; and a pid that is still adopted has not been reaped, so it can't belong to anyone else.
//! Nothing else in this process may call `wait` (tokio's and std's `Child` are not used to wait).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::processes;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// As a shell says it: 128 + n for signal n.
    pub fn shell_code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(number) => 128 + number,
        }
    }
}

#[derive(Clone, Default)]
pub struct Reaper {
    adopted: Arc<Mutex<HashMap<i32, watch::Sender<Option<Exit>>>>>,
}

/// Someone's interest in one process.
#[derive(Debug, Clone)]
pub struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    pub async fn exited(&mut self) -> Exit {
        match self.0.wait_for(Option::is_some).await {
            Ok(exit) => exit.expect("waited for Some"),
            // The reaper is gone, so the daemon is ending.
            Err(_) => Exit::Signal(Signal::KILL.as_raw()),
        }
    }

    pub fn now(&self) -> Option<Exit> {
        *self.0.borrow()
    }
}

impl Reaper {
    /// To be called right after the fork, see the module's rule.
    pub fn adopt(&self, pid: Pid) -> ExitWatch {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(pid.as_raw_nonzero().get(), sender);
        ExitWatch(receiver)
    }

    /// To the process and the group it leads; nothing happens when it has been reaped already.
    pub fn signal_group(&self, leader: Pid, signal: Signal) {
        if self.lock().contains_key(&leader.as_raw_nonzero().get()) {
            // The only failure left is ESRCH, for a zombie without living group members.
            let _ = rustix::process::kill_process_group(leader, signal);
        }
    }

    /// To everything that still belongs to the session (setsid) which `leader` began, also after its own end: a session's number
    /// is not given to a new process while members live.
    pub fn signal_session(&self, leader: Pid, signal: Signal) {
        for pid in processes::of_session(leader) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Runs for the daemon's life. `SIGCHLD` coalesces, so each one means "look until there is nothing".
    pub async fn run(self) -> std::io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap(&self) {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "wait for children");
                    return;
                }
            };
            match self.lock().remove(&pid.as_raw()) {
                // Nobody may be interested any more.
                Some(waiting) => drop(waiting.send(Some(exit))),
                None => tracing::trace!(pid = pid.as_raw(), ?exit, "orphan reaped"),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, watch::Sender<Option<Exit>>>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
