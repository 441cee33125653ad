use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use atoll_api::ids::{RegionOrdinal, SandboxId};
use atoll_api::sandbox::Resources;
use tokio::io::AsyncWriteExt;

use super::*;

struct Folder(PathBuf);

impl Folder {
    /// Deeper than a socket's path may be.
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("atoll-mount-test-{}-{number}-{}", std::process::id(), "deep".repeat(30));
        Folder(std::env::temp_dir().join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn incarnation(number: u8, generation: u64) -> Incarnation {
    let sandbox_id = SandboxId::new(RegionOrdinal::new(0).unwrap(), [number; 14]);
    Incarnation { sandbox_id, generation: Generation(generation) }
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        snapshot: "s".into(),
        image: "i".into(),
        user: "daytona".into(),
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        entrypoint: vec!["sleep".into()],
        resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 },
        egress: Default::default(),
        allow_sudo: true,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

async fn say(armed: &Armed, line: &[u8]) {
    // Through the descriptor, as the path is too long for a socket.
    let dir = fs::File::open(&armed.run).unwrap();
    let path = format!("/proc/self/fd/{}/hello.sock", dir.as_raw_fd());
    let mut stream = UnixStream::connect(path).await.unwrap();
    let _ = stream.write_all(line).await;
}

fn hello_line(sandbox_id: &str, secret: &str) -> Vec<u8> {
    let hello =
        Hello { sandbox_id: sandbox_id.to_owned(), secret: secret.to_owned(), version: "1".to_owned() };
    [serde_json::to_vec(&hello).unwrap(), b"\n".to_vec()].concat()
}

#[tokio::test]
async fn an_armed_mount_holds_what_the_daemon_needs_and_nobody_else_reads() {
    let folder = Folder::new();
    let mounts = Mounts::open(&folder.0, b"binary").unwrap();

    let armed = mounts.arm(incarnation(1, 3), &spec()).unwrap();

    let mount = mounts.mount_dir(incarnation(1, 3));
    assert_eq!(fs::read(mount.join("atoll-daemon")).unwrap(), b"binary");
    assert_eq!(mode(&mount.join("atoll-daemon")), 0o755);
    assert_eq!(mode(&mount.join("run")), 0o700);
    assert_eq!(mode(&mount.join("run/config.json")), 0o600);
    let config: DaemonConfig =
        serde_json::from_slice(&fs::read(mount.join("run/config.json")).unwrap()).unwrap();
    assert_eq!((config.user.as_str(), config.env["A"].as_str()), ("daytona", "b"));
    assert_eq!(mounts.secret(incarnation(1, 3)).as_ref(), Some(armed.secret()));
    assert_eq!(config.secret, armed.secret().reveal());
    drop(armed);
    assert_eq!(fs::read_dir(mount.join("run")).unwrap().count(), 0);
}

#[tokio::test]
async fn every_start_has_its_own_secret() {
    let folder = Folder::new();
    let mounts = Mounts::open(&folder.0, b"binary").unwrap();

    let first = mounts.arm(incarnation(1, 1), &spec()).unwrap().secret().clone();
    let second = mounts.arm(incarnation(1, 1), &spec()).unwrap().secret().clone();

    assert_ne!(first, second);
    assert_eq!(mounts.secret(incarnation(1, 1)), Some(second));
}

#[tokio::test]
async fn only_a_valid_hello_is_heard() {
    let folder = Folder::new();
    let mounts = Mounts::open(&folder.0, b"binary").unwrap();
    let armed = mounts.arm(incarnation(1, 1), &spec()).unwrap();
    let (id, secret) = (incarnation(1, 1).sandbox_id.to_string(), armed.secret().reveal().to_owned());

    for nonsense in [
        b"\n".to_vec(),
        b"no end".to_vec(),
        b"{}\n".to_vec(),
        hello_line(&id, &"0".repeat(64)),
        hello_line(&id, &secret[..63]),
        hello_line(&incarnation(2, 1).sandbox_id.to_string(), &secret),
        vec![b'x'; HELLO_BYTES_MAX * 2],
        [vec![b' '; HELLO_BYTES_MAX], hello_line(&id, &secret)].concat(),
    ] {
        let (_, heard) = tokio::join!(
            say(&armed, &nonsense),
            tokio::time::timeout(Duration::from_millis(50), armed.hello())
        );
        assert!(heard.is_err(), "{:?}", String::from_utf8_lossy(&nonsense));
    }
    let line = hello_line(&id, &secret);
    let (_, heard) = tokio::join!(say(&armed, &line), armed.hello());
    assert_eq!(heard.unwrap().version, "1");
}

#[test]
fn removal_takes_the_sandboxs_folder_with_its_last_generation() {
    let folder = Folder::new();
    let mounts = Mounts::open(&folder.0, b"binary").unwrap();
    for generation in [1, 2] {
        mounts.prepare(incarnation(1, generation)).unwrap();
    }
    assert_eq!(mounts.list().unwrap().len(), 2);

    mounts.remove(incarnation(1, 1)).unwrap();
    mounts.remove(incarnation(1, 1)).unwrap();
    assert_eq!(mounts.list().unwrap(), [incarnation(1, 2)]);
    mounts.remove(incarnation(1, 2)).unwrap();

    assert_eq!(fs::read_dir(folder.0.join("sandboxes")).unwrap().count(), 0);
}

#[test]
fn a_new_daemon_does_not_change_what_running_sandboxes_see() {
    let folder = Folder::new();
    let old = Mounts::open(&folder.0, b"old").unwrap().prepare(incarnation(1, 1)).unwrap();

    let new = Mounts::open(&folder.0, b"new").unwrap().prepare(incarnation(2, 1)).unwrap();

    assert_eq!(fs::read(old.join("atoll-daemon")).unwrap(), b"old");
    assert_eq!(fs::read(new.join("atoll-daemon")).unwrap(), b"new");
}

#[test]
fn a_relative_data_folder_is_the_operators_mistake() {
    let opened = Mounts::open(Path::new("data"), b"binary");

    assert!(matches!(opened, Err(RuntimeError::Host(text)) if text.contains("absolute")));
}
