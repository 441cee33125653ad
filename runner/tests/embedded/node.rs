//! The node as an attacker: its process was taken over, and asks the runner, which is root, for what it must not get.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_runner::image::ImageSource;
use atoll_runner::{Incarnation, MountDir, Runtime};

use crate::Rule;
use crate::host::{Host, IMAGE};
use crate::world::{incarnation, spec};

pub const RULES: &[Rule] = &[
    ("what_the_node_links_into_its_folder_is_not_handed_to_a_sandbox", linked),
    ("a_node_that_takes_no_hello_keeps_nobody_waiting", deaf),
];

const NODE: u32 = 4711;
const SECRET: &str = "root's alone";

/// The node's folder of one sandbox.
struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn new(path: &Path) -> Folder<'_> {
        std::fs::create_dir_all(path.join("run")).unwrap();
        for dir in [path, &path.join("run")] {
            chown(dir, Some(NODE), Some(NODE)).unwrap();
        }
        Folder(path)
    }

    fn own_config(&self) {
        let path = self.0.join("run/config.json");
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, "{}").unwrap();
        chown(&path, Some(NODE), Some(NODE)).unwrap();
    }

    fn own_socket(&self) -> UnixListener {
        let path = self.0.join("run/hello.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        chown(&path, Some(NODE), Some(NODE)).unwrap();
        listener
    }
}

async fn created(host: &Host, folder: &Folder<'_>) -> (std::sync::Arc<dyn Runtime>, Incarnation) {
    let runtime = host.runtime();
    runtime.prepare().await.unwrap();
    let image = host.images.resolve(IMAGE).await.unwrap();
    let mut blobs = Vec::new();
    for blob in runtime.missing_blobs(&image).await.unwrap() {
        blobs.push((blob, host.images.open(&blob).await.unwrap()));
    }
    runtime.import(&image, blobs).await.unwrap();
    let mount_dir = MountDir::open(folder.0).unwrap();
    runtime.create(incarnation(1, 1), &spec(IMAGE), &image, &mount_dir).await.unwrap();
    (runtime, incarnation(1, 1))
}

/// A hard link needs no right to read what it is to. (`fs.protected_hardlinks` forbids it, where it is on.)
fn linked(host: &Host) {
    let secret = host.folder.path().join("shadow");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let engine = host.folder.path().join("engine.sock");
    let _of_root = UnixListener::bind(&engine).unwrap();
    let path = host.folder.path().join("node/mount");
    let folder = Folder::new(&path);
    host.tokio.block_on(async {
        let (runtime, which) = created(host, &folder).await;
        let run = path.join("run");

        let _listener = folder.own_socket();
        std::fs::hard_link(&secret, run.join("config.json")).unwrap();
        let refusal = runtime.start(which).await.unwrap_err().to_string();
        assert!(refusal.contains("belongs to uid 0"), "{refusal}");

        folder.own_config();
        std::fs::remove_file(run.join("hello.sock")).unwrap();
        std::fs::hard_link(&engine, run.join("hello.sock")).unwrap();
        let refusal = runtime.start(which).await.unwrap_err().to_string();
        assert!(refusal.contains("belongs to uid 0"), "{refusal}");

        std::fs::remove_file(run.join("hello.sock")).unwrap();
        std::os::unix::fs::symlink(&engine, run.join("hello.sock")).unwrap();
        assert!(runtime.start(which).await.is_err());

        std::fs::rename(&run, path.join("before")).unwrap();
        std::os::unix::fs::symlink("/run", &run).unwrap();
        assert!(runtime.start(which).await.is_err());

        // What is the node's own is taken.
        std::fs::remove_file(&run).unwrap();
        std::fs::rename(path.join("before"), &run).unwrap();
        let _listener = folder.own_socket();
        runtime.start(which).await.unwrap();
    });
}

fn deaf(host: &Host) {
    let path = host.folder.path().join("node/mount");
    let folder = Folder::new(&path);
    host.tokio.block_on(async {
        let (runtime, which) = created(host, &folder).await;
        folder.own_config();
        let listener = folder.own_socket();
        rustix::net::listen(&listener, 0).unwrap();
        // Until there is no room for one more.
        let address = rustix::net::SocketAddrUnix::new(path.join("run/hello.sock")).unwrap();
        let mut waiting = Vec::new();
        loop {
            let one = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK,
                None,
            );
            let one = one.unwrap();
            match rustix::net::connect(&one, &address) {
                Ok(()) => waiting.push(UnixStream::from(one)),
                Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
            }
        }

        let began = Instant::now();
        assert!(runtime.start(which).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(5));
        // A pipe in the place of the configuration is no reason to wait either.
        let config = path.join("run/config.json");
        std::fs::remove_file(&config).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&config).status().unwrap().success());
        chown(&config, Some(NODE), Some(NODE)).unwrap();
        assert!(runtime.start(which).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(5));
    });
}
