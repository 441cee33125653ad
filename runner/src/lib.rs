//! The sandboxes of this node: makes actual what placements want, and reports phases. Knows nothing of Raft.

pub mod runtime;
