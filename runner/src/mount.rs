//! The folder that a sandbox sees at `/.atoll`, and the socket on which its daemon says hello.
//!
//! ```text
//! <data>/daemon/<sha256>                      one copy of the daemon's binary, hard-linked into every mount
//! <data>/sandboxes/<id>/g<generation>/
//!     secret                                  of the current start; outside the mount, kept for adoption
//!     mount/atoll-daemon                      ┐
//!     mount/run/config.json   0600            │ seen inside, read-only; config and socket are there only
//!     mount/run/hello.sock    0600            ┘ from a start until its hello
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_api::daemon::{DaemonConfig, Hello};
use atoll_api::ids::Generation;
use atoll_api::sandbox::SandboxSpec;
use rand::RngCore;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};

use crate::runtime::{Incarnation, RuntimeError};

/// A hello is one line; a longer one is not a hello.
pub const HELLO_BYTES_MAX: usize = 4096;
/// From connecting to the end of the line.
pub const HELLO_LINE_DEADLINE: Duration = Duration::from_secs(5);

const BINARY_NAME: &str = "atoll-daemon";
const SECRET_NAME: &str = "secret";

/// The secret of one start: 64 hex digits. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn generate() -> Secret {
        let mut random = [0u8; 32];
        rand::rng().fill_bytes(&mut random);
        Secret(hex::encode(random))
    }

    pub fn parse(text: &str) -> Option<Secret> {
        let ok = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ok.then(|| Secret(text.to_owned()))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Takes as long for a near miss as for any other of the same length.
    fn equals(&self, other: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), other.as_bytes());
        let differing = ours.iter().zip(theirs).fold(0, |bits, (a, b)| bits | (a ^ b));
        ours.len() == theirs.len() && std::hint::black_box(differing) == 0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// All mounts of this node. Its functions block on the disk for a moment.
#[derive(Debug, Clone)]
pub struct Mounts {
    sandboxes: PathBuf,
    binary: PathBuf,
}

impl Mounts {
    /// `data_dir` is absolute. Writes the daemon's binary once per content.
    pub fn open(data_dir: &Path, daemon_binary: &[u8]) -> Result<Mounts, RuntimeError> {
        if !data_dir.is_absolute() {
            return Err(RuntimeError::Host(format!(
                "the data folder {} must be an absolute path, for it is mounted into sandboxes",
                data_dir.display()
            )));
        }
        let sandboxes = data_dir.join("sandboxes");
        let binaries = data_dir.join("daemon");
        let binary = binaries.join(hex::encode(Sha256::digest(daemon_binary)));
        let made = fs::create_dir_all(&sandboxes)
            .and_then(|()| fs::create_dir_all(&binaries))
            .and_then(|()| write_binary_once(&binary, daemon_binary));
        made.map_err(|error| disk_error("prepare", data_dir, error))?;
        Ok(Mounts { sandboxes, binary })
    }

    pub fn mount_dir(&self, incarnation: Incarnation) -> PathBuf {
        self.dir(incarnation).join("mount")
    }

    /// Makes the folder with the daemon in it. Fine if it is there.
    pub fn prepare(&self, incarnation: Incarnation) -> Result<PathBuf, RuntimeError> {
        let mount = self.mount_dir(incarnation);
        self.try_prepare(&mount).map_err(|error| disk_error("prepare", &mount, error))?;
        Ok(mount)
    }

