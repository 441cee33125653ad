//! A group's state in memory: applies decided entries, and saves and loads it as snapshot files.
//!
//! A snapshot file is `magic ‖ crc32 of the rest (u32) ‖ length of the head (u32) ‖ head ‖ state`, big endian; head and
//! state are [`atoll_api::wire`]. It is durable before openraft hears of it, so that a purged log is never missed.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use atoll_api::wire;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::types::{
    Batch, Entry, LogId, Outcomes, Proposal, Snapshot, SnapshotMeta, StorageError, StoredMembership,
    TypeConfig,
};
use crate::disk::memory::MemoryBytes;
use crate::disk::{Disk, DiskWork, SnapshotFile};
use crate::replicated::Replicated;
use crate::sessions::{Bytes, Seen, Sessions};

const MAGIC: &[u8; 8] = b"ATOLLSN1";
const PREFIX_BYTES: usize = MAGIC.len() + 4 + 4;

/// Clones are handles to the same replica's state.
pub struct Machine<S: Replicated> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    disk: Arc<dyn Disk>,
    work: DiskWork,
    space: String,
    applied: RwLock<Applied<S>>,
    changes: watch::Sender<u64>,
    /// As `changes`, for waiters inside of this crate: a `watch` wakes them in random order, and no simulation could be
    /// repeated.
    changed: Notify,
}

#[derive(Clone, Default)]
struct Applied<S> {
    last: Option<LogId>,
    membership: StoredMembership,
    contents: Contents<S>,
}

/// What a snapshot's body holds.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(bound = "S: Replicated")]
struct Contents<S> {
    sessions: Sessions,
    state: S,
}

#[derive(Serialize, Deserialize)]
struct Head {
    meta: SnapshotMeta,
}

impl<S: Replicated> Clone for Machine<S> {
    fn clone(&self) -> Self {
        Machine { shared: Arc::clone(&self.shared) }
    }
}

impl<S: Replicated> Machine<S> {
    /// Loads the newest snapshot; the log brings the rest.
    pub fn open(disk: Arc<dyn Disk>, work: DiskWork, space: &str) -> io::Result<Machine<S>> {
        let applied = match disk.snapshot(space)? {
            None => Applied::default(),
            Some(file) => {
                let (meta, contents) = parse(&file.read_all()?)?;
                Applied { last: meta.last_log_id, membership: meta.last_membership, contents }
            }
        };
        let changes = watch::Sender::new(index_of(applied.last));
        let shared = Shared {
            disk,
            work,
            space: space.to_owned(),
            applied: RwLock::new(applied),
            changes,
            changed: Notify::new(),
        };
        Ok(Machine { shared: Arc::new(shared) })
    }

    pub fn read<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        look(&self.shared.applied().contents.state)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Resolves at the next change after the call.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    pub async fn until_applied(&self, index: u64) {
        loop {
            let changed = self.shared.changed.notified();
            if *self.shared.changes.borrow() >= index {
                return;
            }
            changed.await;
        }
    }
}

impl<S> Shared<S> {
    fn tell(&self, index: u64) {
        self.changes.send_replace(index);
        self.changed.notify_waiters();
    }

    // A panic inside `apply` ends the replica; what readers see until the process has ended is of no matter.
    fn applied(&self) -> RwLockReadGuard<'_, Applied<S>> {
        self.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied_mut(&self) -> RwLockWriteGuard<'_, Applied<S>> {
        self.applied.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A leader checks this before it proposes for others: what does not decode would stop every replica.
pub fn decodes<S: Replicated>(command: &[u8]) -> bool {
    wire::decode::<S::Command>(command).is_ok()
}

impl<S: Replicated> Contents<S> {
    fn apply(&mut self, batch: &Batch) -> io::Result<Outcomes> {
        batch
            .proposals
            .iter()
            .map(|proposal| self.apply_one(proposal))
            .collect::<io::Result<Vec<_>>>()
            .map(Outcomes)
    }

