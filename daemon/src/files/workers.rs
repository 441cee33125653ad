//! The few threads that touch files for callers. Their file-system credentials are the user's, so neither a symlink nor a race
//! reaches what the user could not; the daemon's other threads keep root.
//!
//! Only the fs ids change (setfsuid, setfsgid), with the groups. The kernel then takes the file-related capabilities from the
//! thread. The real and saved ids stay root's, without which the user could signal, or trace, a thread of this process.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{setfsgid, setfsuid};
use rustix::thread::set_thread_groups;
use tokio::sync::{mpsc, oneshot};

use crate::accounts::Account;

const WORKERS: usize = 3;
const WAITING_MAX: usize = 64;
const STACK_BYTES: usize = 256 * 1024;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Clone)]
pub struct Workers {
    jobs: mpsc::Sender<Job>,
}

impl Workers {
    pub fn start(account: &Account) -> io::Result<Workers> {
        let (jobs, waiting) = mpsc::channel::<Job>(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..WORKERS {
            let (waiting, account) = (waiting.clone(), account.clone());
            let (ready, started) = std::sync::mpsc::channel();
            std::thread::Builder::new().name(format!("files-{number}")).stack_size(STACK_BYTES).spawn(
                move || {
                    let acting = act_as(&account);
                    let is_user = acting.is_ok();
                    let _ = ready.send(acting);
                    if is_user {
                        work_through(&waiting);
                    }
                },
            )?;
            // Not one file is touched before every thread is the user.
            started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        }
        Ok(Workers { jobs })
    }

    /// Runs `work` on one of the threads. It should be short: a step of a stream, not the stream.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.submit(work).await.result().await
    }

    /// As [`Workers::run`], and the caller may do something else meanwhile. Resolves when the work is queued.
    pub async fn submit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || drop(done.send(work())));
        // The threads end when the last sender has gone, and we are one; the binary aborts on panic.
        self.jobs.send(job).await.unwrap_or_else(|_| unreachable!("file workers outlive their handles"));
        Running(result)
    }

    /// For cleaning up from `drop`. When too much waits, on a task of its own.
    pub fn detach(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(mpsc::error::TrySendError::Full(job)) = self.jobs.try_send(Box::new(work)) {
            let jobs = self.jobs.clone();
            tokio::spawn(async move { drop(jobs.send(job).await) });
        }
    }
}

/// Work that goes on whether or not anybody waits for it.
pub struct Running<T>(oneshot::Receiver<T>);

impl<T> Running<T> {
    pub async fn result(self) -> T {
        self.0.await.expect("a job always runs to its end")
    }
}

/// Until the last handle has gone.
fn work_through(waiting: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        match job {
            Some(job) => job(),
            None => return,
        }
    }
}

/// Acts on the calling thread only: raw system calls, not glibc's that change the whole process.
fn act_as(account: &Account) -> io::Result<()> {
    if account.uid == 0 {
        return Ok(());
    }
    let groups: Vec<_> = account.groups.iter().copied().map(rustix::process::Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    // They answer with the former id, never with an error: ask again to know.
    let (gid, uid) = (nix::unistd::Gid::from_raw(account.gid), nix::unistd::Uid::from_raw(account.uid));
    setfsgid(gid);
    setfsuid(uid);
    let changed = setfsgid(gid) == gid && setfsuid(uid) == uid;
    if changed { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}
