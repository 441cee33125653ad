//! Terminals that clients open, attach to and share: `/process/pty…`.
//!
//!   Lazy ──first client──▶ Running ──shell ends──▶ gone from the table; attached clients are told how
//!   (only with lazyStart)
//!
//! Output goes to every client as fast as the slowest takes it, up to [`SLOW_CLIENT_DEADLINE`]; then that client is let go.

pub mod routes;
mod socket;
pub mod tty;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use crate::environment::Variables;
use crate::launch::{Launch, Launcher};
use crate::output::CHUNK_BYTES;
use crate::reaper::{Exit, ExitWatch};
use tty::{Master, Size};

const TERMINALS_MAX: usize = 128;
const ID_BYTES_MAX: usize = 256;
const CLIENTS_MAX: usize = 64;
/// Chunks of output that wait for one client.
const CLIENT_CHUNKS_MAX: usize = 32;
const SLOW_CLIENT_DEADLINE: Duration = Duration::from_secs(5);
/// Messages of input that wait for the program.
const INPUT_MESSAGES_MAX: usize = 64;
/// The last output, shown to a client that comes later: the prompt, most often.
const BACKLOG_BYTES_MAX: usize = 32 * 1024;
/// The shell has ended and a child keeps the terminal: this long without output is the end.
const QUIET: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    #[error("PTY session {0:?} exists already")]
    Exists(String),
    #[error("no PTY session {0:?}")]
    Unknown(String),
    #[error("a PTY session id has 1 to {ID_BYTES_MAX} bytes")]
    BadId,
    #[error("cols and rows are from 1 to 1000")]
    BadSize,
    #[error("at most {TERMINALS_MAX} PTY sessions")]
    TooMany,
    #[error("at most {CLIENTS_MAX} clients of one PTY session")]
    TooManyClients,
    #[error("the PTY session has ended")]
    Ended,
    /// The directory does not exist, or the sandbox has no shell or no terminals.
    #[error("could not start the shell: {0}")]
    Start(io::Error),
}

/// How a terminal ended, in the words of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PtyExit {
    pub code: i32,
    pub reason: Option<String>,
}

impl From<Exit> for PtyExit {
    fn from(exit: Exit) -> PtyExit {
        let code = exit.shell_code();
        let reason = match (exit, code) {
            (_, 0) => None,
            (_, 137) => Some("SIGKILL".to_owned()),
            (_, 130) => Some("Ctrl+C".to_owned()),
            (_, 143) => Some("SIGTERM".to_owned()),
            (Exit::Signal(number), _) => Some(format!("signal {number}")),
            (Exit::Code(_), _) => Some("non-zero exit".to_owned()),
        };
        PtyExit { code, reason }
    }
}

#[derive(Default)]
pub struct Terminals {
    terminals: Mutex<BTreeMap<String, Arc<Terminal>>>,
    /// Whose shells have ended by themselves, the latest last: whoever still holds the id is told so.
    ended: Mutex<VecDeque<String>>,
}

pub struct Wanted {
    pub id: String,
    pub cwd: PathBuf,
    pub envs: Variables,
    pub size: Size,
    pub start: Start,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Now,
    /// When the first client attaches.
    Lazily,
}

pub struct Terminal {
    pub id: String,
    pub cwd: PathBuf,
    pub envs: Variables,
    pub created_at: OffsetDateTime,
    pub start: Start,
    launch: Mutex<Option<Launch>>,
    size: Mutex<Size>,
    running: Mutex<Option<Running>>,
    clients: Mutex<Clients>,
    exited: watch::Sender<Option<PtyExit>>,
}

struct Running {
    leader: Pid,
    exit: ExitWatch,
    master: Arc<Master>,
    input: mpsc::Sender<Bytes>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    attached: Vec<Client>,
    backlog: VecDeque<u8>,
}

#[derive(Clone)]
struct Client {
    number: u64,
    output: mpsc::Sender<Bytes>,
    was_slow: Arc<AtomicBool>,
}

/// One client's side: output to read, and why it ended.
pub struct Attached {
    pub output: mpsc::Receiver<Bytes>,
    pub was_slow: Arc<AtomicBool>,
    pub exited: watch::Receiver<Option<PtyExit>>,
    pub input: mpsc::Sender<Bytes>,
}

