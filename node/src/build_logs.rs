//! Logs of builds, read through any node: the one that builds has the log, and whoever asks follows it from there.
//!
//! ```text
//!  viewer ─▶ any node ── catalogue: who builds, which attempt? ──▶ that node ── BuildLog stream ──▶ bytes … end
//!               ▲                                                                    │
//!               └── broken off: again from where it was; another attempt: from its beginning ──┘
//! ```
//! A build never waits for a viewer, and does not know of any.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use atoll_api::ids::NodeId;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::{SnapshotKey, SnapshotRecord, SnapshotState};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{StreamHeader, read_message, write_message};
use atoll_runner::build::{BuildLog, Builds};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::debug;

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A peer that asks has its question ready, and one that is asked knows the answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// A viewer that takes nothing for so long is broken off; its node asks again from where it was.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Between looks at a build whose log is not there yet, or cannot be reached.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
const MESSAGE_BYTES_MAX: usize = 1024;
const PIECE_BYTES_MAX: usize = 1 << 20;

/// One attempt to build a snapshot, as its node's builds call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildId {
    pub snapshot_id: uuid::Uuid,
    pub attempt: u64,
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.snapshot_id, self.attempt)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading {
    /// What is there now.
    Now,
    /// To the end of the build, also of one that nobody has begun yet.
    Follow,
}

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    build: BuildId,
    from: u64,
    reading: Reading,
}

/// `Known` is followed by pieces of the log, each as `len: u32 big endian` and `len` bytes. The one without any is the end:
/// a stream that ends before it has broken off.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Known,
    Unknown,
}

/// What the REST door reads logs by.
pub trait BuildLogSource: Send + Sync + 'static {
    /// The log of the newest attempt, and of later ones that begin while it is followed. Dropping it ends only this.
    fn read(&self, key: SnapshotKey, reading: Reading) -> BoxStream<'static, Bytes>;
}

#[derive(Clone)]
pub struct BuildLogs {
    pub cluster: ClusterGroup,
    pub link: Arc<dyn Link>,
    /// `None` where nothing is built.
    pub builds: Option<Builds>,
}

type Chunks = BoxStream<'static, io::Result<Bytes>>;

/// Why there are no bytes now.
enum NoLog {
    /// Its node does not have it: not yet, or not any more.
    Unknown,
    Unreachable,
}

impl BuildLogSource for BuildLogs {
    fn read(&self, key: SnapshotKey, reading: Reading) -> BoxStream<'static, Bytes> {
        let viewer = Viewer { logs: self.clone(), key, reading, at: None, chunks: None };
        stream::unfold(viewer, |mut viewer| async move { Some((viewer.next().await?, viewer)) }).boxed()
    }
}

impl BuildLogs {
    /// The answering side of a `BuildLog` stream.
    pub async fn serve(&self, mut stream: ByteStream) -> anyhow::Result<()> {
        let question = timeout(ANSWER_DEADLINE, read_message(&mut stream, MESSAGE_BYTES_MAX));
        let Question { build, from, reading } = question.await.context("no question came")??;
        let Some(mut chunks) = self.here(build, from, reading) else {
            return Ok(atoll_mesh::stream::answer(&mut stream, &Answer::Unknown).await?);
        };
        write_message(&mut stream, &Answer::Known).await?;
        while let Some(chunk) = chunks.next().await {
            timeout(STALL_MAX, write_piece(&mut stream, &chunk?)).await.context("a peer takes no more")??;
        }
        write_piece(&mut stream, &[]).await?;
        Ok(stream.shutdown().await?)
    }

    fn here(&self, build: BuildId, from: u64, reading: Reading) -> Option<Chunks> {
        let log: Arc<BuildLog> = self.builds.as_ref()?.log(&build.to_string())?;
        Some(match reading {
            Reading::Now => log.read(from).boxed(),
            Reading::Follow => log.follow(from).boxed(),
        })
    }

