//! The order in which processes write to different pipes. A pipe alone doesn't tell; but the kernel signals every write to a pipe whose
//! reader has asked for it (`O_ASYNC`), and signals above `SIGRTMIN` wait in line one by one, each with the descriptor that it is about.
//!
//! Where a kernel sends no such signals, or a user's share of waiting ones is full, a reader looks by itself now and then: order gets
//! coarser, an answer may come a moment later, and no byte is lost.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::polled;

/// Nobody else in this process uses a signal that high.
const OFFSET: i32 = 5;
/// Writes of one process that wait to be looked at; more are not told apart. It keeps what a process can make us remember small.
const WRITES_MAX: usize = 16 * 1024;

/// Of fcntl(2), and a signal's code for "there is something to read".
const F_SETSIG: i32 = 10;
const POLL_IN: i32 = 1;

/// Writes to one of the pipes that a listener is told about, by the number that it gave the pipe.
pub type Pipe = u8;

#[derive(Clone)]
pub struct WriteSignals(Arc<Inner>);

struct Inner {
    signals: AsyncFd<SignalFd>,
    listeners: Mutex<HashMap<RawFd, (Pipe, Arc<Writes>)>>,
}

#[derive(Default)]
struct Writes {
    waiting: Mutex<Vec<Pipe>>,
    more: Notify,
}

/// One process's writes. Dropping it ends the listening.
pub struct Listener {
    signals: WriteSignals,
    fds: Vec<RawFd>,
    writes: Arc<Writes>,
    hears: bool,
}

/// To be called before any thread exists: then no thread is interrupted by these signals. SIGIO is what the kernel sends when too many
/// wait, and would end us.
pub fn block() -> io::Result<SigSet> {
    // SAFETY: the set is initialized by the call before anything else looks at it, and stays on this stack.
    let set = unsafe {
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGIO);
        SigSet::from_sigset_t_unchecked(set.assume_init())
    };
    set.thread_block()?;
    Ok(set)
}

fn signal() -> i32 {
    libc::SIGRTMIN() + OFFSET
}

impl WriteSignals {
    /// `blocked` is what [`block`] gave.
    pub fn open(blocked: &SigSet) -> io::Result<WriteSignals> {
        let signals = SignalFd::with_flags(blocked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let signals = polled::signals(signals)?;
        Ok(WriteSignals(Arc::new(Inner { signals, listeners: Mutex::default() })))
    }

    /// Keeps the line short while nobody looks. Serves until dropped.
    pub async fn run(&self) -> Infallible {
        loop {
            match self.0.signals.readable().await {
                Ok(mut ready) => {
                    self.take();
                    ready.clear_ready();
                }
                // The runtime is ending.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// From now on. The listener must go before the pipes do.
    pub fn listen(&self, pipes: &[BorrowedFd<'_>]) -> Listener {
        let writes = Arc::<Writes>::default();
        let fds: Vec<RawFd> = pipes.iter().map(AsRawFd::as_raw_fd).collect();
        for (number, fd) in (0..).zip(&fds) {
            self.listeners().insert(*fd, (number, writes.clone()));
        }
        let hears = pipes.iter().all(|pipe| ask_for_signals(*pipe).is_ok());
        Listener { signals: self.clone(), fds, writes, hears }
    }

    fn take(&self) {
        while let Ok(Some(info)) = self.0.signals.get_ref().read_signal() {
            let Some(fd) = written(&info) else { continue };
            if let Some((number, writes)) = self.listeners().get(&fd) {
                let mut waiting = held(&writes.waiting);
                if waiting.len() < WRITES_MAX {
                    waiting.push(*number);
                }
                writes.more.notify_one();
            }
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<RawFd, (Pipe, Arc<Writes>)>> {
        held(&self.0.listeners)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the kernel says; a process that only sends the signal has another code.
fn written(info: &siginfo) -> Option<RawFd> {
    let is_ours = i32::try_from(info.ssi_signo).ok()? == signal() && info.ssi_code == POLL_IN;
    is_ours.then_some(info.ssi_fd)
}

impl Listener {
    /// Whether the kernel tells us at all.
    pub fn hears(&self) -> bool {
        self.hears
    }

    /// Resolves when there may be writes to ask for.
    pub async fn heard(&self) {
        self.writes.more.notified().await;
    }

    /// The writes since the last call, in their order. That nobody is left to write to a pipe counts as one, the last.
    pub fn writes(&mut self) -> Vec<Pipe> {
        self.signals.take();
        std::mem::take(&mut *held(&self.writes.waiting))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut listeners = self.signals.listeners();
        for fd in &self.fds {
            listeners.remove(fd);
        }
    }
}

fn ask_for_signals(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let fd = pipe.as_raw_fd();
    let ask = |command, argument: i32| {
        // SAFETY: the descriptor is open, as it is borrowed, and these commands take a number.
        nix::errno::Errno::result(unsafe { libc::fcntl(fd, command, argument) })
    };
    ask(libc::F_SETOWN, rustix::process::getpid().as_raw_nonzero().get())?;
    ask(F_SETSIG, signal())?;
    let flags = ask(libc::F_GETFL, 0)?;
    ask(libc::F_SETFL, flags | libc::O_ASYNC)?;
    Ok(())
}
