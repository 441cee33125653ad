//! The sandboxes of this node: makes actual what placements want, and reports phases. Knows nothing of Raft.
//!
//! [`Runner::start`] gives a [`RunnerHandle`]. Tell it the whole wanted list with [`RunnerHandle::set_wanted`] on every
//! change; it answers with [`Report`]s on the channel it was given, and with connections from [`RunnerHandle::dial`].

pub mod assignment;
mod handle;

mod actor;
mod reconcile;

mod dialing;
mod identity;
mod mount;
mod operations;

pub mod build;
pub mod docker;
pub mod embedded;
pub mod fake;
pub mod image;
pub mod mount_dir;
pub mod remote;
pub mod runtime;
pub mod store;

pub use assignment::{Assignment, CaptureWish, Origin, Report, ReportKind};
pub use dialing::NotGranted;
pub use docker::{DockerConfig, DockerRuntime};
pub use handle::{Runner, RunnerConfig, RunnerDialError, RunnerHandle, RunnerStatus};
pub use image::{EngineImages, Image, ImageSource, Kept};
pub use mount_dir::MountDir;
pub use reconcile::Counts;
pub use remote::{RemoteConfig, RemoteRuntime};
pub use runtime::{
    ByteStream, Exit, Finding, Found, FoundState, Incarnation, LayerTar, Runtime, RuntimeError,
};
