//! One RUN in a sandbox of its own, from nothing to nothing:
//!
//! ```text
//! provide ─▶ create ─▶ start ─hello─▶ run ─exit 0─▶ stop ─▶ commit ─▶ remove
//!    └──────────┴────────┴─────────────┴──any failure, cancel──┴─────▶ remove
//! ```
//!
//! The verbs that make something are never broken off in the middle: the runtime would be left with what nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_api::access::Target;
use atoll_api::channel::RunProgram;
use atoll_api::sandbox::{Egress, Resources, SandboxSpec};
use bytes::Bytes;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

use super::BuildError;
use super::exec::run_program;
use super::host::Ran;
use super::plan::RunStep;
use super::program::Network;
use crate::dialing::dial_target;
use crate::handle::blocking;
use crate::image::{Compression, Digest, Image, ImageConfig, Layer};
use crate::mount::{Mounts, Secret};
use crate::mount_dir::MountDir;
use crate::operations::{STOP_GRACE_MS, launch, provide};
use crate::reconcile::{OperationError, exit_words};
use crate::runtime::{Incarnation, Runtime, RuntimeError};
use crate::store::Store;

/// A daemon that says no hello in time is started again, as the runner does it.
const LAUNCH_TRIES: u32 = 3;
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How a sandbox has ended is known soon after its connections have.
const EXIT_NOTICE_DEADLINE: Duration = Duration::from_secs(5);
const REMOVE_TRIES: u32 = 5;
const REMOVE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Of one try.
const REMOVE_DEADLINE: Duration = Duration::from_secs(60);
/// By SIGKILL, as a shell says it.
const KILLED: i64 = 137;

/// What all steps of a node share.
pub(super) struct Steps {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) store: Store,
    pub(super) mounts: Mounts,
    pub(super) resources: Resources,
    running: Mutex<BTreeSet<Incarnation>>,
    /// Something could not be removed and is to be tried again.
    untidy: AtomicBool,
    takes_layers: OnceCell<bool>,
}

/// One step, which goes on by itself until it has ended or was cancelled, and then leaves nothing.
pub(super) struct Step {
    pub(super) steps: Arc<Steps>,
    pub(super) image: Image,
    pub(super) run: RunStep,
    /// Closed when the program has ended.
    pub(super) output: mpsc::Sender<Bytes>,
    pub(super) cancel: CancellationToken,
}

impl Steps {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        store: Store,
        mounts: Mounts,
        resources: Resources,
    ) -> Steps {
        Steps {
            runtime,
            store,
            mounts,
            resources,
            running: Mutex::default(),
            untidy: AtomicBool::new(false),
            takes_layers: OnceCell::new(),
        }
    }

    /// Removes what steps of an earlier process, or failed removals, have left.
    pub(super) async fn tidy(&self) -> Result<(), RuntimeError> {
        self.untidy.store(false, Ordering::SeqCst);
        let tidied = self.try_tidy().await;
        if tidied.is_err() {
            self.untidy.store(true, Ordering::SeqCst);
        }
        tidied
    }

    async fn try_tidy(&self) -> Result<(), RuntimeError> {
        // Before those that run are looked up, so that none of them can be taken for left behind.
        let found = self.runtime.list().await?;
        let found: BTreeSet<Incarnation> =
            found.into_iter().map(|found| found.incarnation).filter(Incarnation::is_of_build).collect();
        let mounts = self.mounts.clone();
        let mounted = blocking(move || mounts.list()).await?;
        let running = self.running().clone();
        for incarnation in found.into_iter().chain(mounted).collect::<BTreeSet<_>>().difference(&running) {
            tracing::info!(sandbox_id = %incarnation.sandbox_id, "removing what a build's step has left");
            self.remove(*incarnation).await?;
        }
        Ok(())
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError> {
        tokio::time::timeout(REMOVE_DEADLINE, self.runtime.remove(incarnation))
            .await
            .map_err(|_| RuntimeError::TimedOut("removing a build's sandbox".into()))??;
        let mounts = self.mounts.clone();
        blocking(move || mounts.remove(incarnation)).await
    }

    async fn remove_for_certain(&self, incarnation: Incarnation) {
        for attempt in 1..=REMOVE_TRIES {
            match self.remove(incarnation).await {
                Ok(()) => break,
                Err(error) if attempt == REMOVE_TRIES => {
                    tracing::error!(sandbox_id = %incarnation.sandbox_id, %error, "a build's sandbox stays");
                    self.untidy.store(true, Ordering::SeqCst);
                }
                Err(error) => {
                    tracing::warn!(sandbox_id = %incarnation.sandbox_id, %error, "remove a build's sandbox");
                    tokio::time::sleep(REMOVE_AGAIN_AFTER).await;
                }
            }
        }
        self.running().remove(&incarnation);
    }

    /// A runtime that says it lacks nothing of an image which nobody has takes no layers from us.
    async fn takes_layers(&self) -> Result<bool, RuntimeError> {
        let ask = async || {
            let mut random = [0; 32];
            rand::RngCore::fill_bytes(&mut rand::rng(), &mut random);
            let digest = Digest::new(random);
            let layer =
                Layer { diff_id: digest, blob: digest, blob_bytes: 1, compression: Compression::None };
            let image = Image {
                reference: "nobody's".into(),
                id: Some(digest),
                layers: vec![layer],
                config: ImageConfig::default(),
            };
            Ok(!self.runtime.missing_blobs(&image).await?.is_empty())
        };
        self.takes_layers.get_or_try_init(ask).await.copied()
    }

    fn running(&self) -> MutexGuard<'_, BTreeSet<Incarnation>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    pub(super) async fn run(self) -> Result<Ran, BuildError> {
        if self.steps.untidy.load(Ordering::SeqCst)
            && let Err(error) = self.steps.tidy().await
        {
            tracing::warn!(%error, "cannot remove what earlier steps have left");
        }
        let mut random = [0; 14];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut random);
        let incarnation = Incarnation::of_build(random);
        let steps = self.steps.clone();
        steps.running().insert(incarnation);
        let ran = self.run_in(incarnation).await;
        steps.remove_for_certain(incarnation).await;
        ran
    }

    async fn run_in(self, incarnation: Incarnation) -> Result<Ran, BuildError> {
        let Step { steps, image, run, output, cancel } = self;
        let runtime = &*steps.runtime;
        unless(&cancel, async {
            if !steps.takes_layers().await? {
                return Err(BuildError::Host(
                    "this node's runtime cannot run commands of a Dockerfile: set runtime.kind to embedded"
                        .into(),
                ));
            }
            Ok(provide(runtime, &steps.store, &image).await?)
        })
        .await?;

        let spec = Arc::new(spec(&image, &run, steps.resources));
        let mounts = steps.mounts.clone();
        let mount_dir = blocking(move || MountDir::open(&mounts.prepare(incarnation)?)).await?;
        runtime.create(incarnation, &spec, &image, &mount_dir).await?;
        let secret = start(&steps, incarnation, spec, &cancel).await?;
        let exit_code = unless(&cancel, execute(&steps, incarnation, &secret, run, &output)).await?;
        if exit_code == KILLED {
            let limit = steps.resources.memory_gib;
            let words = format!("(killed; a step may use {limit} GiB of memory)\n");
            // Nobody reads any more when the build was cancelled.
            let _ = output.send(words.into()).await;
        }
        drop(output);
        if exit_code != 0 {
            return Ok(Ran { exit_code, layer: None });
        }
        runtime.stop(incarnation, STOP_GRACE_MS).await?;
        let layer = unless(&cancel, commit(&steps, incarnation)).await?;
        Ok(Ran { exit_code, layer: Some(layer) })
    }
}