    fn try_prepare(&self, mount: &Path) -> io::Result<()> {
        let run = mount.join("run");
        fs::create_dir_all(&run)?;
        // User processes may run the daemon's binary (it is also their helper) and see nothing else.
        fs::set_permissions(mount, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700))?;
        let linked = mount.join(BINARY_NAME);
        match fs::hard_link(&self.binary, &linked) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // A file system without hard links, or with no more of them for this file.
            Err(_) => fs::copy(&self.binary, &linked).map(|_| ()),
        }
    }

    /// Writes the configuration for one start, with a new secret, and listens for its hello.
    /// Call it within a tokio runtime.
    pub fn arm(&self, incarnation: Incarnation, spec: &SandboxSpec) -> Result<Armed, RuntimeError> {
        let mount = self.prepare(incarnation)?;
        let secret = Secret::generate();
        let config = DaemonConfig {
            sandbox_id: incarnation.sandbox_id.to_string(),
            secret: secret.reveal().to_owned(),
            user: spec.user.clone(),
            env: spec.env.clone(),
            entrypoint: spec.entrypoint.clone(),
            work_dir: None,
        };
        let json = serde_json::to_vec(&config).expect("strings and maps of strings are always JSON");
        let run = mount.join("run");
        let armed = write_private(&self.dir(incarnation).join(SECRET_NAME), secret.reveal().as_bytes())
            .and_then(|()| write_private(&run.join("config.json"), &json))
            .and_then(|()| listen(&run));
        let listener = armed.map_err(|error| disk_error("write", &run, error))?;
        Ok(Armed { sandbox_id: config.sandbox_id, secret, run, listener })
    }

    /// The secret of the current start, for adoption.
    pub fn secret(&self, incarnation: Incarnation) -> Option<Secret> {
        Secret::parse(&fs::read_to_string(self.dir(incarnation).join(SECRET_NAME)).ok()?)
    }

    /// Everything of it goes. Not an error when there is nothing.
    pub fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let dir = self.dir(incarnation);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk_error("remove", &dir, error)),
            _ => {
                // Goes with its last generation; while another is there, it is not empty and stays.
                let _ = fs::remove_dir(self.sandboxes.join(incarnation.sandbox_id.to_string()));
                Ok(())
            }
        }
    }

    /// Which incarnations have a folder. What does not look like one of ours is left alone.
    pub fn list(&self) -> Result<Vec<Incarnation>, RuntimeError> {
        self.try_list().map_err(|error| disk_error("read", &self.sandboxes, error))
    }

    fn try_list(&self) -> io::Result<Vec<Incarnation>> {
        let mut found = Vec::new();
        for sandbox in fs::read_dir(&self.sandboxes)? {
            let sandbox = sandbox?;
            let Some(sandbox_id) = sandbox.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            for generation in fs::read_dir(sandbox.path())? {
                let name = generation?.file_name();
                let number = name.to_str().and_then(|name| name.strip_prefix('g')?.parse().ok());
                found.extend(number.map(|number| Incarnation { sandbox_id, generation: Generation(number) }));
            }
        }
        Ok(found)
    }

    fn dir(&self, incarnation: Incarnation) -> PathBuf {
        self.sandboxes.join(incarnation.sandbox_id.to_string()).join(format!("g{}", incarnation.generation))
    }
}

/// A start that waits for its daemon. Dropping it takes configuration and socket away.
#[derive(Debug)]
pub struct Armed {
    sandbox_id: String,
    secret: Secret,
    run: PathBuf,
    listener: UnixListener,
}

impl Armed {
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Ends with the first valid hello. Anything else that connects is hung up on. Cancel-safe; the caller sets the
    /// deadline.
    pub async fn hello(&self) -> Result<Hello, RuntimeError> {
        loop {
            let (stream, _) =
                self.listener.accept().await.map_err(|error| {
                    RuntimeError::Host(format!("cannot accept the daemon's hello: {error}"))
                })?;
            // One at a time: who dawdles is dropped after the deadline, and the backlog holds the others.
            let line = tokio::time::timeout(HELLO_LINE_DEADLINE, read_line(stream)).await;
            if let Ok(Some(hello)) = line
                && hello.sandbox_id == self.sandbox_id
                && self.secret.equals(&hello.secret)
            {
                return Ok(hello);
            }
            tracing::warn!(sandbox_id = %self.sandbox_id, "something that is not the daemon said hello");
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        for name in ["config.json", "hello.sock"] {
            let _ = fs::remove_file(self.run.join(name));
        }
    }
}

async fn read_line(stream: UnixStream) -> Option<Hello> {
    let mut bytes = Vec::new();
    let mut stream = stream.take(HELLO_BYTES_MAX as u64);
    let mut chunk = [0u8; 512];
    loop {
        let count = stream.read(&mut chunk).await.ok()?;
        bytes.extend_from_slice(&chunk[..count]);
        if let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            return serde_json::from_slice(&bytes[..end]).ok();
        }
        if count == 0 {
            return None;
        }
    }
}

/// Through `/proc/self/fd`, because a socket's path may have only 107 bytes and a data folder may be deep.
fn listen(run: &Path) -> io::Result<UnixListener> {
    let path = run.join("hello.sock");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let dir = fs::File::open(run)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/hello.sock", dir.as_raw_fd()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    fs::rename(&fresh, path)
}

fn write_binary_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64) {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    fs::rename(&fresh, path)
}

fn disk_error(verb: &str, path: &Path, error: io::Error) -> RuntimeError {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull => "; the disk is full: free some space or move the data folder",
        io::ErrorKind::PermissionDenied => "; it must belong to the user that the node runs as",
        io::ErrorKind::ReadOnlyFilesystem => "; the data folder must be writable",
        _ => "",
    };
    RuntimeError::Host(format!("cannot {verb} {}: {error}{advice}", path.display()))
}

#[cfg(test)]
mod tests;