impl Terminals {
    pub fn create(
        self: &Arc<Self>,
        wanted: Wanted,
        launch: Launch,
        launcher: &Launcher,
    ) -> Result<Arc<Terminal>, PtyError> {
        if wanted.id.is_empty() || wanted.id.len() > ID_BYTES_MAX {
            return Err(PtyError::BadId);
        }
        let terminal = Arc::new(Terminal {
            id: wanted.id,
            cwd: wanted.cwd,
            envs: wanted.envs,
            created_at: OffsetDateTime::now_utc(),
            start: wanted.start,
            launch: Mutex::new(Some(launch)),
            size: Mutex::new(wanted.size),
            running: Mutex::default(),
            clients: Mutex::default(),
            exited: watch::Sender::new(None),
        });
        {
            let mut terminals = self.lock();
            if terminals.contains_key(&terminal.id) {
                return Err(PtyError::Exists(terminal.id.clone()));
            }
            if terminals.len() >= TERMINALS_MAX {
                return Err(PtyError::TooMany);
            }
            terminals.insert(terminal.id.clone(), terminal.clone());
        }
        if terminal.start == Start::Now {
            self.start(&terminal, launcher)?;
        }
        Ok(terminal)
    }

    pub fn find(&self, id: &str) -> Result<Arc<Terminal>, PtyError> {
        self.lock().get(id).cloned().ok_or_else(|| PtyError::Unknown(id.to_owned()))
    }

    /// As [`Terminals::find`], for who knows that there was one.
    pub fn find_live(&self, id: &str) -> Result<Arc<Terminal>, PtyError> {
        self.find(id).map_err(|unknown| match held(&self.ended).iter().any(|ended| ended == id) {
            true => PtyError::Ended,
            false => unknown,
        })
    }

    pub fn list(&self) -> Vec<Arc<Terminal>> {
        self.lock().values().cloned().collect()
    }

    /// Kills everything on it. The id is free at once.
    pub fn delete(&self, id: &str, launcher: &Launcher) -> Result<(), PtyError> {
        let terminal = self.lock().remove(id).ok_or_else(|| PtyError::Unknown(id.to_owned()))?;
        match &*held(&terminal.running) {
            Some(running) => {
                launcher.reaper.signal_group(running.leader, Signal::KILL);
                launcher.reaper.signal_session(running.leader, Signal::KILL);
            }
            // It never started; nobody can be attached.
            None => terminal.end(Exit::Signal(Signal::KILL.as_raw())),
        }
        Ok(())
    }

    /// Starts a lazy one. A terminal that can't start is forgotten.
    pub fn attach(
        self: &Arc<Self>,
        terminal: &Arc<Terminal>,
        launcher: &Launcher,
    ) -> Result<Attached, PtyError> {
        self.start(terminal, launcher)?;
        terminal.attach()
    }

    fn start(self: &Arc<Self>, terminal: &Arc<Terminal>, launcher: &Launcher) -> Result<(), PtyError> {
        let Some(launch) = held(&terminal.launch).take() else { return Ok(()) };
        let started = (|| {
            let (master, slave) = tty::open(launcher.account().uid, *held(&terminal.size))?;
            let running = launcher.start_on_terminal(launch, slave)?;
            Ok((Arc::new(master), running))
        })();
        let (master, program) = match started {
            Ok(started) => started,
            Err(error) => {
                self.lock().remove(&terminal.id);
                return Err(PtyError::Start(error));
            }
        };
        let (input, waiting) = mpsc::channel(INPUT_MESSAGES_MAX);
        *held(&terminal.running) =
            Some(Running { leader: program.pid, exit: program.exit.clone(), master: master.clone(), input });
        tokio::spawn(self.clone().live(terminal.clone(), master, waiting, program.exit));
        Ok(())
    }

