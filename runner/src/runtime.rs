//! The seam to what runs sandboxes. `docker` implements it now, `embedded` later, `fake` for tests.

use std::fs::File;

use async_trait::async_trait;
use atoll_api::ids::{Generation, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Egress, SandboxSpec};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::image::{Digest, Image, Kept};
use crate::mount_dir::MountDir;

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type ByteStream = Box<dyn Duplex>;
/// A tar that is still being written. End of file means that it is whole.
pub type LayerTar = Box<dyn AsyncRead + Send + Unpin>;

/// Which sandbox, for which ownership. A runtime labels everything it makes with both.
/// Ordered by sandbox, then generation, so that the older ones of a sandbox stand before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    pub sandbox_id: SandboxId,
    pub generation: Generation,
}

impl Incarnation {
    /// One that runs a step of a build and is nobody's sandbox: no placement ever comes to its generation.
    pub fn of_build(random: [u8; 14]) -> Incarnation {
        let region = RegionOrdinal::new(0).expect("the first of many");
        Incarnation { sandbox_id: SandboxId::new(region, random), generation: BUILD_GENERATION }
    }

    pub fn is_of_build(&self) -> bool {
        self.generation == BUILD_GENERATION
    }
}

const BUILD_GENERATION: Generation = Generation(u64::MAX);

/// What exists on this node, as found by [`Runtime::list`] (after a restart of the node, for adoption).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub incarnation: Incarnation,
    pub state: FoundState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundState {
    Running,
    /// See [`Runtime::pause`].
    Paused,
    /// `exit_code` is `None` for one that was never started.
    Stopped {
        exit_code: Option<i64>,
    },
}

/// All verbs are idempotent and bounded in time, except `wait`, which lasts as long as the sandbox runs.
/// None touches what another node's runner has made. A future that is dropped breaks its verb off wherever it is; what
/// that leaves behind is found by `list` and goes with `remove`.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes what the node's sandboxes share (network, firewall rules) or finds it again. Called before anything
    /// else and then now and again, so that rules which somebody flushed come back.
    async fn prepare(&self) -> Result<(), RuntimeError>;
    /// The blobs of `image` that [`Runtime::import`] must be given before [`Runtime::create`] can use it; none when the
    /// runtime has the image.
    async fn missing_blobs(&self, image: &Image) -> Result<Vec<Digest>, RuntimeError>;
    /// Takes the blobs that [`Runtime::missing_blobs`] named, each open for reading at its beginning. Checks every
    /// layer against its `diff_id`.
    async fn import(&self, image: &Image, blobs: Vec<(Digest, File)>) -> Result<(), RuntimeError>;
    /// Makes the sandbox, not started. `mount_dir` appears read-only inside. Fine if it exists already.
    async fn create(
        &self,
        incarnation: Incarnation,
        spec: &SandboxSpec,
        image: &Image,
        mount_dir: &MountDir,
    ) -> Result<(), RuntimeError>;
    /// Refuses ([`RuntimeError::Host`]) while the network's rules are not known to be in place.
    async fn start(&self, incarnation: Incarnation) -> Result<(), RuntimeError>;
    /// No process of it gets the CPU until [`Runtime::resume`]. Its memory stays. Fine if it is paused already.
    async fn pause(&self, incarnation: Incarnation) -> Result<(), RuntimeError>;
    /// Fine if it is not paused.
    async fn resume(&self, incarnation: Incarnation) -> Result<(), RuntimeError>;
    /// What differs from its image, as an uncompressed OCI layer. The sandbox must be stopped or paused; a `NotRunning`
    /// is never said, a `Spec` is when it runs. An error in the middle is an error of the reader.
    async fn commit(&self, incarnation: Incarnation) -> Result<LayerTar, RuntimeError>;
    /// What the sandbox was made from, and what [`Runtime::commit`] differs from.
    async fn base(&self, incarnation: Incarnation) -> Result<Image, RuntimeError>;
    /// The disk as an image that the runtime's own engine keeps, called `name` there; `None` when it has no such engine, and
    /// [`Runtime::commit`] is the way. The sandbox must be stopped or paused.
    async fn commit_image(
        &self,
        _incarnation: Incarnation,
        _name: &str,
    ) -> Result<Option<Kept>, RuntimeError> {
        Ok(None)
    }
    /// Replaces what the sandbox may reach. Holds for running ones at once, and for later starts.
    async fn set_egress(&self, incarnation: Incarnation, egress: &Egress) -> Result<(), RuntimeError>;
    /// SIGTERM, `grace_ms`, SIGKILL. Also ends a paused one. Keeps the disk. Fine if it is stopped already.
    async fn stop(&self, incarnation: Incarnation, grace_ms: u64) -> Result<(), RuntimeError>;
    /// Everything of it goes. Not an error when there is nothing.
    async fn remove(&self, incarnation: Incarnation) -> Result<(), RuntimeError>;
    async fn list(&self) -> Result<Vec<Found>, RuntimeError>;
    /// Ends when the sandbox's first process has ended; says why. `NotFound` when the sandbox is gone altogether.
    async fn wait(&self, incarnation: Incarnation) -> Result<Exit, RuntimeError>;
    /// A TCP connection to a port on the sandbox's own loopback, made from inside its network namespace. The socket
    /// itself, so that another process can be given it.
    async fn dial(&self, incarnation: Incarnation, port: u16) -> Result<TcpStream, RuntimeError>;
    /// Checks what it needs (engine there, image there, disk not full): one line for each thing an operator must
    /// do or know; none when all is well. An error means that not even checking was possible.
    async fn check(&self) -> Result<Vec<Finding>, RuntimeError>;
    /// Removes every sandbox of this node and what [`Runtime::prepare`] made.
    async fn teardown(&self) -> Result<(), RuntimeError>;
}

/// One thing that [`Runtime::check`] found. The text says what it is and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Sandboxes cannot run, or not safely, until the operator has acted.
    Fault(String),
    /// Sandboxes run; something that people may expect is not to be had on this host.
    Limitation(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// `None` when nobody could tell.
    pub code: Option<i64>,
    pub out_of_memory: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    #[error("no such sandbox here")]
    NotFound,
    /// The sandbox is there and does not run.
    #[error("the sandbox is not running")]
    NotRunning,
    /// The user's image or spec is at fault.
    #[error("{0}")]
    Spec(String),
    /// The operator must act: engine down, disk full, image missing.
    #[error("{0}")]
    Host(String),
    #[error("timed out: {0}")]
    TimedOut(String),
    /// Too much is asked at once; nothing was done.
    #[error("too many dials wait already")]
    Overloaded,
}
