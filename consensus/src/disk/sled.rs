//! The real disk: one sled database per node, and snapshots as files beside it.
//!
//! Three things sled does not do are done here. Its `flush` ends in `sync_file_range`, which is not durable, so
//! [`Disk::sync`] adds an fdatasync of its file. Pages of its tree above 128 KiB go to files that it never syncs, and a
//! page holds several values, so values are cut into pieces of 4 KiB. And its own lock fails obscurely, so a lock file of
//! ours comes first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Change, Disk, Pair, SnapshotBytes, SnapshotFile, SnapshotSink};

const FORMAT_VERSION: &[u8] = b"1";
const FORMAT_KEY: &[u8] = b"format";
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// A leaf of sled's tree holds up to 17 pieces, and must stay below a quarter of a segment, 128 KiB.
const PIECE_BYTES_MAX: usize = 4 * 1024;
/// A predecessor that is just ending may hold the lock this long.
const LOCKED_AT_MOST: Duration = Duration::from_secs(2);
const LOCK_AGAIN_AFTER: Duration = Duration::from_millis(20);
const SNAPSHOT_SUFFIX: &str = ".snapshot";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Every value is stored in pieces: `key ‖ piece number (u16)` → `more to come (u8) ‖ bytes`.
const LAST_PIECE: u8 = 0;
const MORE_PIECES: u8 = 1;

pub struct SledDisk {
    db: sled::Db,
    /// sled's own data file, for fdatasync: same inode, so it covers sled's dirty pages and the file's length.
    data: File,
    snapshots_dir: PathBuf,
    temporaries: AtomicU64,
    _lock: File,
}

impl SledDisk {
    pub fn open(data_dir: &Path) -> anyhow::Result<SledDisk> {
        fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
        let lock = lock(data_dir)?;
        let sled_dir = data_dir.join("sled");
        let db = sled::Config::new()
            .path(&sled_dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .with_context(|| format!("open the Raft log in {}", sled_dir.display()))?;
        let data = File::open(sled_dir.join("db")).context("open sled's data file")?;
        let snapshots_dir = data_dir.join("snapshots");
        fs::create_dir_all(&snapshots_dir).with_context(|| format!("create {}", snapshots_dir.display()))?;
        let disk = SledDisk { db, data, snapshots_dir, temporaries: AtomicU64::new(0), _lock: lock };
        disk.check_format()?;
        disk.sync().context("sync the Raft log")?;
        // The names of the files must survive as well as their bytes.
        for dir in [sled_dir.as_path(), data_dir, data_dir.parent().unwrap_or(data_dir)] {
            sync_dir(dir).with_context(|| format!("sync {}", dir.display()))?;
        }
        disk.sweep_temporaries().context("remove unfinished snapshots")?;
        Ok(disk)
    }

    fn check_format(&self) -> anyhow::Result<()> {
        match self.db.get(FORMAT_KEY)? {
            Some(version) if version == FORMAT_VERSION => {}
            None if self.db.tree_names().len() == 1 => {
                self.db.insert(FORMAT_KEY, FORMAT_VERSION)?;
            }
            found => bail!(
                "the Raft log has format {:?}; this version reads {:?} only",
                found.map(|version| String::from_utf8_lossy(&version).into_owned()),
                String::from_utf8_lossy(FORMAT_VERSION)
            ),
        }
        Ok(())
    }

    fn tree(&self, space: &str) -> io::Result<sled::Tree> {
        Ok(self.db.open_tree(space)?)
    }

    fn snapshot_dir(&self, space: &str) -> PathBuf {
        self.snapshots_dir.join(space.replace('/', "."))
    }

    fn temporary(&self, dir: &Path) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        dir.join(format!("{number}{TEMPORARY_SUFFIX}"))
    }

