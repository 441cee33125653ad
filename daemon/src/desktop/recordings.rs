//! Films of the screen: one ffmpeg each, asked to finish its file before it is ended.
//!
//!   active ──stop, or a bound of time or size──▶ completed ──delete──▶ gone
//!      └──ffmpeg ends with an error──▶ failed ───────┘

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::log::Log;
use super::session::Live;
use crate::launch::{Input, Output, Running};
use crate::output::Stream;
use crate::programs::first_in_path;
use crate::reaper::{Exit, ExitWatch};
use crate::routes::Daemon;

/// Remembered; the file of each stays until it is deleted.
const RECORDINGS_MAX: usize = 100;
/// At a time: each takes most of a processor when the screen changes.
const ACTIVE_MAX: usize = 2;
/// Of one recording, which then ends as if it had been stopped.
const SECONDS_MAX: u32 = 2 * 60 * 60;
const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
const FRAMES_A_SECOND: u32 = 15;
/// Until the file has its first bytes.
const START_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// After SIGINT, for writing what players look for at the beginning of the file.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const LABEL_CHARS_MAX: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The caller's.
    #[error("no recording {0:?}")]
    Unknown(String),
    #[error("the recording {0:?} is still active: stop it first")]
    StillActive(String),
    #[error("the recording {0:?} has ended already")]
    Ended(String),
    #[error("a label has at most {LABEL_CHARS_MAX} characters, and no control characters")]
    BadLabel,
    #[error("at most {RECORDINGS_MAX} recordings: delete one")]
    TooMany,
    #[error("at most {ACTIVE_MAX} recordings at a time: stop one")]
    TooManyActive,
    /// The sandbox's.
    #[error(
        "ffmpeg is not in the sandbox's PATH; make the sandbox from the snapshot atoll-desktop, or install it"
    )]
    NoFfmpeg,
    #[error("{1}: {0}")]
    Folder(io::Error, String),
    #[error("ffmpeg did not start recording: {0}")]
    NoStart(String),
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recording {
    id: String,
    file_name: String,
    file_path: String,
    start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    status: &'static str,
    duration_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
}

#[derive(Default)]
pub struct Recordings {
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Held while one starts, so that the bounds hold.
    starting: tokio::sync::Mutex<()>,
}

struct Entry {
    id: String,
    path: PathBuf,
    began: OffsetDateTime,
    leader: Pid,
    exit: ExitWatch,
    errors: Arc<Log>,
    ended: Mutex<Option<Ended>>,
}

#[derive(Clone, Copy)]
struct Ended {
    at: OffsetDateTime,
    is_whole: bool,
}

impl Recordings {
    pub async fn start(&self, label: Option<&str>, live: &Live<'_>) -> Result<Recording, RecordingError> {
        let label = label.map(str::trim).filter(|label| !label.is_empty()).unwrap_or("recording");
        if label.chars().count() > LABEL_CHARS_MAX || label.chars().any(char::is_control) {
            return Err(RecordingError::BadLabel);
        }
        let daemon = live.daemon;
        let _starting = self.starting.lock().await;
        {
            let entries = self.lock();
            if entries.len() >= RECORDINGS_MAX {
                return Err(RecordingError::TooMany);
            }
            if entries.values().filter(|entry| entry.is_active()).count() >= ACTIVE_MAX {
                return Err(RecordingError::TooManyActive);
            }
        }
        let found = first_in_path(daemon, &live.environment, &["ffmpeg"]).await;
        let (_, program) = found.ok_or(RecordingError::NoFfmpeg)?;
        let id = uuid::Uuid::new_v4().to_string();
        let began = OffsetDateTime::now_utc();
        let path = make_folder(daemon).await?.join(file_name(label, began, &id));
        let args = arguments(&path);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let running = daemon
            .launcher
            .start(live.launch(program, &args), Input::Empty, Output::Merged)
            .map_err(|error| RecordingError::NoStart(error.to_string()))?;
        let entry = Arc::new(Entry {
            id: id.clone(),
            path,
            began,
            leader: running.pid,
            exit: running.exit.clone(),
            errors: Arc::default(),
            ended: Mutex::default(),
        });
        self.lock().insert(id.clone(), entry.clone());
        // Ends with ffmpeg.
        tokio::spawn(watch(running, entry.clone()));
        if let Err(error) = entry.wait_until_it_writes(daemon).await {
            daemon.launcher.reaper.signal_group(entry.leader, Signal::KILL);
            self.lock().remove(&id);
            let path = entry.path.clone();
            daemon.workers.detach(move || drop(std::fs::remove_file(path)));
            return Err(error);
        }
        Ok(entry.describe(daemon).await)
    }

