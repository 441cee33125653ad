//! Questions and answers between replicas, over streams that are kept for the next question.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::{Link, LinkError};
use atoll_mesh::stream::{StreamError, StreamHeader, read_message, write_message};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        peer: NodeId,
        question: &Q,
    ) -> Result<A, LinkError> {
        if let Some(stream) = self.take_idle(peer)
            && let Ok(answer) = self.ask_on(peer, stream, question).await
        {
            return Ok(answer);
        }
        let stream = self.link.open(peer, self.header.clone(), OPEN_WITHIN).await?;
        let answer = self.ask_on(peer, stream, question).await;
        answer.map_err(|error| LinkError::Broken { peer, cause: error.to_string() })
    }

    async fn ask_on<Q: Serialize, A: DeserializeOwned>(
        &self,
        peer: NodeId,
        mut stream: ByteStream,
        question: &Q,
    ) -> Result<A, StreamError> {
        write_message(&mut stream, question).await?;
        let answer = read_message(&mut stream, MESSAGE_BYTES_MAX).await?;
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
pub async fn answer_all<Q, A, F>(
    mut stream: ByteStream,
    mut answer: impl FnMut(Q) -> F,
) -> Result<(), StreamError>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = A>,
{
    loop {
        let question = match read_message(&mut stream, MESSAGE_BYTES_MAX).await {
            Ok(question) => question,
            Err(StreamError::Ended) => return Ok(()),
            Err(error) => return Err(error),
        };
        write_message(&mut stream, &answer(question).await).await?;
    }
}
