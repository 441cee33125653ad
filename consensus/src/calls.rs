//! Questions and answers between replicas, over streams that are kept for the next question.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_api::wire;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::{Link, LinkError};
use atoll_mesh::stream::StreamHeader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Above the biggest batch and the most log that a follower is sent at once.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
const IDLE_STREAMS_MAX: usize = 8;
const OPEN_WITHIN: Duration = Duration::from_secs(2);

/// Asks peers through streams of one kind. Drop a question to give it up: its stream is closed, not kept.
pub struct Caller {
    link: Arc<dyn Link>,
    header: StreamHeader,
    idle: Mutex<BTreeMap<NodeId, Vec<ByteStream>>>,
}

impl Caller {
    pub fn new(link: Arc<dyn Link>, header: StreamHeader) -> Caller {
        Caller { link, header, idle: Mutex::default() }
    }

    /// The question must bear repetition: a kept stream may turn out to be dead, and a fresh one is tried then.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&self, peer: NodeId, question: &Q) -> Result<A, LinkError> {
        let question = wire::encode(question).map_err(|error| broken(peer, &error))?;
        if let Some(stream) = self.take_idle(peer)
            && let Ok(answer) = self.ask_on(peer, stream, &question).await
        {
            return Ok(answer);
        }
        let stream = self.link.open(peer, self.header.clone(), OPEN_WITHIN).await?;
        self.ask_on(peer, stream, &question).await.map_err(|error| broken(peer, &error))
    }

    async fn ask_on<A: DeserializeOwned>(
        &self,
        peer: NodeId,
        mut stream: ByteStream,
        question: &[u8],
    ) -> io::Result<A> {
        write_frame(&mut stream, question).await?;
        let answer = read_frame(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let answer = wire::decode(&answer).map_err(io::Error::other)?;
        self.keep(peer, stream);
        Ok(answer)
    }

    fn take_idle(&self, peer: NodeId) -> Option<ByteStream> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&peer)?.pop()
    }

    fn keep(&self, peer: NodeId, stream: ByteStream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = idle.entry(peer).or_default();
        if streams.len() < IDLE_STREAMS_MAX {
            streams.push(stream);
        }
    }
}

/// Answers questions on a stream until the peer ends it or something is wrong with it.
pub async fn answer_all<Q, A, F>(mut stream: ByteStream, mut answer: impl FnMut(Q) -> F) -> io::Result<()>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = A>,
{
    while let Some(question) = read_frame(&mut stream).await? {
        let question = wire::decode(&question).map_err(io::Error::other)?;
        write_message(&mut stream, &answer(question).await).await?;
    }
    Ok(())
}

pub async fn write_message<T: Serialize>(stream: &mut ByteStream, message: &T) -> io::Result<()> {
    write_frame(stream, &wire::encode(message).map_err(io::Error::other)?).await
}

pub async fn read_message<T: DeserializeOwned>(stream: &mut ByteStream) -> io::Result<T> {
    let bytes = read_frame(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    wire::decode(&bytes).map_err(io::Error::other)
}

async fn write_frame(stream: &mut ByteStream, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too big"));
    }
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    // One write, so that a small message is one packet.
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    stream.flush().await
}

/// `None` at the end of the stream.
async fn read_frame(stream: &mut ByteStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too big"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

fn broken(peer: NodeId, cause: &dyn std::error::Error) -> LinkError {
    LinkError::Broken { peer, cause: cause.to_string() }
}
