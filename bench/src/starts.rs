//! The embedded runtime without a node: from the specification in hand to the daemon's hello, and where that time goes. Two
//! runtimes take turns: one with inits parked ahead, as nodes have it, and one that makes everything when it is asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use atoll_api::ids::{Generation, NodeId, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Desired, Egress, Phase, Resources, SandboxSpec};
use atoll_runner::embedded::network::NetworkConfig;
use atoll_runner::embedded::{EmbeddedConfig, EmbeddedRuntime, StartTimings};
use atoll_runner::store::{Store, StoreConfig};
use atoll_runner::{Assignment, Origin, ReportKind, Runner, RunnerConfig, RunnerHandle};
use bytes::Bytes;
use ipnet::Ipv4Net;
use tokio::sync::mpsc;

use crate::Effort;
use crate::docker::{self, Engine, Like};
use crate::measure::{Samples, timed};
use crate::report::{Breakdown, Report};

/// How this program is told to be a runtime's zygote.
pub const ZYGOTE: &str = "zygote";

const ROUNDS: usize = 300;
const WARM_UPS: usize = 5;
const REFERENCE_EVERY: usize = 5;
/// As nodes have it by default.
const PARKED: usize = 16;
const CPU: u32 = 1;
const MEMORY_GIB: u32 = 1;
const DISK_GIB: u32 = 3;
/// More than the one image has.
const LAYERS_BYTES: u64 = 64 << 30;
const PIDS_MAX: u32 = 2048;
const SLOTS_MAX: u16 = 64;
/// Not where `atoll dev` and the runner's tests have theirs.
const FIRST_UID: u32 = 3 << 30;
const NETWORKS: [[u8; 4]; 2] = [[10, 126, 0, 0], [10, 126, 16, 0]];
const NETWORK_BITS: u8 = 20;
/// Until what was parked is replaced and what was deleted has gone, so that neither is measured beside a start.
const PAUSE: Duration = Duration::from_millis(60);
/// The first one unpacks the image.
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

/// What one start took.
struct Start {
    hello: Duration,
    timings: StartTimings,
}

/// With an engine, Docker's starts are taken in turn.
pub async fn measure(
    parts: &Parts,
    engine: Option<&Engine>,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut parked = Alone::start(parts, 0, PARKED).await?;
    let mut in_line = match Alone::start(parts, 1, 0).await {
        Ok(in_line) => in_line,
        Err(error) => {
            parked.end().await?;
            return Err(error);
        }
    };
    let measured = compare(&mut parked, &mut in_line, engine, parts, effort, report).await;
    let ended = parked.end().await;
    in_line.end().await.and(ended).and(measured)
}

async fn compare(
    parked: &mut Alone,
    in_line: &mut Alone,
    engine: Option<&Engine>,
    parts: &Parts,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let like = Like::promised(&parts.image, CPU, MEMORY_GIB);
    let (mut ahead, mut all, mut reference) = (vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        for (alone, starts) in [(&mut *parked, &mut ahead), (&mut *in_line, &mut all)] {
            tokio::time::sleep(PAUSE).await;
            let start = alone.live_once(round).await?;
            if counts {
                starts.push(start);
            }
        }
        if let Some(engine) = engine.filter(|_| round % REFERENCE_EVERY == 0) {
            let name = docker::name("start");
            let started = timed(engine.run_detached(&name, &like)).await;
            docker::remove(&name).await?;
            if counts {
                reference.push(started?.0);
            }
        }
    }
    let hellos = |starts: &[Start]| Samples::of_latencies(starts.iter().map(|start| start.hello));
    let what = "the runtime alone: specification in hand → the daemon's hello";
    report.figure(what, &hellos(&ahead)?, "≤ 15 ms");
    report.figure("… when nothing was parked ahead", &hellos(&all)?, "–");
    if engine.is_some() {
        let reference = Samples::of_latencies(reference)?;
        report.compare(
            what,
            &hellos(&ahead)?,
            "create + start by Docker's API, no word from inside",
            &reference,
        );
    }
    report.break_down(breakdown(&ahead, &all)?);
    report.note(format!(
        "The runtime alone: the runner's library in this program, on the disk of the nodes, the daemon and the base image of the \
         nodes; {PARKED} inits and disks parked ahead as nodes do by default, {} ms between two starts. \"Parked ahead\" is what \
         the start waited for; namespaces, network and the rest of an init were made before it.",
        PAUSE.as_millis()
    ));
    Ok(())
}

