//! The JSON of OCI and Docker images: what is in a manifest, an index and a configuration, as far as we need it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::image::{Compression, Digest, Image, ImageConfig, Layer};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Overlayfs stacks no more.
const LAYERS_MAX: usize = 400;
const INDEX_ENTRIES_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Manifest,
    Index,
}

/// One image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone)]
pub enum Parsed {
    Manifest(Manifest),
    Index(Index),
}

impl Parsed {
    pub fn read(json: &[u8]) -> Result<Parsed, StoreError> {
        let value: serde_json::Value = serde_json::from_slice(json).map_err(malformed)?;
        if value["schemaVersion"] == 1 {
            return Err(StoreError::Bad(
                "the image has a manifest of schema 1, which nobody uses any more".into(),
            ));
        }
        if value.get("manifests").is_some() {
            let index: Index = serde_json::from_value(value).map_err(malformed)?;
            if index.manifests.len() > INDEX_ENTRIES_MAX {
                return Err(StoreError::Bad(format!("an index has more than {INDEX_ENTRIES_MAX} images")));
            }
            return Ok(Parsed::Index(index));
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(malformed)?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(StoreError::Bad(format!("an image has more than {LAYERS_MAX} layers")));
        }
        Ok(Parsed::Manifest(manifest))
    }

    pub fn kind(&self) -> Kind {
        match self {
            Parsed::Manifest(_) => Kind::Manifest,
            Parsed::Index(_) => Kind::Index,
        }
    }

    /// As an HTTP header names it; OCI's when the JSON does not say.
    pub fn media_type(&self) -> &str {
        match self {
            Parsed::Manifest(manifest) if manifest.media_type.is_empty() => OCI_MANIFEST,
            Parsed::Manifest(manifest) => &manifest.media_type,
            Parsed::Index(index) if index.media_type.is_empty() => OCI_INDEX,
            Parsed::Index(index) => &index.media_type,
        }
    }

    /// What it refers to.
    pub fn references(&self) -> Vec<Digest> {
        match self {
            Parsed::Manifest(manifest) => {
                manifest.layers.iter().chain([&manifest.config]).map(|descriptor| descriptor.digest).collect()
            }
            Parsed::Index(index) => index.manifests.iter().map(|descriptor| descriptor.digest).collect(),
        }
    }
}

impl Index {
    /// The image for this machine.
    pub fn here(&self) -> Result<&Descriptor, StoreError> {
        let (os, architecture) = ("linux", architecture());
        let fits = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_some_and(|p| p.os == os && p.architecture == architecture)
        };
        match (self.manifests.iter().find(fits), self.manifests.as_slice()) {
            (Some(descriptor), _) => Ok(descriptor),
            (None, [only]) if only.platform.is_none() => Ok(only),
            _ => Err(StoreError::Bad(format!("the image has no variant for {os}/{architecture}"))),
        }
    }
}

/// In the words of images.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The configuration as it is on disk, of which only a part is known to us.
#[derive(Debug, Clone, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<ConfigPart>,
    rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigPart {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// What a manifest and its configuration say together.
pub fn image(reference: &str, manifest: &Manifest, config_json: &[u8]) -> Result<Image, StoreError> {
    if !matches!(manifest.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | "") {
        return Err(StoreError::Bad(format!(
            "{reference} is no image to run: its configuration is {}",
            manifest.config.media_type.escape_debug()
        )));
    }
    let file: ConfigFile = serde_json::from_slice(config_json).map_err(malformed)?;
    if !matches!(file.os.as_str(), "linux" | "") {
        return Err(StoreError::Bad(format!("{reference} is for {}, not for linux", file.os.escape_debug())));
    }
    if file.architecture != architecture() && !file.architecture.is_empty() {
        let (its, ours) = (file.architecture.escape_debug(), architecture());
        return Err(StoreError::Bad(format!("{reference} is for {its}, and this node is {ours}")));
    }
    let diff_ids = file.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        return Err(StoreError::Bad(format!(
            "{reference} has {} layers, and its configuration speaks of {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let layers = manifest.layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        Ok(Layer {
            diff_id,
            blob: layer.digest,
            blob_bytes: layer.size,
            compression: compression(&layer.media_type)?,
        })
    });
    let part = file.config.unwrap_or_default();
    let non_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Image {
        reference: reference.to_owned(),
        id: Some(manifest.config.digest),
        layers: layers.collect::<Result<_, StoreError>>()?,
        config: ImageConfig {
            env: part.env.unwrap_or_default(),
            entrypoint: part.entrypoint.unwrap_or_default(),
            cmd: part.cmd.unwrap_or_default(),
            work_dir: non_empty(part.working_dir),
            user: non_empty(part.user),
            labels: part.labels.unwrap_or_default(),
        },
    })
}

fn compression(media_type: &str) -> Result<Compression, StoreError> {
    if media_type.contains("foreign") || media_type.contains("nondistributable") {
        return Err(StoreError::Bad("the image has a layer that may not be distributed".to_owned()));
    }
    match media_type {
        OCI_LAYER | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        _ if media_type.ends_with("+gzip") || media_type.ends_with(".tar.gzip") => Ok(Compression::Gzip),
        _ if media_type.ends_with("+zstd") || media_type.ends_with(".tar.zstd") => Ok(Compression::Zstd),
        other => Err(StoreError::Bad(format!("a layer is of the unknown type {}", other.escape_debug()))),
    }
}

pub fn media_type_of(compression: Compression) -> String {
    match compression {
        Compression::None => OCI_LAYER.to_owned(),
        Compression::Gzip => format!("{OCI_LAYER}+gzip"),
        Compression::Zstd => format!("{OCI_LAYER}+zstd"),
    }
}

pub fn malformed(error: serde_json::Error) -> StoreError {
    StoreError::Bad(format!("the image's manifest or configuration is malformed: {error}"))
}
