//! The runner's side: one call per connection, for root and the node's user only. It trusts the node with its own
//! sandboxes and with nothing of the host: files come open, and folders are checked.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use atoll_api::wire::{decode, encode};
use rustix::fs::{FileType, fstat};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::image::{Digest, Image};
use crate::mount_dir::MountDir;
use crate::remote::order::Order;
use crate::remote::wire::{Call, FoundSandbox, Reply, Request, Said};
use crate::remote::{frames, layer};
use crate::runtime::{Incarnation, LayerTar, Runtime, RuntimeError};

/// A specification's environment is the largest part of a request.
const REQUEST_BYTES_MAX: usize = 2 << 20;
/// From connecting to the end of the request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// For a word to somebody who is not served; it fits into an empty socket.
const REFUSAL_DEADLINE: Duration = Duration::from_millis(100);
/// When there is no descriptor left for one more connection.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Anybody on the host may knock; the log says so only so often.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Folders to be mounted into sandboxes must lie below this one and be `node_uid`'s.
    pub node_dir: PathBuf,
    /// Who may call, beside root.
    pub node_uid: u32,
    /// Calls at once, at least 1. Every running sandbox costs one (its `wait`); one more is told to come later.
    pub connections_max: usize,
}

impl ServeConfig {
    pub fn new(node_dir: PathBuf, node_uid: u32) -> ServeConfig {
        ServeConfig { node_dir, node_uid, connections_max: 4096 }
    }
}

/// Until `cancel`; calls that are under way break off then, and the sandboxes go on.
pub async fn serve(
    listener: UnixListener,
    runtime: Arc<dyn Runtime>,
    config: ServeConfig,
    cancel: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(config.connections_max.max(1)));
    let server = Arc::new(Server { runtime, config, order: Order::default(), refused_at: Mutex::default() });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        if let Err(error) = server.admit(&stream) {
            refuse(&stream, error).await;
            continue;
        }
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            refuse(&stream, RuntimeError::Overloaded).await;
            continue;
        };
        let (server, cancel) = (server.clone(), cancel.clone());
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = server.converse(stream) => {}
            }
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn refuse(stream: &UnixStream, error: RuntimeError) {
    let _ = tokio::time::timeout(REFUSAL_DEADLINE, send(stream, &Reply::Failed(error.into()), None)).await;
}

struct Server {
    runtime: Arc<dyn Runtime>,
    config: ServeConfig,
    order: Order,
    refused_at: Mutex<Option<Instant>>,
}

/// What a call gives, beside words.
enum Given {
    Reply(Reply),
    Connected(OwnedFd),
    Layer(LayerTar),
}

