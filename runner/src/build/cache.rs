//! What steps have made before, on disk: one small file for each, named by the step's key. Bounded by number and by the
//! bytes of its layers; what was not used for longest goes first. Whether a layer is still in the store is not its
//! business. Its functions block on the disk for a moment.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::host::Made;
use crate::image::{Digest, Layer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    pub entries_max: usize,
    /// Of the layers as they are stored.
    pub bytes_max: u64,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits { entries_max: 10_000, bytes_max: 20 << 30 }
    }
}

#[derive(Debug)]
pub struct StepCache {
    dir: PathBuf,
    limits: CacheLimits,
    entries: Mutex<HashMap<Digest, Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    made: Made,
    used: SystemTime,
}

/// As a file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    layer: Option<Layer>,
}

impl StepCache {
    /// What cannot be read is forgotten: its step is taken again.
    pub fn open(dir: PathBuf, limits: CacheLimits) -> io::Result<StepCache> {
        fs::create_dir_all(&dir)?;
        let mut entries = HashMap::new();
        for file in fs::read_dir(&dir)? {
            let path = file?.path();
            match read(&path) {
                Some((key, entry)) => drop(entries.insert(key, entry)),
                None => fs::remove_file(&path)?,
            }
        }
        let cache = StepCache { dir, limits, entries: Mutex::new(entries) };
        cache.keep_within_limits(&mut cache.entries());
        Ok(cache)
    }

    /// Counts as a use.
    pub fn get(&self, key: &Digest) -> Option<Made> {
        let mut entries = self.entries();
        let entry = entries.get_mut(key)?;
        entry.used = SystemTime::now();
        let noted = fs::File::open(self.path(key)).and_then(|file| file.set_modified(entry.used));
        if let Err(error) = noted {
            tracing::debug!(%key, %error, "cannot note the use of a step's result");
        }
        Some(entry.made)
    }

    pub fn put(&self, key: &Digest, made: &Made) -> io::Result<()> {
        let json = serde_json::to_vec(&Record { layer: *made }).map_err(io::Error::other)?;
        let mut entries = self.entries();
        // Beside what is read at the next start: such a name is no key.
        let fresh = self.dir.join(format!("{}.new", key.hex()));
        fs::write(&fresh, json)?;
        fs::rename(&fresh, self.path(key))?;
        entries.insert(*key, Entry { made: *made, used: SystemTime::now() });
        self.keep_within_limits(&mut entries);
        Ok(())
    }

    pub fn forget(&self, key: &Digest) {
        self.remove(&mut self.entries(), key);
    }

    /// The layers' blobs.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.entries().values().filter_map(|entry| Some(entry.made?.blob)).collect()
    }

    fn keep_within_limits(&self, entries: &mut HashMap<Digest, Entry>) {
        let bytes_of = |entry: &Entry| entry.made.map_or(0, |layer| layer.blob_bytes);
        let mut bytes: u64 = entries.values().map(bytes_of).sum();
        if entries.len() <= self.limits.entries_max && bytes <= self.limits.bytes_max {
            return;
        }
        let mut by_use: Vec<(SystemTime, Digest, u64)> =
            entries.iter().map(|(key, entry)| (entry.used, *key, bytes_of(entry))).collect();
        by_use.sort_unstable();
        for (_, key, entry_bytes) in by_use {
            if entries.len() <= self.limits.entries_max && bytes <= self.limits.bytes_max {
                break;
            }
            self.remove(entries, &key);
            bytes -= entry_bytes;
        }
    }

    fn remove(&self, entries: &mut HashMap<Digest, Entry>, key: &Digest) {
        entries.remove(key);
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%key, %error, "cannot forget a step's result");
            }
            _ => {}
        }
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.dir.join(key.hex())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Digest, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Option<(Digest, Entry)> {
    let key = format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()?;
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let used = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    Some((key, Entry { made: record.layer, used }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Compression;

    const ROOMY: CacheLimits = CacheLimits { entries_max: 100, bytes_max: 100 };

    fn key(number: u8) -> Digest {
        Digest::of(&[number])
    }

    fn layer(number: u8, blob_bytes: u64) -> Made {
        let digest = Digest::of(&[b'l', number]);
        Some(Layer { diff_id: digest, blob: digest, blob_bytes, compression: Compression::None })
    }

    fn known(cache: &StepCache) -> Vec<u8> {
        (0..10).filter(|number| cache.entries().contains_key(&key(*number))).collect()
    }

    #[test]
    fn a_result_is_found_again_by_a_later_process() {
        let dir = tempfile::tempdir().unwrap();
        let cache = StepCache::open(dir.path().into(), ROOMY).unwrap();
        cache.put(&key(1), &layer(1, 5)).unwrap();
        cache.put(&key(2), &None).unwrap();
        cache.put(&key(3), &layer(3, 5)).unwrap();
        cache.forget(&key(3));
        fs::write(dir.path().join(key(4).hex()), "no JSON").unwrap();
        fs::write(dir.path().join("x.new"), "left behind").unwrap();

        let later = StepCache::open(dir.path().into(), ROOMY).unwrap();

        assert_eq!((later.get(&key(1)), later.get(&key(2))), (Some(layer(1, 5)), Some(None)));
        assert_eq!((later.get(&key(3)), later.get(&key(4))), (None, None));
        assert_eq!(later.blobs(), [layer(1, 5).unwrap().blob].into());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let limits = CacheLimits { entries_max: 3, bytes_max: 10 };
        let cache = StepCache::open(dir.path().into(), limits).unwrap();
        for number in 1..=3 {
            cache.put(&key(number), &layer(number, 3)).unwrap();
        }
        cache.get(&key(1)).unwrap();

        cache.put(&key(4), &None).unwrap();
        assert_eq!(known(&cache), [1, 3, 4]);
        cache.put(&key(5), &layer(5, 8)).unwrap();
        assert_eq!(known(&cache), [4, 5]);

        let smaller = CacheLimits { entries_max: 1, ..limits };
        assert_eq!(known(&StepCache::open(dir.path().into(), smaller).unwrap()), [5]);
    }
}
