//! [`Runtime`] without an engine.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::NodeId;
use atoll_api::sandbox::{Egress, SandboxSpec};
use bytes::Bytes;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::home::Home;
use super::live::Live;
use super::network::NetworkConfig;
use super::record::{LastExit, MountPlace, Record};
use super::sandbox::Sandbox;
use super::start;
use super::timings::StartTimings;
use crate::handle::blocking;
use crate::image::{Digest, Image};
use crate::mount_dir::MountDir;
use crate::runtime::{Exit, Finding, Found, FoundState, Incarnation, LayerTar, Runtime, RuntimeError};

/// After SIGKILL: the kernel needs a moment for many processes.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    pub node_id: NodeId,
    /// Absolute; the runtime's own, on ext4, xfs or btrfs.
    pub state_dir: PathBuf,
    /// Unpacked layers. Several runtimes of one host may share it.
    pub layers_dir: PathBuf,
    /// Program and arguments that end in [`super::zygote::run`], which gets `state_dir` as one more argument.
    pub zygote: Vec<OsString>,
    /// The static binary that runs inside every sandbox as its first process.
    pub daemon_binary: Bytes,
    /// Sandbox `n` has the 65536 ids from `uid_base + n * 65536` on to itself.
    pub uid_base: u32,
    pub network: NetworkConfig,
    /// Sandboxes that run at once.
    pub slots_max: u16,
    /// Processes and threads of one sandbox.
    pub pids_max: u32,
    /// Stack layers as kernels before 6.15 need it, on newer ones too.
    pub attach_layers: bool,
    /// Inits, and disks, that are kept ready for the next creates.
    pub parked: usize,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    home: Arc<Home>,
    /// One preparation at a time; the first one adopts.
    adopted: tokio::sync::Mutex<bool>,
    sandboxes: Mutex<HashMap<Incarnation, Arc<Sandbox>>>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl EmbeddedRuntime {
    /// Blocks for some milliseconds. Sandboxes that run already are adopted by the first [`Runtime::prepare`].
    ///
    /// Errors: [`RuntimeError::Host`] says what this machine lacks.
    pub fn open(config: EmbeddedConfig) -> Result<EmbeddedRuntime, RuntimeError> {
        let home = Home::open(config)
            .map_err(|error| RuntimeError::Host(format!("cannot run sandboxes on this host: {error}")))?;
        Ok(EmbeddedRuntime {
            shared: Arc::new(Shared {
                home: Arc::new(home),
                adopted: tokio::sync::Mutex::new(false),
                sandboxes: Mutex::default(),
                closing: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        })
    }

    /// Where the time of the last starts went, oldest first.
    pub fn start_timings(&self) -> Vec<StartTimings> {
        self.shared.home.timings.all()
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<Incarnation, Arc<Sandbox>>> {
        self.shared.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self, incarnation: Incarnation) -> Result<Arc<Sandbox>, RuntimeError> {
        self.sandboxes().get(&incarnation).cloned().ok_or(RuntimeError::NotFound)
    }

    fn running(&self, incarnation: Incarnation) -> Result<Arc<Live>, RuntimeError> {
        self.sandbox(incarnation)?.live().ok_or(RuntimeError::NotRunning)
    }

    /// What an earlier process has left: sandboxes that run are watched again, the rest is tidied up.
    async fn adopt(&self) -> Result<(), RuntimeError> {
        let home = self.shared.home.clone();
        let found =
            blocking(move || home.find_sandboxes().map_err(host("read the records of sandboxes"))).await?;
        for (incarnation, sandbox) in found {
            let sandbox = Arc::new(sandbox);
            if let Some(live) = sandbox.live() {
                tokio::spawn(watch(self.shared.home.clone(), sandbox.clone(), live));
            }
            self.sandboxes().insert(incarnation, sandbox);
        }
        let running = self
            .sandboxes()
            .values()
            .filter_map(|sandbox| Some((sandbox.live()?.run.slot, sandbox.record().spec.egress)))
            .collect::<Vec<_>>();
        for (slot, egress) in running {
            self.shared.home.network.set_egress(slot, &egress).await?;
        }
        self.shared.home.pool.release_unused().await?;
        let (home, closing) = (&self.shared.home, &self.shared.closing);
        self.shared.tasks.spawn(home.pool.clone().keep_full(closing.clone()));
        self.shared.tasks.spawn(home.blanks.clone().keep_full(closing.clone()));
        Ok(())
    }

    async fn end(&self, sandbox: &Sandbox, grace: Duration) -> Result<(), RuntimeError> {
        let Some(live) = sandbox.live() else { return Ok(()) };
        // The frozen hear no signal.
        live.cgroup.thaw().map_err(host("thaw a sandbox"))?;
        if !grace.is_zero() {
            live.signal(Signal::TERM);
            if live.ended_within(grace).await {
                return Ok(());
            }
        }
        live.signal(Signal::KILL);
        match live.ended_within(KILL_DEADLINE).await {
            true => Ok(()),
            false => Err(RuntimeError::TimedOut("the kernel does not end a sandbox's processes".into())),
        }
    }
}

/// Until the sandbox has ended; then what it held is given back, and its record says how it ended.
async fn watch(home: Arc<Home>, sandbox: Arc<Sandbox>, live: Arc<Live>) {
    let exit = match live.process_end().await {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!(%error, "cannot watch a sandbox's first process");
            Exit { code: None, out_of_memory: false }
        }
    };
    let last = LastExit { code: exit.code, out_of_memory: exit.out_of_memory };
    let ended = live.clone();
    let noted =
        blocking(move || sandbox.has_ended(&ended, last).map_err(host("note that a sandbox has ended")));
    if let Err(error) = noted.await {
        tracing::error!(%error, "the record of a sandbox that has ended is out of date");
    }
    home.pool.release(live.run.slot).await;
    live.ended.send_replace(Some(exit));
}

#[async_trait]
impl Runtime for EmbeddedRuntime {
    async fn prepare(&self) -> Result<(), RuntimeError> {
        let mut adopted = self.shared.adopted.lock().await;
        self.shared.home.network.prepare().await?;
        if !*adopted {
            self.adopt().await?;
            *adopted = true;
        }
        Ok(())
    }

    async fn missing_blobs(&self, image: &Image) -> Result<Vec<Digest>, RuntimeError> {
        let (home, image) = (self.shared.home.clone(), image.clone());
        blocking(move || Ok(home.layers.missing(&image))).await
    }

    async fn import(&self, image: &Image, blobs: Vec<(Digest, File)>) -> Result<(), RuntimeError> {
        let (home, image) = (self.shared.home.clone(), image.clone());
        blocking(move || {
            for (blob, file) in blobs {
                let layer = image.layers.iter().find(|layer| layer.blob == blob);
                let layer =
                    layer.ok_or_else(|| RuntimeError::Spec(format!("{blob} is no layer of the image")))?;
                home.layers.add(layer, file)?;
            }
            Ok(())
        })
        .await
    }

    async fn create(
        &self,
        incarnation: Incarnation,
        spec: &SandboxSpec,
        image: &Image,
        mount_dir: &MountDir,
    ) -> Result<(), RuntimeError> {
        if self.sandbox(incarnation).is_ok() {
            return Ok(());
        }
        let record = Record {
            spec: spec.clone(),
            image: image.clone(),
            mount_dir: MountPlace::of(mount_dir).map_err(host("find the node's folder"))?,
            run: None,
            last_exit: None,
        };
        let home = self.shared.home.clone();
        let sandbox = blocking(move || home.make_sandbox(incarnation, record)).await?;
        self.sandboxes().entry(incarnation).or_insert_with(|| Arc::new(sandbox));
        Ok(())
    }

    async fn start(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        let _one = sandbox.verb.lock().await;
        if sandbox.live().is_some() {
            return Ok(());
        }
        let home = self.shared.home.clone();
        let live = start::start(&home, &sandbox, incarnation).await?;
        tokio::spawn(watch(home, sandbox.clone(), live));
        Ok(())
    }

    async fn pause(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        let _one = sandbox.verb.lock().await;
        let live = self.running(incarnation)?;
        blocking(move || live.cgroup.freeze().map_err(host("freeze a sandbox"))).await
    }

    async fn resume(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        let _one = sandbox.verb.lock().await;
        let live = self.running(incarnation)?;
        blocking(move || live.cgroup.thaw().map_err(host("thaw a sandbox"))).await
    }

    async fn commit(&self, incarnation: Incarnation) -> Result<LayerTar, RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        let still = match sandbox.live() {
            None => true,
            Some(live) => live.cgroup.is_frozen().map_err(host("look at a sandbox's control group"))?,
        };
        if !still {
            return Err(RuntimeError::Spec("stop or pause the sandbox first".into()));
        }
        let home = self.shared.home.clone();
        blocking(move || home.write_layer(&sandbox)).await
    }

    async fn set_egress(&self, incarnation: Incarnation, egress: &Egress) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        let _one = sandbox.verb.lock().await;
        if let Some(live) = sandbox.live() {
            self.shared.home.network.set_egress(live.run.slot, egress).await?;
        }
        let (held, egress) = (sandbox.clone(), egress.clone());
        blocking(move || {
            held.note(|record| record.spec.egress = egress).map_err(host("note a sandbox's egress"))
        })
        .await
    }

    async fn stop(&self, incarnation: Incarnation, grace_ms: u64) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        let _one = sandbox.verb.lock().await;
        self.end(&sandbox, Duration::from_millis(grace_ms)).await
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(incarnation) else { return Ok(()) };
        let _one = sandbox.verb.lock().await;
        self.end(&sandbox, Duration::ZERO).await?;
        let (home, held) = (self.shared.home.clone(), sandbox.clone());
        blocking(move || home.discard(&held).map_err(host("remove a sandbox's disk"))).await?;
        self.sandboxes().remove(&incarnation);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let state = |sandbox: &Sandbox| match sandbox.live() {
            Some(live) if live.cgroup.is_frozen().unwrap_or(false) => FoundState::Paused,
            Some(_) => FoundState::Running,
            None => FoundState::Stopped { exit_code: sandbox.last_exit().and_then(|exit| exit.code) },
        };
        let found =
            |(i, sandbox): (&Incarnation, &Arc<Sandbox>)| Found { incarnation: *i, state: state(sandbox) };
        Ok(self.sandboxes().iter().map(found).collect())
    }

    async fn wait(&self, incarnation: Incarnation) -> Result<Exit, RuntimeError> {
        let sandbox = self.sandbox(incarnation)?;
        if let Some(live) = sandbox.live() {
            let mut ended = live.ended.subscribe();
            if let Ok(exit) = ended.wait_for(Option::is_some).await {
                return Ok(exit.clone().expect("was waited for"));
            }
        }
        let last = sandbox.last_exit().unwrap_or(LastExit { code: None, out_of_memory: false });
        Ok(Exit { code: last.code, out_of_memory: last.out_of_memory })
    }

    async fn dial(&self, incarnation: Incarnation, port: u16) -> Result<TcpStream, RuntimeError> {
        let live = self.running(incarnation)?;
        self.shared.home.namespaces.connect(&live.inside, port).await
    }

    async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        let mut findings = self.shared.home.check();
        findings.extend(self.shared.home.network.check().await?);
        Ok(findings)
    }

    async fn teardown(&self) -> Result<(), RuntimeError> {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let all: Vec<Incarnation> = self.sandboxes().keys().copied().collect();
        let removals = all.into_iter().map(|incarnation| self.remove(incarnation));
        futures_util::future::try_join_all(removals).await?;
        let home = self.shared.home.clone();
        home.pool.drain().await;
        home.network.teardown().await?;
        blocking(move || home.teardown().map_err(host("remove what the runtime made on this host"))).await
    }
}

/// The operator must act.
pub(super) fn host(what: &str) -> impl FnOnce(io::Error) -> RuntimeError + use<> {
    let what = what.to_owned();
    move |error| RuntimeError::Host(format!("cannot {what}: {error}"))
}

pub(super) fn ensure_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}
