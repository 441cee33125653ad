//! One context's python3: its pipes, its channel, and one run at a time.
//!
//!   run ─▶ code is sent ─▶ output and reports ─▶ done
//!              │ time is over, or nobody listens: SIGINT to its group ─▶ done in time: the context goes on as it is
//!              └───────────────────────────────── INTERRUPT_GRACE over ─▶ SIGKILL: the next run begins with nothing

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::frames::{Control, Cutter, Frame, Source};
use super::{End, Run, Said, asked_to_close};
use crate::launch::{Input, Launch, Output};
use crate::output::CHUNK_BYTES;
use crate::programs::first_in_path;
use crate::reaper::{Exit, ExitWatch, Reaper};
use crate::routes::Daemon;

const DRIVER: &str = include_str!("driver.py");
const INTERPRETERS: &[&str] = &["python3", "python"];
/// Between SIGINT and SIGKILL.
const INTERRUPT_GRACE: Duration = Duration::from_secs(2);
/// A report carries an error of bounded length; anything longer isn't the driver's.
const REPORT_BYTES_MAX: usize = 1024 * 1024;
/// Frames that wait for a client who is told the end of its run and takes its time. What is more is dropped then.
const LATE_FRAMES_MAX: usize = 4096;
/// Other runs wait while a client takes the last frames of its own. What it has not taken by then it does not get.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(30);
const CHANNEL_CLOSED: &str = "the code closed the interpreter's channel; its variables are lost";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The image's.
    #[error("none of {} is in the sandbox's PATH", INTERPRETERS.join(", "))]
    NoPython,
    /// The caller's folder, mostly.
    #[error("could not start python3 in {0}: {1}")]
    Io(String, io::Error),
}

/// Dropping it kills everything that it and its code have started.
pub struct Process {
    leader: Pid,
    exit: ExitWatch,
    reaper: Reaper,
    requests: OwnedWriteHalf,
    reports: Reports,
    stdout: Pipe,
    stderr: Pipe,
    serial: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reaper.signal_group(self.leader, Signal::KILL);
        self.reaper.signal_session(self.leader, Signal::KILL);
    }
}

/// How a run left its process.
pub enum Left {
    Alive(End),
    /// To be dropped.
    Dead(End),
}

#[derive(Deserialize)]
struct Report {
    id: u64,
    #[serde(flatten)]
    what: What,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum What {
    Error { name: String, value: String, traceback: String },
    Done { interrupted: bool },
}

/// What a run is stopped for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    TimedOut,
    NobodyListens,
}

impl Process {
    pub async fn start(daemon: &Daemon, cwd: &Path) -> Result<Process, StartError> {
        let env = daemon.environment.with(&Default::default());
        let (_, program) = first_in_path(daemon, &env, INTERPRETERS).await.ok_or(StartError::NoPython)?;
        let failed = |error| StartError::Io(cwd.display().to_string(), error);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let (reports, requests) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        let theirs = OwnedFd::from(theirs);
        let number = theirs.as_raw_fd();
        let launch = Launch {
            program,
            arg0: None,
            args: vec!["-".into(), number.to_string()],
            env,
            cwd: cwd.to_owned(),
        };
        let mut running = daemon
            .launcher
            .start_with(launch, Input::Piped, Output::Split, Some(theirs.as_fd()))
            .map_err(failed)?;
        let mut stdin = running.stdin.take().expect("started with a piped input");
        let process = Process {
            leader: running.pid,
            exit: running.exit,
            reaper: daemon.launcher.reaper.clone(),
            requests,
            reports: Reports { stream: reports, buffer: Vec::new() },
            stdout: Pipe::new(running.stdout.take().expect("started with split output"), Source::Stdout),
            stderr: Pipe::new(running.stderr.take().expect("started with split output"), Source::Stderr),
            serial: 0,
        };
        // A pipe takes all of it at once. That its end follows is what makes `input()` meet the end of input.
        stdin.write_all(DRIVER.as_bytes()).await.map_err(failed)?;
        Ok(process)
    }

    /// Between runs: output of what still runs in the background belongs to nobody. Returns when the process has ended.
    pub async fn idle(&mut self) {
        loop {
            tokio::select! {
                _ = self.stdout.read() => {}
                _ = self.stderr.read() => {}
                // Nothing is to be said now, so this is the end, or a lie.
                _ = self.reports.next() => return,
                _ = self.exit.exited() => return,
            }
        }
    }

