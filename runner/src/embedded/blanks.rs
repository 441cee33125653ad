//! Disks that are ready before anybody needs one: making and mounting an image takes longer than all else of a create.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::disk::Disks;

const REFILL_PAUSE: Duration = Duration::from_millis(5);
const REFILL_RETRY: Duration = Duration::from_secs(30);

/// Empty sandbox folders with mounted disks.
pub(super) struct Blanks {
    dir: PathBuf,
    disks: Arc<Disks>,
    target: usize,
    ready: Mutex<VecDeque<Blank>>,
    /// What was asked for last, and will probably be asked for next.
    gib: AtomicU32,
    next: AtomicU64,
    refill: Notify,
}

struct Blank {
    dir: PathBuf,
    gib: u32,
}

impl Blanks {
    /// What an earlier process has left in `dir` goes.
    pub(super) fn open(dir: PathBuf, disks: Arc<Disks>, target: usize) -> io::Result<Blanks> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            disks.destroy(&entry?.path())?;
        }
        Ok(Blanks {
            dir,
            disks,
            target,
            ready: Mutex::default(),
            gib: AtomicU32::new(0),
            next: AtomicU64::new(0),
            refill: Notify::new(),
        })
    }

    /// Makes `to`, a sandbox's folder, which must not exist, with an empty disk of this size. Blocks.
    pub(super) fn become_dir(&self, gib: u32, to: &Path) -> io::Result<()> {
        self.gib.store(gib, Ordering::Relaxed);
        let fitting = {
            let mut ready = self.ready();
            let place = ready.iter().position(|blank| blank.gib == gib);
            place.and_then(|place| ready.remove(place))
        };
        self.refill.notify_one();
        let dir = match fitting {
            Some(blank) => blank.dir,
            None => self.make(gib)?,
        };
        // The mount below moves along.
        fs::rename(dir, to)
    }

    /// Keeps the pool full until `closing`. Never ends in the middle of making one.
    pub(super) async fn keep_full(self: Arc<Self>, closing: CancellationToken) {
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = self.refill.notified() => {}
            }
            while let Some(gib) = self.lacking().filter(|_| !closing.is_cancelled()) {
                let blanks = self.clone();
                let made = tokio::task::spawn_blocking(move || blanks.make(gib)).await;
                match made.unwrap_or_else(|error| Err(io::Error::other(error))) {
                    Ok(dir) => self.ready().push_back(Blank { dir, gib }),
                    Err(error) => {
                        tracing::warn!(%error, "cannot make a disk ahead of time");
                        let _ = tokio::time::timeout(REFILL_RETRY, closing.cancelled()).await;
                    }
                }
                tokio::time::sleep(REFILL_PAUSE).await;
            }
        }
    }

    /// Blocks.
    pub(super) fn drain(&self) -> io::Result<()> {
        let ready: Vec<Blank> = self.ready().drain(..).collect();
        ready.iter().try_for_each(|blank| self.disks.destroy(&blank.dir))
    }

    /// The size that the pool has too few of. Sizes that are out of fashion make room.
    fn lacking(&self) -> Option<u32> {
        let gib = self.gib.load(Ordering::Relaxed);
        let surplus = {
            let mut ready = self.ready();
            if gib == 0 || ready.iter().filter(|blank| blank.gib == gib).count() >= self.target {
                return None;
            }
            let other = ready.iter().position(|blank| blank.gib != gib);
            match ready.len() >= self.target {
                true => other.and_then(|place| ready.remove(place)),
                false => None,
            }
        };
        if let Some(blank) = surplus
            && let Err(error) = self.disks.destroy(&blank.dir)
        {
            tracing::warn!(%error, "cannot remove a disk that was made ahead of time");
        }
        Some(gib)
    }

    fn make(&self, gib: u32) -> io::Result<PathBuf> {
        let dir = self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        match self.disks.make(&dir, gib) {
            Ok(()) => Ok(dir),
            Err(error) => {
                let _ = self.disks.destroy(&dir);
                Err(error)
            }
        }
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<Blank>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