    pub async fn stop(&self, id: &str, daemon: &Daemon) -> Result<Recording, RecordingError> {
        let entry = self.find(id)?;
        if !entry.is_active() {
            return Err(RecordingError::Ended(id.to_owned()));
        }
        entry.stop(daemon).await;
        Ok(entry.describe(daemon).await)
    }

    pub async fn stop_all(&self, daemon: &Daemon) {
        let active: Vec<_> = self.lock().values().filter(|entry| entry.is_active()).cloned().collect();
        for entry in active {
            entry.stop(daemon).await;
        }
    }

    pub async fn list(&self, daemon: &Daemon) -> Vec<Recording> {
        let mut entries: Vec<_> = self.lock().values().cloned().collect();
        entries.sort_by_key(|entry| entry.began);
        let mut described = Vec::new();
        for entry in entries {
            described.push(entry.describe(daemon).await);
        }
        described
    }

    pub async fn show(&self, id: &str, daemon: &Daemon) -> Result<Recording, RecordingError> {
        Ok(self.find(id)?.describe(daemon).await)
    }

    /// Where the file of one that is no longer written is.
    pub fn finished(&self, id: &str) -> Result<PathBuf, RecordingError> {
        let entry = self.find(id)?;
        if entry.is_active() {
            Err(RecordingError::StillActive(id.to_owned()))
        } else {
            Ok(entry.path.clone())
        }
    }

