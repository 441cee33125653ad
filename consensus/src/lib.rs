//! Truth: what the cluster has decided. Pure state machines, the openraft adaptor that replicates them, leader duties.

pub mod group;
pub mod state;
