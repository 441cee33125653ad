//! A runtime without containers, for tests of everything above it. Same trait, same failure modes: it can be slow,
//! fail, lose sandboxes, run out of memory, or have a daemon that never speaks; it reads the mount that the runner
//! prepared and says hello over the real socket.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::DAEMON_PORT;
use atoll_api::daemon::{DaemonConfig, Hello, Identity, PREAMBLE_BYTES, owner_preamble, preamble};
use atoll_api::sandbox::{Egress, SandboxSpec};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::image::{Digest, Image};
use crate::mount_dir::MountDir;
use crate::runtime::{Exit, Finding, Found, FoundState, Incarnation, LayerTar, Runtime, RuntimeError};

/// What stands behind a port of every sandbox. It gets the raw stream; on [`DAEMON_PORT`] the preamble has been read
/// and was right.
pub type Handler = Arc<dyn Fn(Incarnation, TcpStream) -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FakeVerb {
    Prepare,
    MissingBlobs,
    Import,
    Create,
    Start,
    Pause,
    Resume,
    Commit,
    SetEgress,
    Stop,
    Remove,
    List,
    Dial,
    Teardown,
}

/// What a verb does instead of working, until it is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Error(RuntimeError),
    /// Works, later.
    Delay(Duration),
    /// Never answers. What it was to do happens not.
    Hang,
}

/// What the daemon does after a start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FakeDaemon {
    #[default]
    SaysHello,
    Silent,
    SaysHelloWithWrongSecret,
    Exits(Exit),
}

/// What a commit gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeLayer {
    Whole(Bytes),
    /// An error comes after these.
    BreaksOff(Bytes),
}

impl Default for FakeLayer {
    /// An empty tar: two blocks of zeros.
    fn default() -> FakeLayer {
        FakeLayer::Whole(Bytes::from_static(&[0; 1024]))
    }
}

/// Shared: a clone is the same host, so a second runner on a clone finds what the first has left.
#[derive(Clone, Default)]
pub struct FakeRuntime {
    host: Arc<Mutex<Host>>,
}

#[derive(Default)]
struct Host {
    sandboxes: BTreeMap<Incarnation, FakeSandbox>,
    layers: BTreeSet<Digest>,
    faults: HashMap<FakeVerb, Fault>,
    daemon: FakeDaemon,
    handlers: HashMap<u16, Handler>,
    layer: FakeLayer,
    calls: Vec<(FakeVerb, Option<Incarnation>)>,
}

struct FakeSandbox {
    spec: SandboxSpec,
    image: Image,
    mount_dir: PathBuf,
    paused: bool,
    /// `Some` while it runs.
    config: Option<DaemonConfig>,
    last_exit: Option<Exit>,
    /// Grows with every start and every end.
    changes: watch::Sender<u64>,
}

impl FakeRuntime {
    pub fn new() -> FakeRuntime {
        FakeRuntime::default()
    }

