//! One trial's node: its folders, its runtime, an image, and a way to run commands inside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::Target;
use atoll_api::ids::{Generation, NodeId};
use atoll_runner::embedded::network::{Layout, NetworkConfig};
use atoll_runner::embedded::{EmbeddedConfig, EmbeddedRuntime};
use atoll_runner::image::{Compression, Digest, Image, ImageConfig, ImageSource, Layer};
use atoll_runner::store::BlobWriter;
use atoll_runner::{EngineImages, Kept, LayerTar, RunnerHandle, RuntimeError};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Folder, World, sandbox};

pub const ZYGOTE_MODE: &str = "embedded-runtime-zygote";
pub const IMAGE: &str = "busybox";

pub struct Host {
    pub folder: Folder,
    pub config: EmbeddedConfig,
    pub images: Arc<Busybox>,
    pub tokio: tokio::runtime::Runtime,
    pub daemon: Bytes,
}

impl Host {
    /// `None` where nothing can be tested, with the reason on stderr.
    pub fn new() -> Option<Host> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let daemon =
            match (rustix::process::geteuid().is_root(), daemon_binary(), Path::new("/bin/busybox").exists())
            {
                (true, Some(daemon), true) => daemon,
                lacking => {
                    let all_required = std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_some();
                    assert!(
                        !all_required,
                        "this needs root, the daemon and busybox-static: {:?}",
                        (lacking.0, lacking.2)
                    );
                    eprintln!("SKIPPED: this needs root, the daemon's binary and busybox-static");
                    return None;
                }
            };
        let folder = Folder::new();
        let node_id = NodeId((u64::from(number) << 56) | (u64::from(std::process::id()) << 24));
        // Of 1024, so that tests which run beside each other on one host seldom want the same.
        let place = (std::process::id().wrapping_mul(37) + number) % 1024;
        let range = format!("10.{}.{}.0/20", 192 + place / 16, place % 16 * 16).parse().unwrap();
        let config = EmbeddedConfig {
            node_id,
            state_dir: folder.path().join("state"),
            layers_dir: folder.path().join("layers"),
            zygote: vec![std::env::current_exe().unwrap().into(), ZYGOTE_MODE.into()],
            daemon_binary: daemon.clone(),
            uid_base: (1 << 30) + (number % 16) * (1 << 26),
            network: NetworkConfig { range, ..NetworkConfig::new(node_id) },
            slots_max: 1000,
            pids_max: 256,
            attach_layers: false,
            parked: 2,
            layers_budget_bytes: 1 << 30,
        };
        let images = Arc::new(Busybox::make(folder.path()));
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Some(Host { folder, config, images, tokio, daemon })
    }

    pub fn runtime(&self) -> Arc<EmbeddedRuntime> {
        Arc::new(EmbeddedRuntime::open(self.config.clone()).unwrap())
    }

    pub async fn world(&self, runtime: Arc<EmbeddedRuntime>) -> World {
        let config = self.folder.config(self.daemon.clone());
        World::start_with(config, runtime, self.images.clone()).await.unwrap()
    }

    /// Of the one sandbox that runs, as the host numbers it.
    pub fn first_process(&self) -> i64 {
        self.first_processes()[0]
    }

    /// Of all sandboxes that run.
    pub fn first_processes(&self) -> Vec<i64> {
        self.records().iter().filter_map(|record| record["run"]["pid"].as_i64()).collect()
    }

    fn records(&self) -> Vec<serde_json::Value> {
        let dirs = std::fs::read_dir(self.config.state_dir.join("sandboxes")).unwrap();
        let records = dirs.map(|dir| std::fs::read(dir.unwrap().path().join("record.json")).unwrap());
        records.map(|record| serde_json::from_slice(&record).unwrap()).collect()
    }

    /// The writable layers of all sandboxes, as the host sees them.
    pub fn uppers(&self) -> Vec<PathBuf> {
        let dirs = std::fs::read_dir(self.config.state_dir.join("sandboxes")).unwrap();
        dirs.map(|dir| dir.unwrap().path().join("fs/upper")).collect()
    }

    /// The writable layer of the one sandbox, as the host sees it.
    pub fn upper(&self) -> PathBuf {
        self.uppers().remove(0)
    }

    /// What of this node's is left on the host.
    pub fn left(&self) -> Vec<String> {
        let node = format!("atoll-{}", self.config.node_id);
        let state = self.config.state_dir.display().to_string();
        let mut left = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&state)).map(str::to_owned));
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
            let group = hierarchy.unwrap().path().join(&node);
            if group.exists() {
                left.push(group.display().to_string());
            }
        }
        let loops = Command::new("losetup").args(["-l", "-n", "-O", "BACK-FILE"]).output().unwrap();
        let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
        left.extend(loops.lines().filter(|line| line.contains(&state)).map(str::to_owned));
        let links = Command::new("ip").args(["-br", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        let device = Layout::new(self.config.node_id, self.config.network.range).unwrap().anchor();
        left.extend(links.lines().filter(|line| line.starts_with(&device)).map(str::to_owned));
        left
    }

    /// Whatever a trial has left goes, so that the next one finds a clean host.
    pub fn clean_up(self) {
        // As when the process ends: nobody keeps pools full any more.
        self.tokio.shutdown_timeout(Duration::from_secs(5));
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            if let Ok(runtime) = EmbeddedRuntime::open(self.config.clone()) {
                use atoll_runner::Runtime;
                let _ = runtime.prepare().await;
                if let Err(error) = runtime.teardown().await {
                    eprintln!("cleaning up: {error}");
                }
            }
        });
    }
}

