//! Removes what nobody refers to. Marks from the names and from what the caller needs; sweeps the rest.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::fetch::Store;
use super::layout::read_small;
use super::manifest::Parsed;
use super::names::{Named, Origin, millis, now_ms};
use super::{MANIFEST_BYTES_MAX, StoreError};
use crate::image::Digest;

/// A blob may be here before the manifest that speaks of it.
const GRACE: Duration = Duration::from_secs(3600);
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A node that was away for longer may bring a removed name back.
const REMOVED_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    pub bytes: u64,
    /// Of what is still there.
    pub left_bytes: u64,
}

impl Store {
    /// Removes blobs that no name and none of the manifests `needed` leads to; and, while the rest takes more than
    /// `budget_bytes`, names that may go and are not needed, least recently used first. Blocks on the disk.
    pub fn collect(&self, needed: &BTreeSet<Digest>, budget_bytes: u64) -> Result<Collected, StoreError> {
        self.collect_with(needed, budget_bytes, GRACE)
    }

    pub(super) fn collect_with(
        &self,
        needed: &BTreeSet<Digest>,
        budget_bytes: u64,
        grace: Duration,
    ) -> Result<Collected, StoreError> {
        let mut collected = self.sweep(needed, grace)?;
        let names = self.names().list()?;
        let removed_before = now_ms().saturating_sub(millis(REMOVED_AGE_MAX));
        for named in &names {
            if named.origin == Origin::Removed && named.set_ms < removed_before {
                self.names().remove(&named.name)?;
            }
        }
        let mut kept = needed.clone();
        kept.extend(names.iter().filter(|named| named.origin == Origin::Given).map(|named| named.digest));
        let is_idle = |digest: &Digest| {
            SystemTime::now().duration_since(self.last_use(digest)).is_ok_and(|ago| ago >= grace)
        };
        let may_go = |named: &Named| {
            matches!(named.origin, Origin::Fetched | Origin::Untagged)
                && !kept.contains(&named.digest)
                && is_idle(&named.digest)
        };
        let mut leaving: Vec<Named> = names.into_iter().filter(may_go).collect();
        leaving.sort_by_key(|named| self.last_use(&named.digest));
        for named in leaving {
            if collected.left_bytes <= budget_bytes {
                break;
            }
            self.names().remove(&named.name)?;
            let more = self.sweep(needed, grace)?;
            collected.blobs += more.blobs;
            collected.bytes += more.bytes;
            collected.left_bytes = more.left_bytes;
        }
        self.blobs().remove_partials_older_than(PARTIAL_AGE_MAX)?;
        Ok(collected)
    }

    fn sweep(&self, needed: &BTreeSet<Digest>, grace: Duration) -> Result<Collected, StoreError> {
        let stands = self.names().list()?.into_iter().filter(|named| named.origin != Origin::Removed);
        let marked = self.led_to(stands.map(|named| named.digest).chain(needed.iter().copied()));
        let mut collected = Collected::default();
        for (digest, bytes, used) in self.blobs().list()? {
            let is_old = SystemTime::now().duration_since(used).is_ok_and(|ago| ago >= grace);
            if marked.contains(&digest) || !is_old {
                collected.left_bytes += bytes;
                continue;
            }
            self.blobs().remove(&digest)?;
            collected.blobs += 1;
            collected.bytes += bytes;
        }
        Ok(collected)
    }

    /// Everything that these manifests and indexes speak of, and they themselves, as far as they are here. Nothing of
    /// this is a use.
    pub(super) fn led_to(&self, roots: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let mut marked = BTreeSet::new();
        let mut todo: Vec<Digest> = roots.into_iter().collect();
        while let Some(digest) = todo.pop() {
            if !marked.insert(digest) {
                continue;
            }
            // A seed's manifests keep no blob of ours; and blobs that are no manifests lead nowhere.
            let Ok(file) = std::fs::File::open(self.blobs().path(&digest)) else { continue };
            if file.metadata().is_ok_and(|metadata| metadata.len() <= MANIFEST_BYTES_MAX)
                && let Ok(json) = read_small(file, &digest, MANIFEST_BYTES_MAX)
                && let Ok(parsed) = Parsed::read(&json)
            {
                todo.extend(parsed.references());
            }
        }
        marked
    }

    pub(super) fn last_use(&self, digest: &Digest) -> SystemTime {
        let metadata = std::fs::metadata(self.blobs().path(digest));
        metadata.and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}
