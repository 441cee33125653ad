//! Sessions: one long-lived shell each, whose commands run one after the other and share its directory and variables.
//!
//!   exec ──▶ queue ──▶ shell: { . script ; } <in >out 2>err ; echo serial $?
//!                          out, err: FIFOs that we read into the command's log
//!
//! A command is a file that the shell sources, so a heredoc or an odd quote ends with its command. Its streams are FIFOs of
//! its own, so a child that outlives it holds nothing up: the shell says the exit code on a pipe that no command sees.
//! The shell's death ends the session; the command that was running gets the shell's exit code.

mod command;
mod log;
pub mod routes;
mod sdk;
mod shell;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::files::workers::Workers;
use crate::launch::{Input, Launch, Launcher, Output};
use crate::reaper::ExitWatch;
pub use command::Command;
use command::Stdin;
use log::Log;

pub const ENTRYPOINT: &str = "entrypoint";
const ENTRYPOINT_COMMAND: &str = "entrypoint_command";
const SESSIONS_MAX: usize = 256;
const SESSION_ID_BYTES_MAX: usize = 256;
/// Waiting and running. Beyond it exec is refused.
const QUEUE_MAX: usize = 128;
/// Remembered with their logs, per session; the oldest finished one is forgotten first.
const COMMANDS_MAX: usize = 1000;
/// Between SIGTERM and SIGKILL when a session is deleted.
const DELETE_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The caller's: the name is taken, unknown or not theirs.
    #[error("session {0:?} exists already")]
    Exists(String),
    #[error("no session {0:?}")]
    Unknown(String),
    #[error("session {0:?} belongs to the sandbox's entrypoint")]
    Reserved(String),
    #[error("a session id has 1 to {SESSION_ID_BYTES_MAX} bytes")]
    BadId,
    #[error("at most {SESSIONS_MAX} sessions")]
    TooMany,
    #[error("the session waits for {QUEUE_MAX} commands already")]
    QueueFull,
    /// Its shell has ended; only deleting it is left.
    #[error("the session's shell has ended")]
    Ended,
    /// The sandbox's: no room for logs, no shell.
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub struct Sessions {
    state_dir: PathBuf,
    serial: AtomicU64,
    sessions: Mutex<BTreeMap<String, Arc<Session>>>,
}

pub struct Session {
    pub id: String,
    dir: PathBuf,
    serial: AtomicU64,
    commands: Mutex<Vec<Arc<Command>>>,
    /// Absent for the entrypoint, which takes no commands.
    queue: Option<mpsc::Sender<Arc<Command>>>,
    leader: Pid,
    exit: ExitWatch,
    driver: Mutex<Option<AbortHandle>>,
}

