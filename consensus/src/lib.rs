//! Truth: what the cluster has decided. Pure state machines, the openraft adaptor that replicates them, leader duties.

pub mod consensus;
pub mod group;
pub mod membership;
pub mod place;
pub mod plan;
pub mod replicated;
pub mod state;

pub use consensus::{Compaction, Consensus, ConsensusConfig, Timings};
pub use group::{ClusterGroup, Group, GroupError, GroupStatus, RegionGroup};
pub use replicated::Replicated;
