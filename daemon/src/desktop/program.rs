//! One program of the desktop: started, started again when it ends by itself, and ended when it is asked to.
//!
//! What others rest on is not started again here: they must go first, and come back after it (see `session`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::task::AbortHandle;

use super::log::Log;
use crate::launch::{Input, Launch, Launcher, Output, Running};
use crate::output::Stream;
use crate::reaper::{ExitWatch, Reaper};

/// Before the first new start; each further one waits twice as long,
const RESTART_FIRST: Duration = Duration::from_millis(500);
/// but no longer than this.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// Who ran so long begins again with the shortest.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Started again alone.
    Alone,
    /// With all that comes after it.
    Foundation,
}

pub struct Program {
    pub role: Role,
    pub name: &'static str,
    /// Lower ones start first and stop last.
    pub priority: u32,
    pub output: Arc<Log>,
    pub errors: Arc<Log>,
    current: Arc<Mutex<Option<Current>>>,
    keeper: Mutex<Option<AbortHandle>>,
}

#[derive(Clone)]
struct Current {
    leader: Pid,
    exit: ExitWatch,
}

impl Program {
    pub fn new(name: &'static str, priority: u32, role: Role) -> Program {
        Program {
            role,
            name,
            priority,
            output: Arc::default(),
            errors: Arc::default(),
            current: Arc::default(),
            keeper: Mutex::default(),
        }
    }

    pub fn pid(&self) -> Option<Pid> {
        let current = held(&self.current);
        current.as_ref().filter(|current| current.exit.now().is_none()).map(|current| current.leader)
    }

    /// Until one that was kept has ended; at once when there is none.
    pub async fn ended(&self) {
        let current = held(&self.current).clone();
        if let Some(mut current) = current {
            current.exit.exited().await;
        }
    }

    /// Nothing happens when it is kept already.
    pub fn keep(&self, launcher: &Launcher, launch: Launch) {
        let mut keeper = held(&self.keeper);
        if keeper.as_ref().is_none_or(AbortHandle::is_finished) {
            let keeping = keep(
                (self.name, self.role),
                launcher.clone(),
                launch,
                (self.output.clone(), self.errors.clone()),
                self.current.clone(),
            );
            *keeper = Some(tokio::spawn(keeping).abort_handle());
        }
    }

    /// It is not started again.
    pub fn let_go(&self) {
        if let Some(keeper) = held(&self.keeper).take() {
            keeper.abort();
        }
    }

    /// With all that it has started in its session.
    pub async fn stop(&self, reaper: &Reaper) {
        self.let_go();
        let current = held(&self.current).take();
        let Some(mut current) = current else { return };
        reaper.signal_session(current.leader, Signal::TERM);
        let _ = tokio::time::timeout(STOP_GRACE, current.exit.exited()).await;
        reaper.signal_session(current.leader, Signal::KILL);
        current.exit.exited().await;
    }
}

/// Runs until it is aborted, which is what a stop does; for a foundation, until it has ended.
async fn keep(
    (name, role): (&'static str, Role),
    launcher: Launcher,
    launch: Launch,
    logs: (Arc<Log>, Arc<Log>),
    current: Arc<Mutex<Option<Current>>>,
) {
    let (output, errors) = logs;
    let mut pause = RESTART_FIRST;
    loop {
        let began = Instant::now();
        match launcher.start(launch.clone(), Input::Empty, Output::Split) {
            Ok(running) => {
                *held(&current) = Some(Current { leader: running.pid, exit: running.exit.clone() });
                let leader = running.pid;
                let code = attend(running, &output, &errors).await;
                // The next one is not to meet what this one has left.
                launcher.reaper.signal_session(leader, Signal::KILL);
                errors.push(format!("[{name} ended with exit code {code}]\n").as_bytes());
                tracing::warn!(name, code, "a program of the desktop ended");
            }
            Err(error) => {
                let program = launch.program.display();
                errors.push(format!("[could not start {program}: {error}]\n").as_bytes());
            }
        }
        if role == Role::Foundation {
            return;
        }
        if began.elapsed() > RAN_WELL {
            pause = RESTART_FIRST;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RESTART_MAX);
    }
}

/// Writes down what it says until it has ended.
async fn attend(running: Running, output: &Log, errors: &Log) -> i32 {
    let Running { mut exit, stdout, stderr, .. } = running;
    let listen = async |pipe: Option<tokio::net::unix::pipe::Receiver>, log: &Log| {
        let mut stream = pipe.map(|pipe| Stream::new(pipe, exit.clone()));
        while let Some(bytes) = match &mut stream {
            Some(stream) => stream.next().await,
            None => None,
        } {
            log.push(bytes);
        }
    };
    tokio::join!(listen(stdout, output), listen(stderr, errors));
    exit.exited().await.shell_code()
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
