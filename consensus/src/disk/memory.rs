//! A disk in memory for simulated crashes: what was not synced is lost, as it would be with the power.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Change, Disk, Pair, SnapshotBytes, SnapshotFile, SnapshotSink};

/// Clones are the same disk. Handles from before a loss of power fail; [`MemoryDisk::powered`] makes one for a new start.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    platter: Arc<Mutex<Platter>>,
    power_losses: u64,
}

#[derive(Default)]
struct Platter {
    power_losses: u64,
    seen: Spaces,
    durable: Spaces,
    unsynced: Vec<(String, Vec<Change>)>,
    snapshots: BTreeMap<String, (String, Arc<Vec<u8>>)>,
}

type Spaces = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

impl MemoryDisk {
    /// The power fails: of the writes since the last sync only the first `kept` reached the platter.
    pub fn lose_power(&self, kept: usize) {
        let mut platter = self.locked();
        platter.power_losses += 1;
        let unsynced = std::mem::take(&mut platter.unsynced);
        for (space, changes) in unsynced.into_iter().take(kept) {
            change_all(&mut platter.durable, &space, changes);
        }
        platter.seen = platter.durable.clone();
    }

    pub fn powered(&self) -> MemoryDisk {
        let power_losses = self.locked().power_losses;
        MemoryDisk { platter: Arc::clone(&self.platter), power_losses }
    }

    pub fn unsynced_writes(&self) -> usize {
        self.locked().unsynced.len()
    }

    /// A new machine: everything is gone.
    pub fn wipe(&self) {
        let mut platter = self.locked();
        *platter = Platter { power_losses: platter.power_losses + 1, ..Platter::default() };
    }

    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.locked();
        if platter.power_losses != self.power_losses {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the disk has lost its power"));
        }
        Ok(platter)
    }

    fn locked(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for MemoryDisk {
    fn spaces(&self) -> io::Result<Vec<String>> {
        Ok(self.platter()?.seen.keys().cloned().collect())
    }

    fn get(&self, space: &str, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.platter()?.seen.get(space).and_then(|pairs| pairs.get(key)).cloned())
    }

    fn scan(&self, space: &str, range: Range<Vec<u8>>, bytes_max: usize) -> io::Result<Vec<Pair>> {
        let platter = self.platter()?;
        let mut pairs = Vec::new();
        let mut bytes = 0;
        for (key, value) in platter.seen.get(space).into_iter().flat_map(|pairs| pairs.range(bounded(&range)))
        {
            bytes += value.len();
            pairs.push((key.clone(), value.clone()));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(pairs)
    }

    fn last(&self, space: &str, range: Range<Vec<u8>>) -> io::Result<Option<Pair>> {
        let platter = self.platter()?;
        let last = platter.seen.get(space).and_then(|pairs| pairs.range(bounded(&range)).next_back());
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn write(&self, space: &str, changes: Vec<Change>) -> io::Result<()> {
        let mut platter = self.platter()?;
        change_all(&mut platter.seen, space, changes.clone());
        platter.unsynced.push((space.to_owned(), changes));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut platter = self.platter()?;
        let unsynced = std::mem::take(&mut platter.unsynced);
        for (space, changes) in unsynced {
            change_all(&mut platter.durable, &space, changes);
        }
        Ok(())
    }

    fn snapshot(&self, space: &str) -> io::Result<Option<SnapshotFile>> {
        Ok(self
            .platter()?
            .snapshots
            .get(space)
            .map(|(_, bytes)| SnapshotFile::new(MemoryBytes(Arc::clone(bytes)))))
    }

    fn save_snapshot(&self, space: &str, name: &str, bytes: &[u8]) -> io::Result<SnapshotFile> {
        let bytes = Arc::new(bytes.to_vec());
        let mut platter = self.platter()?;
        let current = platter.snapshots.entry(space.to_owned()).or_default();
        if name >= current.0.as_str() {
            *current = (name.to_owned(), Arc::clone(&bytes));
        }
        Ok(SnapshotFile::new(MemoryBytes(bytes)))
    }

    fn receive_snapshot(&self, _space: &str) -> io::Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(MemorySink(Vec::new())))
    }
}

/// `BTreeMap::range` panics on a range that ends before it starts; here that is an empty one.
fn bounded(range: &Range<Vec<u8>>) -> Range<Vec<u8>> {
    range.start.clone()..range.end.clone().max(range.start.clone())
}

fn change_all(spaces: &mut Spaces, space: &str, changes: Vec<Change>) {
    let pairs = spaces.entry(space.to_owned()).or_default();
    for change in changes {
        match change {
            Change::Put { key, value } => {
                pairs.insert(key, value);
            }
            Change::RemoveRange(range) => pairs.retain(|key, _| !range.contains(key)),
        }
    }
}

/// Also stands for "no bytes yet".
pub struct MemoryBytes(pub Arc<Vec<u8>>);

impl SnapshotBytes for MemoryBytes {
    fn bytes_total(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = from.checked_add(length).and_then(|to| self.0.get(from..to));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

struct MemorySink(Vec<u8>);

impl SnapshotSink for MemorySink {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<SnapshotFile> {
        Ok(SnapshotFile::new(MemoryBytes(Arc::new(self.0))))
    }
}