    pub fn set_fault(&self, verb: FakeVerb, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.host().faults.insert(verb, fault),
            None => self.host().faults.remove(&verb),
        };
    }

    pub fn set_layer(&self, layer: FakeLayer) {
        self.host().layer = layer;
    }

    pub fn set_daemon(&self, daemon: FakeDaemon) {
        self.host().daemon = daemon;
    }

    /// Puts a program behind a port of every sandbox. The daemon's port answers `200` to everything by default.
    pub fn serve(&self, port: u16, handler: Handler) {
        self.host().handlers.insert(port, handler);
    }

    /// The sandbox's first process ends by itself.
    pub fn end(&self, incarnation: Incarnation, exit: Exit) {
        if let Some(sandbox) = self.host().sandboxes.get_mut(&incarnation) {
            sandbox.end(exit);
        }
    }

    /// Somebody removes it behind the runner's back.
    pub fn vanish(&self, incarnation: Incarnation) {
        self.host().sandboxes.remove(&incarnation);
    }

    /// A container of this node that is there already, with nothing but its name.
    pub fn plant(&self, incarnation: Incarnation, spec: SandboxSpec) {
        self.host().sandboxes.insert(incarnation, FakeSandbox::new(spec, PathBuf::new()));
    }

    pub fn existing(&self) -> Vec<Incarnation> {
        self.host().sandboxes.keys().copied().collect()
    }

    pub fn is_paused(&self, incarnation: Incarnation) -> bool {
        self.host().sandboxes.get(&incarnation).is_some_and(|sandbox| sandbox.paused)
    }

    /// What it was made from.
    pub fn image(&self, incarnation: Incarnation) -> Option<Image> {
        self.host().sandboxes.get(&incarnation).map(|sandbox| sandbox.image.clone())
    }

    pub fn is_running(&self, incarnation: Incarnation) -> bool {
        self.host().sandboxes.get(&incarnation).is_some_and(|sandbox| sandbox.config.is_some())
    }

    pub fn spec(&self, incarnation: Incarnation) -> Option<SandboxSpec> {
        self.host().sandboxes.get(&incarnation).map(|sandbox| sandbox.spec.clone())
    }

    /// How often a verb was asked for, whatever came of it.
    pub fn calls(&self, verb: FakeVerb) -> usize {
        self.host().calls.iter().filter(|(called, _)| *called == verb).count()
    }

    /// What the daemon of a running sandbox has been told, at its start or since.
    pub fn identity(&self, incarnation: Incarnation) -> Option<Identity> {
        let host = self.host();
        let config = host.sandboxes.get(&incarnation)?.config.as_ref()?;
        Some(Identity { user: config.user.clone(), env: config.env.clone() })
    }

    /// As the real daemon does; the image knows every user but `ghost`.
    async fn take_identity(&self, incarnation: Incarnation, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut chunk = [0u8; 4096];
        let identity: Identity = loop {
            match stream.read(&mut chunk).await {
                Ok(count) if count > 0 => request.extend_from_slice(&chunk[..count]),
                _ => return,
            }
            let body =
                request.windows(4).position(|window| window == b"\r\n\r\n").map(|head| &request[head + 4..]);
            if let Some(Ok(identity)) = body.map(serde_json::from_slice) {
                break identity;
            }
        };
        let answer = if identity.user == "ghost" {
            "HTTP/1.1 422 Unprocessable Entity\r\nConnection: close\r\n\r\nthe image has no user \"ghost\""
        } else {
            if let Ok(FakeSandbox { config: Some(config), .. }) = self.host().running(incarnation) {
                config.user = identity.user;
                config.env = identity.env;
            }
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(&self, verb: FakeVerb, incarnation: Option<Incarnation>) -> Result<(), RuntimeError> {
        let fault = {
            let mut host = self.host();
            host.calls.push((verb, incarnation));
            host.faults.get(&verb).cloned()
        };
        match fault {
            None => Ok(()),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Some(Fault::Hang) => std::future::pending().await,
        }
    }
}

impl Host {
    fn running(&mut self, incarnation: Incarnation) -> Result<&mut FakeSandbox, RuntimeError> {
        let sandbox = self.sandboxes.get_mut(&incarnation).ok_or(RuntimeError::NotFound)?;
        if sandbox.config.is_some() { Ok(sandbox) } else { Err(RuntimeError::NotRunning) }
    }
}

impl FakeSandbox {
    fn new(spec: SandboxSpec, mount_dir: PathBuf) -> FakeSandbox {
        FakeSandbox {
            image: Image::named(&spec.image),
            spec,
            mount_dir,
            paused: false,
            config: None,
            last_exit: None,
            changes: watch::channel(0).0,
        }
    }

    fn end(&mut self, exit: Exit) {
        self.paused = false;
        if self.config.take().is_some() {
            self.last_exit = Some(exit);
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn prepare(&self) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Prepare, None).await
    }

    async fn missing_blobs(&self, image: &Image) -> Result<Vec<Digest>, RuntimeError> {
        self.enter(FakeVerb::MissingBlobs, None).await?;
        let host = self.host();
        let missing = image.layers.iter().filter(|layer| !host.layers.contains(&layer.diff_id));
        Ok(missing.map(|layer| layer.blob).collect())
    }

    async fn import(&self, image: &Image, blobs: Vec<(Digest, File)>) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Import, None).await?;
        for (digest, file) in &blobs {
            let mut content = Vec::new();
            (&*file)
                .read_to_end(&mut content)
                .map_err(|error| RuntimeError::Host(format!("cannot read the blob {digest}: {error}")))?;
            if Digest::new(Sha256::digest(&content).into()) != *digest {
                return Err(RuntimeError::Spec(format!("the blob {digest} holds something else")));
            }
        }
        let given: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let imported = image.layers.iter().filter(|layer| given.contains(&layer.blob));
        self.host().layers.extend(imported.map(|layer| layer.diff_id));
        Ok(())
    }

    async fn create(
        &self,
        incarnation: Incarnation,
        spec: &SandboxSpec,
        image: &Image,
        mount_dir: &MountDir,
    ) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Create, Some(incarnation)).await?;
        let fresh = || FakeSandbox {
            image: image.clone(),
            ..FakeSandbox::new(spec.clone(), mount_dir.path().to_owned())
        };
        self.host().sandboxes.entry(incarnation).or_insert_with(fresh);
        Ok(())
    }

    async fn start(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Start, Some(incarnation)).await?;
        let (daemon, config, socket) = {
            let mut host = self.host();
            let daemon = host.daemon.clone();
            let sandbox = host.sandboxes.get_mut(&incarnation).ok_or(RuntimeError::NotFound)?;
            if sandbox.config.is_some() {
                return Ok(());
            }
            let run = sandbox.mount_dir.join("run");
            let config = std::fs::read(run.join("config.json"))
                .ok()
                .and_then(|json| serde_json::from_slice::<DaemonConfig>(&json).ok())
                .ok_or_else(|| RuntimeError::Host("the mount holds no configuration".into()))?;
            sandbox.config = Some(config.clone());
            sandbox.changes.send_modify(|count| *count += 1);
            (daemon, config, run.join("hello.sock"))
        };
        let secret = match daemon {
            FakeDaemon::SaysHello => config.secret,
            FakeDaemon::SaysHelloWithWrongSecret => "0".repeat(64),
            FakeDaemon::Silent => return Ok(()),
            FakeDaemon::Exits(exit) => {
                self.end(incarnation, exit);
                return Ok(());
            }
        };
        let hello = Hello { sandbox_id: config.sandbox_id, secret, version: "fake".into() };
        let mut line = serde_json::to_vec(&hello).expect("strings are always JSON");
        line.push(b'\n');
        let said = async {
            let mut stream = tokio::net::UnixStream::connect(&socket).await?;
            stream.write_all(&line).await
        };
        said.await.map_err(|error| RuntimeError::Host(format!("cannot say hello: {error}")))
    }

    async fn pause(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Pause, Some(incarnation)).await?;
        self.host().running(incarnation)?.paused = true;
        Ok(())
    }

    async fn resume(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Resume, Some(incarnation)).await?;
        self.host().running(incarnation)?.paused = false;
        Ok(())
    }

    async fn commit(&self, incarnation: Incarnation) -> Result<LayerTar, RuntimeError> {
        self.enter(FakeVerb::Commit, Some(incarnation)).await?;
        let host = self.host();
        let sandbox = host.sandboxes.get(&incarnation).ok_or(RuntimeError::NotFound)?;
        if sandbox.config.is_some() && !sandbox.paused {
            return Err(RuntimeError::Spec("stop or pause the sandbox first".into()));
        }
        Ok(match host.layer.clone() {
            FakeLayer::Whole(bytes) => Box::new(Cursor::new(bytes)),
            FakeLayer::BreaksOff(bytes) => {
                let broken = tokio_util::io::StreamReader::new(futures_util::stream::iter([
                    Ok(bytes),
                    Err(std::io::Error::other("the disk is gone")),
                ]));
                Box::new(broken)
            }
        })
    }

    async fn base(&self, incarnation: Incarnation) -> Result<Image, RuntimeError> {
        let host = self.host();
        Ok(host.sandboxes.get(&incarnation).ok_or(RuntimeError::NotFound)?.image.clone())
    }

    async fn set_egress(&self, incarnation: Incarnation, egress: &Egress) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::SetEgress, Some(incarnation)).await?;
        let mut host = self.host();
        let sandbox = host.sandboxes.get_mut(&incarnation).ok_or(RuntimeError::NotFound)?;
        sandbox.spec.egress = egress.clone();
        Ok(())
    }

    async fn stop(&self, incarnation: Incarnation, _grace_ms: u64) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Stop, Some(incarnation)).await?;
        let mut host = self.host();
        let sandbox = host.sandboxes.get_mut(&incarnation).ok_or(RuntimeError::NotFound)?;
        sandbox.end(Exit { code: Some(143), out_of_memory: false });
        Ok(())
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Remove, Some(incarnation)).await?;
        self.host().sandboxes.remove(&incarnation);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        self.enter(FakeVerb::List, None).await?;
        let state = |sandbox: &FakeSandbox| match (&sandbox.config, &sandbox.last_exit) {
            (Some(_), _) if sandbox.paused => FoundState::Paused,
            (Some(_), _) => FoundState::Running,
            (None, exit) => FoundState::Stopped { exit_code: exit.as_ref().and_then(|exit| exit.code) },
        };
        let host = self.host();
        let found =
            host.sandboxes.iter().map(|(i, sandbox)| Found { incarnation: *i, state: state(sandbox) });
        Ok(found.collect())
    }

    async fn wait(&self, incarnation: Incarnation) -> Result<Exit, RuntimeError> {
        loop {
            let mut changes = {
                let host = self.host();
                let sandbox = host.sandboxes.get(&incarnation).ok_or(RuntimeError::NotFound)?;
                if sandbox.config.is_none() {
                    return Ok(sandbox
                        .last_exit
                        .clone()
                        .unwrap_or(Exit { code: None, out_of_memory: false }));
                }
                sandbox.changes.subscribe()
            };
            // An error means that the sandbox is gone, which the next round finds out.
            let _ = changes.changed().await;
        }
    }

    async fn dial(&self, incarnation: Incarnation, port: u16) -> Result<TcpStream, RuntimeError> {
        self.enter(FakeVerb::Dial, Some(incarnation)).await?;
        let (config, handler) = {
            let host = self.host();
            let sandbox = host.sandboxes.get(&incarnation).ok_or(RuntimeError::NotFound)?;
            let config = sandbox.config.clone().ok_or(RuntimeError::NotRunning)?;
            (config, host.handlers.get(&port).cloned())
        };
        if port != DAEMON_PORT && handler.is_none() {
            return Err(RuntimeError::Refused);
        }
        let (ours, mut theirs) = connected()
            .await
            .map_err(|error| RuntimeError::Host(format!("cannot make a connection: {error}")))?;
        match (port, handler) {
            (DAEMON_PORT, handler) => {
                let expected = preamble(&config.secret);
                let owners = owner_preamble(&config.secret);
                let handler = handler.unwrap_or_else(|| Arc::new(|_, stream| Box::pin(answer_ok(stream))));
                let runtime = self.clone();
                tokio::spawn(async move {
                    let mut shown = [0u8; PREAMBLE_BYTES];
                    if theirs.read_exact(&mut shown).await.is_err() {
                        return;
                    }
                    if shown == *expected.as_bytes() {
                        handler(incarnation, theirs).await;
                    } else if shown == *owners.as_bytes() {
                        runtime.take_identity(incarnation, theirs).await;
                    }
                });
            }
            (_, Some(handler)) => {
                tokio::spawn(handler(incarnation, theirs));
            }
            (_, None) => unreachable!("refused above"),
        }
        Ok(ours)
    }

    async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        let faults = self.host().faults.clone();
        let found =
            |(verb, fault): (&FakeVerb, &Fault)| Finding::Fault(format!("{verb:?} is set to {fault:?}"));
        Ok(faults.iter().map(found).collect())
    }

    async fn teardown(&self) -> Result<(), RuntimeError> {
        self.enter(FakeVerb::Teardown, None).await?;
        self.host().sandboxes.clear();
        Ok(())
    }
}

/// Both ends of a connection over the host's loopback.
async fn connected() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let ours = TcpStream::connect(listener.local_addr()?).await?;
    loop {
        let (theirs, from) = listener.accept().await?;
        // Anybody on the host may connect in between.
        if from == ours.local_addr()? {
            return Ok((ours, theirs));
        }
    }
}

/// Answers one request, whatever it asks, and hangs up.
async fn answer_ok(mut stream: TcpStream) {
    let mut request = [0u8; 4096];
    if stream.read(&mut request).await.is_ok_and(|count| count > 0) {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(answer).await;
    }
}