    fn sweep_temporaries(&self) -> io::Result<()> {
        for space in fs::read_dir(&self.snapshots_dir)? {
            for path in files_with_suffix(&space?.path(), TEMPORARY_SUFFIX)? {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Disk for SledDisk {
    fn spaces(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> =
            self.db.tree_names().iter().filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect();
        names.retain(|name| name != "__sled__default");
        names.sort();
        Ok(names)
    }

    fn get(&self, space: &str, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let pairs = self.scan(space, key.to_vec()..successor(key), usize::MAX)?;
        Ok(pairs.into_iter().find(|(found, _)| found == key).map(|(_, value)| value))
    }

    fn scan(&self, space: &str, range: Range<Vec<u8>>, bytes_max: usize) -> io::Result<Vec<Pair>> {
        let mut pairs: Vec<Pair> = Vec::new();
        let mut bytes = 0;
        let mut open: Option<Pair> = None;
        for piece in self.tree(space)?.range(range) {
            let (piece_key, piece) = piece?;
            let (key, more, body) = parse_piece(&piece_key, &piece)?;
            let (_, value) = open.get_or_insert_with(|| (key.to_vec(), Vec::new()));
            value.extend_from_slice(body);
            if more == LAST_PIECE {
                let pair = open.take().expect("a piece was just put there");
                bytes += pair.1.len();
                pairs.push(pair);
                if bytes >= bytes_max {
                    break;
                }
            }
        }
        match open {
            None => Ok(pairs),
            Some(_) => Err(damaged("a value's last piece is missing")),
        }
    }

    fn last(&self, space: &str, range: Range<Vec<u8>>) -> io::Result<Option<Pair>> {
        let Some(piece) = self.tree(space)?.range(range).next_back() else { return Ok(None) };
        let (piece_key, piece) = piece?;
        let (key, _, _) = parse_piece(&piece_key, &piece)?;
        let key = key.to_vec();
        Ok(self.get(space, &key)?.map(|value| (key, value)))
    }

    fn write(&self, space: &str, changes: Vec<Change>) -> io::Result<()> {
        let tree = self.tree(space)?;
        // One piece in place of at most one is atomic by itself, and spares the manifest that a batch costs: the common
        // case of an append. sled writes and waits for each manifest and each batch apart.
        if let [Change::Put { key, value }] = changes.as_slice()
            && value.len() <= PIECE_BYTES_MAX
            && old_pieces(&tree, key)?.len() <= 1
        {
            for (piece_key, piece) in cut(key, value)? {
                tree.insert(piece_key, piece)?;
            }
            return Ok(());
        }
        let mut batch = sled::Batch::default();
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    // A longer, older value would leave its last pieces behind.
                    for old in old_pieces(&tree, &key)? {
                        batch.remove(old);
                    }
                    for (piece_key, piece) in cut(&key, &value)? {
                        batch.insert(piece_key, piece);
                    }
                }
                Change::RemoveRange(range) => {
                    for key in tree.range(range).keys() {
                        batch.remove(key?);
                    }
                }
            }
        }
        Ok(tree.apply_batch(batch)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.db.flush()?;
        self.data.sync_data()
    }

    fn snapshot(&self, space: &str) -> io::Result<Option<SnapshotFile>> {
        let newest = files_with_suffix(&self.snapshot_dir(space), SNAPSHOT_SUFFIX)?.into_iter().max();
        newest.map(|path| FileBytes::open(&path)).transpose()
    }

    fn save_snapshot(&self, space: &str, name: &str, bytes: &[u8]) -> io::Result<SnapshotFile> {
        let dir = self.snapshot_dir(space);
        fs::create_dir_all(&dir)?;
        sync_dir(&self.snapshots_dir)?;
        let temporary = self.temporary(&dir);
        let path = dir.join(format!("{name}{SNAPSHOT_SUFFIX}"));
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_dir(&dir)?;
        let saved = FileBytes::open(&path)?;
        // A newer one may have been installed while this one was built.
        let all = files_with_suffix(&dir, SNAPSHOT_SUFFIX)?;
        let newest = all.iter().max();
        for old in all.iter().filter(|path| Some(*path) != newest) {
            fs::remove_file(old)?;
        }
        Ok(saved)
    }

    fn receive_snapshot(&self, space: &str) -> io::Result<Box<dyn SnapshotSink>> {
        let dir = self.snapshot_dir(space);
        fs::create_dir_all(&dir)?;
        let path = self.temporary(&dir);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Box::new(FileSink { bytes: FileBytes { file, length: 0, temporary: Some(path) } }))
    }
}

fn old_pieces(tree: &sled::Tree, key: &[u8]) -> io::Result<Vec<sled::IVec>> {
    let pieces = tree.range(key.to_vec()..successor(key)).keys();
    let ours = |piece_key: &sled::IVec| piece_key.len() == key.len() + 2;
    Ok(pieces.collect::<Result<Vec<_>, _>>()?.into_iter().filter(ours).collect())
}

fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let patient_until = Instant::now() + LOCKED_AT_MOST;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < patient_until => {
                thread::sleep(LOCK_AGAIN_AFTER)
            }
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use: another node runs with this data directory", data_dir.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

fn files_with_suffix(dir: &Path, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(suffix) {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn cut(key: &[u8], value: &[u8]) -> io::Result<Vec<Pair>> {
    let pieces = value.len().div_ceil(PIECE_BYTES_MAX).max(1);
    (0..pieces)
        .map(|number| {
            let number_bytes = u16::try_from(number).map_err(io::Error::other)?.to_be_bytes();
            let from = number * PIECE_BYTES_MAX;
            let body = &value[from..value.len().min(from + PIECE_BYTES_MAX)];
            let more = if number + 1 < pieces { MORE_PIECES } else { LAST_PIECE };
            Ok(([key, &number_bytes].concat(), [&[more], body].concat()))
        })
        .collect()
}

fn parse_piece<'a>(piece_key: &'a [u8], piece: &'a [u8]) -> io::Result<(&'a [u8], u8, &'a [u8])> {
    let key = piece_key.len().checked_sub(2).map(|at| &piece_key[..at]);
    match (key, piece.split_first()) {
        (Some(key), Some((more, body))) => Ok((key, *more, body)),
        _ => Err(damaged("a piece is too short")),
    }
}

/// The least byte string that is greater than `key` and all that begin with it and two more bytes.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0xff, 0xff, 0]].concat()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the Raft log is damaged: {what}"))
}

struct FileBytes {
    file: File,
    length: u64,
    /// Removed with the last handle.
    temporary: Option<PathBuf>,
}

impl FileBytes {
    fn open(path: &Path) -> io::Result<SnapshotFile> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(SnapshotFile::new(FileBytes { file, length, temporary: None }))
    }
}

impl SnapshotBytes for FileBytes {
    fn bytes_total(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Drop for FileBytes {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a received snapshot");
        }
    }
}

struct FileSink {
    bytes: FileBytes,
}

impl SnapshotSink for FileSink {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.file.write_all(bytes)?;
        self.bytes.length += bytes.len() as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<SnapshotFile> {
        Ok(SnapshotFile::new(self.bytes))
    }
}
