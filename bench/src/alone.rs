//! The embedded runtime in this program, without a node: what it is measured by alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use atoll_api::access::Target;
use atoll_api::ids::{Generation, NodeId, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Desired, Egress, Phase, Resources, SandboxSpec};
use atoll_runner::embedded::network::NetworkConfig;
use atoll_runner::embedded::{EmbeddedConfig, EmbeddedRuntime};
use atoll_runner::store::{Store, StoreConfig};
use atoll_runner::{Assignment, ByteStream, Origin, ReportKind, Runner, RunnerConfig, RunnerHandle};
use bytes::Bytes;
use ipnet::Ipv4Net;
use tokio::sync::mpsc;

/// How this program is told to be a runtime's zygote.
pub const ZYGOTE: &str = "zygote";

pub const CPU: u32 = 1;
pub const MEMORY_GIB: u32 = 1;
const DISK_GIB: u32 = 3;
/// More than the one image has.
const LAYERS_BYTES: u64 = 64 << 30;
const PIDS_MAX: u32 = 2048;
const SLOTS_MAX: u16 = 64;
/// Not where `atoll dev` and the runner's tests have theirs.
const FIRST_UID: u32 = 3 << 30;
const NETWORKS: [[u8; 4]; 2] = [[10, 126, 0, 0], [10, 126, 16, 0]];
const NETWORK_BITS: u8 = 20;
/// The first start unpacks the image.
const REPORT_DEADLINE: Duration = Duration::from_secs(120);
const REPORTS_MAX: usize = 64;

/// What the runtimes are made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The static binary of the daemon.
    pub daemon: PathBuf,
    /// An OCI layout, and the image in it.
    pub seed: PathBuf,
    pub image: String,
    pub work_dir: PathBuf,
}

/// One runtime and its runner.
pub struct Alone {
    pub runtime: Arc<EmbeddedRuntime>,
    runner: RunnerHandle,
    reports: mpsc::Receiver<atoll_runner::Report>,
    spec: Arc<SandboxSpec>,
    /// Last, so that it goes when nothing is mounted in it any more.
    _dir: tempfile::TempDir,
}

impl Alone {
    /// Two of them beside each other have different numbers, 0 and 1.
    pub async fn start(parts: &Parts, index: u8, parked: usize) -> Result<Alone> {
        let dir = tempfile::Builder::new().prefix("starts-").tempdir_in(&parts.work_dir)?;
        let node_id = NodeId((u64::from(index) << 60) | (u64::from(std::process::id()) << 32));
        let daemon = std::fs::read(&parts.daemon)
            .with_context(|| format!("read the daemon {}", parts.daemon.display()))?;
        let daemon = Bytes::from(daemon);
        let range = Ipv4Net::new(NETWORKS[usize::from(index)].into(), NETWORK_BITS)?;
        let program = std::env::current_exe().context("find this program")?;
        let config = EmbeddedConfig {
            node_id,
            state_dir: dir.path().join("state"),
            layers_dir: parts.work_dir.join("layers"),
            layers_budget_bytes: LAYERS_BYTES,
            zygote: vec![program.into_os_string(), ZYGOTE.into()],
            daemon_binary: daemon.clone(),
            uid_base: FIRST_UID + u32::from(index) * (u32::from(SLOTS_MAX) << 16),
            network: NetworkConfig { range, ..NetworkConfig::new(node_id) },
            slots_max: SLOTS_MAX,
            pids_max: PIDS_MAX,
            attach_layers: false,
            parked,
        };
        let store = StoreConfig {
            dir: dir.path().join("store"),
            seeds: vec![parts.seed.clone()],
            ..StoreConfig::default()
        };
        let store = Arc::new(Store::open(store).context("open a store of images")?);
        let runtime = Arc::new(EmbeddedRuntime::open(config).context("open the embedded runtime")?);
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let runner = RunnerConfig::new(dir.path().join("data"), daemon);
        let runner = Runner::start(runner, runtime.clone(), store, sender).await?;
        let spec = SandboxSpec {
            snapshot: parts.image.clone(),
            image: parts.image.clone(),
            user: "daytona".into(),
            env: [("ATOLL_BENCH".to_owned(), "yes".to_owned())].into(),
            entrypoint: Vec::new(),
            resources: Resources { cpu: CPU, memory_gib: MEMORY_GIB, disk_gib: DISK_GIB },
            egress: Egress::default(),
            allow_sudo: true,
        };
        Ok(Alone { runtime, runner, reports, spec: Arc::new(spec), _dir: dir })
    }

    /// Ends when the sandbox's daemon has said hello.
    pub async fn bring_up(&mut self, number: usize) -> Result<Assignment> {
        let mut random = [0; 14];
        random[..8].copy_from_slice(&u64::try_from(number)?.to_be_bytes());
        let mut sandbox = Assignment {
            sandbox_id: SandboxId::new(RegionOrdinal::new(0).context("there is a first region")?, random),
            generation: Generation(1),
            spec: self.spec.clone(),
            desired: Desired::Running,
            desired_version: 1,
            phase: Phase::Pending,
            made_by_version: 1,
            capture: None,
            origin: Origin::Asked,
        };
        self.runner.set_wanted(vec![sandbox.clone()]);
        self.until(&sandbox, |kind| match kind {
            ReportKind::Phase(Phase::Failed { reason }) => Some(Err(anyhow::anyhow!("it failed: {reason}"))),
            kind => (*kind == ReportKind::Phase(Phase::Running)).then_some(Ok(())),
        })
        .await?;
        sandbox.phase = Phase::Running;
        Ok(sandbox)
    }

    /// Ends when nothing of it is left.
    pub async fn take_down(&mut self, mut sandbox: Assignment) -> Result<()> {
        sandbox.desired = Desired::Deleted;
        sandbox.desired_version += 1;
        self.runner.set_wanted(vec![sandbox.clone()]);
        self.until(&sandbox, |kind| (*kind == ReportKind::Deleted).then_some(Ok(()))).await?;
        self.runner.set_wanted(Vec::new());
        Ok(())
    }

    /// A connection to its daemon, as a node would have it.
    pub async fn dial(&self, sandbox: &Assignment) -> Result<ByteStream> {
        Ok(self.runner.dial(sandbox.sandbox_id, sandbox.generation, Target::Daemon).await?)
    }

    async fn until(
        &mut self,
        assignment: &Assignment,
        judge: impl Fn(&ReportKind) -> Option<Result<()>>,
    ) -> Result<()> {
        let judged = async {
            while let Some(report) = self.reports.recv().await {
                let ours = report.sandbox_id == assignment.sandbox_id
                    && report.desired_version == assignment.desired_version;
                if let Some(judged) = ours.then(|| judge(&report.kind)).flatten() {
                    return judged;
                }
            }
            anyhow::bail!("the runner has ended")
        };
        tokio::time::timeout(REPORT_DEADLINE, judged).await.context("the runner reports nothing")?
    }

    pub async fn end(self) -> Result<()> {
        self.runner.destroy_all().await.context("remove what the runtime made")
    }
}
