//! Who and what the runner's socket puts up with. None of it may end the runner, or cost it memory or descriptors.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;

use atoll_runner::fake::{FakeDaemon, FakeRuntime, FakeVerb};
use atoll_runner::{Image, MountDir, RemoteConfig, RemoteRuntime, Runtime, RuntimeError};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::seam::Server;
use crate::world::{Folder, eventually, incarnation, spec};

struct Host {
    fake: FakeRuntime,
    folder: Folder,
    server: Server,
}

impl Host {
    fn with_room_for(connections_max: usize) -> Host {
        let (fake, folder) = (FakeRuntime::new(), Folder::new());
        let socket = folder.path().join("r.sock");
        let server = Server::start_at(socket, Arc::new(fake.clone()), &folder, |config| {
            config.connections_max = connections_max;
        });
        Host { fake, folder, server }
    }

    fn runtime(&self) -> RemoteRuntime {
        RemoteRuntime::new(self.server.client())
    }
}

/// A length that is true, then these bytes.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_another_user_is_refused_in_words() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can act as two users");
        return;
    }
    let host = Host::with_room_for(8);
    let socket = host.server.socket.clone();
    // The socket's rights would keep others out already; the kernel's word about them is the second lock.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();

    let as_nobody = move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        // Of this thread alone, which ends after it.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut said = Vec::new();
        let mut stream = Blocking::connect(socket).unwrap();
        stream.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    };
    let said = tokio::task::spawn_blocking(|| std::thread::spawn(as_nobody).join().unwrap()).await.unwrap();

    assert!(said.contains("the runner serves uid 0 and root only"), "{said}");
    assert_eq!(host.runtime().list().await, Ok(Vec::new()));
    assert_eq!(host.fake.calls(FakeVerb::List), 1);
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let host = Host::with_room_for(8);
    let (invalid, cut) = (frame(&[0xc1; 300]), frame(b"\x81\xa4call"));
    let garbage: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &[0; 64], &invalid, &cut];

    for bytes in garbage {
        let mut stream = UnixStream::connect(&host.server.socket).await.unwrap();
        // The server may have hung up after the first bytes.
        let _ = stream.write_all(bytes).await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        assert_eq!(host.runtime().list().await, Ok(Vec::new()), "after {bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_or_half_of_it_is_hung_up_on() {
    let host = Host::with_room_for(3);
    let mut held = Vec::new();
    for begun in [&b""[..], b"\x10\x00", b"\x10\x00\x00\x00half"] {
        let mut stream = UnixStream::connect(&host.server.socket).await.unwrap();
        stream.write_all(begun).await.unwrap();
        held.push(stream);
    }

    for mut stream in held {
        // It ends though our end stays open; or this test would never.
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
    }
    assert_eq!(host.runtime().list().await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_thousand_connections_are_bounded_and_leave_nothing() {
    let host = Host::with_room_for(16);
    let mut silent = Vec::new();
    for _ in 0..1000 {
        match UnixStream::connect(&host.server.socket).await {
            Ok(stream) => silent.push(stream),
            // The queue is full until the server gets its turn.
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert!(silent.len() > 500, "{}", silent.len());

    assert_eq!(host.runtime().list().await, Err(RuntimeError::Overloaded));
    drop(silent);

    eventually("there is room again", async || host.runtime().list().await.is_ok()).await;
}

#[tokio::test]
async fn a_wait_that_nobody_wants_any_more_is_given_up() {
    let host = Host::with_room_for(1);
    let mount = host.folder.path().join("data/mount");
    std::fs::create_dir_all(mount.join("run")).unwrap();
    let config = r#"{"sandboxId":"x","secret":"x","user":"x","env":{}}"#;
    std::fs::write(mount.join("run/config.json"), config).unwrap();
    host.fake.set_daemon(FakeDaemon::Silent);
    let (runtime, one) = (host.runtime(), incarnation(1, 1));
    let mount_dir = MountDir::open(&mount).unwrap();
    // A reply may be here before the server has counted its connection out.
    let made = async || runtime.create(one, &spec("image"), &Image::named("image"), &mount_dir).await.is_ok();
    eventually("it is made", made).await;
    eventually("it starts", async || runtime.start(one).await.is_ok()).await;

    let waiting = tokio::spawn({
        let runtime = host.runtime();
        async move { runtime.wait(one).await }
    });
    let overloaded = async || runtime.list().await == Err(RuntimeError::Overloaded);
    eventually("the only place is taken", overloaded).await;
    waiting.abort();

    eventually("the place is free again", async || runtime.list().await.is_ok()).await;
}

#[tokio::test]
async fn descriptors_that_nobody_asked_for_are_closed() {
    let host = Host::with_room_for(8);
    let stream = UnixStream::connect(&host.server.socket).await.unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [write.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let request = frame(b"\x81\xa4call\xa4List");
        sendmsg(&stream, &[IoSlice::new(&request)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }
    drop(write);

    let ended = tokio::task::spawn_blocking(move || std::fs::File::from(read).read(&mut [0; 1]).unwrap());

    assert_eq!(ended.await.unwrap(), 0, "the last writing end is closed");
    assert_eq!(host.fake.calls(FakeVerb::List), 0);
    assert_eq!(host.runtime().list().await, Ok(Vec::new()));
}

#[tokio::test]
async fn only_folders_of_the_nodes_own_can_be_mounted() {
    let host = Host::with_room_for(8);
    let outside = host.folder.path().join("outside");
    std::fs::create_dir_all(outside.join("mount")).unwrap();
    std::fs::create_dir_all(host.folder.path().join("data")).unwrap();
    std::os::unix::fs::symlink(&outside, host.folder.path().join("data/outside")).unwrap();
    // This node claims that its data folder is the whole of the test's.
    let config = RemoteConfig { data_dir: host.folder.path().to_owned(), ..host.server.client() };
    let (runtime, mount_dir) = (RemoteRuntime::new(config), MountDir::open(&outside.join("mount")).unwrap());

    let made = runtime.create(incarnation(1, 1), &spec("image"), &Image::named("image"), &mount_dir).await;

    assert!(matches!(&made, Err(RuntimeError::Host(text)) if text.contains("symbolic link")), "{made:?}");
    assert_eq!(host.fake.existing(), []);
}
