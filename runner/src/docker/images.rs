//! Images of the node's store in the engine: as `docker load` takes them, under a name that says their content.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use bollard::query_parameters as query;
use futures_util::StreamExt;
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use crate::docker::LABEL_NODE;
use crate::docker::engine::{Engine, RequestError};
use crate::image::{Digest, Image};
use crate::runtime::RuntimeError;

/// Below it are the images that nodes gave to the engine, each named by its configuration's digest.
const REPOSITORY: &str = "atoll.internal/image";
const LOAD_DEADLINE: Duration = Duration::from_secs(20 * 60);
const PIPE_BYTES: usize = 256 * 1024;

/// What containers of the image are made from. `None`: the engine does not have it. The engine's own image of that name is taken
/// as it is: an operator has put it there.
pub(crate) async fn find(engine: &Engine, image: &Image) -> Result<Option<String>, RuntimeError> {
    // An image of the engine's own may be missing, too: making the sandbox says so.
    let Some(id) = &image.id else { return Ok(Some(image.reference.clone())) };
    for name in [given(id), image.reference.clone()] {
        let name = &name;
        match engine.request(|docker| async move { docker.inspect_image(name).await }).await {
            Ok(_) => return Ok(Some(name.clone())),
            // A name that is no name to the engine is one that it does not have.
            Err(RequestError::NotFound(_) | RequestError::Bad(_)) => {}
            Err(error) => return Err(error.on_host("look for an image")),
        }
    }
    Ok(None)
}

/// The blobs that [`load`] needs.
pub(crate) fn blobs(image: &Image) -> Vec<Digest> {
    image.id.into_iter().chain(image.layers.iter().map(|layer| layer.blob)).collect()
}

/// The engine checks the layers against the configuration.
pub(crate) async fn load(
    engine: &Engine,
    image: &Image,
    blobs: Vec<(Digest, File)>,
) -> Result<(), RuntimeError> {
    let Some(id) = image.id else { return Ok(()) };
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let saved = json!([{
        "Config": path(&id),
        "RepoTags": [given(&id)],
        "Layers": image.layers.iter().map(|layer| path(&layer.blob)).collect::<Vec<_>>(),
    }]);
    let handle = Handle::current();
    let writing = tokio::task::spawn_blocking(move || {
        write(SyncIoBridge::new_with_handle(ours, handle), saved.to_string().as_bytes(), blobs)
    });
    let docker = engine.client().await?.with_timeout(LOAD_DEADLINE);
    let options = query::ImportImageOptionsBuilder::default().quiet(true).build();
    let loading = async {
        let mut said = docker.import_image_stream(options, ReaderStream::new(theirs), None);
        while let Some(word) = said.next().await {
            word.map_err(|error| {
                RuntimeError::Host(format!("Docker cannot load {}: {error}", image.reference))
            })?;
        }
        Ok(())
    };
    let loaded = tokio::time::timeout(LOAD_DEADLINE, loading).await;
    let loaded =
        loaded.unwrap_or_else(|_| Err(RuntimeError::TimedOut(format!("loading {}", image.reference))));
    // The engine's word says more than that it has stopped to read.
    loaded?;
    let written = writing.await.map_err(io::Error::other).flatten();
    written
        .map_err(|error| RuntimeError::Host(format!("cannot read {} for Docker: {error}", image.reference)))
}

fn write(out: impl Write, saved: &[u8], blobs: Vec<(Digest, File)>) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    // Two layers may be the same.
    for (digest, file) in blobs.into_iter().collect::<BTreeMap<_, _>>() {
        let bytes = file.metadata()?.len();
        tar.append_data(&mut header(bytes), path(&digest), file)?;
    }
    tar.append_data(&mut header(saved.len() as u64), "manifest.json", saved)?;
    tar.into_inner()?.flush()
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    header
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn given(id: &Digest) -> String {
    format!("{REPOSITORY}:{}", id.hex())
}

/// Removes what the node's sandboxes have left in the engine: their disks, and the images that were loaded for them. What a sandbox
/// of another node still needs stays, and goes with that node.
pub(crate) async fn remove_ours(
    engine: &Engine,
    node_id: &str,
    given: &[String],
) -> Result<(), RuntimeError> {
    let label = format!("{LABEL_NODE}={node_id}");
    let filters = std::collections::HashMap::from([("label", vec![label.as_str()])]);
    let options = &query::ListImagesOptionsBuilder::default().all(true).filters(&filters).build();
    let disks = engine
        .request(|docker| async move { docker.list_images(Some(options.clone())).await })
        .await
        .map_err(|error| error.on_host("list images"))?;
    let mut left: Vec<String> = disks.into_iter().map(|image| image.id).collect();
    left.extend(given.iter().filter(|name| name.starts_with(REPOSITORY)).cloned());
    // A disk that another one was made from can only go after that one.
    loop {
        let before = left.len();
        let mut kept = Vec::new();
        for name in left {
            let options = &query::RemoveImageOptionsBuilder::default().build();
            let id = &name;
            let removed = engine
                .request(|docker| async move { docker.remove_image(id, Some(options.clone()), None).await })
                .await;
            match removed {
                Ok(_) | Err(RequestError::NotFound(_)) => {}
                Err(RequestError::Conflict(_)) => kept.push(name),
                Err(error) => return Err(error.on_host("remove an image")),
            }
        }
        if kept.is_empty() || kept.len() == before {
            return Ok(());
        }
        left = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Compression, ImageConfig, Layer};

    #[test]
    fn what_is_written_is_what_docker_load_reads() {
        let file = |text: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            (Digest::of(text), file)
        };
        let mut out = Vec::new();

        write(&mut out, b"[]", vec![file(b"config"), file(b"layer"), file(b"layer")]).unwrap();

        let mut tar = tar::Archive::new(out.as_slice());
        let mut names: Vec<_> =
            tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        let mut expected =
            [path(&Digest::of(b"config")), path(&Digest::of(b"layer")), "manifest.json".into()];
        names.sort();
        expected.sort();
        assert_eq!(names, expected.map(std::path::PathBuf::from));
    }

    #[test]
    fn an_engines_own_image_needs_no_blobs() {
        assert_eq!(blobs(&Image::named("busybox")), []);
        let layer = Layer {
            diff_id: Digest::of(b"d"),
            blob: Digest::of(b"b"),
            blob_bytes: 1,
            compression: Compression::None,
        };
        let id = Digest::of(b"c");
        let image = Image {
            reference: "r".into(),
            id: Some(id),
            layers: vec![layer],
            config: ImageConfig::default(),
        };
        assert_eq!(blobs(&image), [id, layer.blob]);
    }
}
