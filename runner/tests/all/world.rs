//! What tests of the runner share: sandboxes by small numbers, a wanted list, and reports that can be waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use atoll_api::ids::{Generation, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Desired, Phase, Resources, SandboxSpec};
use atoll_runner::{
    Assignment, CaptureWish, EngineImages, ImageSource, Incarnation, Kept, Origin, Report, ReportKind,
    Runner, RunnerConfig, RunnerHandle, Runtime, RuntimeError,
};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Longer than anything here may take; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub runner: RunnerHandle,
    pub wanted: BTreeMap<u8, Assignment>,
    reports: mpsc::Receiver<Report>,
}

pub fn sandbox(number: u8) -> SandboxId {
    SandboxId::new(RegionOrdinal::new(0).unwrap(), [number; 14])
}

pub fn incarnation(number: u8, generation: u64) -> Incarnation {
    Incarnation { sandbox_id: sandbox(number), generation: Generation(generation) }
}

pub fn spec(image: &str) -> SandboxSpec {
    SandboxSpec {
        snapshot: "test".into(),
        image: image.into(),
        user: "root".into(),
        env: BTreeMap::new(),
        entrypoint: Vec::new(),
        resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 },
        egress: Default::default(),
        allow_sudo: true,
    }
}

impl World {
    pub async fn start(config: RunnerConfig, runtime: Arc<dyn Runtime>) -> Result<World, RuntimeError> {
        World::start_with(config, runtime, Arc::new(EngineImages::default())).await
    }

    pub async fn start_with(
        config: RunnerConfig,
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn ImageSource>,
    ) -> Result<World, RuntimeError> {
        let (sender, reports) = mpsc::channel(1024);
        let runner = Runner::start(config, runtime, images, sender).await?;
        Ok(World { runner, wanted: BTreeMap::new(), reports })
    }

    /// A sandbox of generation 1 that was just placed here.
    pub fn place(&mut self, number: u8, spec: SandboxSpec) {
        self.place_as(number, 1, spec, Desired::Running, Phase::Pending);
    }

    pub fn place_as(
        &mut self,
        number: u8,
        generation: u64,
        spec: SandboxSpec,
        desired: Desired,
        phase: Phase,
    ) {
        let assignment = Assignment {
            sandbox_id: sandbox(number),
            generation: Generation(generation),
            spec: Arc::new(spec),
            desired,
            desired_version: 1,
            phase,
            made_by_version: 1,
            capture: None,
            origin: Origin::Asked,
        };
        self.wanted.insert(number, assignment);
        self.tell();
    }

    pub fn wish(&mut self, number: u8, desired: Desired) {
        let assignment = self.wanted.get_mut(&number).unwrap();
        assignment.desired = desired;
        assignment.desired_version += 1;
        self.tell();
    }

    pub fn tell(&self) {
        self.runner.set_wanted(self.wanted.values().cloned().collect());
    }

    /// Takes reports, as the node's records would, until the newest wish of the sandbox is at this one.
    pub async fn until(&mut self, number: u8, expected: impl Fn(&ReportKind) -> bool) -> ReportKind {
        let runner = self.runner.clone();
        let waiting = async {
            loop {
                let report = self.reports.recv().await.expect("the runner runs");
                let version = self.record(&report);
                let newest = version == Some(report.desired_version) && report.sandbox_id == sandbox(number);
                if newest && expected(&report.kind) {
                    return report.kind;
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        let phase = self.wanted.get(&number).map(|assignment| assignment.phase.clone());
        waited.unwrap_or_else(|_| {
            panic!("sandbox {number} never came so far: {phase:?}, {:?}", runner.status())
        })
    }

    /// Takes reports until each of the sandboxes 1 to `count` has been there.
    pub async fn until_all(&mut self, count: u8, expected: impl Fn(&ReportKind) -> bool) {
        let mut waiting: std::collections::BTreeSet<u8> = (1..=count).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !waiting.is_empty() {
            let report = tokio::time::timeout_at(deadline, self.reports.recv()).await;
            let report =
                report.unwrap_or_else(|_| panic!("never came so far: {waiting:?}")).expect("the runner runs");
            let version = self.record(&report);
            if version == Some(report.desired_version) && expected(&report.kind) {
                waiting.retain(|number| sandbox(*number) != report.sandbox_id);
            }
        }
    }

    pub async fn until_running(&mut self, number: u8) {
        self.until(number, |kind| *kind == ReportKind::Phase(Phase::Running)).await;
    }

    pub async fn until_stopped(&mut self, number: u8) {
        self.until(number, |kind| *kind == ReportKind::Phase(Phase::Stopped)).await;
    }

    pub async fn until_failed(&mut self, number: u8) -> String {
        match self.until(number, |kind| matches!(kind, ReportKind::Phase(Phase::Failed { .. }))).await {
            ReportKind::Phase(Phase::Failed { reason }) => reason,
            other => unreachable!("{other:?}"),
        }
    }

    /// Either, with the reason for the second.
    pub async fn until_running_or_failed(&mut self, number: u8) -> Result<(), String> {
        let settled =
            |kind: &ReportKind| matches!(kind, ReportKind::Phase(Phase::Running | Phase::Failed { .. }));
        match self.until(number, settled).await {
            ReportKind::Phase(Phase::Failed { reason }) => Err(reason),
            _ => Ok(()),
        }
    }

    pub async fn until_deleted(&mut self, number: u8) {
        self.until(number, |kind| *kind == ReportKind::Deleted).await;
        self.wanted.remove(&number);
        self.tell();
    }

    pub fn wants_capture(&mut self, number: u8, capture: u64) {
        let wish = CaptureWish { number: capture, name: "atoll.internal/o/s".into() };
        self.wanted.get_mut(&number).unwrap().capture = Some(wish);
        self.tell();
    }

    pub async fn until_captured(&mut self, number: u8) -> Result<Kept, String> {
        match self.until(number, |kind| matches!(kind, ReportKind::Captured { .. })).await {
            ReportKind::Captured { result, .. } => result,
            other => unreachable!("{other:?}"),
        }
    }

    fn record(&mut self, report: &Report) -> Option<u64> {
        let assignment = self
            .wanted
            .values_mut()
            .find(|a| a.sandbox_id == report.sandbox_id && a.generation == report.generation)?;
        if let ReportKind::Phase(phase) = &report.kind
            && assignment.desired_version == report.desired_version
        {
            assignment.phase = phase.clone();
        }
        let version = assignment.desired_version;
        self.tell();
        Some(version)
    }
}

/// Another one for each caller in this process, whichever module it is compiled into.
pub fn next_number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let number = next_number();
        // Short, as there are sockets in it.
        let path = std::env::temp_dir().join(format!("atoll-rt-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn config(&self, daemon_binary: impl Into<Bytes>) -> RunnerConfig {
        RunnerConfig::new(self.0.join("data"), daemon_binary.into())
    }

    pub fn sandbox_folders(&self) -> usize {
        std::fs::read_dir(self.0.join("data/sandboxes")).map_or(0, |entries| entries.count())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// For what is pushed to nobody: asks until it is so.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}
