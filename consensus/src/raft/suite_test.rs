//! openraft's own storage tests, on the real disk and on the simulated one.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};

use super::log::LogStore;
use super::machine::Machine;
use super::types::{StorageError, TypeConfig};
use crate::disk::memory::MemoryDisk;
use crate::disk::sled::SledDisk;
use crate::disk::{Disk, DiskWork};
use crate::state::cluster::ClusterState;

const SPACE: &str = "cluster";

struct OnSled;

impl StoreBuilder<TypeConfig, LogStore, Machine<ClusterState>, tempfile::TempDir> for OnSled {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine<ClusterState>), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = store(Arc::new(SledDisk::open(dir.path()).unwrap()));
        Ok((dir, log, machine))
    }
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, Machine<ClusterState>> for InMemory {
    async fn build(&self) -> Result<((), LogStore, Machine<ClusterState>), StorageError> {
        let (log, machine) = store(Arc::new(MemoryDisk::default()));
        Ok(((), log, machine))
    }
}

fn store(disk: Arc<dyn Disk>) -> (LogStore, Machine<ClusterState>) {
    let log = LogStore::new(Arc::clone(&disk), DiskWork::Threads, SPACE);
    (log, Machine::open(disk, DiskWork::Threads, SPACE).unwrap())
}

#[test]
fn the_real_disk_passes_openrafts_storage_suite() {
    Suite::test_all(OnSled).unwrap();
}

#[test]
fn the_simulated_disk_passes_openrafts_storage_suite() {
    Suite::test_all(InMemory).unwrap();
}
