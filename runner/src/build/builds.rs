//! The builds of this node: a few at a time, each with a log that outlives its viewers, a deadline and a way to cancel.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::BuildError;
use super::executor::{BuildRequest, build};
use super::host::BuildHost;
use super::log::BuildLog;
use crate::image::Image;

/// Of the log, in the reason of a failure.
const REASON_LINES: usize = 12;
/// Builds that have ended are known, and their logs kept, up to so many.
const ENDED_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct BuildLimits {
    /// At once. More wait.
    pub parallel_max: usize,
    /// Waiting and running.
    pub open_max: usize,
    /// From its turn to its image.
    pub deadline: Duration,
}

impl Default for BuildLimits {
    fn default() -> BuildLimits {
        BuildLimits { parallel_max: 2, open_max: 64, deadline: Duration::from_secs(3600) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildState {
    /// Others go first.
    Waiting,
    Running,
    Built(Arc<Image>),
    /// What is at fault, and the last lines of the log.
    Failed(String),
}

impl BuildState {
    pub fn is_final(&self) -> bool {
        matches!(self, BuildState::Built(_) | BuildState::Failed(_))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    #[error("too many builds wait already; try again later")]
    Overloaded,
    /// It goes by letters, digits and `-`.
    #[error("not a build's id")]
    BadId,
    #[error("this node is stopping")]
    Stopping,
    #[error("the build's log cannot be written; free some disk")]
    NoLog,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Builds(Arc<Inner>);

struct Inner {
    host: Arc<dyn BuildHost>,
    limits: BuildLimits,
    /// `<id>.log` of each build, and nameless temporary files.
    dir: PathBuf,
    turns: Arc<Semaphore>,
    known: Mutex<Known>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Known {
    builds: HashMap<String, Entry>,
    /// In the order they ended.
    ended: VecDeque<String>,
}

#[derive(Clone)]
struct Entry {
    log: Arc<BuildLog>,
    state: watch::Receiver<BuildState>,
    cancel: CancellationToken,
}

impl Builds {
    /// `dir` is made, and logs of a run before this one are removed: their builds have to begin again.
    pub fn open(host: Arc<dyn BuildHost>, dir: PathBuf, limits: BuildLimits) -> std::io::Result<Builds> {
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Builds(Arc::new(Inner {
            host,
            turns: Arc::new(Semaphore::new(limits.parallel_max.max(1))),
            limits,
            dir,
            known: Mutex::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })))
    }

    /// Begins a build, which goes on whoever watches. One that is known by this id is left as it is, unless it failed.
    pub fn start(&self, id: &str, request: BuildRequest) -> Result<watch::Receiver<BuildState>, StartError> {
        let is_id =
            !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !is_id {
            return Err(StartError::BadId);
        }
        if self.0.stopping.is_cancelled() {
            return Err(StartError::Stopping);
        }
        let mut known = self.known();
        if let Some(entry) = known.builds.get(id)
            && !matches!(*entry.state.borrow(), BuildState::Failed(_))
        {
            return Ok(entry.state.clone());
        }
        if known.builds.len() - known.ended.len() >= self.0.limits.open_max {
            return Err(StartError::Overloaded);
        }
        let log = BuildLog::create(&self.log_path(id)).map_err(|error| {
            tracing::error!(%error, id, "create a build's log");
            StartError::NoLog
        })?;
        let (state, states) = watch::channel(BuildState::Waiting);
        let entry =
            Entry { log: Arc::new(log), state: states.clone(), cancel: self.0.stopping.child_token() };
        known.ended.retain(|ended| ended != id);
        known.builds.insert(id.to_owned(), entry.clone());
        drop(known);
        self.0.tasks.spawn(self.clone().run(id.to_owned(), entry, state, request));
        Ok(states)
    }

    pub fn state(&self, id: &str) -> Option<watch::Receiver<BuildState>> {
        self.known().builds.get(id).map(|entry| entry.state.clone())
    }

    pub fn log(&self, id: &str) -> Option<Arc<BuildLog>> {
        self.known().builds.get(id).map(|entry| entry.log.clone())
    }

    /// Ends it and what it runs. Not an error when there is none.
    pub fn cancel(&self, id: &str) {
        if let Some(entry) = self.known().builds.get(id) {
            entry.cancel.cancel();
        }
    }

    /// Cancels every build and waits until they are gone.
    pub async fn shutdown(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn run(self, id: String, entry: Entry, state: watch::Sender<BuildState>, request: BuildRequest) {
        let deadline = self.0.limits.deadline;
        let work = async {
            let _turn = self.0.turns.acquire().await.map_err(|_| BuildError::Cancelled)?;
            state.send_replace(BuildState::Running);
            let building = build(&*self.0.host, request, &self.0.dir, &entry.log);
            let late = BuildError::TimedOut(deadline.as_secs());
            tokio::time::timeout(deadline, building).await.unwrap_or(Err(late))
        };
        let built = tokio::select! {
            biased;
            () = entry.cancel.cancelled() => Err(BuildError::Cancelled),
            built = work => built,
        };
        let ended = match built {
            Ok(image) => {
                entry.log.line("Built");
                BuildState::Built(Arc::new(image))
            }
            Err(error) => {
                let reason = match &error {
                    // The output says why; what else went wrong says it itself.
                    BuildError::Command { .. } => format!("{error}\n{}", entry.log.tail(REASON_LINES)),
                    error => error.to_string(),
                };
                tracing::info!(id, %error, "a build failed");
                entry.log.line(&format!("ERROR: {error}"));
                BuildState::Failed(reason)
            }
        };
        // In this order: who sees the end may rely on the log being whole.
        entry.log.end();
        state.send_replace(ended);
        self.forget_the_oldest(id);
    }

    fn forget_the_oldest(&self, ended: String) {
        let mut known = self.known();
        known.ended.push_back(ended);
        while known.ended.len() > ENDED_MAX {
            if let Some(oldest) = known.ended.pop_front() {
                known.builds.remove(&oldest);
                // Its readers hold it open.
                let _ = std::fs::remove_file(self.log_path(&oldest));
            }
        }
    }

    fn log_path(&self, id: &str) -> PathBuf {
        self.0.dir.join(format!("{id}.log"))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use futures_util::TryStreamExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::build::host::{AnonymousAccess, BaseAccess, BaseImage, Made, Ran};
    use crate::build::plan::{RunStep, StageConfig};
    use crate::image::{Compression, Digest, Layer};

    /// Its one command says its number and waits for the test.
    #[derive(Default)]
    struct Slow {
        running: AtomicUsize,
        most: AtomicUsize,
        begun: Notify,
        go_on: Notify,
    }

    struct Leaving<'a>(&'a Slow);

    impl Drop for Leaving<'_> {
        fn drop(&mut self) {
            self.0.running.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[async_trait]
    impl BuildHost for Slow {
        async fn base(
            &self,
            reference: &str,
            _: &dyn BaseAccess,
            _: &BuildLog,
        ) -> Result<BaseImage, BuildError> {
            let digest = Digest::of(b"a layer");
            let layer =
                Layer { diff_id: digest, blob: digest, blob_bytes: 7, compression: Compression::None };
            let image = Image { layers: vec![layer], ..Image::named(reference) };
            Ok(BaseImage { image, config: StageConfig::default() })
        }

        async fn open(&self, _: &Layer) -> Result<File, BuildError> {
            Err(BuildError::Host("no layers here".into()))
        }

        async fn add_layer(&self, _: File) -> Result<Layer, BuildError> {
            Err(BuildError::Host("no layers here".into()))
        }

        async fn run(&self, _: &Image, run: &RunStep, log: &BuildLog) -> Result<Ran, BuildError> {
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            let _leaving = Leaving(self);
            self.most.fetch_max(running, Ordering::SeqCst);
            log.line("it says why");
            self.begun.notify_one();
            self.go_on.notified().await;
            let exit_code = run.argv[2].strip_prefix("exit ").map_or(0, |code| code.parse().unwrap());
            Ok(Ran { exit_code, layer: None })
        }

        async fn cached(&self, _: &Digest) -> Option<Made> {
            None
        }

        async fn remember(&self, _: &Digest, _: &Made) {}

        async fn add_image(&self, _: Vec<u8>, _: &[Layer]) -> Result<Image, BuildError> {
            Ok(Image::named("built"))
        }
    }

    fn open(limits: BuildLimits) -> (Arc<Slow>, Builds, tempfile::TempDir) {
        let (host, dir) = (Arc::new(Slow::default()), tempfile::tempdir().unwrap());
        let builds = Builds::open(host.clone(), dir.path().to_owned(), limits).unwrap();
        (host, builds, dir)
    }

    fn request(command: &str) -> BuildRequest {
        let dockerfile = format!("FROM x\nRUN {command}");
        BuildRequest {
            dockerfile,
            build_args: BTreeMap::new(),
            contexts: Vec::new(),
            access: Arc::new(AnonymousAccess),
        }
    }

    async fn ended(mut states: watch::Receiver<BuildState>) -> BuildState {
        states.wait_for(BuildState::is_final).await.unwrap().clone()
    }

    #[tokio::test]
    async fn a_failure_brings_the_last_lines_and_may_be_tried_again() {
        let (host, builds, _dir) = open(BuildLimits::default());
        let states = builds.start("a", request("exit 3")).unwrap();
        let viewer = builds.log("a").unwrap().follow(0);
        drop(viewer);
        host.go_on.notify_one();

        let reason = "Dockerfile line 2: RUN exit 3 ended with exit code 3\n\
                      Step 1/2 : FROM x\nStep 2/2 : RUN exit 3\nit says why";
        assert_eq!(ended(states).await, BuildState::Failed(reason.into()));
        let log = builds.log("a").unwrap().follow(0).try_collect::<Vec<_>>().await.unwrap().concat();
        assert!(
            String::from_utf8(log)
                .unwrap()
                .ends_with("ERROR: Dockerfile line 2: RUN exit 3 ended with exit code 3\n")
        );

        host.go_on.notify_one();
        assert!(matches!(ended(builds.start("a", request("true")).unwrap()).await, BuildState::Built(_)));
        assert!(builds.start("a", request("exit 1")).unwrap().borrow().is_final());
    }

    #[tokio::test]
    async fn only_so_many_run_and_wait() {
        let limits = BuildLimits { parallel_max: 1, open_max: 2, ..BuildLimits::default() };
        let (host, builds, _dir) = open(limits);
        let (first, second) =
            (builds.start("a", request("x")).unwrap(), builds.start("b", request("x")).unwrap());

        assert_eq!(builds.start("c", request("x")).unwrap_err(), StartError::Overloaded);
        assert_eq!(builds.start("../c", request("x")).unwrap_err(), StartError::BadId);
        host.begun.notified().await;
        host.go_on.notify_one();
        assert!(matches!(ended(first).await, BuildState::Built(_)));
        host.begun.notified().await;
        host.go_on.notify_one();
        assert!(matches!(ended(second).await, BuildState::Built(_)));
        assert_eq!(host.most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_and_the_deadline_end_what_runs() {
        let (host, builds, _dir) =
            open(BuildLimits { deadline: Duration::from_secs(5), ..BuildLimits::default() });
        let states = builds.start("a", request("x")).unwrap();
        host.begun.notified().await;
        builds.cancel("a");

        assert_eq!(ended(states).await, BuildState::Failed("the build was cancelled".into()));
        let late = builds.start("b", request("x")).unwrap();
        assert_eq!(ended(late).await, BuildState::Failed("the build took longer than 5 s".into()));
        assert_eq!(host.running.load(Ordering::SeqCst), 0);
        builds.shutdown().await;
        assert_eq!(builds.start("c", request("x")).unwrap_err(), StartError::Stopping);
    }
}
