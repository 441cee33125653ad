//! Images of the node's store in the engine: as `docker load` takes them, under a name that says their content.
//!
//! The images are their users', and the engine is root: of an image's configuration it gets what says what the image is, and nothing
//! that would have the engine do something by itself (health checks, volumes beside the sandbox's disk, a working directory in /proc).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::Duration;

use bollard::query_parameters as query;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use crate::docker::LABEL_NODE;
use crate::docker::engine::{Engine, RequestError};
use crate::embedded::layers::blob_reader::BlobReader;
use crate::image::{Compression, Digest, Image, Layer};
use crate::runtime::RuntimeError;

/// Below it are the images that nodes gave to the engine, each named by its configuration's digest.
const REPOSITORY: &str = "atoll.internal/image";
const LOAD_DEADLINE: Duration = Duration::from_secs(20 * 60);
const PIPE_BYTES: usize = 256 * 1024;
/// Of one layer, uncompressed; as much as the embedded runtime unpacks.
const LAYER_BYTES_MAX: u64 = 64 << 30;
const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Images that are removed at once.
const REMOVALS: usize = 4;

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
    let what = image.reference.clone();
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (handle, image) = (Handle::current(), image.clone());
    let writing = tokio::task::spawn_blocking(move || {
        write(SyncIoBridge::new_with_handle(ours, handle), &id, &image, blobs)
    });
    let docker = engine.client().await?.with_timeout(LOAD_DEADLINE);
    let options = query::ImportImageOptionsBuilder::default().quiet(true).build();
    let loading = async {
        let mut said = docker.import_image_stream(options, ReaderStream::new(theirs), None);
        while let Some(word) = said.next().await {
            word.map_err(|error| load_error(&what, error))?;
        }
        Ok(())
    };
    let loaded = tokio::time::timeout(LOAD_DEADLINE, loading).await;
    let loaded = loaded.unwrap_or_else(|_| Err(RuntimeError::TimedOut(format!("loading {what}"))));
    let written = writing.await.map_err(io::Error::other).flatten();
    match (written, loaded) {
        // Of what is no image the writer says more; otherwise the engine does.
        (Err(error), _) if error.kind() == io::ErrorKind::InvalidData => {
            Err(RuntimeError::Spec(format!("{what} is no image for Docker: {error}")))
        }
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(RuntimeError::Host(format!("cannot read {what} for Docker: {error}"))),
        (Ok(()), Ok(())) => Ok(()),
    }
}

fn load_error(what: &str, error: bollard::errors::Error) -> RuntimeError {
    let said = format!("Docker cannot load {what}: {error}");
    match error {
        // Trying again would not make it another image.
        bollard::errors::Error::DockerStreamError { error } if !error.contains("no space left") => {
            RuntimeError::Spec(said)
        }
        _ => RuntimeError::Host(said),
    }
}

fn write(out: impl Write, id: &Digest, image: &Image, blobs: Vec<(Digest, File)>) -> io::Result<()> {
    let mut blobs: HashMap<Digest, File> = blobs.into_iter().collect();
    let mut take = |digest: &Digest| blobs.remove(digest).ok_or_else(|| bad(format!("{digest} is missing")));
    let mut tar = tar::Builder::new(out);
    let mut config = Vec::new();
    take(id)?.take(CONFIG_BYTES_MAX).read_to_end(&mut config)?;
    let config = harmless(&config)?;
    append(&mut tar, "config.json", config.len() as u64, config.as_slice())?;
    // Two layers may be the same.
    let mut written = HashSet::new();
    for layer in &image.layers {
        if written.insert(layer.blob) {
            write_layer(&mut tar, layer, take(&layer.blob)?)?;
        }
    }
    let saved = json!([{
        "Config": "config.json",
        "RepoTags": [given(id)],
        "Layers": image.layers.iter().map(|layer| path(&layer.blob)).collect::<Vec<_>>(),
    }])
    .to_string();
    append(&mut tar, "manifest.json", saved.len() as u64, saved.as_bytes())?;
    tar.into_inner()?.flush()
}

