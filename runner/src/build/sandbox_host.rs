//! What builds stand on in a node: its store of blobs, and a sandbox for every RUN. Knows neither organizations nor
//! where credentials come from: each build brings that ([`BaseAccess`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::sandbox::Resources;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::BuildError;
use super::cache::{CacheLimits, StepCache};
use super::host::{Admitted, BaseAccess, BaseImage, BuildHost, Made, Ran};
use super::log::BuildLog;
use super::oci::read_config;
use super::plan::RunStep;
use super::step::{Step, Steps};
use super::text::Text;
use crate::handle::blocking;
use crate::image::{Digest, Image, ImageSource, Layer};
use crate::mount::Mounts;
use crate::runtime::{Runtime, RuntimeError};
use crate::store::{Progress, Store, StoreError};

/// Pieces of output, of at most 64 KiB, that wait for the log; the program waits then.
const OUTPUT_WAITING_MAX: usize = 8;
/// Between lines about a download.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
const MB: f64 = 1e6;

#[derive(Debug, Clone)]
pub struct SandboxBuildConfig {
    /// Absolute, below the node's data folder and nobody else's: what steps see of the node, and the cache. Must be on
    /// a file system that may execute.
    pub dir: PathBuf,
    /// The static binary that runs inside every sandbox as its first process.
    pub daemon_binary: Bytes,
    /// Of the sandbox of one step. Not counted against what the node promises to sandboxes: `BuildLimits::parallel_max`
    /// times this is on top.
    pub resources: Resources,
    pub cache: CacheLimits,
}

impl SandboxBuildConfig {
    pub fn new(dir: PathBuf, daemon_binary: Bytes) -> SandboxBuildConfig {
        SandboxBuildConfig {
            dir,
            daemon_binary,
            resources: Resources { cpu: 2, memory_gib: 4, disk_gib: 20 },
            cache: CacheLimits::default(),
        }
    }
}

/// A handle. One per node: what it finds of earlier steps it takes for left behind.
#[derive(Clone)]
pub struct SandboxBuildHost(Arc<Inner>);

struct Inner {
    steps: Arc<Steps>,
    cache: Arc<StepCache>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl SandboxBuildHost {
    /// Removes what steps of an earlier process have left. Needs the runtime's answer, so the runner's process must be
    /// there; may come before or after [`crate::Runner::start`].
    pub async fn open(
        runtime: Arc<dyn Runtime>,
        store: Store,
        config: SandboxBuildConfig,
    ) -> Result<SandboxBuildHost, RuntimeError> {
        let SandboxBuildConfig { dir, daemon_binary, resources, cache: cache_limits } = config;
        let (mounts, cache) = blocking(move || {
            let mounts = Mounts::open(&dir, &daemon_binary)?;
            let cache = StepCache::open(dir.join("cache"), cache_limits).map_err(|error| {
                RuntimeError::Host(format!("open the builds' cache in {}: {error}", dir.display()))
            })?;
            Ok((mounts, cache))
        })
        .await?;
        runtime.prepare().await?;
        let steps = Arc::new(Steps::new(runtime, store, mounts, resources));
        if let Err(error) = steps.tidy().await {
            // Tried again with the next step.
            tracing::warn!(%error, "cannot remove what builds of an earlier process have left");
        }
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        Ok(SandboxBuildHost(Arc::new(Inner { steps, cache: Arc::new(cache), closing, tasks })))
    }

    /// Blobs that the cache would like to find again: to be counted as needed when the store is collected. One that is
    /// collected nevertheless costs no build more than the time to make it again.
    pub fn cached_blobs(&self) -> BTreeSet<Digest> {
        self.0.cache.blobs()
    }

    /// Breaks off what runs, and ends when everything of it is removed. After [`super::Builds::shutdown`].
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn store(&self) -> &Store {
        &self.0.steps.store
    }
}

#[async_trait]
impl BuildHost for SandboxBuildHost {
    async fn base(
        &self,
        reference: &str,
        access: &dyn BaseAccess,
        log: &BuildLog,
    ) -> Result<BaseImage, BuildError> {
        let Admitted { reference, identities } = access.admit(reference).await.map_err(BuildError::Host)?;
        let download = Arc::new(Download::default());
        let told = download.clone();
        let progress = Progress::new(move |blob, written, bytes| told.note(blob, written, bytes));
        let mut pulling = std::pin::pin!(self.store().pull_as_any(&reference, identities, progress));
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        // The first one comes at once.
        ticks.tick().await;
        let pulled = loop {
            tokio::select! {
                pulled = &mut pulling => break pulled.map_err(store_error)?,
                _ = ticks.tick() => download.say(log),
            }
        };
        log.line(&format!(" ---> {}", pulled.pinned));
        let image = Image { reference: reference.clone(), ..pulled.image };
        let id = image.id.ok_or_else(|| BuildError::Host("the image has no configuration".into()))?;
        let config = read_config(&self.store().config_json(&id).await.map_err(store_error)?)
            .map_err(BuildError::Host)?;
        Ok(BaseImage { image, config })
    }

