//! Builds an image from a Dockerfile without Docker: text → program → plan of a stage → layers.
//!
//! ```text
//! lines     continuation lines joined, here-documents lifted out        ┐
//! words     $X, ${X:-d}, quotes, escapes                                │ pure
//! program   the whole Dockerfile, checked before anything runs          │
//! plan      one stage on its base's configuration: steps to take        ┘
//! tree      what a stack of tars shows, without unpacking it; copy makes a COPY's layer from it
//! executor  takes the steps over a `BuildHost`, skipping what the cache knows
//! sandbox_host  the real `BuildHost`: the node's store, a sandbox for every RUN (step, exec, text), the steps' cache
//! log       a build's output, followed by whoever wants
//! builds    the builds of a node: bounded, cancellable, with a deadline
//! ```

mod error;
mod lines;
mod plan;
mod program;
mod words;

mod accounts;
mod archive;
mod copy;
mod pattern;
mod tree;

mod builds;
mod executor;
mod host;
mod key;
mod log;
mod oci;

mod cache;
mod exec;
mod sandbox_host;
mod step;
mod text;

/// Whether a Dockerfile can be built at all, as far as its text says: with the line that is at fault.
pub fn check(dockerfile: &str) -> Result<(), BuildError> {
    program::read(dockerfile, &Default::default()).map(drop)
}

pub use builds::{BuildLimits, BuildState, Builds, StartError};
pub use cache::CacheLimits;
pub use error::BuildError;
pub use executor::{BuildRequest, build};
pub use host::{Admitted, AnonymousAccess, BaseAccess, BaseImage, BuildHost, Made, Ran};
pub use log::BuildLog;
pub use oci::read_config;
pub use plan::{RunStep, StageConfig};
pub use program::Network;
pub use sandbox_host::{SandboxBuildConfig, SandboxBuildHost};
