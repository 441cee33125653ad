//! Where the time of starts went.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

const KEPT: usize = 4096;

/// Of one start, in microseconds. What a parked init took was spent before, unless none was ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StartTimings {
    /// The create before it: its folder and disk. 0 for a sandbox that was found from before.
    pub create_us: u64,
    /// Until an init was in hand.
    pub claim_us: u64,
    /// Making it: namespaces, control groups, /proc /sys /dev; and its network.
    pub clone_us: u64,
    pub cgroup_us: u64,
    pub furnish_us: u64,
    pub network_us: u64,
    /// What it may reach outside.
    pub egress_us: u64,
    /// Limits written.
    pub limit_us: u64,
    /// Its disk mounted, and its /etc written there.
    pub disk_us: u64,
    /// Layers and disk stacked.
    pub mount_us: u64,
    /// The init moved in and exec'ed the daemon.
    pub exec_us: u64,
    /// From the claim to here. The daemon's hello comes later.
    pub total_us: u64,
}

#[derive(Debug, Default)]
pub(super) struct Timings {
    last: Mutex<VecDeque<StartTimings>>,
}

impl Timings {
    pub(super) fn note(&self, timings: StartTimings) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(timings);
    }

    pub(super) fn all(&self) -> Vec<StartTimings> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
