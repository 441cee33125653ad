//! The door to the runner: what the rest of the node holds. Everything behind it belongs to one task.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Target;
use atoll_api::ids::{Generation, SandboxId};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actor::{Actor, WantedList};
use crate::assignment::{Assignment, Report};
use crate::dialing::{Doors, NotGranted};
use crate::image::ImageSource;
use crate::mount::Mounts;
use crate::operations::Operations;
use crate::reconcile::{Counts, PROVIDE_DEADLINE, Reconciler};
use crate::runtime::{ByteStream, Finding, Incarnation, Runtime, RuntimeError};

/// For everything a start does before sandboxes: engine, network, rules, list.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
pub const TEARDOWN_DEADLINE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// Absolute. `sandboxes/` and `daemon/` below it are the runner's. Must be on a file system that may execute.
    pub data_dir: PathBuf,
    /// The static binary that runs inside every sandbox as its first process.
    pub daemon_binary: Bytes,
    /// Creates, starts, stops and removals at once, at least 1. More only make each other slower.
    pub operations_max: usize,
    /// Connections into one sandbox at once; one more is answered with [`RunnerDialError::Overloaded`].
    pub connections_per_sandbox_max: usize,
    /// For one dial, preamble included.
    pub dial_deadline: Duration,
}

impl RunnerConfig {
    pub fn new(data_dir: PathBuf, daemon_binary: Bytes) -> RunnerConfig {
        RunnerConfig {
            data_dir,
            daemon_binary,
            operations_max: 16,
            connections_per_sandbox_max: 1024,
            dial_deadline: Duration::from_secs(10),
        }
    }
}