fn breakdown(ahead: &[Start], all: &[Start]) -> Result<Breakdown> {
    type Part = (&'static str, fn(&Start) -> u64, Spent);
    let steps: [Part; 11] = [
        ("folder and disk", |start| start.timings.create_us, Spent::InStart),
        ("namespaces: clone, ids mapped", |start| start.timings.clone_us, Spent::WithInit),
        ("namespaces: /proc, /sys, /dev furnished", |start| start.timings.furnish_us, Spent::WithInit),
        ("control groups made and entered", |start| start.timings.cgroup_us, Spent::WithInit),
        ("network cable and address", |start| start.timings.network_us, Spent::WithInit),
        ("network rules of this sandbox", |start| start.timings.egress_us, Spent::InStart),
        ("limits written", |start| start.timings.limit_us, Spent::InStart),
        ("disk mounted, /etc written", |start| start.timings.disk_us, Spent::InStart),
        ("overlay stacked", |start| start.timings.mount_us, Spent::InStart),
        ("moved in, capabilities, seccomp, exec", |start| start.timings.exec_us, Spent::InStart),
        ("the daemon's way to its hello, and the runner around all this", Start::rest_us, Spent::InStart),
    ];
    let samples = |starts: &[Start], us: fn(&Start) -> u64| {
        Samples::of_latencies(starts.iter().map(|start| Duration::from_micros(us(start))))
    };
    let mut parts = Vec::new();
    for (name, us, spent) in steps {
        let name = match spent {
            Spent::InStart => name.to_owned(),
            Spent::WithInit => format!("{name} (parked: spent before)"),
        };
        parts.push((name, vec![samples(ahead, us)?, samples(all, us)?]));
    }
    let whole = |starts: &[Start]| Samples::of_latencies(starts.iter().map(|start| start.hello));
    parts.push(("**all that the start waited for**".to_owned(), vec![whole(ahead)?, whole(all)?]));
    let ways = vec!["parked ahead".to_owned(), "nothing parked".to_owned()];
    Ok(Breakdown { what: "step of a start".to_owned(), ways, parts })
}

/// Whose time a step takes.
#[derive(Clone, Copy)]
enum Spent {
    InStart,
    /// Before the start, where inits are parked.
    WithInit,
}

impl Start {
    fn rest_us(&self) -> u64 {
        let known = self.timings.create_us + self.timings.total_us;
        u64::try_from(self.hello.as_micros()).unwrap_or(u64::MAX).saturating_sub(known)
    }
}

/// One runtime and its runner.
struct Alone {
    runtime: Arc<EmbeddedRuntime>,
    runner: RunnerHandle,
    reports: mpsc::Receiver<atoll_runner::Report>,
    spec: Arc<SandboxSpec>,
    /// Last, so that it goes when nothing is mounted in it any more.
    _dir: tempfile::TempDir,
}

impl Alone {
    async fn start(parts: &Parts, index: u8, parked: usize) -> Result<Alone> {
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

    /// A sandbox from its specification to its hello, and then to nothing.
    async fn live_once(&mut self, number: usize) -> Result<Start> {
        let mut random = [0; 14];
        random[..8].copy_from_slice(&u64::try_from(number)?.to_be_bytes());
        let mut assignment = Assignment {
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
        let began = Instant::now();
        self.runner.set_wanted(vec![assignment.clone()]);
        self.until(&assignment, |kind| match kind {
            ReportKind::Phase(Phase::Failed { reason }) => Some(Err(anyhow::anyhow!("it failed: {reason}"))),
            kind => (*kind == ReportKind::Phase(Phase::Running)).then_some(Ok(())),
        })
        .await?;
        let hello = began.elapsed();
        let timings = *self.runtime.start_timings().last().context("the runtime has timed no start")?;

        assignment.phase = Phase::Running;
        assignment.desired = Desired::Deleted;
        assignment.desired_version += 1;
        self.runner.set_wanted(vec![assignment.clone()]);
        self.until(&assignment, |kind| (*kind == ReportKind::Deleted).then_some(Ok(()))).await?;
        self.runner.set_wanted(Vec::new());
        ensure!(timings.create_us > 0, "the create was not timed");
        Ok(Start { hello, timings })
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

    async fn end(self) -> Result<()> {
        self.runner.destroy_all().await.context("remove what the runtime made")
    }
}