async fn start(
    steps: &Steps,
    incarnation: Incarnation,
    spec: Arc<SandboxSpec>,
    cancel: &CancellationToken,
) -> Result<Secret, BuildError> {
    let mut tries = 1;
    loop {
        if cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        match launch(&*steps.runtime, &steps.mounts, incarnation, spec.clone()).await {
            Ok(secret) => return Ok(secret),
            Err(OperationError::Passing(reason)) if tries < LAUNCH_TRIES => {
                tries += 1;
                tracing::warn!(sandbox_id = %incarnation.sandbox_id, reason, "start a build's sandbox again");
                steps.runtime.stop(incarnation, 0).await?;
            }
            Err(OperationError::Passing(reason) | OperationError::Final(reason)) => {
                return Err(BuildError::Host(format!("the step's sandbox did not start: {reason}")));
            }
            Err(OperationError::Vanished | OperationError::ImageMissing | OperationError::Cancelled) => {
                return Err(BuildError::Host("the step's sandbox has vanished; build again".into()));
            }
        }
    }
}

async fn execute(
    steps: &Steps,
    incarnation: Incarnation,
    secret: &Secret,
    run: RunStep,
    output: &mpsc::Sender<Bytes>,
) -> Result<i64, BuildError> {
    let runtime = &*steps.runtime;
    let dialled = dial_target(runtime, incarnation, Target::Daemon, secret);
    let stream = match tokio::time::timeout(DIAL_DEADLINE, dialled).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(BuildError::Host(format!("reach the step's sandbox: {error}"))),
        Err(_) => return Err(BuildError::Host("the step's sandbox takes no connection in time".into())),
    };
    let RunStep { argv, env, user, work_dir, network: _ } = run;
    match run_program(stream, RunProgram { argv, env, user, work_dir }, output).await {
        Ok(exit_code) => Ok(exit_code),
        Err(error) => {
            let ended = tokio::time::timeout(EXIT_NOTICE_DEADLINE, runtime.wait(incarnation)).await;
            Err(BuildError::Host(match ended {
                Ok(Ok(exit)) => format!("in the middle of the step {}", exit_words(&exit)),
                _ => format!("the step's sandbox broke off the conversation: {error}"),
            }))
        }
    }
}

async fn commit(steps: &Steps, incarnation: Incarnation) -> Result<Layer, BuildError> {
    let tar = steps.runtime.commit(incarnation).await?;
    let mut writer = steps.store.writer().map_err(RuntimeError::from)?;
    writer.copy_from(tar).await.map_err(RuntimeError::from)?;
    Ok(steps.store.finish_layer(writer).await.map_err(RuntimeError::from)?)
}

async fn unless<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, BuildError>>,
) -> Result<T, BuildError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(BuildError::Cancelled),
        done = work => done,
    }
}

fn spec(image: &Image, run: &RunStep, resources: Resources) -> SandboxSpec {
    SandboxSpec {
        snapshot: "build".to_owned(),
        image: image.reference.clone(),
        // Of the daemon; the step's own comes with its program.
        user: "root".to_owned(),
        env: BTreeMap::new(),
        entrypoint: Vec::new(),
        resources,
        egress: Egress { block_all: run.network == Network::Blocked, ..Egress::default() },
        allow_sudo: true,
    }
}