/// As it is, but for what older engines cannot read; and only when it unpacks to no more than it may.
fn write_layer(tar: &mut tar::Builder<impl Write>, layer: &Layer, mut blob: File) -> io::Result<()> {
    let unpacked = |blob: &mut File| {
        blob.rewind()?;
        BlobReader::new(blob.try_clone()?, layer.compression, LAYER_BYTES_MAX)
    };
    let bytes = io::copy(&mut unpacked(&mut blob)?, &mut io::sink())?;
    match layer.compression {
        Compression::Zstd => append(tar, &path(&layer.blob), bytes, unpacked(&mut blob)?),
        Compression::None | Compression::Gzip => {
            blob.rewind()?;
            append(tar, &path(&layer.blob), blob.metadata()?.len(), blob)
        }
    }
}

/// The configuration without what the engine would act upon.
fn harmless(config: &[u8]) -> io::Result<Vec<u8>> {
    let config: Value = serde_json::from_slice(config).map_err(|error| bad(error.to_string()))?;
    let runs = &config["config"];
    let names_proc = |dir: &str| dir.split('/').any(|name| matches!(name, ".." | "proc"));
    let work_dir = runs["WorkingDir"].as_str().filter(|dir| dir.starts_with('/') && !names_proc(dir));
    let kept = [
        ("architecture", config["architecture"].clone()),
        ("os", config["os"].clone()),
        ("variant", config["variant"].clone()),
        ("created", config["created"].clone()),
        (
            "config",
            json!({ "Env": runs["Env"], "Labels": runs["Labels"], "WorkingDir": work_dir.unwrap_or("/") }),
        ),
        ("rootfs", config["rootfs"].clone()),
        ("history", config["history"].clone()),
    ];
    let kept: HashMap<_, _> = kept.into_iter().filter(|(_, value)| !value.is_null()).collect();
    serde_json::to_vec(&kept).map_err(io::Error::other)
}

fn bad(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, bytes: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, content)
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn given(id: &Digest) -> String {
    format!("{REPOSITORY}:{}", id.hex())
}

/// Removes what the node's sandboxes have left in the engine: their disks, and the images that were loaded for them. What a container
/// still needs stays, and goes with that one's node; nothing here keeps a node from leaving.
pub(crate) async fn remove_ours(engine: &Engine, node_id: &str) {
    let mut left = named_by(engine, "label", &format!("{LABEL_NODE}={node_id}")).await;
    left.extend(named_by(engine, "reference", REPOSITORY).await);
    // A disk that another one was made from can only go after that one.
    loop {
        let before = left.len();
        left = remove(engine, left).await;
        if left.is_empty() || left.len() == before {
            break;
        }
    }
    if !left.is_empty() {
        tracing::info!(images = left.len(), "images that others still need stay in Docker's engine");
    }
}

/// Removes the images of nodes' stores that no container is made of, but for `wanted`.
pub(crate) async fn collect(engine: &Engine, wanted: &HashSet<String>) {
    let given = named_by(engine, "reference", REPOSITORY).await;
    remove(engine, given.into_iter().filter(|name| !wanted.contains(name)).collect()).await;
}

/// By tag where they have one, else by id.
async fn named_by(engine: &Engine, filter: &str, value: &str) -> Vec<String> {
    let options = &query::ListImagesOptionsBuilder::default()
        .all(true)
        .filters(&HashMap::from([(filter, vec![value])]))
        .build();
    let listed =
        engine.request(|docker| async move { docker.list_images(Some(options.clone())).await }).await;
    match listed {
        Ok(images) => images
            .into_iter()
            .flat_map(|image| if image.repo_tags.is_empty() { vec![image.id] } else { image.repo_tags })
            .collect(),
        Err(error) => {
            tracing::warn!(error = %error.on_host("list images"), "images stay in Docker's engine");
            Vec::new()
        }
    }
}

