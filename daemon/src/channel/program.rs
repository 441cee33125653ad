//! A program on a channel: shell, command, SFTP server or a build's step, on a terminal or on pipes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_api::channel::{ChannelExit, ChannelOpen, ChannelProgram, FrameKind, PtySize, RunProgram};
use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::frames::{Frame, FrameReader};
use crate::launch::{Input, Launch, Output};
use crate::output::{CHUNK_BYTES, Stream};
use crate::pty::tty::{self, Master, Size};
use crate::reaper::{Exit, ExitWatch};
use crate::routes::Daemon;
use std::time::Duration;

/// Frames of input that wait for the program, of at most 64 KiB each.
const INPUT_FRAMES_MAX: usize = 4;
/// As in `pty`: the program has ended, and a child keeps the terminal.
const QUIET: Duration = Duration::from_millis(100);

struct Program {
    leader: Pid,
    exit: ExitWatch,
    streams: Streams,
}

enum Streams {
    Pipes(Box<Pipes>),
    Terminal(Arc<Master>),
}

struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Stream,
    /// Absent when standard output has it too.
    stderr: Option<Stream>,
}

/// Returns a reason only when nothing was started.
pub async fn run<R: AsyncRead + Unpin>(
    daemon: &Daemon,
    open: &ChannelOpen,
    frames: &mut FrameReader<R>,
    output: &mpsc::Sender<Frame>,
) -> Result<(), String> {
    let Program { leader, mut exit, streams } =
        start(daemon, open).map_err(|error| format!("could not start: {error}"))?;
    // A door that has gone is noticed below.
    let _ = output.send(Frame::new(FrameKind::Opened, Bytes::new())).await;

    let (typed, waiting) = mpsc::channel(INPUT_FRAMES_MAX);
    let (terminal, stdin, shown) = match streams {
        Streams::Terminal(master) => (Some(master), None, None),
        Streams::Pipes(pipes) => {
            let Pipes { stdin, stdout, stderr } = *pipes;
            (None, stdin, Some((stdout, stderr)))
        }
    };
    let feeding = async {
        match &terminal {
            Some(master) => feed_terminal(master, waiting).await,
            None => feed_pipe(stdin, waiting).await,
        }
        std::future::pending::<()>().await;
    };
    let showing = async {
        match (&terminal, shown) {
            (Some(master), _) => show_terminal(master, exit.clone(), output).await,
            (None, Some((stdout, stderr))) => {
                let errors = async {
                    if let Some(stderr) = stderr {
                        show(stderr, FrameKind::Stderr, output).await;
                    }
                };
                tokio::join!(show(stdout, FrameKind::Stdout, output), errors);
            }
            (None, None) => {}
        }
        exit.exited().await
    };
    let listening = listen(daemon, leader, terminal.as_deref(), frames, typed);
    tokio::select! {
        ended = showing => {
            let exit = serde_json::to_vec(&channel_exit(ended)).expect("a number or a word is always JSON");
            let _ = output.send(Frame::new(FrameKind::Exit, exit)).await;
        }
        () = listening => hang_up(daemon, leader, terminal.is_some()),
        () = feeding => unreachable!("pending"),
    }
    Ok(())
}

/// Without a terminal the program notices by its pipes, as under sshd; with one, its session is told.
fn hang_up(daemon: &Daemon, leader: Pid, has_terminal: bool) {
    if has_terminal {
        daemon.launcher.reaper.signal_session(leader, Signal::HUP);
    }
}

fn start(daemon: &Daemon, open: &ChannelOpen) -> io::Result<Program> {
    let login = daemon.shells.login();
    let mut env = daemon.environment.beneath(
        &open
            .env
            .iter()
            .filter(|(name, value)| crate::environment::is_identifier(name) && !value.contains('\0'))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    );
    if let Some(pty) = &open.pty
        && !pty.term.is_empty()
        && !pty.term.contains('\0')
    {
        env.insert("TERM".into(), pty.term.clone());
    }
    let (program, arg0, args) = match &open.program {
        ChannelProgram::Exec { command } => (login.to_owned(), None, vec!["-c".to_owned(), command.clone()]),
        ChannelProgram::Run(run) => return start_run(daemon, run),
        // Our own binary: it need not be reachable by a path of the user's.
        ChannelProgram::Sftp => (PathBuf::from("/proc/self/exe"), None, vec!["sftp-server".to_owned()]),
        ChannelProgram::Shell | ChannelProgram::Connect { .. } => {
            let name = login.file_name().unwrap_or_default().to_string_lossy();
            (login.to_owned(), Some(format!("-{name}")), Vec::new())
        }
    };
    let home = &daemon.launcher.account().home;
    let cwd = if home.is_dir() { home.clone() } else { PathBuf::from("/") };
    let launch = Launch { program, arg0, args, env, cwd };
    match &open.pty {
        Some(pty) => {
            let (master, slave) = tty::open(daemon.launcher.account().uid, size_of(pty.size))?;
            let running = daemon.launcher.start_on_terminal(launch, slave)?;
            let streams = Streams::Terminal(Arc::new(master));
            Ok(Program { leader: running.pid, exit: running.exit, streams })
        }
        None => {
            let running = daemon.launcher.start(launch, Input::Piped, Output::Split)?;
            let piped = |pipe: Option<pipe::Receiver>| {
                Stream::new(pipe.expect("started with split output"), running.exit.clone())
            };
            let pipes = Pipes {
                stdin: running.stdin,
                stdout: piped(running.stdout),
                stderr: Some(piped(running.stderr)),
            };
            let streams = Streams::Pipes(Box::new(pipes));
            Ok(Program { leader: running.pid, exit: running.exit, streams })
        }
    }
}

