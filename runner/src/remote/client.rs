//! The node's side: each verb is one connection, tried again for a moment while the runner is away.

use std::fs::File;
use std::io;
use std::net;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::sandbox::{Egress, SandboxSpec};
use atoll_api::wire::{decode, encode};
use rustix::fs::{SeekFrom, seek};
use tokio::net::{TcpStream, UnixStream};

use crate::image::{Digest, Image, Kept};
use crate::mount_dir::MountDir;
use crate::remote::layer::RemoteLayer;
use crate::remote::wire::{Call, Reply, Request, runtime_error};
use crate::remote::{address, frames};
use crate::runtime::{Exit, Finding, Found, Incarnation, LayerTar, Runtime, RuntimeError};

/// A list of every sandbox of a node is some hundred bytes each.
const REPLY_BYTES_MAX: usize = 16 << 20;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(20);
const TRY_AGAIN_AFTER_MAX: Duration = Duration::from_millis(250);
/// How long a runner may be away, as when it is started anew, before a verb fails.
const AWAY_PATIENCE: Duration = Duration::from_secs(5);
/// At its start a node may be there before its runner.
const AWAY_PATIENCE_AT_START: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// Where the runner listens.
    pub socket: PathBuf,
    /// The node's data folder, as this process reaches it. The runner may know it by another name.
    pub data_dir: PathBuf,
}

/// Sandboxes behind `atoll runner`. Cheap; connects anew for every verb, so a runner that was restarted is not noticed.
#[derive(Debug)]
pub struct RemoteRuntime {
    config: RemoteConfig,
}

struct Answer {
    reply: Reply,
    fds: Vec<OwnedFd>,
    stream: UnixStream,
}

enum Failure {
    /// Nothing was answered: the runner is not there, or ended meanwhile.
    Away(io::Error),
    Said(RuntimeError),
}

impl RemoteRuntime {
    /// Talks to nobody yet.
    pub fn new(config: RemoteConfig) -> RemoteRuntime {
        RemoteRuntime { config }
    }

    async fn call(&self, call: Call) -> Result<Answer, RuntimeError> {
        self.call_with(call, &[]).await
    }