    /// Returns once the run is over and all its frames are with the client, or there is no client any more.
    pub async fn run(&mut self, run: &Run, closing: &mut watch::Receiver<bool>) -> Left {
        self.serial += 1;
        let mut request = json!({ "id": self.serial, "code": run.code, "envs": run.envs }).to_string();
        request.push('\n');
        let Process { leader, exit, reaper, requests, reports, stdout, stderr, serial } = self;
        let mut sending = std::pin::pin!(requests.write_all(request.as_bytes()));
        let mut is_sent = false;
        let mut waiting: VecDeque<Frame> = VecDeque::new();
        let mut stop: Option<Stop> = None;
        // A point in time that is far enough for "never".
        let never = Instant::now() + Duration::from_secs(u32::MAX.into());
        let mut deadline = run.timeout.map_or(never, |timeout| Instant::now() + timeout);
        let left = loop {
            // A client that takes nothing holds its program back, until the run is stopped.
            let may_read = waiting.is_empty() || stop.is_some();
            let is_heard = stop != Some(Stop::NobodyListens);
            tokio::select! {
                sent = &mut sending, if !is_sent => {
                    is_sent = true;
                    if sent.is_err() {
                        break Left::Dead(died(exit.exited().await));
                    }
                }
                place = run.frames.reserve(), if !waiting.is_empty() && is_heard => {
                    if let (Ok(place), Some(frame)) = (place, waiting.pop_front()) {
                        place.send(Said::Frame(frame));
                    }
                }
                read = stdout.read(), if may_read => stdout.cut(read, &mut waiting),
                read = stderr.read(), if may_read => stderr.cut(read, &mut waiting),
                report = reports.next(), if may_read => match report {
                    Some(Report { id, what }) if id == *serial => {
                        // What was written before the report is in the pipes already.
                        stdout.drain(&mut waiting);
                        stderr.drain(&mut waiting);
                        match what {
                            What::Error { name, value, traceback } => {
                                waiting.push_back(Frame::Error { name, value, traceback });
                            }
                            What::Done { interrupted } => {
                                stdout.cutter.finish(&mut waiting);
                                stderr.cutter.finish(&mut waiting);
                                let text = if interrupted { Control::Interrupted } else { Control::Completed };
                                waiting.push_back(Frame::Control { text });
                                break Left::Alive(match stop {
                                    Some(Stop::TimedOut) => End::TimedOut,
                                    _ => End::Done,
                                });
                            }
                        }
                    }
                    // Of a run before: there is none, unless code speaks on the channel.
                    Some(_) => {}
                    // The process is ending, or its code has closed the channel.
                    None => {
                        let ended = tokio::time::timeout(INTERRUPT_GRACE, exit.exited()).await;
                        stdout.drain(&mut waiting);
                        stderr.drain(&mut waiting);
                        break Left::Dead(ended.map_or(End::Died(CHANNEL_CLOSED.into()), died));
                    }
                },
                ended = exit.exited() => {
                    stdout.drain(&mut waiting);
                    stderr.drain(&mut waiting);
                    break Left::Dead(died(ended));
                }
                () = run.frames.closed(), if stop.is_none() => {
                    stop = Some(Stop::NobodyListens);
                    reaper.signal_group(*leader, Signal::INT);
                    deadline = Instant::now() + INTERRUPT_GRACE;
                }
                () = sleep_until(deadline) => match stop {
                    None => {
                        stop = Some(Stop::TimedOut);
                        reaper.signal_group(*leader, Signal::INT);
                        deadline = Instant::now() + INTERRUPT_GRACE;
                    }
                    Some(Stop::TimedOut) => break Left::Dead(End::TimedOutAndKilled),
                    Some(Stop::NobodyListens) => break Left::Dead(End::Done),
                },
                () = asked_to_close(closing) => return Left::Dead(End::Deleted),
            }
            match stop {
                None => {}
                Some(Stop::TimedOut) => waiting.truncate(LATE_FRAMES_MAX),
                Some(Stop::NobodyListens) => waiting.clear(),
            }
        };
        // Code may leave its end to the signal's own way.
        let left = match (left, stop) {
            (Left::Dead(_), Some(Stop::TimedOut)) => {
                waiting.push_back(Frame::Control { text: Control::Interrupted });
                Left::Dead(End::TimedOutAndKilled)
            }
            (left, _) => left,
        };
        let handed_over = async {
            for frame in waiting {
                if run.frames.send(Said::Frame(frame)).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(HAND_OVER_DEADLINE, handed_over) => {}
            () = asked_to_close(closing) => {}
        }
        left
    }
}

fn died(exit: Exit) -> End {
    End::Died(match exit {
        Exit::Code(code) => format!("the interpreter ended with code {code}; its variables are lost"),
        Exit::Signal(number) => format!("the interpreter ended by signal {number}; its variables are lost"),
    })
}

struct Reports {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Reports {
    /// `None` once no sense can come any more. Cancel-safe.
    async fn next(&mut self) -> Option<Report> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            if self.buffer.len() > REPORT_BYTES_MAX {
                return None;
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

struct Pipe {
    /// Absent once every writer has closed it.
    pipe: Option<pipe::Receiver>,
    cutter: Cutter,
    buffer: Box<[u8]>,
}

impl Pipe {
    fn new(pipe: pipe::Receiver, source: Source) -> Pipe {
        Pipe { pipe: Some(pipe), cutter: Cutter::new(source), buffer: vec![0; CHUNK_BYTES].into() }
    }
    /// How much came. At the end it waits for ever; the process's own end is seen elsewhere. Cancel-safe.
    async fn read(&mut self) -> usize {
        let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
        let read = pipe.read(&mut self.buffer).await.unwrap_or(0);
        if read == 0 {
            self.pipe = None;
        }
        read
    }

    fn cut(&mut self, read: usize, frames: &mut VecDeque<Frame>) {
        self.cutter.cut(&self.buffer[..read], frames);
    }

    /// What stands in the pipe now, and not what may come meanwhile.
    fn drain(&mut self, frames: &mut VecDeque<Frame>) {
        let Some(pipe) = &self.pipe else { return };
        let mut owed = rustix::io::ioctl_fionread(pipe).map_or(0, |bytes| bytes as usize);
        while owed > 0 {
            let step = owed.min(self.buffer.len());
            let Ok(read @ 1..) = pipe.try_read(&mut self.buffer[..step]) else { return };
            self.cutter.cut(&self.buffer[..read], frames);
            owed -= read;
        }
    }
}