/// Whoever calls acts for the node and not for the sandbox's user, so it may name any account.
fn start_run(daemon: &Daemon, run: &RunProgram) -> io::Result<Program> {
    let [program, args @ ..] = run.argv.as_slice() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program is named"));
    };
    let account = daemon.accounts().resolve(&run.user).map_err(io::Error::other)?;
    let mut env = run.env.clone();
    env.entry("HOME".to_owned()).or_insert_with(|| account.home.to_string_lossy().into_owned());
    let cwd = PathBuf::from(&run.work_dir);
    std::fs::create_dir_all(&cwd)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", run.work_dir)))?;
    let launch = Launch { program: program.into(), arg0: None, args: args.to_vec(), env, cwd };
    let launcher = daemon.launcher.of(account);
    let running = launcher
        .start(launch, Input::Empty, Output::Merged)
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let stdout = running.stdout.expect("started with merged output");
    let pipes = Pipes { stdin: None, stdout: Stream::new(stdout, running.exit.clone()), stderr: None };
    Ok(Program { leader: running.pid, exit: running.exit, streams: Streams::Pipes(Box::new(pipes)) })
}

fn size_of(size: PtySize) -> Size {
    Size::clamped(size.cols, size.rows)
}

enum Typed {
    Bytes(Bytes),
    Eof,
}

/// Until the door has gone, or breaks the protocol.
async fn listen<R: AsyncRead + Unpin>(
    daemon: &Daemon,
    leader: Pid,
    terminal: Option<&Master>,
    frames: &mut FrameReader<R>,
    typed: mpsc::Sender<Typed>,
) {
    while let Ok(Some(Frame { kind, payload })) = frames.next().await {
        let input = match kind {
            FrameKind::Stdin => Typed::Bytes(payload),
            FrameKind::StdinEof => Typed::Eof,
            FrameKind::Resize => {
                if let (Some(master), Ok(size)) = (terminal, serde_json::from_slice(&payload)) {
                    // It may be closing.
                    let _ = master.resize(size_of(size));
                }
                continue;
            }
            FrameKind::Signal => {
                if let Some(signal) = std::str::from_utf8(&payload).ok().and_then(parse_signal) {
                    // On a terminal, who has the keyboard; its group is alive, or the kernel says so.
                    match terminal.and_then(Master::foreground) {
                        Some(group) => drop(rustix::process::kill_process_group(group, signal)),
                        None => daemon.launcher.reaper.signal_group(leader, signal),
                    }
                }
                continue;
            }
            _ => {
                tracing::debug!(?kind, "frame that a door never sends");
                return;
            }
        };
        if typed.send(input).await.is_err() {
            return;
        }
    }
}

/// A program that has closed its input, or ended, loses what comes after; the rest of the frames must still be heard.
async fn feed_pipe(mut stdin: Option<pipe::Sender>, mut waiting: mpsc::Receiver<Typed>) {
    while let Some(typed) = waiting.recv().await {
        match (typed, &mut stdin) {
            (Typed::Bytes(bytes), Some(pipe)) => {
                if pipe.write_all(&bytes).await.is_err() {
                    stdin = None;
                }
            }
            (Typed::Eof, _) => stdin = None,
            (Typed::Bytes(_), None) => {}
        }
    }
}

/// A terminal has no end of input, only keys; as under sshd the client's end changes nothing.
async fn feed_terminal(master: &Master, mut waiting: mpsc::Receiver<Typed>) {
    let mut is_open = true;
    while let Some(typed) = waiting.recv().await {
        if let (Typed::Bytes(bytes), true) = (typed, is_open) {
            is_open = master.write_all(&bytes).await.is_ok();
        }
    }
}

async fn show(mut stream: Stream, kind: FrameKind, output: &mpsc::Sender<Frame>) {
    while let Some(chunk) = stream.next().await {
        if output.send(Frame::new(kind, chunk.to_vec())).await.is_err() {
            // Nobody reads any more: closing the pipe tells the program.
            return;
        }
    }
}

async fn show_terminal(master: &Master, mut exit: ExitWatch, output: &mpsc::Sender<Frame>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = master.read(&mut buffer) => read.unwrap_or(0),
            () = async { exit.exited().await; tokio::time::sleep(QUIET).await } => 0,
        };
        if read == 0 || output.send(Frame::new(FrameKind::Stdout, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

fn channel_exit(exit: Exit) -> ChannelExit {
    match exit {
        Exit::Code(code) => ChannelExit::Code(code),
        Exit::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
            Ok(signal) => ChannelExit::Signal(signal.as_str().trim_start_matches("SIG").to_owned()),
            Err(_) => ChannelExit::Code(128 + number),
        },
    }
}

/// The names of RFC 4254; others are not a client's business.
fn parse_signal(name: &str) -> Option<Signal> {
    Some(match name {
        "ABRT" => Signal::ABORT,
        "ALRM" => Signal::ALARM,
        "FPE" => Signal::FPE,
        "HUP" => Signal::HUP,
        "ILL" => Signal::ILL,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "PIPE" => Signal::PIPE,
        "QUIT" => Signal::QUIT,
        "SEGV" => Signal::SEGV,
        "TERM" => Signal::TERM,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_a_code_or_a_signals_name() {
        assert_eq!(channel_exit(Exit::Code(3)), ChannelExit::Code(3));
        assert_eq!(channel_exit(Exit::Signal(9)), ChannelExit::Signal("KILL".into()));
        assert_eq!(parse_signal("TERM"), Some(Signal::TERM));
        assert_eq!(parse_signal("SIGTERM"), None);
    }
}
