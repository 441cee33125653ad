//! What the fault tests stand on: real clusters of `atoll dev`, and the simulated tier.

pub mod dev;
pub mod history;
pub mod host_sandboxes;