    fn apply_one(&mut self, proposal: &Proposal) -> io::Result<Bytes> {
        if proposal.version != Proposal::VERSION {
            return Err(io::Error::other(format!("version {} of a proposal is unknown", proposal.version)));
        }
        match self.sessions.look_up(&proposal.id) {
            Seen::Before(outcome) => Ok(outcome),
            Seen::TooLate => Ok(Bytes::default()),
            Seen::Never => {
                let command = wire::decode(&proposal.command.0).map_err(io::Error::other)?;
                let outcome = Bytes(wire::encode(&self.state.apply(command)).map_err(io::Error::other)?);
                self.sessions.remember(&proposal.id, outcome.clone());
                Ok(outcome)
            }
        }
    }
}

impl<S: Replicated> RaftStateMachine<TypeConfig> for Machine<S> {
    type SnapshotBuilder = Builder<S>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.shared.applied();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut all = Vec::new();
        let mut applied = self.shared.applied_mut();
        for entry in entries {
            let outcomes = match &entry.payload {
                EntryPayload::Blank => Outcomes::default(),
                EntryPayload::Normal(batch) => applied
                    .contents
                    .apply(batch)
                    .map_err(|error| StorageIOError::apply(entry.log_id, &error))?,
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Outcomes::default()
                }
            };
            applied.last = Some(entry.log_id);
            all.push(outcomes);
        }
        let index = index_of(applied.last);
        drop(applied);
        self.shared.tell(index);
        Ok(all)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<S> {
        Builder { shared: Arc::clone(&self.shared), applied: Some(self.shared.applied().clone()) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        Ok(Box::new(SnapshotFile::new(MemoryBytes(Arc::default()))))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError> {
        let shared = Arc::clone(&self.shared);
        let installed = self
            .shared
            .work
            .run(move || {
                let bytes = snapshot.read_all()?;
                let (meta, contents) = parse::<S>(&bytes)?;
                shared.disk.save_snapshot(&shared.space, &file_name(&meta), &bytes)?;
                Ok((meta, contents))
            })
            .await;
        let (inside, contents) =
            installed.map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        let applied = Applied { last: inside.last_log_id, membership: inside.last_membership, contents };
        let index = index_of(applied.last);
        *self.shared.applied_mut() = applied;
        self.shared.tell(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let shared = Arc::clone(&self.shared);
        let current = self
            .shared
            .work
            .run(move || {
                let Some(file) = shared.disk.snapshot(&shared.space)? else { return Ok(None) };
                let meta = parse_meta(&file)?;
                Ok(Some(Snapshot { meta, snapshot: Box::new(file) }))
            })
            .await;
        current.map_err(|error| StorageIOError::read_snapshot(None, &error).into())
    }
}

/// The state as it was when the builder was made; applying goes on meanwhile.
pub struct Builder<S: Replicated> {
    shared: Arc<Shared<S>>,
    applied: Option<Applied<S>>,
}

impl<S: Replicated> RaftSnapshotBuilder<TypeConfig> for Builder<S> {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let shared = Arc::clone(&self.shared);
        let applied = self.applied.take().unwrap_or_else(|| shared.applied().clone());
        let built = self
            .shared
            .work
            .run(move || {
                let meta = SnapshotMeta {
                    last_log_id: applied.last,
                    last_membership: applied.membership,
                    snapshot_id: applied.last.map(|id| id.to_string()).unwrap_or_default(),
                };
                let bytes = compose(&meta, &applied.contents)?;
                let file = shared.disk.save_snapshot(&shared.space, &file_name(&meta), &bytes)?;
                Ok(Snapshot { meta, snapshot: Box::new(file) })
            })
            .await;
        built.map_err(|error| StorageIOError::write_snapshot(None, &error).into())
    }
}

fn index_of(last: Option<LogId>) -> u64 {
    last.map_or(0, |id| id.index)
}

/// Sorts by age.
fn file_name(meta: &SnapshotMeta) -> String {
    let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("{index:020}-{term:020}")
}

fn compose<S: Replicated>(meta: &SnapshotMeta, contents: &Contents<S>) -> io::Result<Vec<u8>> {
    let head = wire::encode(&Head { meta: meta.clone() }).map_err(io::Error::other)?;
    let body = wire::encode(contents).map_err(io::Error::other)?;
    let head_length = u32::try_from(head.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut sum = crc32fast::Hasher::new();
    for part in [&head_length[..], &head, &body] {
        sum.update(part);
    }
    Ok([&MAGIC[..], &sum.finalize().to_be_bytes(), &head_length, &head, &body].concat())
}

fn parse<S: Replicated>(bytes: &[u8]) -> io::Result<(SnapshotMeta, Contents<S>)> {
    let (prefix, rest) = bytes.split_at_checked(PREFIX_BYTES).ok_or_else(|| damaged("it is too short"))?;
    let (sum, head_length) = parse_prefix(prefix)?;
    if crc32fast::hash(&bytes[MAGIC.len() + 4..]) != sum {
        return Err(damaged("its checksum differs"));
    }
    let (head, body) = rest.split_at_checked(head_length).ok_or_else(|| damaged("its head is too short"))?;
    let head: Head = wire::decode(head).map_err(|error| damaged(&error.to_string()))?;
    let contents = wire::decode(body).map_err(|error| damaged(&error.to_string()))?;
    Ok((head.meta, contents))
}

fn parse_meta(file: &SnapshotFile) -> io::Result<SnapshotMeta> {
    let (_, head_length) = parse_prefix(&file.read_at(0, PREFIX_BYTES)?)?;
    if file.bytes_total() < (PREFIX_BYTES + head_length) as u64 {
        return Err(damaged("its head is too short"));
    }
    let head = file.read_at(PREFIX_BYTES as u64, head_length)?;
    let head: Head = wire::decode(&head).map_err(|error| damaged(&error.to_string()))?;
    Ok(head.meta)
}

/// The checksum, and the length of the head in bytes.
fn parse_prefix(prefix: &[u8]) -> io::Result<(u32, usize)> {
    let numbers = prefix.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as a snapshot"))?;
    let number =
        |at: usize| numbers.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    match (number(0), number(4)) {
        (Some(sum), Some(head_length)) => Ok((sum, head_length as usize)),
        _ => Err(damaged("it is too short")),
    }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot is damaged: {why}"))
}
