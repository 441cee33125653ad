//! What a stream between nodes is for: the header that opens it, and length-prefixed messages on it.
//!
//! A header is `len: u16 big endian` and `len` bytes of [`atoll_api::wire`]; at most [`HEADER_BYTES_MAX`].
//! A message is `len: u32 big endian` and `len` bytes; the reader names the most it takes.

use std::io;
use std::time::Duration;

use atoll_api::access::Target;
use atoll_api::ids::{Generation, NodeId, RegionName, RequestId, SandboxId};
use atoll_api::wire::{self, WireError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::link::{Link, LinkError};

pub const HEADER_BYTES_MAX: usize = 1024;
/// The most that [`call`] takes as an answer. What may be longer is streamed in several messages.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Which Raft group. One `cluster`, one per region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GroupName {
    Cluster,
    Region(RegionName),
}

/// Raft has a connection of its own, so that heartbeats and appends never queue behind data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamClass {
    Raft,
    Bulk,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamHeader {
    /// Raft RPCs of one group: request and answer messages, owned by `consensus`.
    Raft { group: GroupName },
    /// One snapshot of a group's state on its way to a replica that lags, owned by `consensus`.
    RaftSnapshot { group: GroupName },
    /// Proposals and read-index questions for a group's leader: request and answer messages, owned by `consensus`.
    Propose { group: GroupName },
    /// Bytes to and from a sandbox that the receiver owns. One answer message (`TunnelAnswer`), then raw bytes.
    Tunnel { sandbox_id: SandboxId, generation: Generation, target: Target, request_id: RequestId },
    /// A control verb to be carried out in the receiver's region, owned by `node`.
    Forward { request_id: RequestId },
    /// What the receiver's region knows of a sandbox or token, owned by `node`.
    Locate,
    /// Liveness and load, owned by `node`.
    Heartbeat,
    /// How the receiver's region is, owned by `node`.
    Status,
    /// Blobs of images that the receiver has, and what names stand for there, owned by `node`.
    Blob,
    /// An image that the receiver shall have a copy of, owned by `node`.
    Hold,
    /// The log of a build that the receiver has done or is doing, owned by `node`.
    BuildLog,
    /// Whether a sandbox of the receiver's is by now what it was claimed as, owned by `node`.
    Claim,
}

impl StreamHeader {
    pub fn class(&self) -> StreamClass {
        match self {
            StreamHeader::Raft { .. } | StreamHeader::Propose { .. } | StreamHeader::Heartbeat => {
                StreamClass::Raft
            }
            StreamHeader::RaftSnapshot { .. }
            | StreamHeader::Tunnel { .. }
            | StreamHeader::Forward { .. }
            | StreamHeader::Locate
            | StreamHeader::Status
            | StreamHeader::Blob
            | StreamHeader::Hold
            | StreamHeader::BuildLog
            | StreamHeader::Claim => StreamClass::Bulk,
        }
    }
}

