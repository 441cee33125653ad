//! Blobs on disk. A file that has its digest as its name is whole and was checked.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::StoreError;
use crate::image::Digest;

/// Noted again only when it changed by this much.
const USE_RESOLUTION: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 128 * 1024;

#[derive(Debug, Clone)]
pub struct Blobs {
    dir: PathBuf,
    ingest: PathBuf,
}

impl Blobs {
    /// Opens the folder, and removes what processes that ended left half-written, except downloads that can go on.
    pub fn open(store_dir: &Path) -> io::Result<Blobs> {
        let blobs = Blobs { dir: store_dir.join("blobs/sha256"), ingest: store_dir.join("ingest") };
        fs::create_dir_all(&blobs.dir)?;
        fs::create_dir_all(&blobs.ingest)?;
        for entry in fs::read_dir(&blobs.ingest)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "partial") {
                fs::remove_file(path)?;
            }
        }
        Ok(blobs)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Notes the use.
    pub fn open_blob(&self, digest: &Digest) -> Option<(File, u64)> {
        let file = File::open(self.path(digest)).ok()?;
        let metadata = file.metadata().ok()?;
        let now = SystemTime::now();
        if metadata
            .modified()
            .is_ok_and(|used| now.duration_since(used).is_ok_and(|ago| ago > USE_RESOLUTION))
            && let Err(error) = file.set_modified(now)
        {
            tracing::debug!(%digest, %error, "cannot note the use of a blob");
        }
        Some((file, metadata.len()))
    }

    /// Every blob with its length and last use.
    pub fn list(&self) -> io::Result<Vec<(Digest, u64, SystemTime)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) else { continue };
            found.push((digest, metadata.len(), metadata.modified()?));
        }
        Ok(found)
    }

    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Downloads that nobody continued for `age`, too.
    pub fn remove_partials_older_than(&self, age: Duration) -> io::Result<()> {
        for entry in fs::read_dir(&self.ingest)? {
            let entry = entry?;
            let changed = entry.metadata()?.modified()?;
            if SystemTime::now().duration_since(changed).is_ok_and(|since| since > age) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// A new blob of at most `bytes_max`.
    pub fn writer(&self, bytes_max: u64) -> io::Result<BlobWriter> {
        let mut random = [0u8; 16];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut random);
        let path = self.ingest.join(hex::encode(random));
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(BlobWriter {
            file: Some(tokio::fs::File::from_std(file)),
            path,
            blobs: self.clone(),
            sha256: Context::new(&SHA256),
            written: 0,
            bytes_max,
            keep: false,
        })
    }

    /// How much there is of a download of `digest` that was broken off.
    pub fn partial_bytes(&self, digest: &Digest) -> u64 {
        fs::metadata(self.partial(digest)).map_or(0, |metadata| metadata.len())
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.ingest.join(format!("{}.partial", digest.hex()))
    }

    /// The download of `digest` that was broken off, or a new one. One at a time may do so.
    pub async fn continue_writing(&self, digest: &Digest, bytes_max: u64) -> io::Result<BlobWriter> {
        let path = self.partial(digest);
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut sha256 = Context::new(&SHA256);
        let mut written = 0;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk).await?;
            if count == 0 {
                break;
            }
            sha256.update(&chunk[..count]);
            written += count as u64;
        }
        Ok(BlobWriter { file: Some(file), path, blobs: self.clone(), sha256, written, bytes_max, keep: true })
    }
}

/// A blob that is being written. Dropped unfinished it goes, unless it is a download that has something to go on from.
pub struct BlobWriter {
    /// There until it is finished.
    file: Option<tokio::fs::File>,
    path: PathBuf,
    blobs: Blobs,
    sha256: Context,
    written: u64,
    bytes_max: u64,
    keep: bool,
}

impl BlobWriter {
    pub fn written(&self) -> u64 {
        self.written
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        if self.written > self.bytes_max {
            self.keep = false;
            return Err(StoreError::Bad(format!("a blob is larger than {} bytes", self.bytes_max)));
        }
        self.sha256.update(bytes);
        match &mut self.file {
            Some(file) => Ok(file.write_all(bytes).await?),
            None => Err(StoreError::Bad("the blob is finished".to_owned())),
        }
    }

    pub async fn copy_from(&mut self, mut reader: impl AsyncRead + Unpin) -> Result<(), StoreError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = reader.read(&mut chunk).await?;
            if count == 0 {
                return Ok(());
            }
            self.write(&chunk[..count]).await?;
        }
    }

    /// All that was written is in the file.
    pub async fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.flush().await,
            None => Ok(()),
        }
    }

    /// From the beginning again.
    pub async fn restart(&mut self) -> io::Result<()> {
        use tokio::io::AsyncSeekExt;
        if let Some(file) = &mut self.file {
            file.set_len(0).await?;
            file.rewind().await?;
        }
        (self.sha256, self.written) = (Context::new(&SHA256), 0);
        Ok(())
    }

    /// On disk for good, under its digest and nothing else than `expected`.
    pub async fn finish(mut self, expected: Option<&Digest>) -> Result<(Digest, u64), StoreError> {
        let digest = Digest::finish_of(self.sha256.clone());
        if expected.is_some_and(|expected| *expected != digest) {
            self.keep = false;
            let expected = expected.map(Digest::to_string).unwrap_or_default();
            return Err(StoreError::Bad(format!("what should be {expected} is {digest}")));
        }
        let Some(mut file) = self.file.take() else {
            return Err(StoreError::Bad("the blob is finished".to_owned()));
        };
        file.flush().await?;
        file.sync_all().await?;
        tokio::fs::rename(&self.path, self.blobs.path(&digest)).await?;
        tokio::fs::File::open(&self.blobs.dir).await?.sync_all().await?;
        Ok((digest, self.written))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if self.file.is_some() && (!self.keep || self.written == 0) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