    async fn open(&self, node_id: NodeId, question: Question) -> Result<Chunks, NoLog> {
        if node_id == self.link.local_node() {
            let Question { build, from, reading } = question;
            return self.here(build, from, reading).ok_or(NoLog::Unknown);
        }
        let asked = async {
            let mut stream = self.link.open(node_id, StreamHeader::BuildLog, CONNECT_DEADLINE).await.ok()?;
            write_message(&mut stream, &question).await.ok()?;
            let answer = read_message::<_, Answer>(&mut stream, MESSAGE_BYTES_MAX).await.ok()?;
            Some((answer, stream))
        };
        match timeout(ANSWER_DEADLINE, asked).await {
            Ok(Some((Answer::Known, stream))) => Ok(received(stream)),
            Ok(Some((Answer::Unknown, _))) => Err(NoLog::Unknown),
            Ok(None) | Err(_) => Err(NoLog::Unreachable),
        }
    }
}

async fn write_piece(stream: &mut ByteStream, piece: &[u8]) -> io::Result<()> {
    let length = u32::try_from(piece.len()).map_err(io::Error::other)?;
    stream.write_u32(length).await?;
    stream.write_all(piece).await
}

fn received(stream: ByteStream) -> Chunks {
    let pieces = stream::try_unfold(stream, |mut stream| async move {
        let length = stream.read_u32().await? as usize;
        if length == 0 {
            return Ok(None);
        }
        if length > PIECE_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut piece = vec![0; length];
        stream.read_exact(&mut piece).await?;
        Ok(Some((Bytes::from(piece), stream)))
    });
    pieces.boxed()
}

struct Viewer {
    logs: BuildLogs,
    key: SnapshotKey,
    reading: Reading,
    /// The attempt that is read, and how much of it the viewer has.
    at: Option<(u64, u64)>,
    chunks: Option<Chunks>,
}

impl Viewer {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunks) = &mut self.chunks {
                match chunks.next().await {
                    Some(Ok(bytes)) => {
                        if let Some((_, read)) = &mut self.at {
                            *read += bytes.len() as u64;
                        }
                        return Some(bytes);
                    }
                    Some(Err(error)) => {
                        debug!(snapshot = self.key.name, %error, "a build's log broke off");
                        self.chunks = None;
                    }
                    None => return None,
                }
            }
            let mut changes = self.logs.cluster.changes();
            changes.borrow_and_update();
            let record = self.logs.cluster.read(|state| state.snapshot_by_key(&self.key).cloned())?;
            match self.begin(&record).await {
                Ok(()) => continue,
                Err(_) if self.reading == Reading::Now => return None,
                Err(no_log) if record.state != SnapshotState::Pending && !record.state.is_in_work() => {
                    let said = self.at.is_some_and(|(_, read)| read > 0);
                    return self.last_words(&record, no_log).filter(|_| !said);
                }
                Err(_) => {}
            }
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
            }
        }
    }

    /// Goes on with the attempt that counts now.
    async fn begin(&mut self, record: &SnapshotRecord) -> Result<(), NoLog> {
        let (Some(worker), false) = (record.worker, record.state == SnapshotState::Pending) else {
            return Err(NoLog::Unknown);
        };
        let from = match self.at {
            Some((attempt, read)) if attempt == record.attempt => read,
            _ => 0,
        };
        let build = BuildId { snapshot_id: record.id, attempt: record.attempt };
        let chunks = self.logs.open(worker, Question { build, from, reading: self.reading }).await?;
        self.at = Some((record.attempt, from));
        self.chunks = Some(chunks);
        Ok(())
    }

    /// Of a build that has ended and whose log cannot be had.
    fn last_words(&mut self, record: &SnapshotRecord, no_log: NoLog) -> Option<Bytes> {
        self.reading = Reading::Now;
        let why = match no_log {
            NoLog::Unknown => "the log of this build is not kept any more",
            NoLog::Unreachable => "the node that has the log of this build cannot be reached",
        };
        let reason = record.state.reason().map(|reason| format!("\n{reason}")).unwrap_or_default();
        // Said once: the next look finds nothing to read and ends.
        self.chunks = Some(stream::empty().boxed());
        Some(Bytes::from(format!("({why}){reason}\n")))
    }
}
