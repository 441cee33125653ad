//! openraft's RPCs as questions to peers, and snapshots as streams of their own.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::{Link, LinkError};
use atoll_mesh::stream::{GroupName, StreamError, StreamHeader, answer, read_message, write_message};
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend, Raft};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::types::{Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::calls::{Caller, MESSAGE_BYTES_MAX, answer_all};
use crate::disk::{Disk, DiskWork, SnapshotFile, SnapshotSink};

const CHUNK_BYTES: usize = 256 * 1024;
const OPEN_SNAPSHOT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
enum Question {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Stopped(String),
}

/// Goes before the file's bytes.
#[derive(Serialize, Deserialize)]
struct Offer {
    vote: Vote,
    meta: SnapshotMeta,
    bytes_total: u64,
}

#[derive(Serialize, Deserialize)]
enum Taken {
    Vote(Vote),
    Failed(String),
}

/// All that a replica sends to its peers goes through here, so that a leader can be silenced.
#[derive(Clone)]
pub struct GroupNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<dyn Link>,
    group: GroupName,
    caller: Caller,
    work: DiskWork,
    retry_after: Duration,
    /// A leader of this term or an earlier one says nothing. 0: nobody is silenced.
    silenced_term: AtomicU64,
}

impl GroupNetwork {
    pub fn new(link: Arc<dyn Link>, group: GroupName, work: DiskWork, retry_after: Duration) -> GroupNetwork {
        let caller = Caller::new(Arc::clone(&link), StreamHeader::Raft { group: group.clone() });
        let silenced_term = AtomicU64::new(0);
        GroupNetwork { shared: Arc::new(Shared { link, group, caller, work, retry_after, silenced_term }) }
    }

    pub fn silence(&self, term: u64) {
        self.shared.silenced_term.store(term, Ordering::Relaxed);
    }

    pub fn speak(&self) {
        self.silence(0);
    }
}

impl Shared {
    fn may_speak(&self, vote: &Vote) -> Result<(), Unreachable> {
        if vote.leader_id.term > self.silenced_term.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Unreachable::new(&AnyError::error("this leader is silent: no quorum answers it")))
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &openraft::EmptyNode) -> Peer {
        Peer { shared: Arc::clone(&self.shared), target: NodeId(target) }
    }
}

pub struct Peer {
    shared: Arc<Shared>,
    target: NodeId,
}

type PeerError<E = std::convert::Infallible> = RPCError<u64, openraft::EmptyNode, E>;

impl Peer {
    async fn ask<E: std::error::Error>(&self, question: Question) -> Result<Answer, PeerError<E>> {
        self.shared.caller.ask(self.target, &question).await.map_err(|error| match error {
            // Only these make openraft wait before it tries again.
            LinkError::UnknownPeer(_) | LinkError::Unreachable { .. } | LinkError::Refused { .. } => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            LinkError::TimedOut(_) | LinkError::Broken { .. } => RPCError::Network(NetworkError::new(&error)),
        })
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: &Snapshot) -> Result<Taken, StreamError> {
        let header = StreamHeader::RaftSnapshot { group: self.shared.group.clone() };
        let opened = self.shared.link.open(self.target, header, OPEN_SNAPSHOT_WITHIN).await;
        let mut stream = opened.map_err(io::Error::other)?;
        let bytes_total = snapshot.snapshot.bytes_total();
        write_message(&mut stream, &Offer { vote, meta: snapshot.meta.clone(), bytes_total }).await?;
        let mut sent = 0;
        while sent < bytes_total {
            self.shared.may_speak(&vote).map_err(io::Error::other)?;
            let length = CHUNK_BYTES.min(usize::try_from(bytes_total - sent).unwrap_or(CHUNK_BYTES));
            let file = SnapshotFile::clone(&snapshot.snapshot);
            let chunk = self.shared.work.run(move || file.read_at(sent, length)).await?;
            stream.write_all(&chunk).await?;
            sent += length as u64;
        }
        stream.flush().await?;
        read_message(&mut stream, MESSAGE_BYTES_MAX).await
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, PeerError<RaftError<u64>>> {
        self.shared.may_speak(&rpc.vote)?;
        match self.ask(Question::Append(rpc)).await? {
            Answer::Append(answer) => Ok(answer),
            other => Err(other.unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, PeerError<RaftError<u64>>> {
        match self.ask(Question::Vote(rpc)).await? {
            Answer::Vote(answer) => Ok(answer),
            other => Err(other.unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let cancel = std::pin::pin!(cancel);
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = tokio::time::timeout(option.hard_ttl(), self.send_snapshot(vote, &snapshot)) => sent,
        };
        let error = match sent {
            Ok(Ok(Taken::Vote(vote))) => return Ok(SnapshotResponse { vote }),
            Ok(Ok(Taken::Failed(cause))) => StreamError::Io(io::Error::other(cause)),
            Ok(Err(error)) => error,
            Err(_elapsed) => StreamError::Io(io::ErrorKind::TimedOut.into()),
        };
        Err(StreamingError::Unreachable(Unreachable::new(&error)))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.shared.retry_after))
    }
}

impl Answer {
    fn unexpected<E: std::error::Error>(self) -> PeerError<E> {
        let cause = match self {
            Answer::Stopped(cause) => format!("the peer's replica has stopped: {cause}"),
            Answer::Append(_) | Answer::Vote(_) => "the peer answered something else".to_owned(),
        };
        RPCError::Network(NetworkError::new(&AnyError::error(cause)))
    }
}

pub async fn serve_rpcs(raft: &Raft<TypeConfig>, stream: ByteStream) -> Result<(), StreamError> {
    answer_all(stream, async |question| match question {
        Question::Append(rpc) => raft
            .append_entries(rpc)
            .await
            .map_or_else(|error| Answer::Stopped(error.to_string()), Answer::Append),
        Question::Vote(rpc) => {
            raft.vote(rpc).await.map_or_else(|error| Answer::Stopped(error.to_string()), Answer::Vote)
        }
    })
    .await
}

pub async fn serve_snapshot(
    raft: &Raft<TypeConfig>,
    disk: Arc<dyn Disk>,
    work: DiskWork,
    space: String,
    mut stream: ByteStream,
) -> Result<(), StreamError> {
    let offer: Offer = read_message(&mut stream, MESSAGE_BYTES_MAX).await?;
    let mut sink = work.run(move || disk.receive_snapshot(&space)).await?;
    let mut missing = offer.bytes_total;
    while missing > 0 {
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(missing).unwrap_or(CHUNK_BYTES))];
        stream.read_exact(&mut chunk).await?;
        missing -= chunk.len() as u64;
        sink = work.run(move || append_to(sink, &chunk)).await?;
    }
    let file = work.run(move || sink.finish()).await?;
    let snapshot = Snapshot { meta: offer.meta, snapshot: Box::new(file) };
    let taken = match raft.install_full_snapshot(offer.vote, snapshot).await {
        Ok(answer) => Taken::Vote(answer.vote),
        Err(fatal) => Taken::Failed(fatal.to_string()),
    };
    answer(&mut stream, &taken).await
}

fn append_to(mut sink: Box<dyn SnapshotSink>, bytes: &[u8]) -> io::Result<Box<dyn SnapshotSink>> {
    sink.append(bytes)?;
    Ok(sink)
}