    async fn call_with(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<Answer, RuntimeError> {
        let (name, deadline, patience) = (call.name(), deadline(&call), patience(&call));
        let request = Request { version: env!("CARGO_PKG_VERSION").to_owned(), call };
        let request = encode(&request).map_err(|error| RuntimeError::Host(error.to_string()))?;
        let answered = self.attempts(&request, fds, patience);
        match deadline {
            None => answered.await,
            Some(deadline) => tokio::time::timeout(deadline, answered).await.unwrap_or_else(|_| {
                Err(RuntimeError::TimedOut(format!("the runner did not {name} within {deadline:?}")))
            }),
        }
    }

    /// Every verb is idempotent, so one whose answer never came is simply asked again.
    async fn attempts(
        &self,
        request: &[u8],
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Answer, RuntimeError> {
        let mut pause = TRY_AGAIN_AFTER;
        let mut away_since = None;
        loop {
            match self.attempt(request, fds).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Said(error)) => return Err(error),
                Err(Failure::Away(error)) => {
                    let since = *away_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() >= patience {
                        return Err(self.away(&error));
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(TRY_AGAIN_AFTER_MAX);
            for fd in fds {
                // Somebody may have read a part of it.
                seek(fd, SeekFrom::Start(0))
                    .map_err(|error| RuntimeError::Host(format!("read a blob: {error}")))?;
            }
        }
    }

    async fn attempt(&self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, Failure> {
        let stream = address::connect(&self.config.socket).await.map_err(|error| self.failure(error))?;
        let sent = frames::send(&stream, request, fds).await;
        // Whoever is refused is told so before the request has been read.
        let heard = frames::receive(&stream, REPLY_BYTES_MAX).await;
        let frame = match (heard, sent) {
            (Ok(Some(frame)), _) => frame,
            (Err(error), _) | (Ok(None), Err(error)) => return Err(self.failure(error)),
            (Ok(None), Ok(())) => return Err(Failure::Away(io::ErrorKind::UnexpectedEof.into())),
        };
        match decode(&frame.payload) {
            Ok(Reply::Failed(said)) => Err(Failure::Said(runtime_error(said))),
            Ok(reply) => Ok(Answer { reply, fds: frame.fds, stream }),
            Err(error) => Err(Failure::Said(RuntimeError::Host(format!(
                "the runner answers what this node does not understand ({error}): run one version of atoll for both"
            )))),
        }
    }

    fn failure(&self, error: io::Error) -> Failure {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NotFound
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::UnexpectedEof
            // Its queue is full.
            | Kind::WouldBlock => Failure::Away(error),
            Kind::PermissionDenied => Failure::Said(RuntimeError::Host(format!(
                "this process (uid {}) may not use the runner's socket {}: let `runtime.node_user` of the configuration \
                 be the node's user, and restart the runner",
                rustix::process::geteuid().as_raw(),
                self.config.socket.display()
            ))),
            _ => Failure::Said(RuntimeError::Host(format!(
                "cannot talk to the runner at {}: {error}",
                self.config.socket.display()
            ))),
        }
    }

    fn away(&self, error: &io::Error) -> RuntimeError {
        RuntimeError::Host(format!(
            "no runner answers at {} ({error}): start `atoll runner` with this node's configuration, as root \
             (`systemctl start atoll-runner`)",
            self.config.socket.display()
        ))
    }

    async fn done(&self, call: Call) -> Result<(), RuntimeError> {
        match self.call(call).await?.reply {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

fn deadline(call: &Call) -> Option<Duration> {
    let seconds = match call {
        Call::Wait { .. } => return None,
        Call::Dial { .. } => 15,
        // Unpacks whole layers.
        Call::Import { .. } => 3600,
        Call::Stop { grace_ms, .. } => 120 + grace_ms.div_ceil(1000),
        // Its engine may have much to read.
        Call::CommitImage { .. } => 600,
        Call::Teardown => 300,
        _ => 120,
    };
    Some(Duration::from_secs(seconds))
}

fn patience(call: &Call) -> Duration {
    match call {
        // As long as the sandbox runs: that the runner is away says nothing about it.
        Call::Wait { .. } => Duration::MAX,
        Call::Prepare => AWAY_PATIENCE_AT_START,
        Call::Check => Duration::ZERO,
        _ => AWAY_PATIENCE,
    }
}

fn unexpected(reply: &Reply) -> RuntimeError {
    RuntimeError::Host(format!("the runner answered something else than was asked: {reply:?}"))
}

#[async_trait]
impl Runtime for RemoteRuntime {
    async fn prepare(&self) -> Result<(), RuntimeError> {
        self.done(Call::Prepare).await
    }

    async fn missing_blobs(&self, image: &Image) -> Result<Vec<Digest>, RuntimeError> {
        match self.call(Call::MissingBlobs { image: image.clone() }).await?.reply {
            Reply::Blobs { digests } => Ok(digests),
            other => Err(unexpected(&other)),
        }
    }

    async fn import(&self, image: &Image, blobs: Vec<(Digest, File)>) -> Result<(), RuntimeError> {
        if blobs.len() > frames::FDS_MAX {
            return Err(RuntimeError::Spec(format!(
                "the image has {} layers; at most {} are supported",
                blobs.len(),
                frames::FDS_MAX
            )));
        }
        let call =
            Call::Import { image: image.clone(), blobs: blobs.iter().map(|(digest, _)| *digest).collect() };
        let fds: Vec<BorrowedFd<'_>> = blobs.iter().map(|(_, file)| file.as_fd()).collect();
        match self.call_with(call, &fds).await?.reply {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn create(
        &self,
        incarnation: Incarnation,
        spec: &SandboxSpec,
        image: &Image,
        mount_dir: &MountDir,
    ) -> Result<(), RuntimeError> {
        let (path, root) = (mount_dir.path(), &self.config.data_dir);
        let mount_dir = path.strip_prefix(root).map_err(|_| {
            RuntimeError::Host(format!(
                "{} is not below the node's folder {}",
                path.display(),
                root.display()
            ))
        })?;
        self.done(Call::Create {
            which: incarnation.into(),
            spec: Box::new(spec.clone()),
            image: Box::new(image.clone()),
            mount_dir: mount_dir.to_owned(),
        })
        .await
    }

    async fn start(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.done(Call::Start { which: incarnation.into() }).await
    }

    async fn pause(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.done(Call::Pause { which: incarnation.into() }).await
    }

    async fn resume(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.done(Call::Resume { which: incarnation.into() }).await
    }

    async fn commit(&self, incarnation: Incarnation) -> Result<LayerTar, RuntimeError> {
        let Answer { reply, mut fds, stream } = self.call(Call::Commit { which: incarnation.into() }).await?;
        match (reply, fds.pop()) {
            (Reply::Layer, Some(pipe)) => {
                let layer = RemoteLayer::new(pipe, stream);
                Ok(Box::new(layer.map_err(|error| RuntimeError::Host(format!("take the layer: {error}")))?))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn base(&self, incarnation: Incarnation) -> Result<Image, RuntimeError> {
        match self.call(Call::Base { which: incarnation.into() }).await?.reply {
            Reply::Base { image } => Ok(*image),
            other => Err(unexpected(&other)),
        }
    }

    async fn commit_image(&self, incarnation: Incarnation, name: &str) -> Result<Option<Kept>, RuntimeError> {
        let call = Call::CommitImage { which: incarnation.into(), name: name.to_owned() };
        match self.call(call).await?.reply {
            Reply::Kept { image } => Ok(image),
            other => Err(unexpected(&other)),
        }
    }

    async fn set_egress(&self, incarnation: Incarnation, egress: &Egress) -> Result<(), RuntimeError> {
        self.done(Call::SetEgress { which: incarnation.into(), egress: egress.clone() }).await
    }

    async fn stop(&self, incarnation: Incarnation, grace_ms: u64) -> Result<(), RuntimeError> {
        self.done(Call::Stop { which: incarnation.into(), grace_ms }).await
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.done(Call::Remove { which: incarnation.into() }).await
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        match self.call(Call::List).await?.reply {
            Reply::Found { sandboxes } => Ok(sandboxes.into_iter().map(Found::from).collect()),
            other => Err(unexpected(&other)),
        }
    }

    async fn wait(&self, incarnation: Incarnation) -> Result<Exit, RuntimeError> {
        loop {
            match self.call(Call::Wait { which: incarnation.into() }).await {
                Ok(Answer { reply: Reply::Exit { code, out_of_memory }, .. }) => {
                    return Ok(Exit { code, out_of_memory });
                }
                Ok(other) => return Err(unexpected(&other.reply)),
                // The runner takes no more calls now; about the sandbox this says nothing.
                Err(RuntimeError::Overloaded) => tokio::time::sleep(TRY_AGAIN_AFTER_MAX).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn dial(&self, incarnation: Incarnation, port: u16) -> Result<TcpStream, RuntimeError> {
        let Answer { reply, mut fds, .. } = self.call(Call::Dial { which: incarnation.into(), port }).await?;
        match (reply, fds.pop()) {
            (Reply::Connected, Some(socket)) => {
                let stream = net::TcpStream::from(socket);
                let taken = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                taken.map_err(|error| RuntimeError::Host(format!("take the connection: {error}")))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        match self.call(Call::Check).await?.reply {
            Reply::Findings { findings } => Ok(findings.into_iter().map(Finding::from).collect()),
            other => Err(unexpected(&other)),
        }
    }

    async fn teardown(&self) -> Result<(), RuntimeError> {
        self.done(Call::Teardown).await
    }
}