/// Why a dial failed, by who must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunnerDialError {
    /// The sandbox is not placed on this node, or the caller knows of a newer placement than this node does.
    #[error("the sandbox is not on this node")]
    NotHere,
    /// The caller's placement is older than this node's.
    #[error("the sandbox has moved on to generation {current}")]
    Stale { current: Generation },
    #[error("the sandbox is not running")]
    NotRunning,
    /// Nobody listens on the port inside.
    #[error("nothing listens on that port of the sandbox")]
    PortClosed,
    #[error("the sandbox did not take the connection in time")]
    TimedOut,
    #[error("too many connections to the sandbox are open")]
    Overloaded,
    /// The operator must act.
    #[error("{0}")]
    Host(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RunnerStatus {
    pub counts: Counts,
    /// What keeps the runtime from working, as of the last look (every half minute); `None` when all is well.
    pub host_problem: Option<String>,
}

/// The maker of [`RunnerHandle`]s.
#[derive(Debug)]
pub struct Runner;

impl Runner {
    /// Prepares the host, finds what runs already, and begins as soon as the first wanted list is there.
    /// `reports` may be small: what does not fit is said again.
    ///
    /// Errors: [`RuntimeError::Host`] with what the operator must do; nothing runs then.
    pub async fn start(
        config: RunnerConfig,
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn ImageSource>,
        reports: mpsc::Sender<Report>,
    ) -> Result<RunnerHandle, RuntimeError> {
        let mounts = {
            let (data_dir, binary) = (config.data_dir.clone(), config.daemon_binary.clone());
            blocking(move || Mounts::open(&data_dir, &binary)).await?
        };
        let prepared = async {
            runtime.prepare().await?;
            runtime.list().await
        };
        let found = tokio::time::timeout(PREPARE_DEADLINE, prepared)
            .await
            .map_err(|_| RuntimeError::TimedOut("the container runtime did not answer at start".into()))??;
        remove_unused_mounts(&mounts, found.iter().map(|found| found.incarnation).collect()).await?;
        for found in &found {
            tracing::info!(
                sandbox_id = %found.incarnation.sandbox_id,
                generation = %found.incarnation.generation,
                state = ?found.state,
                "found from before"
            );
        }

        let doors = Arc::new(Doors::new(config.connections_per_sandbox_max, config.dial_deadline));
        let (wanted, wanted_rx) = watch::channel(None);
        let (status_tx, status) = watch::channel(RunnerStatus::default());
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let core = Reconciler::new(config.operations_max.max(1), found, Instant::now().into_std());
        let operations =
            Operations::new(runtime.clone(), images, mounts.clone(), doors.clone(), config.dial_deadline);
        let actor = Actor::new(
            core,
            operations.clone(),
            wanted_rx,
            reports,
            status_tx,
            stopping.clone(),
            tasks.clone(),
        );
        tasks.spawn(actor.run());
        Ok(RunnerHandle {
            runtime,
            operations,
            mounts,
            doors,
            wanted: Arc::new(wanted),
            status,
            stopping,
            tasks,
        })
    }
}

/// Cheap to clone. Dropping all of them leaves sandboxes running and stops the runner.
#[derive(Clone)]
pub struct RunnerHandle {
    runtime: Arc<dyn Runtime>,
    operations: Operations,
    mounts: Mounts,
    doors: Arc<Doors>,
    wanted: Arc<watch::Sender<WantedList>>,
    status: watch::Receiver<RunnerStatus>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl RunnerHandle {
    /// Every sandbox that is placed on this node and nothing else. Only call it once the node's replica has caught up:
    /// what of ours is not on the list is destroyed. Never blocks; the newest list wins.
    pub fn set_wanted(&self, wanted: Vec<Assignment>) {
        self.wanted.send_replace(Some(Arc::new(wanted)));
    }

    /// A connection to the daemon (already introduced by its preamble) or to a port on the sandbox's loopback.
    pub async fn dial(
        &self,
        sandbox_id: SandboxId,
        generation: Generation,
        target: Target,
    ) -> Result<ByteStream, RunnerDialError> {
        self.doors.dial(&*self.runtime, Incarnation { sandbox_id, generation }, target).await
    }

    /// Brings an image to this node, so that no create waits for it: fetches what is missing and has it unpacked.
    pub async fn provide(&self, image_reference: &str) -> Result<(), RuntimeError> {
        let provided = tokio::time::timeout(PROVIDE_DEADLINE, self.operations.provide(image_reference)).await;
        provided.unwrap_or_else(|_| {
            Err(RuntimeError::TimedOut(format!("{image_reference} could not be fetched in time")))
        })
    }

    /// Ends when the sandbox serves as its newest specification has it, for this wish or a newer one, or has failed. What is
    /// not placed here yet is waited for: the caller sets the deadline.
    pub async fn until_granted(
        &self,
        sandbox_id: SandboxId,
        generation: Generation,
        desired_version: u64,
    ) -> Result<(), NotGranted> {
        self.doors.until_granted(Incarnation { sandbox_id, generation }, desired_version).await
    }

    pub fn status(&self) -> RunnerStatus {
        self.status.borrow().clone()
    }

    /// See [`Runtime::check`].
    pub async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        self.runtime.check().await
    }

    /// Ends the runner and leaves the sandboxes running, for a later runner to adopt. Ends when its tasks have.
    pub async fn shutdown(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends the runner and removes every sandbox, network, rule and folder of this node.
    pub async fn destroy_all(&self) -> Result<(), RuntimeError> {
        self.shutdown().await;
        tokio::time::timeout(TEARDOWN_DEADLINE, self.runtime.teardown())
            .await
            .map_err(|_| RuntimeError::TimedOut("removing this node's sandboxes".into()))??;
        remove_unused_mounts(&self.mounts, Vec::new()).await
    }
}

async fn remove_unused_mounts(mounts: &Mounts, used: Vec<Incarnation>) -> Result<(), RuntimeError> {
    let mounts = mounts.clone();
    blocking(move || {
        for incarnation in mounts.list()?.into_iter().filter(|incarnation| !used.contains(incarnation)) {
            mounts.remove(incarnation)?;
        }
        Ok(())
    })
    .await
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RuntimeError::Host(format!("a disk task broke off: {error}"))))
}