    async fn open(&self, layer: &Layer) -> Result<File, BuildError> {
        Ok(ImageSource::open(self.store(), &layer.blob).await?)
    }

    async fn add_layer(&self, tar: File) -> Result<Layer, BuildError> {
        let mut writer = self.store().writer().map_err(store_error)?;
        writer.copy_from(tokio::fs::File::from_std(tar)).await.map_err(store_error)?;
        self.store().finish_layer(writer).await.map_err(store_error)
    }

    async fn run(&self, image: &Image, run: &RunStep, log: &BuildLog) -> Result<Ran, BuildError> {
        let cancel = self.0.closing.child_token();
        let (output, mut heard) = mpsc::channel(OUTPUT_WAITING_MAX);
        let step = Step {
            steps: self.0.steps.clone(),
            image: image.clone(),
            run: run.clone(),
            output,
            cancel: cancel.clone(),
        };
        // A task of its own, as it has to tidy up also when nobody waits for it any more.
        let _cancelled_when_dropped = cancel.drop_guard();
        let step = self.0.tasks.spawn(step.run());
        let mut text = Text::default();
        while let Some(bytes) = heard.recv().await {
            log.append(text.push(&bytes).as_bytes());
        }
        log.append(text.end().as_bytes());
        step.await.unwrap_or_else(|error| Err(BuildError::Host(format!("a step broke off: {error}"))))
    }

    async fn cached(&self, key: &Digest) -> Option<Made> {
        let (cache, store, key) = (self.0.cache.clone(), self.store().clone(), *key);
        let found = tokio::task::spawn_blocking(move || {
            let made = cache.get(&key)?;
            // Looking at it is a use, after which the store keeps it for a while.
            if made.is_some_and(|layer| store.open_here(&layer.blob).is_none()) {
                cache.forget(&key);
                return None;
            }
            Some(made)
        });
        found.await.unwrap_or_default()
    }

    async fn remember(&self, key: &Digest, made: &Made) {
        let (cache, key, made) = (self.0.cache.clone(), *key, *made);
        let put = tokio::task::spawn_blocking(move || cache.put(&key, &made)).await;
        if let Err(error) = put.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::warn!(%error, "a step's result is not remembered");
        }
    }

    async fn add_image(&self, config: Vec<u8>, layers: &[Layer]) -> Result<Image, BuildError> {
        let (digest, image) = self.store().put_image(&config, layers).await.map_err(store_error)?;
        // By the digest of its manifest, until somebody gives it a name.
        Ok(Image { reference: digest.to_string(), ..image })
    }
}

fn store_error(error: StoreError) -> BuildError {
    RuntimeError::from(error).into()
}

/// How far the blobs of an image have come: (written, bytes) of each.
#[derive(Default)]
struct Download(Mutex<BTreeMap<Digest, (u64, u64)>>);

impl Download {
    fn note(&self, blob: &Digest, written: u64, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(*blob, (written, bytes));
    }

    fn say(&self, log: &BuildLog) {
        let blobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !blobs.is_empty() {
            let (written, bytes) = blobs.values().fold((0, 0), |sum, blob| (sum.0 + blob.0, sum.1 + blob.1));
            log.line(&format!(" ---> Pulled {:.1} of {:.1} MB", written as f64 / MB, bytes as f64 / MB));
        }
    }
}
