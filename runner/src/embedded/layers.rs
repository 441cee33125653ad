//! Unpacked layers on disk, each once for all sandboxes and all processes that share the folder, and back: the writable
//! layer of a sandbox as a tar. Runs in the root process; calls block.
//!
//! ```text
//! <dir>/                     0700
//!     <hex of diff_id>/      complete since it has this name
//!         root/              the lower layer as overlayfs wants it; ids as in the image
//!         about.json         what it takes on disk; its time of change is that of the last use
//!     .<hex>.partial/        being unpacked, or left by a process that died
//!     .<hex>.removed/        being removed
//!     locks/<hex>            held while a layer is made or removed
//!     holders/<name>         digests that one process needs (its running and its stopped sandboxes)
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, Image, Layer};
use crate::runtime::RuntimeError;

pub(crate) mod blob_reader;
pub(crate) mod entry_path;
pub(crate) mod extended;
mod sudo;
pub(crate) mod tar_reader;
pub(crate) mod tar_writer;
mod unpack;

pub mod diff;

pub use unpack::Limits;

/// Used this recently, a layer stays though nobody claims it: somebody may be about to mount it.
const GRACE: Duration = Duration::from_secs(15 * 60);
/// Claims of a process that was not heard of for so long count no more.
const HOLDER_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a tar has beside the files' content, at most.
const OVERHEAD_BYTES_MAX: u64 = 8 << 30;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The image is at fault.
    #[error("the layer cannot be used: {0}")]
    Bad(String),
    /// The operator must act.
    #[error("cannot unpack the layer: {0}")]
    Io(io::Error),
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> LayerError {
        // What a decoder says about its input; the kernel's own errors have a number.
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
                if error.raw_os_error().is_none() =>
            {
                LayerError::Bad(format!("its data is broken: {error}"))
            }
            // So says the zstd library.
            io::ErrorKind::Other if error.raw_os_error().is_none() => {
                LayerError::Bad(format!("its data is broken: {error}"))
            }
            _ => LayerError::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for LayerError {
    fn from(error: rustix::io::Errno) -> LayerError {
        LayerError::Io(error.into())
    }
}

impl From<LayerError> for RuntimeError {
    fn from(error: LayerError) -> RuntimeError {
        match error {
            LayerError::Bad(_) => RuntimeError::Spec(error.to_string()),
            LayerError::Io(ref cause) if cause.kind() == io::ErrorKind::StorageFull => {
                RuntimeError::Host(format!("{error}: free some disk space or lower the store's budget"))
            }
            LayerError::Io(_) => RuntimeError::Host(error.to_string()),
        }
    }
}

/// A handle; as many as one likes, also in several processes.
#[derive(Debug, Clone)]
pub struct LayerStore {
    dir: PathBuf,
    limits: Limits,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct About {
    disk_bytes: u64,
    entries: u64,
}

impl LayerStore {
    /// Makes the folder, for root alone.
    pub fn open(dir: &Path) -> Result<LayerStore, LayerError> {
        for dir in [dir, &dir.join("locks"), &dir.join("holders")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        Ok(LayerStore { dir: dir.to_owned(), limits: Limits::default() })
    }

    pub fn with_limits(self, limits: Limits) -> LayerStore {
        LayerStore { limits, ..self }
    }

    /// The root folder of an unpacked layer. It stays for the next quarter of an hour at least, and as long as a holder
    /// claims it ([`LayerStore::collect`]).
    pub fn path(&self, diff_id: &Digest) -> Option<PathBuf> {
        let dir = self.dir.join(diff_id.hex());
        let about = fs::metadata(dir.join("about.json")).ok()?;
        let used = about.modified().ok()?;
        if SystemTime::now().duration_since(used).map_or(true, |ago| ago > GRACE / 15) {
            touch(&dir.join("about.json"));
        }
        Some(dir.join("root"))
    }

    /// The root folders of all layers of `image`, lowest first; `None` while one is missing.
    pub fn paths(&self, image: &Image) -> Option<Vec<PathBuf>> {
        image.layers.iter().map(|layer| self.path(&layer.diff_id)).collect()
    }

    /// The blobs that [`LayerStore::add`] needs before `image` is complete, each once.
    pub fn missing(&self, image: &Image) -> Vec<Digest> {
        let mut seen = BTreeSet::new();
        let lacking = image.layers.iter().filter(|layer| self.path(&layer.diff_id).is_none());
        lacking.filter(|layer| seen.insert(layer.diff_id)).map(|layer| layer.blob).collect()
    }

    /// Unpacks `blob`, open at its beginning, unless the layer is there. When another thread or process does so just
    /// now, waits for it.
    pub fn add(&self, layer: &Layer, blob: File) -> Result<(), LayerError> {
        if self.path(&layer.diff_id).is_some() {
            return Ok(());
        }
        let _lock = self.lock(&layer.diff_id, FlockOperation::LockExclusive)?;
        if self.path(&layer.diff_id).is_some() {
            return Ok(());
        }
        let hex = layer.diff_id.hex();
        let partial = self.dir.join(format!(".{hex}.partial"));
        remove_tree(&partial)?;
        match self.unpack(layer, blob, &partial) {
            Ok(()) => {
                fs::rename(&partial, self.dir.join(hex))?;
                File::open(&self.dir)?.sync_all()?;
                Ok(())
            }
            Err(error) => {
                if let Err(error) = remove_tree(&partial) {
                    tracing::warn!(path = %partial.display(), %error, "cannot remove a half-unpacked layer");
                }
                Err(error)
            }
        }
    }

    /// Whether `sudo` can make its caller root in a sandbox of `image`: then the sandbox must be allowed to gain
    /// privileges by running a program. All layers must be there.
    pub fn has_sudo(&self, image: &Image) -> Result<bool, LayerError> {
        let paths = self.paths(image).ok_or_else(|| {
            LayerError::Io(io::Error::new(io::ErrorKind::NotFound, "a layer is not unpacked yet"))
        })?;
        Ok(sudo::has_sudo(&paths)?)
    }

    /// Notes what `holder` (the name of one process, the same after its restart) needs from now on, then removes the
    /// layers that no holder needs, least recently used first, until all together take at most `budget_bytes`. Call it
    /// after each start, before anything else, and now and again. Gives the number of bytes freed.
    pub fn collect(
        &self,
        holder: &str,
        used: &BTreeSet<Digest>,
        budget_bytes: u64,
    ) -> Result<u64, LayerError> {
        self.claim(holder, used)?;
        let needed = self.claimed()?;
        let mut layers = self.list()?;
        layers.sort_by_key(|(_, _, used)| *used);
        let mut total: u64 = layers.iter().map(|(_, bytes, _)| bytes).sum();
        let mut freed = 0;
        for (diff_id, bytes, _) in layers {
            if total <= budget_bytes {
                break;
            }
            if !needed.contains(&diff_id) && self.remove(&diff_id)? {
                total -= bytes;
                freed += bytes;
            }
        }
        self.clear_leftovers()?;
        Ok(freed)
    }

    fn unpack(&self, layer: &Layer, blob: File, partial: &Path) -> Result<(), LayerError> {
        fs::DirBuilder::new().mode(0o700).create(partial)?;
        let root_path = partial.join("root");
        fs::DirBuilder::new().mode(0o755).create(&root_path)?;
        let root = File::open(&root_path)?;
        // Whatever the process's umask is.
        root.set_permissions(fs::Permissions::from_mode(0o755))?;
        let bytes_max = self.limits.bytes.saturating_add(OVERHEAD_BYTES_MAX);
        let mut blob = blob_reader::BlobReader::new(blob, layer.compression, bytes_max)?;
        let mut tar = tar_reader::TarReader::new(&mut blob);
        let unpacked = unpack::unpack(&mut tar, root.as_fd(), self.limits)?;
        tar.drain()?;
        let found = blob.digest();
        if found != layer.diff_id {
            return Err(LayerError::Bad(format!("its content is {found}, and should be {}", layer.diff_id)));
        }
        let about = About { disk_bytes: unpacked.disk_bytes, entries: unpacked.entries };
        let json = serde_json::to_vec(&about).expect("two numbers are always JSON");
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(partial.join("about.json"))?
            .write_all(&json)?;
        // One for all its files; each for itself would take minutes.
        rustix::fs::syncfs(&root)?;
        Ok(())
    }

    /// The file's holder has the lock until it drops it.
    fn lock(&self, diff_id: &Digest, operation: FlockOperation) -> Result<File, LayerError> {
        let path = self.dir.join("locks").join(diff_id.hex());
        loop {
            let file =
                fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            loop {
                match rustix::fs::flock(&file, operation) {
                    Err(rustix::io::Errno::INTR) => {}
                    done => break done?,
                }
            }
            // Whoever removes a layer removes its lock's file too: then this is one that nobody else finds.
            match fs::metadata(&path) {
                Ok(current) if current.ino() == file.metadata()?.ino() => return Ok(file),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn claim(&self, holder: &str, used: &BTreeSet<Digest>) -> Result<(), LayerError> {
        let name = hex::encode(holder);
        let fresh = self.dir.join("holders").join(format!(".{name}"));
        let lines: String = used.iter().map(|digest| format!("{digest}\n")).collect();
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.dir.join("holders").join(name))?;
        Ok(())
    }

    fn claimed(&self) -> Result<BTreeSet<Digest>, LayerError> {
        let mut claimed = BTreeSet::new();
        for holder in fs::read_dir(self.dir.join("holders"))? {
            let holder = holder?;
            if holder.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let age = SystemTime::now().duration_since(holder.metadata()?.modified()?).unwrap_or_default();
            if age > HOLDER_MAX_AGE {
                fs::remove_file(holder.path())?;
                continue;
            }
            claimed.extend(
                fs::read_to_string(holder.path())?.lines().filter_map(|line| line.parse::<Digest>().ok()),
            );
        }
        Ok(claimed)
    }

    fn list(&self) -> Result<Vec<(Digest, u64, SystemTime)>, LayerError> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            let Some(digest) = digest else { continue };
            let about_path = entry.path().join("about.json");
            let (Ok(json), Ok(metadata)) = (fs::read(&about_path), fs::metadata(&about_path)) else {
                continue;
            };
            let about: About = serde_json::from_slice(&json).unwrap_or_default();
            layers.push((digest, about.disk_bytes, metadata.modified()?));
        }
        Ok(layers)
    }

    /// False when it is in use or was a moment ago.
    fn remove(&self, diff_id: &Digest) -> Result<bool, LayerError> {
        let Ok(_lock) = self.lock(diff_id, FlockOperation::NonBlockingLockExclusive) else {
            return Ok(false);
        };
        let hex = diff_id.hex();
        let dir = self.dir.join(&hex);
        let used = match fs::metadata(dir.join("about.json")) {
            Ok(about) => about.modified()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if SystemTime::now().duration_since(used).map_or(true, |ago| ago < GRACE) {
            return Ok(false);
        }
        let removed = self.dir.join(format!(".{hex}.removed"));
        remove_tree(&removed)?;
        fs::rename(&dir, &removed)?;
        remove_tree(&removed)?;
        fs::remove_file(self.dir.join("locks").join(&hex))?;
        Ok(true)
    }

    /// What processes that died left behind.
    fn clear_leftovers(&self) -> Result<(), LayerError> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let hex = name.to_str().and_then(|name| {
                let name = name.strip_prefix('.')?;
                name.strip_suffix(".partial").or(name.strip_suffix(".removed"))
            });
            let Some(diff_id) = hex.and_then(|hex| format!("sha256:{hex}").parse().ok()) else { continue };
            if let Ok(_lock) = self.lock(&diff_id, FlockOperation::NonBlockingLockExclusive) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn touch(path: &Path) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    let touched = File::open(path).and_then(|file| file.set_times(now));
    if let Err(error) = touched {
        tracing::warn!(path = %path.display(), %error, "cannot note that a layer is in use");
    }
}

/// Not an error when there is nothing.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
