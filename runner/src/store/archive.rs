//! Images as one tar: an OCI layout (`skopeo`, `docker buildx`) or what `docker save` writes, in; both at once, out.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio_util::io::SyncIoBridge;

use super::fetch::{Progress, Store};
use super::layout::{Layout, REF_NAME, names_of, read_small};
use super::manifest::{Descriptor, Index, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Parsed, malformed};
use super::names::Origin;
use super::reference::Reference;
use super::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX, StoreError};
use crate::embedded::layers::LayerError;
use crate::embedded::layers::tar_reader::{Kind, TarReader};
use crate::image::Digest;

const FILES_MAX: usize = 10_000;

/// One image that an archive or a layout held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// As written there; not set in the store by the import.
    pub names: Vec<Reference>,
    pub digest: Digest,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What was in a tar, by its path there.
#[derive(Default)]
struct Contents {
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
}

impl Contents {
    fn find(&self, path: &str) -> Option<(Digest, u64)> {
        let path = normalized(path);
        self.files.get(&path).or_else(|| self.files.get(self.links.get(&path)?)).copied()
    }
}

impl Store {
    /// Takes in the images of a tar. Gives them their names only by [`Store::set_name`], as the caller likes.
    pub async fn import_archive(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<Vec<Imported>, StoreError> {
        let (store, handle) = (self.clone(), Handle::current());
        let contents = tokio::task::spawn_blocking(move || {
            let reader = SyncIoBridge::new_with_handle(tar, handle.clone());
            store.take_files(reader, &handle)
        });
        let contents = contents.await.map_err(std::io::Error::other)??;
        if let Some((digest, _)) = contents.find("index.json") {
            let index: Index = serde_json::from_slice(&self.small(digest)?).map_err(malformed)?;
            return self.check_imported(index.manifests);
        }
        let Some((digest, _)) = contents.find("manifest.json") else {
            return Err(StoreError::Bad(
                "the archive has no images: it must be an OCI layout or the output of docker save".to_owned(),
            ));
        };
        let saved: Vec<SavedImage> = serde_json::from_slice(&self.small(digest)?).map_err(malformed)?;
        let mut imported = Vec::new();
        for image in saved {
            imported.push(self.import_saved(&image, &contents).await?);
        }
        Ok(imported)
    }

    /// Takes in the images of an OCI layout on this machine.
    pub async fn import_layout(&self, dir: &Path) -> Result<Vec<Imported>, StoreError> {
        let layout = Layout::at(dir);
        let entries = layout.entries()?;
        let mut todo: Vec<Digest> = entries.iter().map(|entry| entry.digest).collect();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(digest) = todo.pop() {
            if !seen.insert(digest) {
                continue;
            }
            // An index may speak of platforms that were left out.
            let Some((file, bytes)) = layout.open_blob(&digest) else { continue };
            let mut writer = self.writer()?;
            writer.copy_from(tokio::fs::File::from_std(file)).await?;
            writer.finish(Some(&digest)).await?;
            if bytes <= MANIFEST_BYTES_MAX
                && let Ok(parsed) = Parsed::read(&self.small(digest)?)
            {
                todo.extend(parsed.references());
            }
        }
        self.check_imported(entries)
    }

    /// Writes the image with manifest `digest` as a tar that is an OCI layout and that `docker load` reads, too.
    pub async fn export_archive(
        &self,
        digest: Digest,
        name: Option<&Reference>,
        out: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), StoreError> {
        let (digest, manifest, image) = self.read_image("the image", digest, None).await?;
        // All at hand before the first byte is written.
        for layer in &manifest.layers {
            self.fetch(layer.digest, None, None, &Progress::default()).await?;
        }
        let manifest_bytes = self.open_here(&digest).map_or(0, |(_, bytes)| bytes);
        let annotations = match name {
            Some(name) => json!({REF_NAME: name.to_string(), "io.containerd.image.name": name.to_string()}),
            None => json!({}),
        };
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": Parsed::Manifest(manifest.clone()).media_type(),
            "digest": digest, "size": manifest_bytes, "annotations": annotations,
        }]});
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let saved = json!([{
            "Config": path(&manifest.config.digest),
            "RepoTags": name.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
            "Layers": image.layers.iter().map(|layer| path(&layer.blob)).collect::<Vec<_>>(),
        }]);
        let mut digests: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
        digests.extend([manifest.config.digest, digest]);
        digests.sort_unstable();
        digests.dedup();
        let (store, handle) = (self.clone(), Handle::current());
        let written = tokio::task::spawn_blocking(move || -> Result<(), StoreError> {
            let mut tar = tar::Builder::new(SyncIoBridge::new_with_handle(out, handle));
            append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            for digest in digests {
                let (file, bytes) = store
                    .open_here(&digest)
                    .ok_or_else(|| StoreError::NotFound(format!("{digest} was removed meanwhile")))?;
                let mut header = header(bytes);
                tar.append_data(&mut header, format!("blobs/sha256/{}", digest.hex()), file)?;
            }
            append(&mut tar, "index.json", index.to_string().as_bytes())?;
            append(&mut tar, "manifest.json", saved.to_string().as_bytes())?;
            let mut out = tar.into_inner()?;
            out.flush()?;
            Ok(out.shutdown()?)
        });
        written.await.map_err(std::io::Error::other)?
    }

    /// Every file of the tar becomes a blob; those that belong to no image go with the next collection.
    fn take_files(&self, reader: impl Read, handle: &Handle) -> Result<Contents, StoreError> {
        let mut tar = TarReader::new(reader);
        let mut contents = Contents::default();
        let mut chunk = vec![0; 128 * 1024];
        while let Some(entry) = tar.next_entry().map_err(bad_archive)? {
            if contents.files.len() + contents.links.len() > FILES_MAX {
                return Err(StoreError::Bad(format!("the archive has more than {FILES_MAX} files")));
            }
            let path = normalized(&String::from_utf8_lossy(&entry.path));
            match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    let mut writer = self.writer()?;
                    loop {
                        match tar.read(&mut chunk)? {
                            0 => break,
                            count => handle.block_on(writer.write(&chunk[..count]))?,
                        }
                    }
                    contents.files.insert(path, handle.block_on(writer.finish(None))?);
                }
                // docker save writes a layer that several images have once, and links to it.
                Kind::Symlink | Kind::HardLink => {
                    let target = String::from_utf8_lossy(&entry.link).into_owned();
                    let base = match entry.kind {
                        Kind::Symlink => path.rsplit_once('/').map_or("", |(above, _)| above),
                        _ => "",
                    };
                    contents.links.insert(path.clone(), normalized(&format!("{base}/{target}")));
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    async fn import_saved(&self, image: &SavedImage, contents: &Contents) -> Result<Imported, StoreError> {
        let find = |path: &str| {
            let missing = || StoreError::Bad(format!("the archive lacks {}", path.escape_debug()));
            contents.find(path).ok_or_else(missing)
        };
        let (config, config_bytes) = find(&image.config)?;
        let layers = image.layers.iter().map(|path| {
            let (digest, size) = find(path)?;
            let gzipped = self.open_here(&digest).is_some_and(|(mut file, _)| {
                let mut magic = [0; 2];
                file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b]
            });
            let media_type = if gzipped { format!("{OCI_LAYER}+gzip") } else { OCI_LAYER.to_owned() };
            Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config, "size": config_bytes},
            "layers": layers.collect::<Result<Vec<_>, StoreError>>()?,
        });
        let (digest, _) = self.put_manifest(manifest.to_string().as_bytes()).await?;
        let names = image.repo_tags.iter().flatten().filter_map(|name| name.parse().ok()).collect();
        Ok(Imported { names, digest })
    }

    fn check_imported(&self, entries: Vec<Descriptor>) -> Result<Vec<Imported>, StoreError> {
        let imported = entries.into_iter().map(|entry| match self.open_here(&entry.digest) {
            Some(_) => Ok(Imported { names: names_of(&entry), digest: entry.digest }),
            None => Err(StoreError::Bad(format!("the layout lacks {}", entry.digest))),
        });
        imported.collect()
    }

    fn small(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let (file, _) =
            self.open_here(&digest).ok_or_else(|| StoreError::NotFound(format!("{digest} is not here")))?;
        read_small(file, &digest, CONFIG_BYTES_MAX)
    }

    /// The import's usual end: what has a name gets it.
    pub fn name_imported(&self, imported: &[Imported]) -> Result<(), StoreError> {
        for image in imported {
            for name in &image.names {
                self.set_name(name, image.digest, Origin::Given)?;
            }
        }
        Ok(())
    }
}

/// Without `.`, `..` and empty names: a key and never a path on disk.
fn normalized(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

fn bad_archive(error: LayerError) -> StoreError {
    match error {
        LayerError::Bad(text) => StoreError::Bad(format!("the archive cannot be read: {text}")),
        LayerError::Io(error) => StoreError::Io(error),
    }
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8]) -> std::io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), path, bytes)
}
