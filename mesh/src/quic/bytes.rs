//! A QUIC stream as a [`ByteStream`](crate::dial::ByteStream): shutting down finishes it, dropping it unfinished resets it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::STREAM_DROPPED;

pub(crate) struct QuicStream {
    send: SendStream,
    recv: RecvStream,
    finished: bool,
}

impl QuicStream {
    pub(crate) fn new(send: SendStream, recv: RecvStream) -> QuicStream {
        QuicStream { send, recv, finished: false }
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        // A second finish, or one after the peer stopped reading, changes nothing.
        let _ = self.send.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        // Left alone, quinn would finish the stream, and a reader could not tell a cut answer from a whole one.
        if !self.finished {
            let _ = self.send.reset(STREAM_DROPPED);
        }
        // The receiving half tells the peer by itself to stop sending.
    }
}
