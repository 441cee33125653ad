//! Descriptors on their way through the socket: blobs in, layers out.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use atoll_api::sandbox::Desired;
use atoll_runner::fake::{FakeLayer, FakeRuntime};
use atoll_runner::image::{Compression, Digest, ImageConfig, Layer};
use atoll_runner::{Image, RemoteRuntime, Runtime, RuntimeError};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;

use crate::seam::Server;
use crate::world::{Folder, World, incarnation, spec};

fn blob(folder: &Folder, content: &[u8]) -> (Digest, File) {
    let digest = Digest::new(Sha256::digest(content).into());
    let path = folder.path().join(digest.hex());
    File::create(&path).unwrap().write_all(content).unwrap();
    (digest, File::open(path).unwrap())
}

fn image(blobs: &[Digest]) -> Image {
    let layer =
        |blob: &Digest| Layer { diff_id: *blob, blob: *blob, blob_bytes: 1, compression: Compression::None };
    Image {
        reference: "test".into(),
        id: None,
        layers: blobs.iter().map(layer).collect(),
        config: ImageConfig::default(),
    }
}

#[tokio::test]
async fn blobs_arrive_as_files_also_as_many_as_one_message_takes() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let server = Server::start(Arc::new(fake), &folder);
    let runtime = RemoteRuntime::new(server.client());
    for count in [1, 253] {
        let blobs: Vec<_> = (0..count).map(|n| blob(&folder, format!("{count} {n}").as_bytes())).collect();
        let image = image(&blobs.iter().map(|(digest, _)| *digest).collect::<Vec<_>>());
        assert_eq!(runtime.missing_blobs(&image).await.unwrap().len(), count);

        runtime.import(&image, blobs).await.unwrap();

        assert_eq!(runtime.missing_blobs(&image).await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_is_no_blob_is_refused() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let server = Server::start(Arc::new(fake), &folder);
    let runtime = RemoteRuntime::new(server.client());
    let (digest, _) = blob(&folder, b"right");
    let (_, wrong) = blob(&folder, b"wrong");
    let image = image(&[digest]);

    let forged = runtime.import(&image, vec![(digest, wrong)]).await;
    assert!(matches!(&forged, Err(RuntimeError::Spec(_))), "{forged:?}");
    // Reading from it would never end.
    let (endless, _kept) = rustix::pipe::pipe().unwrap();
    let piped = runtime.import(&image, vec![(digest, File::from(endless))]).await;
    assert_eq!(piped, Err(RuntimeError::Host("a blob is not a file".into())));
    let many = (0..254).map(|_| blob(&folder, b"right")).collect();
    assert!(
        matches!(runtime.import(&image, many).await, Err(RuntimeError::Spec(text)) if text.contains("254"))
    );
}

/// A stopped sandbox behind a server, and the runtime that reaches it.
async fn committed(layer: FakeLayer) -> (Server, World, Folder, RemoteRuntime) {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    fake.set_layer(layer);
    let server = Server::start(Arc::new(fake), &folder);
    let runtime = Arc::new(RemoteRuntime::new(server.client()));
    let mut world = World::start(folder.config(&b"daemon"[..]), runtime).await.unwrap();
    world.place(1, spec("image"));
    world.until_running(1).await;
    world.wish(1, Desired::Stopped);
    world.until_stopped(1).await;
    let runtime = RemoteRuntime::new(server.client());
    (server, world, folder, runtime)
}

#[tokio::test]
async fn a_layer_arrives_whole() {
    let bytes: Bytes = (0..5_000_000u32).map(|n| (n % 251) as u8).collect::<Vec<u8>>().into();
    let (_server, _world, _folder, runtime) = committed(FakeLayer::Whole(bytes.clone())).await;

    let mut layer = runtime.commit(incarnation(1, 1)).await.unwrap();
    let mut read = Vec::new();
    layer.read_to_end(&mut read).await.unwrap();

    assert!(read == bytes);
    assert_eq!(layer.read(&mut [0; 8]).await.unwrap(), 0, "the end stays the end");
}

#[tokio::test]
async fn a_layer_that_breaks_off_never_looks_whole() {
    let bytes = Bytes::from(vec![1; 300_000]);
    let (_server, _world, _folder, runtime) = committed(FakeLayer::BreaksOff(bytes)).await;

    let mut layer = runtime.commit(incarnation(1, 1)).await.unwrap();
    let mut read = Vec::new();
    let error = layer.read_to_end(&mut read).await.unwrap_err();

    assert_eq!(read.len(), 300_000);
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    assert!(layer.read(&mut [0; 8]).await.is_err(), "also when asked again");
}

#[tokio::test]
async fn a_runner_that_ends_in_the_middle_of_a_layer_is_an_error() {
    // More than pipe and buffers hold, so the server is in the middle of it when it ends.
    let bytes = Bytes::from(vec![1; 8 << 20]);
    let (server, _world, _folder, runtime) = committed(FakeLayer::Whole(bytes)).await;
    let mut layer = runtime.commit(incarnation(1, 1)).await.unwrap();
    layer.read_exact(&mut [0; 4096]).await.unwrap();

    server.stop().await;

    let error = layer.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("in the middle of a layer"), "{error}");
}
