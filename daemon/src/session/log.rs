//! A command's output on disk: every line of it preceded by which stream it came from, bounded, read by any number of followers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use crate::files::workers::Workers;

/// Per command. What comes after is dropped, and a last line says so.
const LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;
const FULL: &[u8] = b"\n[log is full; further output is dropped]\n";
/// What one answer carries. Of a longer log the first and the last half.
pub const LOG_REPLY_BYTES_MAX: u64 = 8 * 1024 * 1024;
pub const FOLLOW_CHUNK_BYTES: usize = 64 * 1024;

const STDOUT_MARKER: [u8; 3] = [1, 1, 1];
const STDERR_MARKER: [u8; 3] = [2, 2, 2];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn marker(self) -> &'static [u8; 3] {
        match self {
            Source::Stdout => &STDOUT_MARKER,
            Source::Stderr => &STDERR_MARKER,
        }
    }
}

pub struct Log {
    file: Arc<File>,
    writer: Mutex<Writer>,
    /// Bytes that followers may read.
    length: watch::Sender<u64>,
    workers: Workers,
}

struct Writer {
    framer: Framer,
    is_full: bool,
}

impl Log {
    pub fn create(path: &Path, workers: Workers) -> io::Result<Log> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Log {
            file: Arc::new(file),
            writer: Mutex::new(Writer { framer: Framer::default(), is_full: false }),
            length: watch::Sender::new(0),
            workers,
        })
    }

    /// Returns when it is readable. A disk that takes no more counts as full.
    pub async fn append(&self, source: Source, bytes: &[u8]) {
        let mut writer = self.writer.lock().await;
        if writer.is_full || bytes.is_empty() {
            return;
        }
        let offset = *self.length.borrow();
        let mut framed = writer.framer.frame(source, bytes);
        if offset + framed.len() as u64 > LOG_BYTES_MAX {
            framed = FULL.to_vec();
            writer.is_full = true;
        }
        let (file, end) = (self.file.clone(), offset + framed.len() as u64);
        match self.workers.run(move || file.write_all_at(&framed, offset)).await {
            Ok(()) => drop(self.length.send_replace(end)),
            Err(error) => {
                tracing::warn!(%error, "write session log");
                writer.is_full = true;
            }
        }
    }

    pub fn length(&self) -> u64 {
        *self.length.borrow()
    }

    pub fn watch_length(&self) -> watch::Receiver<u64> {
        self.length.subscribe()
    }

    /// At most [`FOLLOW_CHUNK_BYTES`] from `offset`; empty at the end.
    pub async fn read_at(&self, offset: u64) -> io::Result<Vec<u8>> {
        let left = self.length.borrow().saturating_sub(offset).min(FOLLOW_CHUNK_BYTES as u64);
        self.read_exact_at(offset, left).await
    }

    /// The raw log, markers included, bounded by [`LOG_REPLY_BYTES_MAX`].
    pub async fn read(&self) -> io::Result<Vec<u8>> {
        let length = *self.length.borrow();
        if length <= LOG_REPLY_BYTES_MAX {
            return self.read_exact_at(0, length).await;
        }
        let half = LOG_REPLY_BYTES_MAX / 2;
        let mut bytes = self.read_exact_at(0, half).await?;
        let tail = self.read_exact_at(length - half, half).await?;
        // From the next marked line on, so that what remains is still told apart.
        let tail = &tail[next_marker(&tail).map_or(0, |(at, _)| at)..];
        let note = format!("\n[… {} bytes omitted …]\n", length - bytes.len() as u64 - tail.len() as u64);
        bytes.extend_from_slice(note.as_bytes());
        bytes.extend_from_slice(tail);
        Ok(bytes)
    }

    async fn read_exact_at(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let file = self.file.clone();
        let read = move || {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        };
        self.workers.run(read).await
    }
}

/// Puts a marker before every line, and before what follows a change of stream.
#[derive(Default)]
struct Framer {
    /// Whose unfinished line is last in the log.
    unfinished: Option<Source>,
}

impl Framer {
    fn frame(&mut self, source: Source, bytes: &[u8]) -> Vec<u8> {
        let mut framed = Vec::with_capacity(bytes.len() + bytes.len() / 16 + 3);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.unfinished != Some(source) {
                framed.extend_from_slice(source.marker());
            }
            framed.extend_from_slice(line);
            self.unfinished = (line.last() != Some(&b'\n')).then_some(source);
        }
        framed
    }
}

/// Stdout and stderr of a raw log. What stands before any marker is stdout.
pub fn split(raw: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    each_piece(raw, |source, piece| match source {
        Source::Stdout => stdout.extend_from_slice(piece),
        Source::Stderr => stderr.extend_from_slice(piece),
    });
    (stdout, stderr)
}

/// The text without markers, both streams in order.
pub fn without_markers(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    each_piece(raw, |_, piece| text.extend_from_slice(piece));
    text
}

fn each_piece(mut raw: &[u8], mut take: impl FnMut(Source, &[u8])) {
    let mut source = Source::Stdout;
    while let Some((at, next)) = next_marker(raw) {
        take(source, &raw[..at]);
        raw = &raw[at + 3..];
        source = next;
    }
    take(source, raw);
}

fn next_marker(raw: &[u8]) -> Option<(usize, Source)> {
    raw.windows(3).enumerate().find_map(|(at, window)| {
        let sources = [Source::Stdout, Source::Stderr];
        sources.into_iter().find(|source| window == source.marker()).map(|source| (at, source))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(writes: &[(Source, &str)]) -> String {
        let mut framer = Framer::default();
        let bytes = writes.iter().flat_map(|(source, text)| framer.frame(*source, text.as_bytes())).collect();
        String::from_utf8(bytes).unwrap().replace("\x01\x01\x01", "<O>").replace("\x02\x02\x02", "<E>")
    }

    #[test]
    fn every_line_says_its_stream() {
        assert_eq!(framed(&[(Source::Stdout, "a\nb\n"), (Source::Stderr, "c\n")]), "<O>a\n<O>b\n<E>c\n");
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_marked_once() {
        assert_eq!(framed(&[(Source::Stdout, "a"), (Source::Stdout, "b\nc")]), "<O>ab\n<O>c");
    }

    #[test]
    fn a_change_of_stream_within_a_line_is_marked() {
        let writes = [(Source::Stdout, "ask? "), (Source::Stderr, "warn\n"), (Source::Stdout, "yes\n")];

        assert_eq!(framed(&writes), "<O>ask? <E>warn\n<O>yes\n");
    }

    #[test]
    fn splitting_undoes_framing() {
        let mut framer = Framer::default();
        let mut raw = framer.frame(Source::Stdout, b"a\nb");
        raw.extend(framer.frame(Source::Stderr, b"oh\n"));
        raw.extend(framer.frame(Source::Stdout, b"c\n"));

        assert_eq!(split(&raw), (b"a\nbc\n".to_vec(), b"oh\n".to_vec()));
        assert_eq!(without_markers(&raw), b"a\nboh\nc\n");
    }

    #[test]
    fn a_log_without_markers_is_stdout() {
        assert_eq!(split(b"plain"), (b"plain".to_vec(), Vec::new()));
    }
}
