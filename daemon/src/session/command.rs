//! One command of a session: its text, its log, its input, and whether it has ended.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::log::{Log, Source};
use super::watch;
use crate::files::workers::Workers;

/// How long input may wait for a command that doesn't read.
const INPUT_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// Reads end at once.
    Empty,
    /// Stays open for `input` until the command has ended.
    Open { echo: Echo },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    IntoLog,
    Nowhere,
}

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the command has ended")]
    Ended,
    #[error("a command that is waited for has no input")]
    NoInput,
    #[error("the command did not read its input for {} s", INPUT_DEADLINE.as_secs())]
    NotRead,
}

/// What only a command of a shell has.
pub struct Standing {
    pub serial: u64,
    pub dir: PathBuf,
    pub stdin: Stdin,
}

pub struct Command {
    pub id: String,
    pub text: String,
    pub log: Arc<Log>,
    /// Absent for the entrypoint.
    pub standing: Option<Standing>,
    input: tokio::sync::Mutex<Option<pipe::Sender>>,
    exit_code: watch::Sender<Option<i32>>,
    /// FIFOs' ends until the driver takes them.
    pub ends: Mutex<Option<Ends>>,
}

/// Our ends of a command's output. The writers keep end-of-file away until the shell has opened its own.
pub struct Ends {
    pub stdout: pipe::Receiver,
    pub stderr: pipe::Receiver,
    pub keep_open: [pipe::Sender; 2],
}

impl Command {
    pub fn running(id: String, text: String, log: Arc<Log>) -> Command {
        Command {
            id,
            text,
            log,
            standing: None,
            input: Default::default(),
            exit_code: watch::Sender::new(None),
            ends: Mutex::default(),
        }
    }

    /// Writes the script and makes the FIFOs, all for `owner` (uid, gid) alone, in `dir`, which is ours alone.
    pub fn waiting(
        serial: u64,
        text: String,
        dir: PathBuf,
        stdin: Stdin,
        owner: (u32, u32),
        workers: &Workers,
    ) -> io::Result<Command> {
        let log = Arc::new(Log::create(&dir.join("output.log"), workers.clone())?);
        let mut script =
            OpenOptions::new().write(true).create_new(true).mode(0o400).open(dir.join("script"))?;
        script.write_all(text.as_bytes())?;
        script.write_all(b"\n")?;
        chown(dir.join("script"), Some(owner.0), Some(owner.1))?;
        for name in ["out", "err"] {
            make_fifo(&dir.join(name), owner)?;
        }
        let options = pipe::OpenOptions::new();
        let (stdout, stderr) =
            (options.open_receiver(dir.join("out"))?, options.open_receiver(dir.join("err"))?);
        let keep_open = [options.open_sender(dir.join("out"))?, options.open_sender(dir.join("err"))?];
        let input = match stdin {
            Stdin::Empty => None,
            Stdin::Open { .. } => {
                make_fifo(&dir.join("in"), owner)?;
                // Read-write, so that opening waits for nobody and input may come before the shell gets here.
                Some(pipe::OpenOptions::new().read_write(true).open_sender(dir.join("in"))?)
            }
        };
        Ok(Command {
            id: uuid::Uuid::new_v4().to_string(),
            text,
            log,
            standing: Some(Standing { serial, dir, stdin }),
            input: tokio::sync::Mutex::new(input),
            exit_code: watch::Sender::new(None),
            ends: Mutex::new(Some(Ends { stdout, stderr, keep_open })),
        })
    }

    pub fn exit_code(&self) -> Option<i32> {
        *self.exit_code.borrow()
    }

    pub fn watch_exit_code(&self) -> watch::Receiver<Option<i32>> {
        self.exit_code.subscribe()
    }

    pub async fn write_input(&self, data: &str) -> Result<(), InputError> {
        if self.exit_code().is_some() {
            return Err(InputError::Ended);
        }
        let mut line = data.as_bytes().to_vec();
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        let mut input = self.input.lock().await;
        let Some(pipe) = input.as_mut() else {
            return Err(if self.exit_code().is_some() { InputError::Ended } else { InputError::NoInput });
        };
        let written = tokio::time::timeout(INPUT_DEADLINE, pipe.write_all(&line)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(InputError::Ended),
            Err(_) => return Err(InputError::NotRead),
        }
        drop(input);
        if matches!(
            self.standing.as_ref().map(|standing| standing.stdin),
            Some(Stdin::Open { echo: Echo::IntoLog })
        ) {
            self.log.append(Source::Stdout, &line).await;
        }
        Ok(())
    }

    /// Input ends first: what is written after this finds no reader.
    pub async fn close_input(&self) {
        self.input.lock().await.take();
    }

    pub fn finish_if_running(&self, exit_code: i32) {
        self.exit_code.send_if_modified(|current| {
            let is_running = current.is_none();
            if is_running {
                *current = Some(exit_code);
            }
            is_running
        });
    }

    /// What the shell needed; the log stays.
    pub fn remove_pipes(&self) {
        if let Some(standing) = &self.standing {
            for name in ["script", "in", "out", "err"] {
                // Some were never made.
                let _ = std::fs::remove_file(standing.dir.join(name));
            }
        }
    }

    pub fn remove_files(&self) {
        if let Some(standing) = &self.standing {
            let _ = std::fs::remove_dir_all(&standing.dir);
        }
    }

    pub fn take_ends(&self) -> Option<Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn make_fifo(path: &Path, owner: (u32, u32)) -> io::Result<()> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    chown(path, Some(owner.0), Some(owner.1))
}
