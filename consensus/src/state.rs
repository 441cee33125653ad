//! The pure state machines. They use std, serde and `api` only: no clock, no randomness, no I/O.
//! Commands carry decisions, with the time and the new ids inside; `apply` judges them and never makes policy.

pub mod cluster;
pub mod region;
