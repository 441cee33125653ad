//! A sandbox's writable layer as a stream.

use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::layers::diff::write_layer;
use crate::runtime::LayerTar;

/// Chunks that wait for the reader; the writer waits then.
const CHUNKS_WAITING: usize = 4;
const CHUNK_BYTES: usize = 256 * 1024;

/// Written on a thread of its own, which ends when the reader is dropped.
pub(super) fn stream_layer(upper: PathBuf) -> io::Result<LayerTar> {
    let (chunks, mut waiting) = mpsc::channel(CHUNKS_WAITING);
    std::thread::Builder::new().name("commit".into()).spawn(move || {
        let mut out = io::BufWriter::with_capacity(CHUNK_BYTES, Chunks { chunks: chunks.clone() });
        if let Err(error) = write_layer(&upper, &mut out).and_then(|()| out.flush()) {
            // Fails only when nobody reads.
            let _ = chunks.blocking_send(Err(error));
        }
    })?;
    let stream = stream::poll_fn(move |context| waiting.poll_recv(context));
    Ok(Box::new(StreamReader::new(Box::pin(stream))))
}

struct Chunks {
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.chunks.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
