//! Starts processes as the sandbox's user: own session, own credentials, no descriptor of ours but one that is meant for it, OOM
//! score of anyone.

mod child;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use tokio::net::unix::pipe;

use crate::accounts::Account;
use crate::environment::Variables;
use crate::interleaved::{Interleaved, Pipes};
use crate::reaper::{ExitWatch, Reaper};
use crate::write_signals::WriteSignals;

#[derive(Clone)]
pub struct Launch {
    pub program: PathBuf,
    /// What the process sees as its own name, when that differs: a login shell has a leading `-`.
    pub arg0: Option<String>,
    pub args: Vec<String>,
    pub env: Variables,
    pub cwd: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Reads end at once.
    Empty,
    Piped,
}

impl Input {
    fn stdio(self) -> Stdio {
        match self {
            Input::Empty => Stdio::null(),
            Input::Piped => Stdio::piped(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// One pipe for both, so the order of writes is kept.
    Merged,
    /// Two pipes; order between them is lost.
    Split,
    /// Only stdout is ours; stderr goes nowhere.
    StdoutOnly,
}

/// A running process, its ends of pipes in our hands. Dropping it neither kills nor waits.
pub struct Running {
    pub pid: Pid,
    pub exit: ExitWatch,
    pub stdin: Option<pipe::Sender>,
    /// Both streams when merged.
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

#[derive(Clone)]
pub struct Launcher {
    account: Account,
    pub reaper: Reaper,
    writes: WriteSignals,
}

impl Launcher {
    pub fn new(account: Account, reaper: Reaper, writes: WriteSignals) -> Launcher {
        Launcher { account, reaper, writes }
    }

    /// The same for another user.
    pub fn of(&self, account: Account) -> Launcher {
        Launcher { account, ..self.clone() }
    }

    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Errors are those of fork, of changing to the directory (as the user) and of exec.
    pub fn start(&self, launch: Launch, input: Input, output: Output) -> io::Result<Running> {
        self.start_with(launch, input, output, None)
    }

    /// The process, and whatever it starts, also has `kept`, by the number that it has here.
    pub fn start_with(
        &self,
        launch: Launch,
        input: Input,
        output: Output,
        kept: Option<BorrowedFd<'_>>,
    ) -> io::Result<Running> {
        let mut command = self.command(&launch, child::Terminal::None, kept)?;
        command.stdin(input.stdio());
        let merged = match output {
            Output::Merged => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                command.stdout(writer.try_clone()?).stderr(writer);
                Some(reader)
            }
            Output::Split => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                None
            }
            Output::StdoutOnly => {
                command.stdout(Stdio::piped()).stderr(Stdio::null());
                None
            }
        };
        let (pid, exit, mut spawned) = self.fork(&mut command)?;
        // Our copies of the writing ends go with it; a reader would wait for them for ever.
        drop(command);
        let stdout = match merged {
            Some(reader) => Some(pipe::Receiver::from_owned_fd(reader)?),
            None => receiver(spawned.stdout.take().map(OwnedFd::from))?,
        };
        Ok(Running {
            pid,
            exit,
            stdin: sender(spawned.stdin.take())?,
            stdout,
            stderr: receiver(spawned.stderr.take().map(OwnedFd::from))?,
        })
    }

    /// As [`Launcher::start_with`], both outputs apart and in the order in which they are written.
    pub fn start_interleaved(
        &self,
        launch: Launch,
        input: Input,
        kept: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Running, Interleaved)> {
        let mut command = self.command(&launch, child::Terminal::None, kept)?;
        let Pipes { stdout, stderr, ours } = Pipes::new(&self.writes)?;
        command.stdin(input.stdio()).stdout(stdout).stderr(stderr);
        let (pid, exit, mut spawned) = self.fork(&mut command)?;
        drop(command);
        let reader = Interleaved::new(ours, exit.clone());
        Ok((Running { pid, exit, stdin: sender(spawned.stdin.take())?, stdout: None, stderr: None }, reader))
    }

    /// On a terminal, which becomes the controlling one of the new session.
    pub fn start_on_terminal(&self, launch: Launch, terminal: OwnedFd) -> io::Result<Running> {
        let mut command = self.command(&launch, child::Terminal::Controlling, None)?;
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        let (pid, exit, _) = self.fork(&mut command)?;
        Ok(Running { pid, exit, stdin: None, stdout: None, stderr: None })
    }

    fn command(
        &self,
        launch: &Launch,
        terminal: child::Terminal,
        kept: Option<BorrowedFd<'_>>,
    ) -> io::Result<Command> {
        let mut command = Command::new(&launch.program);
        if let Some(arg0) = &launch.arg0 {
            command.arg0(arg0);
        }
        command.args(&launch.args).env_clear().envs(&launch.env);
        let kept = kept.map(|fd| fd.as_raw_fd());
        let becoming = child::Becoming::new(&self.account, c_path(&launch.cwd)?, terminal, kept);
        child::prepare(&mut command, becoming);
        Ok(command)
    }

    /// Fork and adoption in one step without an await between them, as the reaper demands.
    fn fork(&self, command: &mut Command) -> io::Result<(Pid, ExitWatch, std::process::Child)> {
        let spawned = command.spawn()?;
        let pid = Pid::from_child(&spawned);
        Ok((pid, self.reaper.adopt(pid), spawned))
    }
}

fn sender(fd: Option<ChildStdin>) -> io::Result<Option<pipe::Sender>> {
    fd.map(|fd| pipe::Sender::from_owned_fd(fd.into())).transpose()
}

fn receiver(fd: Option<OwnedFd>) -> io::Result<Option<pipe::Receiver>> {
    fd.map(pipe::Receiver::from_owned_fd).transpose()
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
