//! One channel to a sandbox's daemon: HTTP upgrade, `Open`, and then frames both ways. The client side of [`atoll_api::channel`].

use std::time::Duration;

use atoll_api::channel::{CHANNEL_PATH, CHANNEL_UPGRADE, ChannelOpen, FRAME_BYTES_MAX, FrameKind};
use atoll_api::ids::RequestId;
use atoll_mesh::dial::ByteStream;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::frames::{self, FRAME_HEADER_BYTES};
use crate::refusal::Refusal;

/// From a connected stream to `Opened`.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const RESPONSE_HEAD_BYTES_MAX: usize = 8 * 1024;

pub(crate) struct FrameReader {
    stream: ReadHalf<ByteStream>,
    buffer: BytesMut,
}

pub(crate) struct FrameWriter {
    stream: WriteHalf<ByteStream>,
    buffer: BytesMut,
}

/// Starts a program behind a stream that was dialled to the daemon.
pub(crate) async fn open(
    stream: ByteStream,
    request_id: &RequestId,
    open: &ChannelOpen,
) -> Result<(FrameReader, FrameWriter), Refusal> {
    let open = serde_json::to_vec(open).map_err(|error| Refusal::Protocol(error.to_string()))?;
    if open.len() > FRAME_BYTES_MAX {
        return Err(Refusal::BadCommand);
    }
    timeout(OPEN_DEADLINE, upgrade_and_open(stream, request_id, &open))
        .await
        .unwrap_or_else(|_| Err(Refusal::Protocol("no answer in time".into())))
}

async fn upgrade_and_open(
    stream: ByteStream,
    request_id: &RequestId,
    open: &[u8],
) -> Result<(FrameReader, FrameWriter), Refusal> {
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = FrameReader { stream: reader, buffer: BytesMut::new() };
    let mut writer = FrameWriter { stream: writer, buffer: BytesMut::new() };
    let request = format!(
        "GET {CHANNEL_PATH} HTTP/1.1\r\nHost: sandbox\r\nConnection: Upgrade\r\nUpgrade: {CHANNEL_UPGRADE}\r\n{}: {}\r\n\r\n",
        RequestId::HEADER,
        request_id.as_str(),
    );
    writer.stream.write_all(request.as_bytes()).await.map_err(|_| Refusal::Lost)?;
    writer.stream.flush().await.map_err(|_| Refusal::Lost)?;
    reader.read_switching_protocols().await?;
    writer.write(FrameKind::Open, open).await?;
    match reader.next().await? {
        Some((FrameKind::Opened, _)) => Ok((reader, writer)),
        Some((FrameKind::Refused, reason)) => {
            Err(Refusal::Daemon(String::from_utf8_lossy(&reason).into_owned()))
        }
        Some((kind, _)) => Err(Refusal::Protocol(format!("{kind:?} before Opened"))),
        None => Err(Refusal::Lost),
    }
}

impl FrameReader {
    /// The next frame, or `None` when the daemon has closed between two frames.
    pub(crate) async fn next(&mut self) -> Result<Option<(FrameKind, Bytes)>, Refusal> {
        loop {
            let frame = frames::decode(&mut self.buffer);
            if let Some(frame) = frame.map_err(|error| Refusal::Protocol(error.to_string()))? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(FRAME_HEADER_BYTES + FRAME_BYTES_MAX);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) | Err(_) => return Err(Refusal::Lost),
                Ok(_) => {}
            }
        }
    }

    async fn read_switching_protocols(&mut self) -> Result<(), Refusal> {
        const END: &[u8] = b"\r\n\r\n";
        let head_bytes = loop {
            if let Some(at) = self.buffer.windows(END.len()).position(|window| window == END) {
                break at + END.len();
            }
            if self.buffer.len() > RESPONSE_HEAD_BYTES_MAX {
                return Err(Refusal::Protocol("endless response head".into()));
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(Refusal::Lost),
                Ok(_) => {}
            }
        };
        let head = self.buffer.split_to(head_bytes);
        if head.starts_with(b"HTTP/1.1 101 ") {
            return Ok(());
        }
        let status_line = head[..].split(|byte| *byte == b'\r').next().unwrap_or_default();
        Err(Refusal::Protocol(String::from_utf8_lossy(status_line).into_owned()))
    }
}

impl FrameWriter {
    /// Resolves when the transport has taken the frame whole.
    pub(crate) async fn write(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Refusal> {
        self.buffer.clear();
        frames::encode(kind, payload, &mut self.buffer)
            .map_err(|error| Refusal::Protocol(error.to_string()))?;
        self.stream.write_all(&self.buffer).await.map_err(|_| Refusal::Lost)?;
        self.stream.flush().await.map_err(|_| Refusal::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_api::channel::ChannelProgram;

    async fn answer(bytes: &'static [u8]) -> Result<(), Refusal> {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(bytes).await.unwrap();
        theirs.shutdown().await.unwrap();
        let shell = ChannelOpen { program: ChannelProgram::Shell, env: Default::default(), pty: None };
        open(Box::new(ours), &RequestId::from_random([0; 16]), &shell).await.map(|_| ())
    }

    #[tokio::test]
    async fn frames_may_follow_the_head_in_one_packet() {
        assert_eq!(answer(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x02\0\0\0\0").await, Ok(()));
    }

    #[tokio::test]
    async fn a_daemon_that_answers_otherwise_is_named_not_trusted() {
        let refused = answer(b"HTTP/1.1 101 x\r\n\r\n\x03\0\0\0\x02no").await;
        assert_eq!(refused, Err(Refusal::Daemon("no".into())));
        let not_found = answer(b"HTTP/1.1 404 Not Found\r\n\r\n").await;
        assert_eq!(not_found, Err(Refusal::Protocol("HTTP/1.1 404 Not Found".into())));
        assert_eq!(answer(b"HTTP/1.1 101 x\r\n\r\n").await, Err(Refusal::Lost));
        assert_eq!(answer(b"").await, Err(Refusal::Lost));
        assert!(matches!(answer(b"HTTP/1.1 101 x\r\n\r\n\xff\0\0\0\0").await, Err(Refusal::Protocol(_))));
    }
}