/// Why nothing could be read from, or written to, a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The other side finished before this message: the usual end of a conversation.
    #[error("the stream ended")]
    Ended,
    /// The peer, or a newer version of it: this is not what was expected.
    #[error("{0}")]
    Malformed(#[from] WireError),
    /// The peer, or a bug: more than the reader or the framing takes.
    #[error("{bytes} bytes are more than the {bytes_max} allowed")]
    TooLong { bytes: usize, bytes_max: usize },
    /// The stream or its connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The header as it stands at the front of a stream.
pub fn encode_header(header: &StreamHeader) -> Result<Vec<u8>, StreamError> {
    let body = wire::encode(header)?;
    if body.len() > HEADER_BYTES_MAX {
        return Err(StreamError::TooLong { bytes: body.len(), bytes_max: HEADER_BYTES_MAX });
    }
    let length = u16::try_from(body.len()).expect("HEADER_BYTES_MAX fits in 16 bits");
    Ok([&length.to_be_bytes()[..], &body].concat())
}

/// Reads the header at the front of `bytes`, and says how many bytes it took. Any bytes at all may come in here.
pub fn decode_header(bytes: &[u8]) -> Result<(StreamHeader, usize), StreamError> {
    let (length, rest) = bytes.split_first_chunk::<2>().ok_or(StreamError::Ended)?;
    let length = header_length(*length)?;
    let body = rest.get(..length).ok_or(StreamError::Ended)?;
    Ok((wire::decode(body)?, 2 + length))
}

fn header_length(length: [u8; 2]) -> Result<usize, StreamError> {
    let bytes = usize::from(u16::from_be_bytes(length));
    let fits = bytes <= HEADER_BYTES_MAX;
    if fits { Ok(bytes) } else { Err(StreamError::TooLong { bytes, bytes_max: HEADER_BYTES_MAX }) }
}

pub async fn write_header<S>(stream: &mut S, header: &StreamHeader) -> Result<(), StreamError>
where
    S: AsyncWrite + Unpin + ?Sized,
{
    stream.write_all(&encode_header(header)?).await?;
    Ok(stream.flush().await?)
}

pub async fn read_header<S>(stream: &mut S) -> Result<StreamHeader, StreamError>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut length = [0; 2];
    stream.read_exact(&mut length).await.map_err(ended)?;
    let mut body = vec![0; header_length(length)?];
    stream.read_exact(&mut body).await.map_err(ended)?;
    Ok(wire::decode(&body)?)
}

pub async fn write_message<S, T>(stream: &mut S, message: &T) -> Result<(), StreamError>
where
    S: AsyncWrite + Unpin + ?Sized,
    T: Serialize + ?Sized,
{
    let body = wire::encode(&message)?;
    let length = u32::try_from(body.len())
        .map_err(|_| StreamError::TooLong { bytes: body.len(), bytes_max: u32::MAX as usize })?;
    // One write, so that a small message is one packet.
    stream.write_all(&[&length.to_be_bytes()[..], &body].concat()).await?;
    Ok(stream.flush().await?)
}

/// Reads one message of at most `bytes_max`. [`StreamError::Ended`] if the other side finished before it.
pub async fn read_message<S, T>(stream: &mut S, bytes_max: usize) -> Result<T, StreamError>
where
    S: AsyncRead + Unpin + ?Sized,
    T: DeserializeOwned,
{
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(ended)?;
    let length = u32::from_be_bytes(length);
    let bytes = length as usize;
    if bytes > bytes_max {
        return Err(StreamError::TooLong { bytes, bytes_max });
    }
    // Room grows with what has come, not with what was announced.
    let mut body = Vec::with_capacity(bytes.min(64 * 1024));
    stream.take(u64::from(length)).read_to_end(&mut body).await?;
    if body.len() < bytes {
        return Err(StreamError::Ended);
    }
    Ok(wire::decode(&body)?)
}

fn ended(e: io::Error) -> StreamError {
    if e.kind() == io::ErrorKind::UnexpectedEof { StreamError::Ended } else { StreamError::Io(e) }
}

/// Asks a peer one question on a stream of its own: one message there, one back, within `deadline` in all.
pub async fn call<Question, Answer>(
    link: &dyn Link,
    peer: NodeId,
    header: StreamHeader,
    question: &Question,
    deadline: Duration,
) -> Result<Answer, LinkError>
where
    Question: Serialize + Sync + ?Sized,
    Answer: DeserializeOwned,
{
    let broken = |e: StreamError| LinkError::Broken { peer, cause: e.to_string() };
    let conversation = async {
        let mut stream = link.open(peer, header, deadline).await?;
        write_message(&mut stream, question).await.map_err(broken)?;
        stream.shutdown().await.map_err(|e| broken(e.into()))?;
        read_message(&mut stream, ANSWER_BYTES_MAX).await.map_err(broken)
    };
    tokio::time::timeout(deadline, conversation).await.unwrap_or(Err(LinkError::TimedOut(peer)))
}

