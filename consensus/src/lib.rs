//! Truth: what the cluster has decided. Pure state machines, the openraft adaptor that replicates them, leader duties.

mod calls;
pub mod consensus;
pub mod disk;
mod duties;
mod front;
pub mod group;
pub mod membership;
pub mod place;
pub mod plan;
mod raft;
pub mod replicated;
mod sessions;
pub mod simulation;
pub mod state;
pub mod warm;

pub use consensus::{Compaction, Consensus, ConsensusConfig, Timings};
pub use group::{ClusterGroup, Group, GroupError, GroupStatus, RegionGroup};
pub use raft::seed_this_thread;
pub use replicated::Replicated;