impl Server {
    fn admit(&self, stream: &UnixStream) -> Result<(), RuntimeError> {
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let served = self.config.node_uid;
        match uid {
            Ok(uid) if uid == 0 || uid == served => Ok(()),
            uid => {
                let mut last = self.refused_at.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|last| last.elapsed() > REFUSALS_LOGGED_EVERY) {
                    *last = Some(Instant::now());
                    tracing::warn!(?uid, served, "somebody who is not the node's user was refused");
                }
                Err(RuntimeError::Host(format!(
                    "the runner serves uid {served} and root only: run the node as that user, or let `runtime.node_user` \
                     name this one"
                )))
            }
        }
    }

    async fn converse(&self, stream: UnixStream) {
        if let Err(error) = self.try_converse(&stream).await {
            tracing::debug!(%error, "a call broke off");
        }
    }

    async fn try_converse(&self, stream: &UnixStream) -> io::Result<()> {
        let asked = tokio::time::timeout(REQUEST_DEADLINE, frames::receive(stream, REQUEST_BYTES_MAX)).await;
        let Some(frame) = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else {
            return Ok(());
        };
        let Request { version, call } = match decode(&frame.payload) {
            Ok(request) => request,
            Err(error) => {
                let text = format!(
                    "the runner (version {}) does not understand the node ({error}): run one version of atoll for both",
                    env!("CARGO_PKG_VERSION")
                );
                return send(stream, &Reply::Failed(RuntimeError::Host(text).into()), None).await;
            }
        };
        drop(frame.payload);
        let name = call.name();
        tracing::trace!(name, version, "asked");
        let given = tokio::select! {
            biased;
            () = hung_up(stream) => {
                tracing::debug!(name, "the node no longer wants it");
                return Ok(());
            }
            given = self.perform(call, frame.fds) => given,
        };
        match given {
            Ok(Given::Reply(reply)) => send(stream, &reply, None).await,
            Ok(Given::Connected(socket)) => send(stream, &Reply::Connected, Some(socket)).await,
            Ok(Given::Layer(tar)) => send_layer(stream, tar).await,
            Err(error) => send(stream, &Reply::Failed(error.into()), None).await,
        }
    }

    async fn perform(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Given, RuntimeError> {
        let runtime = &self.runtime;
        if !fds.is_empty() && !matches!(call, Call::Import { .. }) {
            return Err(RuntimeError::Host("a call brought files that it has no use for".into()));
        }
        let _turn = match changed(&call) {
            Some(incarnation) => Some(self.order.turn(incarnation).await),
            None => None,
        };
        let reply = match call {
            Call::Prepare => done(runtime.prepare().await),
            Call::MissingBlobs { image } => {
                Ok(Reply::Blobs { digests: runtime.missing_blobs(&image).await? })
            }
            Call::Import { image, blobs } => done(self.import(image, blobs, fds).await),
            Call::Create { which, spec, image, mount_dir } => {
                let mount_dir = MountDir::beneath(&self.config.node_dir, &mount_dir, self.config.node_uid)?;
                done(runtime.create(which.into(), &spec, &image, &mount_dir).await)
            }
            Call::Start { which } => done(runtime.start(which.into()).await),
            Call::Pause { which } => done(runtime.pause(which.into()).await),
            Call::Resume { which } => done(runtime.resume(which.into()).await),
            Call::Commit { which } => return Ok(Given::Layer(runtime.commit(which.into()).await?)),
            Call::Base { which } => Ok(Reply::Base { image: Box::new(runtime.base(which.into()).await?) }),
            Call::CommitImage { which, name } => {
                Ok(Reply::Kept { image: runtime.commit_image(which.into(), &name).await? })
            }
            Call::SetEgress { which, egress } => done(runtime.set_egress(which.into(), &egress).await),
            Call::Stop { which, grace_ms } => done(runtime.stop(which.into(), grace_ms).await),
            Call::Remove { which } => done(runtime.remove(which.into()).await),
            Call::List => {
                let sandboxes = runtime.list().await?.into_iter().map(FoundSandbox::from).collect();
                Ok(Reply::Found { sandboxes })
            }
            Call::Wait { which } => Ok(Reply::from(runtime.wait(which.into()).await?)),
            Call::Dial { which, port } => {
                let stream = runtime.dial(which.into(), port).await?;
                let socket = stream.into_std().map_err(|error| cannot("hand over a connection", &error))?;
                return Ok(Given::Connected(socket.into()));
            }
            Call::Check => {
                let findings = runtime.check().await?.into_iter().map(Said::from).collect();
                Ok(Reply::Findings { findings })
            }
            Call::Teardown => done(runtime.teardown().await),
        };
        reply.map(Given::Reply)
    }

    async fn import(&self, image: Image, blobs: Vec<Digest>, fds: Vec<OwnedFd>) -> Result<(), RuntimeError> {
        if blobs.len() != fds.len() {
            return Err(RuntimeError::Host(format!("{} files came for {} blobs", fds.len(), blobs.len())));
        }
        for fd in &fds {
            // Reading from anything else may never end.
            let stat = fstat(fd).map_err(|error| cannot("look at a blob", &error.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(RuntimeError::Host("a blob is not a file".into()));
            }
        }
        self.runtime.import(&image, blobs.into_iter().zip(fds.into_iter().map(File::from)).collect()).await
    }
}

/// Which sandbox a call changes, if it does.
fn changed(call: &Call) -> Option<Incarnation> {
    match call {
        Call::Create { which, .. }
        | Call::Start { which }
        | Call::Pause { which }
        | Call::Resume { which }
        | Call::SetEgress { which, .. }
        | Call::Stop { which, .. }
        | Call::Remove { which } => Some((*which).into()),
        Call::Prepare
        | Call::MissingBlobs { .. }
        | Call::Import { .. }
        | Call::Commit { .. }
        | Call::Base { .. }
        | Call::CommitImage { .. }
        | Call::List
        | Call::Wait { .. }
        | Call::Dial { .. }
        | Call::Check
        | Call::Teardown => None,
    }
}

fn done(result: Result<(), RuntimeError>) -> Result<Reply, RuntimeError> {
    result.map(|()| Reply::Done)
}

fn cannot(what: &str, error: &io::Error) -> RuntimeError {
    RuntimeError::Host(format!("the runner cannot {what}: {error}"))
}

async fn send(stream: &UnixStream, reply: &Reply, fd: Option<OwnedFd>) -> io::Result<()> {
    let payload = encode(reply).map_err(io::Error::other)?;
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    tokio::time::timeout(REPLY_DEADLINE, frames::send(stream, &payload, &fds))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn send_layer(stream: &UnixStream, tar: LayerTar) -> io::Result<()> {
    let (read, write) = match layer::pipe() {
        Ok(ends) => ends,
        Err(error) => return send(stream, &Reply::Failed(cannot("make a pipe", &error).into()), None).await,
    };
    send(stream, &Reply::Layer, Some(read)).await?;
    let pumped = tokio::select! {
        biased;
        () = hung_up(stream) => return Ok(()),
        pumped = layer::pump(tar, write) => pumped,
    };
    let last_word = match pumped {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed(RuntimeError::Host(format!("the layer broke off: {error}")).into()),
    };
    send(stream, &last_word, None).await
}

/// Ends when the node has closed its end, or says more than its one request.
async fn hung_up(stream: &UnixStream) {
    let mut byte = [0; 1];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
