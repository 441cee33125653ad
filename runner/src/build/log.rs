//! The log of one build: a file that only grows, up to a bound, followed by any number of readers. Who stops reading
//! stops nothing; who comes late reads it from the beginning.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;

pub const LOG_BYTES_MAX: u64 = 16 << 20;
const CHUNK_BYTES: usize = 64 * 1024;
/// What is kept in memory for [`BuildLog::tail`].
const TAIL_LINES_MAX: usize = 20;
const TAIL_LINE_BYTES_MAX: usize = 400;
const CUT: &[u8] = b"\n(the log is full: what follows is not kept)\n";

#[derive(Debug)]
pub struct BuildLog {
    writing: Mutex<Writing>,
    progress: watch::Sender<Progress>,
    reading: File,
}

#[derive(Debug)]
struct Writing {
    file: File,
    tail: VecDeque<String>,
    /// The line that has not ended yet.
    open_line: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    bytes: u64,
    ended: bool,
}

impl BuildLog {
    /// An empty one, for writing; what stood at `path` goes.
    pub fn create(path: &Path) -> io::Result<BuildLog> {
        let mut options = File::options();
        options.create(true).truncate(true).write(true).mode(0o600);
        let file = options.open(path)?;
        Ok(BuildLog::with(file, File::open(path)?, Progress { bytes: 0, ended: false }))
    }

    /// That of a build which has ended.
    pub fn open(path: &Path) -> io::Result<BuildLog> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(BuildLog::with(file.try_clone()?, file, Progress { bytes, ended: true }))
    }

    fn with(writing: File, reading: File, progress: Progress) -> BuildLog {
        let writing = Writing { file: writing, tail: VecDeque::new(), open_line: Vec::new() };
        BuildLog { writing: Mutex::new(writing), progress: watch::Sender::new(progress), reading }
    }

    /// Adds to it. A disk that takes no more costs the log its rest and not the build.
    pub fn append(&self, output: &[u8]) {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.remember(output);
        let before = self.progress.borrow().bytes;
        if self.progress.borrow().ended || before >= LOG_BYTES_MAX {
            return;
        }
        let room = (LOG_BYTES_MAX - before) as usize;
        let written = match output.len() < room {
            true => writing.file.write_all(output).map(|()| output.len()),
            false => writing
                .file
                .write_all(&output[..room])
                .and_then(|()| writing.file.write_all(CUT))
                .map(|()| room + CUT.len()),
        };
        match written {
            Ok(count) => {
                self.progress.send_modify(|progress| progress.bytes = before + count as u64);
            }
            Err(error) => tracing::warn!(%error, "write a build's log"),
        }
    }

    pub fn line(&self, text: &str) {
        self.append(format!("{text}\n").as_bytes());
    }

    /// Readers come to their end.
    pub fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// The last lines that say something, for the reason of a failure.
    pub fn tail(&self, lines: usize) -> String {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let open = String::from_utf8_lossy(&writing.open_line).into_owned();
        let known = writing.tail.iter().cloned().chain((!open.trim().is_empty()).then_some(open));
        let known: Vec<String> = known.collect();
        known[known.len().saturating_sub(lines)..].join("\n")
    }

    /// From this byte to what is there now.
    pub fn read(self: Arc<Self>, from: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let progress = *self.progress.borrow();
        let (_, ended) = watch::channel(Progress { ended: true, ..progress });
        chunks(self, ended, from)
    }

    /// From this byte until the build ends.
    pub fn follow(self: Arc<Self>, from: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let changes = self.progress.subscribe();
        chunks(self, changes, from)
    }
}

fn chunks(
    log: Arc<BuildLog>,
    changes: watch::Receiver<Progress>,
    from: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((log, changes, from), |(log, mut changes, at)| async move {
        loop {
            let progress = *changes.borrow_and_update();
            if at < progress.bytes {
                let length = (progress.bytes - at).min(CHUNK_BYTES as u64) as usize;
                let mut chunk = vec![0; length];
                log.reading.read_exact_at(&mut chunk, at)?;
                return Ok(Some((Bytes::from(chunk), (log, changes, at + length as u64))));
            }
            if progress.ended || changes.changed().await.is_err() {
                return Ok(None);
            }
        }
    })
}

impl Writing {
    fn remember(&mut self, output: &[u8]) {
        for byte in output {
            match byte {
                b'\n' | b'\r' => {
                    let line = String::from_utf8_lossy(&std::mem::take(&mut self.open_line)).into_owned();
                    if !line.trim().is_empty() {
                        self.tail.push_back(line);
                    }
                    if self.tail.len() > TAIL_LINES_MAX {
                        self.tail.pop_front();
                    }
                }
                byte if self.open_line.len() < TAIL_LINE_BYTES_MAX => self.open_line.push(*byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    async fn text(stream: impl Stream<Item = io::Result<Bytes>>) -> String {
        let chunks: Vec<_> = stream.map(|chunk| chunk.unwrap()).collect().await;
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn a_follower_sees_everything_and_ends_with_the_build() {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(BuildLog::create(&dir.path().join("log")).unwrap());
        log.line("early");
        let following = tokio::spawn(text(log.clone().follow(0)));
        let leaving = log.clone().follow(0);
        drop(leaving);

        tokio::task::yield_now().await;
        log.append(b"la");
        assert_eq!(text(log.clone().read(0)).await, "early\nla");
        log.append(b"te\n");
        log.end();

        assert_eq!(following.await.unwrap(), "early\nlate\n");
        assert_eq!(text(log.clone().follow(6)).await, "late\n", "from where another reader broke off");
        assert_eq!(text(log.clone().read(600)).await, "");
        assert_eq!(
            text(Arc::new(BuildLog::open(&dir.path().join("log")).unwrap()).follow(0)).await,
            "early\nlate\n"
        );
    }

    #[tokio::test]
    async fn a_full_log_says_so_and_still_knows_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(BuildLog::create(&dir.path().join("log")).unwrap());

        for _ in 0..LOG_BYTES_MAX / 1024 + 5 {
            log.append(&[b'x'; 1024]);
        }
        log.append(b"\n1\n\n2\nunended");
        log.end();

        let kept = text(log.clone().read(0)).await;
        assert!(kept.ends_with(std::str::from_utf8(CUT).unwrap()));
        assert_eq!(kept.len() as u64, LOG_BYTES_MAX + CUT.len() as u64);
        assert_eq!(log.tail(3), "1\n2\nunended");
    }
}
