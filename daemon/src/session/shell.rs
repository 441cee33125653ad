//! Drives a session's shell: feeds it one command at a time and copies their output into their logs.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::command::{Command, Ends, Standing, Stdin};
use super::log::{Log, Source};
use crate::launch::Running;
use crate::output::{CHUNK_BYTES, Stream};
use crate::reaper::ExitWatch;
use std::time::Duration;

/// The shell says `serial code`, far below this.
const STATUS_LINE_BYTES_MAX: u64 = 256;
/// A command has ended and a child of it still holds its output open: the command counts as ended once this long nothing was
/// written, or at [`DRAIN_ROUNDS_MAX`] times it. What the child writes later still goes into the log.
const QUIET: Duration = Duration::from_millis(250);
const DRAIN_ROUNDS_MAX: usize = 8;

/// What must be written differently for different shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A syntax error in a sourced file is a status.
    Forgiving,
    /// A syntax error in a sourced file ends the shell (dash, busybox): ask first whether it parses.
    Strict,
}

impl Dialect {
    pub fn of(shell: &Path) -> Dialect {
        let is_forgiving = shell.ends_with("bash") || shell.ends_with("zsh");
        if is_forgiving { Dialect::Forgiving } else { Dialect::Strict }
    }
}

/// Ends when the session is deleted (its queue closes or the task is aborted) or its shell ends.
pub async fn drive(mut running: Running, dialect: Dialect, mut queue: mpsc::Receiver<Arc<Command>>) {
    let mut shell = Shell {
        stdin: running.stdin.take().expect("started with a piped input"),
        statuses: BufReader::new(
            running.stdout.take().expect("started with its output piped").take(u64::MAX),
        ),
        dialect,
    };
    // Copiers outlive their command when a child of it holds the pipe; they end with the session.
    let mut copiers = JoinSet::new();
    let mut exit = running.exit.clone();
    loop {
        while copiers.try_join_next().is_some() {}
        let command = tokio::select! {
            command = queue.recv() => command,
            _ = exit.exited() => None,
        };
        let Some(command) = command else { break };
        let exit_code = match shell.run(&command, &mut copiers, &mut exit).await {
            Some(exit_code) => exit_code,
            // The shell is ending, or has.
            None => exit.exited().await.shell_code(),
        };
        command.finish_if_running(exit_code);
    }
    // The shell is gone; what still waits will never run.
    queue.close();
    let code = exit.exited().await.shell_code();
    while let Some(command) = queue.recv().await {
        command.remove_pipes();
        command.finish_if_running(code);
    }
    while copiers.join_next().await.is_some() {}
}

/// Without a shell: copies a program's output until it ends.
pub async fn watch_program(mut running: Running, command: Arc<Command>) {
    let mut stdout =
        Stream::new(running.stdout.take().expect("started with split output"), running.exit.clone());
    let mut stderr =
        Stream::new(running.stderr.take().expect("started with split output"), running.exit.clone());
    let out = async {
        while let Some(chunk) = stdout.next().await {
            command.log.append(Source::Stdout, chunk).await;
        }
    };
    let err = async {
        while let Some(chunk) = stderr.next().await {
            command.log.append(Source::Stderr, chunk).await;
        }
    };
    tokio::join!(out, err);
    command.finish_if_running(running.exit.exited().await.shell_code());
}

struct Shell {
    stdin: pipe::Sender,
    statuses: BufReader<tokio::io::Take<pipe::Receiver>>,
    dialect: Dialect,
}

impl Shell {
    /// The exit code, or `None` when the shell ended before it could say one.
    async fn run(
        &mut self,
        command: &Arc<Command>,
        copiers: &mut JoinSet<()>,
        exit: &mut ExitWatch,
    ) -> Option<i32> {
        let standing = command.standing.as_ref().expect("only commands of shells are queued");
        let Ends { stdout, stderr, keep_open } = command.take_ends().expect("a command runs once");
        let drained = {
            let (done, drained) = oneshot::channel();
            let log = command.log.clone();
            copiers.spawn(async move {
                copy(stdout, stderr, log).await;
                let _ = done.send(());
            });
            drained
        };
        let line = instruction(self.dialect, standing);
        let exit_code = match self.stdin.write_all(line.as_bytes()).await {
            // A subshell in the background may hold the status pipe open longer than the shell lives.
            Ok(()) => tokio::select! {
                biased;
                status = self.status(standing.serial) => status,
                _ = exit.exited() => None,
            },
            Err(_) => None,
        };
        drop(keep_open);
        command.close_input().await;
        drain(drained, &command.log).await;
        command.remove_pipes();
        exit_code
    }

    /// Skips anything that isn't this command's status line: a user's trap or function may write here.
    async fn status(&mut self, serial: u64) -> Option<i32> {
        loop {
            let mut line = Vec::new();
            self.statuses.get_mut().set_limit(STATUS_LINE_BYTES_MAX);
            if self.statuses.read_until(b'\n', &mut line).await.ok()? == 0 {
                return None;
            }
            let parsed = std::str::from_utf8(&line).ok().and_then(|line| {
                let (said, code) = line.trim_end().split_once(' ')?;
                (said.parse() == Ok(serial)).then(|| code.parse().ok())?
            });
            if parsed.is_some() {
                return parsed;
            }
        }
    }
}

/// Waits for the last of a command's output.
async fn drain(mut drained: oneshot::Receiver<()>, log: &Log) {
    for _ in 0..DRAIN_ROUNDS_MAX {
        let before = log.length();
        if tokio::time::timeout(QUIET, &mut drained).await.is_ok() || log.length() == before {
            return;
        }
    }
}

/// `>|` works also where the user has set noclobber, `\command echo` where they have an alias or a function. The path is ours: digits and slashes,
/// quoted for the part that an operator chose.
fn instruction(dialect: Dialect, standing: &Standing) -> String {
    let file = |name: &str| quoted(&standing.dir.join(name));
    let input = match standing.stdin {
        Stdin::Empty => "/dev/null".to_owned(),
        Stdin::Open { .. } => file("in"),
    };
    let (script, out, err) = (file("script"), file("out"), file("err"));
    let body = match dialect {
        Dialect::Forgiving => format!(". {script}"),
        Dialect::Strict => format!("if sh -n {script}; then . {script}; else (exit 2); fi"),
    };
    format!("{{ {body}; }} <{input} >|{out} 2>|{err}; \\command echo {} $?\n", standing.serial)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Until both have ended. Of two that wait, stdout goes first: most programs write their warnings after.
async fn copy(stdout: pipe::Receiver, stderr: pipe::Receiver, log: Arc<Log>) {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    let mut buffers = [vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]];
    let [out, err] = &mut buffers;
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            biased;
            read = read(&mut stdout, out), if stdout.is_some() => match read {
                0 => stdout = None,
                read => log.append(Source::Stdout, &out[..read]).await,
            },
            read = read(&mut stderr, err), if stderr.is_some() => match read {
                0 => stderr = None,
                read => log.append(Source::Stderr, &err[..read]).await,
            },
        }
    }
}

/// 0 is the end.
async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_that_die_of_syntax_are_asked_first() {
        let standing = Standing { serial: 7, dir: "/run/it's".into(), stdin: Stdin::Empty };

        assert_eq!(
            instruction(Dialect::of(Path::new("/usr/bin/bash")), &standing),
            "{ . '/run/it'\\''s/script'; } </dev/null >|'/run/it'\\''s/out' 2>|'/run/it'\\''s/err'; \\command echo 7 $?\n"
        );
        assert!(instruction(Dialect::of(Path::new("/bin/sh")), &standing).contains("sh -n"));
    }
}
