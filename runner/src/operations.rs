//! Carries out one operation on one sandbox, start to end, and says how it went. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Target;
use atoll_api::daemon::Identity;
use atoll_api::sandbox::SandboxSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dialing::{Doors, dial_target};
use crate::handle::{RunnerDialError, blocking};
use crate::identity::{Told, tell_identity};
use crate::image::{Image, ImageSource, Kept};
use crate::mount::{Mounts, Secret};
use crate::mount_dir::MountDir;
use crate::reconcile::{Ended, Operation, OperationError, Stillness, exit_words};
use crate::runtime::{Exit, Incarnation, Runtime, RuntimeError};
use crate::store::BlobWriter;

/// What a sandbox gets between SIGTERM and SIGKILL.
pub const STOP_GRACE_MS: u64 = 5_000;
/// A daemon says hello some milliseconds after its container has started. One that does not may have been started by a
/// node process that was killed in between, and know another socket and secret: it is stopped and started anew.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// What is not found at once is fetched, which may take long.
const LOOK_FOR_IMAGE_DEADLINE: Duration = Duration::from_secs(2);
/// Between questions to a runtime that cannot say whether a sandbox still runs.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Then it counts as ended, and the next list will tell.
const WATCH_FAILURES_MAX: u32 = 30;

#[derive(Clone)]
pub(crate) struct Operations {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) doors: Arc<Doors>,
    images: Arc<dyn ImageSource>,
    mounts: Mounts,
    dial_deadline: Duration,
}

/// A disk that may change again.
enum Read {
    /// Of which the runtime's engine has made an image.
    Kept(Kept),
    /// With the image that the sandbox was made from.
    Layer(Box<(Image, BlobWriter)>),
}

impl Operations {
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn ImageSource>,
        mounts: Mounts,
        doors: Arc<Doors>,
        dial_deadline: Duration,
    ) -> Operations {
        Operations { runtime, images, mounts, doors, dial_deadline }
    }

    pub(crate) async fn perform(
        &self,
        incarnation: Incarnation,
        operation: Operation,
    ) -> Result<(), OperationError> {
        match operation {
            Operation::Provide(spec) => Ok(self.provide(&spec.image).await?),
            Operation::Create(spec) => self.create(incarnation, &spec).await,
            Operation::Start(spec) => self.start(incarnation, spec).await,
            Operation::Adopt => self.adopt(incarnation).await,
            Operation::Pause => Ok(self.runtime.pause(incarnation).await?),
            Operation::Resume => Ok(self.runtime.resume(incarnation).await?),
            Operation::Capture { name, how } => self.capture(incarnation, &name, how).await.map(drop),
            Operation::SetEgress(spec) => Ok(self.runtime.set_egress(incarnation, &spec.egress).await?),
            Operation::Identify(spec) => self.identify(incarnation, &spec).await,
            Operation::Stop => Ok(self.runtime.stop(incarnation, STOP_GRACE_MS).await?),
            Operation::Remove => self.remove(incarnation).await,
        }
    }

    async fn create(&self, incarnation: Incarnation, spec: &SandboxSpec) -> Result<(), OperationError> {
        let mounts = self.mounts.clone();
        let mount_dir = blocking(move || MountDir::open(&mounts.prepare(incarnation)?)).await?;
        let image = tokio::time::timeout(LOOK_FOR_IMAGE_DEADLINE, self.image_here(&spec.image)).await;
        let Ok(Some(image)) = image.unwrap_or(Ok(None)) else { return Err(OperationError::ImageMissing) };
        Ok(self.runtime.create(incarnation, spec, &image, &mount_dir).await?)
    }

    /// `None` when something of it must be fetched or unpacked first.
    async fn image_here(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let image = self.images.resolve(reference).await?;
        Ok(self.runtime.missing_blobs(&image).await?.is_empty().then_some(image))
    }

    /// Brings an image here, from wherever it is, ready for creates.
    pub(crate) async fn provide(&self, reference: &str) -> Result<(), RuntimeError> {
        let image = self.images.resolve(reference).await?;
        provide(&*self.runtime, &*self.images, &image).await
    }

    async fn start(&self, incarnation: Incarnation, spec: Arc<SandboxSpec>) -> Result<(), OperationError> {
        let secret = launch(&*self.runtime, &self.mounts, incarnation, spec).await?;
        self.doors.keep_secret(incarnation, secret);
        Ok(())
    }

    async fn adopt(&self, incarnation: Incarnation) -> Result<(), OperationError> {
        let mounts = self.mounts.clone();
        let secret = blocking(move || Ok(mounts.secret(incarnation))).await?;
        let Some(secret) = secret else {
            return Err(OperationError::Final(
                "the secret of the running sandbox is lost; start it again".into(),
            ));
        };
        let answer = async {
            let mut stream = dial_target(&*self.runtime, incarnation, Target::Daemon, &secret).await?;
            let request = b"GET /version HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n";
            let mut status = [0u8; 12];
            let asked = async {
                stream.write_all(request).await?;
                stream.read_exact(&mut status).await
            };
            asked.await.map_err(|_| RunnerDialError::PortClosed)?;
            Ok::<_, RunnerDialError>(status)
        };
        let status = tokio::time::timeout(self.dial_deadline, answer).await;
        match status {
            Ok(Ok(status)) if status.starts_with(b"HTTP/1.1 2") => {}
            Ok(Err(RunnerDialError::NotRunning)) => return Err(OperationError::Vanished),
            Ok(Err(error)) => {
                return Err(OperationError::Passing(format!(
                    "the sandbox's daemon does not answer: {error}"
                )));
            }
            Ok(Ok(_)) | Err(_) => {
                return Err(OperationError::Passing("the sandbox's daemon does not answer".into()));
            }
        }
        self.doors.keep_secret(incarnation, secret);
        Ok(())
    }

    /// The disk as an image in this node's store. Frozen only for as long as the disk is read.
    pub(crate) async fn capture(
        &self,
        incarnation: Incarnation,
        name: &str,
        how: Stillness,
    ) -> Result<Kept, OperationError> {
        let read = match how {
            Stillness::Already => self.read_disk(incarnation, name).await,
            Stillness::ByFreezing => {
                self.runtime.pause(incarnation).await?;
                let read = self.read_disk(incarnation, name).await;
                // Whatever has come of it. If even this fails, the core knows that it may be frozen.
                self.runtime.resume(incarnation).await?;
                read
            }
        };
        match read? {
            Read::Kept(kept) => Ok(kept),
            Read::Layer(read) => {
                let (base, layer) = *read;
                Ok(self.images.keep(&base, layer, name).await?)
            }
        }
    }

    async fn read_disk(&self, incarnation: Incarnation, name: &str) -> Result<Read, RuntimeError> {
        if let Some(kept) = self.runtime.commit_image(incarnation, name).await? {
            return Ok(Read::Kept(kept));
        }
        let base = self.runtime.base(incarnation).await?;
        let layer = self.images.read_layer(self.runtime.commit(incarnation).await?).await?;
        Ok(Read::Layer(Box::new((base, layer))))
    }

    async fn identify(&self, incarnation: Incarnation, spec: &SandboxSpec) -> Result<(), OperationError> {
        let secret = self.doors.secret(incarnation);
        let secret =
            secret.ok_or_else(|| OperationError::Passing("the sandbox is not known to serve".into()))?;
        let identity = Identity { user: spec.user.clone(), env: spec.env.clone() };
        let told = tell_identity(&*self.runtime, incarnation, &secret, &identity);
        match tokio::time::timeout(self.dial_deadline, told).await {
            Ok(Ok(Told::Taken)) => Ok(()),
            Ok(Ok(Told::Refused(reason))) => Err(OperationError::Final(reason)),
            Ok(Err(RunnerDialError::NotRunning)) => Err(OperationError::Vanished),
            Ok(Err(error)) => {
                Err(OperationError::Passing(format!("the sandbox's daemon does not answer: {error}")))
            }
            Err(_) => Err(OperationError::Passing("the sandbox's daemon does not answer".into())),
        }
    }

    async fn remove(&self, incarnation: Incarnation) -> Result<(), OperationError> {
        self.runtime.remove(incarnation).await?;
        let mounts = self.mounts.clone();
        Ok(blocking(move || mounts.remove(incarnation)).await?)
    }

    /// Lasts as long as the sandbox runs. A runtime that fails to say is asked again, a bounded number of times.
    pub(crate) async fn watch(&self, incarnation: Incarnation) -> Ended {
        let mut failures = 0;
        loop {
            match self.runtime.wait(incarnation).await {
                Ok(exit) => return Ended::Exited(exit),
                Err(RuntimeError::NotFound) => return Ended::Vanished,
                Err(_) if failures >= WATCH_FAILURES_MAX => {
                    return Ended::Exited(Exit { code: None, out_of_memory: false });
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(sandbox_id = %incarnation.sandbox_id, %error, "cannot watch the sandbox");
                    tokio::time::sleep(WATCH_AGAIN_AFTER).await;
                }
            }
        }
    }
}