impl Sessions {
    /// `state_dir` is made, or emptied: nothing outlives the daemon. Users' shells may pass through it but not list it.
    pub fn new(state_dir: PathBuf) -> io::Result<Sessions> {
        match std::fs::remove_dir_all(&state_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        make_passage(&state_dir)?;
        Ok(Sessions { state_dir, serial: AtomicU64::new(0), sessions: Mutex::default() })
    }

    pub fn create(
        &self,
        id: &str,
        launcher: &Launcher,
        shell: &Path,
        mut launch: Launch,
    ) -> Result<(), SessionError> {
        if id == ENTRYPOINT {
            return Err(SessionError::Reserved(id.to_owned()));
        }
        if id.is_empty() || id.len() > SESSION_ID_BYTES_MAX {
            return Err(SessionError::BadId);
        }
        let mut sessions = self.lock();
        if sessions.contains_key(id) {
            return Err(SessionError::Exists(id.to_owned()));
        }
        if sessions.len() >= SESSIONS_MAX {
            return Err(SessionError::TooMany);
        }
        let dir = self.make_dir()?;
        launch.args = vec!["-s".into()];
        let running = launcher.start(launch, Input::Piped, Output::StdoutOnly)?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let session = Arc::new(Session {
            id: id.to_owned(),
            dir,
            serial: AtomicU64::new(0),
            commands: Mutex::default(),
            queue: Some(queue),
            leader: running.pid,
            exit: running.exit.clone(),
            driver: Mutex::default(),
        });
        let dialect = shell::Dialect::of(shell);
        let driver = tokio::spawn(shell::drive(running, dialect, waiting));
        *session.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(driver.abort_handle());
        sessions.insert(id.to_owned(), session);
        Ok(())
    }

    /// The image's own command, run directly. It is a session of one command, that nobody can add to or delete.
    pub fn start_entrypoint(
        &self,
        launcher: &Launcher,
        launch: Launch,
        text: String,
        workers: &Workers,
    ) -> io::Result<()> {
        let dir = self.make_dir()?;
        let log = Arc::new(Log::create(&dir.join("output.log"), workers.clone())?);
        let running = launcher.start(launch, Input::Empty, Output::Split)?;
        let command = Arc::new(Command::running(ENTRYPOINT_COMMAND.into(), text, log));
        let (leader, exit) = (running.pid, running.exit.clone());
        let driver = tokio::spawn(shell::watch_program(running, command.clone()));
        let session = Arc::new(Session {
            id: ENTRYPOINT.into(),
            dir,
            serial: AtomicU64::new(0),
            commands: Mutex::new(vec![command]),
            queue: None,
            leader,
            exit,
            driver: Mutex::new(Some(driver.abort_handle())),
        });
        self.lock().insert(ENTRYPOINT.into(), session);
        Ok(())
    }

    pub fn find(&self, id: &str) -> Result<Arc<Session>, SessionError> {
        self.lock().get(id).cloned().ok_or_else(|| SessionError::Unknown(id.to_owned()))
    }

    /// The users' own, without the entrypoint.
    pub fn list(&self) -> Vec<Arc<Session>> {
        self.lock().values().filter(|session| session.id != ENTRYPOINT).cloned().collect()
    }

    /// SIGTERM to its group, a grace, SIGKILL to all that is left of it. The id is free at once.
    pub async fn delete(&self, id: &str, launcher: &Launcher) -> Result<(), SessionError> {
        if id == ENTRYPOINT {
            return Err(SessionError::Reserved(id.to_owned()));
        }
        let session = self.lock().remove(id).ok_or_else(|| SessionError::Unknown(id.to_owned()))?;
        launcher.reaper.signal_group(session.leader, Signal::TERM);
        // A non-interactive shell that waits for a child obeys only when the child has ended, which the group signal sees to.
        let _ = tokio::time::timeout(DELETE_GRACE, session.exit.clone().exited()).await;
        launcher.reaper.signal_session(session.leader, Signal::KILL);
        session.exit.clone().exited().await;
        if let Some(driver) = session.driver.lock().unwrap_or_else(PoisonError::into_inner).take() {
            driver.abort();
        }
        for command in session.commands() {
            command.finish_if_running(session.exit.now().map_or(-1, |exit| exit.shell_code()));
        }
        // Whoever follows a log has its file open; the name may go.
        if let Err(error) = std::fs::remove_dir_all(&session.dir) {
            tracing::warn!(%error, dir = %session.dir.display(), "remove session logs");
        }
        Ok(())
    }

    pub fn forget(&self) {
        let _ = std::fs::remove_dir_all(&self.state_dir);
    }

    fn make_dir(&self) -> io::Result<PathBuf> {
        let dir = self.state_dir.join(self.serial.fetch_add(1, Ordering::Relaxed).to_string());
        make_passage(&dir)?;
        Ok(dir)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    pub fn commands(&self) -> Vec<Arc<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn find(&self, command_id: &str) -> Option<Arc<Command>> {
        self.commands().into_iter().find(|command| command.id == command_id)
    }

    /// Queues a command. Its place in the queue is its place in the shell.
    fn submit(
        &self,
        text: String,
        stdin: Stdin,
        launcher: &Launcher,
        workers: &Workers,
    ) -> Result<Arc<Command>, SessionError> {
        let queue = self.queue.as_ref().ok_or_else(|| SessionError::Reserved(self.id.clone()))?;
        if self.exit.now().is_some() {
            return Err(SessionError::Ended);
        }
        let place = queue.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => SessionError::QueueFull,
            mpsc::error::TrySendError::Closed(()) => SessionError::Ended,
        })?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(serial.to_string());
        make_passage(&dir)?;
        let account = launcher.account();
        let command =
            Arc::new(Command::waiting(serial, text, dir, stdin, (account.uid, account.gid), workers)?);
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.len() >= COMMANDS_MAX
            && let Some(oldest) = commands.iter().position(|command| command.exit_code().is_some())
        {
            commands.remove(oldest).remove_files();
        }
        commands.push(command.clone());
        place.send(command.clone());
        Ok(command)
    }
}

/// A root-owned folder that others may pass through.
fn make_passage(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)
}
