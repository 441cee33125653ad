//! New images out of known ones: a layer on top, and another configuration.

use serde_json::{Value, json};

use super::blobs::BlobWriter;
use super::fetch::{Progress, Store};
use super::layout::read_small;
use super::manifest::{self, OCI_CONFIG, OCI_MANIFEST};
use super::{CONFIG_BYTES_MAX, StoreError};
use crate::image::{Compression, Digest, Image, ImageConfig, Layer};

/// What the new image's configuration is.
#[derive(Debug, Clone)]
pub enum ConfigChange {
    Keep,
    Replace(ImageConfig),
}

impl Store {
    /// An image of `base` (`None`: nothing) and `layers` above it, whose blobs are in this store. Gives the digest of
    /// its manifest, to be given a name or used as `sha256:…`, and the image.
    pub async fn commit_image(
        &self,
        base: Option<&Image>,
        layers: &[Layer],
        change: ConfigChange,
    ) -> Result<(Digest, Image), StoreError> {
        let mut config = match base.and_then(|base| base.id) {
            Some(id) => serde_json::from_slice(&self.config_json(&id).await?).map_err(manifest::malformed)?,
            None => json!({"os": "linux", "architecture": manifest::architecture(), "config": {}}),
        };
        let all: Vec<&Layer> = base.map_or(&[][..], |base| &base.layers).iter().chain(layers).collect();
        config["rootfs"] = json!({
            "type": "layers",
            "diff_ids": all.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
        });
        // How the base came to be no longer fits the layers.
        if let Some(config) = config.as_object_mut() {
            config.remove("history");
        }
        if let ConfigChange::Replace(new) = &change {
            replace(&mut config, new);
        }
        let config_json = serde_json::to_vec(&config).map_err(manifest::malformed)?;
        let layers: Vec<Layer> = all.into_iter().copied().collect();
        self.put_image(&config_json, &layers).await
    }

    /// An image of `layers`, whose blobs are in this store and which the configuration lists. Gives the digest of its
    /// manifest, too.
    pub async fn put_image(
        &self,
        config_json: &[u8],
        layers: &[Layer],
    ) -> Result<(Digest, Image), StoreError> {
        let config_digest = self.put_bytes(config_json).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config_json.len()},
            "layers": layers.iter().map(|layer| json!({
                "mediaType": manifest::media_type_of(layer.compression),
                "digest": layer.blob,
                "size": layer.blob_bytes,
            })).collect::<Vec<_>>(),
        });
        let digest = self.put_bytes(&serde_json::to_vec(&manifest).map_err(manifest::malformed)?).await?;
        let (_, _, image) = self.read_image(&digest.to_string(), digest, None).await?;
        Ok((digest, image))
    }

    /// The whole configuration of an image, by [`Image::id`].
    pub async fn config_json(&self, id: &Digest) -> Result<Vec<u8>, StoreError> {
        let (file, _) = self.fetch(*id, None, None, &Progress::default()).await?;
        read_small(file, id, CONFIG_BYTES_MAX)
    }

    /// Keeps an uncompressed layer that was written with [`Store::writer`], for [`Store::commit_image`].
    pub async fn finish_layer(&self, writer: BlobWriter) -> Result<Layer, StoreError> {
        let (digest, blob_bytes) = writer.finish(None).await?;
        Ok(Layer { diff_id: digest, blob: digest, blob_bytes, compression: Compression::None })
    }
}

/// Keeps what we have no word for (ports, volumes, health checks).
fn replace(config: &mut Value, new: &ImageConfig) {
    let list = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
    let text = |text: &Option<String>| json!(text.clone().unwrap_or_default());
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    let part = &mut config["config"];
    part["Env"] = list(&new.env);
    part["Entrypoint"] = list(&new.entrypoint);
    part["Cmd"] = list(&new.cmd);
    part["WorkingDir"] = text(&new.work_dir);
    part["User"] = text(&new.user);
    part["Labels"] = if new.labels.is_empty() { Value::Null } else { json!(new.labels) };
}