/// From a sandbox that was made to its daemon's hello. Gives the secret of this start.
pub(crate) async fn launch(
    runtime: &dyn Runtime,
    mounts: &Mounts,
    incarnation: Incarnation,
    spec: Arc<SandboxSpec>,
) -> Result<Secret, OperationError> {
    let mounts = mounts.clone();
    let armed = blocking(move || mounts.arm(incarnation, &spec)).await?;
    // A hello that comes before this returns waits in the socket's backlog.
    runtime.start(incarnation).await?;
    let hello = tokio::select! {
        hello = tokio::time::timeout(HELLO_DEADLINE, armed.hello()) => hello.unwrap_or_else(|_| {
            Err(RuntimeError::TimedOut("the sandbox's daemon said no hello".into()))
        })?,
        exit = runtime.wait(incarnation) => return Err(ended_unready(exit)),
    };
    tracing::debug!(daemon_version = hello.version, "the daemon said hello");
    Ok(armed.secret().clone())
}

/// Has the runtime take what it lacks of an image.
pub(crate) async fn provide(
    runtime: &dyn Runtime,
    images: &dyn ImageSource,
    image: &Image,
) -> Result<(), RuntimeError> {
    let missing = runtime.missing_blobs(image).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let mut blobs = Vec::with_capacity(missing.len());
    for blob in missing {
        blobs.push((blob, images.open(&blob).await?));
    }
    runtime.import(image, blobs).await
}

fn ended_unready(exit: Result<Exit, RuntimeError>) -> OperationError {
    match exit {
        Ok(exit) => OperationError::Final(format!("{} before it was ready", exit_words(&exit))),
        Err(error) => error.into(),
    }
}

impl From<RuntimeError> for OperationError {
    fn from(error: RuntimeError) -> OperationError {
        match error {
            RuntimeError::Spec(text) => OperationError::Final(text),
            RuntimeError::NotFound => OperationError::Vanished,
            RuntimeError::Host(text) => OperationError::Passing(text),
            RuntimeError::TimedOut(text) => OperationError::Passing(format!("timed out: {text}")),
            RuntimeError::NotRunning => OperationError::Passing("the sandbox stopped running".into()),
            RuntimeError::Refused | RuntimeError::Overloaded => OperationError::Passing(error.to_string()),
        }
    }
}
