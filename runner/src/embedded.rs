//! The runtime that needs nobody else: sandboxes made of namespaces, overlay file systems, control groups and rules.

pub mod layers;
pub mod network;