/// The last message of a conversation: writes it and finishes this side. A stream that is dropped without this is
/// reset, and what was written last may never arrive.
pub async fn answer<S, T>(stream: &mut S, message: &T) -> Result<(), StreamError>
where
    S: AsyncWrite + Unpin + ?Sized,
    T: Serialize + ?Sized,
{
    write_message(stream, message).await?;
    Ok(stream.shutdown().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_api::ids::RegionOrdinal;
    use proptest::prelude::*;

    fn tunnel() -> StreamHeader {
        StreamHeader::Tunnel {
            sandbox_id: SandboxId::new(RegionOrdinal::new(3).unwrap(), [7; 14]),
            generation: Generation(9),
            target: Target::Port(3000),
            request_id: RequestId::from_random([1; 16]),
        }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let region = GroupName::Region("eu".parse().unwrap());
        for header in [
            tunnel(),
            StreamHeader::Raft { group: GroupName::Cluster },
            StreamHeader::Propose { group: region },
            StreamHeader::Locate,
            StreamHeader::Heartbeat,
            StreamHeader::Blob,
        ] {
            let mut bytes = encode_header(&header).unwrap();
            let length = bytes.len();
            bytes.extend(b"what follows");

            assert_eq!(decode_header(&bytes).unwrap(), (header, length));
        }
    }

    #[test]
    fn a_header_that_is_cut_short_has_ended() {
        let bytes = encode_header(&tunnel()).unwrap();

        for length in 0..bytes.len() {
            assert!(matches!(decode_header(&bytes[..length]), Err(StreamError::Ended)), "{length}");
        }
    }

    #[test]
    fn a_header_longer_than_allowed_is_refused_before_it_is_read() {
        let bytes = [(HEADER_BYTES_MAX as u16 + 1).to_be_bytes().as_slice(), &[0; 2000]].concat();

        assert!(matches!(decode_header(&bytes), Err(StreamError::TooLong { bytes: 1025, .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let _ = decode_header(&bytes);
            let framed = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
            if let Ok((header, length)) = decode_header(&framed) {
                prop_assert!(length <= framed.len());
                prop_assert_eq!(decode_header(&encode_header(&header).unwrap()).unwrap().0, header);
            }
        }

        #[test]
        fn a_damaged_header_never_panics(at in 0usize..200, byte: u8) {
            let mut bytes = encode_header(&tunnel()).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode_header(&bytes);
        }
    }

    #[tokio::test]
    async fn messages_follow_each_other_until_the_end() {
        let (mut here, mut there) = crate::memory::pair(64);
        let writer = tokio::spawn(async move {
            write_header(&mut here, &tunnel()).await.unwrap();
            write_message(&mut here, "one").await.unwrap();
            answer(&mut here, &vec![7u8; 10_000]).await.unwrap();
        });

        assert_eq!(read_header(&mut there).await.unwrap(), tunnel());
        assert_eq!(read_message::<_, String>(&mut there, 100).await.unwrap(), "one");
        assert_eq!(read_message::<_, Vec<u8>>(&mut there, 100_000).await.unwrap(), vec![7; 10_000]);
        assert!(matches!(read_message::<_, String>(&mut there, 100).await, Err(StreamError::Ended)));
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_message_longer_than_the_reader_takes_is_refused_unread() {
        let announced = u32::MAX.to_be_bytes();

        let refused = read_message::<_, String>(&mut &announced[..], 1000).await;

        assert!(matches!(refused, Err(StreamError::TooLong { bytes_max: 1000, .. })));
    }

    #[tokio::test]
    async fn a_message_that_is_cut_short_has_ended() {
        let bytes = [&8u32.to_be_bytes()[..], b"\xa7abc"].concat();

        assert!(matches!(read_message::<_, String>(&mut &bytes[..], 100).await, Err(StreamError::Ended)));
        assert!(matches!(read_message::<_, String>(&mut &bytes[..2], 100).await, Err(StreamError::Ended)));
    }
}
