//! Sandboxes without any engine: namespaces, overlayfs, control groups and seccomp, made here. Needs Linux 5.19 and root.
//!
//! ```text
//!  create   a disk of the promised size, copied from a formatted one                    disk
//!  start    ── claims a parked init: namespaces, ids, control groups, network           zygote, maker, pool
//!           ── stacks the image's layers and the disk, ids shifted                      mounts, layers
//!           ── the init moves in, gives up what it may do, execs the daemon             init, capabilities, seccomp
//!  stop     ── signals its first process; the kernel ends all others with it
//! ```
//! A sandbox needs nothing of this process: it may end and another one adopt what runs, by the records on disk.

pub mod layers;
pub mod network;
pub mod zygote;

mod blanks;
mod capabilities;
mod cgroup;
mod channel;
mod commit;
mod disk;
mod home;
mod init;

mod live;
mod maker;
mod messages;
mod mounts;
mod node_files;
mod pool;
mod pressure;
mod record;
mod runtime;
mod sandbox;
mod seccomp;
mod start;
mod sys;
mod timings;

pub use runtime::{EmbeddedConfig, EmbeddedRuntime};
pub use timings::StartTimings;