/// What a command inside did.
#[derive(Debug)]
pub struct Done {
    pub exit_code: i64,
    pub output: String,
}

/// Runs a shell command inside through the daemon, as the sandbox's user.
pub async fn run(runner: &RunnerHandle, number: u8, command: &str) -> Done {
    try_run(runner, number, command).await.unwrap_or_else(|error| panic!("run {command}: {error}"))
}

pub async fn try_run(runner: &RunnerHandle, number: u8, command: &str) -> Result<Done, String> {
    let request = serde_json::json!({ "command": command, "timeout": 60 });
    let json = post(runner, number, "/process/execute", request).await?;
    Ok(Done {
        exit_code: json["exitCode"].as_i64().unwrap_or(-1),
        output: json["result"].as_str().unwrap_or_default().to_owned(),
    })
}

/// The daemon's answer, JSON or nothing; its words when it refuses.
pub async fn post(
    runner: &RunnerHandle,
    number: u8,
    path: &str,
    body: serde_json::Value,
) -> Result<serde_json::Value, String> {
    let body = body.to_string();
    let dialled = runner.dial(sandbox(number), Generation(1), Target::Daemon).await;
    let mut stream = dialled.map_err(|error| error.to_string())?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: daemon\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    if !head.starts_with("HTTP/1.1 2") {
        return Err(answer);
    }
    if body.is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))
}

fn daemon_binary() -> Option<Bytes> {
    // Beside the folder that cargo gives to tests, wherever the target folder is.
    let built = concat!(
        env!("CARGO_TARGET_TMPDIR"),
        "/../daemon-static/x86_64-unknown-linux-gnu/daemon/atoll-daemon"
    );
    let path = std::env::var_os("ATOLL_DAEMON_BINARY").map_or_else(|| PathBuf::from(built), PathBuf::from);
    std::fs::read(path).ok().map(Bytes::from)
}

/// Built once by the C compiler that Rust links with, static, as the image has no library.
fn probe() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/embedded/probe.c");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", std::process::id()));
        let made =
            Command::new("cc").args(["-static", "-O1", "-o"]).arg(&built).arg(source).output().unwrap();
        assert!(made.status.success(), "build the probe: {}", String::from_utf8_lossy(&made.stderr));
        built
    })
}

/// Images of one layer: a busybox, the probe, users `root` and `user` (1000), and a setuid program of root.
pub struct Busybox {
    images: Mutex<BTreeMap<String, (Image, PathBuf)>>,
}

