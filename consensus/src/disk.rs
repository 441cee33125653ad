//! The disk as replicas need it: values under ordered keys in named spaces, and one snapshot per space.
//!
//! Behind this trait the storage engine can be changed. A write survives a crash only after the next [`Disk::sync`];
//! a saved snapshot survives as soon as the call returns.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub mod export;
pub mod memory;
pub mod sled;

pub trait Disk: Send + Sync + 'static {
    /// Names of all spaces that were ever written to.
    fn spaces(&self) -> io::Result<Vec<String>>;

    fn get(&self, space: &str, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Pairs in key order. Stops early once `bytes_max` bytes of values are reached, but never before the first pair.
    fn scan(&self, space: &str, range: Range<Vec<u8>>, bytes_max: usize) -> io::Result<Vec<Pair>>;

    /// The pair with the greatest key of the range.
    fn last(&self, space: &str, range: Range<Vec<u8>>) -> io::Result<Option<Pair>>;

    /// Makes all changes or none, and after every earlier write.
    fn write(&self, space: &str, changes: Vec<Change>) -> io::Result<()>;

    /// Everything written before this call survives the loss of power.
    fn sync(&self) -> io::Result<()>;

    fn snapshot(&self, space: &str) -> io::Result<Option<SnapshotFile>>;

    /// Keeps the snapshot unless a newer one is there: of two names the greater one is the newer.
    fn save_snapshot(&self, space: &str, name: &str, bytes: &[u8]) -> io::Result<SnapshotFile>;

    /// A place for a snapshot that arrives piece by piece. Dropped unfinished, it leaves nothing behind.
    fn receive_snapshot(&self, space: &str) -> io::Result<Box<dyn SnapshotSink>>;
}

pub type Pair = (Vec<u8>, Vec<u8>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put { key: Vec<u8>, value: Vec<u8> },
    RemoveRange(Range<Vec<u8>>),
}

/// Bytes of a snapshot. They stay readable while the handle lives, even if a newer one has replaced them.
#[derive(Clone)]
pub struct SnapshotFile(Arc<dyn SnapshotBytes>);

pub trait SnapshotBytes: Send + Sync {
    fn bytes_total(&self) -> u64;
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
}

pub trait SnapshotSink: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn finish(self: Box<Self>) -> io::Result<SnapshotFile>;
}

impl SnapshotFile {
    pub fn new(bytes: impl SnapshotBytes + 'static) -> SnapshotFile {
        SnapshotFile(Arc::new(bytes))
    }

    pub fn bytes_total(&self) -> u64 {
        self.0.bytes_total()
    }

    pub fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.0.read_at(offset, length)
    }

    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.0.bytes_total()).map_err(io::Error::other)?;
        self.0.read_at(0, length)
    }
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotFile({} bytes)", self.0.bytes_total())
    }
}

/// Where calls to a [`Disk`], which block, are made.
#[derive(Debug, Clone, Copy)]
pub enum DiskWork {
    /// On the runtime's blocking threads.
    Threads,
    /// Here, after a wait on the runtime's clock: for simulated time.
    Simulated { latency: Duration },
}

impl DiskWork {
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            DiskWork::Threads => flatten(tokio::task::spawn_blocking(work)).await,
            DiskWork::Simulated { latency } => {
                tokio::time::sleep(latency).await;
                work()
            }
        }
    }
}

async fn flatten<T>(
    task: impl Future<Output = Result<io::Result<T>, tokio::task::JoinError>>,
) -> io::Result<T> {
    match task.await {
        Ok(result) => result,
        Err(ended) => Err(io::Error::other(ended)),
    }
}