    /// Owns the terminal's life: input and output until the shell has ended, then everyone is told.
    async fn live(
        self: Arc<Self>,
        terminal: Arc<Terminal>,
        master: Arc<Master>,
        mut input: mpsc::Receiver<Bytes>,
        mut exit: ExitWatch,
    ) {
        let typing = async {
            while let Some(bytes) = input.recv().await {
                if master.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            std::future::pending().await
        };
        let mut watched = exit.clone();
        let showing = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let read = tokio::select! {
                    biased;
                    read = master.read(&mut buffer) => read.unwrap_or(0),
                    () = async { watched.exited().await; tokio::time::sleep(QUIET).await } => 0,
                };
                if read == 0 {
                    break;
                }
                terminal.show(Bytes::copy_from_slice(&buffer[..read])).await;
            }
        };
        tokio::select! {
            () = showing => {}
            () = typing => {}
        }
        // The terminal may be closed before the shell has ended; it ends of that.
        held(&terminal.running).take();
        drop(master);
        let exit = exit.exited().await;
        {
            let mut terminals = self.lock();
            // The id may have been freed and taken by another meanwhile.
            if terminals.get(&terminal.id).is_some_and(|current| Arc::ptr_eq(current, &terminal)) {
                terminals.remove(&terminal.id);
                let mut ended = held(&self.ended);
                ended.push_back(terminal.id.clone());
                if ended.len() > TERMINALS_MAX {
                    ended.pop_front();
                }
            }
        }
        terminal.end(exit);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Terminal>>> {
        held(&self.terminals)
    }
}

impl Terminal {
    pub fn size(&self) -> Size {
        *held(&self.size)
    }

    pub fn is_active(&self) -> bool {
        held(&self.running).as_ref().is_some_and(|running| running.exit.now().is_none())
    }

    pub fn resize(&self, size: Size) -> Result<(), PtyError> {
        if self.exited.borrow().is_some() {
            return Err(PtyError::Ended);
        }
        *held(&self.size) = size;
        match &*held(&self.running) {
            Some(running) => running.master.resize(size).map_err(|_| PtyError::Ended),
            // It will start with this size.
            None if held(&self.launch).is_some() => Ok(()),
            None => Err(PtyError::Ended),
        }
    }

    fn attach(&self) -> Result<Attached, PtyError> {
        let input =
            held(&self.running).as_ref().map(|running| running.input.clone()).ok_or(PtyError::Ended)?;
        let mut clients = held(&self.clients);
        if clients.attached.len() >= CLIENTS_MAX {
            return Err(PtyError::TooManyClients);
        }
        let (sender, output) = mpsc::channel(CLIENT_CHUNKS_MAX);
        let was_slow = Arc::new(AtomicBool::new(false));
        if !clients.backlog.is_empty() {
            let backlog: Vec<u8> = clients.backlog.iter().copied().collect();
            // A new channel has room.
            let _ = sender.try_send(backlog.into());
        }
        clients.next += 1;
        let number = clients.next;
        clients.attached.push(Client { number, output: sender, was_slow: was_slow.clone() });
        Ok(Attached { output, was_slow, exited: self.exited.subscribe(), input })
    }

    async fn show(&self, chunk: Bytes) {
        let clients = {
            let mut clients = held(&self.clients);
            clients.backlog.extend(&chunk);
            let over = clients.backlog.len().saturating_sub(BACKLOG_BYTES_MAX);
            clients.backlog.drain(..over);
            clients.attached.clone()
        };
        for client in clients {
            let error = match client.output.send_timeout(chunk.clone(), SLOW_CLIENT_DEADLINE).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            if matches!(error, mpsc::error::SendTimeoutError::Timeout(_)) {
                client.was_slow.store(true, Ordering::Relaxed);
            }
            held(&self.clients).attached.retain(|attached| attached.number != client.number);
        }
    }

    fn end(&self, exit: Exit) {
        self.exited.send_replace(Some(exit.into()));
        // Their channels end once what waits in them is read.
        held(&self.clients).attached.clear();
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_has_the_protocols_words() {
        for (exit, code, reason) in [
            (Exit::Code(0), 0, None),
            (Exit::Code(3), 3, Some("non-zero exit")),
            (Exit::Code(130), 130, Some("Ctrl+C")),
            (Exit::Signal(9), 137, Some("SIGKILL")),
            (Exit::Signal(15), 143, Some("SIGTERM")),
            (Exit::Signal(11), 139, Some("signal 11")),
        ] {
            assert_eq!(PtyExit::from(exit), PtyExit { code, reason: reason.map(str::to_owned) });
        }
    }
}
