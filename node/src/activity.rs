//! When each sandbox was last used, as seen by this node's doors. Bytes count, open connections do not.

use std::collections::HashMap;
use std::sync::Mutex;

use atoll_api::ids::SandboxId;

use crate::clock::now_ms;

/// Beyond this many sandboxes the oldest half is forgotten.
const REMEMBERED_MAX: usize = 100_000;

#[derive(Default)]
pub struct Activity {
    last_ms: Mutex<HashMap<SandboxId, u64>>,
}

impl Activity {
    pub fn touch(&self, sandbox_id: SandboxId) {
        let mut last_ms = self.last_ms.lock().expect("no holder panics");
        if last_ms.len() >= REMEMBERED_MAX && !last_ms.contains_key(&sandbox_id) {
            let mut times: Vec<u64> = last_ms.values().copied().collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            last_ms.retain(|_, at| *at > median);
        }
        last_ms.insert(sandbox_id, now_ms());
    }

    pub fn last_ms(&self, sandbox_id: SandboxId) -> Option<u64> {
        self.last_ms.lock().expect("no holder panics").get(&sandbox_id).copied()
    }
}
