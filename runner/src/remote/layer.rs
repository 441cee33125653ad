//! A layer on its way between the processes: bytes through a pipe, and behind them, on the connection, whether they
//! were all. Without that last word the reader gets an error and never an end.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::remote::frames;
use crate::remote::wire::{Reply, runtime_error};
use crate::runtime::LayerTar;

/// Fewer turns between the two processes than with the kernel's 64 KiB. A host may allow less.
const PIPE_BYTES: usize = 1 << 20;
const CHUNK_BYTES: usize = 128 * 1024;

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}

/// Ends when everything is in the pipe, with the layer's own error, or when nobody reads any more.
pub(super) async fn pump(mut layer: LayerTar, write: OwnedFd) -> io::Result<()> {
    let mut pipe = pipe::Sender::from_owned_fd(write)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match layer.read(&mut chunk).await? {
            0 => return Ok(()),
            count => pipe.write_all(&chunk[..count]).await?,
        }
    }
}

/// The node's end.
pub(super) struct RemoteLayer {
    state: State,
}

enum State {
    Bytes(pipe::Receiver, UnixStream),
    LastWord(Pin<Box<dyn Future<Output = io::Result<()>> + Send>>),
    Whole,
}

impl RemoteLayer {
    /// `stream` is where the last word will come.
    pub(super) fn new(read: OwnedFd, stream: UnixStream) -> io::Result<RemoteLayer> {
        Ok(RemoteLayer { state: State::Bytes(pipe::Receiver::from_owned_fd(read)?, stream) })
    }
}

impl AsyncRead for RemoteLayer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Bytes(pipe, _) => {
                    let before = buffer.filled().len();
                    ready!(Pin::new(pipe).poll_read(context, buffer))?;
                    if buffer.filled().len() > before || buffer.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    let State::Bytes(_, stream) = std::mem::replace(&mut self.state, State::Whole) else {
                        unreachable!("matched above")
                    };
                    self.state = State::LastWord(Box::pin(last_word(stream)));
                }
                State::LastWord(heard) => {
                    let heard = ready!(heard.as_mut().poll(context));
                    if let Err(error) = heard {
                        // Asked again, it is still not whole.
                        let again = io::Error::new(error.kind(), error.to_string());
                        self.state = State::LastWord(Box::pin(std::future::ready(Err(again))));
                        return Poll::Ready(Err(error));
                    }
                    self.state = State::Whole;
                }
                State::Whole => return Poll::Ready(Ok(())),
            }
        }
    }
}

const LAST_WORD_BYTES_MAX: usize = 64 * 1024;

async fn last_word(stream: UnixStream) -> io::Result<()> {
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "the runner ended in the middle of a layer");
    let frame = frames::receive(&stream, LAST_WORD_BYTES_MAX).await?.ok_or_else(broken)?;
    match atoll_api::wire::decode(&frame.payload) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Failed(said)) => Err(io::Error::other(runtime_error(said))),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the runner said something else than how a layer ended",
        )),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}