    pub async fn delete(&self, id: &str, daemon: &Daemon) -> Result<(), RecordingError> {
        let path = self.finished(id)?;
        let shown = path.display().to_string();
        let removed = daemon.workers.run(move || std::fs::remove_file(path)).await;
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordingError::Folder(error, shown))
            }
            _ => {
                self.lock().remove(id);
                Ok(())
            }
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Entry>, RecordingError> {
        self.lock().get(id).cloned().ok_or_else(|| RecordingError::Unknown(id.to_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn ended(&self) -> Option<Ended> {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_active(&self) -> bool {
        self.ended().is_none()
    }

    async fn wait_until_it_writes(&self, daemon: &Daemon) -> Result<(), RecordingError> {
        let writes = async {
            while self.is_active() {
                if self.size_bytes(daemon).await.is_some_and(|bytes| bytes > 0) {
                    return true;
                }
                tokio::time::sleep(POLL).await;
            }
            false
        };
        match tokio::time::timeout(START_DEADLINE, writes).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                let words = self.errors.last_line();
                Err(RecordingError::NoStart(words.unwrap_or_else(|| "it says nothing".into())))
            }
        }
    }

    async fn stop(&self, daemon: &Daemon) {
        daemon.launcher.reaper.signal_group(self.leader, Signal::INT);
        let mut exit = self.exit.clone();
        if tokio::time::timeout(STOP_DEADLINE, exit.exited()).await.is_err() {
            daemon.launcher.reaper.signal_group(self.leader, Signal::KILL);
            exit.exited().await;
        }
        // `watch` notes the end right after it.
        while self.is_active() {
            tokio::time::sleep(POLL).await;
        }
    }

    async fn size_bytes(&self, daemon: &Daemon) -> Option<u64> {
        let path = self.path.clone();
        daemon.workers.run(move || std::fs::metadata(path).ok().map(|metadata| metadata.len())).await
    }

    async fn describe(&self, daemon: &Daemon) -> Recording {
        let ended = self.ended();
        let until = ended.map_or_else(OffsetDateTime::now_utc, |ended| ended.at);
        let text = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
        Recording {
            id: self.id.clone(),
            file_name: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            file_path: self.path.display().to_string(),
            start_time: text(self.began),
            end_time: ended.map(|ended| text(ended.at)),
            status: match ended {
                None => "active",
                Some(Ended { is_whole: true, .. }) => "completed",
                Some(Ended { is_whole: false, .. }) => "failed",
            },
            duration_seconds: (until - self.began).as_seconds_f64().max(0.0),
            size_bytes: self.size_bytes(daemon).await,
        }
    }
}

async fn watch(running: Running, entry: Arc<Entry>) {
    let mut exit = running.exit.clone();
    if let Some(stdout) = running.stdout {
        let mut stream = Stream::new(stdout, exit.clone());
        while let Some(bytes) = stream.next().await {
            entry.errors.push(bytes);
        }
    }
    // After SIGINT it finishes the file and ends with 255.
    let is_whole = matches!(exit.exited().await, Exit::Code(0 | 255));
    let ended = Ended { at: OffsetDateTime::now_utc(), is_whole };
    *entry.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
}

async fn make_folder(daemon: &Daemon) -> Result<PathBuf, RecordingError> {
    let folder = daemon.launcher.account().home.join(".daytona/recordings");
    let made = folder.clone();
    let result = daemon.workers.run(move || std::fs::create_dir_all(made)).await;
    result.map_err(|error| RecordingError::Folder(error, folder.display().to_string()))?;
    Ok(folder)
}

/// What a label says, as far as a file's name may; and no two alike.
fn file_name(label: &str, began: OffsetDateTime, id: &str) -> String {
    let label: String = label
        .chars()
        .map(|char| if char.is_alphanumeric() || "-_.".contains(char) { char } else { '_' })
        .collect();
    let label = label.trim_start_matches('.');
    // In bytes, of which a name has at most 255.
    let mut end = label.len().min(120);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    let (date, (hour, minute, second)) = (began.date(), began.to_hms());
    format!("{}_{date}_{hour:02}-{minute:02}-{second:02}_{}.mp4", &label[..end], &id[..8])
}

fn arguments(path: &Path) -> Vec<String> {
    let frames = FRAMES_A_SECOND.to_string();
    let (seconds, bytes) = (SECONDS_MAX.to_string(), BYTES_MAX.to_string());
    let input =
        ["-hide_banner", "-nostdin", "-loglevel", "warning", "-f", "x11grab", "-framerate", &frames, "-i"];
    // The usual colours of videos need even sides. Two threads, or a film would take the sandbox's other work its time.
    let output = [
        "-t",
        &seconds,
        "-fs",
        &bytes,
        "-vf",
        "crop=trunc(iw/2)*2:trunc(ih/2)*2",
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-crf",
        "26",
        "-pix_fmt",
        "yuv420p",
        "-threads",
        "2",
        "-movflags",
        "+faststart",
        "-f",
        "mp4",
        "-y",
    ];
    let path = path.display().to_string();
    let all = input.into_iter().chain([super::DISPLAY]).chain(output).map(str::to_owned);
    all.chain([path]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_its_label_as_far_as_names_go() {
        let began = OffsetDateTime::UNIX_EPOCH;
        let of = |label: &str| file_name(label, began, "01234567-89");

        assert_eq!(of("my demo/../x"), "my_demo_.._x_1970-01-01_00-00-00_01234567.mp4");
        assert_eq!(of(".hidden"), "hidden_1970-01-01_00-00-00_01234567.mp4");
        assert!(of(&"é".repeat(100)).len() < 255);
    }
}
