//! The words every crate shares: ids, tokens, access rules, grammars and wire shapes. No I/O, no clock, no randomness.

pub mod access;
pub mod channel;
pub mod daemon;
pub mod egress;
pub mod file_link;
pub mod ids;
pub mod preview_host;
pub mod rest;
pub mod sandbox;
pub mod tokens;
pub mod wire;
