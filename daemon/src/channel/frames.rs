//! Frames on a byte stream: a kind, a length, a payload.

use std::io;

use atoll_api::channel::FrameKind;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

const HEADER_BYTES: usize = 5;

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub payload: Bytes,
}

impl Frame {
    pub fn new(kind: FrameKind, payload: impl Into<Bytes>) -> Frame {
        Frame { kind, payload: payload.into() }
    }
}

pub struct FrameReader<R>(BufReader<R>);

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(reader: R) -> FrameReader<R> {
        FrameReader(BufReader::new(reader))
    }

    /// `None` at an end between frames. Not cancel-safe: a frame that was half read is lost.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut header = [0; HEADER_BYTES];
        match self.0.read_exact(&mut header[..1]).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        self.0.read_exact(&mut header[1..]).await?;
        let malformed = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let [kind, length @ ..] = header;
        let kind = FrameKind::from_byte(kind).ok_or_else(|| malformed("unknown kind of frame"))?;
        let length = u32::from_be_bytes(length) as usize;
        if length > kind.bytes_max() {
            return Err(malformed("frame is too long"));
        }
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok(Some(Frame { kind, payload: payload.into() }))
    }
}

/// Until all senders have gone; then says so by closing its direction. A writer that fails takes no more.
pub async fn write_frames(mut writer: impl AsyncWrite + Unpin, mut waiting: mpsc::Receiver<Frame>) {
    while let Some(frame) = waiting.recv().await {
        if write_frame(&mut writer, &frame).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    debug_assert!(frame.payload.len() <= frame.kind.bytes_max());
    let mut bytes = Vec::with_capacity(HEADER_BYTES + frame.payload.len());
    bytes.push(frame.kind as u8);
    bytes.extend_from_slice(&(frame.payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&frame.payload);
    writer.write_all(&bytes).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> io::Result<Option<Frame>> {
        FrameReader::new(bytes).next().await
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        let (sender, waiting) = mpsc::channel(1);
        let mut bytes = Vec::new();
        sender.send(Frame::new(FrameKind::Stdout, &b"abc"[..])).await.unwrap();
        drop(sender);

        write_frames(&mut bytes, waiting).await;

        assert_eq!(bytes, b"\x06\0\0\0\x03abc");
        assert_eq!(read(&bytes).await.unwrap(), Some(Frame::new(FrameKind::Stdout, &b"abc"[..])));
    }

    #[tokio::test]
    async fn malformed_frames_are_errors_and_an_end_between_frames_is_none() {
        assert_eq!(read(b"").await.unwrap(), None);
        assert!(read(b"\x63\0\0\0\0").await.is_err());
        assert!(read(b"\x04\0\x01\0\x01").await.is_err());
        assert!(read(b"\x04\0\0\0\x02a").await.is_err());
    }
}
