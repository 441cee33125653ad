//! The sandboxes of this node: makes actual what placements want, and reports phases. Knows nothing of Raft.
//!
//! [`Runner::start`] gives a [`RunnerHandle`]. Tell it the whole wanted list with [`RunnerHandle::set_wanted`] on every
//! change; it answers with [`Report`]s on the channel it was given, and with connections from [`RunnerHandle::dial`].

mod actor;
pub mod assignment;
mod dialing;
mod handle;
mod mount;
mod operations;
mod reconcile;
pub mod runtime;

pub use assignment::{Assignment, Report, ReportKind};
pub use handle::{Runner, RunnerConfig, RunnerDialError, RunnerHandle, RunnerStatus};
pub use reconcile::Counts;
pub use runtime::{ByteStream, Exit, Found, FoundState, Incarnation, Runtime, RuntimeError};
