//! A group's Raft log and vote on a [`Disk`]. Nothing is acknowledged before it is synced.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use atoll_api::wire;
use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftLogId, StorageIOError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::disk::{Change, Disk, DiskWork};

/// A follower that lags gets at most about this much in one message.
const READ_BYTES_MAX: usize = 1024 * 1024;

const VOTE: &[u8] = b"meta/vote";
const COMMITTED: &[u8] = b"meta/committed";
const PURGED: &[u8] = b"meta/purged";
const ENTRY: &[u8] = b"log/";
const AFTER_ENTRIES: &[u8] = b"log0";

/// Clones read and write the same log.
#[derive(Clone)]
pub struct LogStore {
    disk: Arc<dyn Disk>,
    work: DiskWork,
    space: Arc<str>,
}

impl LogStore {
    pub fn new(disk: Arc<dyn Disk>, work: DiskWork, space: &str) -> LogStore {
        LogStore { disk, work, space: space.into() }
    }

    async fn read<T: DeserializeOwned + Send + 'static>(&self, key: &'static [u8]) -> io::Result<Option<T>> {
        let (disk, space) = (Arc::clone(&self.disk), Arc::clone(&self.space));
        self.work.run(move || disk.get(&space, key)?.map(|bytes| decode(&bytes)).transpose()).await
    }

    async fn write_synced(&self, changes: Vec<Change>) -> io::Result<()> {
        let (disk, space) = (Arc::clone(&self.disk), Arc::clone(&self.space));
        self.work
            .run(move || {
                disk.write(&space, changes)?;
                disk.sync()
            })
            .await
    }

    async fn entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (disk, space) = (Arc::clone(&self.disk), Arc::clone(&self.space));
        self.work
            .run(move || {
                let pairs = disk.scan(&space, entry_key(range.start)..end_key(range.end), bytes_max)?;
                pairs.iter().map(|(_, bytes)| decode(bytes)).collect()
            })
            .await
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(half_open(&range), usize::MAX)
            .await
            .map_err(|error| StorageIOError::read_logs(&error).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start..end, READ_BYTES_MAX)
            .await
            .map_err(|error| StorageIOError::read_logs(&error).into())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let (disk, space) = (Arc::clone(&self.disk), Arc::clone(&self.space));
        let state = self
            .work
            .run(move || {
                let purged: Option<LogId> =
                    disk.get(&space, PURGED)?.map(|bytes| decode(&bytes)).transpose()?;
                let last = disk.last(&space, ENTRY.to_vec()..AFTER_ENTRIES.to_vec())?;
                let last =
                    last.map(|(_, bytes)| decode::<Entry>(&bytes)).transpose()?.map(|entry| entry.log_id);
                Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
            })
            .await;
        state.map_err(|error| StorageIOError::read_logs(&error).into())
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = match put(VOTE, vote) {
            Ok(change) => self.write_synced(vec![change]).await,
            Err(error) => Err(error),
        };
        saved.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.read(VOTE).await.map_err(|error| StorageIOError::read_vote(&error).into())
    }

    /// Not synced: it only spares a restarted replica the wait for a leader to tell it again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        put(COMMITTED, &committed)
            .and_then(|change| self.disk.write(&self.space, vec![change]))
            .map_err(|error| StorageIOError::write(&error).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed = self.read::<Option<LogId>>(COMMITTED).await;
        committed.map(Option::flatten).map_err(|error| StorageIOError::read(&error).into())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let changes: io::Result<Vec<Change>> = entries
            .into_iter()
            .map(|entry| Ok(Change::Put { key: entry_key(entry.get_log_id().index), value: encode(&entry)? }))
            .collect();
        let written = match changes {
            Ok(changes) => self.write_synced(changes).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                let cause = StorageIOError::write_logs(&error).into();
                callback.log_io_completed(Err(error));
                Err(cause)
            }
        }
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let removed = Change::RemoveRange(entry_key(since.index)..AFTER_ENTRIES.to_vec());
        self.write_synced(vec![removed]).await.map_err(|error| StorageIOError::write_logs(&error).into())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let removed = Change::RemoveRange(ENTRY.to_vec()..end_key(upto.index + 1));
        let purged = match put(PURGED, &upto) {
            Ok(mark) => self.write_synced(vec![mark, removed]).await,
            Err(error) => Err(error),
        };
        purged.map_err(|error| StorageIOError::write_logs(&error).into())
    }
}

fn entry_key(index: u64) -> Vec<u8> {
    [ENTRY, &index.to_be_bytes()].concat()
}

/// The key before which a range that excludes `index` ends.
fn end_key(index: u64) -> Vec<u8> {
    if index == u64::MAX { AFTER_ENTRIES.to_vec() } else { entry_key(index) }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

fn put<T: Serialize>(key: &[u8], value: &T) -> io::Result<Change> {
    Ok(Change::Put { key: key.to_vec(), value: encode(value)? })
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    wire::encode(value).map_err(io::Error::other)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    wire::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
