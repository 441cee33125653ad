//! A child that answers questions, one JSON line for one JSON line. What speaks to programs of the sandbox (an X server, a bus)
//! does so in such a child, as the user, so that neither their answers nor their silence can harm the daemon.

use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::launch::{Input, Launch, Launcher, Output};
use crate::reaper::Reaper;

/// A picture of a large screen, in Base64, and more than any tree that is not cut off before.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The caller's, in the helper's words.
    #[error("{0}")]
    Refused(String),
    /// The caller's: what is named is not there, or no more.
    #[error("{0}")]
    Unknown(String),
    /// The sandbox's: what the helper speaks to does not answer, or is not there.
    #[error("{0}")]
    Unavailable(String),
}

pub struct Helper {
    /// Absent before its first question and after it has failed at one.
    child: tokio::sync::Mutex<Option<Child>>,
}

impl Default for Helper {
    fn default() -> Helper {
        Helper { child: tokio::sync::Mutex::new(None) }
    }
}

struct Child {
    leader: Pid,
    reaper: Reaper,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
}

/// What a line of it says.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Box<RawValue>),
    Refused(String),
    Unknown(String),
    Unavailable(String),
}

impl Helper {
    /// Started by `launch` when it does not run. A question that is not answered in time, or whose caller has gone, ends it: the
    /// next one is not to read the former one's answer.
    pub async fn ask(
        &self,
        launcher: &Launcher,
        launch: impl FnOnce() -> Launch,
        question: &Value,
        deadline: Duration,
    ) -> Result<Box<RawValue>, HelperError> {
        let exchange = async {
            let mut place = self.child.lock().await;
            let mut child = match place.take() {
                Some(child) => child,
                None => Child::start(launcher, launch())?,
            };
            let answer = match child.exchange(question).await {
                Ok(answer) => answer,
                // It had ended since the last question; not asked twice, as it may have died of this one.
                Err(error) => return Err(HelperError::Unavailable(format!("the helper ended: {error}"))),
            };
            if !matches!(answer, Answer::Unavailable(_)) {
                *place = Some(child);
            }
            match answer {
                Answer::Ok(value) => Ok(value),
                Answer::Refused(why) => Err(HelperError::Refused(why)),
                Answer::Unknown(why) => Err(HelperError::Unknown(why)),
                Answer::Unavailable(why) => Err(HelperError::Unavailable(why)),
            }
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} s", deadline.as_secs());
            Err(HelperError::Unavailable(why))
        })
    }

    /// It is started anew when it is asked again.
    pub async fn end(&self) {
        self.child.lock().await.take();
    }
}

impl Child {
    fn start(launcher: &Launcher, launch: Launch) -> Result<Child, HelperError> {
        let program = launch.program.display().to_string();
        let running = launcher
            .start(launch, Input::Piped, Output::StdoutOnly)
            .map_err(|error| HelperError::Unavailable(format!("could not start {program}: {error}")))?;
        let (Some(stdin), Some(stdout)) = (running.stdin, running.stdout) else {
            unreachable!("started with both pipes")
        };
        Ok(Child { leader: running.pid, reaper: launcher.reaper.clone(), stdin, stdout })
    }

    async fn exchange(&mut self, question: &Value) -> std::io::Result<Answer> {
        let mut line = question.to_string().into_bytes();
        line.push(b'\n');
        self.stdin.write_all(&line).await?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(wrong("its answer has no end"));
            }
            answer.reserve(CHUNK_BYTES);
            if self.stdout.read_buf(&mut answer).await? == 0 {
                return Err(wrong("it closed its output"));
            }
        }
        serde_json::from_slice(&answer).map_err(|error| wrong(&error.to_string()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.reaper.signal_group(self.leader, Signal::KILL);
    }
}

fn wrong(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}
