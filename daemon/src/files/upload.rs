//! Receives a file: streamed into a hidden one beside it, put in place when whole. Nobody ever sees half a file.
//!
//! While one batch is written the next one is received; a chunk by itself would be too little work to hand to another thread.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::edit::create_beside;
use super::workers::{Running, Workers};

/// Received before it is written; twice this is the most that one upload holds.
const BATCH_BYTES: usize = 256 * 1024;

/// An upload that has begun. Dropping it without [`Upload::commit`] removes what was written.
pub struct Upload {
    workers: Workers,
    target: PathBuf,
    temporary: Option<PathBuf>,
    file: Arc<File>,
    /// Copied together: many small pieces would hold more than their bytes.
    batch: Vec<u8>,
    writing: Option<Running<io::Result<()>>>,
    bytes: u64,
}

impl Upload {
    /// Parents are made. An existing file is replaced at the end; anything else that exists is refused.
    pub async fn begin(workers: &Workers, target: PathBuf) -> io::Result<Upload> {
        let path = target.clone();
        let begun = move || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
                Ok(metadata) if !metadata.is_file() => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
                }
                Ok(_) | Err(_) => {}
            }
            create_beside(&path)
        };
        let (temporary, file) = workers.run(begun).await?;
        Ok(Upload {
            workers: workers.clone(),
            target,
            temporary: Some(temporary),
            file: Arc::new(file),
            batch: Vec::new(),
            writing: None,
            bytes: 0,
        })
    }

    /// An error may be that of an earlier chunk.
    pub async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.bytes += chunk.len() as u64;
        self.batch.extend_from_slice(chunk);
        if self.batch.len() >= BATCH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// One batch after the other: they are one stream.
    async fn flush(&mut self) -> io::Result<()> {
        self.written().await?;
        let (file, batch) = (self.file.clone(), std::mem::take(&mut self.batch));
        let write = move || (&*file).write_all(&batch);
        self.writing = Some(self.workers.submit(write).await);
        Ok(())
    }

    async fn written(&mut self) -> io::Result<()> {
        match self.writing.take() {
            Some(writing) => writing.result().await,
            None => Ok(()),
        }
    }

    /// The number of bytes in place.
    pub async fn commit(mut self) -> io::Result<u64> {
        self.flush().await?;
        self.written().await?;
        let temporary = self.temporary.clone().expect("taken only here and in drop");
        let target = self.target.clone();
        let put = move || fs::rename(temporary, destination(&target));
        self.workers.run(put).await?;
        self.temporary = None;
        Ok(self.bytes)
    }
}

/// Through a symlink, as a write to it would go.
fn destination(target: &Path) -> PathBuf {
    fs::canonicalize(target).unwrap_or_else(|_| target.to_owned())
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            self.workers.detach(move || drop(fs::remove_file(temporary)));
        }
    }
}
