//! [`Runtime`] without an engine.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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
const NO_WALLS: &str =
    "the rules of the sandboxes' network are not in place (`atoll doctor` says what this machine lacks)";

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
    /// Unpacked layers that no sandbox needs are removed, least recently used first, while all of them take more.
    pub layers_budget_bytes: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    home: Arc<Home>,
    /// Set once the records of earlier processes have been read. Until then nobody is told that a sandbox is not here.
    found: tokio::sync::OnceCell<()>,
    /// One preparation at a time; whether the pools are kept full already.
    settled: tokio::sync::Mutex<bool>,
    /// Whether the network's rules were in place when they were last looked at.
    walls_stand: AtomicBool,
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
                found: tokio::sync::OnceCell::new(),
                settled: tokio::sync::Mutex::default(),
                walls_stand: AtomicBool::new(false),
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

    async fn sandbox(&self, incarnation: Incarnation) -> Result<Arc<Sandbox>, RuntimeError> {
        self.find().await?;
        self.sandboxes().get(&incarnation).cloned().ok_or(RuntimeError::NotFound)
    }

    async fn running(&self, incarnation: Incarnation) -> Result<Arc<Live>, RuntimeError> {
        self.sandbox(incarnation).await?.live().ok_or(RuntimeError::NotRunning)
    }

    /// The sandboxes that an earlier process has left; those that run are watched again. Needs no network.
    async fn find(&self) -> Result<(), RuntimeError> {
        let look = || async {
            let home = self.shared.home.clone();
            let found =
                blocking(move || home.find_sandboxes().map_err(host("read the records of sandboxes")));
            for (incarnation, sandbox) in found.await? {
                let sandbox = Arc::new(sandbox);
                if let Some(live) = sandbox.live() {
                    tokio::spawn(watch(self.shared.home.clone(), sandbox.clone(), live));
                }
                self.sandboxes().insert(incarnation, sandbox);
            }
            Ok(())
        };
        self.shared.found.get_or_try_init(look).await.map(drop)
    }

    /// What an earlier process has left beside sandboxes is tidied up, and pools are kept full from now on.
    async fn settle_in(&self) -> Result<(), RuntimeError> {
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

    async fn collect_layers(&self) -> Result<(), RuntimeError> {
        let records: Vec<_> = self.sandboxes().values().map(|sandbox| sandbox.record()).collect();
        let used = records.iter().flat_map(|record| record.image.layers.iter().map(|layer| layer.diff_id));
        let (home, used) = (self.shared.home.clone(), used.collect());
        blocking(move || home.collect_layers(&used)).await
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
        self.find().await?;
        let mut settled = self.shared.settled.lock().await;
        let walls = self.shared.home.network.prepare().await;
        self.shared.walls_stand.store(walls.is_ok(), Ordering::Release);
        walls?;
        if !*settled {
            self.settle_in().await?;
            *settled = true;
        }
        drop(settled);
        self.collect_layers().await
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
        match self.sandbox(incarnation).await {
            Err(RuntimeError::NotFound) => {}
            found => return found.map(drop),
        }
        let record = Record {
            spec: spec.clone(),
            image: image.clone(),
            mount_dir: MountPlace::of(mount_dir).map_err(host("find the node's folder"))?,
            run: None,
            last_exit: None,
        };
        // Known as soon as it is there: a caller that goes away in the middle leaves what can be found and removed.
        let runtime = self.clone();
        blocking(move || {
            let sandbox = runtime.shared.home.make_sandbox(incarnation, record)?;
            runtime.sandboxes().entry(incarnation).or_insert_with(|| Arc::new(sandbox));
            Ok(())
        })
        .await
    }

    async fn start(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let (shared, sandbox) = (self.shared.clone(), self.sandbox(incarnation).await?);
        // To its end also when the caller goes away in the middle: nobody would watch what has begun.
        let starting = tokio::spawn(async move {
            let _one = sandbox.verb.lock().await;
            if sandbox.live().is_some() {
                return Ok(());
            }
            if !shared.walls_stand.load(Ordering::Acquire) {
                return Err(RuntimeError::Host(NO_WALLS.into()));
            }
            let live = start::start(&shared.home, &sandbox, incarnation).await?;
            tokio::spawn(watch(shared.home.clone(), sandbox.clone(), live));
            Ok(())
        });
        starting.await.unwrap_or_else(|error| Err(RuntimeError::Host(format!("a start broke off: {error}"))))
    }

    async fn pause(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation).await?;
        let _one = sandbox.verb.lock().await;
        let live = self.running(incarnation).await?;
        blocking(move || live.cgroup.freeze().map_err(host("freeze a sandbox"))).await
    }

    async fn resume(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation).await?;
        let _one = sandbox.verb.lock().await;
        let live = self.running(incarnation).await?;
        blocking(move || live.cgroup.thaw().map_err(host("thaw a sandbox"))).await
    }

    async fn commit(&self, incarnation: Incarnation) -> Result<LayerTar, RuntimeError> {
        let sandbox = self.sandbox(incarnation).await?;
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

    async fn base(&self, incarnation: Incarnation) -> Result<Image, RuntimeError> {
        Ok(self.sandbox(incarnation).await?.record().image)
    }

    async fn set_egress(&self, incarnation: Incarnation, egress: &Egress) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(incarnation).await?;
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
        let sandbox = self.sandbox(incarnation).await?;
        let _one = sandbox.verb.lock().await;
        self.end(&sandbox, Duration::from_millis(grace_ms)).await
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        let sandbox = match self.sandbox(incarnation).await {
            Err(RuntimeError::NotFound) => return Ok(()),
            sandbox => sandbox?,
        };
        let _one = sandbox.verb.lock().await;
        self.end(&sandbox, Duration::ZERO).await?;
        let (home, held) = (self.shared.home.clone(), sandbox.clone());
        blocking(move || home.discard(&held).map_err(host("remove a sandbox's disk"))).await?;
        self.sandboxes().remove(&incarnation);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        self.find().await?;
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
        let sandbox = self.sandbox(incarnation).await?;
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
        let live = self.running(incarnation).await?;
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
        self.find().await?;
        self.shared.home.pool.release_unused().await?;
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
