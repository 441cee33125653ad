//! The smallest web server there is: what both proxies of the preview measurement lead to. As little of the time as possible
//! shall be its own.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const REQUEST_BYTES_MAX: usize = 16 * 1024;
const CONNECTIONS_MAX: usize = 1024;
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

/// On every address, as a proxy outside of the sandbox comes by its bridge. Ends with its sandbox.
pub async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("listen on {port}"))?;
    let room = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = room.clone().acquire_owned().await.context("find room")?;
        let (stream, _) = listener.accept().await.context("accept")?;
        tokio::spawn(async move {
            // Whoever breaks a connection has had what it wanted.
            let _ = tokio::time::timeout(IDLE_DEADLINE, answer_all(stream)).await;
            drop(place);
        });
    }
}

/// Requests have no body, one follows the other's answer.
async fn answer_all(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(REQUEST_BYTES_MAX);
    loop {
        while !head.ends_with(END_OF_HEAD) {
            if head.len() >= REQUEST_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        head.clear();
        stream.write_all(ANSWER).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let head = ANSWER.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD).unwrap();

        assert_eq!(ANSWER.len() - head - END_OF_HEAD.len(), 128);
    }
}
