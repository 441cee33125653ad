//! Sends a file: opened as the user, read in steps, exactly as long as was announced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use rustix::fs::OFlags;

use super::workers::Workers;

const STEP_BYTES: u64 = 64 * 1024;
/// Files of /proc say they are empty; this much of such a file is read to see.
const SIZELESS_BYTES_MAX: u64 = 1024 * 1024;

pub struct Download {
    workers: Workers,
    content: Content,
    pub length: u64,
}

#[derive(Clone)]
enum Content {
    File(Arc<File>),
    Memory(Bytes),
}

impl Download {
    pub async fn open(workers: &Workers, path: PathBuf) -> io::Result<Download> {
        let open = move || {
            // Not blocking, or a FIFO would hold a worker for ever.
            let file =
                OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if !metadata.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            if metadata.len() > 0 {
                return Ok((Content::File(Arc::new(file)), metadata.len()));
            }
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, SIZELESS_BYTES_MAX), &mut bytes)?;
            let length = bytes.len() as u64;
            Ok((Content::Memory(bytes.into()), length))
        };
        let (content, length) = workers.run(open).await?;
        Ok(Download { workers: workers.clone(), content, length })
    }

    /// Fails if the file has become shorter, so that the receiver sees a broken answer and not a short file.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures_util::stream::try_unfold(0, move |offset| {
            let (content, workers, length) = (self.content.clone(), self.workers.clone(), self.length);
            async move {
                let step = (length - offset).min(STEP_BYTES);
                if step == 0 {
                    return Ok(None);
                }
                let bytes = match content {
                    Content::Memory(bytes) => bytes.slice(offset as usize..(offset + step) as usize),
                    Content::File(file) => {
                        let read = move || {
                            let mut bytes = vec![0; step as usize];
                            file.read_exact_at(&mut bytes, offset).map(|()| bytes.into())
                        };
                        workers.run(read).await?
                    }
                };
                Ok(Some((bytes, offset + step)))
            }
        })
    }
}
