//! A stream inside one process that behaves as one over the network: it finishes, resets and pushes back the same way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::dial::ByteStream;

/// Two ends. A writer waits once `capacity_bytes` are unread.
pub fn pair(capacity_bytes: usize) -> (ByteStream, ByteStream) {
    let (one, two) = tokio::io::duplex(capacity_bytes);
    let (cut_by_one, cut_by_two) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let end = |inner, cut_here: &Arc<AtomicBool>, cut_there: &Arc<AtomicBool>| MemoryStream {
        inner,
        finished: false,
        cut_here: cut_here.clone(),
        cut_there: cut_there.clone(),
    };
    let (one, two) = (end(one, &cut_by_one, &cut_by_two), end(two, &cut_by_two, &cut_by_one));
    (Box::new(one), Box::new(two))
}

struct MemoryStream {
    inner: DuplexStream,
    finished: bool,
    /// Set when an end is dropped without having been shut down: the other must not take it for an end of file.
    cut_here: Arc<AtomicBool>,
    cut_there: Arc<AtomicBool>,
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let at_end = room > 0 && buf.filled().len() == before;
        if at_end && self.cut_there.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "stream reset by its other end",
            )));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        // Before `inner` closes: the other end looks at the mark when it reads the end.
        if !self.finished {
            self.cut_here.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_finished_end_is_an_end_of_file_and_a_dropped_one_a_reset() {
        let (mut one, mut two) = pair(64);
        one.write_all(b"whole").await.unwrap();
        one.shutdown().await.unwrap();
        let mut text = String::new();
        two.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "whole");
        two.write_all(b"back").await.unwrap();
        drop(two);

        let cut = one.read_to_string(&mut text).await;

        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