impl Busybox {
    fn make(folder: &Path) -> Busybox {
        let root = folder.join("root");
        for dir in ["bin", "etc", "tmp", "home/user", "root", "var"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        std::fs::copy(probe(), root.join("bin/probe")).unwrap();
        let listed = Command::new("/bin/busybox").arg("--list").output().unwrap();
        for name in String::from_utf8_lossy(&listed.stdout).lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        write(
            &root.join("etc/passwd"),
            "root::0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        );
        write(&root.join("etc/group"), "root:x:0:\ntty:x:5:\nuser:x:1000:\n");
        std::fs::copy("/bin/busybox", root.join("bin/busybox-suid")).unwrap();
        let shell = format!(
            "chmod 1777 {0}/tmp; chown 1000:1000 {0}/home/user; chmod 4755 {0}/bin/busybox-suid; mkdir -p {0}/usr/bin; cp -p {0}/bin/busybox-suid {0}/usr/bin/sudo",
            root.display()
        );
        assert!(Command::new("sh").args(["-c", &shell]).status().unwrap().success());
        let busybox = Busybox { images: Mutex::default() };
        busybox.pack(folder, IMAGE);
        busybox
    }

    /// Another image: one with one more layer.
    pub fn extend(&self, base: &str, reference: &str, layer: Layer) -> Image {
        let mut images = self.images.lock().unwrap();
        let (mut image, path) = images[base].clone();
        image.reference = reference.to_owned();
        image.id = Some(layer.diff_id);
        image.layers.push(layer);
        images.insert(reference.to_owned(), (image.clone(), path));
        image
    }

    /// Another image: this one with a change. Gives its reference.
    pub fn with(&self, folder: &Path, reference: &str, change: impl FnOnce(&Path)) -> String {
        let root = folder.join("root");
        let saved = folder.join("saved-root");
        let copy = |from: &Path, to: &Path| {
            let copied = Command::new("cp").arg("-a").args([from, to]).status();
            assert!(copied.unwrap().success());
        };
        copy(&root, &saved);
        change(&root);
        self.pack(folder, reference);
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::rename(saved, root).unwrap();
        reference.to_owned()
    }

    fn pack(&self, folder: &Path, reference: &str) {
        let blob = folder.join(format!("{reference}.tar"));
        let packed = Command::new("tar")
            .args(["--numeric-owner", "-cf"])
            .arg(&blob)
            .arg("-C")
            .arg(folder.join("root"))
            .arg(".")
            .status();
        assert!(packed.unwrap().success());
        let bytes = std::fs::read(&blob).unwrap();
        let digest = Digest::new(Sha256::digest(&bytes).into());
        let layer = Layer {
            diff_id: digest,
            blob: digest,
            blob_bytes: bytes.len() as u64,
            compression: Compression::None,
        };
        let image = Image {
            reference: reference.into(),
            id: Some(digest),
            layers: vec![layer],
            config: ImageConfig {
                env: vec!["PATH=/bin".into(), "FROM_IMAGE=yes".into()],
                labels: BTreeMap::new(),
                ..ImageConfig::default()
            },
        };
        self.images.lock().unwrap().insert(reference.to_owned(), (image, blob));
    }
}

fn write(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[async_trait]
impl ImageSource for Busybox {
    async fn resolve(&self, reference: &str) -> Result<Image, RuntimeError> {
        Ok(self.images.lock().unwrap()[reference].0.clone())
    }

    async fn open(&self, blob: &Digest) -> Result<File, RuntimeError> {
        let images = self.images.lock().unwrap();
        let (_, path) = images.values().find(|(image, _)| image.layers[0].blob == *blob).unwrap();
        File::open(path).map_err(|error| RuntimeError::Host(error.to_string()))
    }

    async fn read_layer(&self, layer: LayerTar) -> Result<BlobWriter, RuntimeError> {
        EngineImages::default().read_layer(layer).await
    }

    async fn keep(&self, base: &Image, layer: BlobWriter, name: &str) -> Result<Kept, RuntimeError> {
        EngineImages::default().keep(base, layer, name).await
    }
}
