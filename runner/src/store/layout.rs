//! OCI layouts on this machine: the store's seeds, read where they lie, and layouts to be taken in.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::manifest::{Descriptor, Index};
use super::reference::Reference;
use super::{MANIFEST_BYTES_MAX, StoreError};
use crate::image::Digest;

/// Tools write either the whole name or only a tag here; ours has the image's short name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and Docker's whole name.
const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Nothing is read yet; a layout may also appear later.
    pub fn at(dir: &Path) -> Layout {
        Layout { dir: dir.to_owned() }
    }

    pub fn open_blob(&self, digest: &Digest) -> Option<(File, u64)> {
        let file = File::open(self.blob_path(digest)).ok()?;
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((file, metadata.len()))
    }

    pub fn find(&self, name: &Reference) -> Option<Digest> {
        let entries = self.entries().ok()?;
        entries.into_iter().find(|entry| names_of(entry).contains(name)).map(|entry| entry.digest)
    }

    /// What `index.json` lists.
    pub fn entries(&self) -> Result<Vec<Descriptor>, StoreError> {
        let mut json = Vec::new();
        File::open(self.dir.join("index.json"))?.take(MANIFEST_BYTES_MAX).read_to_end(&mut json)?;
        let index: Index = serde_json::from_slice(&json).map_err(super::manifest::malformed)?;
        Ok(index.manifests)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }
}

/// The names that an entry of `index.json` has.
pub fn names_of(entry: &Descriptor) -> Vec<Reference> {
    let written = [IMAGE_NAME, REF_NAME].into_iter().filter_map(|key| entry.annotations.get(key));
    written.filter_map(|name| name.parse().ok()).collect()
}

/// Of at most `bytes_max`, and what its digest says.
pub fn read_small(file: File, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(StoreError::Bad(format!(
            "{digest} should be JSON, and is larger than {bytes_max} bytes"
        )));
    }
    if Digest::of(&bytes) != *digest {
        return Err(StoreError::Io(io::Error::other(format!("the blob {digest} is damaged; remove it"))));
    }
    Ok(bytes)
}
