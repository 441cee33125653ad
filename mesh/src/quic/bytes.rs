//! A QUIC stream as a [`ByteStream`](crate::dial::ByteStream): shutting down finishes it, dropping it unfinished resets it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{STREAM_DROPPED, reason_text};

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
        self.recv.poll_read_buf(cx, buf).map_err(read_error)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf).map_err(write_error)
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

/// quinn says only that the connection was lost; why, is what the reader of a log wants to know.
fn read_error(error: ReadError) -> io::Error {
    match error {
        ReadError::ConnectionLost(closed) => connection_lost(&closed),
        other => other.into(),
    }
}

fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::ConnectionLost(closed) => connection_lost(&closed),
        // The other side will read no more, as a socket says it.
        WriteError::Stopped(_) => io::Error::new(io::ErrorKind::BrokenPipe, "the peer stopped reading"),
        other => other.into(),
    }
}

fn connection_lost(closed: &ConnectionError) -> io::Error {
    let cause = match closed {
        ConnectionError::ApplicationClosed(close) => reason_text(&close.reason),
        other => other.to_string(),
    };
    io::Error::new(io::ErrorKind::ConnectionAborted, format!("connection lost: {cause}"))
}