/// Gives those that are still in use.
async fn remove(engine: &Engine, names: Vec<String>) -> Vec<String> {
    let removals = stream::iter(names).map(|name| async move {
        let options = &query::RemoveImageOptionsBuilder::default().build();
        let image = &name;
        let removed = engine
            .request(|docker| async move { docker.remove_image(image, Some(options.clone()), None).await })
            .await;
        match removed {
            Ok(_) | Err(RequestError::NotFound(_)) => None,
            Err(RequestError::Conflict(_)) => Some(name),
            Err(error) => {
                tracing::warn!(image, error = %error.on_host("remove an image"), "it stays");
                None
            }
        }
    });
    removals.buffer_unordered(REMOVALS).filter_map(async |left| left).collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (Digest, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        (Digest::of(bytes), file)
    }

    fn layer(blob: Digest, compression: Compression) -> Layer {
        Layer { diff_id: Digest::of(b"d"), blob, blob_bytes: 1, compression }
    }

    fn written(config: &[u8], layers: &[(Vec<u8>, Compression)]) -> io::Result<HashMap<String, Vec<u8>>> {
        let (id, config) = file(config);
        let mut blobs = vec![(id, config)];
        let mut image = Image { id: Some(id), ..Image::named("r") };
        for (bytes, compression) in layers {
            let (blob, content) = file(bytes);
            image.layers.push(layer(blob, *compression));
            blobs.push((blob, content));
        }
        let mut out = Vec::new();
        write(&mut out, &id, &image, blobs)?;
        let mut tar = tar::Archive::new(out.as_slice());
        let entries = tar.entries()?.map(|entry| {
            let mut entry = entry?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            Ok((entry.path()?.to_string_lossy().into_owned(), content))
        });
        entries.collect()
    }

    #[test]
    fn what_is_written_is_what_any_docker_load_reads() {
        let packed = zstd::encode_all(io::Cursor::new(b"packed"), 3).unwrap();
        let layers = [
            (b"plain".to_vec(), Compression::None),
            (packed.clone(), Compression::Zstd),
            (b"plain".to_vec(), Compression::None),
        ];

        let files = written(b"{}", &layers).unwrap();

        let (plain, packed) = (path(&Digest::of(b"plain")), path(&Digest::of(&packed)));
        assert_eq!(files.len(), 4);
        assert_eq!((&*files[&plain], &*files[&packed]), (&b"plain"[..], &b"packed"[..]));
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["Layers"], json!([plain, packed, plain]));
        assert_eq!(manifest[0]["RepoTags"], json!([given(&Digest::of(b"{}"))]));
    }

    #[test]
    fn the_engine_gets_nothing_to_do_by_itself() {
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {
                "Env": ["A=b"], "WorkingDir": "/work", "Healthcheck": {"Test": ["CMD", "x"]}, "Volumes": {"/data": {}},
                "OnBuild": ["RUN x"], "Entrypoint": ["x"], "Cmd": ["x"], "User": "x", "StopSignal": "SIGKILL",
            },
            "unheard_of": 1,
        });
        let kept = |config: &Value| {
            serde_json::from_slice::<Value>(&harmless(config.to_string().as_bytes()).unwrap()).unwrap()
        };

        let given = kept(&config);

        let expected = json!({"Env": ["A=b"], "Labels": null, "WorkingDir": "/work"});
        assert_eq!((&given["config"], given.get("unheard_of")), (&expected, None));
        assert_eq!(given["rootfs"], config["rootfs"]);
        for wrong in ["/proc/self/fd/8", "/a/../proc/1", "proc", "/proc", "//proc/x"] {
            let given = kept(&json!({"config": {"WorkingDir": wrong}}));
            assert_eq!(given["config"]["WorkingDir"], "/", "{wrong}");
        }
    }

    #[test]
    fn what_is_no_image_is_nobodys_failure_but_the_users() {
        assert_eq!(written(b"no JSON", &[]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_engines_own_image_needs_no_blobs() {
        assert_eq!(blobs(&Image::named("busybox")), []);
        let layer = layer(Digest::of(b"b"), Compression::None);
        let id = Digest::of(b"c");
        let image = Image { id: Some(id), layers: vec![layer], ..Image::named("r") };
        assert_eq!(blobs(&image), [id, layer.blob]);
    }
}
