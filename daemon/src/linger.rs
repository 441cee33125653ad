//! Closes a connection so that its last answer arrives: a request that is refused before its body was read would
//! otherwise end in a reset, which overtakes the answer.
//!
//!   shutdown ─▶ our end is closed ─▶ what still comes is read and thrown away ─▶ their end, or a bound ─▶ done

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What a refused sender may still send, and for how long.
const THROWN_AWAY_BYTES_MAX: usize = 64 * 1024 * 1024;
const LINGER_DEADLINE: Duration = Duration::from_secs(2);
const SCRATCH_BYTES: usize = 16 * 1024;

pub struct Lingering<S> {
    stream: S,
    /// Set once our end is closed.
    farewell: Option<Farewell>,
}

struct Farewell {
    deadline: Pin<Box<Sleep>>,
    thrown_away_bytes: usize,
}

impl<S> Lingering<S> {
    pub fn new(stream: S) -> Lingering<S> {
        Lingering { stream, farewell: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Lingering { stream, farewell } = &mut *self;
        let farewell = match farewell {
            Some(farewell) => farewell,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                let deadline = Box::pin(tokio::time::sleep(LINGER_DEADLINE));
                farewell.insert(Farewell { deadline, thrown_away_bytes: 0 })
            }
        };
        let mut scratch = [0; SCRATCH_BYTES];
        while farewell.deadline.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => farewell.thrown_away_bytes += buf.filled().len(),
                // They have closed too, or broken off: nobody waits any more.
                Ok(()) | Err(_) => break,
            }
            if farewell.thrown_away_bytes >= THROWN_AWAY_BYTES_MAX {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn an_answer_arrives_though_the_question_was_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut stream = Lingering::new(listener.accept().await.unwrap().0);
            stream.write_all(b"no").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut client = TcpStream::connect(address).await.unwrap();

        client.write_all(&vec![7; 4 * 1024 * 1024]).await.unwrap();
        client.shutdown().await.unwrap();

        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"no");
        server.await.unwrap();
    }
}
