//! Interpreter contexts: one long-lived python3 each, whose runs come one after the other and share their variables.
//!
//!   execute ──▶ queue ──▶ python3 driver.py ──▶ frames ──▶ the client's WebSocket
//!                             descriptors 1 and 2: pipes, read here; also what child processes write is seen
//!                             a socket of its own: code in, errors and ends out; printing can't forge them
//!
//! - Within a stream the order of frames is exact; between stdout and stderr it is the order of arrival.
//! - A run's time begins when its turn comes. When it is over, or when the client has gone (nobody else could stop the run, and
//!   the default context can't be deleted), the process group gets SIGINT and, after a grace, SIGKILL.
//! - A context whose process was killed or has died goes on: its next run starts another python3, without the variables.
//!   The client whose run ended so is told that they are lost; in the list the context is not `active` until then.
//! - Deleting a context, and the death of its process, end everything that its code has started and not moved to another session.

mod frames;
mod process;
pub mod routes;
mod socket;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use crate::environment::Variables;
use crate::routes::Daemon;
use frames::Frame;
use process::{Left, Process, StartError};

/// The context of whoever names none. It is made when first used, not listed and not deleted.
pub const DEFAULT: &str = "default";
pub const LANGUAGE: &str = "python";
/// Besides the default one. Each is a process of some 10 MB.
const CONTEXTS_MAX: usize = 64;
/// Runs that wait for one context. Beyond it execute is refused.
const QUEUE_MAX: usize = 32;
/// Frames on their way to one client.
const FRAMES_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum InterpreterError {
    /// The caller's.
    #[error("no interpreter context {0:?}")]
    Unknown(String),
    #[error("the default context can't be deleted")]
    Reserved,
    #[error("language is {LANGUAGE}, not {0:?}")]
    Language(String),
    #[error("at most {CONTEXTS_MAX} interpreter contexts")]
    TooMany,
    #[error("the context waits for {QUEUE_MAX} runs already")]
    QueueFull,
    /// The caller's folder, or the image's lack of python3.
    #[error("{0}")]
    Start(#[from] StartError),
}

#[derive(Default)]
pub struct Interpreters {
    contexts: Mutex<BTreeMap<String, Arc<Context>>>,
}

pub struct Context {
    pub id: String,
    pub cwd: PathBuf,
    pub created_at: OffsetDateTime,
    queue: mpsc::Sender<Run>,
    closing: watch::Sender<bool>,
    active: Arc<AtomicBool>,
}

/// One piece of code on its way through a context.
pub struct Run {
    pub code: String,
    /// For this run only.
    pub envs: Variables,
    pub timeout: Option<Duration>,
    /// As it was for the caller; a process that must be started anew becomes its user, in its environment.
    pub daemon: Arc<Daemon>,
    frames: mpsc::Sender<Said>,
}

pub enum Said {
    Frame(Frame),
    /// The last.
    End(End),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Done,
    TimedOut,
    TimedOutAndKilled,
    /// With the reason.
    Died(String),
    Deleted,
}

impl Interpreters {
    /// With its process, so that a folder or an image that can't have one is refused here.
    pub async fn create(
        &self,
        daemon: &Daemon,
        language: Option<&str>,
        cwd: PathBuf,
    ) -> Result<Arc<Context>, InterpreterError> {
        match language {
            None | Some("" | LANGUAGE) => {}
            Some(other) => return Err(InterpreterError::Language(other.to_owned())),
        }
        if self.list().len() >= CONTEXTS_MAX {
            return Err(InterpreterError::TooMany);
        }
        let process = Process::start(daemon, &cwd).await?;
        let mut contexts = self.lock();
        // Others may have come while it started; dropping the process ends it.
        if contexts.keys().filter(|id| *id != DEFAULT).count() >= CONTEXTS_MAX {
            return Err(InterpreterError::TooMany);
        }
        let context = Context::begin(uuid::Uuid::new_v4().to_string(), cwd, Some(process));
        contexts.insert(context.id.clone(), context.clone());
        Ok(context)
    }

    /// Without the default one.
    pub fn list(&self) -> Vec<Arc<Context>> {
        let mut listed: Vec<_> =
            self.lock().values().filter(|context| context.id != DEFAULT).cloned().collect();
        listed.sort_by_key(|context| context.created_at);
        listed
    }

    /// Returns when its processes have been killed.
    pub async fn delete(&self, id: &str) -> Result<(), InterpreterError> {
        if id == DEFAULT {
            return Err(InterpreterError::Reserved);
        }
        let context = self.lock().remove(id).ok_or_else(|| InterpreterError::Unknown(id.to_owned()))?;
        context.closing.send_replace(true);
        context.queue.closed().await;
        Ok(())
    }

    /// Queues a run; what it says comes out of the receiver, and dropping that stops it.
    fn submit(
        &self,
        daemon: &Arc<Daemon>,
        id: Option<&str>,
        code: String,
        envs: Variables,
        timeout: Option<Duration>,
    ) -> Result<mpsc::Receiver<Said>, InterpreterError> {
        let id = id.filter(|id| !id.is_empty()).unwrap_or(DEFAULT);
        let context = {
            let mut contexts = self.lock();
            match contexts.get(id) {
                Some(context) => context.clone(),
                None if id == DEFAULT => {
                    let context = Context::begin(DEFAULT.to_owned(), daemon.resolve(""), None);
                    contexts.insert(DEFAULT.to_owned(), context.clone());
                    context
                }
                None => return Err(InterpreterError::Unknown(id.to_owned())),
            }
        };
        let (frames, said) = mpsc::channel(FRAMES_MAX);
        let run = Run { code, envs, timeout, daemon: daemon.clone(), frames };
        context.queue.try_send(run).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => InterpreterError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => InterpreterError::Unknown(id.to_owned()),
        })?;
        Ok(said)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Context>>> {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    fn begin(id: String, cwd: PathBuf, process: Option<Process>) -> Arc<Context> {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (closing, is_closing) = watch::channel(false);
        let active = Arc::new(AtomicBool::new(process.is_some()));
        // Ends when the context is deleted, or with the daemon.
        tokio::spawn(work(waiting, is_closing, process, cwd.clone(), active.clone()));
        Arc::new(Context { id, cwd, created_at: OffsetDateTime::now_utc(), queue, closing, active })
    }

    /// Whether it has a process.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }
}

/// Owns a context's process: one run at a time, in the order they came.
async fn work(
    mut waiting: mpsc::Receiver<Run>,
    mut closing: watch::Receiver<bool>,
    mut process: Option<Process>,
    cwd: PathBuf,
    active: Arc<AtomicBool>,
) {
    loop {
        active.store(process.is_some(), Ordering::Relaxed);
        let run = tokio::select! {
            biased;
            () = asked_to_close(&mut closing) => break,
            () = idle(&mut process) => {
                process = None;
                continue;
            }
            run = waiting.recv() => match run {
                Some(run) => run,
                None => break,
            },
        };
        if run.frames.is_closed() {
            continue;
        }
        let end = perform(&mut process, &run, &mut closing, &cwd, &active).await;
        // Bounded by the socket, which lets a slow client go.
        let _ = run.frames.send(Said::End(end)).await;
    }
    // Those who still wait find their channel closed.
    drop(process);
}

async fn perform(
    process: &mut Option<Process>,
    run: &Run,
    closing: &mut watch::Receiver<bool>,
    cwd: &Path,
    active: &AtomicBool,
) -> End {
    let mut living = match process.take() {
        Some(living) => living,
        None => match Process::start(&run.daemon, cwd).await {
            Ok(started) => started,
            Err(error) => return End::Died(error.to_string()),
        },
    };
    active.store(true, Ordering::Relaxed);
    match living.run(run, closing).await {
        Left::Alive(end) => {
            *process = Some(living);
            end
        }
        Left::Dead(end) => end,
    }
}

async fn idle(process: &mut Option<Process>) {
    match process {
        Some(process) => process.idle().await,
        None => std::future::pending().await,
    }
}

async fn asked_to_close(closing: &mut watch::Receiver<bool>) {
    // Also when the context itself has gone.
    let _ = closing.wait_for(|closing| *closing).await;
}
