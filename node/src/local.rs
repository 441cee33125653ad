//! Reaches the sandboxes of this node, and notes that they are used: every connection ends here, whichever node it came to.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use atoll_api::access::Target;
use atoll_api::ids::{Generation, SandboxId};
use atoll_mesh::dial::ByteStream;
use atoll_runner::{RunnerDialError, RunnerHandle};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::activity::Activity;

/// Bytes within this much of the last note are not noted again.
const NOTE_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct LocalSandboxes {
    pub runner: RunnerHandle,
    pub activity: Arc<Activity>,
}

impl LocalSandboxes {
    pub async fn dial(
        &self,
        sandbox_id: SandboxId,
        generation: Generation,
        target: Target,
    ) -> Result<ByteStream, RunnerDialError> {
        let stream = self.runner.dial(sandbox_id, generation, target).await?;
        self.activity.touch(sandbox_id);
        let activity = self.activity.clone();
        Ok(Box::new(Used { stream: Box::new(stream), sandbox_id, activity, noted: Instant::now() }))
    }
}

/// A connection whose bytes count as use. An open one that carries nothing does not.
struct Used {
    stream: ByteStream,
    sandbox_id: SandboxId,
    activity: Arc<Activity>,
    noted: Instant,
}

impl Used {
    fn note(&mut self) {
        if self.noted.elapsed() >= NOTE_EVERY {
            self.noted = Instant::now();
            self.activity.touch(self.sandbox_id);
        }
    }
}

impl AsyncRead for Used {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.note();
        }
        polled
    }
}

impl AsyncWrite for Used {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            self.note();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
