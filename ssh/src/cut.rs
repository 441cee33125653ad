//! The client's TCP connection with two ends of patience: a token that cuts it whatever the session is doing,
//! and a deadline for a client that stops reading. Needed because russh awaits its writes outside its timers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub(crate) struct CuttableStream<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: bool,
    write_stall_deadline: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> CuttableStream<S> {
    pub(crate) fn new(stream: S, cut: CancellationToken, write_stall_deadline: Duration) -> Self {
        CuttableStream {
            stream,
            cut: Box::pin(cut.cancelled_owned()),
            is_cut: false,
            write_stall_deadline,
            stalled: None,
        }
    }

    /// Reader and writer live in one task, so the one waker that is kept here is the right one.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_cut = self.is_cut || self.cut.as_mut().poll(cx).is_ready();
        self.is_cut
    }

    fn poll_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let deadline = self.write_stall_deadline;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.is_cut = true;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CuttableStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Ok(())); // end of file
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CuttableStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.poll_stalled(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_stalled(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const STALL: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut stream = CuttableStream::new(ours, CancellationToken::new(), STALL);

        let error = stream.write_all(&[0; 64]).await.unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut stream = CuttableStream::new(ours, CancellationToken::new(), STALL);
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 8];
            for _ in 0..8 {
                tokio::time::sleep(STALL / 2).await;
                theirs.read_exact(&mut bytes).await.unwrap();
            }
        });

        stream.write_all(&[0; 64]).await.unwrap();

        reader.await.unwrap();
    }

    #[tokio::test]
    async fn a_cut_ends_reads_and_writes_that_wait() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let cut = CancellationToken::new();
        let mut stream = CuttableStream::new(ours, cut.clone(), STALL);
        stream.write_all(&[0; 16]).await.unwrap();
        let waiting = tokio::spawn(async move {
            let write = stream.write_all(&[0; 16]).await;
            (write, stream.read(&mut [0; 1]).await)
        });

        cut.cancel();

        let (write, read) = waiting.await.unwrap();
        assert_eq!(write.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(read.unwrap(), 0);
    }
}
