//! `/process/execute` and `/process/code-run`: one program, its output, its exit code, within a time.
//!
//! `result` is what the program wrote to both streams, in the order in which it wrote; `stdout` and `stderr` are the same apart.
//!
//! Each of the three is bounded by [`OUTPUT_BYTES_MAX`], the middle of more is left out. Reading goes on, so the program does not
//! wait, and memory does not grow.

mod charts;
mod code_run;
mod execute;

pub use code_run::code_run;
pub use execute::execute;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use crate::environment::first_invalid;
use crate::errors::ApiError;
use crate::interleaved::{Interleaved, Source};
use crate::launch::{Input, Launch, Launcher};
use crate::output::{Bounded, OUTPUT_BYTES_MAX, Stream};
use crate::reaper::Reaper;
use charts::Chart;
use rustix::process::{Pid, Signal};

/// `exit_code` is -1 when the program could not be started; `result` then says why, and `stderr` too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    pub exit_code: i32,
    pub result: String,
    pub stdout: String,
    pub stderr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Artifacts>,
}

#[derive(Serialize)]
pub struct Artifacts {
    charts: Vec<Chart>,
}

impl Ended {
    pub fn not_started(exit_code: i32, result: String) -> Ended {
        Ended { exit_code, stderr: result.clone(), result, stdout: String::new(), artifacts: None }
    }
}

pub struct Run {
    pub launch: Launch,
    /// Written to its standard input, which then ends.
    pub input: Vec<u8>,
    pub timeout: Option<Duration>,
    /// Where a program tells of its charts: its end and ours.
    pub charts: Option<(OwnedFd, pipe::Receiver)>,
}

/// Everything the program started in its session goes with the request: at the timeout, and when the caller has gone.
struct KillUnlessEnded<'a> {
    reaper: &'a Reaper,
    leader: Pid,
    ended: bool,
}

impl Drop for KillUnlessEnded<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.reaper.signal_group(self.leader, Signal::KILL);
            self.reaper.signal_session(self.leader, Signal::KILL);
        }
    }
}

pub async fn run(launcher: &Launcher, run: Run) -> Result<Ended, ApiError> {
    let input = if run.input.is_empty() { Input::Empty } else { Input::Piped };
    let what = format!("{} in {}", run.launch.program.display(), run.launch.cwd.display());
    let (theirs, ours) = run.charts.unzip();
    let kept = theirs.as_ref().map(|descriptor| descriptor.as_fd());
    let started = launcher.start_interleaved(run.launch, input, kept);
    // Or we would wait for ourselves to close it.
    drop(theirs);
    let (mut running, output) = match started {
        Ok(running) => running,
        Err(error) => return Ok(Ended::not_started(-1, format!("could not start {what}: {error}"))),
    };
    let mut kill = KillUnlessEnded { reaper: &launcher.reaper, leader: running.pid, ended: false };
    let stdin = running.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // The program may end, or close its input, before it has read everything.
            let _ = stdin.write_all(&run.input).await;
        }
    };
    let stream = |pipe| Stream::new(pipe, running.exit.clone());
    let drawn = async {
        match ours.map(stream) {
            Some(stream) => charts::read(stream).await,
            None => Vec::new(),
        }
    };
    let collect = async { tokio::join!(collect(output), drawn) };
    let mut exit = running.exit.clone();
    let whole = async {
        tokio::pin!(collect);
        let collected = tokio::select! {
            collected = &mut collect => collected,
            () = async { feed.await; std::future::pending().await } => unreachable!("pending"),
        };
        (exit.exited().await, collected)
    };
    let (exit, collected) = match run.timeout {
        None => whole.await,
        Some(timeout) => tokio::time::timeout(timeout, whole).await.map_err(|_| {
            ApiError::execution_timeout(format!(
                "the command ran longer than {} s and was killed",
                timeout.as_secs()
            ))
        })?,
    };
    kill.ended = true;
    let ([result, stdout, stderr], charts) = collected;
    Ok(Ended {
        exit_code: exit.shell_code(),
        result: result.into_text(),
        stdout: stdout.into_text(),
        stderr: stderr.into_text(),
        artifacts: (!charts.is_empty()).then_some(Artifacts { charts }),
    })
}

/// Both, stdout, stderr.
async fn collect(mut output: Interleaved) -> [Bounded; 3] {
    let [mut both, mut stdout, mut stderr] = [(); 3].map(|()| Bounded::new(OUTPUT_BYTES_MAX));
    while let Some((source, chunk)) = output.next().await {
        both.push(chunk);
        match source {
            Source::Stdout => stdout.push(chunk),
            Source::Stderr => stderr.push(chunk),
        }
    }
    [both, stdout, stderr]
}

/// Absent and 0 mean no limit.
fn timeout_of(seconds: Option<i64>) -> Result<Option<Duration>, ApiError> {
    match seconds {
        None | Some(0) => Ok(None),
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds.into()))),
            Err(_) => Err(ApiError::bad_request("timeout is a number of seconds")),
        },
    }
}

pub fn checked_envs(
    envs: Option<HashMap<String, String>>,
) -> Result<crate::environment::Variables, ApiError> {
    let envs = envs.unwrap_or_default();
    match first_invalid(&envs) {
        Some(name) => Err(ApiError::bad_request(format!("not an environment variable: {name:?}"))),
        None => Ok(envs.into_iter().collect()),
    }
}
