//! Control: carries verbs out, in this region or by asking a node of the right one. The only proposer for the doors.
//!
//!   door ─ Verb ─▶ ControlPlane ─┬─ this region ──▶ RegionVerbs ─▶ propose, wait for the owner's report
//!                                ├─ other region ─▶ Forward stream ─▶ RegionVerbs there
//!                                └─ the cluster ──▶ ClusterVerbs · CatalogueVerbs

pub mod build;
pub mod catalogue;
pub mod claim;
pub mod cluster;
mod disk;
pub mod forward;
pub mod plane;
pub mod region;
pub mod verb;
mod warm_pools;
