//! The openraft adaptor. Nothing of openraft is named outside of this folder.

mod log;
mod machine;
mod network;
mod replica;
mod runtime;
mod types;

#[cfg(test)]
mod suite_test;

pub use machine::{Machine, decodes};
pub use replica::{NotDecided, Replica, ReplicaSetup, View};
pub use runtime::{random, seed_this_thread};
pub use types::{Batch, Proposal};
